"""Which stretches of an archive are fetched for which blocks."""

from __future__ import annotations

import pytest

from refgenfs.core.content import BLOCK
from refgenfs.core.seekindex import SeekIndex
from refgenfs.core.spanplan import MemberMap, packed_size, plan_runs
from tests.support.scripted import Entry, entry, pack
from tests.support.seekindexes import build_index

SPACING = 150_000
PACKED = pack(
    [entry("a", 5 * BLOCK + 7), Entry("empty"), entry("b", 9), entry("d/c", 8 * BLOCK), Entry("l", link="a")]
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[SeekIndex, bytes]:
    index, tar = build_index([PACKED.body], tmp_path_factory.mktemp("made"), SPACING)
    return SeekIndex.parse(index), tar


def test_a_place_is_where_the_block_is_in_the_tar(made: tuple[SeekIndex, bytes]) -> None:
    index, tar = made
    found = MemberMap(index, lambda name: name)
    assert set(found.members) == {"a", "b", "d/c"}
    for name, data in PACKED.data.items():
        for at in range(0, len(data), BLOCK):
            place = found.place(name, at // BLOCK)
            assert tar[place.start : place.stop] == data[at : at + BLOCK]
    assert found.size("empty") == found.size("nowhere") == -1


def test_the_blocks_of_a_stretch_are_all_that_touch_it(made: tuple[SeekIndex, bytes]) -> None:
    index, _ = made
    found = MemberMap(index, lambda name: name)
    every = [
        found.place(name, number) for name, data in PACKED.data.items() for number in range(-(-len(data) // BLOCK))
    ]
    for start in range(0, index.unpacked_size, 70_001):
        for stop in (start + 1, start + 513, start + 200_000, index.unpacked_size):
            touched = {place for place in every if place.start < stop and place.stop > start}
            assert set(found.places(start, stop)) == touched


def test_names_are_the_origins(made: tuple[SeekIndex, bytes]) -> None:
    found = MemberMap(made[0], lambda name: name.replace("a", "digest"))
    assert set(found.members) == {"digest", "b", "d/c"}


def test_runs_are_neighbours_and_not_too_long(made: tuple[SeekIndex, bytes]) -> None:
    index, _ = made
    assert len(index) >= 5
    one = packed_size(index, range(1))
    assert plan_runs(index, []) == []
    assert plan_runs(index, [3, 0, 1, 1], longest=1 << 30) == [range(2), range(3, 4)]
    assert plan_runs(index, [0, 1, 2], longest=one) == [range(1), range(1, 2), range(2, 3)]
    two = packed_size(index, range(2)) + 1
    assert plan_runs(index, range(4), longest=two)[0] == range(2)
