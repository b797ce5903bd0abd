"""An indexed file: opened by reading its index and its header, and asked which of its bytes answer a query.

Ranges are those that htsget-search gives for the same query, but that slices of one container are one piece of a
CRAM, and that the header and the end come once whatever the number of regions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from refgenfs.core.errors import IntegrityError, InvalidInput, ReferenceNotFound, UnsupportedFormat
from refgenfs.core.htsget.binning import BinningIndex
from refgenfs.core.htsget.crai import UNMAPPED, CraiIndex
from refgenfs.core.htsget.gzi import Gzi
from refgenfs.core.htsget.model import UNPLACED, BlockUrl, Class, Format, Query, Region, Ticket
from refgenfs.core.htsget.regions import parse_region


@dataclass(frozen=True, slots=True)
class BlockRange:
    """The bytes `start` up to, not including, `stop` of a file; a class where all of the answer's have one."""

    start: int
    stop: int
    class_: Class | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The ranges of a file that answer a query, in order; `tail` is the end marker where the file has none."""

    format: Format
    ranges: tuple[BlockRange, ...]
    tail: bytes = field(default=b"", repr=False)

    def ticket(self, url: str) -> Ticket:
        """Return the ticket, for a file that is at `url`."""
        blocks = [BlockUrl.of_range(url, one.start, one.stop, one.class_) for one in self.ranges]
        if self.tail:
            classed = all(one.class_ is not None for one in self.ranges)
            blocks.append(BlockUrl.inline(self.tail, Class.BODY if classed else None))
        return Ticket(self.format, tuple(blocks))


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A file whose header and index have been read.

    `references` are all names that it knows, with their numbers in the index (None: the index has nothing of them),
    `lengths` those lengths that its header tells. The bytes from `body_end` on are its end marker.
    """

    format: Format
    size: int
    header_end: int
    body_end: int
    references: Mapping[str, int | None]
    lengths: Mapping[str, int]
    index: BinningIndex | CraiIndex | None = None
    gzi: Gzi | None = None
    tail: bytes = field(default=b"", repr=False)
    version: tuple[int, int] = (0, 0)  # of CRAM

    def region(self, text: str) -> Region:
        """Parse a region as samtools writes it; raises as `parse_region` does."""
        return parse_region(text, self.references)

    def search(self, query: Query) -> Answer:
        """Return the ranges that answer a query: all of the file, its header, or the header, regions and the end.

        Raises UnsupportedFormat, ReferenceNotFound or InvalidInput for a query that it can't answer, and
        IntegrityError for an index that is not this file's.
        """
        if query.format not in {None, self.format}:
            raise UnsupportedFormat(f"the file is {self.format}, not {query.format}")
        if query.class_ is Class.HEADER:
            return Answer(self.format, (BlockRange(0, self.header_end, Class.HEADER),))
        if not query.regions:
            return Answer(self.format, (BlockRange(0, self.size),))
        ranges = [BlockRange(0, self.header_end, Class.HEADER)]
        for region in query.regions:
            ranges += (BlockRange(*pair, Class.BODY) for pair in self._body(region))
        ranges.append(BlockRange(self.body_end, self.size, Class.BODY))
        return Answer(self.format, merge(ranges), self.tail)

    def _body(self, region: Region) -> Iterable[tuple[int, int]]:
        number = self._number(region)
        first, end = region.interval.first, region.interval.end
        if self.index is None:
            raise InvalidInput("the file has no index, so it can only be asked for whole, or for its header")
        if region.interval.is_empty or number is None:
            return ()
        if isinstance(self.index, CraiIndex):
            return self._containers(self.index, number, first, end)
        if number == UNMAPPED:
            start = max(self.index.unplaced() >> 16, self.header_end)
            self._check(start, start)
            return ((start, self.body_end),)
        return self._blocks(self.index, number, first, end)

    def _number(self, region: Region) -> int | None:
        if region.reference_name == UNPLACED:
            if not self.format.is_reads:
                raise InvalidInput(f"{UNPLACED} means reads, and a {self.format} has none")
            return UNMAPPED
        try:
            return self.references[region.reference_name]
        except KeyError:
            raise ReferenceNotFound(f"the file has no reference {region.reference_name!r}") from None

    def _containers(self, index: CraiIndex, number: int, first: int, end: int | None) -> Iterable[tuple[int, int]]:
        for start in index.containers(number, first, end):
            following = index.container_after(start)
            stop = self.body_end if following is None else following
            self._check(start, stop)
            yield start, stop

    def _blocks(self, index: BinningIndex, number: int, first: int, end: int | None) -> Iterable[tuple[int, int]]:
        reached = -1
        for chunk in index.chunks(number, first, end):
            start, last = chunk[0] >> 16, chunk[1] >> 16
            self._check(start, last)
            if start < reached and last < reached:  # within what the chunk before it brought
                continue
            following = self.gzi.boundary_after(last) if self.gzi else index.boundary_after(number, last)
            reached = self.body_end if following is None else min(following, self.body_end)
            yield start, reached

    def _check(self, start: int, stop: int) -> None:
        if not start <= stop <= self.size:
            raise IntegrityError(
                f"the index is not this file's: it names bytes {start} to {stop}, of a file of {self.size}"
            )


def merge(ranges: Iterable[BlockRange]) -> tuple[BlockRange, ...]:
    """Return the ranges in order, those that touch or overlap as one.

    What is joined of two classes has none, and if one has none, all lose theirs (hts-specs: all or none).
    """
    merged: list[BlockRange] = []
    for one in sorted((one for one in ranges if one.stop > one.start), key=lambda one: (one.start, one.stop)):
        if merged and one.start <= merged[-1].stop:
            last = merged[-1]
            class_ = last.class_ if last.class_ is one.class_ else None
            merged[-1] = BlockRange(last.start, max(last.stop, one.stop), class_)
        else:
            merged.append(one)
    if any(one.class_ is None for one in merged):
        return tuple(BlockRange(one.start, one.stop) for one in merged)
    return tuple(merged)
