"""A content that is read where it is: a file of this machine, which needs no copy of its bytes."""

from __future__ import annotations

import os
import weakref

from refgenfs.cache.shelf import Reservation
from refgenfs.core.content import ContentId, LocalFile, Run
from refgenfs.core.errors import CacheError, OriginUnavailable
from refgenfs.fetch.local import check_version, open_version, refusal


class StraightContent:
    """Stands in for a `Content`: all of it is there, and nothing of it in the cache.

    The file is held open, so one that was replaced is read to its end; one that is changed in place is StaleContent.
    Made in a thread: opening may wait for a network.
    """

    __slots__ = ("__weakref__", "_extent", "_fd", "id", "size")

    def __init__(self, content: ContentId, size: int, extent: LocalFile) -> None:
        self.id = content
        self.size = size
        self._extent = extent
        self._fd = open_version(extent)
        weakref.finalize(self, os.close, self._fd)

    def missing(self, run: Run) -> int:
        """Return -1: nothing has to be fetched."""
        return -1

    def reserve(self, run: Run, *, older_than: int | None = None) -> Reservation | None:
        """Return None: nothing is stored."""
        return None

    def touch(self, run: Run) -> None:
        """Do nothing: nothing is in the cache."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly these bytes. Raises StaleContent, or what hinders it."""
        try:
            return self._checked(os.pread(self._fd, length, offset), offset, length)
        except OSError as exc:
            raise refusal(self._extent.path, exc) from exc

    def read_at_once(self, offset: int, length: int) -> bytes | None:
        """Do as `read`; but None where the disk would have to be waited for."""
        data = bytearray(length)
        try:
            count = os.preadv(self._fd, [data], offset, os.RWF_NOWAIT)
        except OSError:  # nothing is in memory, or this file system can't say
            return None
        return self._checked(bytes(data), offset, length) if count == length else None

    def bring(self, offset: int, length: int) -> None:
        """Read what is to be in memory. Blocks."""
        self.read(offset, length)

    def pass_by(self, run: Run) -> None:
        """Do nothing: the kernel's memory of the file is for all who read it."""

    def write(self, index: int, data: memoryview) -> int:
        """Raise CacheError: nothing is stored."""
        raise CacheError(f"content {self.id} is not stored")

    def commit(self, index: int, crc: int, reservation: Reservation | None = None) -> bool:
        """Return False: nothing becomes resident."""
        return False

    def _checked(self, data: bytes, offset: int, length: int) -> bytes:
        check_version(self._fd, self._extent)  # after the read: it may have met two versions
        if len(data) != length:
            raise OriginUnavailable(f"{self._extent.path}: {len(data)} of {length} bytes at {offset} were read")
        return data
