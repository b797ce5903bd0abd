"""A whole object to its sink, in order, over as many connections as help. Retried by `Attempts`.

The bytes at which the sink has arrived, the *front*, come by a request of the stream's own, or out of a leg (`legs`)
that was fetched ahead. Errors, retries and mirrors are the front's alone.

Everything runs on the asyncio loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager

import aiohttp

from refgenfs.core.errors import IntegrityError, OriginUnavailable, StaleContent
from refgenfs.core.httprange import (
    UNKNOWN,
    RangeRequest,
    Verdict,
    choose_validator,
    content_length,
    header,
    is_strong_etag,
    parse_content_range,
    range_headers,
)
from refgenfs.core.lanes import FIRST, Lanes
from refgenfs.core.retry import Remedy, Retry
from refgenfs.fetch.answers import AttemptFailed, RangesIgnored, check_range
from refgenfs.fetch.attempts import AnotherWay, Progress
from refgenfs.fetch.legs import Leg, Lender
from refgenfs.fetch.pieces import FEED, StreamSink, deliver, read_body
from refgenfs.fetch.session import NoneToSpare
from refgenfs.fetch.transfers import Line, check_plain

# What a server answers that does not know what to do with a range, or has none to give of an empty object.
_NO_RANGE = frozenset({400, 405, 416, 501})
# What says that the origin will not answer ranges of this object rightly, whenever it is asked.
_HOPELESS = (IntegrityError, StaleContent, RangesIgnored)


class StreamTransfer:
    """A whole object from its first byte, to a sink.

    `origin` is the URL that fed last: a stream is of one version, and its errors are that URL's. With a `lender` of
    memory it is asked for in ranges, over as many connections as help, at most `share()`; without one, whole.
    `aclose` must follow.
    """

    def __init__(
        self,
        line: Line,
        url: str,
        sink: StreamSink,
        lender: Lender | None = None,
        share: Callable[[], int] = lambda: 1,
    ) -> None:
        self.origin = url
        self._line = line
        self._sink = sink
        self._lender = lender
        self._share = share
        self._url = url  # that was asked last
        self._fed = 0
        self._size = UNKNOWN
        self._validator = ""
        self._ranges = lender is not None  # as far as is known, the origin answers them
        self._progress = Progress(0)
        self._lanes = Lanes(0, several=False)
        self._quiet: dict[str, float] = {}  # until when a URL asked to be left alone
        self._own_stop = 0  # where the request of the front's own ends, also before it is answered; 0: there is none
        self._legs: list[Leg] = []  # that are to be fed, in order
        self._under_way: set[Leg] = set()  # also such as were dropped, and have not ended yet

    async def attempt(self, url: str, retry: Retry) -> None:
        """Ask for what was not fed yet, and feed it; raise AttemptFailed or SinkFailed.

        Raises AnotherWay between two requests: else all who stream while a cache is restarted would ask the origin
        until their archives end.
        """
        self._progress.report_to(retry)
        self._url = url
        self._lanes.quiet_until = self._quiet.get(url, 0.0)
        try:
            await self._attempt(url, retry)
        except AttemptFailed as failure:
            self._heed(url, failure)
            raise

    async def _attempt(self, url: str, retry: Retry) -> None:
        begun = self._fed
        if self._fed == 0:
            await self._begin(url)
        elif self._size == UNKNOWN or not self._validator:
            what = f"broke off after {self._fed} bytes, and the origin gave no size or version to resume by"
            raise AttemptFailed(OriginUnavailable, what, Remedy.ELSEWHERE)
        while self._fed < self._size:
            self._legs = [leg for leg in self._legs if not leg.empty]  # what was recalled
            if self._legs and self._legs[0].start <= self._fed:
                await self._feed_leg(self._legs[0])
            elif self._ranges and self._fed > begun and retry.is_better():
                raise AnotherWay
            else:
                await self._go_on(url)

    async def aclose(self) -> None:
        """End what is under way, and wait for that."""
        self._lender = None
        self._alone()
        while self._under_way:
            await next(iter(self._under_way)).aclose()

    # -- the front --------------------------------------------------------------------------------------------

    async def _begin(self, url: str) -> None:
        if self._ranges:
            self._ranges = await self._begin_by_range(url)
        if not self._ranges and self._fed == 0:
            async with self._request(url, {}) as answer:
                check_plain(answer, self._line.wall())
                await self._begin_whole(url, answer)

    async def _begin_by_range(self, url: str) -> bool:
        """Feed the beginning, or all of it where the origin sends that; False: it doesn't answer ranges well."""
        with self._asked_to(FIRST):
            return await self._ask_for_first(url)

    async def _ask_for_first(self, url: str) -> bool:
        async with self._request(url, {"Range": f"bytes=0-{FIRST - 1}"}) as answer:
            if answer.status in _NO_RANGE:
                return False
            check_plain(answer, self._line.wall(), also=206)
            if answer.status == 200:
                await self._begin_whole(url, answer)
                return True
            got = parse_content_range(header(answer.headers, "content-range"))
            validator = choose_validator(answer.headers)
            if got is None or got.start != 0 or got.stop != min(FIRST, got.total) or not validator:
                return False
            await self._learn(got.total, validator, several=is_strong_etag(validator))
            await self._feed(url, answer, 0, got.stop)
            return True

    async def _begin_whole(self, url: str, answer: aiohttp.ClientResponse) -> None:
        size = content_length(answer.headers)
        await self._learn(size, choose_validator(answer.headers), several=False)
        await self._feed(url, answer, 0, size)

    async def _learn(self, size: int, validator: str, *, several: bool) -> None:
        self._size, self._validator = size, validator
        self._lanes = Lanes(size, several)
        await self._progress.exclude(deliver(self._sink.begin(validator)))

    async def _go_on(self, url: str) -> None:
        """Feed what comes next by a request of its own, up to where a leg begins."""
        now = asyncio.get_running_loop().time()
        stop = self._legs[0].start if self._legs else self._lanes.stretch(self._fed, now)
        request = RangeRequest(self._fed, stop, self._size, self._validator)
        with self._asked_to(stop):
            await self._ask_for(url, request)

    async def _ask_for(self, url: str, request: RangeRequest) -> None:
        by_range = self._ranges or self._lender is None
        async with self._request(url, range_headers(request) if by_range else {}) as answer:
            try:
                verdict = check_range(request, answer.status, answer.headers, self._line.wall())
            except AttemptFailed as failure:
                if failure.kind is not IntegrityError or not self._ranges:
                    raise
                self._ranges = False  # a wrong one: next it is asked for whole, and what was fed is left out
                self._alone()
                return
            if verdict is Verdict.IGNORE_RANGE:
                self._alone()
                await self._feed(url, answer, 0, self._size)
            else:
                await self._feed(url, answer, request.start, request.stop)

    @contextmanager
    def _asked_to(self, stop: int) -> Iterator[None]:
        """Note that the front asks for all before `stop` itself while the block lasts: no leg may begin before it."""
        self._own_stop = stop
        try:
            yield
        finally:
            self._own_stop = 0

    async def _feed(self, url: str, answer: aiohttp.ClientResponse, at: int, stop: int) -> None:
        """Feed a body of the bytes from `at` up to `stop`, leaving out what was fed before."""
        expected = None if stop == UNKNOWN else stop - at
        loop = asyncio.get_running_loop()
        since = loop.time()
        async with aclosing(read_body(answer, expected, self._line.received)) as chunks:
            async for chunk in chunks:
                part = memoryview(chunk)[max(0, self._fed - at) :]
                at += len(chunk)
                await self._hand_over(url, part, loop.time() - since)
                since = loop.time()

    async def _feed_leg(self, leg: Leg) -> None:
        """Feed what a leg has, to its end, which may come early."""
        assert leg.start == self._fed  # or bytes would be fed twice
        loop = asyncio.get_running_loop()
        since = loop.time()
        try:
            while (chunk := await leg.next()) is not None:
                await self._hand_over(leg.url, memoryview(chunk), loop.time() - since)
                since = loop.time()
        finally:
            leg.drop()
            if leg in self._legs:
                self._legs.remove(leg)

    async def _hand_over(self, url: str, data: memoryview, waited: float) -> None:
        """Feed the next bytes, which were waited for so many seconds."""
        loop = asyncio.get_running_loop()
        for begin in range(0, len(data), FEED):
            piece = data[begin : begin + FEED]
            self.origin = url
            began = loop.time()
            await self._progress.exclude(deliver(self._sink.feed(piece)))
            self._fed += len(piece)
            self._lanes.fed(len(piece), waited, loop.time() - began)
            waited = 0.0
            self._look_ahead()
            self._progress.reached(self._fed)

    def _request(self, url: str, headers: dict[str, str]) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        line = self._line
        return line.session.request("GET", url, headers, account=line.account, waited=self._progress.excluded)

    # -- ahead ------------------------------------------------------------------------------------------------

    def _look_ahead(self) -> None:
        """Begin legs, as many as help now. Never awaits."""
        if self._lender is None:
            return
        self._lanes.limit(self._share())
        now = asyncio.get_running_loop().time()
        while True:
            flying = (self._own_stop > 0) + sum(leg.flying for leg in self._legs)
            horizon = max(self._fed, self._own_stop, self._legs[-1].stop if self._legs else 0)
            found = self._lanes.next_leg(self._fed, horizon, flying, len(self._legs), now)
            if found is None:
                return
            wanted = RangeRequest(*found, self._size, self._validator)
            leg = Leg(self._line, self._url, wanted, self._lender, self._ended)
            self._legs.append(leg)
            self._under_way.add(leg)

    def _ended(self, leg: Leg) -> None:
        self._under_way.discard(leg)
        failure = leg.failure
        now = asyncio.get_running_loop().time()
        if isinstance(failure, NoneToSpare):
            self._lanes.hold(now)
        elif failure is None:
            if leg.whole:
                self._lanes.arrived()
        elif issubclass(failure.kind, _HOPELESS):
            self._lanes.several = False
        else:
            self._heed(leg.url, failure)
            self._lanes.refused(now)
        if leg.empty:
            leg.drop()
            if leg in self._legs:
                self._legs.remove(leg)
        self._look_ahead()

    def _heed(self, url: str, failure: AttemptFailed) -> None:
        """Have no leg begin before a URL that failed wants to be asked again."""
        if failure.retry_after is not None:
            until = asyncio.get_running_loop().time() + failure.retry_after
            self._quiet[url] = max(until, self._quiet.get(url, 0.0))
            if url == self._url:
                self._lanes.quiet_until = self._quiet[url]

    def _alone(self) -> None:
        """Go on over one connection, for good."""
        self._lanes.several = False
        for leg in self._legs:
            leg.drop()
        self._legs.clear()
