"""An archive's members as text, one line each, and back: what a seek index says of its archive.

A line is a JSON array: name, kind, size, mtime, target, offset (see `core.tar.Member`). The text may come from an
origin; it is trusted no more than the archive itself would be.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import get_args

from refgenfs.core.errors import ArchiveError, IntegrityError
from refgenfs.core.links import BUILD_FOLDER, MAX_PATH
from refgenfs.core.tar import Kind, Member, TarLimits
from refgenfs.core.tarheader import HEADER, split_name

_KINDS = frozenset(get_args(Kind))
_MAX_LINE = 12 * MAX_PATH + 256  # two paths, each character at most as \uXXXX


def encode_members(members: Iterable[Member]) -> bytes:
    """Return the members as text (ASCII), in their order."""
    rows = ([m.name, m.kind, m.size, m.mtime, m.target, m.offset] for m in members)
    return b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)


def decode_members(text: bytes, unpacked_size: int) -> tuple[Member, ...]:
    """Return the members that `encode_members` wrote, of a tar of `unpacked_size` bytes.

    Raises IntegrityError for what is no such text, and for members that no `TarParser` would have given: unsafe or
    ambiguous names, data that overlaps or lies outside, links to nothing.
    """
    limits = TarLimits()
    known: dict[str, Member] = {}
    members: list[Member] = []
    names = 0
    start = end = 0  # of the line; of the data of the members so far
    while start < len(text):
        stop = text.find(b"\n", start, start + _MAX_LINE)
        if stop < 0:
            raise IntegrityError("the seek index has a member that can't be read")
        member = _decode(text[start:stop])
        names += len(member.name) + len(member.target or "")
        if len(members) == limits.members or names > limits.names:
            raise IntegrityError("the seek index has too many members")
        _check(member, known)
        end = _place(member, end, unpacked_size)
        if member.kind != "dir" or member.name not in known:
            known[member.name] = member
        members.append(member)
        start = stop + 1
    _check_folders(known)
    return tuple(members)


def _decode(line: bytes) -> Member:
    try:
        name, kind, size, mtime, target, offset = json.loads(line)
    except (ValueError, TypeError, RecursionError) as exc:
        raise IntegrityError("the seek index has a member that can't be read") from exc
    right = (
        isinstance(name, str)
        and isinstance(kind, str)
        and kind in _KINDS
        and type(size) is int
        and type(offset) is int
        and 0 <= size < 1 << 63
        and type(mtime) is float
        and abs(mtime) < 1 << 63
        and (target is None or isinstance(target, str))
    )
    if not right:
        raise IntegrityError("the seek index has a member that can't be read")
    return Member(name, kind, size, mtime, target, offset)


def _check(member: Member, known: dict[str, Member]) -> None:
    """Refuse names and targets that the parser of tar archives refuses."""
    try:
        raw = member.name.encode(errors="surrogateescape")
        parts = split_name(raw, "member", folder=member.kind == "dir")
        target = (member.target or "").encode(errors="surrogateescape")
    except (ArchiveError, UnicodeEncodeError) as exc:
        raise IntegrityError(f"the seek index has the impossible name {member.name[:200]!r}") from exc
    earlier = known.get(member.name)
    if b"/".join(parts) != raw or (earlier and not earlier.kind == member.kind == "dir"):
        raise IntegrityError(f"the seek index has the name {member.name[:200]!r} twice, or not as it is written")
    linked = member.kind in ("link", "hardlink")
    wrong = member.kind != "other" and linked != (member.target is not None)
    if wrong or b"\0" in target or len(target) > MAX_PATH:
        raise IntegrityError(f"the seek index gives {member.name[:200]!r} an impossible target")
    if member.kind == "hardlink":
        original = known.get(member.target or "")
        if original is None or original.kind != "file" or original.size != member.size:
            raise IntegrityError(f"the seek index links {member.name[:200]!r} to no file before it")
    elif member.kind in ("dir", "link") and member.size:
        raise IntegrityError(f"the seek index gives {member.name[:200]!r}, which has no data, a size")
    if member.name.startswith(BUILD_FOLDER) and member.kind != "other":
        raise IntegrityError(f"the seek index shows {member.name[:200]!r}, which is no part of the asset")


def _place(member: Member, end: int, unpacked_size: int) -> int:
    """Check that a member comes after what is before it and inside of the tar; return where its data ends."""
    begin = member.offset
    size = member.size if member.kind == "file" else 0
    if begin < end + HEADER or begin % HEADER or begin + size > unpacked_size:
        raise IntegrityError(f"the seek index puts {member.name[:200]!r} where it can't be")
    return begin + -(-size // HEADER) * HEADER


def _check_folders(known: dict[str, Member]) -> None:
    for name in known:
        folder = name.rpartition("/")[0]
        while folder:
            above = known.get(folder)
            if above is not None and above.kind != "dir":
                raise IntegrityError(f"the seek index has {name[:200]!r} below what is no folder")
            folder = folder.rpartition("/")[0]
