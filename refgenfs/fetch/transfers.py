"""Bodies on their way: a byte range to its sink. Retried by `Attempts`.

Everything runs on the asyncio loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

import aiohttp

from refgenfs.core.errors import IntegrityError, StaleContent
from refgenfs.core.httprange import (
    UNKNOWN,
    RangeRequest,
    Verdict,
    content_coding,
    content_length,
    header,
    range_headers,
)
from refgenfs.core.manners import Manners
from refgenfs.core.retry import Remedy, Retry
from refgenfs.fetch.answers import AttemptFailed, RangesIgnored, check_range, status_failure
from refgenfs.fetch.attempts import Progress
from refgenfs.fetch.pieces import Assembler, RangeSink, read_body
from refgenfs.fetch.session import Session


@dataclass(frozen=True, slots=True)
class Line:
    """What every request of a call needs: the session, whose it is, who counts bytes, the wall clock."""

    session: Session
    account: str
    received: Callable[[int], None]
    wall: Callable[[], float]
    manners: Manners

    def gives(self, url: str, *, ranges: bool) -> None:
        """Note whether a host gave a part of an object when it was asked for one."""
        self.manners.note(self.account, url, time.monotonic(), ranges=ranges)


def check_plain(answer: aiohttp.ClientResponse, wall: float, also: int = 200) -> None:
    """Raise AttemptFailed unless this is a 200 (or `also`) with an uncoded body."""
    failure = status_failure(answer.status, answer.headers, wall)
    if failure is not None:
        raise failure
    if answer.status not in (200, also):
        raise AttemptFailed(IntegrityError, f"HTTP {answer.status}, unasked", Remedy.DOUBTFUL)
    coding = content_coding(answer.headers)
    if coding:
        what = f"the body is coded ({coding}), which was not asked for"
        raise AttemptFailed(IntegrityError, what, Remedy.DOUBTFUL)


class RangeTransfer:
    """The bytes of `wanted`, from whichever URL has them, to a sink.

    An origin that sends all of an object has it taken only where all of it is wanted (else RangesIgnored).
    """

    def __init__(self, line: Line, url: str, wanted: RangeRequest, sink: RangeSink) -> None:
        self._line = line
        self._url = url
        self._wanted = wanted
        self._asked: set[str] = set()
        self._ignoring = ""  # a URL that would send all of the object
        self._assembler = Assembler(wanted.start, wanted.stop, sink)
        self._progress = Progress(wanted.start)

    async def attempt(self, url: str, retry: Retry) -> None:
        """Ask for what is missing yet, and push what comes; raise AttemptFailed or SinkFailed."""
        self._progress.report_to(retry)
        wanted = self._wanted
        if self._ignoring and url in self._asked:  # all were asked, and there is one that has it: in another way
            raise AttemptFailed(RangesIgnored, "another URL has all of it", Remedy.ELSEWHERE)
        self._asked.add(url)
        request = RangeRequest(self._assembler.position, wanted.stop, wanted.size, wanted.validator)
        try:
            await self._fetch(url, request)
        except AttemptFailed as failure:
            # All was received, and still the answer did not end well: its last bytes are in doubt.
            if self._assembler.position == wanted.stop or failure.kind is IntegrityError:
                self._assembler.forget_piece()
            if failure.kind is RangesIgnored:
                self._ignoring = url
            raise

    def authority(self) -> str:
        """Return the URL whose error is told: the first, or one that would send all of the object."""
        return self._ignoring or self._url

    async def finish(self) -> None:
        """Hand the last piece to the sink, and wait for it."""
        await self._assembler.finish()

    async def aclose(self) -> None:
        """End what is under way at the sink, and wait for that."""
        await self._assembler.aclose()

    async def _fetch(self, url: str, request: RangeRequest) -> None:
        line, progress, assembler = self._line, self._progress, self._assembler
        async with line.session.request(
            "GET", url, range_headers(request), account=line.account, waited=progress.excluded
        ) as answer:
            verdict = check_range(request, answer.status, answer.headers, line.wall())
            whole = verdict is Verdict.IGNORE_RANGE
            if answer.status == 206 or request.start or request.stop < request.size:
                line.gives(url, ranges=not whole)
            if whole and (self._wanted.start or request.stop < request.size):
                raise AttemptFailed(RangesIgnored, "it knows no ranges", Remedy.ELSEWHERE)
            at = 0 if whole else request.start
            expected = request.size if whole else request.stop - request.start
            try:
                async with aclosing(read_body(answer, expected, line.received)) as chunks:
                    async for chunk in chunks:
                        part = memoryview(chunk)[max(0, assembler.position - at) :]
                        at += len(chunk)
                        await progress.exclude(assembler.push(part))
                        progress.reached(assembler.position)
            except AttemptFailed as failure:
                raise _other_size(failure, answer, request, at) from failure.__cause__


def _other_size(
    failure: AttemptFailed, answer: aiohttp.ClientResponse, request: RangeRequest, at: int
) -> AttemptFailed:
    """Return what is wrong with a body that ended badly; with neither length nor validator, it is another version."""
    if failure.__cause__ is not None or request.validator or content_length(answer.headers) != UNKNOWN:
        return failure
    longer = failure.kind is IntegrityError
    if longer or (at < request.size and header(answer.headers, "transfer-encoding")):
        what = f"the size was {request.size} bytes and is {'more' if longer else at}"
        return AttemptFailed(StaleContent, what, Remedy.ELSEWHERE)
    return failure
