"""BGZF: gzip in blocks of up to 64 KiB that say how long they are (SAMv1, 4.1)."""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left, bisect_right

from refgenfs.core.errors import IntegrityError

EOF_MARKER = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")  # SAMv1, 4.1.2
MAX_BLOCK = 1 << 16  # bytes of a block, packed or not
_FULL = 0xFF00  # bytes of a block that fit into it even where they don't compress, as htslib has it
_FIXED = struct.Struct("<4sIBBH")  # magic, MTIME, XFL, OS, XLEN
_MAGIC = b"\x1f\x8b\x08\x04"
_FIELD = struct.Struct("<2sH")
_TRAILER = struct.Struct("<II")  # CRC-32, ISIZE
HEADER_SIZE = 18  # bytes of a block's header, where it has no field but its own


def is_bgzf(data: bytes) -> bool:
    """Say whether these are the first bytes of a BGZF file."""
    try:
        return block_size(data, 0) is not None
    except IntegrityError:
        return False


def block_size(data: bytes, at: int) -> int | None:
    """Return how many bytes the block has that begins at `at`; None where too few bytes are there to say.

    Raises IntegrityError where no block begins.
    """
    head = data[at : at + _FIXED.size]
    if head[:4] != _MAGIC[: len(head)]:
        raise IntegrityError("no BGZF block begins there")
    if len(head) < _FIXED.size:
        return None
    extra = int.from_bytes(head[10:12], "little")
    field, end = at + _FIXED.size, at + _FIXED.size + extra
    while field + _FIELD.size <= end:
        if field + _FIELD.size + 2 > len(data):
            return None
        name, length = _FIELD.unpack_from(data, field)
        if name == b"BC" and length == 2:
            size = int.from_bytes(data[field + 4 : field + 6], "little") + 1
            if size < _FIXED.size + extra + _TRAILER.size:
                raise IntegrityError("a BGZF block is shorter than its header")
            return size
        field += _FIELD.size + length
    raise IntegrityError("a gzip member without a BGZF field: a file like this can't be entered in the middle")


def inflate_block(block: bytes) -> bytes:
    """Return what a whole block holds; raise IntegrityError."""
    extra = int.from_bytes(block[10:12], "little")
    inflater = zlib.decompressobj(-15)
    try:
        data = inflater.decompress(block[_FIXED.size + extra : -_TRAILER.size], MAX_BLOCK + 1)
    except zlib.error as exc:
        raise IntegrityError(f"a BGZF block can't be inflated: {exc}") from exc
    crc, size = _TRAILER.unpack(block[-_TRAILER.size :])
    if not inflater.eof or len(data) != size or zlib.crc32(data) != crc:
        raise IntegrityError("a BGZF block does not hold what its checksum says")
    return data


def first_block(data: bytes) -> tuple[int, bytes]:
    """Return how many bytes the block has that begins with `data`, and what it holds; raise IntegrityError."""
    size = block_size(data, 0)
    if size is None or size > len(data):
        raise IntegrityError("a BGZF block is cut short")
    return size, inflate_block(data[:size])


def deflate(data: bytes) -> bytes:
    """Return BGZF blocks that hold these bytes."""
    blocks = bytearray()
    for at in range(0, len(data), _FULL):
        piece = data[at : at + _FULL]
        deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
        packed = deflater.compress(piece) + deflater.flush()
        size = HEADER_SIZE + len(packed) + _TRAILER.size
        blocks += EOF_MARKER[: HEADER_SIZE - 2] + (size - 1).to_bytes(2, "little") + packed
        blocks += _TRAILER.pack(zlib.crc32(piece), len(piece))
    return bytes(blocks)


class BlockWalk:
    """The blocks of a BGZF file from its beginning: eats its bytes, and gives what they hold."""

    def __init__(self) -> None:
        self.data = bytearray()  # inflated
        self.read = 0  # bytes of the file that were fed
        self._rest = b""
        self._ends: list[int] = []  # of each block, in what is inflated
        self._stops: list[int] = []  # of each block, in the file

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the file; raise IntegrityError where they are no blocks."""
        self.read += len(data)
        data, at = self._rest + data, 0
        while at < len(data):
            size = block_size(data, at)
            if size is None or at + size > len(data):
                break
            self.data += inflate_block(data[at : at + size])
            at += size
            self._ends.append(len(self.data))
            self._stops.append(self.read - len(data) + at)
        self._rest = data[at:]

    def virtual(self, inflated: int) -> int:
        """Return the virtual offset of an offset in what was inflated."""
        at = bisect_right(self._ends, inflated)
        start, before = (self._stops[at - 1], self._ends[at - 1]) if at else (0, 0)
        return start << 16 | inflated - before

    def boundary(self, inflated: int) -> int:
        """Return the offset in the file of the first boundary of blocks that is not before `inflated`."""
        at = bisect_left(self._ends, inflated)
        return self._stops[at] if inflated else 0


def inflate(data: bytes, limit: int, what: str) -> bytes:
    """Return what a gzip or BGZF file holds, all of its members; IntegrityError for more than `limit` bytes."""
    out, view, at = bytearray(), memoryview(data), 0
    inflater, begun = zlib.decompressobj(31), False
    try:
        while at < len(view):
            piece = view[at : at + MAX_BLOCK]
            at, begun = at + len(piece), True
            out += inflater.decompress(piece, limit + 1 - len(out))
            if len(out) > limit:
                raise IntegrityError(f"the {what} holds more than {limit} bytes")
            if inflater.eof:
                at -= len(inflater.unused_data)
                inflater, begun = zlib.decompressobj(31), False
    except zlib.error as exc:
        raise IntegrityError(f"the {what} can't be inflated: {exc}") from exc
    if begun:
        raise IntegrityError(f"the {what} is cut short")
    return bytes(out)
