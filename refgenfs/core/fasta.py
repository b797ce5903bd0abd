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
ENDS = 2  # bytes that a line may end with
LONGEST_LINE = 1 << 20  # bases, where a sequence has several
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


def last_row(line: Line) -> tuple[int, int]:
    """Return the bytes of the FASTA, unpacked, that `check_last_row` is to be given.

    Raises IntegrityError for a layout that no FASTA can have whose lines have letters only.
    """
    if line.bases < 1 or not 0 <= line.width - line.bases <= ENDS or line.length < 1:
        raise IntegrityError("the .fai has lines of other things than letters")
    if line.length <= line.bases:
        return line.offset + line.length, line.offset + line.width
    if line.bases > LONGEST_LINE:
        raise IntegrityError(f"the .fai has lines of {line.bases} letters")
    return _place(line, (line.length - 1) // line.bases * line.bases), _place(line, line.length - 1) + 2


def check_last_row(line: Line, raw: bytes) -> None:
    """Raise IntegrityError unless the last row of a sequence is one of letters.

    How many bytes it has is the only thing that the `.fai` does not say. All other rows, and the only one of a
    sequence that has but one, have `width` bytes and `bases` letters: they are checked as they are cut (`cut`).
    """
    rest = 0 if line.length <= line.bases else (line.length - 1) % line.bases + 1
    if raw[:rest].translate(None, _GRAPH) or len(raw) < rest or raw[rest:].translate(None, _REST):
        raise IntegrityError("the last line of a sequence has something else than letters")


def end_of(line: Line, stop: int) -> tuple[int, int]:
    """Return the bytes of the FASTA, unpacked, that end the row which has the base before `stop`.

    None of them where that is the last row.
    """
    after = ((stop - 1) // line.bases + 1) * line.bases
    if after >= line.length:
        return 0, 0
    last = _place(line, after - 1) + 1
    return last, last + line.width - line.bases


def cut(line: Line, start: int, stop: int, raw: bytes, end: bytes) -> bytes:
    """Return these bases in upper case, out of the bytes that `span_of` and `end_of` name (see `check_last_row`).

    Raises IntegrityError where they are not as the `.fai` says. A row has as many letters as that says (htslib has
    counted them) in `width` bytes; so where no letter follows its first `bases` bytes, these are all letters, and the
    n-th of them is the n-th base.
    """
    first = start % line.bases
    for column in range(line.bases, line.width):
        end += raw[column - first :: line.width]
    if end.translate(None, _REST):
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
    """Return at least `length` bytes of what blocks of bgzip hold, or all; raise IntegrityError if one is damaged."""
    parts, have = [], 0
    while have < length and data:
        block = zlib.decompressobj(31)
        try:
            part = block.decompress(data)
        except zlib.error as exc:
            raise IntegrityError(f"a block of the FASTA can't be unpacked: {exc}") from None
        if not block.eof:
            raise IntegrityError("a block of the FASTA is cut short")
        parts.append(part)
        have += len(part)
        data = block.unused_data
    return b"".join(parts)
