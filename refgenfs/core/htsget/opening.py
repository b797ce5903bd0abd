"""Opening an indexed file: what has to be read of it, most often in one round, and whether its index is its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from refgenfs.core.errors import IntegrityError, UnsupportedFormat
from refgenfs.core.htsget import bgzf, cram, header
from refgenfs.core.htsget.binning import BinningIndex
from refgenfs.core.htsget.crai import CraiIndex
from refgenfs.core.htsget.gzi import Gzi
from refgenfs.core.htsget.indexed import IndexedFile
from refgenfs.core.htsget.model import Format
from refgenfs.core.htsget.plan import Need, Part, Plan, read

MAX_INDEX = 64 << 20  # bytes as it is stored; a whole genome's is 10 MB
MAX_GZI = 16 << 20  # bytes: that of a BAM of 20 GB; a larger one costs more than the tighter ranges save
_HEAD = 64 * 1024  # bytes that are read at first: most headers are shorter
_MOST = 4 << 20  # bytes of a header that are read in one go
_TAIL = 64  # bytes, so that any end marker is in them


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many bytes each of the files has; None for one that there is not."""

    data: int
    index: int | None = None
    gzi: int | None = None


def open_file(sizes: Sizes) -> Plan[IndexedFile]:
    """Read a file's index and header; the first round is most often the only one.

    A GZI of more than `MAX_GZI` bytes is left alone.

    Raises UnsupportedFormat for a file that is none of the formats, and IntegrityError for one that is damaged.
    """
    needs = {Part.DATA: Need(Part.DATA, 0, min(_HEAD, sizes.data))}
    if sizes.index is not None:
        if sizes.index > MAX_INDEX:
            raise IntegrityError(f"the index has {sizes.index} bytes; {MAX_INDEX} are the most that is read")
        needs[Part.INDEX] = Need(Part.INDEX, 0, sizes.index)
    if sizes.gzi is not None and sizes.gzi <= MAX_GZI:
        needs[Part.GZI] = Need(Part.GZI, 0, sizes.gzi)
    tail, *rest = yield from read(Need(Part.DATA, max(0, sizes.data - _TAIL), sizes.data), *needs.values())
    got = dict(zip(needs, rest, strict=True))
    head, index, gzi = got[Part.DATA], got.get(Part.INDEX), got.get(Part.GZI)
    if head[:4] == b"CRAM":
        return (yield from _open_cram(sizes.data, head, tail, index))
    return (yield from _open_bgzf(sizes.data, head, tail, index, gzi))


def _open_cram(size: int, head: bytes, tail: bytes, index_bytes: bytes | None) -> Plan[IndexedFile]:
    version = cram.parse_version(head)
    found = None
    while found is None:
        try:
            found = cram.parse_header(head, version)
        except header.NotWhole as exc:
            head += yield from _more(size, len(head), exc.least)
    index = CraiIndex(index_bytes) if index_bytes is not None else None
    first = index.first if index is not None else None
    if first is not None and not found.end <= first <= size:
        raise IntegrityError(f"the CRAI is not this file's: its first container is at {first}")
    marker = cram.eof_marker(version)
    ended = bool(marker) and tail.endswith(marker)
    return IndexedFile(
        Format.CRAM,
        size,
        header_end=found.end if first is None else first,
        body_end=size - len(marker) if ended else size,
        references=found.references,
        lengths=found.lengths,
        index=index,
        tail=b"" if ended else marker,
        version=version,
    )


def _open_bgzf(
    size: int, head: bytes, tail: bytes, index_bytes: bytes | None, gzi: bytes | None
) -> Plan[IndexedFile]:
    if not bgzf.is_bgzf(head):
        raise UnsupportedFormat("the file is neither CRAM nor BGZF, so it can't be entered in the middle; see bgzip")
    walk = bgzf.BlockWalk()
    walk.feed(head)
    format_ = header.detect(walk.data)
    if format_ is None:
        raise UnsupportedFormat("what the file's blocks hold is no BAM, VCF or BCF")
    found = None
    while found is None:
        try:
            found = header.parse(format_, walk.data)
        except header.NotWhole as exc:
            if max(exc.least, len(walk.data)) > header.MAX_HEADER:
                raise IntegrityError(f"the header has more than {header.MAX_HEADER} bytes") from exc
            walk.feed((yield from _more(size, walk.read, 2 * walk.read)))
    index = BinningIndex.parse(index_bytes) if index_bytes is not None else None
    ended = tail.endswith(bgzf.EOF_MARKER)
    return IndexedFile(
        format_,
        size,
        header_end=walk.boundary(found.end),
        header_last=walk.virtual(found.end),
        body_end=size - len(bgzf.EOF_MARKER) if ended else size,
        references=_references(format_, found, index),
        lengths=found.lengths,
        index=index,
        gzi=Gzi(gzi) if gzi is not None else None,
        tail=b"" if ended else bgzf.EOF_MARKER,
    )


def _references(format_: Format, found: header.Header, index: BinningIndex | None) -> Mapping[str, int | None]:
    """Return the numbers that references have in the index: those of a VCF are the index's own."""
    if format_ is not Format.VCF:
        return found.references
    if index is None:
        return dict.fromkeys(found.references)
    if index.names is None:
        raise IntegrityError("the index has no names, so it is not that of a VCF")
    return dict.fromkeys(found.references) | {name: number for number, name in enumerate(index.names)}


def _more(size: int, at: int, least: int) -> Plan[bytes]:
    """Read more of a header, of which `at` bytes are there, and at least `least` are wanted."""
    stop = min(max(least, at + _HEAD), at + _MOST, size)
    if stop <= at:
        raise IntegrityError("the file ends in the middle of its header")
    (data,) = yield from read(Need(Part.DATA, at, stop))
    return data
