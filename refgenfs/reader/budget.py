"""One budget of memory for all that is on its way: runs of byte ranges, runs of spans, archives that stream.

Lives on the trio thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from refgenfs.core.errands import Around, Line, User, current
from refgenfs.core.metrics import Durations

BEAT = 1.0  # seconds between the signs of life of who waits for memory
# What an archive takes while it streams: bytes that wait to be inflated, two pieces that were, a batch that is cut,
# and two batches that could not be stored.
STREAM_MEMORY = 7 * 1024 * 1024
KEPT_FOR_OTHERS = 8  # one part in so many is for users who have none, while several are around
KEPT_BACK = 4  # one part in so many is for who comes next and waits


class Claim:
    """Memory that one flight has, or waits for."""

    __slots__ = ("_budget", "_turn", "nbytes", "user")

    def __init__(self, budget: Budget, nbytes: int, turn: trio.Event | None, user: User) -> None:
        self.nbytes = nbytes  # 0: it was given back
        self.user = user
        self._budget = budget
        self._turn = turn  # set when its turn has come; None: it came at once

    @property
    def granted(self) -> bool:
        """Whether the memory is there."""
        return self._turn is None or self._turn.is_set()

    def grant(self) -> None:
        """Let it have the memory; for `Budget`."""
        if self._turn is not None:
            self._turn.set()

    async def wait(self, beat: Callable[[], None] = lambda: None) -> None:
        """Wait until the memory is there. `beat` is called every little while, if anything has come in meanwhile."""
        if self._turn is None or self._turn.is_set():
            return
        began = trio.current_time()
        while not self._turn.is_set():
            before = self._budget.landed
            with trio.move_on_after(BEAT):
                await self._turn.wait()
            if self._budget.landed != before:
                beat()
        self._budget.queued.observe(trio.current_time() - began)

    def release(self) -> None:
        """Give the memory back, or leave the queue. Never awaits; idempotent."""
        nbytes, self.nbytes = self.nbytes, 0
        if nbytes:
            self._budget.settle(self, nbytes)


class Budget:
    """Never more than `size` bytes are held. Who is waited for comes first, of the user who holds least (`Line`).

    *Flights* are short: they end when their bytes have come, or when the origin has not answered for a while. What
    nobody waits for yet (`take`) gets memory only while nobody queues for it, and leaves a quarter, so there is some
    for the next who comes. *Streams* are long, so together they never have all: `streams` at a time, with
    `STREAM_MEMORY` each, or in a small budget one with half of it. A flight that is larger than what all streams
    leave (`largest`) is counted as that much, and what nobody waits for as no more than three quarters.

    Nobody waits for ever, since nobody who holds memory waits for memory. A flight of a content that is made of
    others claims none (`ranges.flight_memory`): it waits for theirs. A run of spans pays for the parts of the index
    that it reads, and those claim none. A batch of spans waits for another batch before it claims anything; an
    index is parsed before its spans are planned. So whoever holds some waits for an origin, a disk, or a lock whose
    holder does the same; all of these end. And whoever is first in the queue gets what it wants when all flights that
    are under way have ended, whatever streams; who has got something is no longer first.

    An eighth is for users who hold nothing, while several are around: who comes for one block waits for none of
    another's large flights.
    """

    def __init__(self, size: int, streams: int = 4) -> None:
        self._share(size, streams)
        self.landed = 0  # changes whenever bytes come in on any flight: who waits for memory is patient meanwhile
        self.queued = Durations()  # how long who had to wait for memory waited
        self.freed = trio.lowlevel.ParkingLot()  # of those who wait until there is some to spare
        self._left = size
        self._line: Line[Claim] = Line()
        self._around = Around()
        self._recalls: dict[Claim, Callable[[], None]] = {}
        self._streaming: set[Claim] = set()
        self._beyond = 0  # bytes of streams from before a `resize`, beyond what streams may have by now

    def _share(self, size: int, streams: int) -> None:
        self.size = size
        self.streams = min(streams, max(1, size * 5 // 8 // STREAM_MEMORY))  # at a time
        self._stream = min(STREAM_MEMORY, size // 2)
        self.largest = size - self.streams * self._stream
        self._largest_spare = min(self.largest, size - size // KEPT_BACK)

    def resize(self, size: int, streams: int) -> None:
        """Be another size. Who holds memory keeps it: of a smaller budget more than `size` may be held for a while.

        Streams, which are long, do not make flights wait for it: what those of before hold beyond their new share is
        not counted.
        """
        before = self.size
        self._share(size, streams)
        for claim in self._line:
            claim.nbytes = min(claim.nbytes, self._stream if claim in self._streaming else self.largest)
        self._left += size - before
        self._count_streams()
        self._grant()

    def _count_streams(self) -> None:
        """Don't count against others what streams hold beyond their share; there is some only after a `resize`."""
        streaming = sum(claim.nbytes for claim in self._streaming if claim.granted)
        beyond = max(0, streaming - self.streams * self._stream)
        self._left += beyond - self._beyond
        self._beyond = beyond

    @property
    def held(self) -> int:
        """Bytes that are held."""
        return self.size + self._beyond - self._left

    @property
    def waiting(self) -> int:
        """How many wait for memory."""
        return len(self._line)

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for memory."""
        return bool(len(self._line))

    @property
    def spare(self) -> int:
        """Bytes that there are for what nobody waits for."""
        return 0 if len(self._line) else max(0, self._left - self.size // KEPT_BACK)

    def claim(self, nbytes: int) -> Claim:
        """Ask for memory for a flight that somebody waits for. It must be released, in any case."""
        return self._claim(min(nbytes, self.largest))

    def claim_stream(self) -> Claim:
        """Ask for the memory of a stream; of those there are never more than `streams`, which the caller sees to."""
        claim = self._claim(self._stream)
        self._streaming.add(claim)
        self._count_streams()
        return claim

    def take(self, nbytes: int, recall: Callable[[], None] | None = None) -> Claim | None:
        """Have memory for what nobody waits for; None when it may be wanted for something better.

        `recall` is called whenever somebody begins to wait for memory, until this is given back; it never awaits.
        """
        if not self.has_spare(nbytes):
            return None
        nbytes = min(nbytes, self._largest_spare)
        user = current().user
        self._left -= nbytes
        self._line.hold(user, nbytes)
        claim = Claim(self, nbytes, None, user)
        if recall is not None:
            self._recalls[claim] = recall
        return claim

    def has_spare(self, nbytes: int) -> bool:
        """Say whether `take` would have memory for that much; there comes to be when nobody holds any."""
        return min(nbytes, self._largest_spare) <= self.spare

    def moved(self, nbytes: int) -> None:
        """Note that bytes came in. For any thread."""
        self.landed += nbytes

    def _claim(self, nbytes: int) -> Claim:
        errand = current()
        self._around.note(errand.user, time.monotonic())
        if not len(self._line) and self._may_have(errand.user, nbytes):
            self._left -= nbytes
            self._line.hold(errand.user, nbytes)
            return Claim(self, nbytes, None, errand.user)
        claim = Claim(self, nbytes, trio.Event(), errand.user)
        self._line.join(claim, errand)
        for recall in list(self._recalls.values()):
            recall()
        self._grant()  # another user may hold less than who was first
        return claim

    def _may_have(self, user: User, nbytes: int) -> bool:
        """Say whether there is so much for a user, and left for others who have nothing where this one has some."""
        if nbytes > self._left:
            return False
        if not self._line.held(user) or self._left - nbytes >= self.size // KEPT_FOR_OTHERS:
            return True
        return not self._around.others(user, time.monotonic())

    def settle(self, claim: Claim, nbytes: int) -> None:
        """Take back what a claim had, or have it leave the queue; for `Claim.release`."""
        self._recalls.pop(claim, None)
        if claim.granted:
            self._left += nbytes
            self._line.drop(claim.user, nbytes)
        else:
            self._line.leave(claim, claim.user)
        if claim in self._streaming:
            self._streaming.remove(claim)
            self._count_streams()
        self._grant()

    def _grant(self) -> None:
        while (found := self._line.first()) is not None and self._may_have(found[1], found[0].nbytes):
            first, user = found
            self._line.leave(first, user)
            self._left -= first.nbytes
            self._line.hold(user, first.nbytes)
            first.grant()
            if first in self._streaming:
                self._count_streams()
        self.freed.unpark_all()
