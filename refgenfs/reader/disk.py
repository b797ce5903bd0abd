"""Where the cache's disk is waited for: on the trio thread while it is quick, in other threads when it is not.

A thread costs a read more than a quick disk does: with one for each read, two thirds of the throughput. But a
disk that seeks, or sits behind a network, would hold up everybody while one reader waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from refgenfs.core.content import Run
from refgenfs.core.errors import DeadlineExceeded
from refgenfs.core.pace import Pace
from refgenfs.reader.uncached import AnyContent

SLOW = 0.005  # seconds that a read may hold everybody up on the average; flash takes 0.1 ms, a disk that seeks 10
THREADS = 8  # at a time


class Disk:
    """Reads resident blocks. Belongs to the trio thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pace = Pace(SLOW)
        self._threads = trio.CapacityLimiter(THREADS)

    @property
    def quick(self) -> bool:
        """Say whether the disk may be waited for on the spot."""
        return self._pace.quick

    def read(self, content: AnyContent, offset: int, length: int) -> bytes | memoryview | None:
        """Do as `Content.read`; but None when the disk would have to be waited for, and has been slow.

        After an unclean stop a block is checked here too, when it is first read: its CRC-32 takes a few µs, reading
        it twice the second time comes out of memory, and a thread would cost more (see above).
        """
        if not self._pace.quick:
            return content.read_at_once(offset, length)
        began = self._clock()
        data = content.read(offset, length)
        self._pace.note(self._clock() - began)
        return data

    async def bring(self, content: AnyContent, offset: int, length: int, patience: float) -> None:
        """Have a thread bring bytes into memory; whether their blocks are resident then is to be asked anew.

        Raises DeadlineExceeded when that takes longer than `patience` seconds.
        """

        def bring() -> float:  # the disk's time, not the thread's
            began = self._clock()
            content.bring(offset, length)
            return self._clock() - began

        with trio.move_on_after(patience) as scope:
            self._pace.note(await trio.to_thread.run_sync(bring, abandon_on_cancel=True, limiter=self._threads))
        if scope.cancelled_caught:
            raise DeadlineExceeded(f"{content.id}: the cache's disk did not answer for {patience:g} s")

    async def pass_by(self, content: AnyContent, run: Run) -> None:
        """Have what a reader left behind in memory once, not twice. In a thread: it may begin to write it."""
        await trio.to_thread.run_sync(content.pass_by, run, abandon_on_cancel=True, limiter=self._threads)
