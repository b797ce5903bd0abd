"""A content that is read where it is: a file of this machine, which needs no copy of its bytes."""

from __future__ import annotations

import os
import resource
import weakref

from refgenfs.cache.shelf import Reservation
from refgenfs.core.content import ContentId, LocalFile, Run
from refgenfs.core.errors import CacheError, NoMoreOpenFiles, OriginUnavailable
from refgenfs.fetch.local import check_version, is_near, open_version, refusal


class StraightContent:
    """Stands in for a `Content`: all of it is there, and nothing of it in the cache.

    The file is held open, so one that was replaced is read to its end; one that is changed in place is StaleContent.
    Made in a thread: opening may wait for a network. `near`: it is on a disk of this machine, and
    what the kernel has in memory is read on the spot; all else goes by a thread, for a disk that seeks, or a file
    system that is gone, would hold up everybody.
    """

    __slots__ = ("__weakref__", "_extent", "_fd", "id", "near", "size")

    def __init__(self, content: ContentId, size: int, extent: LocalFile) -> None:
        self.id = content
        self.size = size
        self._extent = extent
        self._fd = open_version(extent)
        weakref.finalize(self, os.close, self._fd)
        self.near = is_near(os.fstat(self._fd).st_dev)

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
            data = os.pread(self._fd, length, offset)
            check_version(self._fd, self._extent)  # after it: what was read may be of two versions
        except OSError as exc:
            raise refusal(self._extent.path, exc) from exc
        if len(data) != length:
            raise OriginUnavailable(f"{self._extent.path}: {len(data)} of {length} bytes at {offset} were read")
        return data

    def read_at_once(self, offset: int, length: int) -> memoryview | None:
        """Return these bytes if they are in memory, and the file is near; None: `read` has to wait for them."""
        if not self.near:
            return None
        data = bytearray(length)
        try:
            if os.preadv(self._fd, [data], offset, os.RWF_NOWAIT) != length:
                return None
        except OSError:  # none of it is in memory, or this file system can't say
            return None
        check_version(self._fd, self._extent)
        return memoryview(data)

    def bring(self, offset: int, length: int) -> None:
        """Do nothing: what is read is what the file has then."""

    def pass_by(self, run: Run) -> None:
        """Do nothing: the kernel's memory of the file is for all who read it."""

    def write(self, index: int, data: memoryview) -> int:
        """Raise CacheError: nothing is stored."""
        raise CacheError(f"content {self.id} is not stored")

    def commit(self, index: int, crc: int, reservation: Reservation | None = None) -> bool:
        """Return False: nothing becomes resident."""
        return False


class StraightFiles:
    """The contents that are read where they are: one file each, however many have it open.

    At most `limit` are open, a half of the descriptors that this process may have where nothing is said. For the trio
    thread.
    """

    def __init__(self, limit: int = 0) -> None:
        self._limit = limit
        self._open: weakref.WeakValueDictionary[tuple[ContentId, LocalFile], StraightContent] = (
            weakref.WeakValueDictionary()
        )

    def check(self, content: ContentId, extent: LocalFile) -> None:
        """Raise NoMoreOpenFiles where a file is not open, and one too many would be."""
        limit = self._limit or resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        if len(self._open) >= limit and (content, extent) not in self._open:
            raise NoMoreOpenFiles(f"as many files of local sources are open as there may be ({limit})")

    def share(self, opened: StraightContent, extent: LocalFile) -> StraightContent:
        """Return the content that is open already; else this one, from now on."""
        return self._open.setdefault((opened.id, extent), opened)
