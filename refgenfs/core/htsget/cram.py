"""CRAM: the file definition, containers, and the SAM header in the first of them (CRAMv2.1, CRAMv3, 6 to 9)."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass

from refgenfs.core.errors import IntegrityError, UnsupportedFormat
from refgenfs.core.htsget.header import MAX_HEADER, Header, NotWhole, sam_references

DEFINITION_SIZE = 26  # bytes: magic, version, and a name
_EOF = {
    (2, 1): bytes.fromhex("0b000000ffffffff0fe0454f460000000001000001000606010001000100"),
    3: bytes.fromhex("0f000000ffffffff0fe0454f4600000000010005bdd94f0001000606010001000100ee63014b"),
}


@dataclass(frozen=True, slots=True)
class Container:
    """Where a container's blocks begin and end."""

    start: int
    stop: int


def parse_version(data: bytes) -> tuple[int, int]:
    """Return the version of a file definition; UnsupportedFormat for one that is not known here."""
    if data[:4] != b"CRAM" or len(data) < DEFINITION_SIZE:
        raise IntegrityError("the file is no CRAM")
    major, minor = data[4], data[5]
    if major not in {2, 3}:
        raise UnsupportedFormat(f"the file is CRAM {major}.{minor}, and only 2 and 3 are known here")
    return major, minor


def eof_marker(version: tuple[int, int]) -> bytes:
    """Return the container that ends a file of this version; nothing for 2.0, which has none."""
    return _EOF[3] if version[0] == 3 else _EOF.get(version, b"")


def parse_container(data: bytes, at: int, version: tuple[int, int]) -> Container:
    """Read the header of a container at `at`; raise NotWhole or IntegrityError."""
    reader = _Reader(data, at)
    (length,) = reader.unpack("<i")
    for _ in range(4):  # reference, start, span, records
        reader.itf8()
    if version[0] == 3:
        reader.ltf8()  # the number of the first record
    else:
        reader.itf8()
    reader.ltf8()  # bases
    reader.itf8()  # blocks
    for _ in range(_count(reader.itf8(), "landmarks")):
        reader.itf8()
    if version[0] == 3:
        computed = zlib.crc32(data[at : reader.at])
        if reader.unpack("<I")[0] != computed:
            raise IntegrityError("no CRAM container begins there: its checksum is wrong")
    if length < 0:
        raise IntegrityError(f"a CRAM container has a length of {length}")
    return Container(reader.at, reader.at + length)


def check_container(data: bytes, version: tuple[int, int]) -> None:
    """Raise IntegrityError where no container begins with `data`; a header longer than that is believed."""
    with suppress(NotWhole):
        parse_container(data, 0, version)


def parse_header(data: bytes, version: tuple[int, int]) -> Header:
    """Read the SAM header from the first bytes of a file; `end` is where the container ends that has it."""
    container = parse_container(data, DEFINITION_SIZE, version)
    if container.stop > MAX_HEADER:
        raise IntegrityError(f"the CRAM header has {container.stop} bytes; {MAX_HEADER} are the most that is read")
    if len(data) < container.stop:
        raise NotWhole(container.stop)
    text = _first_block(data[: container.stop], container.start, version)
    if len(text) < 4:
        raise IntegrityError("the CRAM header is cut short")
    length = struct.unpack_from("<i", text)[0]
    if not 0 <= length <= len(text) - 4:
        raise IntegrityError(f"the CRAM header says that it has {length} bytes, of {len(text) - 4}")
    references, lengths = sam_references(text[4 : 4 + length])
    return Header(container.stop, references, lengths)


def _first_block(data: bytes, at: int, version: tuple[int, int]) -> bytes:
    """Return what the block at `at` holds."""
    reader = _Reader(data, at)
    try:
        method, kind = reader.unpack("<BB")
        reader.itf8()  # content id
        packed, size = _count(reader.itf8(), "bytes"), _count(reader.itf8(), "bytes")
        content = reader.take(packed)
        if version[0] == 3 and zlib.crc32(data[at : reader.at]) != reader.unpack("<I")[0]:
            raise IntegrityError("the CRAM header does not hold what its checksum says")
    except NotWhole as exc:
        raise IntegrityError("the CRAM header is cut short") from exc
    if kind != 0:
        raise IntegrityError(f"the first block of the CRAM is of kind {kind}, and no header")
    text = _inflate(content, method, size)
    if len(text) != size:
        raise IntegrityError(f"the CRAM header has {len(text)} bytes, not {size}")
    return text


def _inflate(content: bytes, method: int, size: int) -> bytes:
    if size > MAX_HEADER:
        raise IntegrityError(f"the CRAM header has {size} bytes; {MAX_HEADER} are the most that is read")
    try:
        match method:
            case 0:
                return content
            case 1:
                return zlib.decompressobj(47).decompress(content, size + 1)
            case 2:
                return bz2.BZ2Decompressor().decompress(content, size + 1)
            case 3:
                return lzma.LZMADecompressor().decompress(content, size + 1)
    except (zlib.error, OSError, lzma.LZMAError, EOFError) as exc:
        raise IntegrityError(f"the CRAM header can't be inflated: {exc}") from exc
    raise UnsupportedFormat(f"the CRAM header is packed by a method that is not known here ({method})")


def _count(value: int, what: str) -> int:
    if value < 0:
        raise IntegrityError(f"the CRAM has {value} {what} in a container")
    return value


class _Reader:
    """Numbers as CRAM writes them (CRAMv3, 2.3). NotWhole where the bytes end."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self.at = at

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self._data):
            raise NotWhole(end)
        taken, self.at = self._data[self.at : end], end
        return taken

    def unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def itf8(self) -> int:
        """Return a number of 32 bits: the first byte's leading ones are how many bytes follow, up to four."""
        first = self.take(1)[0]
        more = _leading_ones(first)
        if more < 4:
            value = first & (0x7F >> more)
            for byte in self.take(more):
                value = value << 8 | byte
        else:
            rest = self.take(4)
            value = (first & 0x0F) << 28 | rest[0] << 20 | rest[1] << 12 | rest[2] << 4 | rest[3] & 0x0F
        return value - (1 << 32) if value >= 1 << 31 else value

    def ltf8(self) -> int:
        """Return a number of 64 bits, the same way with up to eight bytes that follow."""
        first = self.take(1)[0]
        more = _leading_ones(first)
        return int.from_bytes(bytes([first & (0x7F >> more) if more < 7 else 0]) + self.take(more), "big")


def _leading_ones(byte: int) -> int:
    return 8 - (byte ^ 0xFF).bit_length()
