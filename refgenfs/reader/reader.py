"""Reads: resident blocks are answered at once, others are awaited in their flights.

All of this lives on the trio thread. What must stay atomic: there is no await between asking which blocks
are resident and copying them, nor between looking a flight up and launching it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import trio

from refgenfs.cache.shelf import BlockDamaged, Reservation
from refgenfs.cache.store import Store
from refgenfs.core.content import (
    BLOCK,
    ArchiveMember,
    ByteRange,
    FileFacts,
    InlineData,
    Run,
    block_count,
    block_length,
)
from refgenfs.core.errors import CacheError, IntegrityError, OriginUnavailable, RefgenfsError, StaleContent
from refgenfs.core.readahead import Window
from refgenfs.fetch.http import Http
from refgenfs.reader.archives import Archives
from refgenfs.reader.disk import Disk
from refgenfs.reader.flights import Arrival, FlightBoard
from refgenfs.reader.labels import Versions
from refgenfs.reader.ranges import LONGEST_RUN, RangeRun, Traffic, split_runs
from refgenfs.reader.stream import Archive
from refgenfs.reader.uncached import AnyContent, UncachedContent
from refgenfs.reader.writes import Writes

log = logging.getLogger(__name__)

D = TypeVar("D", bytes, memoryview, bytes | memoryview)

# How often a read starts over because blocks went (evicted, or damaged on the disk) while it waited for others.
ROUNDS = 16
# What one run holds in memory at the most: the piece being filled, and the one on its way to the disk.
RUN_MEMORY = 2 * 1024 * 1024
NO_ROOM = "no room in the cache for all of it; raise cache.size or unpin something"


@dataclass(slots=True)
class OpenFile:
    """A file that somebody has open: its facts, its content, and how its reader goes about it."""

    facts: FileFacts
    content: AnyContent | None  # None for inline data
    archive: Archive | None
    window: Window
    ahead: Run | None = None  # what the present read should bring besides
    generation: int | None = None  # the archive's when this reader got its first bytes
    opened: int = 0  # the archive's when the file was opened

    def settle(self) -> None:
        """Take it that bytes were read through this file already: the kernel may have pages of its inode."""
        if self.archive is not None:
            self.generation = self.opened

    @property
    def stale(self) -> bool:
        """Whether bytes were taken back that this reader may have been given, by us or out of the kernel's pages."""
        if self.archive is None:
            return False
        seen = self.generation
        if seen is None and self.opened in self.archive.served:
            seen = self.opened
        return seen not in (None, self.archive.generation)


@dataclass(slots=True)
class ReadCounts:
    """What readers were given since the start, in bytes."""

    served: int = 0
    reads: int = 0
    cold_reads: int = 0
    uncached: int = 0


class Reader:
    """Answers reads of contents from the cache, and has what is missing fetched."""

    def __init__(
        self,
        store: Store,
        http: Http,
        board: FlightBoard,
        archives: Archives,
        on_stale: Callable[[FileFacts], None],
        *,
        patience: float,
        memory: int,
        nursery: trio.Nursery,
    ) -> None:
        self.counts = ReadCounts()
        self._store = store
        self._versions = Versions(store)
        self._http = http
        self._board = board
        self._archives = archives
        self._on_stale = on_stale
        self._patience = patience
        self._runs = max(2, memory // RUN_MEMORY)  # at a time
        self._slots = trio.CapacityLimiter(self._runs)
        self._launched = 0  # runs that fly or wait for a slot
        self._landed = trio.lowlevel.ParkingLot()  # of those that wait for a run to land
        self._nursery = nursery
        self._writes = Writes()
        self._traffic = Traffic()
        self._disk = Disk()

    async def open(self, facts: FileFacts, archive: Archive | None = None) -> OpenFile:
        """Open a content for reading; an archive's member brings its archive."""
        if isinstance(facts.extent, InlineData):
            return OpenFile(facts, None, None, Window(facts.size))
        content: AnyContent
        try:
            content = await self._store.content(facts.content, facts.size)
        except CacheError as exc:
            log.warning("%s; it is read without the cache", exc)
            content = UncachedContent(facts.content, facts.size)
        generation = archive.generation if archive is not None else 0
        return OpenFile(facts, content, archive, Window(facts.size), opened=generation)

    async def vouch(self, facts: FileFacts, key: str, name: str) -> None:
        """Label a content that comes by byte ranges, before it is opened.

        Raises StaleContent if the bytes that are kept of it are of another version of the object.
        """
        if isinstance(facts.extent, ByteRange):
            try:
                await self._versions.vouch(facts.content, facts.extent.validator, key, name)
            except StaleContent:
                self._on_stale(facts)
                raise

    async def read(self, file: OpenFile, offset: int, size: int) -> bytes | memoryview:
        """Return exactly `size` bytes at `offset`, or fewer at the end of the file.

        Raises the errors of the origin, StaleContent when it has another version, and DeadlineExceeded when
        nothing has come in for the patience given.
        """
        data = self.read_resident(file, offset, size)
        return data if data is not None else await self.read_missing(file, offset, size)

    def read_resident(self, file: OpenFile, offset: int, size: int) -> bytes | memoryview | None:
        """Return what `read` would if that needs no wait; None: then `read_missing` is to be awaited.

        A read of resident blocks is all of this and nothing more. Raises StaleContent.
        """
        length = min(size, file.facts.size - offset)
        if length <= 0:
            return b""
        content, archive = file.content, file.archive
        if content is None:
            return self._served(memoryview(_inline(file.facts))[offset : offset + length])
        if archive is not None and file.generation != archive.generation and file.stale:
            raise StaleContent(f"{file.facts.content}: what was read of it was taken back; open the file again")
        file.ahead = file.window.advance(offset, length)
        if content.missing(Run(offset // BLOCK, -(-(offset + length) // BLOCK))) >= 0:
            return None
        try:
            data = self._disk.read(content, offset, length)
        except BlockDamaged as exc:
            log.warning("%s; fetching it again", exc)
            return None
        if data is None:
            return None
        behind = file.window.leave_behind()
        if behind is not None:
            self._nursery.start_soon(self._disk.pass_by, content, behind)
        if file.ahead is not None:  # only now: room for it may be made of these very blocks
            self._prefetch(file, content, file.ahead)
        if archive is not None and file.generation != archive.generation:
            file.generation = archive.generation
            archive.served.add(archive.generation)
        return self._served(data)

    async def read_missing(self, file: OpenFile, offset: int, size: int) -> bytes | memoryview:
        """Return what `read` would, after `read_resident` gave None. Raises as `read` does."""
        if file.content is None:
            raise IntegrityError(f"{file.facts.content}: inline data is never missing")
        self.counts.cold_reads += 1
        length = min(size, file.facts.size - offset)
        return self._served(await self._read_cold(file, file.content, offset, length, file.ahead))

    def _served(self, data: D) -> D:
        self.counts.reads += 1
        self.counts.served += len(data)
        return data

    # -- cold ---------------------------------------------------------------------------------------------

    async def _read_cold(
        self, file: OpenFile, content: AnyContent, offset: int, length: int, ahead: Run | None
    ) -> bytes:
        run = Run(offset // BLOCK, -(-(offset + length) // BLOCK))
        landed: dict[int, memoryview] = {}
        for _ in range(ROUNDS):
            generation = file.archive.generation if file.archive is not None else 0
            await self._await_blocks(file, content, run, landed, ahead)
            ahead = None
            if len(landed) < len(run) and not self._disk.quick:
                await self._disk.bring(content, offset, length, self._patience)
            # no await from here on: what is resident is of the generation that was just looked at
            if file.archive is not None:
                if generation != file.archive.generation:  # what landed may be of two versions
                    landed.clear()
                    if file.stale:
                        raise StaleContent(f"{file.facts.content}: the origin has another version now")
                    continue
                file.generation = generation
                file.archive.served.add(generation)
            data = _assemble(content, run, landed, offset, length)
            if data is not None:
                return data
        raise OriginUnavailable(f"{file.facts.content}: the cache forgets blocks quicker than they are read")

    async def _await_blocks(
        self, file: OpenFile, content: AnyContent, run: Run, landed: dict[int, memoryview], ahead: Run | None
    ) -> None:
        """Wait until every block of the run that is not resident has landed, and put its bytes into `landed`."""
        joined = self._join(file, content, run, landed, ahead)
        try:
            for index, arrival in joined.items():
                await arrival.wait(self._patience, file.facts.content)
                if arrival.data is not None:
                    _check_length(content, index, arrival.data)
                    landed[index] = arrival.data
        except StaleContent:
            self._on_stale(file.facts)
            raise
        finally:
            for arrival in joined.values():
                arrival.release()

    def _join(
        self, file: OpenFile, content: AnyContent, run: Run, landed: dict[int, memoryview], ahead: Run | None
    ) -> dict[int, Arrival]:
        """Hold a flight of every block of the run that is neither resident nor landed. Never awaits."""
        missing = [i for i in _missing(content, run) if i not in landed]
        extent = file.facts.extent
        if isinstance(extent, ByteRange):
            beyond = self._affordable(content, ahead, len(missing))
            self._launch(content, extent, file.facts.source, missing, beyond)
            flights = {index: self._board.find(content.id, index) for index in missing}
        elif isinstance(extent, ArchiveMember) and file.archive is not None:
            archive, name = file.archive, extent.name
            flights = {i: self._archives.join(archive, content.id, name, i) for i in missing}
            if ahead is not None:
                self._archives.prefetch(archive, name, _missing(content, ahead))
        else:
            raise IntegrityError(f"{content.id}: no way to fetch its bytes")
        joined = {index: arrival for index, arrival in flights.items() if arrival is not None}
        for arrival in joined.values():
            arrival.hold()
        return joined

    def _affordable(self, content: AnyContent, ahead: Run | None, asked: int = 0) -> list[int]:
        """Return the blocks of a window that may be fetched ahead: never at a waiting reader's expense."""
        spare = (self._runs * 3 // 4 - self._launched) * LONGEST_RUN - asked
        return _missing(content, ahead)[:spare] if ahead is not None and spare > 0 else []

    def _prefetch(self, file: OpenFile, content: AnyContent, ahead: Run) -> None:
        extent = file.facts.extent
        if isinstance(extent, ByteRange):
            self._launch(content, extent, file.facts.source, [], self._affordable(content, ahead))
        elif isinstance(extent, ArchiveMember) and file.archive is not None:
            self._archives.prefetch(file.archive, extent.name, _missing(content, ahead))

    def _launch(
        self,
        content: AnyContent,
        extent: ByteRange,
        source: str,
        asked: Iterable[int],
        beyond: Iterable[int],
        older_than: int | None = None,
    ) -> None:
        """Launch a flight of each block that has none; those beyond what was asked only into the cache.

        With `older_than`, room is made only of what was last used before that stamp.
        """
        must = {i for i in asked if self._board.find(content.id, i) is None}
        may = {i for i in beyond if self._board.find(content.id, i) is None}
        for run in split_runs(sorted(must | may)):
            if self._start_stored(content, extent, source, run, older_than):
                continue
            # No room for all of it: for what is asked for alone, perhaps; else, or with a disk that refuses,
            # it is served uncached. What would only be read ahead waits for better times.
            for short in split_runs(sorted(i for i in must if run.first <= i < run.stop)):
                if not self._start_stored(content, extent, source, short):
                    self.counts.uncached += _bytes(content, short)
                    self._start(content, extent, source, short, None)

    def _start_stored(
        self, content: AnyContent, extent: ByteRange, source: str, run: Run, older_than: int | None = None
    ) -> bool:
        reservation = content.reserve(run, older_than=older_than)
        if reservation is None:
            return False
        self._start(content, extent, source, run, reservation)
        return True

    def _start(
        self, content: AnyContent, extent: ByteRange, source: str, run: Run, reservation: Reservation | None
    ) -> None:
        flight = RangeRun(content, extent, run, reservation, self._board, self._writes, self._traffic, source)
        self._board.launch(flight.content.id, range(flight.run.first, flight.run.stop), flight)
        self._launched += 1
        self._nursery.start_soon(self._fly, flight)

    async def _fly(self, flight: RangeRun) -> None:
        try:
            async with self._slots:
                await flight.fly(self._http)
        finally:
            self._launched -= 1
            self._landed.unpark_all()
            flight.abandon()

    # -- what nobody waits for yet ------------------------------------------------------------------------

    def can_bring(self, facts: FileFacts) -> bool:
        """Say whether `bring` has a way to fetch parts of this file: of members of archives it has none."""
        return isinstance(facts.extent, ByteRange)

    async def turn(self, limit: int) -> None:
        """Wait until fewer than `limit` runs are under way, and memory is to spare: readers come first."""
        while self._launched >= min(limit, self._runs * 3 // 4):
            await self._landed.park()

    async def bring(self, file: OpenFile, run: Run, older_than: int) -> bool:
        """Have what is missing of a run fetched into the cache, and wait for it; nobody need want it yet.

        Only what was last used before the stamp `older_than` makes room for it. False: there is none, or no
        way to fetch parts of this file. Raises the origin's errors.
        """
        content, extent = file.content, file.facts.extent
        if content is None or not isinstance(extent, ByteRange):
            return False
        missing = _missing(content, run)
        self._launch(content, extent, file.facts.source, (), missing, older_than)
        flights = [self._board.find(content.id, index) for index in missing]
        try:
            for arrival in flights:
                if arrival is not None:
                    await arrival.wait(self._patience, content.id)
        except StaleContent:
            self._on_stale(file.facts)
            raise
        return None not in flights

    # -- whole files --------------------------------------------------------------------------------------

    async def fill(self, facts: FileFacts, content: AnyContent) -> None:
        """Make a content that comes by byte ranges resident, all of it.

        Raises the origin's errors, and CacheError when the cache has no room for it.
        """
        extent = facts.extent
        if not isinstance(extent, ByteRange):
            return
        whole = Run(0, block_count(facts.size))
        inflight = trio.CapacityLimiter(4)  # runs of one file at once: enough for one slow host's connections
        failed: list[RefgenfsError] = []  # raised as it is: a nursery would wrap it in a group

        async def one(run: Run, *, task_status: trio.TaskStatus[None]) -> None:
            async with inflight:
                task_status.started()
                try:
                    await self._fill_run(facts.source, extent, content, run)
                except RefgenfsError as exc:
                    failed.append(exc)
                    nursery.cancel_scope.cancel()

        if facts.size > self._store.quota:
            raise CacheError(NO_ROOM)
        content.touch(whole)  # or room for the rest of it would be made of what is there already
        async with trio.open_nursery() as nursery:
            for run in split_runs(_missing(content, whole), LONGEST_RUN):
                await nursery.start(one, run)
        if failed:
            raise failed[0]
        if content.missing(whole) >= 0:
            raise CacheError(NO_ROOM)

    async def _fill_run(self, source: str, extent: ByteRange, content: AnyContent, run: Run) -> None:
        missing = _missing(content, run)  # a reader may have been here since
        self._launch(content, extent, source, missing, ())
        # all of them now: one that fails while another is awaited is found no more
        flights = [self._board.find(content.id, index) for index in missing]
        for arrival in flights:
            if arrival is not None:
                await arrival.wait(self._patience, content.id)
        if content.missing(run) >= 0:
            raise CacheError(NO_ROOM)


def _inline(facts: FileFacts) -> bytes:
    if not isinstance(facts.extent, InlineData):
        raise IntegrityError(f"{facts.content}: no content file, and no inline data")
    return facts.extent.data


def _check_length(content: AnyContent, index: int, data: memoryview) -> None:
    if len(data) != block_length(content.size, index):
        raise StaleContent(f"{content.id}: the origin has a file of another size now")


def _missing(content: AnyContent, run: Run) -> list[int]:
    found = []
    index = content.missing(run)
    while index >= 0:
        found.append(index)
        index = content.missing(Run(index + 1, run.stop))
    return found


def _bytes(content: AnyContent, run: Run) -> int:
    return min(run.stop * BLOCK, content.size) - run.first * BLOCK


def _assemble(content: AnyContent, run: Run, landed: dict[int, memoryview], offset: int, length: int) -> bytes | None:
    """Return the bytes asked for out of landed and resident blocks; None when one is neither. Never awaits."""
    parts: list[bytes | memoryview] = []
    end = offset + length
    for index in range(run.first, run.stop):
        begin, stop = max(offset, index * BLOCK), min(end, (index + 1) * BLOCK)
        block = landed.get(index)
        if block is not None:
            parts.append(block[begin - index * BLOCK : stop - index * BLOCK])
        elif content.missing(Run(index, index + 1)) < 0:
            try:
                parts.append(content.read(begin, stop - begin))
            except BlockDamaged as exc:
                log.warning("%s; fetching it again", exc)
                return None
        else:
            return None
    return b"".join(parts)
