"""One daemon a cache directory."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from pathlib import Path

from refgenfs.core.errors import CacheBusy, CacheError

TAG = "CACHEDIR.TAG"
# What a disk says that is broken, full, or mounted read-only: that passes, and reads can go on meanwhile. What
# says that the directory is the wrong one (permission, not a directory) is for people to mend, at once.
PASSING = frozenset({errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEDIUM, errno.ENODEV, errno.ENXIO})
# Of these, such as leave the disk readable. On any other nothing is kept open: people must be able to unmount it.
_READABLE = frozenset({errno.EROFS, errno.ENOSPC, errno.EDQUOT})
_OWN = frozenset(
    {"lock", TAG, "ledger", "ledger.damaged", "ledger.new", "contents", "scratch", "clean", "lost+found"}
)
_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This directory is a cache of refgenfs: backups may leave it out (https://bford.info/cachedir/).\n"
)


class DirectoryLock:
    """The right to use a cache directory, held for as long as the process keeps it."""

    def __init__(self, directory: Path, owner: str) -> None:
        self._directory = directory
        self._owner = owner
        self._fd = -1
        self._for_good = False  # by the file that everybody looks at
        self.refused: CacheError | None = None  # why not, where the disk takes no writes

    @classmethod
    def acquire(cls, directory: Path, owner: str) -> DirectoryLock:
        """Make the directory if it is not there and lock it.

        `owner` is what another daemon tells people (a mountpoint). On a disk that takes no writes for now, what is
        there is locked as far as that goes; `retake` does it for good. Raises CacheBusy when another process has
        the lock, CacheError when the directory can't be used at all.
        """
        lock = cls(directory, owner)
        try:
            lock.retake()
        except CacheError as exc:
            if isinstance(exc, CacheBusy) or not isinstance(cause := exc.__cause__, OSError):
                raise
            if cause.errno not in PASSING:
                raise
            lock.refused = exc
            if cause.errno in _READABLE:
                lock._lock_unwritten()
        return lock

    def retake(self) -> None:
        """Lock the directory for good, and say in it who has it. Raises as `acquire` does."""
        if self._for_good:
            return
        directory = self._directory
        fd = -1
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_ours(directory)
            fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            self.release()
            _lock(directory, fd)
            holder = {"pid": os.getpid(), "owner": self._owner, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode(), 0)
            _tag(directory)
        except OSError as exc:
            if fd >= 0:
                os.close(fd)
            raise CacheError(
                f"the cache directory {directory} can't be used: {exc.strerror}; "
                "set cache.dir to a directory that this user can write; a unit needs ReadWritePaths= for it"
            ) from exc
        self._fd, self._for_good, self.refused = fd, True, None

    def _lock_unwritten(self) -> None:
        """Lock what is there: the lock file, else the directory; nothing, where there is no directory."""
        for name in ("lock", "."):
            try:
                fd = os.open(self._directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            _lock(self._directory, fd)
            self._fd = fd
            return

    def release(self) -> None:
        """Let another daemon have the directory."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _lock(directory: Path, fd: int) -> None:
    """Lock an open file; raise CacheBusy, and close it, when another process has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        message = _busy(directory, fd)
        os.close(fd)
        raise CacheBusy(message) from None


def _check_ours(directory: Path) -> None:
    """Raise CacheError for a directory that another user, or another program, has put there."""
    status = os.stat(directory)
    if status.st_uid != os.geteuid():
        raise CacheError(f"the cache directory {directory} is another user's; set cache.dir to one of your own")
    if not (directory / TAG).is_file() and any(name not in _OWN for name in os.listdir(directory)):
        raise CacheError(f"{directory} holds files that are no cache's; set cache.dir to a new or an empty directory")
    for name in _OWN:
        if (directory / name).is_symlink():
            raise CacheError(f"{directory / name} is a link, which a cache never has: remove it")
    if status.st_mode & 0o777 != 0o700:
        os.chmod(directory, 0o700)


def _tag(directory: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(directory / TAG, flags, 0o600), "w") as file:
        file.write(_TAG)


def _busy(directory: Path, fd: int) -> str:
    try:
        holder = json.loads(os.pread(fd, 4096, 0))
        who = f"process {int(holder['pid'])} ({holder['owner']}) since {holder['since']}"
        what = f"`refgenfs umount {holder['owner']}` ends it"
    except (OSError, ValueError, KeyError, TypeError):
        who, what = "another process", "end it"
    return f"the cache directory {directory} is in use by {who}; {what}, or set another cache.dir"
