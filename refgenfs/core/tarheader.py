"""Header blocks and pax records of tar archives: bytes to values.

POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from refgenfs.core.errors import ArchiveError
from refgenfs.core.links import MAX_COMPONENT, MAX_PATH

HEADER = 512  # bytes of a header; data is padded to a multiple of it
_MAX_DEPTH = 64  # folders of a name: each is kept
_MAX_SIZE = (1 << 63) - 1
_MAX_TIME = float((1 << 63) // 10**9 - 1)  # what fits a signed count of nanoseconds

_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_DECIMAL = re.compile(rb"[0-9]{1,19}")
_TIME = re.compile(rb"-?[0-9]{1,20}(?:\.[0-9]*)?")


@dataclass(frozen=True, slots=True)
class Header:
    """What a header block says of a member: raw name and link target, type flag, bytes, Unix seconds."""

    name: bytes
    flag: bytes
    size: int
    mtime: float
    link: bytes


def parse_header(block: bytes, at: int) -> Header:
    """Parse a header block, found at byte `at` of the unpacked tar; raise ArchiveError for a damaged one.

    Table "ustar Header Block". Only what is used of it is looked at, but for the checksum, which covers all.
    """
    stored = _octal(block[148:156], "checksum", at)
    unsigned = sum(block) - sum(block[148:156]) + 8 * 0x20
    # Some old writers summed signed chars.
    signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    if stored not in (unsigned, signed):
        raise ArchiveError(f"the archive is damaged: a wrong checksum in the tar header at byte {at}")
    name = _text(block[0:100])
    # The prefix is POSIX's; GNU's magic is "ustar  \0", and it keeps other things there.
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = prefix + b"/" + name
    size = _number(block[124:136], "size", at)
    if not 0 <= size <= _MAX_SIZE:
        raise ArchiveError(f"the archive gives {show(name)} the impossible size {size}")
    mtime = _bounded_time(_number(block[136:148], "time", at))
    return Header(name, block[156:157], size, mtime, _text(block[157:257]))


def parse_pax(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Give keyword and value of each record `"%d %s=%s\\n"` (length, keyword, value); raise ArchiveError."""
    start = 0
    while start < len(raw) and raw[start]:  # some writers pad with NUL
        space = raw.find(b" ", start, start + 8)
        digits = raw[start:space] if space > start else b""
        stop = start + int(digits) if digits.isdigit() else 0
        keyword, equals, value = raw[space + 1 : max(stop - 1, 0)].partition(b"=")
        if not space < stop <= len(raw) or raw[stop - 1 : stop] != b"\n" or not equals:
            raise ArchiveError("the archive is damaged: a pax header that can't be parsed")
        yield keyword, value
        start = stop


def parse_pax_size(value: bytes) -> int:
    """Parse the value of the pax keyword `size`, in bytes; raise ArchiveError."""
    if _DECIMAL.fullmatch(value) is None or int(value) > _MAX_SIZE:
        raise ArchiveError(f"the archive has a pax header with the size {show(value)}")
    return int(value)


def parse_pax_time(value: bytes) -> float:
    """Parse the value of the pax keyword `mtime`, in Unix seconds; raise ArchiveError."""
    if _TIME.fullmatch(value) is None:
        raise ArchiveError(f"the archive has a pax header with the time {show(value)}")
    return _bounded_time(float(value))


def split_name(raw: bytes, what: str, *, folder: bool) -> list[bytes]:
    """Return the components of a path in an archive, without leading `./`; none for the root of a folder.

    Raises ArchiveError for a path that is unsafe anywhere or has two spellings; `what` has it, for people.
    """
    body = raw[:-1] if folder and raw.endswith(b"/") else raw
    parts = body.split(b"/")
    while parts and parts[0] == b".":
        del parts[0]
    reason = ""
    if not raw or b"" in parts:
        reason = "an absolute name" if raw.startswith(b"/") else "an empty name"
    elif b".." in parts or b"." in parts:
        reason = "a name with '.' or '..'"
    elif b"\0" in raw:
        reason = "a name with a NUL"
    elif len(raw) > MAX_PATH or len(parts) > _MAX_DEPTH or max(map(len, parts), default=0) > MAX_COMPONENT:
        reason = "too long a name"
    elif not parts and not folder:
        reason = "no name"
    if reason:
        raise ArchiveError(f"the archive holds a {what} with {reason}, {show(raw)}")
    return parts


def show(raw: bytes) -> str:
    """Return a name for a message: quoted, printable, at most about 200 characters."""
    return repr(raw[:200].decode(errors="replace"))


def _number(field: bytes, what: str, at: int) -> int:
    """Parse a number: octal text, or base-256 with the first bit set (GNU tar manual, "Basic Tar Format")."""
    if field[0] & 0x80:
        bits = int.from_bytes(field) & ((1 << (8 * len(field) - 1)) - 1)
        sign = 1 << (8 * len(field) - 2)
        return bits - 2 * sign if bits & sign else bits
    return _octal(field, what, at)


def _octal(field: bytes, what: str, at: int) -> int:
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise ArchiveError(f"the archive is damaged: no {what} in the tar header at byte {at}")
    return int(match[1] or b"0", 8)


def _bounded_time(seconds: float) -> float:
    return float(max(-_MAX_TIME, min(_MAX_TIME, seconds)))


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]
