"""Where a write to the disk happens: on the loop's own thread while the disk is quick, else in other threads.

A write into the page cache takes a third of a millisecond a MiB. To hand it to a thread and hear of its end
costs about as much again, most of it in waking a thread that sleeps, with the interpreter's lock held. But a
disk that makes writers wait (dirty pages above their limit, a journal, a server of files) would make every
connection wait: writes go to threads until it is quick again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from refgenfs.core.pace import Pace

T = TypeVar("T")

SLOW = 0.01  # seconds on the average; thirty times what a MiB takes when nothing is in the way
THREADS = 4  # of these writes alone: what waits for the disk must not keep a host's name from being resolved


class Writes:
    """Runs functions that write to the disk. Belongs to the asyncio loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pace = Pace(SLOW)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="refgenfs-write")

    async def run(self, write: Callable[[], T]) -> T:
        """Call `write` and return its result; what it raises passes through."""
        if self._pace.quick:
            return self._timed(write)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(self._timed, write))

    def _timed(self, write: Callable[[], T]) -> T:
        began = self._clock()
        try:
            return write()
        finally:
            self._pace.note(self._clock() - began)
