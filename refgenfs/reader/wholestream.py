"""A file of a host that gives no parts, going by from its first byte: what passes is stored, who waits is served."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from refgenfs.cache.content import Content, checksum
from refgenfs.cache.shelf import Reservation
from refgenfs.core.content import BLOCK, Ranged, Run, block_count
from refgenfs.core.errors import CacheError, OriginUnavailable, RefgenfsError, StaleContent, without_frames
from refgenfs.reader.flights import Arrival, FlightBoard
from refgenfs.reader.ranges import RangeFlights, split_runs
from refgenfs.reader.stream import TAIL, IdleStreams, StreamIdle
from refgenfs.reader.uncached import AnyContent

log = logging.getLogger(__name__)


class Rerouted(RefgenfsError):
    """What was waited for comes in another way now: it is to be asked for anew."""

    transient = True


@dataclass(slots=True)
class _Piece:
    """Neighbouring blocks on their way, and the room that there is for those which are not resident."""

    run: Run
    rooms: list[tuple[Run, Reservation]] = field(default_factory=list)

    def room_for(self, index: int) -> Reservation | None:
        """Return the room that is reserved for a block."""
        return next((room for run, room in self.rooms if run.first <= index < run.stop), None)

    def release(self) -> None:
        """Give back what is left of the room."""
        for _, room in self.rooms:
            room.release()
        self.rooms = []


class WholeStream:
    """One pass over an object, and the carrier of the flights that wait for it.

    What somebody waits for may push out anything but pins; what merely passes by only what is older than this
    stream, and where there is nothing older, the stream waits until somebody wants it to go on. What is resident
    already is compared with what passes: the same version of an object is the same bytes.

    All methods but `write` are for the trio thread.
    """

    def __init__(
        self,
        content: AnyContent,
        extent: Ranged,
        source: str,
        board: FlightBoard,
        flights: RangeFlights,
        idle: IdleStreams,
        linger: float,
        born: int,
        on_other: Callable[[], None],
    ) -> None:
        self.content = content
        self.extent = extent
        self.source = source
        self.next = 0  # the first block that has not gone by
        self.tail: OrderedDict[int, Arrival] = OrderedDict()  # blocks that went by and could not be stored
        self.ended = trio.Event()
        self.error: RefgenfsError | None = None
        self._board = board
        self._flights = flights
        self._idle = idle
        self._linger = linger
        self._born = born
        self._on_other = on_other
        self._wanted: set[int] = set()
        self._pulls = 0
        self._landed = 0
        self._alone_since = trio.current_time()
        self._flying = False
        self._given_up = False
        self._wake = trio.Event()
        self._scope = trio.CancelScope()
        self._under_way: list[_Piece] = []
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._gives_parts: Callable[[], bool] = lambda: False

    # -- what readers ask ---------------------------------------------------------------------------------

    @property
    def progress(self) -> int:
        """Change with the bytes that land; with those of all flights while this one awaits its turn."""
        return self._landed or -1 - self._flights.budget.landed

    def will_reach(self, index: int) -> bool:
        """Say whether this block is still to come."""
        return not self.ended.is_set() and not self._given_up and self.error is None and index >= self.next

    def want(self, index: int) -> None:
        """Note that somebody waits for a block whose flight is on this stream."""
        self._wanted.add(index)
        self._wake.set()

    @contextmanager
    def pulled(self) -> Iterator[None]:
        """Have all that passes stored, at the expense of anything but pins, while the block lasts."""
        self._pulls += 1
        self._wake.set()
        try:
            yield
        finally:
            self._pulls -= 1

    @property
    def unwanted_for(self) -> float:
        """Seconds for which it has flown with nobody waiting for it; 0 while somebody does."""
        if not self._flying or self._wanted or self._pulls or self._given_up:
            return 0.0
        return trio.current_time() - self._alone_since

    def dismiss(self) -> None:
        """End now: others wait for their turn."""
        self._given_up = True
        self._scope.cancel()

    def give_up(self) -> None:
        """End if nobody waits: the connection is needed elsewhere."""
        self._given_up = not self._wanted and not self._pulls
        self._wake.set()

    # -- the flight ---------------------------------------------------------------------------------------

    async def fly(self, whole: Callable[[], bool]) -> None:
        """Have the object go by; `end` must follow. What goes wrong is `error`. Raises only a cancellation.

        `whole` says whether its host is thought to give it whole only.
        """
        self._token = trio.lowlevel.current_trio_token()
        self._gives_parts = lambda: not whole()
        size = self.content.size
        self._flying = True
        with self._scope:
            async with trio.open_nursery() as self._nursery:
                try:
                    await self._flights.fetcher.fetch_range(self.extent, 0, size, size, self, account=self.source)
                except StreamIdle as exc:
                    log.debug("%s: %s", self.content.id, exc)
                except RefgenfsError as exc:
                    self.error = self.error or without_frames(exc)
                except Exception as exc:
                    log.exception("a stream of %s failed unexpectedly", self.content.id)
                    self.error = OriginUnavailable(f"a fetch failed unexpectedly: {type(exc).__name__}")
                self._nursery.cancel_scope.cancel()

    def end(self) -> None:
        """End every flight on this stream, and give back what is reserved. Never awaits."""
        gone = self.error or OriginUnavailable(f"the fetch of {self.content.id} was given up")
        self._board.fail(self.content.id, sorted(self._wanted), self, gone)
        self._wanted.clear()
        for piece in self._under_way:
            piece.release()
        self._under_way.clear()
        self.tail.clear()  # its arrivals know the stream: a cycle with megabytes in it
        self.ended.set()

    def _fail(self, error: RefgenfsError) -> None:
        self.error = error
        self._scope.cancel()

    # -- what comes ---------------------------------------------------------------------------------------

    async def write(self, offset: int, data: memoryview) -> None:
        """Take whole blocks on the asyncio loop: have room made, store them, then tell the trio thread."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[_Piece] = loop.create_future()
        run = Run(offset // BLOCK, -(-(offset + len(data)) // BLOCK))

        def reply(piece: _Piece | None, error: RefgenfsError | None) -> None:
            loop.call_soon_threadsafe(_settle, turn, piece, error)

        assert self._token is not None
        assert self._nursery is not None
        self._token.run_sync_soon(self._begin_admission, run, reply)
        piece = await turn
        crcs = await self._flights.writes.run(partial(self._store, piece, data))
        self._token.run_sync_soon(self._land, piece, data, crcs)

    def _begin_admission(self, run: Run, reply: Callable[[_Piece | None, RefgenfsError | None], None]) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._admit, run, reply)

    async def _admit(self, run: Run, reply: Callable[[_Piece | None, RefgenfsError | None], None]) -> None:
        """Answer with the room that there is for a piece, once somebody wants the stream to go on."""
        rest = Run(run.first, block_count(self.content.size))
        while True:
            # no await between these checks and the reservation
            if not self._wanted and not self._pulls and self.content.missing(rest) < 0:
                reply(None, StreamIdle("all that is to come is there"))
                return
            asked = bool(self._pulls) or any(index in self._wanted for index in range(run.first, run.stop))
            piece = self._reserve(run, None if asked else self._born)
            if piece is not None or self._wanted or self._pulls:
                piece = piece or _Piece(run)
                self._under_way.append(piece)
                reply(piece, None)
                return
            if not await self._somebody_comes():
                self._given_up = True  # who comes from here on starts another stream
                reply(None, StreamIdle("nobody waits for the rest"))
                return

    def _reserve(self, run: Run, older_than: int | None) -> _Piece | None:
        """Return the piece with room for all of it that is missing; None where there is not enough."""
        piece = _Piece(run)
        content = self.content
        missing = [index for index in range(run.first, run.stop) if content.missing(Run(index, index + 1)) >= 0]
        for part in split_runs(missing):
            room = content.reserve(part, older_than=older_than)
            if room is None:
                piece.release()
                return None
            piece.rooms.append((part, room))
        return piece

    async def _somebody_comes(self) -> bool:
        self._wake = trio.Event()
        if self._given_up:
            return False
        with self._idle.waiting(self), trio.move_on_after(self._linger):
            await self._wake.wait()
            return not self._given_up
        return False

    def _store(self, piece: _Piece, data: memoryview) -> list[int]:
        """Write the blocks that there is room for, and return the CRC of every block; for any thread."""
        for run, _ in piece.rooms:
            start = (run.first - piece.run.first) * BLOCK
            try:
                self.content.write(run.first, data[start : start + len(run) * BLOCK])
            except CacheError:
                continue  # the store counts it and says so; the readers get their bytes all the same
        return [checksum(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]

    def _land(self, piece: _Piece, data: memoryview, crcs: list[int]) -> None:
        if self.ended.is_set() or self.error is not None:
            return
        content = self.content
        self._under_way.remove(piece)
        self._flights.budget.moved(len(data))
        self._landed += len(data)
        for number, index in enumerate(range(piece.run.first, piece.run.stop)):
            block = data[number * BLOCK : (number + 1) * BLOCK]
            if not self._keep(piece, index, block, crcs[number]):
                piece.release()
                self._refuse(index)
                return
            if index in self._wanted:
                self._wanted.discard(index)
                self._alone_since = trio.current_time()
            self._board.land(content.id, index, block)
        piece.release()
        self.next = piece.run.stop
        if self._gives_parts():
            self._fail(Rerouted(f"{content.id}: its host gives parts after all"))

    def _keep(self, piece: _Piece, index: int, block: memoryview, crc: int) -> bool:
        """Make a block resident, or keep it for a moment; False: it is resident already, with other bytes."""
        content = self.content
        room = piece.room_for(index)
        if room is not None and content.commit(index, crc, room):
            return True
        if isinstance(content, Content) and content.missing(Run(index, index + 1)) < 0:
            if content.agrees(index, crc):
                return True
            if content.recheck(index):  # else it was the disk that had something else
                return False
        self._keep_in_tail(index, block)
        return True

    def _refuse(self, index: int) -> None:
        """The same version has other bytes than before: what is kept may be of two versions."""
        log.warning("%s: block %d came before, and was another; dropping all of it", self.content.id, index)
        if isinstance(self.content, Content):
            self.content.drop(Run(0, block_count(self.content.size)))
        self._on_other()
        self._fail(StaleContent(f"{self.content.id}: the origin has other bytes now, under the same version"))

    def _keep_in_tail(self, index: int, data: memoryview) -> None:
        arrival = self.tail[index] = Arrival(self)
        arrival.hold()  # by the tail itself
        arrival.land(memoryview(bytes(data)))  # a copy: the view would keep a whole piece
        if len(self.tail) > TAIL:
            self.tail.popitem(last=False)[1].release()


def _settle(turn: asyncio.Future[_Piece], piece: _Piece | None, error: RefgenfsError | None) -> None:
    if turn.done():
        return
    if piece is not None:
        turn.set_result(piece)
    else:
        turn.set_exception(error or StreamIdle("it ended"))
