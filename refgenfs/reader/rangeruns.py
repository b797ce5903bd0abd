"""Runs of byte ranges: when one may begin, what has room in the cache, and whole files of them.

Lives on the trio thread. There is no await between looking a flight up and launching it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import trio

from refgenfs.cache.shelf import Reservation
from refgenfs.cache.store import Store
from refgenfs.core.content import BLOCK, ByteRange, Run, block_count
from refgenfs.core.errors import CacheError, RefgenfsError
from refgenfs.fetch.http import Http
from refgenfs.reader.flights import FlightBoard
from refgenfs.reader.ranges import LONGEST_RUN, RangeRun, Traffic, split_runs
from refgenfs.reader.uncached import AnyContent
from refgenfs.reader.writes import Writes

# What one run holds in memory at the most: the piece being filled, and the one on its way to the disk.
RUN_MEMORY = 2 * 1024 * 1024
NO_ROOM = "no room in the cache for all of it; raise cache.size or unpin something"


@dataclass(slots=True)
class ReadCounts:
    """What readers were given since the start, in bytes."""

    served: int = 0
    reads: int = 0
    cold_reads: int = 0
    uncached: int = 0


class RangeRuns:
    """The runs under way, of all files; `memory` (bytes) bounds how many those are at a time."""

    def __init__(
        self,
        store: Store,
        http: Http,
        board: FlightBoard,
        counts: ReadCounts,
        *,
        patience: float,
        memory: int,
        nursery: trio.Nursery,
    ) -> None:
        self._store = store
        self._http = http
        self._board = board
        self._counts = counts
        self._patience = patience
        self._runs = max(2, memory // RUN_MEMORY)  # at a time
        self._slots = trio.CapacityLimiter(self._runs)
        self._launched = 0  # runs that fly or wait for a slot
        self._landed = trio.lowlevel.ParkingLot()  # of those that wait for a run to land
        self._nursery = nursery
        self._writes = Writes()
        self._traffic = Traffic()

    def affordable(
        self, content: AnyContent, ahead: Run | None, asked: int = 0, longest: int = LONGEST_RUN
    ) -> list[int]:
        """Return the blocks of a window that may be fetched ahead: never at a waiting reader's expense."""
        spare = (self._runs * 3 // 4 - self._launched) * longest - asked
        return missing_blocks(content, ahead)[:spare] if ahead is not None and spare > 0 else []

    def launch(
        self,
        content: AnyContent,
        extent: ByteRange,
        source: str,
        asked: Iterable[int],
        beyond: Iterable[int],
        older_than: int | None = None,
        longest: int = LONGEST_RUN,
    ) -> None:
        """Launch a flight of each block that has none; those beyond what was asked only into the cache.

        With `older_than`, room is made only of what was last used before that stamp. A request has at most `longest`
        blocks.
        """
        must = {i for i in asked if self._board.find(content.id, i) is None}
        may = {i for i in beyond if self._board.find(content.id, i) is None}
        full = False
        for run in split_runs(sorted(must | may), longest):
            wanted = sorted(i for i in must if run.first <= i < run.stop)
            if full and not wanted:
                continue
            if self._start_stored(content, extent, source, run, older_than):
                continue
            full = True
            # No room for all of it: for what is asked for alone, perhaps; else, or with a disk that refuses,
            # it is served uncached. What would only be read ahead waits for better times.
            for short in split_runs(wanted):
                if not self._start_stored(content, extent, source, short):
                    self._counts.uncached += _bytes(content, short)
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

    async def turn(self, limit: int) -> None:
        """Wait until fewer than `limit` runs are under way, and memory is to spare: readers come first."""
        while self._launched >= min(limit, self._runs * 3 // 4):
            await self._landed.park()

    async def bring(self, content: AnyContent, extent: ByteRange, source: str, run: Run, older_than: int) -> bool:
        """Have what is missing of a run fetched into the cache, and wait for it; False where there is no room.

        Only what was last used before the stamp `older_than` makes room for it. Raises the origin's errors.
        """
        missing = missing_blocks(content, run)
        self.launch(content, extent, source, (), missing, older_than)
        flights = [self._board.find(content.id, index) for index in missing]
        for arrival in flights:
            if arrival is not None:
                await arrival.wait(self._patience, content.id)
        return None not in flights

    # -- whole files --------------------------------------------------------------------------------------

    async def fill(self, content: AnyContent, extent: ByteRange, source: str) -> None:
        """Make a content resident, all of it.

        Raises the origin's errors, and CacheError when the cache has no room for it.
        """
        whole = Run(0, block_count(content.size))
        inflight = trio.CapacityLimiter(4)  # runs of one file at once: enough for one slow host's connections
        failed: list[RefgenfsError] = []  # raised as it is: a nursery would wrap it in a group

        async def one(run: Run, *, task_status: trio.TaskStatus[None]) -> None:
            async with inflight:
                task_status.started()
                try:
                    await self._fill_run(source, extent, content, run)
                except RefgenfsError as exc:
                    failed.append(exc)
                    nursery.cancel_scope.cancel()

        if content.size > self._store.quota:
            raise CacheError(NO_ROOM)
        content.touch(whole)  # or room for the rest of it would be made of what is there already
        async with trio.open_nursery() as nursery:
            for run in split_runs(missing_blocks(content, whole), LONGEST_RUN):
                await nursery.start(one, run)
        if failed:
            raise failed[0]
        if content.missing(whole) >= 0:
            raise CacheError(NO_ROOM)

    async def _fill_run(self, source: str, extent: ByteRange, content: AnyContent, run: Run) -> None:
        missing = missing_blocks(content, run)  # a reader may have been here since
        self.launch(content, extent, source, missing, ())
        # all of them now: one that fails while another is awaited is found no more
        flights = [self._board.find(content.id, index) for index in missing]
        for arrival in flights:
            if arrival is not None:
                await arrival.wait(self._patience, content.id)
        if content.missing(run) >= 0:
            raise CacheError(NO_ROOM)


def missing_blocks(content: AnyContent, run: Run) -> list[int]:
    """Return the blocks of a run that are not resident."""
    found = []
    index = content.missing(run)
    while index >= 0:
        found.append(index)
        index = content.missing(Run(index + 1, run.stop))
    return found


def _bytes(content: AnyContent, run: Run) -> int:
    return min(run.stop * BLOCK, content.size) - run.first * BLOCK
