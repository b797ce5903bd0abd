"""How many connections a stream has, and what each fetches.

Promises:
- a stream that waits for its origin has more and more lanes; one whose sink is waited for keeps one;
- what is asked for follows what was asked for, without gaps, and never beyond the end;
- what is held ahead is bounded, also by what the front has still to fetch by itself;
- who is refused is not asked for a while, longer each time.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.lanes import CALM, ENOUGH, FIRST, LEG, LONG, LONGEST, LOOK, MIDDLE, SPARE_LEGS, Lanes, share

MIB = 1 << 20
SIZE = 1000 * MIB


def hungry(lanes: Lanes, looks: int = 1) -> Lanes:
    for _ in range(looks):
        lanes.fed(LOOK, waited=0.025, took=0.001)
    return lanes


def test_who_waits_for_the_origin_has_more_and_more_lanes() -> None:
    lanes = Lanes(SIZE)
    assert lanes.next_leg(MIB, FIRST, 1, 0, 0.0) is None
    assert [hungry(lanes).lanes for _ in range(3)] == [2, 4, 8]
    lanes.limit(6)
    assert lanes.lanes == 6


def test_one_is_enough_where_the_sink_is_waited_for() -> None:
    lanes = Lanes(SIZE)
    for _ in range(100):
        lanes.fed(LOOK, waited=0.004, took=0.005)
    assert lanes.lanes == 1
    assert lanes.stretch(FIRST, 0.0) == FIRST + LONG


def test_one_is_enough_where_more_comes_than_can_be_unpacked() -> None:
    lanes = Lanes(SIZE)
    for _ in range(100):
        lanes.fed(LOOK, waited=LOOK / ENOUGH * 0.9, took=0.0)
    assert lanes.lanes == 1


def test_lanes_that_are_not_waited_for_go_one_by_one() -> None:
    lanes = hungry(Lanes(SIZE), 3)
    for expected in (7, 6, 5, 4, 3, 2, 1, 1):
        for _ in range(CALM // LOOK):
            lanes.fed(LOOK, waited=0.0001, took=0.01)
        assert lanes.lanes == expected


def test_an_origin_that_asks_to_be_left_alone_is() -> None:
    lanes = hungry(Lanes(SIZE), 3)
    lanes.quiet_until = 90.0
    lanes.refused(0.0)
    assert lanes.next_leg(FIRST, FIRST, 1, 0, 89.9) is None
    assert lanes.stretch(FIRST, 89.9) == FIRST + MIDDLE
    assert lanes.next_leg(FIRST, FIRST, 1, 0, 90.0) == (FIRST, FIRST + LEG)


def test_little_says_nothing() -> None:
    lanes = Lanes(SIZE)
    lanes.fed(LOOK - 1, waited=10.0, took=0.0)
    assert lanes.lanes == 1


def test_a_leg_begins_where_what_was_asked_for_ends() -> None:
    lanes = hungry(Lanes(SIZE), 2)
    assert lanes.next_leg(MIB, FIRST, 1, 0, 0.0) == (FIRST, FIRST + LEG)
    assert lanes.next_leg(MIB, FIRST + LEG, 2, 1, 0.0) == (FIRST + LEG, FIRST + 2 * LEG)
    assert lanes.next_leg(SIZE - LEG, SIZE - 5, 1, 0, 0.0) == (SIZE - 5, SIZE)
    assert lanes.next_leg(SIZE - LEG, SIZE, 1, 0, 0.0) is None


def test_lanes_and_legs_are_bounded() -> None:
    lanes = hungry(Lanes(SIZE), 2)
    assert lanes.next_leg(MIB, FIRST, lanes.lanes, 0, 0.0) is None
    assert lanes.next_leg(MIB, FIRST, 1, lanes.lanes + SPARE_LEGS, 0.0) is None
    assert lanes.next_leg(MIB, LONG, 1, 0, 0.0) is None, "it would be held until all before it was fetched"


def test_without_memory_or_a_connection_it_goes_on_in_longer_stretches() -> None:
    lanes = hungry(Lanes(SIZE))
    assert lanes.stretch(FIRST, 0.0) == FIRST + LEG
    lanes.hold(5.0)
    assert lanes.next_leg(MIB, FIRST, 1, 0, 5.05) is None
    assert lanes.stretch(FIRST, 5.05) == FIRST + MIDDLE
    assert lanes.next_leg(MIB, FIRST, 1, 0, 5.3) is not None


def test_who_is_refused_waits_longer_each_time() -> None:
    lanes = hungry(Lanes(SIZE))
    now, pauses = 0.0, []
    for _ in range(10):
        lanes.refused(now)
        began = now
        while lanes.next_leg(MIB, FIRST, 1, 0, now) is None:
            now += 0.5
        pauses.append(now - began)
    assert pauses == sorted(pauses)
    assert pauses[0] <= 1.5
    assert pauses[-1] == LONGEST
    lanes.arrived()
    lanes.refused(now)
    assert lanes.next_leg(MIB, FIRST, 1, 0, now + pauses[0]) is not None


def test_one_alone_asks_for_all_the_rest() -> None:
    lanes = hungry(Lanes(SIZE, several=False))
    assert lanes.next_leg(MIB, FIRST, 1, 0, 0.0) is None
    assert lanes.stretch(FIRST, 0.0) == SIZE


@pytest.mark.parametrize(
    ("connections", "streams", "each"), [(8, 1, 6), (8, 2, 3), (8, 4, 1), (8, 9, 1), (3, 1, 1), (1, 1, 1), (8, 0, 6)]
)
def test_streams_share_what_readers_leave(connections: int, streams: int, each: int) -> None:
    assert share(connections, streams) == each


@given(st.integers(1, 300 * MIB), st.lists(st.tuples(st.booleans(), st.integers(1, 8 * MIB)), max_size=80))
def test_what_is_asked_for_has_no_gaps_and_bounds(size: int, steps: list[tuple[bool, int]]) -> None:
    lanes, fed, now = Lanes(size), 0, 0.0
    own = min(size, FIRST)
    legs: list[tuple[int, int]] = []
    for waits, amount in steps:
        now += 0.05
        end = own if fed < own else legs[0][1] if legs else fed
        step = min(amount, end - fed)
        fed += step
        lanes.fed(step, 0.1 if waits else 0.0, 0.0 if waits else 0.1)
        while legs and legs[0][1] <= fed:
            legs.pop(0)
        if fed == end == size:
            break
        if fed >= own and not legs:
            own = lanes.stretch(fed, now)
            assert fed < own <= size
        lanes.limit(6)
        while True:
            horizon = max(fed, own, legs[-1][1] if legs else 0)
            found = lanes.next_leg(fed, horizon, len(legs) + (fed < own), len(legs), now)
            if found is None:
                break
            assert found[0] == horizon < found[1] <= size
            legs.append(found)
        assert sum(stop - start for start, stop in legs) <= (6 + SPARE_LEGS) * LEG
