"""The journal: a second copy of the ledger's rows, from which a damaged ledger is rebuilt.

A text file that rows are appended to, beside the contents that they are about. Each line begins with a CRC-32 of
itself and of all lines before it, so that what is read of it is always a beginning of its history: what the
ledger once was, never a mixture. Blocks that its rows name are checked against their checksums when they are
read, so a beginning is enough. It is written anew, from the ledger, when it has become long.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from refgenfs.cache.disk import sync_directory

NAME = "journal"
SLACK = 128 * 1024  # bytes that may be appended, at the least, before it is written anew
_HEADER = b"refgenfs journal 1\n"
_PIECE = 256 * 1024

log = logging.getLogger(__name__)

Row = tuple[str, str | None]  # a key and its JSON text, or None: forgotten


class Journal:
    """The journal of an open ledger, whose lock guards it.

    It is `stale` when it lacks rows that the ledger has: nothing more is appended then, until `rewrite`.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        self.size = 0
        self.live = 0  # its size when it was written anew last
        self.stale = True
        self._crc = 0
        self._fd = -1

    @property
    def bound(self) -> int:
        """The size in bytes that it never passes."""
        return max(self.size, self.live + max(SLACK, self.live // 2))

    @property
    def mark(self) -> str:
        """What `attach` knows it by."""
        return "" if self.stale else f"{self.size}-{self._crc:08x}-{self.live}"

    def attach(self, mark: str) -> bool:
        """Go on with the journal that was left under this mark; False, and it is stale, if it is another."""
        try:
            size, crc, live = mark.split("-")
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
            if os.fstat(fd).st_size != int(size):
                os.close(fd)
                return False
            self._fd, self.size, self._crc, self.live = fd, int(size), int(crc, 16), int(live)
        except (OSError, ValueError):
            return False
        self.stale = False
        return True

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows; the journal is stale afterwards if there is no room for them. Raises nothing."""
        if self.stale:
            return
        crc, data = _lines(rows, self._crc)
        if self.size + len(data) > self.bound:
            self.stale = True
            return
        try:
            _write(self._fd, data)
        except OSError as exc:
            # what was written of it is no whole line, or one line more: a beginning all the same
            log.warning("the journal of the ledger can't be written: %s", exc.strerror)
            self.stale = True
            return
        self.size += len(data)
        self._crc = crc

    def rewrite(self, rows: Iterable[tuple[str, object]]) -> None:
        """Write it anew from all rows of the ledger, on disk when this returns. Raises OSError."""
        self.stale = True
        fresh = self.path.with_name(f"{NAME}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(fresh, flags, 0o600)
        try:
            size, crc = _write_all(fd, rows)
            os.fdatasync(fd)
            os.replace(fresh, self.path)
            sync_directory(self.path.parent)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                fresh.unlink()
            raise
        self.close()
        self._fd, self.size, self.live, self._crc = fd, size, size, crc
        self.stale = False

    def sync(self) -> None:
        """Bring it to the disk. Raises OSError."""
        if self._fd >= 0:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def replay(directory: Path) -> Iterator[Row]:
    """Yield the rows of the journal in a directory, oldest first, up to the first line that is not whole.

    A later row of a key replaces an earlier one. Yields nothing where there is no journal of this version.
    """
    try:
        file = (directory / NAME).open("rb")
    except OSError:
        return
    with file:
        try:
            if file.readline(len(_HEADER)) != _HEADER:
                return
            crc = zlib.crc32(_HEADER)
            for line in file:
                text = line[9:]
                crc = zlib.crc32(text, crc)
                if line[:9] != b"%08x " % crc or not line.endswith(b"\n"):
                    log.warning("the journal of the ledger is damaged: what follows byte %d is lost", file.tell())
                    return
                key, _, value = text[:-1].partition(b"\t")
                yield json.loads(key), value.decode() or None
        except OSError as exc:
            log.warning("the journal of the ledger can't be read to its end: %s", exc.strerror)


def has_rows(directory: Path) -> bool:
    """Say whether a journal of this version with a row in it is there."""
    return next(replay(directory), None) is not None


def _lines(rows: Iterable[Row], crc: int) -> tuple[int, bytes]:
    lines = []
    for key, value in rows:
        text = f"{json.dumps(key)}\t{value or ''}\n".encode()
        crc = zlib.crc32(text, crc)
        lines.append(b"%08x %s" % (crc, text))
    return crc, b"".join(lines)


def _write_all(fd: int, rows: Iterable[tuple[str, object]]) -> tuple[int, int]:
    size, crc, piece = 0, zlib.crc32(_HEADER), bytearray(_HEADER)
    for key, value in rows:
        if isinstance(value, str):
            crc, line = _lines(((key, value),), crc)
            piece += line
        if len(piece) >= _PIECE:
            size += _write(fd, piece)
            piece.clear()
    return size + _write(fd, piece), crc


def _write(fd: int, data: bytes | bytearray) -> int:
    view, done = memoryview(bytes(data)), 0
    while done < len(view):
        done += os.write(fd, view[done:])
    return done
