"""The seek index of a gzip-packed archive: where inflation can begin, and what the archive holds.

The format is in `docs/seek-index.md`. In short: a header, the tables (spans, then members), the windows. A *span* is
what lies between two points; a *point* is a boundary of deflate blocks, and its *window* the up to 32 KiB of unpacked
bytes before it, which the blocks behind it may repeat (RFC 1951, 2 and 3.2.5; the method is that of zlib's
`examples/zran.c`).

Packed offsets count bytes of the archive, unpacked ones those of the tar inside.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from refgenfs.core.errors import IntegrityError
from refgenfs.core.memberlist import decode_members, encode_members
from refgenfs.core.tar import Member

SUFFIX = ".seekidx"  # of the file beside the archive
WINDOW = 32768  # bytes that deflate looks back at most (RFC 1951, 2)
DIGEST = 16  # bytes of a BLAKE2b
MAX_SPAN = 32 << 20  # packed or unpacked bytes of a span: who reads one has it in memory
MAX_SPANS = 1 << 18  # 1 TiB at 4 MiB a span
MAX_TABLES = 64 << 20  # unpacked bytes of the tables

# Magic and version; spans; archive's size and MD5; the tar's size; tables packed and unpacked; windows.
_HEADER = struct.Struct("<8s I I Q 16s Q I I Q")
_MAGIC = b"\x89seekidx"
_VERSION = 1
HEADER_SIZE = _HEADER.size + DIGEST
_ROW = 4 + 4 + 2 + 1 + DIGEST  # bytes a span in the tables
_MiB = 1 << 20

HEAD = 128 * 1024  # bytes: what the kernel reads when a program looks at the beginning of a file
TAIL = 512 * 1024  # bytes, so that a deflate block ends in them
HEADERS = 4096  # bytes: padding, and the headers before the next member's data
EDGE_SHARE = 8  # a member of fewer spacings has none: there are at most a quarter more windows
LARGEST_PIECE = 1 << 20  # bytes of a tar that are inflated at once; a member's header is known behind them
FIRST_PIECE = 64 * 1024  # bytes of a tar that are inflated at first


def spacing_for(archive_size: int | None) -> int:
    """Return how many unpacked bytes a span should have, for an archive of so many packed bytes (None: unknown).

    A span is the least that can be fetched, and each costs a window. See `docs/seek-index.md` for what it costs.
    """
    if archive_size is None or archive_size > 1_000_000_000:
        return 4 * _MiB
    return 2 * _MiB if archive_size >= 32_000_000 else _MiB


def edges(member: Member, spacing: int) -> list[int]:
    """Return the unpacked offsets from which on the next boundary is a point besides the regular ones, ascending.

    They are near the ends of a large member's data: programs look at the head of a file before they seek in it, and
    small files lie between large ones, so both are in short spans. All of them lie behind what has been inflated when
    the member's header is known, whatever the pieces that the archive arrives in: points depend on the archive alone.
    """
    if member.kind != "file" or member.size < max(EDGE_SHARE * spacing, LARGEST_PIECE + TAIL):
        return []
    head = [member.offset + HEAD] if member.offset <= FIRST_PIECE else []
    stop = member.offset + member.size
    return [*head, stop - TAIL, stop + HEADERS + HEAD]


def span_digest(window: bytes) -> hashlib.blake2b:
    """Return the hash object of a span, to be fed with its packed bytes: the window is part of what it covers."""
    return hashlib.blake2b(window, digest_size=DIGEST)


@dataclass(frozen=True, slots=True)
class Span:
    """What lies between two points.

    `packed_start` to `packed_stop` are the bytes to fetch. Of the first, only the `bits` highest bits are the span's
    (0: all). They inflate to what lies from `out_start` to `out_stop`; of the last byte, the highest bits may be the
    next span's. `digest` is `span_digest` of window and packed bytes. `window_start` to `window_stop` is where the
    index file has the span's window, as `pack_window` gave it; nothing where none is needed.
    """

    index: int
    packed_start: int
    packed_stop: int
    out_start: int
    out_stop: int
    bits: int
    digest: bytes
    window_start: int
    window_stop: int


@dataclass(slots=True)
class SpanTable:
    """The spans of an archive as columns: neighbours share a bound, so all that is kept is lengths."""

    packed_start: int = 0
    packed: array[int] = field(default_factory=lambda: array("I"))
    out: array[int] = field(default_factory=lambda: array("I"))
    windows: array[int] = field(default_factory=lambda: array("H"))  # bytes of each packed window
    bits: bytearray = field(default_factory=bytearray)
    digests: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self.packed)

    def encode(self) -> bytes:
        """Return the columns as bytes, little-endian."""
        count = len(self)
        numbers = struct.pack(
            f"<Q{count}I{count}I{count}H", self.packed_start, *self.packed, *self.out, *self.windows
        )
        return b"".join((numbers, self.bits, self.digests))

    @classmethod
    def decode(cls, data: bytes, count: int) -> tuple[SpanTable, bytes]:
        """Return the columns of `count` spans, and what follows them; raise IntegrityError."""
        layout = struct.Struct(f"<Q{count}I{count}I{count}H")
        end = layout.size + count * (1 + DIGEST)
        if len(data) < end:
            raise IntegrityError("the seek index is cut short")
        start, *numbers = layout.unpack_from(data)
        rest = layout.size
        table = cls(
            start,
            array("I", numbers[:count]),
            array("I", numbers[count : 2 * count]),
            array("H", numbers[2 * count :]),
            bytearray(data[rest : rest + count]),
            bytearray(data[rest + count : end]),
        )
        return table, data[end:]


class SeekIndex:
    """Where an archive can be entered, and what it holds. Immutable; about 45 bytes a span, and the members."""

    __slots__ = (
        "_bits", "_digests", "_outs", "_packed", "_packed_stops", "_windows",
        "archive_digest", "archive_size", "head_size", "identity", "members", "unpacked_size",
    )  # fmt: skip

    def __init__(
        self,
        table: SpanTable,
        members: Sequence[Member],
        *,
        archive_digest: str,
        archive_size: int,
        unpacked_size: int,
        head_size: int,
        identity: bytes,
    ) -> None:
        """Take what was read or made; raise IntegrityError where it doesn't fit together."""
        self.archive_digest = archive_digest  # MD5 (hex) of the packed archive
        self.archive_size = archive_size
        self.unpacked_size = unpacked_size
        self.members = tuple(members)
        self.head_size = head_size  # bytes of header and tables; the windows begin there
        self.identity = identity  # digest of header and tables: another index of the same archive has another one
        _check_spans(table)
        self._bits = bytes(table.bits)
        self._digests = bytes(table.digests)
        self._outs = array("Q", accumulate(table.out, initial=0))
        self._windows = array("Q", accumulate(table.windows, initial=head_size))
        self._packed = array("Q")
        self._packed_stops = array("Q")
        stop = table.packed_start + bool(table.bits[0])
        for length, bits in zip(table.packed, table.bits, strict=True):
            start = stop - bool(bits)  # the byte is shared
            stop = start + length
            self._packed.append(start)
            self._packed_stops.append(stop)
        if self._outs[-1] != unpacked_size or stop > archive_size:
            raise IntegrityError("the seek index contradicts itself: its spans are not the archive")

    def __len__(self) -> int:
        """The number of spans."""
        return len(self._bits)

    @property
    def size(self) -> int:
        """Bytes of the whole index file."""
        return self._windows[-1]

    def span(self, index: int) -> Span:
        """Return a span by its number; raise IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"span {index} of {len(self)}")
        return Span(
            index,
            self._packed[index],
            self._packed_stops[index],
            self._outs[index],
            self._outs[index + 1],
            self._bits[index],
            self._digests[index * DIGEST : (index + 1) * DIGEST],
            self._windows[index],
            self._windows[index + 1],
        )

    def spans_for(self, start: int, stop: int) -> range:
        """Return the numbers of the spans that have the unpacked bytes from `start` to `stop`; none for none."""
        if not 0 <= start <= stop <= self.unpacked_size:
            raise ValueError(f"bytes {start} to {stop} of {self.unpacked_size}")
        if start == stop:
            return range(0)
        return range(bisect_right(self._outs, start) - 1, bisect_left(self._outs, stop))

    @classmethod
    def parse(cls, head: bytes) -> SeekIndex:
        """Return the index whose file begins with `head` (see `head_size`); raise IntegrityError."""
        size = head_size(head)
        if len(head) < size:
            raise IntegrityError("the seek index is cut short")
        header = bytes(head[: _HEADER.size])
        packed = memoryview(head)[HEADER_SIZE:size]
        if _digest(header, packed) != bytes(head[_HEADER.size : HEADER_SIZE]):
            raise IntegrityError("the seek index is damaged: its tables have another digest")
        _, _, spans, archive_size, digest, unpacked_size, _, tables, windows = _HEADER.unpack(header)
        table, text = SpanTable.decode(_inflate(packed, tables, "tables"), spans)
        index = cls(
            table,
            decode_members(text, unpacked_size),
            archive_digest=digest.hex(),
            archive_size=archive_size,
            unpacked_size=unpacked_size,
            head_size=size,
            identity=bytes(head[_HEADER.size : HEADER_SIZE]),
        )
        if index.size != size + windows:
            raise IntegrityError("the seek index contradicts itself: its windows have another length")
        return index


def head_size(first: bytes) -> int:
    """Return how many bytes of an index file `SeekIndex.parse` needs, from its first `HEADER_SIZE` or more.

    Raises IntegrityError for what is no index, or one of a version or of a size that can't be read.
    """
    if first[: len(_MAGIC)] != _MAGIC or len(first) < HEADER_SIZE:
        raise IntegrityError("this is no seek index")
    _, version, spans, archive_size, _, unpacked_size, packed, tables, windows = _HEADER.unpack_from(first)
    if version != _VERSION:
        raise IntegrityError(f"the seek index has version {version}; version {_VERSION} can be read")
    most = tables + (tables >> 10) + 64  # more than deflate adds to what it can't pack
    if not 0 < spans <= MAX_SPANS or not spans * _ROW + 8 <= tables <= MAX_TABLES or packed > most:
        raise IntegrityError("the seek index has tables of an impossible size")
    if max(archive_size, unpacked_size) >= 1 << 62 or windows > spans << 16:
        raise IntegrityError("the seek index has an impossible size")
    return HEADER_SIZE + int(packed)


def file_size(first: bytes) -> int:
    """Return how long an index file says it is, from its first `HEADER_SIZE` bytes or more; raise as `head_size`."""
    return head_size(first) + int(_HEADER.unpack_from(first)[-1])


def encode_head(
    table: SpanTable, members: Sequence[Member], archive_digest: str, archive_size: int, unpacked_size: int
) -> bytes:
    """Return header and tables of an index file; the packed windows follow in order. Raises IntegrityError."""
    tables = table.encode() + encode_members(members)
    if not 0 < len(table) <= MAX_SPANS or len(tables) > MAX_TABLES:
        raise IntegrityError(f"too much for a seek index: {len(table)} spans, {len(tables)} bytes of tables")
    packed = zlib.compress(tables, 9)
    header = _HEADER.pack(
        _MAGIC,
        _VERSION,
        len(table),
        archive_size,
        bytes.fromhex(archive_digest),
        unpacked_size,
        len(packed),
        len(tables),
        sum(table.windows),
    )
    return header + _digest(header, packed) + packed


def pack_window(window: bytes) -> bytes:
    """Return a window as an index file has it; nothing for an empty one."""
    return zlib.compress(window, 4) if window else b""


def unpack_window(data: bytes) -> bytes:
    """Return the window that `pack_window` packed; raise IntegrityError."""
    return _inflate(data, WINDOW, "window", exact=False) if data else b""


def _inflate(data: bytes | memoryview, size: int, what: str, *, exact: bool = True) -> bytes:
    """Inflate to exactly (or at most) `size` bytes, and never take memory for more."""
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(data, size + 1)
    except zlib.error as exc:
        raise IntegrityError(f"the seek index is damaged: a {what} that can't be inflated") from exc
    if not inflater.eof or inflater.unused_data or len(inflated) > size or (exact and len(inflated) != size):
        raise IntegrityError(f"the seek index is damaged: a {what} of another length")
    return inflated


def _check_spans(table: SpanTable) -> None:
    """Refuse lengths that no archive has: an empty span but the last, or one that takes too much memory."""
    impossible = (
        not len(table)
        or max(table.packed) > MAX_SPAN
        or max(table.out) > MAX_SPAN
        or min(table.packed) < 1
        or min(table.out[:-1], default=1) < 1
        or max(table.bits) > 7
    )
    if impossible:
        raise IntegrityError("the seek index has a span of an impossible length")


def _digest(header: bytes, tables: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(header, digest_size=DIGEST)
    digest.update(tables)
    return digest.digest()
