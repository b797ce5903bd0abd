"""Bodies on their way: a byte range to its sink. Retried by `Attempts`.

Everything runs on the asyncio loop.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

import aiohttp

from refgenfs.core.errors import IntegrityError
from refgenfs.core.httprange import (
    RangeRequest,
    Verdict,
    content_coding,
    range_headers,
)
from refgenfs.core.retry import Remedy, Retry
from refgenfs.fetch.answers import AttemptFailed, check_range, status_failure
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
    """The bytes of `wanted`, from whichever URL has them, to a sink."""

    def __init__(self, line: Line, wanted: RangeRequest, sink: RangeSink) -> None:
        self._line = line
        self._wanted = wanted
        self._assembler = Assembler(wanted.start, wanted.stop, sink)
        self._progress = Progress(wanted.start)

    async def attempt(self, url: str, retry: Retry) -> None:
        """Ask for what is missing yet, and push what comes; raise AttemptFailed or SinkFailed."""
        self._progress.report_to(retry)
        wanted = self._wanted
        request = RangeRequest(self._assembler.position, wanted.stop, wanted.size, wanted.validator)
        try:
            await self._fetch(url, request)
        except AttemptFailed as failure:
            # All was received, and still the answer did not end well: its last bytes are in doubt.
            if self._assembler.position == wanted.stop or failure.kind is IntegrityError:
                self._assembler.forget_piece()
            raise

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
            at = 0 if whole else request.start
            expected = request.size if whole else request.stop - request.start
            async with aclosing(read_body(answer, expected, line.received)) as chunks:
                async for chunk in chunks:
                    part = memoryview(chunk)[max(0, assembler.position - at) : max(0, request.stop - at)]
                    at += len(chunk)
                    await progress.exclude(assembler.push(part))
                    progress.reached(assembler.position)
                    if whole and at >= request.stop and request.stop < request.size:
                        return  # the rest is nobody's; leaving closes the connection
