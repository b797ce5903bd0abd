"""Blocks that can only be had whole, in files without names. Everything here belongs to the asyncio loop.

A host may tell no length, give no ranges, or have the range signed into the URL. Such a block comes once, from its
first byte, to the disk, and is read from there. What all spools take has a bound, and is reserved in the cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Iterator
from pathlib import Path
from typing import Any, Protocol

from refgenfs.core.errors import CacheError, OriginUnavailable, RefgenfsError, StaleContent, without_frames
from refgenfs.core.retry import Remedy
from refgenfs.fetch.answers import AttemptFailed

MAX_SPOOLS = 64  # each has a file open
STEP = 256 * 1024  # bytes that are reserved at a time, at the least
LARGEST_STEP = 8 << 20
PAGE = 4096
LOOK_AGAIN = 0.2  # seconds until it is seen that a reader is done with a spool

log = logging.getLogger(__name__)


class Scratch(Protocol):
    """Room on the disk for files of work under way."""

    @property
    def folder(self) -> Path:
        """Where the files go."""
        ...

    @property
    def limit(self) -> int:
        """How many bytes they may take, all together."""
        ...

    async def reserve(self, nbytes: int) -> Callable[[], None] | None:
        """Make room, and return what gives it back (from any thread); None where there is none."""
        ...


class Spool:
    """The bytes of one block, as far as they have come. `users` keep it from being dropped."""

    def __init__(self, folder: Path) -> None:
        self.size = 0  # bytes that are there
        self.base = 0  # where in what came the block begins
        self.length: int | None = None  # of the block; known at the end
        self.digest = ""  # SHA-256 of the block (hex); known at the end
        self.sure = True  # what is there is the block's: it may be read while the rest is on its way
        self.error: RefgenfsError | None = None
        self.users = 0
        self.handed = 0  # bytes that were read
        self.grows = False  # it is the one whose length is not known that may take more than a little
        self.waits = False  # for others to grow first
        self.reserved = 0
        self.releases: list[Callable[[], None]] = []
        self.task: asyncio.Task[None] | None = None
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by `close`
        self._changed = asyncio.Event()

    @property
    def done(self) -> bool:
        """Whether nothing more comes."""
        return self.length is not None or self.error is not None

    @contextlib.contextmanager
    def use(self) -> Iterator[Spool]:
        """Keep the spool for as long as the body runs."""
        self.users += 1
        try:
            yield self
        finally:
            self.users -= 1

    async def write(self, offset: int, data: bytes) -> None:
        """Take bytes of the body at `offset`: new ones behind those that are there, or the same ones again.

        Raises AttemptFailed (StaleContent) where they are other ones.
        """
        known = min(len(data), self.size - offset)
        if known > 0 and await asyncio.to_thread(self._read, offset, known) != data[:known]:
            what = "it gave other bytes when it was asked again"
            raise AttemptFailed(StaleContent, what, Remedy.ELSEWHERE)
        rest = data[max(known, 0) :]
        if rest:
            await asyncio.to_thread(self._write, self.size, rest)
            self.size += len(rest)
            self._wake()

    async def finish(self, base: int, length: int) -> None:
        """Note that the block is there: `length` bytes from `base` on."""
        self.digest = await asyncio.to_thread(self._hash, base, length)
        self.base, self.length = base, length
        self._wake()

    def fail(self, error: RefgenfsError) -> None:
        """Note that the block won't come."""
        self.error = without_frames(error)
        self._wake()

    async def whole(self) -> int:
        """Wait until all of the block is there, and return its length; raise what hindered it."""
        while not self.done:
            await self._changed.wait()
        if self.error is not None:
            raise self.error
        assert self.length is not None
        return self.length

    async def read(self, start: int, stop: int) -> bytes:
        """Return bytes `start` up to `stop` of the block, at least one, once there are; raise what hindered it."""
        while not self.done and (not self.sure or self.size <= start):
            await self._changed.wait()
        if self.error is not None:
            raise self.error
        end = self.size if self.length is None else self.base + self.length
        stop = min(stop, end - self.base)
        if stop <= start:
            raise OriginUnavailable(f"a block ended after {end - self.base} bytes")
        data = await asyncio.to_thread(self._read, self.base + start, stop - start)
        self.handed += len(data)
        return data

    def close(self) -> None:
        """Remove the file, and give back its room; idempotent."""
        if self.task is not None:
            self.task.cancel()
        if not self.done:
            self.fail(OriginUnavailable("a block that was on its way was given up"))
        self._file.close()
        releases, self.releases = self.releases, []
        for release in releases:
            release()
        self.reserved = 0

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self._file.fileno(), view, offset)
            offset, view = offset + done, view[done:]

    def _read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def _hash(self, base: int, length: int) -> str:
        digest = hashlib.sha256()
        for at in range(base, base + length, 1 << 20):
            digest.update(self._read(at, min(1 << 20, base + length - at)))
        return digest.hexdigest()


class Spools:
    """The spools that there are, the least recently used first to go."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._spools: OrderedDict[Hashable, Spool] = OrderedDict()
        self._growth = asyncio.Lock()
        self._freed = asyncio.Event()
        self._promised = 0

    def __len__(self) -> int:
        return len(self._spools)

    @property
    def limit(self) -> int:
        """The longest block, in bytes, that has room."""
        return self._scratch.limit

    @property
    def taken(self) -> int:
        """Bytes that are reserved."""
        return sum(spool.reserved for spool in self._spools.values())

    def find(self, key: Hashable) -> Spool | None:
        """Return a spool that has not failed."""
        spool = self._spools.get(key)
        if spool is not None and spool.error is not None:
            self.drop(key)
            return None
        if spool is not None:
            self._spools.move_to_end(key)
        return spool

    def begin(self, key: Hashable, fill: Callable[[Spool], Coroutine[Any, Any, None]]) -> Spool:
        """Make a spool, which `fill` fills; it has a task of its own, for whoever wants the block. Never awaits.

        Raises CacheError where the disk refuses.
        """
        while len(self._spools) >= MAX_SPOOLS and self._drop_one():
            pass
        try:
            spool = Spool(self._scratch.folder)
        except OSError as exc:
            raise CacheError(f"a block can't be spooled to the cache directory: {exc.strerror}") from exc
        self._spools[key] = spool
        spool.task = asyncio.create_task(self._run(key, spool, fill))
        return spool

    def rename(self, key: Hashable, new: Hashable) -> None:
        """Let a spool be found by another key."""
        spool = self._spools.pop(key, None)
        if spool is not None:
            self.drop(new)
            self._spools[new] = spool

    def drop(self, key: Hashable) -> None:
        """Close a spool. Never awaits."""
        spool = self._spools.pop(key, None)
        if spool is not None:
            spool.close()

    async def admit(self, spool: Spool, size: int, *, growing: bool = False) -> None:
        """Make room for a spool of `size` bytes; raise CacheError where there is none.

        Of those that are `growing` (nobody knows how long they become) only one gets more than a little, or two
        could each wait for what the other has.
        """
        if size <= spool.reserved:
            return
        if growing and spool.reserved >= STEP and not spool.grows:
            spool.waits = True
            await self._growth.acquire()
            spool.waits, spool.grows = False, True
        wanted = max(size - spool.reserved, min(max(STEP, spool.reserved), LARGEST_STEP) if growing else 0)
        while not (release := await self._reserve(wanted)):
            others = [one for one in self._spools.values() if one is not spool and not one.waits]
            if not any(one.users or not one.done for one in others) or self._scratch.limit < spool.reserved + wanted:
                raise CacheError(
                    "a block that can only be had whole has no room in the cache: such blocks may take "
                    f"{self._scratch.limit} bytes; raise cache.size"
                )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._freed.wait(), LOOK_AGAIN)
        spool.releases.append(release)
        spool.reserved += wanted

    async def _reserve(self, nbytes: int) -> Callable[[], None] | None:
        self._freed.clear()
        while self.taken + self._promised + nbytes > self._scratch.limit:
            if not self._drop_one():
                return None
        self._promised += nbytes  # while the answer is on its way, others count it
        try:
            return await self._scratch.reserve(nbytes)
        finally:
            self._promised -= nbytes

    async def aclose(self) -> None:
        """Close all, and wait for what is under way."""
        tasks = [spool.task for spool in self._spools.values() if spool.task is not None]
        for key in list(self._spools):
            self.drop(key)
        if tasks:
            await asyncio.wait(tasks, timeout=1)

    async def _run(self, key: Hashable, spool: Spool, fill: Callable[[Spool], Coroutine[Any, Any, None]]) -> None:
        try:
            await fill(spool)
            await self._shrink(spool)
        except RefgenfsError as exc:
            spool.fail(exc)
        except OSError as exc:
            spool.fail(CacheError(f"a block can't be spooled to the cache directory: {exc.strerror}"))
        except Exception as exc:
            log.exception("a block of a ticket could not be spooled")
            spool.fail(OriginUnavailable(f"a block could not be spooled ({type(exc).__name__}); see the log"))
        finally:
            if spool.grows:
                self._growth.release()
            self._freed.set()
            if spool.error is not None and self._spools.get(key) is spool:
                self.drop(key)

    async def _shrink(self, spool: Spool) -> None:
        """Give back what was reserved too much."""
        needed = -(-max(spool.size, 1) // PAGE) * PAGE
        if spool.reserved - needed < STEP // 2:
            return
        release = await self._reserve(needed)
        if release is not None:
            releases, spool.releases, spool.reserved = spool.releases, [release], needed
            for one in releases:
                one()

    def _drop_one(self) -> bool:
        """Drop a spool that nobody uses: one that was read whole, else the oldest; False: there is none."""
        idle = [key for key, spool in self._spools.items() if not spool.users and spool.done]
        spent = (key for key in idle if self._spools[key].handed >= (self._spools[key].length or 0))
        key = next(spent, idle[0] if idle else None)
        if key is None:
            return False
        self.drop(key)
        return True
