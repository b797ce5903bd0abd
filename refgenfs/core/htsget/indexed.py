"""An indexed file: opened by reading its index and its header, and asked which of its bytes answer a query.

Ranges are those that htsget-search gives for the same query, but that slices of one container are one piece of a
CRAM, and that the header and the end come once whatever the number of regions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from refgenfs.core.errors import IntegrityError, InvalidInput, ReferenceNotFound, UnsupportedFormat
from refgenfs.core.htsget.answer import Answer, BlockRange, InlineBlock, merge, same_class
from refgenfs.core.htsget.binning import BinningIndex
from refgenfs.core.htsget.crai import UNMAPPED, CraiIndex
from refgenfs.core.htsget.gzi import Gzi
from refgenfs.core.htsget.model import UNPLACED, Class, Format, Query, Region
from refgenfs.core.htsget.regions import parse_region


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A file whose header and index have been read.

    What it finds has ranges that begin and end with blocks; `edges.settle` has them begin and end with records, too.

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
    header_last: int | None = None  # a virtual offset: where records begin (BGZF)
    tail: bytes = field(default=b"", repr=False)  # an end marker, where the file has none
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
        header = BlockRange(
            0, self.header_end, Class.HEADER, last=None if self.header_end >= self.body_end else self.header_last
        )
        if query.class_ is Class.HEADER:
            return Answer(self.format, (header,))
        if not query.regions:
            return Answer(self.format, (BlockRange(0, self.size),))
        ranges = [header]
        for region in query.regions:
            ranges += self._body(region)
        if self.body_end < self.size:
            return Answer(self.format, same_class(merge([*ranges, BlockRange(self.body_end, self.size, Class.BODY)])))
        tail = [InlineBlock(self.tail, Class.BODY)] if self.tail else []
        return Answer(self.format, same_class([*merge(ranges), *tail]))

    def _body(self, region: Region) -> Iterable[BlockRange]:
        number = self._number(region)
        first, end = region.interval.first, region.interval.end
        if self.index is None:
            raise InvalidInput(
                "the file has no index at its origin, so it can only be asked for whole, or for its header"
            )
        if region.interval.is_empty or number is None:
            return ()
        if isinstance(self.index, CraiIndex):
            return self._containers(self.index, number, first, end)
        if number == UNMAPPED:
            start = self.index.unplaced() or self.header_last or 0
            self._check(start >> 16, start >> 16)
            return (BlockRange(start >> 16, self.body_end, Class.BODY, start),)
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

    def _containers(self, index: CraiIndex, number: int, first: int, end: int | None) -> Iterable[BlockRange]:
        for start in index.containers(number, first, end):
            following = index.container_after(start)
            stop = self.body_end if following is None else following
            self._check(start, stop)
            yield BlockRange(start, stop, Class.BODY)

    def _blocks(self, index: BinningIndex, number: int, first: int, end: int | None) -> Iterable[BlockRange]:
        for chunk in index.chunks(number, first, end):
            start, last = chunk[0] >> 16, chunk[1] >> 16
            self._check(start, last)
            following = self.gzi.boundary_after(last) if self.gzi is not None else index.boundary_after(number, last)
            if following is None or following >= self.body_end:
                yield BlockRange(start, self.body_end, Class.BODY, chunk[0])
            else:
                yield BlockRange(start, following, Class.BODY, *chunk)

    def _check(self, start: int, stop: int) -> None:
        if not start <= stop <= self.size:
            raise IntegrityError(
                f"the index is not this file's: it names bytes {start} to {stop}, of a file of {self.size}"
            )
