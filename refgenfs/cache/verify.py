"""Checking what is resident against its checksums."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio
from isal import isal_zlib

from refgenfs.core.content import BLOCK, ContentId, Run, block_length

if TYPE_CHECKING:
    from refgenfs.cache.content import Content
    from refgenfs.cache.shelf import Shelf

_STRETCH = 2 * 1024 * 1024 // BLOCK  # blocks a visit to a thread: a few milliseconds
_LONGEST_REST = 0.25  # seconds


@dataclass(frozen=True, slots=True)
class Damage:
    """A block that was not what its checksum says."""

    content: ContentId
    index: int
    offset: int  # of the block, in bytes


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a check found: how many blocks and bytes were read, and which blocks were dropped."""

    blocks: int
    nbytes: int
    damaged: tuple[Damage, ...]


async def verify_all(
    shelf: Shelf,
    open_content: Callable[[ContentId, int], Awaitable[Content]],
    progress: Callable[[int, int], None] | None,
) -> VerifyReport:
    """Check everything that is resident (see `Store.verify`)."""
    held = list(shelf.entries.rows())
    total = sum(entry.resident for entry in held)
    done = blocks = 0
    damaged = []

    def step(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, max(total, done))

    await trio.lowlevel.checkpoint()
    for entry in held:
        if shelf.entries.resident(entry.cid):
            # it may be evicted while its map is read: it is then empty, and nothing is checked
            content = await open_content(entry.cid, entry.size)
            count, _, found = await verify_content(shelf, content, step)
            blocks += count
            damaged += found
    return VerifyReport(blocks, done, tuple(damaged))


async def verify_content(
    shelf: Shelf, content: Content, progress: Callable[[int], None]
) -> tuple[int, int, list[Damage]]:
    """Check every resident block of a content; return the blocks and bytes read and what was dropped.

    Blocks may be evicted and committed meanwhile: a thread only finds suspects, and a suspect is read again
    where nothing can change under it.
    """
    blocks = nbytes = 0
    damaged: list[Damage] = []
    flags = content.map.flags
    shelf.handles.reopen_replaced(content.id, content.size)
    for run in _stretches(content):
        wanted = [index for index in range(run.first, run.stop) if flags[index]]
        if not wanted:
            continue
        began = trio.current_time()
        damaged += await verify_blocks(shelf, content, wanted)
        took = trio.current_time() - began
        blocks += len(wanted)
        nbytes += (done := sum(block_length(content.size, index) for index in wanted))
        progress(done)
        await trio.sleep(min(took, _LONGEST_REST))  # half of the disk's time is the readers'
    return blocks, nbytes, damaged


async def verify_blocks(shelf: Shelf, content: Content, indexes: list[int]) -> list[Damage]:
    """Check these blocks of a content, as the disk has them, and return what was dropped: others too, it may be.

    A file that is not what was left there loses all that was resident in it.
    """
    flags, crcs = content.map.flags, content.map.crcs
    wanted = [(index, crcs[index]) for index in indexes if flags[index]]
    if not wanted:
        return []
    version = content.entry.version
    suspects = await trio.to_thread.run_sync(_suspects, shelf, content.id, content.size, wanted)
    damaged: list[Damage] = []
    for index, _ in wanted:
        if index in suspects:
            held = content.map.resident_runs(0, len(flags))
            if not content.recheck(index):
                lost = [one for run in held for one in range(run.first, run.stop) if not flags[one]]
                damaged += [Damage(content.id, one, one * BLOCK) for one in lost]
        elif content.entry.version == version:
            content.trust(index)
    return damaged


def _stretches(content: Content) -> list[Run]:
    return [
        Run(first, min(first + _STRETCH, run.stop))
        for run in content.map.resident_runs(0, len(content.map.flags))
        for first in range(run.first, run.stop, _STRETCH)
    ]


def _suspects(shelf: Shelf, cid: ContentId, size: int, wanted: list[tuple[int, int]]) -> set[int]:
    """Return the blocks that seem damaged; in a thread, so what it sees may be changing.

    What the system remembers of them is given up first: it is the disk that is checked.
    """
    found = set()
    try:
        with shelf.handles.borrow(cid, size) as fd:
            first, last = wanted[0][0], wanted[-1][0]
            os.posix_fadvise(fd, first * BLOCK, (last + 1 - first) * BLOCK, os.POSIX_FADV_DONTNEED)
            for index, crc in wanted:
                data = os.pread(fd, block_length(size, index), index * BLOCK)
                if isal_zlib.crc32(data) != crc:
                    found.add(index)
    except OSError:
        return {index for index, _ in wanted}
    return found
