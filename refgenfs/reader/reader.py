"""Reads: resident blocks are answered at once, others are awaited in their flights.

All of this lives on the trio thread. What must stay atomic: there is no await between asking which blocks
are resident and copying them, nor between looking a flight up and launching it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import trio

from refgenfs.cache.shelf import BlockDamaged
from refgenfs.cache.store import Store
from refgenfs.core.content import (
    BLOCK,
    ArchiveMember,
    ContentId,
    Extent,
    FileFacts,
    InlineData,
    LocalFile,
    Ranged,
    Run,
    block_length,
)
from refgenfs.core.errors import CacheError, IntegrityError, OriginUnavailable, StaleContent
from refgenfs.core.readahead import Window, largest_window
from refgenfs.core.usage import Usage
from refgenfs.fetch.local import Threads, in_thread
from refgenfs.reader.archives import Archives
from refgenfs.reader.assembling import assemble
from refgenfs.reader.disk import Disk
from refgenfs.reader.flights import Arrival, FlightBoard
from refgenfs.reader.labels import Versions
from refgenfs.reader.rangeruns import RangeRuns, ReadCounts, missing_blocks
from refgenfs.reader.ranges import RangeFlights
from refgenfs.reader.straight import StraightContent, StraightFiles
from refgenfs.reader.stream import Archive
from refgenfs.reader.uncached import AnyContent, UncachedContent
from refgenfs.reader.wholes import LINGER, Wholes
from refgenfs.reader.wholestream import Rerouted

log = logging.getLogger(__name__)

D = TypeVar("D", bytes, memoryview, bytes | memoryview)
V = TypeVar("V")

# How often a read starts over because blocks went (evicted, or damaged on the disk) while it waited for others.
ROUNDS = 16


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
    usage: Usage = field(default_factory=Usage)  # of who reads it

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


class Reader:
    """Answers reads of contents from the cache, and has what is missing fetched."""

    def __init__(
        self,
        store: Store,
        board: FlightBoard,
        flights: RangeFlights,
        archives: Archives,
        on_stale: Callable[[FileFacts], None],
        *,
        patience: float,
        nursery: trio.Nursery,
        on_damage: Callable[[Iterable[ContentId]], None] = lambda _: None,
        linger: float = LINGER,
    ) -> None:
        self.counts = ReadCounts()
        self._store = store
        self._versions = Versions(store)
        self._board = board
        self._archives = archives
        wholes = Wholes(store, board, flights, nursery, on_damage, patience=patience, linger=linger)
        self._ranges = RangeRuns(store, board, flights, self.counts, wholes, patience=patience)
        self._on_stale = on_stale
        self._patience = patience
        self._nursery = nursery
        self._disk = Disk()
        self._far = Threads()
        self._near = StraightFiles()

    def be_patient(self, patience: float) -> None:
        """Wait so long (seconds) without a byte from now on."""
        self._patience = patience
        self._ranges.be_patient(patience)

    async def open(self, facts: FileFacts, archive: Archive | None = None) -> OpenFile:
        """Open a content for reading; an archive's member brings its archive."""
        if isinstance(facts.extent, InlineData):
            return OpenFile(facts, None, None, Window(facts.size))
        content: AnyContent
        if isinstance(facts.extent, LocalFile) and not facts.extent.cached:
            return OpenFile(facts, await self._open_straight(facts, facts.extent), None, Window(facts.size, 0))
        try:
            content = await self._store.content_to_read(facts.content, facts.size)
        except CacheError as exc:
            log.warning("%s; it is read without the cache", exc)
            content = UncachedContent(facts.content, facts.size)
        limit = largest_window(self._store.quota)
        if archive is None:
            return OpenFile(facts, content, None, Window(facts.size, limit))
        # A look at a member's head costs the spans that have it, which have more than a first window as it is.
        return OpenFile(facts, content, archive, Window(facts.size, limit, eager=False), opened=archive.generation)

    async def _open_straight(self, facts: FileFacts, extent: LocalFile) -> StraightContent:
        self._near.check(facts.content, extent)
        # opened in any case: that shows whether the file is still the one that is meant
        opened = await self._straight(facts, partial(StraightContent, facts.content, facts.size, extent))
        return self._near.share(opened, extent)

    async def _straight(self, facts: FileFacts, call: Callable[[], V]) -> V:
        """Return what `call` gives, in a thread: it waits for the file system of a content that is read straight."""
        try:
            return await in_thread(
                call, self._patience, self._far.of(facts.source), f"{facts.source}: {facts.content}"
            )
        except StaleContent:
            self._on_stale(facts)
            raise

    async def vouch(self, facts: FileFacts, key: str, name: str) -> None:
        """Label a content that comes by byte ranges, before it is opened.

        Raises StaleContent if the bytes that are kept of it are of another version of the object.
        """
        if isinstance(facts.extent, Ranged) and not _is_straight(facts.extent):
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

    async def read_checked(self, file: OpenFile, start: int, stop: int) -> bytes | memoryview:
        """Return the bytes `start` up to `stop`, or fewer at the end of the file, out of blocks that are read whole.

        Those are held against their checksums: for what is made of bytes, and kept as right. Raises as `read` does.
        """
        first = start // BLOCK * BLOCK
        data = await self.read(file, first, -(-stop // BLOCK) * BLOCK - first)
        return memoryview(data)[start - first : stop - first]

    def read_resident(self, file: OpenFile, offset: int, size: int) -> bytes | memoryview | None:
        """Return what `read` would if that needs no wait; None: then `read_missing` is to be awaited.

        A read of resident blocks is all of this and nothing more. Raises StaleContent.
        """
        length = min(size, file.facts.size - offset)
        if length <= 0:
            return b""
        content, archive = file.content, file.archive
        if content is None:
            return self._served(file, memoryview(_inline(file.facts))[offset : offset + length])
        if isinstance(content, StraightContent):
            return self._read_near(file, content, offset, length)
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
            if self._store.is_ready:
                with self._charged(file, content):
                    self._prefetch(file, content, file.ahead)
            else:
                self._nursery.start_soon(self._prefetch_when_ready, file, content, file.ahead)
        if archive is not None and file.generation != archive.generation:
            file.generation = archive.generation
            archive.served.add(archive.generation)
        return self._served(file, data)

    async def read_missing(self, file: OpenFile, offset: int, size: int) -> bytes | memoryview:
        """Return what `read` would, after `read_resident` gave None. Raises as `read` does."""
        if file.content is None:
            raise IntegrityError(f"{file.facts.content}: inline data is never missing")
        length = min(size, file.facts.size - offset)
        if isinstance(file.content, StraightContent):
            straight = partial(file.content.read, offset, length)
            return self._served(file, await self._straight(file.facts, straight))
        self.counts.cold_reads += 1
        began = trio.current_time()
        try:
            if not self._store.is_ready:  # what is fetched before that could not be stored
                with trio.move_on_after(self._patience):
                    await self._store.ready()
            data = await self._read_cold(file, file.content, offset, length, file.ahead)
            self.counts.awaited += 1
            return self._served(file, data)
        finally:
            self.counts.waits.observe(trio.current_time() - began)

    def _read_near(self, file: OpenFile, content: StraightContent, offset: int, length: int) -> memoryview | None:
        try:
            data = content.read_at_once(offset, length)
        except StaleContent:
            self._on_stale(file.facts)
            raise
        return None if data is None else self._served(file, data)

    def _served(self, file: OpenFile, data: D) -> D:
        counts, source, usage, length = self.counts, file.facts.source, file.usage, len(data)
        counts.reads += 1
        counts.served += length
        counts.by_source[source] = counts.by_source.get(source, 0) + length
        usage.reads += 1
        usage.served += length
        return data

    @contextmanager
    def _charged(self, file: OpenFile, content: AnyContent) -> Iterator[None]:
        """Account what the body launches to who reads the file. The body never awaits."""
        before = self._board.nbytes(content.id, content.size)
        try:
            yield
        finally:
            file.usage.fetched += self._board.nbytes(content.id, content.size) - before

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
            data = assemble(content, run, landed, offset, length)
            if data is not None:
                return data
        raise OriginUnavailable(f"{file.facts.content}: the cache forgets blocks quicker than they are read")

    async def _await_blocks(
        self, file: OpenFile, content: AnyContent, run: Run, landed: dict[int, memoryview], ahead: Run | None
    ) -> None:
        """Wait until every block of the run that is not resident has landed, and put its bytes into `landed`."""
        with self._charged(file, content):
            joined = self._join(file, content, run, landed, ahead)
        try:
            for index, arrival in joined.items():
                with suppress(Rerouted):
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
        missing = [i for i in missing_blocks(content, run) if i not in landed]
        extent = file.facts.extent
        if isinstance(extent, Ranged):
            longest = file.window.request
            beyond = self._ranges.affordable(content, ahead, len(missing), longest)
            self._ranges.launch(content, extent, file.facts.source, missing, beyond, longest=longest)
            flights = {index: self._ranges.find(content, index) for index in missing}
        elif isinstance(extent, ArchiveMember) and file.archive is not None:
            archive, name = file.archive, extent.name
            flights = {i: self._archives.join(archive, content.id, name, i) for i in missing}
            if ahead is not None:
                self._archives.prefetch(archive, name, missing_blocks(content, ahead))
        else:
            raise IntegrityError(f"{content.id}: no way to fetch its bytes")
        joined = {index: arrival for index, arrival in flights.items() if arrival is not None}
        for arrival in joined.values():
            arrival.hold()
        return joined

    def _prefetch(self, file: OpenFile, content: AnyContent, ahead: Run) -> None:
        extent = file.facts.extent
        if isinstance(extent, Ranged):
            longest = file.window.request
            beyond = self._ranges.affordable(content, ahead, longest=longest)
            self._ranges.launch(content, extent, file.facts.source, [], beyond, longest=longest)
        elif isinstance(extent, ArchiveMember) and file.archive is not None:
            self._archives.prefetch(file.archive, extent.name, missing_blocks(content, ahead))

    async def _prefetch_when_ready(self, file: OpenFile, content: AnyContent, ahead: Run) -> None:
        await self._store.ready()
        with self._charged(file, content):
            self._prefetch(file, content, ahead)

    # -- what nobody waits for yet ------------------------------------------------------------------------

    def can_bring(self, facts: FileFacts) -> bool:
        """Say whether `bring` has a way to fetch parts of this file."""
        extent = facts.extent
        if isinstance(extent, ArchiveMember):
            return self._archives.can_bring(extent.archive)
        if not isinstance(extent, Ranged) or _is_straight(extent):
            return False
        return self._ranges.gives_parts(extent, facts.source)

    async def turn(self, limit: int) -> None:
        """Wait until fewer than `limit` runs are under way, and memory is to spare: readers come first."""
        await self._ranges.turn(limit)

    async def bring(self, file: OpenFile, run: Run, older_than: int) -> bool:
        """Have what is missing of a run fetched into the cache, and wait for it; nobody need want it yet.

        Only what was last used before the stamp `older_than` makes room for it. False: there is none, or no
        way to fetch parts of this file. Raises the origin's errors.
        """
        content, extent, archive = file.content, file.facts.extent, file.archive
        if content is not None and archive is not None and isinstance(extent, ArchiveMember):
            return await self._archives.bring(archive, content, extent.name, run, older_than)
        if content is None or not isinstance(extent, Ranged):
            return False
        try:
            return await self._ranges.bring(content, extent, file.facts.source, run, older_than)
        except StaleContent:
            self._on_stale(file.facts)
            raise

    async def restore(self, file: OpenFile, run: Run) -> bool:
        """Have what is missing of a run fetched, and wait for it; False: the cache has not kept all of it.

        Raises as `read` does.
        """
        if file.content is None:
            return True
        await self._await_blocks(file, file.content, run, {}, None)
        return file.content.missing(run) < 0

    async def fill(self, facts: FileFacts, content: AnyContent) -> None:
        """Make a content that comes by byte ranges resident, all of it.

        Raises the origin's errors, and CacheError when the cache has no room for it.
        """
        if isinstance(facts.extent, Ranged) and not _is_straight(facts.extent):
            await self._ranges.fill(content, facts.extent, facts.source)


def _is_straight(extent: Extent) -> bool:
    """Say whether a content is read where it is, and never stored."""
    return isinstance(extent, LocalFile) and not extent.cached


def _inline(facts: FileFacts) -> bytes:
    if not isinstance(facts.extent, InlineData):
        raise IntegrityError(f"{facts.content}: no content file, and no inline data")
    return facts.extent.data


def _check_length(content: AnyContent, index: int, data: memoryview) -> None:
    if len(data) != block_length(content.size, index):
        raise StaleContent(f"{content.id}: the origin has a file of another size now")
