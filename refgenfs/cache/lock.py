"""One daemon a cache directory."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

from refgenfs.core.errors import CacheBusy, CacheError

TAG = "CACHEDIR.TAG"
_OWN = frozenset({"lock", TAG, "ledger", "ledger.damaged", "contents", "clean", "lost+found"})
_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This directory is a cache of refgenfs: backups may leave it out (https://bford.info/cachedir/).\n"
)


class DirectoryLock:
    """The right to use a cache directory, held for as long as the process keeps it."""

    def __init__(self, directory: Path, fd: int) -> None:
        self._directory = directory
        self._fd = fd

    @classmethod
    def acquire(cls, directory: Path, owner: str) -> DirectoryLock:
        """Make the directory if it is not there and lock it.

        `owner` is what another daemon tells people (a mountpoint). Raises CacheBusy when another process has
        the lock, CacheError when the directory can't be made or written.
        """
        fd = -1
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_ours(directory)
            fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder = {"pid": os.getpid(), "owner": owner, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode(), 0)
            _tag(directory)
        except BlockingIOError:
            message = _busy(directory, fd)
            os.close(fd)
            raise CacheBusy(message) from None
        except OSError as exc:
            if fd >= 0:
                os.close(fd)
            raise CacheError(
                f"the cache directory {directory} can't be used: {exc.strerror}; "
                "set cache.dir to a directory that this user can write"
            ) from exc
        return cls(directory, fd)

    def release(self) -> None:
        """Let another daemon have the directory."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _check_ours(directory: Path) -> None:
    """Raise CacheError for a directory that another user, or another program, has put there."""
    status = os.stat(directory)
    if status.st_uid != os.geteuid():
        raise CacheError(f"the cache directory {directory} is another user's; set cache.dir to one of your own")
    if not (directory / TAG).is_file() and any(entry.name not in _OWN for entry in os.scandir(directory)):
        raise CacheError(f"{directory} holds files that are no cache's; set cache.dir to a new or an empty directory")
    for name in _OWN:
        if (directory / name).is_symlink():
            raise CacheError(f"{directory / name} is a link, which a cache never has: remove it")
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
