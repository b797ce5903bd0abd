"""Runs of blocks: what is one request.

Promises:
- every block is in one run, neighbours together, none longer than was said;
- a row of neighbours is cut evenly, into as few as can be.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.content import Run
from refgenfs.reader.ranges import split_runs


@pytest.mark.parametrize(
    ("indices", "longest", "runs"),
    [
        ([], 3, []),
        ([5], 3, [Run(5, 6)]),
        ([0, 1, 2], 3, [Run(0, 3)]),
        ([0, 2, 3, 9], 3, [Run(0, 1), Run(2, 4), Run(9, 10)]),
        (range(7), 3, [Run(0, 2), Run(2, 4), Run(4, 7)]),
        ([1, 2, 3, 4, 6], 3, [Run(1, 3), Run(3, 5), Run(6, 7)]),
        (range(100, 152), 25, [Run(100, 117), Run(117, 134), Run(134, 152)]),
    ],
)
def test_runs_are_neighbours_cut_evenly(indices: list[int], longest: int, runs: list[Run]) -> None:
    assert split_runs(indices, longest) == runs


@given(st.sets(st.integers(0, 300)), st.integers(1, 80))
def test_every_block_is_in_one_run_and_none_is_much_shorter_than_another_of_its_row(
    blocks: set[int], longest: int
) -> None:
    runs = split_runs(sorted(blocks), longest)
    assert [index for run in runs for index in range(run.first, run.stop)] == sorted(blocks)
    rows: list[list[int]] = []
    for before, run in zip([Run(-2, -2), *runs], runs, strict=False):
        if before.stop == run.first:
            rows[-1].append(len(run))
        else:
            rows.append([len(run)])
    for row in rows:
        assert max(row) <= longest
        assert max(row) - min(row) <= 1
        assert len(row) == -(-sum(row) // longest)
