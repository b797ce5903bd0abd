"""The budget of memory that all flights share.

Promises:
- never more than its size is held, whoever asks for what in whatever order;
- who is waited for gets memory in the order of asking; who asks for little does not overtake who asks for much;
- what nobody waits for gets some only while nobody queues, and leaves a quarter;
- what streams is bounded, so that flights go on whatever streams; a flight larger than the rest flies all the same;
- memory that is given back is given on; who gives up waiting leaves the queue;
- what was taken on recall is asked for back whenever somebody begins to wait, until it is given back.
"""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from refgenfs.core.errands import on_behalf_of
from refgenfs.reader.budget import BEAT, STREAM_MEMORY, Budget, Claim

MIB = 1 << 20

amounts = st.integers(1, 40 * MIB)
steps = st.lists(st.tuples(st.sampled_from(["claim", "take", "stream", "release"]), amounts), max_size=60)
sizes = st.sampled_from([MIB, 4 * MIB, 52 * MIB, 200 * MIB])


@given(st.sampled_from([MIB, 4 * MIB, 52 * MIB, 200 * MIB]), steps)
def test_never_more_than_its_size_is_held(size: int, asked: list[tuple[str, int]]) -> None:
    async def run() -> None:
        budget = Budget(size)
        flights: list[Claim] = []
        streams: list[Claim] = []
        for what, amount in asked:
            if what == "claim":
                flights.append(budget.claim(amount))
            elif what == "stream" and len(streams) < budget.streams:
                streams.append(budget.claim_stream())
            elif what == "take" and (taken := budget.take(amount)) is not None:
                assert budget.held <= size - size // 4
                flights.append(taken)
            elif what == "release" and flights:
                flights.pop(amount % len(flights)).release()
            assert budget.held == sum(claim.nbytes for claim in flights + streams if claim.granted) <= size
        while flights:  # whatever streams, all who wait come to fly
            flying = [claim for claim in flights if claim.granted]
            assert flying or not all(claim.granted for claim in streams)
            for claim in flying or streams:
                claim.release()
            flights = [claim for claim in flights if claim not in flying]
        for claim in streams:
            claim.release()
            claim.release()
        assert budget.held == 0

    trio.run(run)


class Play:
    """Claims of a budget, made and given back as a script says."""

    def __init__(self, size: int) -> None:
        self.budget = Budget(size)
        self.flights: list[Claim] = []
        self.streams: list[Claim] = []

    def resize(self, size: int) -> None:
        """Change the size: nobody loses what is granted."""
        before = self.granted()
        self.budget.resize(size, 4)
        assert before.items() <= self.granted().items()

    def granted(self) -> dict[int, int]:
        return {id(claim): claim.nbytes for claim in self.flights + self.streams if claim.granted}

    def step(self, what: str, amount: int) -> None:
        if what == "claim":
            self.flights.append(self.budget.claim(amount))
        elif what == "stream" and len(self.streams) < self.budget.streams:
            self.streams.append(self.budget.claim_stream())
        elif what == "take" and (taken := self.budget.take(amount)) is not None:
            self.flights.append(taken)
        elif what == "release" and (some := self.flights or self.streams):
            some.pop(amount % len(some)).release()
        assert self.budget.held == sum(self.granted().values())

    def land_all(self) -> None:
        """Have flights end until all have flown: only a stream that waits itself is ever waited for."""
        while self.flights:
            flying = [claim for claim in self.flights if claim.granted]
            assert flying or not all(claim.granted for claim in self.streams)
            for claim in flying or [one for one in self.streams if one.granted]:
                claim.release()
            self.flights = [claim for claim in self.flights if claim.nbytes]
            self.streams = [claim for claim in self.streams if claim.nbytes]


@given(sizes, st.lists(st.tuples(steps, sizes), max_size=4))
def test_another_size_takes_nothing_away_and_starves_nobody(
    size: int, script: list[tuple[list[tuple[str, int]], int]]
) -> None:
    async def run() -> None:
        play = Play(size)
        for asked, another in script:
            for what, amount in asked:
                play.step(what, amount)
            play.resize(another)
        play.land_all()
        for claim in play.streams:
            claim.release()
        assert play.budget.held == 0
        assert play.budget.take(play.budget.size) is not None  # what there is to spare is there again

    trio.run(run)


async def test_what_streamed_before_does_not_hold_up_flights() -> None:
    budget = Budget(52 * MIB)
    streams = [budget.claim_stream() for _ in range(4)]
    budget.resize(8 * MIB, 4)
    flight = budget.claim(3 * MIB)
    assert flight.granted
    assert budget.held == 4 * STREAM_MEMORY + 3 * MIB
    waits = budget.claim(3 * MIB)
    assert budget.held == 4 * STREAM_MEMORY + 3 * MIB
    flight.release()
    assert budget.held == 4 * STREAM_MEMORY + 3 * MIB  # the next has it
    for claim in (*streams, waits):
        claim.release()
    assert budget.held == 0
    budget.resize(200 * MIB, 4)
    assert budget.claim(100 * MIB).granted


async def test_in_the_order_of_asking() -> None:
    budget = Budget(8 * MIB)
    first = budget.claim(3 * MIB)
    second = budget.claim(3 * MIB)
    large = budget.claim(4 * MIB)
    little = budget.claim(MIB)
    assert [claim.granted for claim in (first, second, large, little)] == [True, True, False, False]
    first.release()
    assert large.granted
    assert little.granted
    assert budget.held == 8 * MIB


async def test_what_nobody_waits_for_comes_last_and_leaves_a_quarter() -> None:
    budget = Budget(8 * MIB)
    taken = budget.take(4 * MIB)
    assert taken is not None
    assert budget.spare == 2 * MIB
    assert budget.take(2 * MIB + 1) is None
    first, second = budget.claim(4 * MIB), budget.claim(MIB)
    assert first.granted
    assert not second.granted
    first.release()
    assert budget.take(2 * MIB) is None, "a quarter is left, less what the second has"
    second.release()
    assert budget.take(2 * MIB) is not None


@pytest.mark.parametrize(("size", "streams"), [(30 * MIB, 1), (4 * MIB, 4), (52 * MIB, 4), (1000 * MIB, 4)])
async def test_what_nobody_waits_for_has_its_turn_however_large_it_is(size: int, streams: int) -> None:
    budget = Budget(size, streams)
    holder = budget.claim(size)
    assert not budget.has_spare(10 * size)
    assert budget.take(10 * size) is None
    holder.release()
    assert budget.has_spare(10 * size)
    taken = budget.take(10 * size)
    assert taken is not None
    assert size // 4 <= size - budget.held
    taken.release()
    assert budget.held == 0


async def test_who_gives_up_leaves_the_queue() -> None:
    budget = Budget(8 * MIB)
    holder = budget.claim(4 * MIB)
    other = budget.claim(3 * MIB)
    large, little = budget.claim(4 * MIB), budget.claim(MIB)
    assert [claim.granted for claim in (large, little)] == [False, False]
    large.release()
    assert little.granted
    for claim in (holder, other, little):
        claim.release()
    assert budget.held == 0


@pytest.mark.parametrize(("size", "streams"), [(200 * MIB, 4), (52 * MIB, 4), (30 * MIB, 2), (4 * MIB, 1)])
async def test_what_streams_leaves_enough_for_every_flight(size: int, streams: int) -> None:
    budget = Budget(size)
    assert budget.streams == streams
    held = [budget.claim_stream() for _ in range(streams)]
    assert all(claim.nbytes <= STREAM_MEMORY for claim in held)
    assert budget.largest >= size * 3 // 8
    flight = budget.claim(10 * size)
    assert flight.granted
    assert budget.held == size


async def test_a_sign_of_life_only_while_anything_comes(mock_clock: MockClock) -> None:
    budget, beats = Budget(2 * MIB), [0]
    holder = budget.claim(MIB)
    other = budget.claim(MIB)
    claim = budget.claim(1)

    def beat() -> None:
        beats[0] += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(claim.wait, beat)
        await wait_all_tasks_blocked()
        for came, expected in ((0, 0), (100, 1), (0, 1), (1, 2)):
            budget.moved(came)
            mock_clock.jump(BEAT)
            await wait_all_tasks_blocked()
            assert beats == [expected]
        holder.release()
    assert claim.granted
    other.release()
    claim.release()
    assert budget.held == 0


async def test_what_was_taken_on_recall_is_asked_for_back_when_somebody_waits() -> None:
    budget = Budget(8 * MIB)
    asked: list[str] = []
    taken = budget.take(4 * MIB, lambda: asked.append("a"))
    assert taken is not None
    first = budget.claim(2 * MIB)
    assert first.granted
    assert not asked, "there was enough"
    second = budget.claim(3 * MIB)
    assert asked == ["a"]
    assert budget.wanted
    taken.release()
    assert second.granted
    assert budget.spare
    third = budget.claim(4 * MIB)
    assert not third.granted
    assert asked == ["a"], "it was given back"
    for claim in (first, second, third):
        claim.release()
    assert budget.held == 0


async def test_who_is_recalled_may_give_back_on_the_spot() -> None:
    budget = Budget(8 * MIB)
    held: list[Claim] = []

    def give_back() -> None:
        while held:
            held.pop().release()

    for _ in range(3):
        taken = budget.take(2 * MIB, give_back)
        assert taken is not None
        held.append(taken)
    waiting = budget.claim(4 * MIB)
    assert waiting.granted
    waiting.release()
    assert budget.held == 0


def test_a_user_who_has_nothing_waits_for_none_of_another_s_large_flights() -> None:
    budget = Budget(16 * MIB, 1)
    with on_behalf_of(2):
        budget.claim(MIB).release()  # is around
    with on_behalf_of(1):
        claims = [budget.claim(2 * MIB) for _ in range(10)]
    assert [claim.granted for claim in claims].count(True) == 7
    with on_behalf_of(2):
        first, second = budget.claim(MIB), budget.claim(2 * MIB)
    states = [[first.granted, second.granted]]
    first.release()
    states.append([second.granted])
    assert states == [[True, False], [True]], "an eighth is for who has nothing, and not all at once"
    claims[0].release()
    assert [claim.granted for claim in claims[1:]].count(True) == 6, "an eighth stays free"


def test_alone_a_user_has_all_memory() -> None:
    budget = Budget(16 * MIB, 1)
    with on_behalf_of(1):
        claims = [budget.claim(2 * MIB) for _ in range(10)]
    assert [claim.granted for claim in claims].count(True) == 8
