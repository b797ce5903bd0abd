"""Small disks of a test's own, which get full, read-only, or lose their power. All of it needs root."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN of linux/fs.h
LETTING_GO = 0.5  # seconds
_NO_LOG_FLUSH = 2  # what the disk does not have by now it never gets


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60, stdin=subprocess.DEVNULL)


@contextmanager
def tmpfs(point: Path, size: str) -> Iterator[Path]:
    """A file system in memory."""
    point.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(point))
    try:
        yield point
    finally:
        _run("umount", "-l", str(point))


class Disk:
    """An ext4 file system in a file. The power may be cut: what was not on the disk is gone then."""

    def __init__(self, image: Path, point: Path) -> None:
        self.point = point
        self._image = image
        self._copies = 0

    def remove(self) -> None:
        """Remove the file; the disk is there for as long as somebody has files open on it."""
        self._image.unlink()

    def mount(self) -> None:
        """Mount it, and have its journal replayed if need be."""
        _run("mount", "-o", "loop", str(self._image), str(self.point))

    def unmount(self) -> None:
        """Unmount it, whoever has files open on it.

        The kernel lets go of the disk a moment later, or when a mount namespace that others made meanwhile has ended.
        Mounted anew before, it would be the one whose power was cut; so it is a copy of the disk then.
        """
        _run("umount", "-l", str(self.point))
        deadline = time.monotonic() + LETTING_GO
        while self._is_attached():
            if time.monotonic() > deadline:
                self._copies += 1
                copy = self._image.with_name(f"disk-{self._copies}.img")
                _run("cp", "--sparse=always", str(self._image), str(copy))
                self._image.unlink()
                self._image = copy
                return
            time.sleep(0.02)

    def _is_attached(self) -> bool:
        found = subprocess.run(
            ["losetup", "-j", str(self._image)], capture_output=True, check=True, timeout=60, stdin=subprocess.DEVNULL
        )
        return bool(found.stdout)

    def remount(self, *, writable: bool) -> None:
        """Make it read-only or writable."""
        _run("mount", "-o", f"remount,{'rw' if writable else 'ro'}", str(self.point))

    def cut_power(self) -> None:
        """Stop it at once, as it is; whoever asks it for anything gets an I/O error."""
        fd = os.open(self.point, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)


@contextmanager
def ext4(folder: Path, megabytes: int) -> Iterator[Disk]:
    """An ext4 file system of its own below `folder`."""
    image, point = folder / "disk.img", folder / "disk"
    with image.open("wb") as file:
        os.truncate(file.fileno(), megabytes << 20)
    point.mkdir()
    _run("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard", str(image))
    disk = Disk(image, point)
    disk.mount()
    try:
        yield disk
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            disk.unmount()
        disk.remove()


def fill_up(path: Path) -> None:
    """Write a file until nothing more fits on its disk."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
