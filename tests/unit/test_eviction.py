"""The order of eviction, case by case."""

from __future__ import annotations

import sys

import pytest

from refgenfs.core.content import BLOCK
from refgenfs.core.eviction import LARGEST_SEGMENT, SEGMENTS, WHOLE, Segment, SegmentIndex, segment_size


def names(segments: list[Segment]) -> list[tuple[str, int, int]]:
    return [(segment.content, segment.index, segment.nbytes) for segment in segments]


@pytest.mark.parametrize("quota", [4 << 20, 8 << 30, (8 << 30) + 1, 200 * 10**9, 10**12, 4 << 40, 10**15])
def test_a_segment_is_a_power_of_two_of_blocks_and_a_full_cache_has_few(quota: int) -> None:
    size = segment_size(quota)
    assert size % BLOCK == 0
    assert (size // BLOCK).bit_count() == 1
    assert BLOCK <= size <= LARGEST_SEGMENT
    assert size * SEGMENTS >= quota or size == LARGEST_SEGMENT
    assert size == BLOCK or size // 2 * SEGMENTS < quota


def test_the_least_recently_touched_goes_first() -> None:
    index = SegmentIndex()
    for number in range(3):
        index.grow("a", number, 10)
    index.touch("a", 0)
    assert names(index.evict_for(15)) == [("a", 1, 10), ("a", 2, 10)]
    assert index.total == 10
    assert len(index) == 1


def test_what_cannot_be_freed_takes_nothing_away() -> None:
    index = SegmentIndex()
    index.grow("a", 0, 10)
    index.grow("b", 0, 10)
    mark = index.stamp
    index.grow("c", 0, 10)
    assert index.evict_for(31) == []
    assert index.evict_for(21, older_than=mark) == []
    assert index.total == 30
    assert names(index.evict_for(20, older_than=mark)) == [("a", 0, 10), ("b", 0, 10)]


def test_pinned_contents_stay_until_they_are_unpinned() -> None:
    index = SegmentIndex()
    index.grow("a", 0, 5)
    index.pin("a")
    index.grow("a", 0, 5)
    index.grow("b", 0, 10)
    assert index.evictable == 10
    assert names(index.evict_for(10)) == [("b", 0, 10)]
    assert index.evict_for(1) == []
    index.unpin("a")
    assert names(index.evict_for(1)) == [("a", 0, 10)]
    assert (index.total, index.pinned) == (0, 0)


def test_a_whole_is_split_without_growing_younger() -> None:
    index = SegmentIndex()
    index.grow("a", WHOLE, 30)
    index.grow("b", 0, 10)
    index.split("a", {0: 10, 2: 20})
    assert index.segments("a") == {0: 10, 2: 20}
    assert {segment.content for segment in index.evict_for(30)} == {"a"}


def test_a_segment_is_put_back_as_old_as_it_was() -> None:
    index = SegmentIndex()
    index.grow("a", 0, 10)
    index.grow("b", 0, 10)
    (segment,) = index.evict_for(1)
    index.restore(segment)
    index.shrink("a", 0, 4)
    assert names(index.evict_for(1)) == [("a", 0, 6)]


def test_shrinking_more_than_there_is_is_refused() -> None:
    index = SegmentIndex()
    index.grow("a", 0, 10)
    with pytest.raises(ValueError, match="fewer"):
        index.shrink("a", 0, 11)
    index.touch("b", 7)
    index.touch("a", 7)
    assert index.total == 10


def test_slots_of_segments_that_come_and_go_are_used_again() -> None:
    index = SegmentIndex()
    for number in range(20_000):
        index.grow("a", number % 7, 10)
        index.shrink("a", number % 7, 10)
    assert len(index) == 0
    assert len(index._contents) < 5_000


def test_order_holds_when_everything_was_touched_since() -> None:
    index = SegmentIndex()
    for number in range(5_000):
        index.grow("a", number, 1)
    order = [number * 7 % 5_000 for number in range(5_000)]
    for number in order:
        index.touch("a", number)
    assert [segment.index for segment in index.evict_for(5_000)] == order


def test_a_full_cache_of_large_contents_has_a_small_index() -> None:
    index = SegmentIndex()
    for number in range(SEGMENTS):
        index.grow(f"content-{number // 1024}", number % 1024, 1 << 20)
    parts = [index._sizes, index._stamps, index._indexes, index._contents, index._heap, index._queued]
    size = sum(sys.getsizeof(part) for part in parts) + sum(sys.getsizeof(entry) for entry in index._heap)
    assert size < 10_000_000


def test_a_segment_is_not_put_back_beside_itself() -> None:
    """Two segments of one content were given; its map was read for the first, which counts the second again."""
    index = SegmentIndex()
    for number in range(3):
        index.grow("a", number, 10)
    first, second = index.evict_for(20)
    index.restore(first)
    index.split("a", {0: 10, 1: 10, 2: 10})
    index.restore(second)
    assert index.total == 30
    assert names(index.evict_for(30)) == [("a", 0, 10), ("a", 1, 10), ("a", 2, 10)]
    assert index.total == len(index) == 0
