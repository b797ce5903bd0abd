"""Flights: a block that is on its way has one flight, whoever waits for it.

Everything here belongs to the trio thread. There is never an await between looking a flight up and
registering it. Releasing never awaits either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import trio

from refgenfs.core.content import BLOCK, ContentId, block_count, block_length
from refgenfs.core.errands import Errand
from refgenfs.core.errors import DeadlineExceeded, RefgenfsError


class Carrier(Protocol):
    """What brings blocks: the run of a byte range, a batch of spans, or an archive's stream."""

    @property
    def progress(self) -> int:
        """A number that changes whenever bytes come in."""
        ...


class Arrival:
    """One block on its way: its bytes or its error, once `done` is set.

    Whoever wants the bytes holds the arrival from before it lands (`hold`) until it has taken them
    (`release`): the bytes of an arrival that nobody holds are not kept, they are in the cache.
    """

    __slots__ = ("_errand", "_holders", "carrier", "data", "done", "error")

    def __init__(self, carrier: Carrier, errand: Errand | None = None) -> None:
        self.carrier = carrier
        self._errand = errand  # of what is fetched for it, where that can come to be urgent
        self.done = trio.Event()
        self.data: memoryview | None = None
        self.error: RefgenfsError | None = None
        self._holders = 0

    @property
    def held(self) -> bool:
        """Whether somebody waits for the bytes."""
        return self._holders > 0

    def hold(self) -> None:
        """Ask for the bytes to be kept when they land; from now on somebody waits for them."""
        self._holders += 1
        if self._errand is not None:
            self._errand.urgent = True

    def release(self) -> None:
        """Give up one hold; never awaits."""
        self._holders -= 1
        if not self._holders:
            self.data = None

    def land(self, data: memoryview) -> None:
        """Hand the block's bytes to all who hold the arrival."""
        if self._holders:
            self.data = data
        self.done.set()

    def fail(self, error: RefgenfsError) -> None:
        """Hand the error to all who hold the arrival."""
        self.error = error
        self.done.set()

    async def wait(self, patience: float, what: str) -> None:
        """Wait until done, for as long as the carrier makes progress; raise the arrival's error.

        `patience` is the longest time in seconds without progress; after it, DeadlineExceeded naming `what`.
        """
        while not self.done.is_set():
            before = self.carrier.progress
            with trio.move_on_after(patience):
                await self.done.wait()
            if not self.done.is_set() and self.carrier.progress == before:
                raise DeadlineExceeded(f"{what}: nothing came in for {patience:g} s")
        if self.error is not None:
            raise self.error


class FlightBoard:
    """Which blocks of which contents are on their way."""

    def __init__(self) -> None:
        self._flights: dict[ContentId, dict[int, Arrival]] = {}

    def find(self, content: ContentId, index: int) -> Arrival | None:
        """Return the block's flight, if it has one."""
        flights = self._flights.get(content)
        return flights.get(index) if flights else None

    def nbytes(self, content: ContentId, size: int) -> int:
        """Return how many bytes of a content of `size` bytes are on their way."""
        flights = self._flights.get(content)
        if not flights:
            return 0
        last = block_count(size) - 1
        return len(flights) * BLOCK - (BLOCK - block_length(size, last) if last in flights else 0)

    def under_way(self) -> Iterator[tuple[ContentId, int, Carrier]]:
        """Yield each content of which something is on its way: how many blocks, and what brings the first of them."""
        for content, flights in self._flights.items():
            yield content, len(flights), next(iter(flights.values())).carrier

    def launch(
        self, content: ContentId, indices: Iterable[int], carrier: Carrier, errand: Errand | None = None
    ) -> None:
        """Register a flight for each block; none may have one. An `errand` becomes urgent with who holds one."""
        flights = self._flights.setdefault(content, {})
        for index in indices:
            if index in flights:
                raise AssertionError(f"block {index} of {content} has a flight already")
            flights[index] = Arrival(carrier, errand)

    def land(self, content: ContentId, index: int, data: memoryview) -> None:
        """End a block's flight with its bytes; without a flight, nothing happens."""
        arrival = self._pop(content, index)
        if arrival is not None:
            arrival.land(data)

    def hand_over(self, content: ContentId, index: int, carrier: Carrier) -> None:
        """Let another carrier bring a block that is on its way; who waits for it notices nothing."""
        arrival = self.find(content, index)
        if arrival is not None:
            arrival.carrier = carrier

    def fail(self, content: ContentId, indices: Iterable[int], carrier: Carrier, error: RefgenfsError) -> None:
        """End the flights that this carrier has of these blocks with an error; newer ones are another's."""
        for index in indices:
            arrival = self.find(content, index)
            if arrival is not None and arrival.carrier is carrier:
                self._pop(content, index)
                arrival.fail(error)

    def __len__(self) -> int:
        return sum(map(len, self._flights.values()))

    def _pop(self, content: ContentId, index: int) -> Arrival | None:
        flights = self._flights.get(content)
        if flights is None:
            return None
        arrival = flights.pop(index, None)
        if not flights:
            del self._flights[content]
        return arrival
