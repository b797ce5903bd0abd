"""Tar archives as they stream by: bytes go in, members and their data come out.

A parser of ustar, pax, GNU and old (v7) archives that does no I/O and copies no bulk data. An archive comes
from an origin and is not trusted: what is damaged, ambiguous or names a place outside its one top folder is
refused whole, with an error that says what it was.

Formats: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar
Format" (long names, base-256 numbers, sparse files).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn

from refgenfs.core.errors import ArchiveError
from refgenfs.core.links import BUILD_FOLDER, MAX_PATH
from refgenfs.core.links import LinkTarget as LinkTarget
from refgenfs.core.links import resolve_link as resolve_link
from refgenfs.core.tarheader import (
    HEADER,
    Header,
    parse_header,
    parse_pax,
    parse_pax_size,
    parse_pax_time,
    show,
    split_name,
)

Kind = Literal["file", "link", "hardlink", "dir", "other"]


_KINDS: Mapping[bytes, Kind] = {
    b"1": "hardlink",
    b"2": "link",
    b"3": "other",  # character device
    b"4": "other",  # block device
    b"5": "dir",
    b"6": "other",  # fifo
    b"D": "dir",  # GNU incremental: a folder whose data is a listing
}  # any other type is a file: POSIX.1-2017, ustar, typeflag
_REFUSED: Mapping[bytes, str] = {
    b"S": "a sparse file",
    b"M": "the continuation of a file from another volume",
    b"N": "a table of names in a format that GNU tar has given up",
}
_EXTENSIONS: Mapping[bytes, str] = {
    b"L": "long name",
    b"K": "long link target",
    b"x": "pax header",
    b"X": "pax header",  # as Solaris wrote it
    b"g": "global pax header",
}
_PAX_SPARSE = (b"GNU.sparse.", b"SCHILY.realsize", b"SCHILY.filetype")

_PLAIN = (b"0", b"\0")


@dataclass(frozen=True, slots=True)
class TarLimits:
    """How much of an archive's structure is kept in memory before it is refused."""

    members: int = 100_000
    extension: int = 1 << 20  # bytes of one pax header or long name
    names: int = 8 << 20  # bytes of all names and link targets together


@dataclass(frozen=True, slots=True)
class Member:
    """The header of a member went by.

    `name` is relative to the archive's top folder and safe to use as a path below another. `size` is in bytes
    (a hard link has its target's, other links and folders 0), `mtime` in Unix seconds. `target` is a symbolic
    link's text as it stands, or the name of the earlier *file* that a hard link repeats. `offset` is that of
    the data in the unpacked tar. Members of kind "other" (devices, fifos, `_refgenie_build*`) are not to be
    shown, and their data is not reported.
    """

    name: str
    kind: Kind
    size: int
    mtime: float
    target: str | None
    offset: int


@dataclass(frozen=True, slots=True)
class Data:
    """The next bytes of the current member, never empty: a view of what was fed, not a copy."""

    data: memoryview


@dataclass(frozen=True, slots=True)
class EndOfMember:
    """The current member is complete; every `Member` has one."""


@dataclass(frozen=True, slots=True)
class End:
    """The end-of-archive mark was seen; whatever follows is ignored."""


@dataclass(frozen=True, slots=True)
class NeedData:
    """Nothing can be said before more is fed."""


NEED_DATA = NeedData()
Event = Member | Data | EndOfMember | End | NeedData


class TarParser:
    """Parse one tar archive, fed in pieces of any length.

    `next_event` gives `Member`, `Data`…, `EndOfMember` for each member in order, `End` after the mark of two
    zero blocks, and `NEED_DATA` when it has to be fed. An archive without the mark never gives `End`. After
    an ArchiveError every further call raises it again.
    """

    def __init__(self, limits: TarLimits | None = None) -> None:
        self._limits = limits or TarLimits()
        self._pending: deque[memoryview] = deque()
        self._buffered = 0
        self._position = 0  # of the next unread byte in the unpacked tar
        self._remaining = 0  # data bytes of the current member or extension
        self._padding = 0
        self._step: Callable[[], Event | None] = self._read_header
        self._failure: ArchiveError | None = None
        self._ended = False
        self._extension = b""
        self._long: dict[bytes, bytes] = {}  # "L", "K": for the next member
        self._pax: dict[bytes, bytes] | None = None
        self._global_mtime: float | None = None
        self._top: bytes | None = None
        self._members: dict[str, Member] = {}  # but for folders
        self._folders: set[str] = set()
        self._count = 0
        self._names = 0

    @property
    def ended(self) -> bool:
        """Say whether the end-of-archive mark was seen."""
        return self._ended

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes; they are kept by reference, so they must not change while events show them."""
        if len(data) and not self._ended:
            self._pending.append(memoryview(data).cast("B"))
            self._buffered += self._pending[-1].nbytes

    def next_event(self) -> Event:
        """Return what comes next; raise ArchiveError for an archive that is damaged or unsafe."""
        if self._failure is not None:
            raise self._failure
        try:
            while (event := self._step()) is None:
                pass
        except ArchiveError as exc:
            self._failure = exc
            self._pending.clear()
            raise
        return event

    # States: each consumes what it can and returns an event, or None when another state goes on.

    def _read_header(self) -> Event | None:
        block = self._take(HEADER)
        if block is None:
            return NEED_DATA
        if not any(block):
            if self._long or self._pax is not None:
                self._fail("ends after a header that announces a member")
            self._step = self._read_second_zero
            return None
        header = parse_header(block, self._position - HEADER)
        if header.flag not in _EXTENSIONS:
            return self._begin_member(header)
        if header.size > self._limits.extension:
            self._fail(f"has a {_EXTENSIONS[header.flag]} of {header.size} bytes")
        self._extension = header.flag
        self._remaining = header.size
        self._padding = -header.size % HEADER
        self._step = self._read_extension
        return None

    def _read_second_zero(self) -> Event | None:
        block = self._take(HEADER)
        if block is None:
            return NEED_DATA
        if any(block):
            self._fail("has a lone zero block in its middle")
        self._ended = True
        self._pending.clear()
        self._buffered = 0
        self._step = End
        return None

    def _read_extension(self) -> Event | None:
        raw = self._take(self._remaining)
        if raw is None:
            return NEED_DATA
        flag = self._extension
        if flag in b"LK":
            if flag in self._long:
                self._fail(f"gives a member two {_EXTENSIONS[flag]}s")
            self._long[flag] = raw.rstrip(b"\0")
        elif flag == b"g":
            self._count_member()
            self._apply_global(self._read_pax(raw))
        elif self._pax is not None:
            self._fail("gives a member two pax headers")
        else:
            self._pax = self._read_pax(raw)
        self._step = self._skip_padding
        return None

    def _read_data(self) -> Event | None:
        if not self._remaining:
            self._step = self._skip_padding
            return EndOfMember()
        if not self._pending:
            return NEED_DATA
        data = self._take_view(self._remaining)
        self._remaining -= len(data)
        return Data(data)

    def _skip_data(self) -> Event | None:
        while self._remaining:
            if not self._pending:
                return NEED_DATA
            self._remaining -= len(self._take_view(self._remaining))
        self._step = self._skip_padding
        return EndOfMember()

    def _skip_silently(self) -> Event | None:
        event = self._skip_data()
        return None if isinstance(event, EndOfMember) else event

    def _skip_padding(self) -> Event | None:
        while self._padding:
            if not self._pending:
                return NEED_DATA
            self._padding -= len(self._take_view(self._padding))
        self._step = self._read_header
        return None

    # Members

    def _begin_member(self, plain: Header) -> Event | None:
        self._count_member()
        if plain.flag in _REFUSED:
            self._fail(f"holds {_REFUSED[plain.flag]}, {show(plain.name)}")
        header = self._extended(plain)
        self._remaining = header.size
        self._padding = -header.size % HEADER
        kind = _KINDS.get(header.flag, "file")
        if header.flag in _PLAIN and header.name.endswith(b"/"):
            kind = "dir"  # as v7 tar marks folders
        if kind != "file" and header.flag != b"D" and header.size:
            # Readers disagree on whether data follows: what one hides there, another takes for members.
            self._fail(f"gives {show(header.name)}, which can have no data, {header.size} bytes")
        self._step = self._skip_silently
        if header.flag == b"V":  # the label of a GNU volume: no path
            return None
        parts = self._place(header.name, "member", folder=kind == "dir")
        if not parts:
            return None
        member = self._make_member(header, kind, parts)
        self._step = self._read_data if member.kind == "file" else self._skip_data
        return member

    def _make_member(self, header: Header, kind: Kind, parts: list[bytes]) -> Member:
        name = _decode(b"/".join(parts))
        self._claim(name, kind)
        size = 0 if kind == "dir" else header.size
        target: str | None = None
        if kind == "link":
            if b"\0" in header.link or len(header.link) > MAX_PATH:
                self._fail(f"holds the link {show(header.name)} with an impossible target {show(header.link)}")
            target = _decode(header.link)
        elif kind == "hardlink":
            original = self._original(header)
            kind, size, target = original.kind, original.size, original.target
            if kind == "file":
                kind, target = "hardlink", original.name
        self._spend_names(len(target or ""))
        shown: Kind = "other" if name.startswith(BUILD_FOLDER) else kind
        member = Member(name, shown, size, header.mtime, target, self._position)
        if kind != "dir":
            self._members[name] = member
        return member

    def _original(self, header: Header) -> Member:
        parts = self._place(header.link, "hard link's target", folder=False)
        original = self._members.get(_decode(b"/".join(parts)))
        if original is None:
            self._fail(f"holds {show(header.name)}, a hard link to {show(header.link)}, which is not before it")
        return original

    def _claim(self, name: str, kind: Kind) -> None:
        """Refuse a name that is taken or lies below a file: an earlier member's bytes are out already."""
        if name in self._members or (kind != "dir" and name in self._folders):
            self._fail(f"holds {name[:200]!r} twice")
        folder = name if kind == "dir" else name.rpartition("/")[0]
        while folder and folder not in self._folders:
            if folder in self._members:
                self._fail(f"holds {name[:200]!r}, below {folder[:200]!r}, which is no folder")
            self._folders.add(folder)
            self._spend_names(len(folder))
            folder = folder.rpartition("/")[0]
        if kind != "dir":
            self._spend_names(len(name))

    def _place(self, raw: bytes, what: str, *, folder: bool) -> list[bytes]:
        """Return the components of a path below the top folder; none for the top folder itself."""
        parts = split_name(raw, what, folder=folder)
        if not parts:
            return []
        if self._top is None:
            self._top = parts[0]
        if parts[0] != self._top:
            self._fail(f"has more than one top folder: {show(self._top)} and {show(parts[0])}")
        if len(parts) == 1 and not folder:
            self._fail(f"holds the {what} {show(raw)} outside a top folder")
        return parts[1:]

    # Extended headers

    def _extended(self, header: Header) -> Header:
        """Return the header with what its extensions say instead, and forget those."""
        long, pax = self._long, self._pax or {}
        self._long, self._pax = {}, None
        for flag, keyword in ((b"L", b"path"), (b"K", b"linkpath")):
            if flag in long and keyword in pax:
                self._fail(f"names {show(long[flag])} in two ways")
        mtime = header.mtime if self._global_mtime is None else self._global_mtime
        if b"mtime" in pax:
            mtime = parse_pax_time(pax[b"mtime"])
        size = parse_pax_size(pax[b"size"]) if b"size" in pax else header.size
        name = pax.get(b"path", long.get(b"L", header.name))
        return Header(name, header.flag, size, mtime, pax.get(b"linkpath", long.get(b"K", header.link)))

    def _apply_global(self, pax: Mapping[bytes, bytes]) -> None:
        for keyword in (b"path", b"linkpath", b"size"):
            if keyword in pax:
                self._fail(f"has a global pax header with one {keyword.decode()} for all members")
        if b"mtime" in pax:
            self._global_mtime = parse_pax_time(pax[b"mtime"])

    def _read_pax(self, raw: bytes) -> dict[bytes, bytes]:
        found = dict(parse_pax(raw))
        for keyword in found:
            if keyword.startswith(_PAX_SPARSE):
                self._fail(f"holds a sparse file ({keyword.decode(errors='replace')} in a pax header)")
        return found

    # Bytes

    def _take(self, length: int) -> bytes | None:
        """Return the next `length` bytes, or None while fewer are there. Copies: for headers only."""
        if self._buffered < length:
            return None
        pieces: list[memoryview] = []
        while length:
            pieces.append(self._take_view(length))
            length -= len(pieces[-1])
        return b"".join(pieces)

    def _take_view(self, most: int) -> memoryview:
        """Return the next bytes, at least one and at most `most`; there must be some."""
        view = self._pending.popleft()
        if len(view) > most:
            self._pending.appendleft(view[most:])
            view = view[:most]
        self._buffered -= len(view)
        self._position += len(view)
        return view

    def _count_member(self) -> None:
        self._count += 1
        if self._count > self._limits.members:
            self._fail(f"has more than {self._limits.members} members")

    def _spend_names(self, length: int) -> None:
        self._names += length
        if self._names > self._limits.names:
            self._fail(f"has names of more than {self._limits.names} bytes together")

    def _fail(self, reason: str) -> NoReturn:
        raise ArchiveError(f"the archive {reason} (at byte {self._position} of the unpacked tar)")


def _decode(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")
