"""Contents that are the blocks of a htsget ticket, joined.

They go by what was asked for and how long the blocks are, never by URLs: those expire, and hold signatures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from refgenfs.core.htsget.model import Class, Format, Interval, Query, Region


@dataclass(frozen=True, slots=True)
class TicketBlock:
    """One block: its exact length in bytes, and what tells its version from others, "" where nothing does.

    That is the validator of the object that it is of (`core/httprange.py`), or `sha256:` and a digest of its bytes.
    """

    length: int
    validator: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes `start` up to, not including, `stop` of block `index`; of the tail where that is None."""

    index: int | None
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TicketBlocks:
    """A content that is what a query's ticket names, block after block, and `tail` behind them.

    `suffix` makes it another object: the one whose URL is that of the ticket's first block with this behind it.
    """

    query: Query
    blocks: tuple[TicketBlock, ...]
    md5: str = ""
    tail: bytes = b""
    suffix: str = ""

    @property
    def size(self) -> int:
        """The length of the content in bytes."""
        return sum(block.length for block in self.blocks) + len(self.tail)

    @property
    def validator(self) -> str:
        """What tells this version from others: it is made of the lengths in order, the validators, the MD5."""
        text = repr(([(block.length, block.validator) for block in self.blocks], self.md5, self.tail, self.suffix))
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:40]

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield which bytes of which blocks make the bytes `start` up to, not including, `stop`, in order."""
        lengths: list[tuple[int | None, int]] = [(at, block.length) for at, block in enumerate(self.blocks)]
        begin = 0
        for index, length in [*lengths, (None, len(self.tail))]:
            first, last = max(start, begin), min(stop, begin + length)
            if first < last:
                yield Piece(index, first - begin, last - begin)
            begin += length
            if begin >= stop:
                return


def dump_blocks(extent: TicketBlocks) -> Any:
    """Return an extent as a JSON value."""
    query = extent.query
    return {
        "id": query.id,
        "format": query.format,
        "class": query.class_,
        "regions": [[one.reference_name, one.interval.start, one.interval.end] for one in query.regions],
        "blocks": [[block.length, block.validator] for block in extent.blocks],
        "md5": extent.md5,
        "tail": extent.tail.hex(),
        "suffix": extent.suffix,
    }


def load_blocks(fields: Any) -> TicketBlocks:
    """Return the extent that `dump_blocks` made; raise KeyError, TypeError or ValueError for anything else."""
    query = Query(
        str(fields["id"]),
        Format(fields["format"]),
        None if fields["class"] is None else Class(fields["class"]),
        tuple(Region(str(name), Interval(start, end)) for name, start, end in fields["regions"]),
    )
    blocks = tuple(TicketBlock(int(length), str(validator)) for length, validator in fields["blocks"])
    tail = bytes.fromhex(fields["tail"])
    return TicketBlocks(query, blocks, str(fields["md5"]), tail, str(fields["suffix"]))
