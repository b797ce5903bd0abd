"""Turns at a host: who gives up waiting takes nothing along, at whatever moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from refgenfs.core.errands import Errand
from refgenfs.fetch.session import _Slots

ANN, BOB, EVE = Errand(1), Errand(2), Errand(3)


def cancel_first(task: asyncio.Task[None], release: Callable[[], None]) -> None:
    task.cancel()
    release()


def release_first(task: asyncio.Task[None], release: Callable[[], None]) -> None:
    release()
    task.cancel()


def cancel_only(task: asyncio.Task[None], release: Callable[[], None]) -> None:
    task.cancel()


@pytest.mark.parametrize("happens", [cancel_first, release_first, cancel_only])
@pytest.mark.parametrize("behind", [False, True], ids=["alone", "another waits behind"])
def test_a_turn_that_comes_to_who_has_just_given_up_is_given_back(
    happens: Callable[[asyncio.Task[None], Callable[[], None]], None], behind: bool
) -> None:
    async def run() -> None:
        slots = _Slots(1)
        assert slots.enter(ANN)
        waits = asyncio.create_task(slots.wait(BOB))
        await asyncio.sleep(0)
        next_one = asyncio.create_task(slots.wait(EVE)) if behind else None
        await asyncio.sleep(0)
        happens(waits, lambda: slots.release(ANN))
        with pytest.raises(asyncio.CancelledError):
            await waits
        if happens is cancel_only:
            slots.release(ANN)
        if next_one is not None:
            await asyncio.wait_for(next_one, 1)
            slots.release(EVE)
        assert slots.spares(0), "its place is free again"

    asyncio.run(run())
