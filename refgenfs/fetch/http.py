"""HTTP for everything above: documents, facts, byte ranges and whole objects, with retries and mirrors.

The public coroutines are awaited from trio; each crosses the bridge once. Errors are those of
`refgenfs.core.errors`, each with its cause; `answers` has the table. A deadline is a number of seconds
from now.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import aiohttp

from refgenfs.core.content import BLOCK, ByteRange
from refgenfs.core.errors import IntegrityError, SizeUnknown, redact_url
from refgenfs.core.httprange import (
    UNKNOWN,
    RangeRequest,
    choose_validator,
    content_length,
    header,
    parse_content_range,
    parse_http_date,
)
from refgenfs.core.manners import Manners
from refgenfs.core.retry import Remedy, Retry
from refgenfs.fetch.answers import AttemptFailed
from refgenfs.fetch.attempts import Attempts
from refgenfs.fetch.bridge import Bridge
from refgenfs.fetch.credentials import takes_secret
from refgenfs.fetch.legs import Lender, Streaming
from refgenfs.fetch.parts import Part, PartTransfer, read_beginning
from refgenfs.fetch.pieces import RangeSink, SinkFailed, StreamSink, read_body
from refgenfs.fetch.routes import RouteStatus, routes_of
from refgenfs.fetch.session import Session
from refgenfs.fetch.settings import Account, HttpSettings
from refgenfs.fetch.streams import StreamTransfer
from refgenfs.fetch.transfers import Line, RangeTransfer, check_plain
from refgenfs.fetch.urls import parse_url

JSONValue = None | bool | int | float | str | list["JSONValue"] | dict[str, "JSONValue"]

T = TypeVar("T")

SHORT_TEXT = 64 * 1024  # characters; decoded on the spot, in less than a millisecond


@dataclass(frozen=True, slots=True)
class RemoteFacts:
    """What an origin says of an object: exact size in bytes, validator (see ByteRange), Unix mtime or 0.0.

    `url` is the one, of those asked, that answered; `ranges`: it said that it gives parts of it.
    """

    url: str
    size: int
    validator: str
    mtime: float
    ranges: bool = True


class Http:
    """Requests to origins. Belongs to the trio thread; its counters may be copied from there at any time.

    `fetched` (bytes of bodies) and `requests` count by account; `failures` are the last 50 failed requests,
    `failing` the last one of each account of which nothing worked since (`Attempts`). `failed` and `retried` count
    failures and what was asked again because of them; `answered` and `queued` are how long requests took and waited.
    """

    def __init__(
        self,
        bridge: Bridge,
        settings: HttpSettings,
        *,
        jitter: Callable[[], float] = random.random,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.manners = Manners()
        self.fetched: dict[str, int] = dict.fromkeys(settings.accounts, 0)
        self.requests: dict[str, int] = dict.fromkeys(settings.accounts, 0)
        self._bridge = bridge
        self._settings = settings
        self._wall = wall
        self._attempts = Attempts(settings.policy, jitter, wall, lambda name: self._settings.account(name).proxies)
        self._session = Session(settings, requested=lambda account: _add(self.requests, account, 1))
        self._streaming = Streaming(settings.connections)
        self.failures = self._attempts.failures
        self.failing = self._attempts.failing
        self.failed = self._attempts.failed
        self.retried = self._attempts.retried
        self.answered = self._session.answered
        self.queued = self._session.queued

    @property
    def queueing(self) -> int:
        """How many requests wait for a connection to their host now."""
        return self._session.queueing

    @property
    def connections(self) -> int:
        """How many connections a host is asked over at the most."""
        return self._settings.connections

    def takes_token(self, url: str, account: str) -> bool:
        """Say whether an account's secret or signature goes with requests to a URL, which others can't read then."""
        facts, target = self._settings.account(account), parse_url(url)
        return takes_secret(facts, target) or (facts.access is not None and facts.access.signs(target))

    @property
    def bridge(self) -> Bridge:
        """The way to the loop that it runs on."""
        return self._bridge

    async def aclose(self) -> None:
        """Close every connection. Calls still under way fail."""
        await self._bridge.run(self._session.aclose)

    @property
    def accounts(self) -> Mapping[str, Account]:
        """The accounts by name, also those that are gone."""
        return self._settings.accounts

    def renew(self, settings: HttpSettings) -> None:
        """Go by other settings from now on; requests under way end by the old ones.

        Accounts that are gone are kept for files that are open.
        """
        settings = replace(settings, accounts={**self._settings.accounts, **settings.accounts})
        for name in settings.accounts:
            self.fetched.setdefault(name, 0)
            self.requests.setdefault(name, 0)
        self._settings = settings
        self._session.renew(settings)
        self._attempts.renew(settings.policy)

    def routes(self, account: str) -> list[RouteStatus]:
        """Return by which proxies and to which servers an account's requests go, in order, and how these are."""
        return routes_of(account, self._settings.account(account), self._session, self._attempts)

    async def probe(self) -> None:
        """Return once the thread that makes the requests has gone round."""
        await self._bridge.run(_go_round)

    # ---- documents and facts

    async def get_json(
        self, urls: Sequence[str], *, account: str, deadline: float, retry_for: float | None = None
    ) -> JSONValue:
        """Return a JSON document of at most 64 MiB.

        `urls` are mirrors of it; `deadline` is in seconds, for the whole call (DeadlineExceeded);
        `retry_for` replaces the budget of the settings, 0 asks each URL once.
        """
        decode: Callable[[str], JSONValue] = json.loads
        return await self.get_document(urls, decode, account=account, deadline=deadline, retry_for=retry_for)

    async def get_document(
        self,
        urls: Sequence[str],
        decode: Callable[[str], T],
        *,
        account: str,
        deadline: float,
        retry_for: float | None = None,
    ) -> T:
        """Return what `decode` makes of the text of a JSON document; the other arguments are those of `get_json`.

        `decode` raises ValueError for what is no JSON; what else it raises passes through. A long text is
        decoded on a thread of its own.
        """

        async def attempt(url: str, retry: Retry) -> T:
            text = await self._read_text(url, retry, account)
            try:
                if len(text) < SHORT_TEXT:
                    return decode(text)
                return await asyncio.to_thread(decode, text)
            except (ValueError, RecursionError) as exc:
                raise AttemptFailed(IntegrityError, f"no JSON: {exc}", Remedy.DOUBTFUL) from exc

        make = self._attempts.make_within
        return await self._bridge.run(lambda: make(deadline, urls, account, attempt, retry_for))

    async def get_text(
        self, urls: Sequence[str], *, account: str, deadline: float, retry_for: float | None = None
    ) -> str:
        """Return a UTF-8 text of at most 64 MiB; the arguments are those of `get_json`."""

        async def attempt(url: str, retry: Retry) -> str:
            return await self._read_text(url, retry, account)

        make = self._attempts.make_within
        return await self._bridge.run(lambda: make(deadline, urls, account, attempt, retry_for))

    async def head(
        self,
        urls: Sequence[str],
        *,
        account: str,
        deadline: float,
        retry_for: float | None = None,
        probe: bool = True,
    ) -> RemoteFacts:
        """Return the exact size and the validator of an object; the arguments are those of `get_json`.

        Where a HEAD tells no size the first byte is asked for, which has an origin that gives no parts begin to send
        all of it; not without `probe`.
        Raises SizeUnknown where the origin tells no size, and IntegrityError where it sends the object in a content
        coding.
        """

        async def attempt(url: str, retry: Retry) -> RemoteFacts:
            told = await self._probe_head(url, retry, account)
            if told is not None and (told.size > 0 or (told.size == UNKNOWN and not probe)):
                return told
            # Some servers answer every HEAD with length 0, or with none.
            facts = await self._probe_get(url, retry, account)
            if told is None or facts.size:
                return facts
            # It is empty: a 416 says no more than that.
            return replace(facts, validator=facts.validator or told.validator, mtime=facts.mtime or told.mtime)

        make = self._attempts.make_within
        found = await self._bridge.run(lambda: make(deadline, urls, account, attempt, retry_for))
        if found.size == UNKNOWN:
            what = f"{redact_url(found.url)}: the origin tells no exact size"
            raise SizeUnknown(what, found.validator, found.mtime)
        return found

    async def _read_text(self, url: str, retry: Retry, account: str) -> str:
        body = bytearray()
        limit = self._settings.max_document
        async with self._session.request("GET", url, {}, account=account, waited=retry.excluded) as answer:
            check_plain(answer, self._wall())
            async with aclosing(read_body(answer, None, self._counter(account))) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > limit:
                        raise AttemptFailed(IntegrityError, f"more than {limit} bytes", Remedy.ELSEWHERE)
        try:
            return body.decode("utf-8-sig")
        except UnicodeDecodeError as exc:
            raise AttemptFailed(IntegrityError, "the text is not UTF-8", Remedy.DOUBTFUL) from exc

    async def _probe_head(self, url: str, retry: Retry, account: str) -> RemoteFacts | None:
        """Ask with HEAD; None where that is not allowed. The size may be `UNKNOWN`, or a 0 that is not true."""
        async with self._session.request("HEAD", url, {}, account=account, waited=retry.excluded) as answer:
            if answer.status in (403, 405, 501):
                return None
            check_plain(answer, self._wall())
            return _facts(url, answer, content_length(answer.headers))

    async def _probe_get(self, url: str, retry: Retry, account: str) -> RemoteFacts:
        """Ask for the first byte, and take the size from the answer."""
        asked = {"Range": "bytes=0-0"}
        async with self._session.request("GET", url, asked, account=account, waited=retry.excluded) as answer:
            size = UNKNOWN
            if answer.status in (206, 416):
                got = parse_content_range(header(answer.headers, "content-range"))
                size = UNKNOWN if got is None else got.total
                if answer.status == 416 and size == 0:  # no byte to ask for
                    return _facts(url, answer, 0)
            check_plain(answer, self._wall(), also=206)
            if answer.status == 200:
                size = content_length(answer.headers)
            elif size == UNKNOWN:
                raise AttemptFailed(IntegrityError, "the origin tells no exact size", Remedy.DOUBTFUL)
            return _facts(url, answer, size)

    # ---- bytes

    async def fetch_range(
        self, extent: ByteRange, start: int, stop: int, size: int, sink: RangeSink, *, account: str
    ) -> None:
        """Bring the bytes `start` up to `stop` of an object of `size` bytes to the sink, in pieces.

        `start` and `stop` lie on block borders, but for a `stop` at the end. A connection that breaks is
        taken up again at the first byte that was not received, there or at a mirror. What the sink raises
        passes through, and is not retried. Raises RangesIgnored where a part is wanted, no URL gives parts, and one
        would send all of it.
        """
        if start % BLOCK or (stop % BLOCK and stop != size) or not 0 <= start <= stop <= size:
            raise ValueError(f"no whole blocks: {start} to {stop} of {size}")
        if start == stop:
            return

        async def transfer() -> None:
            wanted = RangeRequest(start, stop, size, extent.validator)
            ranged = RangeTransfer(self.line(account), extent.urls[0], wanted, sink)
            urls = extent.urls
            if stop - start < size:
                urls = tuple(self.manners.order(account, urls, time.monotonic()))
            try:
                await self._attempts.make(urls, account, ranged.attempt, authority=ranged.authority)
                await ranged.finish()
            finally:
                await ranged.aclose()

        await self._bridge.run(lambda: _unwrap(transfer()))

    async def fetch_part(
        self,
        extent: ByteRange,
        start: int,
        stop: int,
        size: int,
        *,
        account: str,
        moved: Callable[[int], None] = lambda _: None,
    ) -> Part:
        """Return the bytes `start` up to `stop` of an object of `size` bytes, which need lie on no borders.

        They are held in memory. `moved` is told, on another thread, how many bytes came. Raises StaleContent
        for another size or validator, and RangesIgnored where the origin would send all of it.
        """

        async def transfer() -> Part:
            wanted = RangeRequest(start, stop, size, extent.validator)
            part = PartTransfer(self.line(account), wanted, moved)
            return await self._attempts.make(extent.urls, account, part.attempt)

        return await self._bridge.run(transfer)

    async def fetch_beginning(
        self, urls: Sequence[str], length: int, *, account: str, deadline: float
    ) -> Part | None:
        """Return the first `length` bytes of an object, all of one that is shorter; None: it is not there.

        Each URL is asked once at the most, until one answers.
        """

        async def attempt(url: str, retry: Retry) -> Part | None:
            return await read_beginning(self.line(account), url, length, retry)

        make = self._attempts.make_within
        return await self._bridge.run(lambda: make(deadline, urls, account, attempt, 0))

    async def stream(
        self, urls: Sequence[str], sink: StreamSink, *, account: str, lender: Lender | None = None
    ) -> None:
        """Feed a whole object to the sink, in order from its first byte.

        Where a connection gives less than the sink takes, and the origin answers ranges and has a strong ETag, what
        comes next is fetched over several connections, into memory of the `lender`.

        A connection that breaks is taken up again by a range, on condition that size and validator are
        those of the first answer (else StaleContent). Where the first answer had none, OriginUnavailable
        is raised: the caller may start over. What the sink raises passes through, and is not retried.
        """

        async def transfer() -> None:
            with self._streaming.counted(urls[0]) as share:
                whole = StreamTransfer(self.line(account), urls[0], sink, lender, share)
                try:
                    await self._attempts.make(urls, account, whole.attempt, authority=lambda: whole.origin)
                finally:
                    await whole.aclose()

        await self._bridge.run(lambda: _unwrap(transfer()))

    # ---- for other kinds of transfers

    @property
    def attempts(self) -> Attempts:
        """What makes attempts; for the asyncio loop."""
        return self._attempts

    async def run(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `call()` on the asyncio loop, and return its result; what a sink raised passes through as it is."""
        return await self._bridge.run(lambda: _unwrap(call()))

    def line(self, account: str) -> Line:
        """Return what the requests for an account need; for the asyncio loop."""
        return Line(self._session, account, self._counter(account), self._wall, self.manners)

    def _counter(self, account: str) -> Callable[[int], None]:
        return lambda count: _add(self.fetched, account, count)


async def _unwrap(call: Coroutine[Any, Any, T]) -> T:
    try:
        return await call
    except SinkFailed as failure:
        error = failure.error
    raise error


async def _go_round() -> None:
    await asyncio.sleep(0)


def _facts(url: str, answer: aiohttp.ClientResponse, size: int) -> RemoteFacts:
    mtime = parse_http_date(header(answer.headers, "last-modified")) or 0.0
    ranges = answer.status == 206 or "bytes" in header(answer.headers, "accept-ranges").lower()
    return RemoteFacts(url, size, choose_validator(answer.headers), mtime, ranges)


def _add(counters: dict[str, int], account: str, count: int) -> None:
    counters[account] = counters.get(account, 0) + count
