"""The daemon's own memory: what the allocator and the garbage collector make of it."""

from __future__ import annotations

import ctypes
import gc
import resource
from collections.abc import Callable

import trio

_M_ARENA_MAX = -8  # malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

GIVE_BACK = 10.0  # seconds; what is taken anew after each costs a few milliseconds of page faults


def resident_memory() -> int:
    """Return this process's resident memory in bytes, as /proc/self/statm has it."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def tame_allocator() -> None:
    """Have glibc keep two arenas, take buffers from them, and keep some free memory; elsewhere, do nothing.

    Its default is an arena for each of many threads (mallopt(3), M_ARENA_MAX), and each keeps what its threads
    once used: a few archives streaming through worker threads cost more memory than all they hold. A buffer of
    128 KiB or more would be mapped, filled with zeros page by page, and unmapped each time (M_MMAP_THRESHOLD):
    of all that a cold read costs that was two thirds.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in (
        (_M_ARENA_MAX, 2),
        (_M_MMAP_THRESHOLD, 8 << 20),  # above every buffer that comes and goes with the data
        (_M_TRIM_THRESHOLD, 16 << 20),
    ):
        mallopt(parameter, value)


async def give_back(moved: Callable[[], int], every: float = GIVE_BACK) -> None:
    """Give free memory back to the kernel every little while, if `moved` has changed since, until cancelled.

    Of what an arena has, glibc itself gives back only what is free at its end, and that is soon held by something
    small: what peaks have left between stays. Elsewhere, do nothing.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    before = 0
    while True:
        await trio.sleep(every)
        now = moved()
        if now != before:
            before = now
            await trio.to_thread.run_sync(trim, 0)


def tame_collector() -> None:
    """Have the garbage collector leave alone what the program itself is made of, and look less often.

    A full collection stops both loops for tens of milliseconds, with every reader waiting. What a daemon makes
    a request at a time is freed by its reference counts.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
