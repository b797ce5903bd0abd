"""Sequences of a FASTA by their MD5: what dictionaries and `.fai` say, and where in the file their bases are.

A sequence's MD5 is that of its letters alone, in upper case (SAM specification, M5; GA4GH refget). What is cut out
here is checked against the layout that the `.fai` promises, letter by letter: a line that is not as it says is an
error, so that what is cut out is what the dictionary has the MD5 of.
"""

from __future__ import annotations

import re
import struct
import zlib
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass

from refgenfs.core.errors import IntegrityError

_GRAPH = bytes(range(0x21, 0x7F))  # what samtools takes for a letter of a sequence
_REST = bytes(byte for byte in range(256) if byte not in _GRAPH)
_UPPER = bytes(range(256)).upper()
_MD5 = re.compile(r"[0-9a-f]{32}")
BGZF_MOST = 1 << 16  # bytes of a block, packed or not


@dataclass(frozen=True, slots=True)
class Line:
    """Where a sequence is in its FASTA: a row of a `.fai` (see faidx(5)); lengths in bases, the rest in bytes."""

    length: int
    offset: int
    bases: int
    width: int


def is_md5(text: str) -> bool:
    """Say whether a text is an MD5 in lower-case hex."""
    return _MD5.fullmatch(text) is not None


def parse_dict(text: str) -> dict[str, tuple[str, int]]:
    """Return the name and length of each sequence of a dictionary by its MD5.

    Names that are there twice are left out: a `.fai` has the first of them only.
    """
    rows = []
    for line in text.splitlines():
        kind, *fields = line.split("\t")
        tags = dict(field.partition(":")[::2] for field in fields)
        if kind == "@SQ" and {"SN", "LN", "M5"} <= tags.keys() and tags["LN"].isdecimal() and is_md5(tags["M5"]):
            rows.append((tags["SN"], int(tags["LN"]), tags["M5"]))
    count = Counter(name for name, _, _ in rows)
    return {md5: (name, length) for name, length, md5 in rows if count[name] == 1 and length > 0}


def parse_fai(text: str) -> dict[str, Line]:
    """Return the rows of a `.fai` by the names of their sequences; raise IntegrityError for what is none."""
    found = {}
    for line in text.splitlines():
        name, *numbers = line.split("\t")
        try:
            length, offset, bases, width = map(int, numbers[:4])
        except ValueError:
            raise IntegrityError(f"a row of a .fai is none: {line[:80]!r}") from None
        found[name] = Line(length, offset, bases, width)
    return found


def span_of(line: Line, start: int, stop: int) -> tuple[int, int]:
    """Return the bytes of the FASTA, unpacked, that have the bases `start` up to, not including, `stop`."""
    return _place(line, start), _place(line, stop - 1) + 1


def cut(line: Line, start: int, stop: int, raw: bytes | memoryview) -> bytes:
    """Return these bases in upper case out of the bytes that `span_of` names.

    Raises IntegrityError where they are not as the `.fai` says.
    """
    raw = bytes(raw)
    first = start % line.bases
    for column in range(line.bases, line.width):  # only what ends a line may be there
        if raw[column - first :: line.width].strip(b"\r\n \t"):
            raise IntegrityError("a line of the FASTA is longer than its .fai says")
    found = raw.translate(_UPPER, _REST)
    if len(found) != stop - start:
        raise IntegrityError(f"the FASTA has {len(found)} bases where its .fai has {stop - start}")
    return found


def _place(line: Line, base: int) -> int:
    row, column = divmod(base, line.bases)
    return line.offset + row * line.width + column


class Blocks:
    """The blocks of a FASTA that bgzip compressed: its `.gzi`. Raises IntegrityError for what is none."""

    def __init__(self, gzi: bytes) -> None:
        count = int.from_bytes(gzi[:8], "little")
        if len(gzi) != 8 + 16 * count:
            raise IntegrityError(f"a .gzi of {len(gzi)} bytes says that it has {count} blocks")
        numbers = struct.unpack(f"<{2 * count}Q", gzi[8:])
        self._packed = (0, *numbers[::2])
        self._unpacked = (0, *numbers[1::2])

    def span(self, start: int, stop: int) -> tuple[int, int, int]:
        """Return which packed bytes have the unpacked ones `start` up to `stop`, and where the first of these begin.

        The last may be more than there are: the file ends then.
        """
        first = bisect_right(self._unpacked, start) - 1
        last = bisect_right(self._unpacked, stop - 1) - 1
        end = self._packed[last + 1] if last + 1 < len(self._packed) else self._packed[last] + BGZF_MOST
        return self._packed[first], end, self._unpacked[first]


def unpack(data: bytes, length: int) -> bytes:
    """Return at least `length` bytes of what blocks of bgzip hold; raise IntegrityError if they are not there."""
    parts, have = [], 0
    while have < length:
        block = zlib.decompressobj(31)
        try:
            part = block.decompress(data)
        except zlib.error as exc:
            raise IntegrityError(f"a block of the FASTA can't be unpacked: {exc}") from None
        if not block.eof or not data:
            raise IntegrityError("a block of the FASTA is cut short")
        parts.append(part)
        have += len(part)
        data = block.unused_data
    return b"".join(parts)
