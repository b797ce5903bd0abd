"""Objects whose size their hosts do not tell: all of one goes by once, and is then a content of the cache.

Lives on the trio thread, but for what says otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from refgenfs.cache.content import Content, checksum
from refgenfs.cache.disk import punch_hole
from refgenfs.cache.shelf import Reservation
from refgenfs.cache.store import Store
from refgenfs.core.content import BLOCK, ByteRange, ContentId, Run
from refgenfs.core.errors import CacheError, OriginUnavailable
from refgenfs.fetch.http import Http
from refgenfs.fetch.pieces import PIECE
from refgenfs.reader.budget import Budget
from refgenfs.reader.ranges import RUN_MEMORY

log = logging.getLogger(__name__)

SPOOLS = 2  # objects at a time: each has a connection, and room in the cache that others want
TRIES = 3  # what tells no size can't be taken up in the middle
STEP = PIECE  # bytes that are reserved at a time
SLACK = 64 * 1024  # that a file takes on the disk besides


@dataclass(frozen=True, slots=True)
class Spooled:
    """What an object turned out to be: its exact size in bytes, its validator (see ByteRange), its content."""

    size: int
    validator: str
    content: ContentId


class Spooler:
    """Settles sizes. What it fetches for that is in the cache afterwards, as far as there is room."""

    def __init__(self, store: Store, http: Http, budget: Budget) -> None:
        self._store = store
        self._http = http
        self._budget = budget
        self._turns = trio.CapacityLimiter(SPOOLS)
        self._count = 0

    async def settle(self, extent: ByteRange, source: str, identify: Callable[[str], ContentId]) -> Spooled:
        """Have an object go by, and return what it is; `identify` says what the content of a validator is.

        Raises the origin's errors.
        """
        async with self._turns:
            claim = self._budget.claim(RUN_MEMORY)
            try:
                await claim.wait()
                return await self._settle(extent, source, identify)
            finally:
                claim.release()

    async def _settle(self, extent: ByteRange, source: str, identify: Callable[[str], ContentId]) -> Spooled:
        self._count += 1
        spool = _Spool(self._store, self._store.scratch / f"{self._count:x}.spool", self._budget.moved)
        try:
            await self._fetch(extent, source, spool)
            spooled = Spooled(spool.size, spool.validator, identify(spool.validator))
            if spool.kept and spool.size:
                try:
                    await spool.move_to(await self._store.content(spooled.content, spool.size))
                except (CacheError, OSError) as exc:
                    log.warning("%s: what came to settle its size is not kept: %s", spooled.content, exc)
            return spooled
        finally:
            spool.close()

    async def _fetch(self, extent: ByteRange, source: str, spool: _Spool) -> None:
        for number in range(TRIES):
            try:
                await self._http.stream(extent.urls, spool, account=source)
            except OriginUnavailable:
                if number == TRIES - 1 or not spool.size:  # else it broke off
                    raise
            else:
                return


class _Spool:
    """A scratch file that an object is written to, with room reserved for it; without room only its size counts."""

    def __init__(self, store: Store, path: Path, moved: Callable[[int], None]) -> None:
        self.size = 0
        self.validator = ""
        self.kept = True
        self._store = store
        self._path = path
        self._moved = moved
        self._token = trio.lowlevel.current_trio_token()
        self._born = store.stamp
        self._rooms: list[Reservation] = []
        self._fd = -1

    async def begin(self, validator: str) -> None:
        """Begin anew, on the asyncio loop."""
        self.size, self.validator = 0, validator

    async def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes, on the asyncio loop."""
        if self.kept and self.size + len(data) + SLACK > len(self._rooms) * STEP:
            loop = asyncio.get_running_loop()
            turn: asyncio.Future[None] = loop.create_future()

            def reserve() -> None:
                self._reserve(self.size + len(data) + SLACK)
                loop.call_soon_threadsafe(_settle, turn)

            self._token.run_sync_soon(reserve)
            await turn
        if self.kept:
            await asyncio.get_running_loop().run_in_executor(None, self._write, data, self.size)
        self.size += len(data)
        self._token.run_sync_soon(self._moved, len(data))

    def _reserve(self, nbytes: int) -> None:
        while self.kept and len(self._rooms) * STEP < nbytes:
            room = self._store.reserve(STEP, older_than=self._born)
            if room is None:
                self.kept = False
                self.close()
            else:
                self._rooms.append(room)

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            view = memoryview(data)
            while view:
                done = os.pwrite(self._fd, view, offset)
                view, offset = view[done:], offset + done
        except OSError as exc:
            log.warning("what comes to settle the size of a file is not kept: %s", exc.strerror)
            self.kept = False

    async def move_to(self, content: Content) -> None:
        """Make all of it resident; the room that it had here is given back as it goes."""
        for start in range(0, self.size, STEP):
            stop = min(start + STEP, self.size)
            run = Run(start // BLOCK, -(-stop // BLOCK))
            if content.missing(run) >= 0:
                room = content.reserve(run, older_than=self._born)
                if room is None:
                    return
                try:
                    crcs = await trio.to_thread.run_sync(partial(self._copy, content, start, stop))
                    for number, index in enumerate(range(run.first, run.stop)):
                        content.commit(index, crcs[number], room)
                finally:
                    room.release()
            punch_hole(self._fd, start, STEP)
            self._rooms.pop().release()

    def _copy(self, content: Content, start: int, stop: int) -> list[int]:
        data = os.pread(self._fd, stop - start, start)
        if len(data) != stop - start:
            raise CacheError("the scratch file is too short")
        content.write(start // BLOCK, data)
        return [checksum(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]

    def close(self) -> None:
        """Remove the file, and give back its room. Never awaits."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._path.unlink(missing_ok=True)
        while self._rooms:
            self._rooms.pop().release()


def _settle(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
