"""What a search finds: ranges of a file, and blocks that are in the answer itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from refgenfs.core.htsget.model import BlockUrl, Class, Format, Ticket

MAX_RANGES = 256  # of a ticket; more, and the smallest gaps between them are given along


@dataclass(frozen=True, slots=True)
class BlockRange:
    """The bytes `start` up to, not including, `stop` of a file; a class where all of the answer's have one.

    `first` and `last` are virtual offsets of BGZF: of the first record that is wanted, and behind the last one. None:
    it begins (or ends) where records do.
    """

    start: int
    stop: int
    class_: Class | None = None
    first: int | None = field(default=None, compare=False)
    last: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class InlineBlock:
    """Bytes that are part of the answer and not of the file, such as a block without the records before its first."""

    data: bytes = field(repr=False)
    class_: Class | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Blocks that make a file of `format` when they are joined in order. They have a class all or none."""

    format: Format
    blocks: tuple[BlockRange | InlineBlock, ...]

    @property
    def ranges(self) -> tuple[BlockRange, ...]:
        """The blocks that are ranges of the file."""
        return tuple(block for block in self.blocks if isinstance(block, BlockRange))

    def ticket(self, url: str) -> Ticket:
        """Return the ticket, for a file that is at `url`."""
        return Ticket(
            self.format,
            tuple(
                BlockUrl.of_range(url, block.start, block.stop, block.class_)
                if isinstance(block, BlockRange)
                else BlockUrl.inline(block.data, block.class_)
                for block in self.blocks
            ),
        )


def merge(ranges: Iterable[BlockRange], most: int = MAX_RANGES) -> list[BlockRange]:
    """Return the ranges in order, those that touch or overlap as one, and the nearest ones until there are `most`.

    What is joined of two classes has none.
    """
    merged = _join((one for one in ranges if one.stop > one.start), 0)
    if len(merged) > most:
        gaps = sorted(right.start - left.stop for left, right in pairwise(merged))
        merged = _join(merged, gaps[len(merged) - most - 1])
    return merged


def _join(ranges: Iterable[BlockRange], gap: int) -> list[BlockRange]:
    joined: list[BlockRange] = []
    for one in sorted(ranges, key=lambda one: (one.start, one.stop)):
        if joined and one.start <= joined[-1].stop + gap:
            joined[-1] = _union(joined[-1], one)
        else:
            joined.append(one)
    return joined


def _union(left: BlockRange, right: BlockRange) -> BlockRange:
    class_ = left.class_ if left.class_ is right.class_ else None
    first, last = left.first, left.last
    if right.start == left.start:
        first = None if first is None or right.first is None else min(first, right.first)
    if right.stop > left.stop:
        last = right.last
    elif right.stop == left.stop:
        last = None if last is None or right.last is None else max(last, right.last)
    return BlockRange(left.start, max(left.stop, right.stop), class_, first, last)


def same_class(blocks: Iterable[BlockRange | InlineBlock]) -> tuple[BlockRange | InlineBlock, ...]:
    """Return the blocks, all without a class if one of them has none (hts-specs: all or none)."""
    kept = tuple(blocks)
    if all(block.class_ is not None for block in kept):
        return kept
    return tuple(
        BlockRange(block.start, block.stop, None, block.first, block.last)
        if isinstance(block, BlockRange)
        else InlineBlock(block.data)
        for block in kept
    )
