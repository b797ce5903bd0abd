"""Runs of byte ranges: when one may begin, what has room in the cache, and whole files of them.

Lives on the trio thread. There is no await between looking a flight up and launching it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from refgenfs.cache.store import Store
from refgenfs.core.content import BLOCK, Ranged, Run, block_count
from refgenfs.core.errors import CacheError, RefgenfsError
from refgenfs.core.metrics import Durations
from refgenfs.reader.flights import Arrival, FlightBoard
from refgenfs.reader.ranges import LONGEST_RUN, RUN_MEMORY, RangeFlights, flight_memory, memory_of, split_runs
from refgenfs.reader.uncached import AnyContent
from refgenfs.reader.wholes import Wholes
from refgenfs.reader.wholestream import Rerouted

ROUNDS = 4  # how often a file that is to be resident is fetched anew, as far as it was evicted meanwhile
EVICTED = "what came was evicted again as it came, by `refgenfs evict` or for what others read; pull it once more"


@dataclass(slots=True)
class ReadCounts:
    """What readers were given since the start, in bytes."""

    served: int = 0
    by_source: dict[str, int] = field(default_factory=dict)  # the same, of each source
    reads: int = 0
    cold_reads: int = 0  # that had to wait, failed ones too
    awaited: int = 0  # of the reads that were answered, those that had to wait
    uncached: int = 0
    waits: Durations = field(default_factory=Durations)  # of reads that had to wait for bytes


class RangeRuns:
    """What is wanted of files that come by byte ranges, as runs."""

    def __init__(
        self,
        store: Store,
        board: FlightBoard,
        flights: RangeFlights,
        counts: ReadCounts,
        wholes: Wholes,
        *,
        patience: float,
    ) -> None:
        self._store = store
        self._board = board
        self._flights = flights
        self._budget = flights.budget
        self._counts = counts
        self._wholes = wholes
        self._patience = patience

    def be_patient(self, patience: float) -> None:
        """Wait so long (seconds) without a byte from now on."""
        self._patience = patience

    def find(self, content: AnyContent, index: int) -> Arrival | None:
        """Return a block's flight, or the block if it has just landed and could not be stored."""
        return self._board.find(content.id, index) or self._wholes.passed(content.id, index)

    def gives_parts(self, extent: Ranged, source: str) -> bool:
        """Say whether stretches of a file can be had by themselves, as far as that is known."""
        return not self._wholes.takes(extent, source)

    def affordable(
        self, content: AnyContent, ahead: Run | None, asked: int = 0, longest: int = LONGEST_RUN
    ) -> list[int]:
        """Return the blocks of a window that may be fetched ahead: never at a waiting reader's expense.

        So many as there is memory to spare for, in requests of `longest` blocks, beside `asked` that are wanted.
        """
        spare = self._budget.spare // memory_of(longest * BLOCK) * longest - asked
        return missing_blocks(content, ahead)[:spare] if ahead is not None and spare > 0 else []

    def launch(
        self,
        content: AnyContent,
        extent: Ranged,
        source: str,
        asked: Iterable[int],
        beyond: Iterable[int],
        longest: int = LONGEST_RUN,
    ) -> None:
        """Launch a flight of each block that has none; those beyond what was asked only into the cache.

        A request has at most `longest` blocks. A file that comes whole only passes by.
        """
        if self._wholes.takes(extent, source):
            self._wholes.join(content, extent, source, asked)
            return
        must = {i for i in asked if self._board.find(content.id, i) is None}
        may = {i for i in beyond if self._board.find(content.id, i) is None}
        full = False
        for run in split_runs(sorted(must | may), longest):
            wanted = sorted(i for i in must if run.first <= i < run.stop)
            if full and not wanted:
                continue
            if self._start_stored(content, extent, source, run, wanted=bool(wanted)):
                continue
            full = True
            # No room for all of it: for what is asked for alone, perhaps; else, or with a disk that refuses,
            # it is served uncached. What would only be read ahead waits for better times.
            for short in split_runs(wanted):
                if not self._start_stored(content, extent, source, short, wanted=True):
                    self._counts.uncached += length_of(content, short)
                    claim = self._budget.claim(flight_memory(extent, length_of(content, short)))
                    self._flights.start(content, extent, short, None, source, claim)

    def _start_stored(
        self,
        content: AnyContent,
        extent: Ranged,
        source: str,
        run: Run,
        *,
        wanted: bool,
        older_than: int | None = None,
    ) -> bool:
        """Launch a run into the cache; False where it has no room, or there is no memory for what is not `wanted`.

        With `older_than`, only what was last used before that stamp of the store makes room for it.
        """
        nbytes = flight_memory(extent, length_of(content, run))
        claim = self._budget.claim(nbytes) if wanted else self._budget.take(nbytes)
        if claim is None:
            return False
        reservation = content.reserve(run, older_than=older_than)
        if reservation is None:
            claim.release()
            return False
        self._flights.start(content, extent, run, reservation, source, claim, wanted=wanted and older_than is None)
        return True

    # -- what nobody waits for yet ------------------------------------------------------------------------

    async def turn(self, limit: int) -> None:
        """Wait until fewer than `limit` runs are under way, and memory is to spare: readers come first."""
        while self._flights.under_way >= limit or not self._budget.has_spare(RUN_MEMORY):
            await self._budget.freed.park()

    async def bring(self, content: AnyContent, extent: Ranged, source: str, run: Run, older_than: int) -> bool:
        """Have what is missing of a run fetched into the cache, and wait for it; False where there is no room.

        Only what was last used before the stamp `older_than` makes room for it. Raises the origin's errors.
        """
        if self._wholes.takes(extent, source):
            return False
        missing = missing_blocks(content, run)
        for part in split_runs(i for i in missing if self._board.find(content.id, i) is None):
            # it had its turn: for a run that is in pieces, it may take a little more than there was to spare
            self._start_stored(content, extent, source, part, wanted=True, older_than=older_than)
        flights = [self._board.find(content.id, index) for index in missing]
        for arrival in flights:
            if arrival is not None:
                await arrival.wait(self._patience, content.id)
        return None not in flights

    # -- whole files --------------------------------------------------------------------------------------

    async def fill(self, content: AnyContent, extent: Ranged, source: str) -> None:
        """Make a content resident, all of it; what is evicted meanwhile is fetched again.

        Raises the origin's errors, and CacheError when the cache has no room for it.
        """
        whole = Run(0, block_count(content.size))
        for _ in range(ROUNDS):
            if content.missing(whole) < 0:
                return
            if not self._store.fits({content.id: content.size}):
                raise not_kept(self._store)
            content.touch(whole)  # or room for the rest of it would be made of what is there already
            if self._wholes.takes(extent, source):
                with suppress(Rerouted):
                    await self._wholes.fill(content, extent, source)
            else:
                await self._fill_missing(content, extent, source, whole)
        if content.missing(whole) >= 0:
            raise CacheError(EVICTED)

    async def _fill_missing(self, content: AnyContent, extent: Ranged, source: str, whole: Run) -> None:
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

        async with trio.open_nursery() as nursery:
            for run in split_runs(missing_blocks(content, whole), LONGEST_RUN):
                await nursery.start(one, run)
        if failed:
            raise failed[0]

    async def _fill_run(self, source: str, extent: Ranged, content: AnyContent, run: Run) -> None:
        missing = missing_blocks(content, run)  # a reader may have been here since
        self.launch(content, extent, source, missing, ())
        # all of them now: one that fails while another is awaited is found no more
        flights = [self._board.find(content.id, index) for index in missing]
        for arrival in flights:
            if arrival is not None:
                await arrival.wait(self._patience, content.id)
        lost = content.missing(run)
        if lost >= 0:
            room = content.reserve(Run(lost, lost + 1))
            if room is None:  # the rest of the file would be fetched for nothing
                raise not_kept(self._store)
            room.release()


def not_kept(store: Store, what: str = "all of it") -> CacheError:
    """Return what to raise when something was fetched, and the cache can't hold it."""
    if store.uncached:
        return CacheError(f"the cache takes nothing now: {store.errors.last}")
    return CacheError(f"no room in the cache for {what}; raise cache.size or unpin something")


def missing_blocks(content: AnyContent, run: Run) -> list[int]:
    """Return the blocks of a run that are not resident."""
    found = []
    index = content.missing(run)
    while index >= 0:
        found.append(index)
        index = content.missing(Run(index + 1, run.stop))
    return found


def length_of(content: AnyContent, run: Run) -> int:
    """Return how many bytes a run of blocks has."""
    return min(run.stop * BLOCK, content.size) - run.first * BLOCK
