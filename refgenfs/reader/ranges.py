"""Runs of blocks that come by byte ranges of a plain file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import pairwise, starmap
from typing import Any, Protocol, TypeVar

import trio

from refgenfs.cache.content import checksum
from refgenfs.cache.shelf import Reservation
from refgenfs.core.content import BLOCK, Derived, Ranged, Run
from refgenfs.core.errands import Errand, current, go_on
from refgenfs.core.errors import CacheError, OriginUnavailable, RefgenfsError, without_frames
from refgenfs.core.manners import Manners
from refgenfs.core.readahead import LONGEST_REQUEST
from refgenfs.fetch.answers import RangesIgnored
from refgenfs.fetch.pieces import PIECE, RangeSink
from refgenfs.reader.budget import Budget, Claim
from refgenfs.reader.flights import FlightBoard
from refgenfs.reader.uncached import AnyContent
from refgenfs.reader.writes import Writes

log = logging.getLogger(__name__)

# One HTTP request. Long enough to amortise a round trip, short enough that a window has several in flight.
LONGEST_RUN = LONGEST_REQUEST  # blocks
RUN_MEMORY = 2 * PIECE  # bytes that the longest holds


def split_runs(indices: Iterable[int], longest: int = LONGEST_RUN) -> list[Run]:
    """Cut ascending block indices into runs of neighbours: as few as can be, none longer than `longest`.

    What is one row of neighbours is cut evenly: a request of the last one or two blocks costs as much as any.
    """
    rows: list[list[int]] = []
    for index in indices:
        if rows and rows[-1][1] == index:
            rows[-1][1] += 1
        else:
            rows.append([index, index + 1])
    return [run for first, stop in rows for run in _cut_evenly(first, stop, longest)]


def _cut_evenly(first: int, stop: int, longest: int) -> Iterator[Run]:
    parts = -(-(stop - first) // longest)
    edges = [first + (stop - first) * part // parts for part in range(parts + 1)]
    return starmap(Run, pairwise(edges))


def memory_of(length: int) -> int:
    """Return what a request of `length` bytes holds in memory at the most: a piece that fills, one at the disk."""
    return min(2 * length, RUN_MEMORY)


def flight_memory(extent: Ranged, length: int) -> int:
    """Return what a request of `length` bytes claims of the budget.

    One for a content that is made of others claims nothing: it waits for the flights of those, which do, and nobody
    who holds memory may wait for memory. Who brings it sees to it that few are brought at a time.
    """
    return 0 if isinstance(extent, Derived) else memory_of(length)


E_contra = TypeVar("E_contra", bound=Ranged, contravariant=True)


class RangeFetcher(Protocol[E_contra]):
    """What brings stretches of contents that come by ranges, of one kind of extent."""

    async def fetch_range(
        self, extent: E_contra, start: int, stop: int, size: int, sink: RangeSink, *, account: str
    ) -> None:
        """Bring the bytes `start` up to `stop` of a content of `size` bytes to the sink (see `fetch.http.Http`).

        `extent` is of the kind of `Ranged` that the fetcher is for.
        """
        ...


class Fetchers:
    """The fetcher of each kind of content that comes by ranges."""

    def __init__(self, fetchers: Mapping[type[Ranged], RangeFetcher[Any]]) -> None:
        self._fetchers = fetchers

    async def fetch_range(
        self, extent: Ranged, start: int, stop: int, size: int, sink: RangeSink, *, account: str
    ) -> None:
        """Do as `RangeFetcher.fetch_range`, by the kind of the extent."""
        await self._fetchers[type(extent)].fetch_range(extent, start, stop, size, sink, account=account)


class RangeRun:
    """One run of blocks on its way: a flight of each block, one HTTP request for all.

    Bytes go to the content file (unless there is no reservation: then to the waiting readers only) from
    another thread, become resident on the trio thread, and wake those who wait.
    """

    def __init__(
        self,
        content: AnyContent,
        extent: Ranged,
        run: Run,
        reservation: Reservation | None,
        board: FlightBoard,
        writes: Writes,
        budget: Budget,
        account: str,
        moved: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.content = content
        self.run = run
        self.flies = False  # it has its memory, and was asked for
        self._landed = 0
        self._extent = extent
        self._reservation = reservation
        self._board = board
        self._writes = writes
        self._budget = budget
        self._account = account
        self._moved = moved  # told, on the trio thread, how many bytes came
        self._error: RefgenfsError = OriginUnavailable(f"the fetch of {content.id} was given up")
        self._token: trio.lowlevel.TrioToken | None = None

    @property
    def progress(self) -> int:
        """Change with the bytes that land; with those of all flights while this one awaits its turn."""
        return self._landed or -1 - self._budget.landed

    async def fly(self, fetcher: RangeFetcher[Ranged], reroute: Reroute) -> None:
        """Fetch the run; what goes wrong goes to those who wait. Raises only a cancellation.

        `reroute` is called where the origin gives no parts, and may hand over the flights.
        """
        start = self.run.first * BLOCK
        stop = min(self.run.stop * BLOCK, self.content.size)
        self._token = trio.lowlevel.current_trio_token()
        self.flies = True
        try:
            await fetcher.fetch_range(self._extent, start, stop, self.content.size, self, account=self._account)
            self._error = OriginUnavailable(f"the origin ended before byte {stop}")
        except RangesIgnored as exc:
            self._error = without_frames(exc)
            reroute(self, self._extent, self._account)
        except RefgenfsError as exc:
            self._error = without_frames(exc)
        except Exception as exc:
            log.exception("a fetch of blocks %d-%d failed unexpectedly", self.run.first, self.run.stop)
            self._error = OriginUnavailable(f"a fetch failed unexpectedly: {type(exc).__name__}")

    def abandon(self) -> None:
        """End the flights that have not landed, and give back the room. Never awaits; idempotent."""
        self._board.fail(self.content.id, range(self.run.first, self.run.stop), self, self._error)
        if self._reservation is not None:
            self._reservation.release()

    async def write(self, offset: int, data: memoryview) -> None:
        """Take whole blocks on the asyncio loop: store them, then tell the trio thread."""
        crcs = await self._writes.run(partial(self._store, offset, data))
        if self._token is not None:
            self._token.run_sync_soon(partial(self._land, offset, data, crcs))

    def _store(self, offset: int, data: memoryview) -> list[int] | None:
        """Write the blocks and return a CRC each; None when they are not to be or can't be stored."""
        if self._reservation is None:
            return None
        try:
            self.content.write(offset // BLOCK, data)
        except CacheError:
            return None  # the store counts it and says so; the readers get their bytes all the same
        return [checksum(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]

    def _land(self, offset: int, data: memoryview, crcs: list[int] | None) -> None:
        self._landed += len(data)
        self._budget.moved(len(data))
        self._moved(len(data))
        first = offset // BLOCK
        for number, at in enumerate(range(0, len(data), BLOCK)):
            if crcs is not None and self._reservation is not None:
                self.content.commit(first + number, crcs[number], self._reservation)
            self._board.land(self.content.id, first + number, data[at : at + BLOCK])


Reroute = Callable[[RangeRun, Ranged, str], None]


def _let_fail(_run: RangeRun, _extent: Ranged, _account: str) -> None:
    """Have those who wait told that the origin gives no parts."""


class RangeFlights:
    """The runs under way, whoever had them launched. Lives on the trio thread; `nursery` owns them."""

    def __init__(
        self,
        fetcher: RangeFetcher[Ranged],
        board: FlightBoard,
        budget: Budget,
        nursery: trio.Nursery,
        manners: Manners | None = None,
    ) -> None:
        self.under_way = 0  # runs that fly or wait for memory; and runs of spans that fly
        self.budget = budget
        self.fetcher = fetcher
        self.manners = manners or Manners()  # what is known of hosts
        self.reroute: Reroute = _let_fail
        self.writes = Writes()
        self._board = board
        self._nursery = nursery

    def start(
        self,
        content: AnyContent,
        extent: Ranged,
        run: Run,
        room: Reservation | None,
        account: str,
        claim: Claim | None,
        moved: Callable[[int], None] = lambda _: None,
        *,
        wanted: bool = True,
    ) -> None:
        """Launch a flight of each block of a run; none may have one. Never awaits.

        What is not `wanted` comes after what is, until somebody waits for one of its blocks. What is given (room in
        the cache or None, memory or None where somebody else pays) is given back at its end.
        """
        flight = RangeRun(content, extent, run, room, self._board, self.writes, self.budget, account, moved)
        mine = current()
        errand = Errand(mine.user, wanted and mine.urgent)
        self._board.launch(content.id, range(run.first, run.stop), flight, errand)
        self.under_way += 1
        self._nursery.start_soon(self._fly, flight, claim, errand)

    async def _fly(self, flight: RangeRun, claim: Claim | None, errand: Errand) -> None:
        go_on(errand)
        try:
            if claim is not None:
                await claim.wait()
            await flight.fly(self.fetcher, self.reroute)
        finally:
            self.under_way -= 1
            flight.abandon()
            if claim is not None:
                claim.release()
            self.budget.freed.unpark_all()
