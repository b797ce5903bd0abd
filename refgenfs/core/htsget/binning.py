"""BAI, CSI and TBI indices: which pieces of a BGZF file have the records of an interval.

An index is kept as its bytes, and only the bins of the references that are asked for become values: the layout is
walked once, which finds where each reference's part begins and that the counts fit the file. All numbers in it are
multiples of 32 bits apart, so it is one array of words (SAMv1, 5.2; CSIv1; tabix).

Virtual offsets are those of BGZF: the offset of a block in the file, 16 bits to the left, and one inside the block.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from refgenfs.core.errors import IntegrityError
from refgenfs.core.htsget.bgzf import inflate

MAX_INDEX = 128 << 20  # inflated bytes: a whole genome's BAI is 10 MB, and a CSI of a plant's a few times that
_MAX_SHIFT, _MAX_DEPTH = 32, 10  # the number of the last bin has 32 bits

_TABIX = struct.Struct("<7i")  # format, sequence, begin and end columns, meta character, skip, bytes of the names

_BEFORE_SORTING = 4  # lookups in what is not sorted, which takes as long as some ten of them

Chunk = tuple[int, int]  # virtual offsets: of its first record, and behind its last


@dataclass(frozen=True, slots=True)
class Layout:
    """The bins' sizes: the smallest have `2**min_shift` positions, each of `depth` levels above 8 times as many.

    `linear` says whether each reference has a linear index behind its bins (BAI, TBI), or each bin its floor (CSI).
    """

    min_shift: int
    depth: int
    linear: bool


_BAI = Layout(min_shift=14, depth=5, linear=True)


@dataclass(slots=True)
class ReferenceIndex:
    """What the index has of one reference.

    `bins` are where each bin begins, in the index's words, `metadata` is the one that is none: where all records are,
    and how many. `linear` is the virtual offset of the first record that overlaps each window of 16 KiB (BAI, TBI).
    """

    bins: dict[int, int] = field(default_factory=dict)
    all_bins: slice = field(default_factory=lambda: slice(0, 0))
    metadata: int | None = None
    linear: array[int] = field(default_factory=lambda: array("Q"))
    lookups: int = 0
    offsets: array[int] | None = None
    boundaries: list[int] | None = None


class BinningIndex:
    """A parsed index. References are by number; those behind the last have no records."""

    def __init__(self, data: bytes, at: int, layout: Layout, names: Sequence[str] | None) -> None:
        """Walk an index whose references begin at `at`, with their count; IndexError where they go past its end."""
        self.names = names  # of the references, where the index has them
        self._shift, self._depth, self._has_linear = layout.min_shift, layout.depth, layout.linear
        self._metadata = ((1 << (3 * (self._depth + 1))) - 1) // 7 + 1  # a bin that is none (SAMv1, 5.2)
        self._head = 2 if layout.linear else 4  # words before a bin's chunks
        self._words = _words(data, at)
        self._windows: list[int] = []  # of the linear index of each reference
        self._starts = self._walk()
        self._known: dict[int, ReferenceIndex] = {}
        self._extents: list[tuple[int, int, int]] | None = None

    @classmethod
    def parse(cls, data: bytes) -> BinningIndex:
        """Parse a BAI, CSI or TBI file, inflated or not; raise IntegrityError."""
        if data[:2] == b"\x1f\x8b":
            data = inflate(data, MAX_INDEX, "index")
        if len(data) > MAX_INDEX:
            raise IntegrityError(f"the index holds more than {MAX_INDEX} bytes")
        magic = data[:4]
        try:
            if magic == b"BAI\x01":
                return cls(data, 4, _BAI, None)
            if magic == b"TBI\x01":
                names, end = _tabix_names(data, 8)
                data = data[4:8] + data[end:]
                return cls(data, 0, _BAI, names)
            if magic == b"CSI\x01":
                return cls._parse_csi(data)
        except (struct.error, IndexError) as exc:
            raise IntegrityError("the index is cut short, or a count in it is wrong") from exc
        raise IntegrityError("the index is no BAI, CSI or TBI")

    @classmethod
    def _parse_csi(cls, data: bytes) -> BinningIndex:
        min_shift, depth, length = struct.unpack_from("<3i", data, 4)
        if not (0 <= min_shift <= _MAX_SHIFT and 0 <= depth <= _MAX_DEPTH and 0 <= length <= len(data) - 16):
            raise IntegrityError(f"the index has impossible sizes: {min_shift}, {depth}, {length}")
        names = None
        if length >= _TABIX.size:  # else it is that of a BAM or a BCF, which have the names themselves
            with suppress(IntegrityError):
                names, _ = _tabix_names(data[16 : 16 + length], 0)
        return cls(data, 16 + length, Layout(min_shift, depth, linear=False), names)

    def _walk(self) -> list[int]:
        """Return where each reference begins, in words; raise IndexError or IntegrityError for what does not fit."""
        words, head, starts = self._words, self._head, []
        at, count_at = 1, head - 1
        for _ in range(words[0]):
            starts.append(at)
            bins = words[at]
            at += 1
            for _ in range(bins):
                at += head + 4 * words[at + count_at]
            if self._has_linear:
                self._windows.append(words[at])
                at += 1 + 2 * words[at]
        starts.append(at)
        if at > len(words):
            raise IntegrityError("the index is cut short, or a count in it is wrong")
        return starts

    # -- one reference ------------------------------------------------------------------------------------

    def _reference(self, number: int) -> ReferenceIndex:
        known = self._known.get(number)
        if known is None:
            known = self._known[number] = self._parse_reference(number)
        return known

    def _parse_reference(self, number: int) -> ReferenceIndex:
        found = ReferenceIndex()
        if number >= len(self._starts) - 1:
            return found
        words, head, bins = self._words, self._head, found.bins
        at, count_at = self._starts[number], head - 1
        count, at = words[at], at + 1
        for _ in range(count):
            bins[words[at]] = at
            at += head + 4 * words[at + count_at]
        if len(bins) < count:
            raise IntegrityError(f"the index has a bin of reference {number} twice")
        if max(bins, default=0) > self._metadata:
            raise IntegrityError(f"the index has a bin {max(bins)}, and {self._metadata} is the last there can be")
        found.all_bins = slice(self._starts[number] + 1, at)
        found.metadata = bins.pop(self._metadata, None)
        if self._has_linear:
            found.linear = self._offsets(slice(at + 1, at + 1 + 2 * words[at]))
        return found

    def _chunks_at(self, at: int) -> slice:
        """Return where the chunks are of the bin that begins at `at`."""
        start = at + self._head
        return slice(start, start + 4 * self._words[start - 1])

    def _offsets(self, *where: slice) -> array[int]:
        """Return the 64 bit numbers in these words."""
        numbers = array("Q", b"".join(self._words[one] for one in where))
        if sys.byteorder == "big":  # the two words of each are in the other order
            return array("Q", ((one & 0xFFFFFFFF) << 32 | one >> 32 for one in numbers))
        return numbers

    # -- what a search asks -------------------------------------------------------------------------------

    def chunks(self, number: int, first: int, end: int | None) -> list[Chunk]:
        """Return the chunks that may have records in the positions `first` up to, not including, `end`, ascending.

        Chunks that share or touch a block are one. Raises IntegrityError for one that ends before it begins.
        """
        reach = 1 << (self._shift + 3 * self._depth)
        end = reach if end is None else min(end, reach)
        if first >= end:
            return []
        found = self._reference(number)
        numbers = self._offsets(*(self._chunks_at(found.bins[bin_]) for bin_ in self._bins(found.bins, first, end)))
        floor = self._floor(found, first)
        merged: list[Chunk] = []
        for start, stop in sorted(zip(numbers[::2], numbers[1::2], strict=True)):
            if stop < start:
                raise IntegrityError(f"the index has a chunk that ends before it begins, of reference {number}")
            if stop <= floor:
                continue
            if merged and start >> 16 <= merged[-1][1] >> 16:
                if stop > merged[-1][1]:
                    merged[-1] = merged[-1][0], stop
            else:
                merged.append((max(start, floor), stop))
        return merged

    def _bins(self, have: Collection[int], first: int, end: int) -> Iterator[int]:
        """Return the bins there are that overlap an interval (CSIv1, reg2bins)."""
        shift, base = self._shift + 3 * self._depth, 0
        for level in range(self._depth + 1):
            low, high = base + (first >> shift), base + ((end - 1) >> shift)
            if high - low < len(have):
                yield from (bin_ for bin_ in range(low, high + 1) if bin_ in have)
            else:
                yield from (bin_ for bin_ in have if low <= bin_ <= high)
            base += 1 << (3 * level)
            shift -= 3

    def _floor(self, found: ReferenceIndex, first: int) -> int:
        """Return a virtual offset before which no record overlaps what begins at `first`."""
        if self._has_linear:
            if not found.linear:
                return 0
            at = min(first >> self._shift, len(found.linear) - 1)
            while at and not found.linear[at]:  # an index of old has no offset where no record begins
                at -= 1
            return found.linear[at]
        # as htslib does: the smallest bin there is at or before that position; records are sorted by their beginning
        bin_ = ((1 << (3 * self._depth)) - 1) // 7 + (first >> self._shift)
        while bin_ and bin_ not in found.bins:
            bin_ = bin_ - 1 if (bin_ - 1) & 7 else (bin_ - 1) >> 3
        place = found.bins.get(bin_)
        return 0 if place is None else self._words[place + 1] | self._words[place + 2] << 32

    def boundary_after(self, number: int, offset: int) -> int | None:
        """Return the smallest offset of a block that the index names and that is behind `offset`; None: it has none.

        Records of one reference are next to each other, so only behind its last block those of others count.
        """
        own = self._boundary_within(number, offset)
        if own is not None:
            return own
        extents = self._all_extents()
        behind = bisect_right(extents, (offset, 1 << 64))
        found = [first for first, _, _ in extents[behind : behind + 1]]
        for _, last, other in extents[:behind]:
            if last > offset:
                found += filter(None, (self._boundary_within(other, offset),))
        return min(found, default=None)

    def _boundary_within(self, number: int, offset: int) -> int | None:
        found = self._reference(number)
        if found.boundaries is None:
            found.lookups += 1
            if found.lookups <= _BEFORE_SORTING:
                behind = min(filter(((offset + 1) << 16).__le__, self._all_offsets(number)), default=None)
                return None if behind is None else behind >> 16
            found.boundaries = sorted({one >> 16 for one in self._all_offsets(number)})
        at = bisect_right(found.boundaries, offset)
        return found.boundaries[at] if at < len(found.boundaries) else None

    def _all_offsets(self, number: int) -> array[int]:
        """Return all virtual offsets that the index has of a reference, and some zeros."""
        found = self._reference(number)
        if found.offsets is None:
            # What is before a bin's chunks is one or two numbers of 64 bits, so all bins are an array of these.
            numbers, base, head = self._offsets(found.all_bins), found.all_bins.start, self._head // 2
            for at in found.bins.values():
                numbers[(at - base) // 2] = numbers[(at - base) // 2 + head - 1] = 0
            if found.metadata is not None:
                at = (found.metadata - base) // 2
                stop = (self._chunks_at(found.metadata).stop - base) // 2
                for other in (*range(at, at + head), *range(at + head + 2, stop)):  # counts of records
                    numbers[other] = 0
            found.offsets = numbers
        return found.offsets

    def _all_extents(self) -> list[tuple[int, int, int]]:
        """Return where the blocks of each reference that has some begin, the first and the last, and its number."""
        if self._extents is None:
            extents = (self._extent(number) for number in range(len(self._starts) - 1))
            self._extents = sorted((*extent, number) for number, extent in enumerate(extents) if extent is not None)
        return self._extents

    def _extent(self, number: int) -> tuple[int, int] | None:
        """Return where the first and the last block of a reference begin, by its metadata bin if there is one."""
        words, head, metadata = self._words, self._head, self._metadata
        at, count_at = self._starts[number], head - 1
        count, at = words[at], at + 1
        for _ in range(count):
            if words[at] == metadata:
                span = self._offsets(self._chunks_at(at))[:2]
                if span:
                    return span[0] >> 16, span[1] >> 16
            at += head + 4 * words[at + count_at]
        numbers = self._offsets(*map(self._chunks_at, self._reference(number).bins.values()))
        return (min(numbers) >> 16, max(numbers) >> 16) if numbers else None

    def unplaced(self) -> int:
        """Return a virtual offset at or before the first record that is placed nowhere; 0 where all may be.

        That is where the last window's first record is (BAI), or the end of the last chunk (CSI).
        """
        if not self._has_linear:
            return max((last << 16 for _, last, _ in self._all_extents()), default=0)
        stops = [stop for stop, windows in zip(self._starts[1:], self._windows, strict=True) if windows]
        return max((self._offsets(slice(stop - 2, stop))[0] for stop in stops), default=0)


def _words(data: bytes, at: int) -> memoryview[int]:
    """Return the 32 bit numbers from `at` on; a last piece of less than one is left out."""
    count = (len(data) - at) // 4
    if count < 1:
        raise IntegrityError("the index is cut short")
    view = memoryview(data)[at : at + 4 * count]
    if sys.byteorder == "little":
        return view.cast("I")
    numbers = array("I", view)
    numbers.byteswap()
    return memoryview(numbers)


def _tabix_names(data: bytes, at: int) -> tuple[tuple[str, ...], int]:
    """Return the names of a tabix header that begins at `at`, and where it ends."""
    *_, length = _TABIX.unpack_from(data, at)
    end = at + _TABIX.size + length
    if length < 0 or end > len(data):
        raise IntegrityError("the index is cut short, or the length of its names is wrong")
    names = data[at + _TABIX.size : end].split(b"\0")
    return tuple(name.decode(errors="surrogateescape") for name in names[:-1]), end
