"""One daemon a cache directory."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

from refgenfs.core.errors import CacheBusy, CacheError

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
            fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder = {"pid": os.getpid(), "owner": owner, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode(), 0)
            (directory / "CACHEDIR.TAG").write_text(_TAG)
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


def _busy(directory: Path, fd: int) -> str:
    try:
        holder = json.loads(os.pread(fd, 4096, 0))
        who = f"process {int(holder['pid'])} ({holder['owner']}) since {holder['since']}"
        what = f"unmount {holder['owner']}"
    except (OSError, ValueError, KeyError, TypeError):
        who, what = "another process", "end it"
    return f"the cache directory {directory} is in use by {who}; {what}, or set another cache.dir"
