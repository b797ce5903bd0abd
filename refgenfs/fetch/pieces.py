"""From the chunks of a body to aligned pieces at a sink. Everything runs on the asyncio loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Protocol

import aiohttp

from refgenfs.core.content import BLOCK
from refgenfs.core.errors import IntegrityError, OriginUnavailable
from refgenfs.core.retry import Remedy
from refgenfs.fetch.answers import AttemptFailed

PIECE = 1024 * 1024  # bytes; large enough that handing one over costs little, small enough to show progress
# A whole block is handed over after this long also when its piece is not full: a reader may wait for it.
HASTE = 0.02  # seconds
FEED = 512 * 1024  # bytes; the largest piece a stream's sink is fed


class RangeSink(Protocol):
    """What takes the bytes of a range. Awaited on the asyncio loop."""

    async def write(self, offset: int, data: memoryview) -> None:
        """Take the piece of the object that begins at `offset`; the memory is the sink's to keep.

        Pieces come in order without gaps. Each covers whole blocks, at most 1 MiB, but for the last one.
        """
        ...


class StreamSink(Protocol):
    """What takes the bytes of a whole object. Awaited on the asyncio loop."""

    async def begin(self, validator: str) -> None:
        """Hear the validator of the object whose bytes follow, "" where the origin gives none.

        Called before the first byte is fed, once for each answer that could begin.
        """
        ...

    async def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes, at most 512 KiB."""
        ...


class SinkFailed(Exception):
    """A sink raised `error`, which is for the caller and not to be retried. Inside `fetch` only."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


async def deliver(call: Coroutine[Any, Any, None]) -> None:
    """Await a sink's coroutine; its errors come as SinkFailed, so that none is taken for the origin's."""
    try:
        await call
    except Exception as exc:
        raise SinkFailed(exc) from exc


async def read_body(
    answer: aiohttp.ClientResponse, expected: int | None, received: Callable[[int], None]
) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of a body as they come; raise AttemptFailed unless it is exactly `expected` bytes.

    `received` is told the length of each chunk. None takes any length. The last chunk is yielded before it
    is known that nothing follows it.
    """
    total = 0
    while chunk := await answer.content.readany():
        received(len(chunk))
        total += len(chunk)
        if expected is not None and total > expected:
            raise AttemptFailed(
                IntegrityError, f"the body is longer than the {expected} bytes announced", Remedy.DOUBTFUL
            )
        yield chunk
    if expected is not None and total < expected:
        raise AttemptFailed(OriginUnavailable, f"the body ended after {total} of {expected} bytes", Remedy.AGAIN)


class Assembler:
    """Joins chunks into pieces and hands them to a sink, one piece ahead of it.

    At most two pieces exist: the one at the sink, and the one that gathers. What was received stays when a
    connection breaks: `position` is where the next request has to begin. The last piece is handed over by
    `finish` only, which the caller calls when it has seen the body end as it should.
    """

    def __init__(self, start: int, stop: int, sink: RangeSink) -> None:
        self._stop = stop
        self._sink = sink
        self._offset = start  # of the piece that gathers
        self._parts: list[memoryview] = []
        self._gathered = 0
        self._since = asyncio.get_running_loop().time()  # of the last hand-over
        self._writing: asyncio.Task[None] | None = None

    @property
    def position(self) -> int:
        """The offset of the first byte that was not received."""
        return self._offset + self._gathered

    def forget_piece(self) -> None:
        """Drop the piece that gathers: the answer that it came from turned out wrong."""
        self._parts, self._gathered = [], 0

    async def push(self, chunk: memoryview) -> None:
        """Take the bytes at `position`; waits while the sink is a piece behind. Raises SinkFailed."""
        while chunk:
            taken = chunk[: PIECE - self._gathered]
            self._parts.append(taken)
            self._gathered += len(taken)
            chunk = chunk[len(taken) :]
            if self.position < self._stop and self._is_due():
                await self._hand_over(self._gathered // BLOCK * BLOCK)

    def _is_due(self) -> bool:
        if self._gathered < BLOCK or self._gathered == PIECE:
            return self._gathered == PIECE
        idle = self._writing is None or self._writing.done()
        return idle and asyncio.get_running_loop().time() - self._since >= HASTE

    async def finish(self) -> None:
        """Hand over the last piece and wait until the sink has it."""
        assert self.position == self._stop
        await self._hand_over(self._gathered)
        await self._wait_for_sink()

    async def aclose(self) -> None:
        """End what is under way at the sink, and wait for that."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.cancel()
            await asyncio.wait([writing])
            if not writing.cancelled():
                writing.exception()  # seen: the caller has an error of its own to tell

    async def _hand_over(self, length: int) -> None:
        await self._wait_for_sink()
        piece = self._cut(length)
        self._writing = asyncio.create_task(deliver(self._sink.write(self._offset, piece)))
        self._offset += length
        self._since = asyncio.get_running_loop().time()

    def _cut(self, length: int) -> memoryview:
        """Take the first bytes that gathered, in one stretch of memory of their own."""
        joined = memoryview(b"".join(self._parts))
        rest = joined[length:]
        self._parts, self._gathered = [rest] if rest else [], len(rest)
        return joined[:length]

    async def _wait_for_sink(self) -> None:
        if self._writing is not None:
            # Shielded, so that a cancel leaves the end of the write to aclose(), which waits for it.
            await asyncio.shield(self._writing)
            self._writing = None
