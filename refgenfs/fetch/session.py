"""One request over aiohttp: redirects, tokens, proxies, the limit of requests a host. No retries here.

Everything runs on the asyncio loop.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from refgenfs.core.errands import Errand, Turns, current
from refgenfs.core.errors import OriginUnavailable
from refgenfs.core.metrics import Durations
from refgenfs.core.retry import Remedy
from refgenfs.fetch.answers import AttemptFailed, OriginUnusable, check_kind, connection_failure
from refgenfs.fetch.credentials import Credentials, url_credentials
from refgenfs.fetch.proxies import Proxies, present_ask
from refgenfs.fetch.settings import MAX_REDIRECTS, Access, HttpSettings
from refgenfs.fetch.urls import Origin, follow, host_of, parse_url

# What an answer may pile up in memory before the socket is left alone; twice this is aiohttp's high-water
# mark, and one more read of the socket (256 KiB) can come on top.
READ_BUFFER = 128 * 1024
# A redirect's body up to this is read, to keep the connection; a larger one costs the connection.
_SKIM = 16 * 1024
# How long a connection may take while others are left to be asked: two lost SYNs of a host that is there (RFC 6298).
HURRIED = 3.5  # seconds
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class NoneToSpare(AttemptFailed):
    """A host's connections are in use, or wanted for something better."""

    def __init__(self) -> None:
        super().__init__(OriginUnavailable, "no connection to spare", Remedy.AGAIN)


class _Slots:
    """The requests that one host may be asked at a time, and whose turn it is."""

    __slots__ = ("__weakref__", "_turns")

    def __init__(self, connections: int) -> None:
        self._turns: Turns[asyncio.Future[None]] = Turns(connections)

    def spares(self, leave: int) -> bool:
        """Say whether there is one to be had at once that leaves so many free."""
        return not self._turns.waiting and self._turns.free > leave

    def enter(self, errand: Errand) -> bool:
        """Have a turn at once; False where one has to wait."""
        return self._turns.enter(errand.user, time.monotonic())

    async def wait(self, errand: Errand) -> None:
        """Wait for a turn."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        _wake(self._turns.queue(turn, errand, time.monotonic()))
        try:
            await turn
        except asyncio.CancelledError:
            if not self._turns.withdraw(turn, errand.user):  # it came at the same moment
                self.release(errand)
            raise

    def release(self, errand: Errand) -> None:
        """Let the next have it."""
        _wake(self._turns.leave(errand.user, time.monotonic()))


def _wake(turns: list[asyncio.Future[None]]) -> None:
    for turn in turns:
        if not turn.done():  # who is being cancelled, and does not know it yet, gives it back
            turn.set_result(None)


class Session:
    """The aiohttp session of all accounts.

    `answered`: from a request to the head of its answer, by account; `queued`: waits for a turn at a host; `by_way`
    counts requests by account and way, `by_server` by account and the URL among its own that has the host.
    """

    def __init__(self, settings: HttpSettings, *, requested: Callable[[str], None]) -> None:
        self.answered: dict[str, Durations] = {}
        self.queued = Durations()
        self.queueing = 0  # requests that wait for a turn now
        self.by_way: dict[tuple[str, str], int] = {}
        self.by_server: dict[tuple[str, str], int] = {}
        self._settings = settings
        self._requested = requested
        self._credentials = Credentials()
        self._proxies = Proxies()
        # A slot lives while somebody holds or awaits it, so redirects to ever new hosts leave nothing behind.
        self._slots: weakref.WeakValueDictionary[Origin, _Slots] = weakref.WeakValueDictionary()
        self._client: aiohttp.ClientSession | None = None

    def renew(self, settings: HttpSettings) -> None:
        """Go by other settings from the next request on. For any thread."""
        if settings.connections != self._settings.connections:
            self._slots = weakref.WeakValueDictionary()  # who holds or awaits an old slot is done with it soon
        self._settings = settings

    async def aclose(self) -> None:
        """Close every connection."""
        if self._client is not None:
            await self._client.close()

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        account: str,
        waited: Callable[[float], None],
        leave: int | None = None,
        body: bytes | None = None,
        bearer: bool = True,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Make a request, follow redirects, and yield the answer, whatever its status.

        `headers` and `body` go to whom a redirect names too; the account's token goes to its own origin only, and
        without `bearer` nowhere. `waited` is told the seconds spent waiting for a turn, when many requests go to one
        host. One that is to `leave` so many of each host's connections free does not wait: it raises NoneToSpare. On
        leaving, a body that was not read to its end costs the connection. Raises AttemptFailed; errors of
        connections while the body is read inside the block become AttemptFailed too.
        """
        target = parse_url(url)
        access = self._settings.account(account).access
        for _ in range(MAX_REDIRECTS + 1):
            target = target if access is None else access.place(target)
            errand = current()
            slot = await self._take_turn(target, errand, waited, leave)
            try:
                self._count(target, account)
                async with self._send(method, target, headers, account, body, bearer=bearer) as answer:
                    location = answer.headers.get("Location")
                    if answer.status not in _REDIRECTS or location is None:
                        if access is not None and await _judged(answer, access, target):
                            continue
                        if (ask := present_ask()) is not None and ask.others:
                            check_kind(target.path, answer.status, answer.headers)
                        yield answer
                        return
                    target = follow(target, location)
                    if 0 < (answer.content_length or 0) <= _SKIM:
                        await answer.read()
            except (aiohttp.ClientError, OSError) as exc:  # TimeoutError is an OSError
                by_proxy = self._proxies.choose(target, self._way(account)) is not None
                raise connection_failure(exc, by_proxy=by_proxy) from exc
            finally:
                slot.release(errand)
        raise AttemptFailed(OriginUnusable, f"more than {MAX_REDIRECTS} redirects", Remedy.ELSEWHERE)

    def _way(self, account: str) -> str:
        return self._proxies.way(self._settings.account(account).proxies)

    def _count(self, target: URL, account: str) -> None:
        self._requested(account)
        way, facts = (account, self._way(account)), self._settings.account(account)
        self.by_way[way] = self.by_way.get(way, 0) + 1
        for url in (facts.origin, *facts.mirrors) if facts.origin else ():
            if host_of(parse_url(url)) == host_of(target):
                self.by_server[account, url] = self.by_server.get((account, url), 0) + 1
                return

    async def _take_turn(
        self, target: URL, errand: Errand, waited: Callable[[float], None], leave: int | None
    ) -> _Slots:
        origin = host_of(target)
        slots = self._slots.get(origin)
        if slots is None:
            self._slots[origin] = slots = _Slots(self._settings.connections)
        if leave is not None and not slots.spares(leave):
            raise NoneToSpare
        if not slots.enter(errand):
            began = time.monotonic()
            self.queueing += 1
            try:
                await slots.wait(errand)
            finally:
                self.queueing -= 1
            waited(time.monotonic() - began)
            self.queued.observe(time.monotonic() - began)
        return slots

    @asynccontextmanager
    async def _send(
        self, method: str, target: URL, headers: Mapping[str, str], account: str, body: bytes | None, *, bearer: bool
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        facts = self._settings.account(account)
        found = self._credentials.headers(target, facts) if bearer else url_credentials(target)
        wanted: Mapping[str, str] = {**headers, **found} if bearer else {**found, **headers}
        if facts.access is not None:
            wanted = await facts.access.sign(method, target, wanted)
        ask = present_ask()
        hurried = HURRIED if ask is not None and ask.others else self._settings.connect_timeout
        connect = min(hurried, self._settings.connect_timeout, facts.timeout)
        began = time.perf_counter()
        answer = await self._session().request(
            method,
            target.with_user(None),
            headers=wanted,
            data=body,
            allow_redirects=False,
            proxy=self._proxies.choose(target, self._way(account)),
            ssl=self._credentials.context(facts),
            timeout=aiohttp.ClientTimeout(total=None, connect=connect, sock_read=facts.timeout),
        )
        self.answered.setdefault(account, Durations()).observe(time.perf_counter() - began)
        try:
            yield answer
        finally:
            # A body that was read to its end has given its connection back already; any other closes.
            answer.close()

    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:
            self._client = aiohttp.ClientSession(
                # The slots do the limiting: a wait for a turn is then told apart from a slow connect.
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity", "User-Agent": self._settings.user_agent},
                auto_decompress=False,
                read_bufsize=READ_BUFFER,
            )
        return self._client


async def _judged(answer: aiohttp.ClientResponse, access: Access, target: URL) -> bool:
    """Show the account's access a failure; say whether the request is to be made again. Raises AttemptFailed."""
    if answer.status < 300 or answer.status in (412, 416):
        return False
    body = bytearray()
    while len(body) < _SKIM and (chunk := await answer.content.read(_SKIM - len(body))):
        body += chunk
    return access.judge(target, answer.status, answer.headers, bytes(body))
