"""One request over aiohttp: redirects, tokens, proxies, the limit of requests a host. No retries here.

Everything runs on the asyncio loop.
"""

from __future__ import annotations

import asyncio
import base64
import time
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from yarl import URL

from refgenfs.core.errors import OriginDenied, OriginUnavailable
from refgenfs.core.metrics import Durations
from refgenfs.core.retry import Remedy
from refgenfs.fetch.answers import AttemptFailed, OriginUnusable, connection_failure
from refgenfs.fetch.settings import MAX_REDIRECTS, Access, Account, HttpSettings

# What an answer may pile up in memory before the socket is left alone; twice this is aiohttp's high-water
# mark, and one more read of the socket (256 KiB) can come on top.
READ_BUFFER = 128 * 1024
# A redirect's body up to this is read, to keep the connection; a larger one costs the connection.
_SKIM = 16 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


Origin = tuple[str, str, int]  # scheme, host, port


class NoneToSpare(AttemptFailed):
    """A host's connections are in use, or wanted for something better."""

    def __init__(self) -> None:
        super().__init__(OriginUnavailable, "no connection to spare", Remedy.AGAIN)


class _Slots:
    """The requests that one host may be asked at a time, and how many more there may be now."""

    __slots__ = ("__weakref__", "_turns", "free")

    def __init__(self, connections: int) -> None:
        self.free = connections
        self._turns = asyncio.Semaphore(connections)

    @property
    def busy(self) -> bool:
        """Whether one more has to wait."""
        return self._turns.locked()

    async def take(self) -> None:
        """Wait for a turn."""
        await self._turns.acquire()
        self.free -= 1

    def release(self) -> None:
        """Let the next have it."""
        self.free += 1
        self._turns.release()


class Session:
    """The aiohttp session of all accounts.

    `answered`: from a request to the head of its answer, by account; `queued`: waits for a turn at a host.
    """

    def __init__(self, settings: HttpSettings, *, requested: Callable[[str], None]) -> None:
        self.answered: dict[str, Durations] = {}
        self.queued = Durations()
        self._settings = settings
        self._requested = requested
        self._tokens: dict[Path, _Token] = {}
        # A slot lives while somebody holds or awaits it, so redirects to ever new hosts leave nothing behind.
        self._slots: weakref.WeakValueDictionary[Origin, _Slots] = weakref.WeakValueDictionary()
        self._client: aiohttp.ClientSession | None = None

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
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Make a request, follow redirects, and yield the answer, whatever its status.

        `waited` is told the seconds spent waiting for a turn, when many requests go to one host. One that is to
        `leave` so many of each host's connections free does not wait: it raises NoneToSpare. On leaving,
        a body that was not read to its end costs the connection. Raises AttemptFailed; errors of
        connections while the body is read inside the block become AttemptFailed too.
        """
        target = parse_url(url)
        access = self._settings.account(account).access
        for _ in range(MAX_REDIRECTS + 1):
            target = target if access is None else access.place(target)
            slot = await self._take_turn(target, waited, leave)
            try:
                self._requested(account)
                async with self._send(method, target, headers, account) as answer:
                    location = answer.headers.get("Location")
                    if answer.status not in _REDIRECTS or location is None:
                        if access is not None and await _judged(answer, access, target):
                            continue
                        yield answer
                        return
                    target = _follow(target, location)
                    if 0 < (answer.content_length or 0) <= _SKIM:
                        await answer.read()
            except (aiohttp.ClientError, OSError) as exc:  # TimeoutError is an OSError
                raise connection_failure(exc) from exc
            finally:
                slot.release()
        raise AttemptFailed(OriginUnusable, f"more than {MAX_REDIRECTS} redirects", Remedy.ELSEWHERE)

    async def _take_turn(self, target: URL, waited: Callable[[float], None], leave: int | None) -> _Slots:
        origin = host_of(target)
        slots = self._slots.get(origin)
        if slots is None:
            self._slots[origin] = slots = _Slots(self._settings.connections)
        if leave is not None and (slots.busy or slots.free <= leave):
            raise NoneToSpare
        if slots.busy:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await slots.take()
            waited(loop.time() - began)
            self.queued.observe(loop.time() - began)
        else:
            await slots.take()
        return slots

    @asynccontextmanager
    async def _send(
        self, method: str, target: URL, headers: Mapping[str, str], account: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        facts = self._settings.account(account)
        wanted: Mapping[str, str] = {**headers, **self._credentials(target, facts)}
        if facts.access is not None:
            wanted = await facts.access.sign(method, target, wanted)
        connect = min(self._settings.connect_timeout, facts.timeout)
        began = time.perf_counter()
        answer = await self._session().request(
            method,
            target.with_user(None),
            headers=wanted,
            allow_redirects=False,
            proxy=facts.proxy,
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

    def _credentials(self, target: URL, facts: Account) -> dict[str, str]:
        """Return the Authorization for one hop: the account's token at its own origin, else the URL's own."""
        path = facts.token_file
        if path is not None and takes_token(facts, target):
            token = self._tokens.setdefault(path, _Token(path))
            return {"Authorization": f"Bearer {token.read()}"}
        if target.user or target.password:
            pair = base64.b64encode(f"{target.user or ''}:{target.password or ''}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}
        return {}


def takes_token(facts: Account, target: URL) -> bool:
    """Say whether the account's token is sent with a request to `target`."""
    return bool(facts.token_file and facts.origin) and host_of(parse_url(facts.origin)) == host_of(target)


class _Token:
    """A bearer token in a file, read again when the file changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._text = ""

    def read(self) -> str:
        """Return the token; raise AttemptFailed (OriginDenied), which names the file and not its text."""
        try:
            stat = self._path.stat()
            seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if seen != self._seen:
                self._text, self._seen = self._path.read_text("ascii").strip(), seen
        except (OSError, UnicodeDecodeError) as exc:
            reason = getattr(exc, "strerror", None) or "it is not plain text"
            raise _denied(f"the token file {self._path} can't be read: {reason}") from exc
        if not self._text or not self._text.isprintable() or " " in self._text:
            raise _denied(f"the token file {self._path} holds no single token")
        return self._text


async def _judged(answer: aiohttp.ClientResponse, access: Access, target: URL) -> bool:
    """Show the account's access a failure; say whether the request is to be made again. Raises AttemptFailed."""
    if answer.status < 300 or answer.status in (412, 416):
        return False
    body = bytearray()
    while len(body) < _SKIM and (chunk := await answer.content.read(_SKIM - len(body))):
        body += chunk
    return access.judge(target, answer.status, answer.headers, bytes(body))


def _denied(what: str) -> AttemptFailed:
    return AttemptFailed(OriginDenied, what, Remedy.ELSEWHERE)


def host_of(url: URL) -> Origin:
    """Return whom a request goes to: what has so many connections, and may have a token."""
    return (url.scheme, (url.host or "").lower(), url.port or 0)


def parse_url(text: str) -> URL:
    """Return a URL as it was written, so that a signature in it stays right; raise AttemptFailed."""
    # Only what could not go over the wire is quoted.
    clean = text.isascii() and text.isprintable() and " " not in text
    try:
        url = URL(text, encoded=clean)
        usable = url.scheme in ("http", "https") and bool(url.host)  # these are parsed as they are asked for
    except ValueError as exc:
        raise connection_failure(aiohttp.InvalidURL("")) from exc
    if not usable:
        raise connection_failure(aiohttp.InvalidURL(""))
    return url.with_fragment(None)


def _follow(target: URL, location: str) -> URL:
    try:
        clean = location.isascii() and location.isprintable() and " " not in location
        return parse_url(str(target.join(URL(location, encoded=clean))))
    except ValueError as exc:
        raise AttemptFailed(OriginUnusable, "a redirect to what is no URL", Remedy.ELSEWHERE) from exc
