"""The daemon's own memory: what the allocator and the garbage collector make of it."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import trio

_M_ARENA_MAX = -8  # malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

CGROUPS = Path("/sys/fs/cgroup")
OWN = 96 << 20  # bytes that a daemon has beside its budget: itself, a catalog, a process that makes an index
SMALLEST = 4 << 20  # a budget that still serves
GIVE_BACK = 10.0  # seconds; what is taken anew after each costs a few milliseconds of page faults


def resident_memory() -> int:
    """Return this process's resident memory in bytes, as /proc/self/statm has it."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def allowed_memory(own: Path = Path("/proc/self/cgroup"), top: Path = CGROUPS) -> int | None:
    """Return how many bytes the cgroups of this process allow, the pages of files among them; None: any number.

    `MemoryMax=` and `MemoryHigh=` of a unit, or the limit of a container; cgroups(7), of version 1 or 2.
    """
    limits: list[int] = []
    with suppress(OSError, ValueError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                limits += _limits(top, path, ("memory.max", "memory.high"))
            elif "memory" in controllers.split(","):
                limits += _limits(top / "memory", path, ("memory.limit_in_bytes",))
    return min(limits, default=None)


def _limits(top: Path, path: str, names: tuple[str, ...]) -> Iterator[int]:
    """Yield the limits of a cgroup and of all above it."""
    group = Path(os.path.normpath("/" + path.lstrip("/")))
    for one in (group, *group.parents):
        for name in names:
            with suppress(OSError, ValueError):  # not there; "max"
                limit = int((top / one.relative_to("/") / name).read_text(encoding="ascii"))
                if limit < 1 << 60:  # version 1 has a number for none
                    yield limit


def fitting_budget(wanted: int, allowed: int | None) -> int:
    """Return the part of a budget of `wanted` bytes that fits: half of what is beside the daemon's own memory.

    The other half is for the kernel's pages of the cache's files, without which nothing is fast.
    """
    if allowed is None:
        return wanted
    return min(wanted, max(SMALLEST, (allowed - OWN) // 2))


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
