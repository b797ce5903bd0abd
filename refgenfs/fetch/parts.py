"""Parts of objects, in memory: a stretch of an archive, the beginning of an index. Retried by `Attempts`.

Everything runs on the asyncio loop.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

import aiohttp

from refgenfs.core.errors import IntegrityError, StaleContent
from refgenfs.core.httprange import (
    UNKNOWN,
    RangeRequest,
    Verdict,
    choose_validator,
    content_length,
    header,
    parse_content_range,
    range_headers,
)
from refgenfs.core.retry import Remedy, Retry
from refgenfs.fetch.answers import BUSY, AttemptFailed, RangesIgnored, check_range
from refgenfs.fetch.attempts import Progress
from refgenfs.fetch.pieces import read_body
from refgenfs.fetch.transfers import Line, check_plain


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of an object, and what the origin said of that: its exact size, its validator (see ByteRange).

    `url` is the one, of those asked, that answered.
    """

    url: str
    size: int
    validator: str
    data: memoryview


class PartTransfer:
    """The bytes of `wanted`, from whichever URL has them, into memory; `moved` is told how many came.

    What is taken up again after a break must have the validator of what came before, or all of it comes anew.
    """

    def __init__(self, line: Line, wanted: RangeRequest, moved: Callable[[int], None]) -> None:
        self._line = line
        self._wanted = wanted
        self._moved = moved
        self._data = memoryview(bytearray(wanted.stop - wanted.start))
        self._filled = 0
        self._validator = ""
        self._progress = Progress(wanted.start)

    async def attempt(self, url: str, retry: Retry) -> Part:
        """Ask for what is missing yet; raise AttemptFailed."""
        self._progress.report_to(retry)
        wanted = self._wanted
        request = RangeRequest(
            wanted.start + self._filled, wanted.stop, wanted.size, wanted.validator or self._validator
        )
        try:
            await self._fetch(url, request)
        except AttemptFailed as failure:
            if (
                failure.kind in (IntegrityError, StaleContent)
                or self._filled == len(self._data)
                or not self._validator
            ):
                self._filled, self._validator = 0, ""
            raise
        return Part(url, wanted.size, self._validator, self._data)

    async def _fetch(self, url: str, request: RangeRequest) -> None:
        line, progress = self._line, self._progress
        async with line.session.request(
            "GET", url, range_headers(request), account=line.account, waited=progress.excluded
        ) as answer:
            whole = check_range(request, answer.status, answer.headers, line.wall()) is Verdict.IGNORE_RANGE
            if answer.status == 206 or request.start or request.stop < request.size:
                line.gives(url, ranges=not whole)
            if whole and (request.start or request.stop < request.size):
                raise AttemptFailed(RangesIgnored, "it knows no ranges", Remedy.ELSEWHERE)
            self._validator = choose_validator(answer.headers)
            async with aclosing(read_body(answer, request.stop - request.start, line.received)) as chunks:
                async for chunk in chunks:
                    self._data[self._filled : self._filled + len(chunk)] = chunk
                    self._filled += len(chunk)
                    self._moved(len(chunk))
                    progress.reached(self._wanted.start + self._filled)


async def read_beginning(line: Line, url: str, length: int, retry: Retry) -> Part | None:
    """Return the first `length` bytes of an object, or all of one that is shorter; None for one that isn't there.

    That is no failure, so none is noted. Raises AttemptFailed.
    """
    asked = {"Range": f"bytes=0-{length - 1}"}
    async with line.session.request("GET", url, asked, account=line.account, waited=retry.excluded) as answer:
        if 400 <= answer.status < 500 and answer.status not in BUSY:  # also 416: it is empty
            return None
        check_plain(answer, line.wall(), also=206)
        size = _whole_size(answer, length)
        data = bytearray()
        # one that knows no ranges sends all of it: leaving closes the connection
        expected = min(length, size) if answer.status == 206 else None
        async with aclosing(read_body(answer, expected, line.received)) as chunks:
            async for chunk in chunks:
                data += chunk[: length - len(data)]
                if answer.status == 200 and len(data) == length:
                    break
        if len(data) != min(length, size):
            raise AttemptFailed(IntegrityError, f"its beginning has {len(data)} bytes", Remedy.DOUBTFUL)
        return Part(url, size, choose_validator(answer.headers), memoryview(data))


def _whole_size(answer: aiohttp.ClientResponse, length: int) -> int:
    size = UNKNOWN
    if answer.status == 200:
        size = content_length(answer.headers)
    else:
        got = parse_content_range(header(answer.headers, "content-range"))
        if got is not None and got.start == 0 and got.stop == min(length, got.total):
            size = got.total
    if size == UNKNOWN:
        raise AttemptFailed(IntegrityError, "the origin tells no exact size", Remedy.DOUBTFUL)
    return size
