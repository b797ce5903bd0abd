"""The seek index of an archive that lies in a file."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from refgenfs.core.errors import ArchiveError, IntegrityError
from refgenfs.core.seekindex import HEADER_SIZE, SUFFIX, head_size, spacing_for
from refgenfs.core.tar import Data, EndOfMember, Member, TarParser
from refgenfs.fetch.seekpoints import IndexBuilder, NotIndexed

_READ = 1 << 20  # bytes of the archive at a time


@dataclass(frozen=True, slots=True)
class Indexed:
    """An archive that has an index now: where both are, their sizes in bytes, and what the index holds."""

    archive: Path
    archive_size: int
    unpacked_size: int
    members: int
    index: Path
    index_size: int
    spans: int
    spacing: int


def index_archive(
    archive: Path, target: Path | None, spacing: int | None, progress: Callable[[int, int], None]
) -> Indexed:
    """Write the seek index of a `.tgz` to `target`, by default beside it, replacing an index that is there.

    `spacing` is the least number of unpacked bytes of a span, by default `spacing_for` the archive's size. `progress`
    is told how many bytes of how many are done. Raises NotIndexed, with the archive's name and what to do, and
    LibzMissing.
    """
    target = target or archive.with_name(archive.name + SUFFIX)
    try:
        return _index(archive, target, spacing, progress)
    except (NotIndexed, IntegrityError) as exc:
        raise NotIndexed(f"{archive}: {exc}") from exc
    except OSError as exc:
        where = f" ({exc.filename})" if exc.filename and Path(exc.filename) != archive else ""
        raise NotIndexed(f"{archive}: {exc.strerror or exc}{where}") from exc


def _index(archive: Path, target: Path, spacing: int | None, progress: Callable[[int, int], None]) -> Indexed:
    found = archive.stat()
    if not stat.S_ISREG(found.st_mode):  # to open a fifo would wait for a writer
        raise NotIndexed("this is no file")
    size = found.st_size
    spacing = spacing or spacing_for(size)
    _check_target(target)
    builder = IndexBuilder(target.with_name(f".{target.name}.{secrets.token_hex(4)}"), spacing)
    try:
        with archive.open("rb") as source:
            members, digest = _read(source, builder, lambda done: progress(done, size))
            now = os.fstat(source.fileno())
        if (builder.packed, now.st_size, now.st_mtime_ns) != (size, size, found.st_mtime_ns):
            raise NotIndexed("it changed while it was read: try again")
        index_size = builder.finish(members, digest, target)
        return Indexed(archive, size, builder.out, len(members), target, index_size, builder.spans, spacing)
    finally:
        builder.close()


def _check_target(target: Path) -> None:
    """Refuse what can't be written, before an archive is read that may take minutes; and what is no index."""
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise NotIndexed(f"{target.parent} can't be written to: choose another place with --output")
    try:
        with target.open("rb") as file:
            first = file.read(HEADER_SIZE)
            if first:
                head_size(first)
    except FileNotFoundError:
        return
    except (IntegrityError, IsADirectoryError):
        raise NotIndexed(f"{target} is there, and is no seek index: remove it, or choose --output") from None


def _read(source: BinaryIO, builder: IndexBuilder, progress: Callable[[int], None]) -> tuple[list[Member], str]:
    """Inflate the whole archive; return its members and its MD5 (hex)."""
    parser, digest, members, done = TarParser(), hashlib.md5(usedforsecurity=False), list[Member](), 0
    while piece := source.read(_READ):
        if not done and not piece.startswith(b"\x1f\x8b"):
            raise NotIndexed("this is no gzip file; pack it with `tar -czf`")
        digest.update(piece)
        for inflated in builder.inflate(piece):
            parser.feed(inflated)
            for member in _members(parser):
                builder.expect(member)
                members.append(member)
        if builder.failed:
            raise NotIndexed(builder.failed)
        done += len(piece)
        progress(done)
    if not builder.ended:
        raise ArchiveError("it is cut short: its gzip data has no end; fetch or pack it again")
    if not parser.ended:
        raise ArchiveError("it is cut short, or no tar: there is no end mark in it; fetch or pack it again")
    return members, digest.hexdigest()


def _members(parser: TarParser) -> Iterator[Member]:
    """Give the members whose headers are in what was fed; their data goes by."""
    while isinstance(event := parser.next_event(), Member | Data | EndOfMember):
        if isinstance(event, Member):
            yield event
