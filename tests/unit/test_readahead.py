"""Windows: nothing for random readers, more and more for those who go on in order."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refgenfs.core.content import BLOCK, block_count
from refgenfs.core.readahead import (
    FIRST_WINDOW,
    LARGEST_WINDOW,
    LONGEST_REQUEST,
    SHORTEST_REQUEST,
    STEP,
    TOLERANCE,
    Window,
    largest_window,
)

SIZE = 1 << 30
READ = 128 * 1024


def test_the_first_read_asks_for_little() -> None:
    run = Window(SIZE).advance(0, 4096)
    assert run is not None
    assert (run.first, len(run)) == (1, FIRST_WINDOW)


@given(st.integers(1, 1 << 20))
@example(4096)
@example(READ)
def test_a_reader_in_order_has_four_times_ahead_of_it_what_it_has_read(length: int) -> None:
    window = Window(SIZE)
    horizon = 0
    for number in range(400):
        run = window.advance(number * length, length)
        reached = -(-(number + 1) * length // BLOCK)
        if run is not None:
            assert run.first == max(horizon, reached), "no block twice, and none left out"
            horizon = run.stop
        most = min(LARGEST_WINDOW, max(FIRST_WINDOW, 4 * reached))
        assert most * 3 // 4 <= horizon - reached <= most
    assert LARGEST_WINDOW * BLOCK == 32 << 20


def test_a_small_window_is_several_requests_and_a_large_one_no_more_than_eight() -> None:
    window = Window(SIZE)
    assert window.request == LONGEST_REQUEST
    lengths = []
    for at in range(0, SIZE // 8, READ):
        window.advance(at, READ)
        lengths.append(window.request)
    assert lengths[0] == SHORTEST_REQUEST
    assert lengths[15] <= 4 * 2 * READ * 16 // 8 // BLOCK
    assert lengths == sorted(lengths)
    assert lengths[-1] == LONGEST_REQUEST == LARGEST_WINDOW // 8
    window.advance(SIZE - READ, READ)
    assert window.request == LONGEST_REQUEST, "a random reader's read is one request"


def test_who_is_not_taken_to_go_on_gets_nothing_before_it_does() -> None:
    window = Window(SIZE, eager=False)
    assert window.advance(0, READ) is None
    run = window.advance(READ, READ)
    assert run is not None
    assert (run.first, len(run)) == (4, 4 * 4)


def test_random_readers_get_nothing() -> None:
    window = Window(SIZE)
    offsets = [900_000_000, 10_000_000, 500_000_000, 700_000_000, 100_000_000]
    assert [window.advance(at, 4096) for at in offsets] == [None] * 5


def test_reads_that_are_near_by_chance_are_no_order() -> None:
    rng = random.Random(5)
    window = Window(SIZE)
    window.advance(SIZE - 4096, 4096)
    ahead = [window.advance(rng.randrange(SIZE // 4096) * 4096, 4096) for _ in range(1000)]
    assert sum(len(run) for run in ahead if run) <= 2 * FIRST_WINDOW


def test_reordering_and_small_skips_are_still_in_order() -> None:
    window = Window(SIZE)
    for at in (0, READ, 3 * READ, 2 * READ, 4 * READ, 6 * READ):
        window.advance(at, READ)
    found = [run for at in range(7 * READ, 100 * READ, READ) if (run := window.advance(at, READ))]
    assert len(found[0]) > FIRST_WINDOW


@pytest.mark.parametrize("stride", [BLOCK + 4096, 1 << 20, 3 << 20, TOLERANCE])
def test_who_skips_is_not_taken_to_have_read_what_it_skipped(stride: int) -> None:
    window = Window(SIZE)
    ahead = [window.advance(at, 4096) for at in range(0, SIZE // 4, stride)]
    fetched = {index for run in ahead if run for index in range(run.first, run.stop)}
    read = {at // BLOCK for at in range(0, SIZE // 4, stride)}
    assert len(fetched - read) <= max(2 * FIRST_WINDOW, 4 * len(read))


@given(
    st.lists(
        st.tuples(st.integers(-4, TOLERANCE // BLOCK), st.sampled_from([4096, BLOCK, READ, 1 << 20])),
        min_size=1,
        max_size=200,
    )
)
def test_what_is_fetched_in_vain_is_at_most_four_times_what_was_read(steps: list[tuple[int, int]]) -> None:
    window = Window(SIZE)
    fetched, read = set[int](), set[int]()
    at = jumps = 0
    for number, (skip, length) in enumerate(steps):
        at = max(0, at + skip * BLOCK) if number else 0
        run = window.advance(at, length)
        jumps += run is None
        fetched.update(range(run.first, run.stop) if run else ())
        read.update(range(at // BLOCK, -(-(at + length) // BLOCK)))
        at += length
        assert len(fetched - read) <= 4 * len(read) + FIRST_WINDOW * (1 + jumps)


def test_a_jump_ends_it_and_it_starts_small_again() -> None:
    window = Window(SIZE)
    for at in range(0, 64 * READ, READ):
        window.advance(at, READ)
    assert window.advance(SIZE // 2, READ) is None
    run = window.advance(SIZE // 2 + READ, READ)
    assert run is not None
    assert len(run) == FIRST_WINDOW


def test_a_large_read_at_random_that_comes_in_parts_is_no_order() -> None:
    """The kernel asks for at most 1 MiB at a time."""
    window = Window(SIZE)
    ahead = [window.advance(at + part, 1 << 20) for at in (SIZE // 2, SIZE // 4) for part in (0, 1 << 20)]
    assert sum(len(run) for run in ahead if run) <= 2 * FIRST_WINDOW


def test_what_a_sequential_reader_left_behind_is_told_once() -> None:
    window = Window(SIZE)
    told = []
    for at in range(0, SIZE // 4, READ):
        window.advance(at, READ)
        run = window.leave_behind()
        if run is not None:
            assert run.stop * BLOCK <= at + READ - TOLERANCE
            told.append(run)
    assert told[0].first == 0
    assert all(a.stop == b.first for a, b in pairwise(told))
    assert told[-1].stop * BLOCK >= SIZE // 4 - TOLERANCE - STEP * BLOCK


@pytest.mark.parametrize(
    ("cache", "window"),
    [(4 << 20, FIRST_WINDOW), (128 << 20, (4 << 20) // BLOCK), (1 << 30, LARGEST_WINDOW), (1 << 40, LARGEST_WINDOW)],
)
def test_a_window_is_a_small_part_of_the_cache(cache: int, window: int) -> None:
    assert largest_window(cache) == window


def test_a_random_reader_leaves_nothing_behind() -> None:
    rng = random.Random(6)
    window = Window(SIZE)
    for _ in range(200):
        window.advance(rng.randrange(SIZE // 4096) * 4096, 4096)
        assert window.leave_behind() is None


def test_after_a_jump_only_what_follows_it_is_left_behind() -> None:
    window = Window(SIZE)
    for at in range(SIZE // 2, SIZE // 2 + (64 << 20), READ):
        window.advance(at, READ)
        run = window.leave_behind()
        assert run is None or run.first * BLOCK >= SIZE // 2


@given(
    st.integers(1, 1 << 24),
    st.lists(st.tuples(st.integers(0, 1 << 24), st.integers(1, 1 << 20)), max_size=50),
)
def test_never_beyond_the_file_and_never_empty(size: int, reads: list[tuple[int, int]]) -> None:
    window = Window(size)
    for offset, length in reads:
        run = window.advance(offset, length)
        if run is not None:
            assert 0 <= run.first < run.stop <= block_count(size)
            assert run.first * BLOCK < size
