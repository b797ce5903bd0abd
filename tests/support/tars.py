"""Tar archives made byte by byte, and what a `TarParser` says of an archive."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from refgenfs.core.tar import Data, End, EndOfMember, Member, NeedData, TarLimits, TarParser

END = bytes(1024)


def header(
    name: bytes,
    flag: bytes = b"0",
    size: int | bytes = 0,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    mtime: int | bytes = 0,
) -> bytes:
    """Return a header block with a right checksum; `size` and `mtime` may be raw fields."""
    fields = [
        name.ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,
        size if isinstance(size, bytes) else b"%011o\0" % size,
        mtime if isinstance(mtime, bytes) else b"%011o\0" % mtime,
        b" " * 8,
        flag,
        link.ljust(100, b"\0"),
        magic.ljust(8, b"\0"),
        bytes(80),
        prefix.ljust(155, b"\0"),
        bytes(12),
    ]
    block = b"".join(fields)
    assert len(block) == 512
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padded(data: bytes) -> bytes:
    """Return data filled up to whole blocks."""
    return data + bytes(-len(data) % 512)


def entry(name: bytes, data: bytes = b"", flag: bytes = b"0") -> bytes:
    """Return a member with its data."""
    return header(name, flag, len(data)) + padded(data)


def pax(*records: tuple[bytes, bytes], flag: bytes = b"x") -> bytes:
    """Return a pax header with these keywords and values."""
    body = b""
    for keyword, value in records:
        rest = b" " + keyword + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(b"%d" % length) + len(rest) != length:
            length += 1
        body += b"%d" % length + rest
    return entry(b"PaxHeaders/x", body, flag)


@dataclass(slots=True)
class Seen:
    """What a parser gave: members in order, the data of each, and whether it saw the end."""

    members: list[Member] = field(default_factory=list)
    data: dict[str, bytes] = field(default_factory=dict)
    complete: int = 0
    ended: bool = False

    def member(self, name: str) -> Member:
        """Return the member of this name."""
        return next(member for member in self.members if member.name == name)

    @property
    def names(self) -> list[str]:
        """The names of all members in order."""
        return [member.name for member in self.members]


def parse(archive: bytes, cuts: Iterable[int] = (), limits: TarLimits | None = None) -> Seen:
    """Parse an archive, fed in pieces that end at `cuts`; check that events follow each other as they must."""
    parser, seen = TarParser(limits), Seen()
    bounds: Sequence[int] = [0, *sorted(cuts), len(archive)]
    current: Member | None = None
    for start, stop in pairwise(bounds):
        parser.feed(archive[start:stop])
        while True:
            match parser.next_event():
                case Member() as member:
                    assert current is None
                    current = member
                    seen.members.append(member)
                    seen.data[member.name] = b""
                case Data(data):
                    assert current is not None
                    assert current.kind == "file"
                    assert data
                    seen.data[current.name] += data
                case EndOfMember():
                    assert current is not None
                    seen.complete += 1
                    current = None
                case End():
                    assert current is None
                    seen.ended = True
                    break
                case NeedData():
                    break
    assert seen.ended == parser.ended
    return seen


def make_tar(entries: Iterable[tuple[tarfile.TarInfo, bytes]], form: int) -> bytes:
    """Return an archive made by the standard library."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()
