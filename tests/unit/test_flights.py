"""Flights: one a block; bytes for those who hold it, errors for all, patience while nothing comes.

Promises:
- a block has one flight at a time; a second launch is a defect and said to be one;
- who holds an arrival gets its bytes, until the last of them has let go; nobody else keeps them alive;
- a failure reaches everybody who waits, and who asks later;
- a wait ends in DeadlineExceeded only after `patience` seconds in which nothing came in at all.
"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from refgenfs.core.errors import DeadlineExceeded, OriginUnavailable
from refgenfs.reader.flights import Arrival, FlightBoard

DATA = memoryview(b"the block's bytes")


class Carrier:
    """Brings nothing by itself."""

    def __init__(self) -> None:
        self.progress = 0


def test_a_block_has_one_flight() -> None:
    board = FlightBoard()
    board.launch("a", [3], Carrier())
    with pytest.raises(AssertionError, match="block 3 of a has a flight already"):
        board.launch("a", [3], Carrier())
    board.launch("a", [4], Carrier())
    board.launch("b", [3], Carrier())
    assert len(board) == 3


def test_a_flight_is_found_until_it_ends() -> None:
    board = FlightBoard()
    assert board.find("a", 0) is None
    board.launch("a", [0, 1], Carrier())
    flight = board.find("a", 0)
    assert flight is not None
    assert board.find("a", 0) is flight
    assert board.find("a", 1) is not flight
    assert board.find("a", 2) is board.find("b", 0) is None
    board.land("a", 0, DATA)
    assert board.find("a", 0) is None
    board.fail("a", [1], flight.carrier, OriginUnavailable("away"))
    assert board.find("a", 1) is None
    assert len(board) == 0
    board.launch("a", [0], Carrier())
    assert board.find("a", 0) is not flight


def test_landing_or_failing_what_has_no_flight_does_nothing() -> None:
    board, carrier = FlightBoard(), Carrier()
    board.land("a", 0, DATA)
    board.fail("a", range(5), carrier, OriginUnavailable("away"))
    board.launch("a", [7], carrier)
    board.land("a", 0, DATA)
    board.fail("a", range(5), carrier, OriginUnavailable("away"))
    assert len(board) == 1


def test_a_carrier_fails_its_own_flights_only() -> None:
    """A block that landed, went and is on its way again must not get the error of the first carrier."""
    board, first, second = FlightBoard(), Carrier(), Carrier()
    board.launch("a", [0, 1], first)
    board.land("a", 0, DATA)
    board.launch("a", [0], second)
    newer = board.find("a", 0)
    board.fail("a", range(2), first, OriginUnavailable("away"))
    assert newer is not None
    assert board.find("a", 0) is newer
    assert newer.error is None
    assert board.find("a", 1) is None


def test_a_held_arrival_keeps_its_bytes_until_the_last_holder_lets_go() -> None:
    arrival = Arrival(Carrier())
    seen = [(arrival.held, arrival.data)]
    for step in (arrival.hold, arrival.hold, lambda: arrival.land(DATA), arrival.release, arrival.release):
        step()
        seen.append((arrival.held, arrival.data))
    assert seen == [(False, None), (True, None), (True, None), (True, DATA), (True, DATA), (False, None)]


def test_an_arrival_that_nobody_holds_keeps_nothing() -> None:
    arrival = Arrival(Carrier())
    arrival.land(DATA)
    assert arrival.done.is_set()
    assert arrival.data is None
    arrival = Arrival(Carrier())
    arrival.hold()
    arrival.release()
    arrival.land(DATA)
    assert arrival.data is None


async def test_landing_wakes_everybody() -> None:
    board = FlightBoard()
    board.launch("a", [0], Carrier())
    arrival = board.find("a", 0)
    assert arrival is not None
    got: list[memoryview | None] = []

    async def wait() -> None:
        arrival.hold()
        await arrival.wait(1, "a")
        got.append(arrival.data)
        arrival.release()

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        board.land("a", 0, DATA)
    assert got == [DATA] * 3
    assert arrival.data is None


async def test_a_failure_reaches_everybody_also_who_asks_later() -> None:
    board, carrier = FlightBoard(), Carrier()
    board.launch("a", [0, 1], carrier)
    arrivals = [board.find("a", 0), board.find("a", 1)]
    error = OriginUnavailable("away")
    seen: list[BaseException] = []

    async def wait(arrival: Arrival) -> None:
        with pytest.raises(OriginUnavailable) as caught:
            await arrival.wait(1, "a")
        seen.append(caught.value)

    async with trio.open_nursery() as nursery:
        for arrival in arrivals * 2:
            assert arrival is not None
            nursery.start_soon(wait, arrival)
        await wait_all_tasks_blocked()
        board.fail("a", range(2), carrier, error)
    assert arrivals[0] is not None
    await wait(arrivals[0])
    assert seen == [error] * 5


async def test_a_wait_gives_up_when_nothing_comes_for_the_patience(autojump_clock: MockClock) -> None:
    arrival = Arrival(Carrier())
    began = trio.current_time()
    with pytest.raises(DeadlineExceeded, match=r"hg38\.fa: nothing came in for 7 s"):
        await arrival.wait(7, "hg38.fa")
    assert trio.current_time() - began == pytest.approx(7)
    assert not arrival.done.is_set()


async def test_a_wait_goes_on_while_anything_comes(autojump_clock: MockClock) -> None:
    """Even what is not for this block: the block is behind it in the queue."""
    carrier = Carrier()
    arrival = Arrival(carrier)

    async def trickle() -> None:
        for _ in range(10):
            await trio.sleep(6)
            carrier.progress += 1

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        with pytest.raises(DeadlineExceeded):
            await arrival.wait(7, "hg38.fa")
    # the last byte came after 60 s; after that, at least the patience and at most twice that
    assert 67 <= trio.current_time() - began <= 74


async def test_an_arrival_at_the_last_moment_counts(autojump_clock: MockClock) -> None:
    arrival = Arrival(Carrier())
    arrival.hold()

    async def late() -> None:
        await trio.sleep(6.9)
        arrival.land(DATA)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(late)
        await arrival.wait(7, "hg38.fa")
    assert arrival.data is DATA


async def test_what_landed_is_not_waited_for(autojump_clock: MockClock) -> None:
    arrival = Arrival(Carrier())
    arrival.land(DATA)
    await arrival.wait(0, "hg38.fa")
    assert trio.current_time() == 0
