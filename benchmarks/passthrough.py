"""A bare pyfuse3 file system over one folder of files: what FUSE from Python can reach on this machine.

    python -m benchmarks.passthrough FOLDER MOUNTPOINT

It does the least that a read can take: one `pread` of the file, inline. No cache, no blocks, no checks.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

import pyfuse3
import trio

TIMEOUT = 3600.0  # seconds that the kernel keeps names and attributes


class Passthrough(pyfuse3.Operations):
    """The files of a folder, by name; folders in it are not shown."""

    enable_writeback_cache = False
    supports_dot_lookup = False

    def __init__(self, folder: str) -> None:
        super().__init__()
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
        self._folder = folder
        self._paths = {number: os.path.join(folder, name) for number, name in enumerate(names, start=2)}
        self._numbers = {os.fsencode(name): number for number, name in enumerate(names, start=2)}

    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Find a file."""
        if name in (b".", b".."):
            return self._entry(pyfuse3.ROOT_INODE)
        if name not in self._numbers:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._entry(self._numbers[name])

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Return attributes."""
        return self._entry(inode)

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """Open the folder."""
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List the files."""
        for name, number in self._numbers.items():
            if number > start_id and not pyfuse3.readdir_reply(
                token, pyfuse3.FileNameT(name), self._entry(number), number
            ):
                return

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a file; its pages stay in the kernel's cache."""
        return pyfuse3.FileInfo(fh=os.open(self._paths[inode], os.O_RDONLY), keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read."""
        return os.pread(fh, size, off)

    async def release(self, fh: int) -> None:
        """Close."""
        os.close(fh)

    def _entry(self, inode: int) -> pyfuse3.EntryAttributes:
        stat = os.stat(self._folder if inode == pyfuse3.ROOT_INODE else self._paths[inode])
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode, entry.st_nlink, entry.st_size = stat.st_mode, stat.st_nlink, stat.st_size
        entry.st_mtime_ns = entry.st_atime_ns = entry.st_ctime_ns = stat.st_mtime_ns
        entry.entry_timeout = entry.attr_timeout = TIMEOUT
        return entry


async def _run() -> None:
    async with trio.open_nursery() as nursery:

        async def end() -> None:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    pyfuse3.terminate()
                    nursery.cancel_scope.cancel()

        nursery.start_soon(end)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


def main() -> None:
    """Mount, and answer until terminated."""
    folder, point = sys.argv[1:]
    options = {"ro", "fsname=passthrough", *pyfuse3.default_options}
    pyfuse3.init(Passthrough(folder), point, options)
    try:
        trio.run(_run)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
