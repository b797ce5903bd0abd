"""Files of hosts that give no parts: which stream a block is waited for on, and whole files.

Lives on the trio thread. There is no await between looking a flight up and launching it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

import trio

from refgenfs.cache.store import Store
from refgenfs.core.content import ByteRange, ContentId, Ranged, Run, block_count
from refgenfs.core.errors import DeadlineExceeded
from refgenfs.reader.budget import Claim
from refgenfs.reader.flights import Arrival, FlightBoard
from refgenfs.reader.ranges import RangeFlights, RangeRun, memory_of
from refgenfs.reader.stream import IdleStreams
from refgenfs.reader.uncached import AnyContent
from refgenfs.reader.wholestream import WholeStream

log = logging.getLogger(__name__)

LINGER = 30.0  # seconds that a stream waits for somebody to want what comes next, when there is no room for it
BEAT = 0.5  # seconds between two looks for a stream that could give way


class Wholes:
    """The streams of objects that come whole only. A block is brought by one that will reach it.

    One stream a content, whoever asks; a block that has gone by and is not resident starts another. A stream goes on
    to the object's end when nobody waits for it any more, but for no more than a third of `linger` while others wait
    for their turn. `on_damage` is told of contents whose blocks turned out to be of two versions.
    """

    def __init__(
        self,
        store: Store,
        board: FlightBoard,
        flights: RangeFlights,
        nursery: trio.Nursery,
        on_damage: Callable[[Iterable[ContentId]], None],
        *,
        patience: float,
        linger: float = LINGER,
    ) -> None:
        self._store = store
        self._board = board
        self._flights = flights
        self._nursery = nursery
        self._on_damage = on_damage
        self._patience = patience
        self._linger = linger
        self._streams: dict[ContentId, list[WholeStream]] = {}
        self._idle = IdleStreams(max(1, flights.budget.streams // 2))
        self._slots = trio.CapacityLimiter(
            flights.budget.streams
        )  # a host's other connections are for sizes and lists
        flights.reroute = self.take_over

    def takes(self, extent: Ranged, source: str) -> bool:
        """Say whether a file comes whole only, as far as that is known."""
        if type(extent) is not ByteRange:
            return False
        return self._flights.manners.whole(source, extent.urls, time.monotonic(), said=extent.whole)

    def join(self, content: AnyContent, extent: Ranged, source: str, blocks: Iterable[int]) -> None:
        """See that each block has a flight: on a stream that will reach it, or on a new one. Never awaits."""
        for index in blocks:
            if self._board.find(content.id, index) is None and self.passed(content.id, index) is None:
                stream = self._stream(content, extent, source, index)
                self._board.launch(content.id, (index,), stream)
                stream.want(index)

    def passed(self, content: ContentId, index: int) -> Arrival | None:
        """Return a block that has gone by just now and could not be stored."""
        found = (stream.tail.get(index) for stream in self._streams.get(content, ()))
        return next((arrival for arrival in found if arrival is not None), None)

    def take_over(self, run: RangeRun, extent: Ranged, source: str) -> None:
        """Bring what a run was to bring, whose host gives no parts; who waits for it notices nothing."""
        for index in range(run.run.first, run.run.stop):
            arrival = self._board.find(run.content.id, index)
            if arrival is not None and arrival.carrier is run:
                stream = self._stream(run.content, extent, source, index)
                self._board.hand_over(run.content.id, index, stream)
                stream.want(index)

    async def fill(self, content: AnyContent, extent: Ranged, source: str) -> None:
        """Have all that is missing go by once, and be stored; raise the origin's errors."""
        first = content.missing(Run(0, block_count(content.size)))
        if first < 0:
            return
        stream = self._stream(content, extent, source, first)
        with stream.pulled():
            while not stream.ended.is_set():
                before = stream.progress
                with trio.move_on_after(self._patience):
                    await stream.ended.wait()
                if not stream.ended.is_set() and stream.progress == before:
                    raise DeadlineExceeded(f"{content.id}: nothing came in for {self._patience:g} s")
        if stream.error is not None:
            raise stream.error

    def _stream(self, content: AnyContent, extent: Ranged, source: str, index: int) -> WholeStream:
        """Return the stream that will be at a block soonest; a new one where none will reach it."""
        streams = self._streams.setdefault(content.id, [])
        reaching = [stream for stream in streams if stream.will_reach(index)]
        if reaching:
            return max(reaching, key=lambda stream: stream.next)
        stream = WholeStream(
            content,
            extent,
            source,
            self._board,
            self._flights,
            self._idle,
            self._linger,
            self._store.stamp,
            partial(self._on_damage, (content.id,)),
        )
        streams.append(stream)
        self._nursery.start_soon(self._fly, stream)
        return stream

    async def _fly(self, stream: WholeStream) -> None:
        claim: Claim | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._clear_the_way)
                await self._slots.acquire_on_behalf_of(stream)
                # not before: who holds memory must not wait for the turn of one that waits for memory
                claim = self._flights.budget.claim(memory_of(stream.content.size))
                await claim.wait()
                nursery.cancel_scope.cancel()
            await stream.fly(lambda: self.takes(stream.extent, stream.source))
        finally:
            stream.end()
            if claim is not None:
                claim.release()
            with suppress(RuntimeError):  # its turn never came
                self._slots.release_on_behalf_of(stream)
            streams = self._streams[stream.content.id]
            streams.remove(stream)
            if not streams:
                del self._streams[stream.content.id]
            self._flights.budget.freed.unpark_all()

    async def _clear_the_way(self) -> None:
        """Have streams that nobody waits for make room for one that somebody waits for, one at a time."""
        while True:
            await trio.sleep(BEAT)
            self._idle.give_way()
            flying = (stream for streams in self._streams.values() for stream in streams)
            unwanted = max(flying, key=lambda stream: stream.unwanted_for, default=None)
            if unwanted is not None and unwanted.unwanted_for >= self._linger / 3:
                unwanted.dismiss()
