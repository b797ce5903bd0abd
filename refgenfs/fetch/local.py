"""Files of this machine: found below a folder, and opened so that nothing outside of it can be meant.

The functions here block, and are called in threads: the folder may be a network's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from refgenfs.core.content import LocalFile
from refgenfs.core.errors import (
    DeadlineExceeded,
    OriginDenied,
    OriginMissing,
    OriginUnavailable,
    RefgenfsError,
    StaleContent,
)
from refgenfs.fetch.bridge import Bridge
from refgenfs.fetch.pieces import PIECE, RangeSink
from refgenfs.mount_table import parse_mountinfo

T = TypeVar("T")

DEADLINE = 30.0  # seconds that one piece, or one stat, may take
THREADS = 8  # at a time
DEEPEST = 40  # folders in one another; links may make them go on for ever
# File systems that are waited for on the spot; one that is not among them may be a network's, or anything.
DISKS = frozenset({"ext2", "ext3", "ext4", "xfs", "f2fs", "tmpfs", "overlay", "squashfs", "erofs", "iso9660"})
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # a FIFO must not hold up who opens it


def validator_of(found: os.stat_result) -> str:
    """Return what tells a version of a file from others: device, inode, size, and when it was last changed."""
    return f"{found.st_dev:x}-{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"


def refusal(path: str, exc: OSError) -> RefgenfsError:
    """Return the error to raise for what the system says of a path."""
    kind: type[RefgenfsError] = OriginUnavailable
    if isinstance(exc, FileNotFoundError | NotADirectoryError):
        kind = OriginMissing
    elif isinstance(exc, PermissionError):
        kind = OriginDenied
    return kind(f"{path}: can't be read: {exc.strerror or type(exc).__name__}")


def open_below(root: str, path: str) -> int:
    """Open a regular file below `root` for reading; return its descriptor.

    Raises OriginDenied for what leads out of it or is no file, and what `refusal` gives.
    """
    full = os.path.join(root, path)
    try:
        fd = os.open(full, _OPEN)
    except OSError as exc:
        raise refusal(full, exc) from exc
    try:
        # Asked of the descriptor: between a look at the path and its opening, a link could have been put there.
        inside = _is_below(os.path.realpath(root), os.readlink(f"/proc/self/fd/{fd}"))
        if not inside or not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OriginDenied(f"{full}: {'is no file' if inside else f'leads out of {root}'}")
    except OSError as exc:
        os.close(fd)
        raise refusal(full, exc) from exc
    except RefgenfsError:
        os.close(fd)
        raise
    return fd


def open_version(extent: LocalFile) -> int:
    """Open the file of an extent; StaleContent when it is another version by now."""
    fd = open_below(extent.root, extent.path)
    try:
        check_version(fd, extent)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_version(fd: int, extent: LocalFile) -> None:
    """Raise StaleContent unless an open file is, and was up to now, the version of an extent."""
    if validator_of(os.fstat(fd)) != extent.validator:
        raise StaleContent(f"{os.path.join(extent.root, extent.path)}: was replaced or changed")


def check_root(root: str) -> None:
    """Raise OriginUnavailable for a folder that can't be read, or is empty: its file system is not mounted then."""
    try:
        with os.scandir(root) as entries:
            if next(entries, None) is not None:
                return
    except OSError as exc:
        raise OriginUnavailable(str(refusal(root, exc))) from exc
    raise OriginUnavailable(f"{root}: is empty; is its file system mounted?")


def stat_below(root: str, path: str) -> os.stat_result:
    """Return what is known of a file below `root`; raises as `open_below` and `check_root` do."""
    try:
        fd = open_below(root, path)
    except OriginMissing:
        check_root(root)
        raise
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def walk(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path below `root` and the stat of every regular file; links count that stay inside.

    Folders that can't be read are passed over, but for the root: raises as `check_root` does.
    """
    check_root(root)
    home = os.path.realpath(root)
    try:
        pending = [("", os.scandir(home), frozenset({home}))]
    except OSError as exc:
        raise OriginUnavailable(str(refusal(root, exc))) from exc
    while pending:
        prefix, entries, parents = pending.pop()
        with entries:
            for entry in entries:
                path = f"{prefix}{entry.name}"
                try:
                    real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                    if not _is_below(home, real):
                        continue
                    if entry.is_file():
                        yield path, entry.stat()
                    elif entry.is_dir() and real not in parents and len(parents) < DEEPEST:
                        pending.append((f"{path}/", os.scandir(real), parents | {real}))
                except OSError:
                    continue


def _is_below(home: str, path: str) -> bool:
    return path.startswith(home if home.endswith("/") else f"{home}/")


class Threads:
    """How many threads of a source may wait for its folder: a file system that is gone keeps them, and no others."""

    def __init__(self) -> None:
        self._limiters: dict[str, trio.CapacityLimiter] = {}

    def of(self, source: str) -> trio.CapacityLimiter:
        """Return the limiter of a source's threads."""
        return self._limiters.setdefault(source, trio.CapacityLimiter(THREADS))


class LocalFiles:
    """Brings stretches of files of this machine, for contents that are kept in the cache."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._threads = Threads()

    async def fetch_range(
        self, extent: LocalFile, start: int, stop: int, size: int, sink: RangeSink, *, account: str
    ) -> None:
        """Bring the bytes `start` up to `stop` of a file to the sink (see `fetch.http.Http`).

        Raises StaleContent for another version, DeadlineExceeded for a file system that does not answer.
        """
        del size
        for at in range(start, stop, PIECE):
            read = partial(_read, extent, at, min(PIECE, stop - at))
            data = await in_thread(read, DEADLINE, self._threads.of(account), extent.path)
            await self._bridge.run(partial(sink.write, at, memoryview(data)))


async def in_thread(call: Callable[[], T], seconds: float, threads: trio.CapacityLimiter, what: str) -> T:
    """Return what `call` does, in a thread; DeadlineExceeded, which names `what`, after these seconds.

    A thread that a file system never answers is left behind.
    """
    try:
        with trio.fail_after(seconds):
            return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=threads)
    except trio.TooSlowError as exc:
        raise DeadlineExceeded(f"{what}: the file system does not answer within {seconds:g} s") from exc


def is_near(device: int) -> bool:
    """Say whether a device (as in `st_dev`) is surely a disk of this machine, which answers or fails in time."""
    name = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    except OSError:
        return False
    return any(mount.device == name and mount.fstype in DISKS for mount in mounts)


def _read(extent: LocalFile, offset: int, length: int) -> bytes:
    fd = open_version(extent)
    try:
        data = os.pread(fd, length, offset)
        check_version(fd, extent)  # after it: what was read may be of two versions
    except OSError as exc:
        raise refusal(extent.path, exc) from exc
    finally:
        os.close(fd)
    if len(data) != length:
        raise OriginUnavailable(f"{extent.path}: {len(data)} of {length} bytes at {offset} were read")
    return data
