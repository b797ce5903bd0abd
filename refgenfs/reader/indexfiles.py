"""The bytes of seek indexes: contents of the cache like any other; what the origin offers is fetched by ranges."""

from __future__ import annotations

import logging

from refgenfs.cache.content import Content
from refgenfs.cache.store import Store
from refgenfs.core.content import BLOCK, ByteRange, Run
from refgenfs.core.errors import CacheError, RefgenfsError, without_frames
from refgenfs.reader.archive import Archive, KnownIndex
from refgenfs.reader.assembling import assemble
from refgenfs.reader.flights import Arrival, FlightBoard
from refgenfs.reader.rangeruns import missing_blocks
from refgenfs.reader.ranges import RangeFlights, memory_of, split_runs
from refgenfs.reader.uncached import AnyContent, UncachedContent

log = logging.getLogger(__name__)

ROUNDS = 4  # how often a read of an index starts over because blocks of it went meanwhile


class IndexLost(RefgenfsError):
    """What was kept of an index is not whole any more, and the origin does not send it: there is none, or another."""


class IndexFiles:
    """Reads index files. Lives on the trio thread.

    Who reads pays for the memory of its requests (`reading_memory`): it may hold some, and must not wait for more.
    """

    def __init__(self, store: Store, board: FlightBoard, flights: RangeFlights, *, patience: float) -> None:
        self._store = store
        self._board = board
        self._flights = flights
        self._patience = patience

    def be_patient(self, patience: float) -> None:
        """Wait so long (seconds) without a byte from now on."""
        self._patience = patience

    async def content(self, known: KnownIndex) -> AnyContent:
        """Return the content of an index; one that is read without the cache if that refuses."""
        try:
            return await self._store.content(known.content, known.size)
        except CacheError as exc:
            log.warning("%s; a seek index is read without the cache", exc)
            return UncachedContent(known.content, known.size)

    async def read(self, archive: Archive, known: KnownIndex, offset: int, length: int) -> bytes:
        """Return bytes of the index file, fetched where the origin offers it. Raises IndexLost."""
        if not length:
            return b""
        content = await self.content(known)
        run = Run(offset // BLOCK, -(-(offset + length) // BLOCK))
        for _ in range(ROUNDS):
            arrivals = self._launch(archive, known, content, run)
            try:
                await self._arrive(archive, arrivals)
                landed = {index: arrival.data for index, arrival in arrivals.items() if arrival.data is not None}
                data = assemble(content, run, landed, offset, length)
            finally:
                for arrival in arrivals.values():
                    arrival.release()
            if isinstance(content, Content) and arrivals:
                self._store.keep(content)
            if data is not None:
                return data
        raise IndexLost(f"{archive.ref.key}: the cache forgets its seek index quicker than it is read")

    async def _arrive(self, archive: Archive, arrivals: dict[int, Arrival]) -> None:
        """Wait for blocks. Raises IndexLost: a stream may bring what the index was wanted for."""
        try:
            for arrival in arrivals.values():
                await arrival.wait(self._patience, f"the seek index of {archive.ref.key}")
        except RefgenfsError as exc:
            raise IndexLost(f"{archive.ref.key}: its seek index can't be had: {exc}") from without_frames(exc)

    def _launch(self, archive: Archive, known: KnownIndex, content: AnyContent, run: Run) -> dict[int, Arrival]:
        """Hold a flight of every block that is not resident. No await: a block has one flight."""
        missing = missing_blocks(content, run)
        if missing and not known.offered:
            raise IndexLost(f"{archive.ref.key}: its seek index was evicted")
        absent = [index for index in missing if self._board.find(content.id, index) is None]
        extent = ByteRange(known.urls, known.validator)
        for part in split_runs(absent):
            room = content.reserve(part)
            self._flights.start(content, extent, part, room, archive.ref.source, None, archive.index_came)
        found = {index: self._board.find(content.id, index) for index in missing}
        arrivals = {index: arrival for index, arrival in found.items() if arrival is not None}
        for arrival in arrivals.values():
            arrival.hold()
        return arrivals


def reading_memory(length: int) -> int:
    """Return what reading `length` bytes of an index takes at the most: a request, its blocks, and all as one."""
    return memory_of(length) + 2 * length
