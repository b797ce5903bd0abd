"""Content files on the disk: open handles, holes, and how much room is left."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from refgenfs.core.content import ContentId

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_NO_PLAIN_FILE = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO})  # what open says of a link, a folder, a socket
_REFRESH_AFTER = 1.0  # seconds that a measurement of the free space is believed, or
_REFRESH_BYTES = 16 << 20  # until this much was promised since

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the bytes of a range back to the file system; they read as zeros. Raises OSError."""
    while _libc.fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to the disk. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def can_punch(directory: Path) -> bool:
    """Say whether the file system of a directory can punch holes; raises OSError when it can't be written."""
    path = directory / ".punch"
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        os.ftruncate(fd, 1 << 16)
        punch_hole(fd, 0, 1 << 15)
        return True
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return False
        raise
    finally:
        os.close(fd)
        os.unlink(path)


def disk_use(path: Path | str) -> int:
    """Return what a file takes on disk, in bytes; 0 for one that is not there."""
    try:
        return os.stat(path).st_blocks * 512
    except OSError:
        return 0


class WrongFile(OSError):
    """A content file is not as long as its content, or no plain file: somebody else changed it."""


def remove_file(path: Path | str) -> None:
    """Remove what has a content file's name; a folder, which may be somebody's, is set aside. Raises OSError."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            os.rename(path, f"{path}.foreign")
        else:
            os.unlink(path)


class Handle:
    """An open content file. `users` threads are in the middle of a system call on it."""

    __slots__ = ("fd", "recent", "users")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 0
        self.recent = True


class Handles:
    """Open content files, at most `limit` of them idle.

    Only the owner's thread closes files, so that thread may use a handle without a lease; any other thread
    takes a lease, which keeps the file open.
    """

    def __init__(self, directory: Path, limit: int | None = None) -> None:
        self.directory = directory
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.limit = limit or max(16, min(512, soft // 4 if soft > 0 else 512))
        self._lock = threading.Lock()
        self._open: OrderedDict[ContentId, Handle] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, cid: ContentId, size: int, *, create: bool) -> Handle:
        """Return the handle of a content's file. Raises OSError."""
        with self._lock:
            return self._get(cid, size, create)

    def _get(self, cid: ContentId, size: int, create: bool) -> Handle:
        handle = self._open.get(cid)
        if handle is None:
            handle = self._open[cid] = Handle(_open(self.directory / cid, size, create))
        handle.recent = True
        return handle

    @contextmanager
    def lease(self, cid: ContentId, size: int, *, create: bool) -> Iterator[int]:
        """Keep a content's file open while another thread uses its descriptor. Raises OSError."""
        with self._lock:
            handle = self._get(cid, size, create)
            handle.users += 1
        try:
            yield handle.fd
        finally:
            with self._lock:
                handle.users -= 1

    def reopen_replaced(self, cid: ContentId, size: int) -> None:
        """Close a content's file if its name means another by now, or one of another size, so that it is seen."""
        with self._lock:
            handle = self._open.get(cid)
            if handle is None or handle.users:
                return
            try:
                found, known = os.lstat(self.directory / cid), os.fstat(handle.fd)
                same = (found.st_dev, found.st_ino, found.st_size) == (known.st_dev, known.st_ino, size)
            except OSError:
                same = False
            if not same:
                _close(self._open.pop(cid))

    @contextmanager
    def borrow(self, cid: ContentId, size: int) -> Iterator[int]:
        """The same for one that is there and used once: if it has to be opened, it is closed again."""
        with self._lock:
            handle = self._open.get(cid)
            if handle is not None:
                handle.users += 1
        fd = _open(self.directory / cid, size, create=False) if handle is None else handle.fd
        try:
            yield fd
        finally:
            if handle is None:
                os.close(fd)
            else:
                with self._lock:
                    handle.users -= 1

    def trim(self) -> None:
        """Close idle files beyond the limit, those first that were not asked for since the last look."""
        if len(self._open) <= self.limit:
            return
        with self._lock:
            for _ in range(2 * len(self._open)):
                if len(self._open) <= self.limit:
                    return
                cid, handle = self._open.popitem(last=False)
                if handle.users or handle.recent:
                    handle.recent = False
                    self._open[cid] = handle
                else:
                    _close(handle)

    def unlink(self, cid: ContentId, busy: Callable[[], bool] = bool) -> bool:
        """Remove a content's file, unless a thread is using it or `busy()`: then False. Raises OSError."""
        with self._lock:
            handle = self._open.get(cid)
            if busy() or (handle is not None and handle.users):
                return False
            if handle is not None:
                del self._open[cid]
                _close(handle)
            remove_file(self.directory / cid)
            return True

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            while self._open:
                _close(self._open.popitem()[1])


def _open(path: Path, size: int, create: bool) -> int:
    """Open a content file, a new one as a hole of `size` bytes; refuse what is none, or one of another size.

    Never follows a link, and never waits (for the other end of a FIFO).
    """
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, os.O_RDWR | flags | (os.O_CREAT if create else 0), 0o600)
    except OSError as exc:
        if exc.errno in _NO_PLAIN_FILE:
            raise WrongFile(errno.EIO, f"it is no plain file ({exc.strerror})") from exc
        if create or exc.errno != errno.EROFS:
            raise
        fd = os.open(path, os.O_RDONLY | flags)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise WrongFile(errno.EIO, "it is no plain file")
        if create and found.st_size == 0:
            os.ftruncate(fd, size)
        elif found.st_size != size:
            raise WrongFile(errno.EIO, f"its file has {found.st_size} bytes, not {size}")
    except OSError:
        os.close(fd)
        raise
    return fd


def _close(handle: Handle) -> None:
    fd, handle.fd = handle.fd, -1
    with suppress(OSError):
        os.close(fd)


class FreeSpace:
    """Room on the file system above what must stay free, measured now and then and guessed in between."""

    def __init__(self, directory: Path, min_free: Callable[[int], int], clock: Callable[[], float]) -> None:
        self._directory = directory
        self._min_free = min_free
        self._clock = clock
        self._measured_at = float("-inf")
        self._room = 0
        self._promised = 0
        self.min_free = 0
        self.free = 0

    def renew(self, min_free: Callable[[int], int]) -> None:
        """Keep so much free from now on."""
        self._min_free = min_free
        self._measured_at = float("-inf")

    def room(self, *, unwritten: int = 0, fresh: bool = False) -> int:
        """Return the bytes that may still be written, with `unwritten` promised already."""
        stale = self._clock() - self._measured_at >= _REFRESH_AFTER or self._promised >= _REFRESH_BYTES
        if fresh or stale:
            self._measure(unwritten)
        return self._room - self._promised

    def take(self, nbytes: int) -> None:
        """Count bytes that will be written."""
        self._promised += nbytes

    def give(self, nbytes: int) -> None:
        """Count bytes that were freed, or promised and not needed."""
        self._promised -= nbytes

    def _measure(self, unwritten: int) -> None:
        try:
            facts = os.statvfs(self._directory)
        except OSError:
            self._room = self._promised = 0
            return
        self.free = facts.f_bavail * facts.f_frsize
        self.min_free = self._min_free(facts.f_blocks * facts.f_frsize)
        self._room = self.free - self.min_free - unwritten
        self._promised = 0
        self._measured_at = self._clock()
