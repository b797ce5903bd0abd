"""Blocks of tickets on their way: a part of one by a range, all of one to a spool. Retried by `Attempts`.

Everything runs on the asyncio loop. A request carries the headers that the ticket gives its block, also after a
redirect, and never the token of the account.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from refgenfs.core.errors import IntegrityError, OriginDenied, RefgenfsError, StaleContent
from refgenfs.core.httprange import (
    UNKNOWN,
    ContentRange,
    Verdict,
    changed_validator,
    choose_validator,
    content_length,
    header,
    is_strong_etag,
    judge_slice,
    parse_content_range,
    parse_http_date,
)
from refgenfs.core.retry import Remedy, Retry
from refgenfs.core.ticket import Place
from refgenfs.core.ticketblocks import TicketBlock
from refgenfs.fetch.answers import AttemptFailed, OriginUnusable, status_failure
from refgenfs.fetch.attempts import Progress
from refgenfs.fetch.pieces import read_body
from refgenfs.fetch.spools import Spool, Spools
from refgenfs.fetch.transfers import Line, check_plain

DIGEST = "sha256:"  # what the validator of a block begins with that is told by its bytes


def validator_of(block: TicketBlock) -> str:
    """Return the validator that a host gives of a block's object, "" for none."""
    return "" if block.validator.startswith(DIGEST) else block.validator


class PartRefused(OriginUnusable):
    """A block is to be had whole only."""


class SteppedBack(Exception):
    """What was received of earlier blocks was dropped with what turned out wrong: `error` says what."""

    def __init__(self, error: RefgenfsError) -> None:
        super().__init__(str(error))
        self.error = error


class Taker(Protocol):
    """What takes the bytes of a content in order (`pieces.Assembler`)."""

    @property
    def position(self) -> int:
        """The offset in the content of the first byte that was not received."""
        ...

    def forget_piece(self) -> None:
        """Drop what was not handed on yet; `position` steps back."""
        ...

    async def push(self, chunk: memoryview) -> None:
        """Take the bytes at `position`."""
        ...


@asynccontextmanager
async def _ask(
    line: Line, place: Place, url: str, range_: str, progress: Progress, validator: str = ""
) -> AsyncIterator[aiohttp.ClientResponse]:
    headers = dict(place.headers) | ({"Range": range_} if range_ else {})
    if is_strong_etag(validator) and range_:
        headers["If-Range"] = validator
    async with line.session.request(
        "GET", url, headers, account=line.account, waited=progress.excluded, bearer=False
    ) as answer:
        failure = status_failure(answer.status, answer.headers, line.wall())
        if failure is not None:
            raise failure
        yield answer


class BlockTransfer:
    """Bytes of a block, those from the taker's position up to `stop` of the block.

    `base` is where in the content the block begins. With `slicing`, the block is asked for whole, and what is not
    wanted of it is passed over.
    """

    def __init__(
        self,
        line: Line,
        place: Place,
        block: TicketBlock,
        base: int,
        stop: int,
        taker: Taker,
        *,
        slicing: bool = False,
    ) -> None:
        self._line = line
        self._place = place
        self._length = block.length
        self._validator = validator_of(block)
        self._base = base
        self._first = taker.position
        self._stop = stop
        self._taker = taker
        self._slicing = slicing
        self._pushed = False
        self._progress = Progress(0)

    async def attempt(self, url: str, retry: Retry) -> None:
        """Ask for what is missing yet, and push what comes; raise AttemptFailed, SinkFailed or SteppedBack."""
        self._progress.report_to(retry)
        self._pushed = False
        try:
            await self._fetch(url, self._taker.position - self._base)
        except AttemptFailed as failure:
            complete = self._taker.position == self._base + self._stop
            if self._pushed and (complete or failure.kind is IntegrityError):
                self._taker.forget_piece()  # its last bytes are in doubt
                if self._taker.position < self._first:
                    raise SteppedBack(failure.as_error(url, 1)) from None
            raise

    async def _fetch(self, url: str, at: int) -> None:
        whole = self._slicing or (at == 0 and self._stop == self._length)
        first, last = (0, self._length) if whole else (at, self._stop)
        start, stop = self._place.start + first, self._place.start + last
        range_ = self._place.exact if whole else f"bytes={start}-{stop - 1}"
        line, validator = self._line, self._validator
        async with _ask(line, self._place, url, range_, self._progress, validator) as answer:
            body_at, expected = self._look(answer, first, last, whole=whole)
            async with aclosing(read_body(answer, expected, line.received)) as chunks:
                async for chunk in chunks:
                    part = memoryview(chunk)[max(0, at - body_at) : max(0, self._stop - body_at)]
                    body_at += len(chunk)
                    at += len(part)
                    self._pushed = self._pushed or bool(part)
                    await self._progress.exclude(self._taker.push(part))
                    self._progress.reached(body_at)
                    if self._slicing and body_at >= self._stop:
                        return  # the rest is nobody's; leaving closes the connection

    def _look(self, answer: aiohttp.ClientResponse, first: int, last: int, *, whole: bool) -> tuple[int, int | None]:
        """Return where in the block the body begins, and how long it is; raise AttemptFailed.

        `first` and `last` are what was asked for, in the block.
        """
        place = self._place
        total = UNKNOWN if place.stop is not None else place.start + self._length
        start, stop = place.start + first, place.start + last
        judgement = judge_slice(start, stop, self._validator, answer.status, answer.headers, total)
        if judgement.verdict is Verdict.STALE:
            raise AttemptFailed(StaleContent, judgement.why, Remedy.ELSEWHERE)
        if judgement.verdict is Verdict.ERROR:
            raise AttemptFailed(IntegrityError, judgement.why, Remedy.DOUBTFUL)
        if judgement.verdict is Verdict.ACCEPT:
            return first, last - first
        length = content_length(answer.headers)
        if length == last - first or (whole and not place.exact and length == UNKNOWN):
            return first, last - first
        if whole and not place.exact:
            what = f"the block had {self._length} bytes and has {length}"
            raise AttemptFailed(StaleContent, what, Remedy.ELSEWHERE)
        if self._slicing and length >= stop:
            return -place.start, length
        if self._slicing and length == UNKNOWN:
            return -place.start, None
        raise AttemptFailed(PartRefused, "it sends all of the object for a part of it", Remedy.ELSEWHERE)


class SpoolTransfer:
    """A block, whole, to a spool; without `block`, one of which neither length nor version are known."""

    def __init__(self, line: Line, place: Place, spools: Spools, spool: Spool, block: TicketBlock | None) -> None:
        self._line = line
        self._place = place
        self._spools = spools
        self._spool = spool
        self._length = block.length if block is not None else None
        self._validator = validator_of(block) if block is not None else ""
        self._doubtful = False
        self._progress = Progress(0)

    async def attempt(self, url: str, retry: Retry) -> None:
        """Ask for the block as the ticket says; raise AttemptFailed."""
        self._progress.report_to(retry)
        line = self._line
        async with _ask(line, self._place, url, self._place.exact, self._progress) as answer:
            body = self._look(answer)
            self._doubtful = body.doubtful
            self._spool.sure = self._spool.sure and not body.doubtful
            at = got = 0
            async with aclosing(read_body(answer, body.expected, line.received)) as chunks:
                async for chunk in chunks:
                    part = chunk[max(0, body.skip - at) :]
                    offset, at = max(0, at - body.skip), at + len(chunk)
                    if body.take is not None:
                        part = part[: max(0, body.take - offset)]
                    if part:
                        got = offset + len(part)
                        await self._progress.exclude(self._store(offset, part))
                    self._progress.reached(at)
                    if body.take is not None and got >= body.take:
                        break
        if got != self._spool.size:  # it had more when it was asked before
            raise AttemptFailed(StaleContent, "it gave more bytes when it was asked before", Remedy.ELSEWHERE)
        await self._finish(body)

    async def _store(self, offset: int, data: bytes) -> None:
        length = self._place.stop if self._doubtful else self._length
        size = offset + len(data) if length is None else max(length, offset + len(data))
        await self._spools.admit(self._spool, size, growing=length is None)
        await self._spool.write(offset, data)

    async def _finish(self, body: _Body) -> None:
        """Settle which of the bytes that came are the block."""
        place, came = self._place, self._spool.size
        base, length = 0, came if self._length is None else self._length
        if body.doubtful and came != length:
            base = place.start
        if base + length > came:
            raise AttemptFailed(IntegrityError, f"the block has {came} bytes, not {length}", Remedy.DOUBTFUL)
        if body.doubtful is False and came != length:
            raise AttemptFailed(StaleContent, f"the block had {length} bytes and has {came}", Remedy.ELSEWHERE)
        await self._spool.finish(base, length)

    def _look(self, answer: aiohttp.ClientResponse) -> _Body:
        """Say which bytes of the body are the block's; raise AttemptFailed."""
        place, length = self._place, content_length(answer.headers)
        check_plain(answer, self._line.wall(), also=206)
        changed = changed_validator(self._validator, answer.headers)
        if changed:
            raise AttemptFailed(StaleContent, changed, Remedy.ELSEWHERE)
        if answer.status == 206:
            got = parse_content_range(header(answer.headers, "content-range"))
            if not place.exact or got is None or UNKNOWN in (got.start, got.stop) or not self._agrees(got):
                what = "HTTP 206 with another range than was asked for"
                raise AttemptFailed(IntegrityError, what, Remedy.DOUBTFUL)
            return _Body(0, None, got.stop - got.start)
        if place.whole:
            what = "it sends all of the object for a range that can't be cut"
            raise AttemptFailed(IntegrityError, what, Remedy.ELSEWHERE)
        known = None if length == UNKNOWN else length
        if not place.start and place.stop is None:
            return _Body(0, None, known)
        if place.stop is not None and length == place.stop - place.start:
            return _Body(0, None, known)
        if length == UNKNOWN and place.start and place.stop is not None:
            return _Body(0, place.stop, None, doubtful=True)
        if length != UNKNOWN and length < (place.start if place.stop is None else place.stop):
            raise AttemptFailed(IntegrityError, f"the object has {length} bytes only", Remedy.DOUBTFUL)
        return _Body(place.start, place.length, None)

    def _agrees(self, got: ContentRange) -> bool:
        place = self._place
        if place.whole:
            return True
        return got.start == place.start and got.stop == (got.total if place.stop is None else place.stop)


@dataclass(frozen=True, slots=True)
class _Body:
    """Of a body of `expected` bytes (None: it isn't told, or not read to its end), the `take` bytes after `skip`.

    `doubtful`: only its length tells whether it is the block, or the object from its beginning.
    """

    skip: int
    take: int | None
    expected: int | None
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """What a host says of an object: its size where it tells, validator, Unix mtime or 0.0, whether it gives parts.

    `denied`: it lets nobody have a part.
    """

    size: int = UNKNOWN
    validator: str = ""
    mtime: float = 0.0
    ranges: bool = False
    denied: bool = False


async def probe(line: Line, place: Place, url: str, retry: Retry) -> Probe:
    """Ask for one byte of an object, at the place's start, and else for its head; raise AttemptFailed."""
    progress = Progress(0)
    progress.report_to(retry)
    try:
        async with _ask(line, place, url, f"bytes={place.start}-{place.start}", progress) as answer:
            found = _told(answer, line, place)
    except AttemptFailed as failure:
        if failure.kind is not OriginDenied:
            raise
        found = Probe(denied=True)
    if found.size == UNKNOWN and not place.exact:
        size = await _probe_head(line, place, url, progress)
        found = Probe(size, found.validator, found.mtime, found.ranges, found.denied)
    return found


def _told(answer: aiohttp.ClientResponse, line: Line, place: Place) -> Probe:
    if answer.status != 416:
        check_plain(answer, line.wall(), also=206)
    size = UNKNOWN
    if answer.status == 200:
        size = content_length(answer.headers)
    elif (got := parse_content_range(header(answer.headers, "content-range"))) is not None:
        size = got.total
    if answer.status == 416 and size not in (0, UNKNOWN) and size < place.start:
        raise AttemptFailed(IntegrityError, f"a range from {place.start} on, of {size} bytes", Remedy.DOUBTFUL)
    mtime = parse_http_date(header(answer.headers, "last-modified")) or 0.0
    return Probe(size, choose_validator(answer.headers), mtime, ranges=answer.status == 206)


async def _probe_head(line: Line, place: Place, url: str, progress: Progress) -> int:
    """Return the Content-Length of a HEAD, UNKNOWN where that is none: some servers say 0 of everything."""
    async with line.session.request(
        "HEAD", url, dict(place.headers), account=line.account, waited=progress.excluded, bearer=False
    ) as answer:
        if answer.status != 200 or header(answer.headers, "content-encoding") not in ("", "identity"):
            return UNKNOWN
        return content_length(answer.headers) or UNKNOWN
