"""Where ranges begin and end: with records, so that what is joined of them can be read.

A record may go on from one BGZF block to the next (htslib begins a block with a record in BAM alone). Where a range
of blocks begins or ends in the middle of one, half of it would be next to something else, and readers fail, or read
what no file has. There the block at the edge is cut at the virtual offset that the index has, and put into the answer
itself. Where it can be seen that a block begins with a record, nothing is changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping

from refgenfs.core.errors import IntegrityError
from refgenfs.core.htsget import bgzf, cram
from refgenfs.core.htsget.answer import Answer, BlockRange, InlineBlock, same_class
from refgenfs.core.htsget.indexed import IndexedFile
from refgenfs.core.htsget.model import Class, Format
from refgenfs.core.htsget.plan import Need, Part, Plan, read

_AT_ONCE = 8  # blocks of a round: half a megabyte
_LONGEST_HEAD = 4096  # bytes of a container's header, which has five for each slice
_CHECKED = 8  # containers that are looked at: an index of another file's is wrong about nearly all


def settle(file: IndexedFile, answer: Answer) -> Plan[Answer]:
    """Return the answer with ranges that begin and end with records of the file.

    Raises IntegrityError where they don't even begin with blocks: the index is another file's, or older than its own.
    """
    if not file.format.is_bgzf:
        yield from _check_containers(file, answer)
        return answer
    ranges = answer.ranges
    starts = [one.start for one in ranges if one.first is not None]
    stops = [one.stop for one in ranges if _may_split(one) and file.format is not Format.VCF]
    blocks = yield from _read_blocks(file, {*starts, *stops})
    whole = {at for at in stops if _records_end(file.format, blocks[at][1], 0) == len(blocks[at][1])}
    cut = [one for one in ranges if _may_split(one) and one.stop not in whole]
    blocks |= yield from _read_blocks(
        file, {one.last >> 16 for one in cut if one.last and one.last & 0xFFFF} - {*blocks}
    )
    settled: list[BlockRange | InlineBlock] = []
    for block in answer.blocks:
        if isinstance(block, BlockRange):
            settled += _cut(file.format, block, blocks, at_end=block in cut)
        else:
            settled.append(block)
    return Answer(answer.format, same_class(settled))


def _may_split(one: BlockRange) -> bool:
    """Say whether a range's end may be in the middle of a record, for all that the index says."""
    return one.last is not None and one.last != one.stop << 16


def _cut(
    format_: Format, one: BlockRange, blocks: Mapping[int, tuple[int, bytes]], *, at_end: bool
) -> Iterator[BlockRange | InlineBlock]:
    """Return a range that begins and ends with records, and what of the blocks at its edges is not in it."""
    start, stop, skipped = one.start, one.stop, 0
    if one.first is not None and one.first & 0xFFFF:
        size, data = blocks[start]
        skipped = _inside(one.first, data)
        if _records_end(format_, data[:skipped], 0) == skipped:
            skipped = 0
        else:
            start += size
    before, tail = blocks[one.start][1][skipped:] if skipped else b"", b""
    if at_end and one.last is not None:
        stop, kept = one.last >> 16, one.last & 0xFFFF
        tail = blocks[stop][1][: _inside(one.last, blocks[stop][1])] if kept else b""
        if skipped and stop == one.start:  # all that is wanted is in one block
            before, tail = b"", tail[skipped:]
    yield from _inline(before, one.class_)
    if start < stop:
        yield BlockRange(start, stop, one.class_)
    yield from _inline(tail, one.class_)


def _inline(data: bytes, class_: Class | None) -> Iterator[InlineBlock]:
    if data:
        yield InlineBlock(bgzf.deflate(data), class_)


def _inside(offset: int, data: bytes) -> int:
    if offset & 0xFFFF > len(data):
        raise IntegrityError(
            f"the index is not this file's: it names byte {offset & 0xFFFF} of a block of {len(data)}; index it again"
        )
    return offset & 0xFFFF


def _records_end(format_: Format, data: bytes, at: int) -> int:
    """Return where whole records end that begin at `at`; -1 where none can be told from what is none."""
    if format_ is Format.VCF:
        return -1  # half a line looks like a line
    begun = at
    while at < len(data):
        if format_ is Format.BAM:
            size = 4 + int.from_bytes(data[at : at + 4], "little")
            least = 36
        else:
            shared, each = struct.unpack_from("<II", data, at) if at + 8 <= len(data) else (0, 0)
            size, least = 8 + shared + each, 32
        if size < least or at + size > len(data):
            return -1
        at += size
    return at if at > begun else -1


def _read_blocks(file: IndexedFile, offsets: Iterable[int]) -> Plan[dict[int, tuple[int, bytes]]]:
    """Read the blocks at these offsets; return how many bytes each has, and what it holds."""
    blocks: dict[int, tuple[int, bytes]] = {}
    wanted = sorted(offsets)
    for index in range(0, len(wanted), _AT_ONCE):
        some = wanted[index : index + _AT_ONCE]
        got = yield from read(*(Need(Part.DATA, at, min(at + bgzf.MAX_BLOCK, file.size)) for at in some))
        for at, data in zip(some, got, strict=True):
            try:
                blocks[at] = bgzf.first_block(data)
            except IntegrityError as exc:
                raise IntegrityError(f"the index is not this file's: at byte {at}, {exc}; index it again") from exc
    return blocks


def _check_containers(file: IndexedFile, answer: Answer) -> Plan[None]:
    """Look whether the answer's ranges begin and end where containers do."""
    ends = sorted({end for one in answer.ranges for end in (one.start, one.stop)} - {0, file.size})
    bounds = ends[:: -(-len(ends) // _CHECKED) or 1]
    if not bounds:
        return
    got = yield from read(*(Need(Part.DATA, at, min(at + _LONGEST_HEAD, file.size)) for at in bounds))
    for at, data in zip(bounds, got, strict=True):
        try:
            cram.check_container(data, file.version)
        except IntegrityError as exc:
            raise IntegrityError(f"the index is not this file's: at byte {at}, {exc}; index it again") from exc
