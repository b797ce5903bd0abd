"""The session with the kernel: mounted, served, taken down; and what it is told to forget."""

from __future__ import annotations

import errno
import logging
from typing import Any, cast

import pyfuse3
import trio

from refgenfs.fuse.notices import forget_name
from refgenfs.fuse.operations import SPARE, TASKS, Operations

log = logging.getLogger(__name__)


class Mount:
    """The mount itself: made, served, taken down. One a process, as pyfuse3 has it.

    With `device`, a /dev/fuse that somebody has mounted already, it is served only, and closed at the end.
    """

    def __init__(self, operations: Operations, mountpoint: str, device: int | None, *, allow_other: bool) -> None:
        self._operations = operations
        self._mountpoint = mountpoint if device is None else f"/dev/fd/{device}"  # as fuse_session_mount has it
        # These wait for reads under way, and reads may wait for trio's own threads.
        self._dropping = trio.CapacityLimiter(4)
        self._options = {"fsname=refgenfs", "subtype=refgenfs", "ro", "default_permissions", "nosuid", "nodev"}
        if allow_other:
            self._options.add("allow_other")

    def open(self) -> None:
        """Mount; raise RuntimeError when the kernel or fusermount3 refuses."""
        pyfuse3.init(cast(Any, self._operations), self._mountpoint, self._options)

    async def serve(self) -> None:
        """Answer requests until unmounted or `stop`."""
        # The default of 99 tasks would let 99 waiting readers block every `ls`.
        await pyfuse3.main(min_tasks=4, max_tasks=TASKS + SPARE)

    def stop(self) -> None:
        """Let `serve` return once the requests under way are answered."""
        pyfuse3.terminate()

    def close(self) -> None:
        """Unmount, also with files open, and free what libfuse holds."""
        pyfuse3.close(unmount=True)

    def forget_name(self, parent: int, name: str) -> None:
        """Have the kernel look a name up anew; returns at once."""
        forget_name(parent, name)

    async def forget_pages(self, inode: int) -> None:
        """Have the kernel drop an inode's pages. In a thread: it waits for reads that are under way."""
        try:
            await trio.to_thread.run_sync(
                pyfuse3.invalidate_inode, inode, abandon_on_cancel=True, limiter=self._dropping
            )
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                log.warning("can't drop the pages of inode %d: %s", inode, exc)
