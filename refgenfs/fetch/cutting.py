"""The data of an archive's members, cut into blocks and written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from isal import isal_zlib

from refgenfs.core.content import BLOCK, block_length
from refgenfs.core.errors import CacheError
from refgenfs.core.tar import Member


class BlockWriter(Protocol):
    """Where blocks of one content are written to. Called on the worker thread."""

    def write(self, index: int, data: memoryview) -> object:
        """Write whole consecutive blocks from block `index` on; raise CacheError when the disk refuses."""
        ...


@dataclass(frozen=True, slots=True)
class BlockOffer:
    """A block that is here: block `index` of the member `name`, `length` bytes."""

    name: str
    index: int
    length: int


@dataclass(frozen=True, slots=True)
class BlockArrival:
    """A block's bytes, which stay valid. `crc` is its CRC-32, or None where it was not stored."""

    name: str
    index: int
    data: memoryview
    crc: int | None


@dataclass(frozen=True, slots=True)
class Blocks:
    """Whole consecutive blocks of one member, from block `index` on."""

    name: str
    index: int
    data: memoryview

    @property
    def count(self) -> int:
        """How many blocks these are."""
        return -(-len(self.data) // BLOCK)

    def __iter__(self) -> Iterator[tuple[int, memoryview]]:
        """Give each block's index and bytes."""
        for at in range(self.count):
            yield self.index + at, self.data[at * BLOCK : (at + 1) * BLOCK]

    def part(self, first: int, stop: int) -> Blocks:
        """Return those from the `first` of these to before the `stop`-th."""
        return Blocks(self.name, self.index + first, self.data[first * BLOCK : stop * BLOCK])

    def split(self, count: int) -> tuple[Blocks, Blocks]:
        """Return the first `count`, and the rest."""
        return self.part(0, count), self.part(count, self.count)


class Cutter:
    """Cuts the data of members into blocks. Copies only blocks that come in several pieces."""

    def __init__(self) -> None:
        self._name = ""
        self._size = 0
        self._index = 0  # of the block that comes next
        self._begun: list[memoryview] = []  # its first bytes
        self._held = 0

    def begin(self, member: Member) -> None:
        """Go on to a member."""
        self._name, self._size, self._index = member.name, member.size, 0
        self._begun, self._held = [], 0

    def cut(self, data: memoryview) -> Iterator[Blocks]:
        """Take the member's next bytes and give the blocks that are complete."""
        if self._begun:
            wanted = block_length(self._size, self._index) - self._held
            self._begin_block(data[:wanted])
            if len(data) < wanted:
                return
            yield self._blocks(memoryview(b"".join(self._begun)))
            self._begun, self._held = [], 0
            data = data[wanted:]
        at_end = len(data) == self._size - self._index * BLOCK
        whole = len(data) if at_end else len(data) // BLOCK * BLOCK
        if whole:
            yield self._blocks(data[:whole])
        if data[whole:]:
            self._begin_block(data[whole:])

    def _begin_block(self, data: memoryview) -> None:
        self._begun.append(data)
        self._held += len(data)

    def _blocks(self, data: memoryview) -> Blocks:
        blocks = Blocks(self._name, self._index, data)
        self._index += blocks.count
        return blocks


def store(blocks: Blocks, writers: Sequence[BlockWriter | None]) -> Iterator[BlockArrival]:
    """Write the blocks that have a writer, neighbours in one piece, and give all of them."""
    numbered = enumerate(writers)
    for _, group in groupby(numbered, key=lambda pair: id(pair[1])):
        places = list(group)
        part = blocks.part(places[0][0], places[-1][0] + 1)
        stored = _write(part, places[0][1])
        for index, data in part:
            yield BlockArrival(blocks.name, index, data, isal_zlib.crc32(data) if stored else None)


def _write(blocks: Blocks, writer: BlockWriter | None) -> bool:
    if writer is None:
        return False
    try:
        writer.write(blocks.index, blocks.data)
    except CacheError:
        return False  # the store counts it; whoever waits for the bytes gets them all the same
    return True
