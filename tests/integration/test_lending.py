"""Memory for what a stream fetches ahead, between the thread that fetches and the one that has the budget.

Promises:
- a stream is lent what there is to spare, and nothing while it rests or nobody waits for it;
- what a resting stream has is recalled as soon as somebody waits, and what a running one has is not;
- whoever is cancelled while asking keeps nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import trio

from refgenfs.fetch.bridge import Bridge, open_bridge
from refgenfs.reader.budget import Budget
from refgenfs.reader.lending import Lease, Lending
from tests.support.scripted import eventually

MIB = 1 << 20


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    async with open_bridge(grace=0.5) as opened:
        yield opened


class Leg:
    """Holds what it is lent, and gives it back when that is recalled."""

    def __init__(self, bridge: Bridge, lending: Lending) -> None:
        self._bridge = bridge
        self._lending = lending
        self.lease: Lease | None = None
        self.recalled = 0

    def recall(self) -> None:
        self.recalled += 1
        if self.lease is not None:
            self.lease.release()

    async def take(self, nbytes: int) -> bool:
        self.lease = await self._bridge.run(lambda: self._lending.take(nbytes, self.recall))
        return self.lease is not None


async def test_it_is_lent_what_there_is_to_spare_while_somebody_waits_for_the_stream(bridge: Bridge) -> None:
    budget, awaited = Budget(8 * MIB), True
    lending = Lending(budget, lambda: awaited)
    legs = [Leg(bridge, lending) for _ in range(4)]
    assert [await leg.take(2 * MIB) for leg in legs] == [True, True, True, False]
    assert budget.held == 6 * MIB
    for leg in legs[:3]:
        leg.recall()
    await eventually(lambda: budget.held == 0)
    awaited = False
    assert not await legs[0].take(MIB)
    awaited = True
    with lending.resting():
        assert not await legs[0].take(MIB)
    assert await legs[0].take(MIB)


async def test_what_a_resting_stream_has_is_given_back_when_somebody_waits(bridge: Bridge) -> None:
    budget = Budget(8 * MIB)
    resting, running = Lending(budget, lambda: True), Lending(budget, lambda: True)
    first, second = Leg(bridge, resting), Leg(bridge, running)
    assert await first.take(3 * MIB)
    assert await second.take(3 * MIB)
    with resting.resting():
        assert not first.recalled, "nobody waits"
        waiting = budget.claim(4 * MIB)
        assert not waiting.granted
        with trio.fail_after(5):
            await waiting.wait()
        assert (first.recalled, second.recalled) == (1, 0)
        waiting.release()
        third = budget.claim(4 * MIB)
        assert third.granted
        more = budget.claim(4 * MIB)
        assert not more.granted
        assert (first.recalled, second.recalled) == (1, 0)
    with running.resting():  # somebody has been waiting since before
        with trio.fail_after(5):
            await more.wait()
        assert second.recalled == 1
    for claim in (third, more):
        claim.release()
    await eventually(lambda: budget.held == 0)


async def test_who_is_cancelled_while_asking_keeps_nothing(bridge: Bridge) -> None:
    budget = Budget(64 * MIB)
    lending = Lending(budget, lambda: True)

    async def ask_and_leave() -> None:
        for turns in range(200):
            task = asyncio.create_task(lending.take(MIB, lambda: None))
            for _ in range(turns % 7):
                await asyncio.sleep(0)
            if turns % 3:
                await asyncio.sleep(0.0003 * (turns % 5))
            task.cancel()
            lease = (await asyncio.gather(task, return_exceptions=True))[0]
            if isinstance(lease, Lease):
                lease.release()

    await bridge.run(ask_and_leave)
    await eventually(lambda: budget.held == 0)
