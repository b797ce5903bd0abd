"""Counters over time: bounded, exact whatever was missed, and the same in fine and in coarse."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.history import COARSE, COARSE_SPAN, FINE, FINE_SPAN, History, Ring, Sample


def sample(when: float, served: int = 0) -> Sample:
    return Sample(when, served, served // 2, served / 10)


def test_a_ring_has_the_last_samples_in_their_order() -> None:
    ring = Ring(1.0, 5.0)
    for second in range(20):
        ring.note(sample(second, 100 * second))
    assert [one.when for one in ring.since(0)] == [14, 15, 16, 17, 18, 19]
    assert ring.since(16)[0] == sample(17, 1700)
    assert ring.since(19) == []


@given(st.lists(st.floats(0.01, 100), max_size=80), st.integers(1, 10), st.floats(-1, 4000))
def test_a_ring_is_a_bounded_list(gaps: list[float], most: int, after: float) -> None:
    ring, kept, when = Ring(1.0, float(most)), list[Sample](), 0.0
    for number, gap in enumerate(gaps):
        when += gap
        ring.note(sample(when, number))
        if not kept or when - kept[-1].when >= 0.75:
            kept.append(sample(when, number))
    kept = kept[-(most + 1) :]
    assert ring.since(after) == [one for one in kept if one.when > after]
    assert len(ring) == len(kept)


def test_ten_minutes_are_fine_and_a_day_is_coarse() -> None:
    history = History()
    for second in range(int(1.5 * COARSE_SPAN)):
        history.note(sample(second, 7 * second))
    fine, coarse = history.fine.since(0), history.coarse.since(0)
    assert fine[-1].when - fine[0].when == FINE_SPAN
    assert {b.when - a.when for a, b in pairwise(fine)} == {FINE}
    assert COARSE_SPAN - COARSE <= coarse[-1].when - coarse[0].when <= COARSE_SPAN
    for ring in (fine, coarse):  # every rate is what it was
        assert {(b.served - a.served) / (b.when - a.when) for a, b in pairwise(ring)} == {7.0}


def test_a_day_takes_little_memory() -> None:
    history = History()
    for second in range(int(COARSE_SPAN) + 100):
        history.note(sample(second))
    assert sum(len(ring) for ring in history.rings) <= 601 + 2881
    assert sum(ring._cells.itemsize * len(ring._cells) for ring in history.rings) < 150_000


def test_a_gap_is_a_gap_and_makes_no_rate_wrong() -> None:
    history = History()
    for when, served in ((1, 0), (2, 10), (62, 610), (63, 620)):  # asleep for a minute
        history.note(sample(when, served))
    rates = [(b.served - a.served) / (b.when - a.when) for a, b in pairwise(history.fine.since(0))]
    assert rates == [10, 10, 10]
