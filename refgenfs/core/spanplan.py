"""Which stretches of an archive to fetch for which blocks of its members. Pure.

A block of a member is a stretch of the unpacked tar. It lies in one span of the archive's seek index or, where it
straddles a point, in two or more. Spans that are needed are fetched in *runs* of neighbours, one request each;
whatever blocks are complete in them come along, since their bytes are paid for.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from refgenfs.core.content import BLOCK, block_count, block_length
from refgenfs.core.seekindex import SeekIndex
from refgenfs.core.tar import Member

# Packed bytes of a request, where more than one span is needed: some round trips' worth, and several fit into memory.
LONGEST_RUN = 2 << 20
MOST_SPANS = 64  # of a request: each has a window of 32 KiB, however short it is


@dataclass(frozen=True, slots=True)
class Place:
    """A block of a member, and the stretch of the unpacked tar that it is."""

    name: str
    index: int
    start: int
    stop: int


class MemberMap:
    """Where in the unpacked tar the blocks of an archive's files are, by the names that the origin has for them."""

    def __init__(self, index: SeekIndex, canonical: Callable[[str], str]) -> None:
        self.index = index
        self.members: dict[str, Member] = {}
        for member in index.members:
            if member.kind == "file" and member.size:
                self.members[canonical(member.name)] = member  # of two with one name the later counts
        self._names = sorted(self.members, key=lambda name: self.members[name].offset)
        self._starts = [self.members[name].offset for name in self._names]

    def size(self, name: str) -> int:
        """Return a file's size, -1 for what is no file with data."""
        member = self.members.get(name)
        return -1 if member is None else member.size

    def place(self, name: str, index: int) -> Place:
        """Return where a block of a file is."""
        member = self.members[name]
        start = member.offset + index * BLOCK
        return Place(name, index, start, start + block_length(member.size, index))

    def spans_of(self, place: Place) -> range:
        """Return the spans that have a block."""
        return self.index.spans_for(place.start, place.stop)

    def places(self, start: int, stop: int) -> Iterator[Place]:
        """Return all blocks of which at least a part lies between two offsets of the unpacked tar, in order."""
        first = max(0, bisect_right(self._starts, start) - 1)
        for name in self._names[first : bisect_left(self._starts, stop)]:
            member = self.members[name]
            low = max(0, start - member.offset) // BLOCK
            high = min(block_count(member.size), -(-(stop - member.offset) // BLOCK))
            for index in range(low, high):
                yield self.place(name, index)


def plan_runs(index: SeekIndex, spans: Iterable[int], longest: int = LONGEST_RUN) -> list[range]:
    """Return the spans as runs of neighbours, each of at most `longest` packed bytes or of one span, and of few."""
    runs: list[range] = []
    packed = 0
    for number in sorted(set(spans)):
        span = index.span(number)
        size = span.packed_stop - span.packed_start
        few = runs and runs[-1].stop == number and len(runs[-1]) < MOST_SPANS
        if few and packed + size <= longest:
            runs[-1] = range(runs[-1].start, number + 1)
            packed += size
        else:
            runs.append(range(number, number + 1))
            packed = size
    return runs


def packed_size(index: SeekIndex, spans: range) -> int:
    """Return the packed bytes of neighbouring spans."""
    return index.span(spans[-1]).packed_stop - index.span(spans[0]).packed_start
