"""Writes stay on the loop while the disk is quick, and leave it when it is not."""

from __future__ import annotations

import asyncio
import threading

import pytest

from refgenfs.reader.writes import SLOW, Writes


class Clock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def where(writes: Writes, clock: Clock, seconds: float = 0.0) -> str:
    """Make a write that takes so long, and return which thread it ran in."""

    def write() -> str:
        clock.now += seconds
        return "loop" if threading.current_thread() is threading.main_thread() else "thread"

    return asyncio.run(writes.run(write))


def test_a_quick_disk_needs_no_thread() -> None:
    clock = Clock()
    writes = Writes(clock)
    assert [where(writes, clock, SLOW / 2) for _ in range(3)] == ["loop"] * 3


def test_a_slow_disk_is_left_to_threads_until_it_is_quick_again() -> None:
    clock = Clock()
    writes = Writes(clock)
    assert where(writes, clock, 100 * SLOW) == "loop"
    assert where(writes, clock, 2 * SLOW) == "thread"
    waited = [where(writes, clock) for _ in range(64)]
    assert waited[:8] == ["thread"] * 8
    assert waited[-1] == "loop"


def test_what_a_write_raises_passes_through() -> None:
    clock = Clock()
    writes = Writes(clock)

    def refuse() -> None:
        clock.now += 100 * SLOW
        raise OSError(28, "full")

    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            asyncio.run(writes.run(refuse))
