"""One archive streaming by: headers are noted, blocks stored, waiting readers served first."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import trio

from refgenfs.cache.content import Content
from refgenfs.cache.shelf import Reservation
from refgenfs.cache.store import Store
from refgenfs.core.content import BLOCK, ContentId, Run
from refgenfs.core.errors import CacheError, OriginMissing, RefgenfsError, StaleContent
from refgenfs.core.tar import Member
from refgenfs.fetch.archive import BATCH, ArchiveSink, BlockArrival, BlockOffer
from refgenfs.fetch.http import Http
from refgenfs.reader.archive import NO_VALIDATOR
from refgenfs.reader.archive import Archive as Archive
from refgenfs.reader.budget import Budget
from refgenfs.reader.flights import Arrival, FlightBoard
from refgenfs.reader.labels import label
from refgenfs.reader.lending import Lending
from refgenfs.reader.member_table import renamed
from refgenfs.reader.refusals import Refusals
from refgenfs.reader.spill import Spill
from refgenfs.reader.trust import drop_all

log = logging.getLogger(__name__)

# A stream that waits for somebody keeps its turn so long when others wait for theirs: between two reads it goes on.
COURTESY = 1.0  # seconds
# Blocks that went by and could not be stored are kept this long for who comes a moment later: two batches.
TAIL = 2 * BATCH  # blocks, 2 MiB


class StreamIdle(RefgenfsError):
    """Nobody waits for this stream any more, and there is no room to store what it brings."""


class Idle(Protocol):
    """A stream that may wait for somebody."""

    def give_up(self) -> None:
        """End if nobody waits."""
        ...


class IdleStreams:
    """Streams that wait for somebody, oldest first: each holds a connection that others need."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._streams: dict[Idle, float] = {}  # and since when

    @contextmanager
    def waiting(self, stream: Idle) -> Iterator[None]:
        """Note that a stream waits while the block lasts; the oldest beyond the limit are given up."""
        self._streams[stream] = trio.current_time()
        for oldest in list(self._streams)[: -self._limit]:
            oldest.give_up()
        try:
            yield
        finally:
            del self._streams[stream]

    def give_way(self) -> None:
        """Have the one that has waited longest give up, for one that somebody waits for; called now and then."""
        oldest = next(iter(self._streams.items()), None)
        if oldest is not None and trio.current_time() - oldest[1] >= COURTESY:
            oldest[0].give_up()


class _Feed:
    """The stream's sink as `Http` sees it: the archive's sink, and a word to the trio thread at the beginning."""

    def __init__(self, stream: ArchiveStream, sink: ArchiveSink, token: trio.lowlevel.TrioToken) -> None:
        self._stream = stream
        self._token = token
        self.feed = sink.feed

    async def begin(self, validator: str) -> None:
        """Wait until the stream has made up its mind about what came from another version."""
        call = partial(trio.from_thread.run, self._stream.begun, validator, trio_token=self._token)
        await asyncio.get_running_loop().run_in_executor(None, call)


class ArchiveStream:
    """One pass over an archive, from its first byte; it is the carrier of the flights that wait for it.

    What it brings is trusted as far as the object is known (see `begun`). Where another version may be hiding
    behind a name whose old version is confirmed, the first pass is `rehearsal`: its MD5 is looked at, and no
    byte of it is stored or served before the second.

    All methods but `fly` are called on the trio thread by the sink (see `fetch.archive.ArchiveReceiver`) or by
    readers; those that wait say so by `async`.
    """

    def __init__(
        self,
        archive: Archive,
        store: Store,
        board: FlightBoard,
        linger: float,
        idle: IdleStreams,
        budget: Budget,
        spill: Spill | None = None,
    ) -> None:
        self.archive = archive
        self._budget = budget
        self._lending = Lending(budget, self._is_awaited)
        self.spill = spill  # where the archive's index is made meanwhile
        self.tail: OrderedDict[tuple[str, int], Arrival] = OrderedDict()
        self._idle = idle
        self._given_up = False
        self.progress = 0
        self.digest = ""  # MD5 of the archive, once it has gone by
        self.validator = ""  # of the object that streams, once the origin has answered
        self.rehearsal = False
        self.eager = False  # somebody has read: go on to the end, so that the next file is there
        self.members: dict[str, Member] = {}  # all whose headers went by
        self.all_members: list[Member] = []  # as the archive has them, once it has gone by
        self._cleared = ""  # the validator of the object that passed its rehearsal
        self._contents: dict[str, Content] = {}
        self._stored: dict[str, list[int]] = {}  # blocks that this stream made resident
        self._store = store
        self._board = board
        self._linger = linger
        self._wanted: set[tuple[str, int]] = set()
        self._awaited_until = 0.0  # when somebody last got a block that was waited for
        self._passed: set[str] = set()
        self._current = ""
        self._next_index = 0
        self._reached = 0  # where in the tar the last member ended
        self._ended = False
        self._unrecorded = False  # the ledger does not know which object this is
        self._wake = trio.Event()
        self._refusals = Refusals(log)
        self._born = store.stamp
        self._reservations: dict[tuple[str, int], Reservation] = {}

    # -- what readers ask ---------------------------------------------------------------------------------

    def will_reach(self, name: str, index: int) -> bool:
        """Say whether this block is still to come."""
        if self._ended or self._given_up or name in self._passed:
            return False
        return self.rehearsal or name != self._current or index >= self._next_index

    @property
    def position(self) -> int:
        """How far in the unpacked tar it has come, in bytes."""
        member = self.members.get(self._current)
        return self._reached if member is None else member.offset + self._next_index * BLOCK

    def want(self, content: ContentId, name: str, index: int) -> None:
        """Register a flight of this block on this stream."""
        self._board.launch(content, (index,), self)
        self.await_block(name, index)

    def await_block(self, name: str, index: int) -> None:
        """Note that somebody waits for a block whose flight is on this stream."""
        self._wanted.add((name, index))
        self.eager = True
        self.wake()

    def wake(self) -> None:
        """Look again whether somebody waits."""
        self._wake.set()

    def beat(self) -> None:
        """Give a sign of life: who waits for a turn of this stream need not give up."""
        self.progress += 1

    def give_up(self) -> None:
        """End if nobody waits: the connection is needed elsewhere."""
        self._given_up = not self._wanted and not self._has_company()
        self.wake()

    # -- the flight ---------------------------------------------------------------------------------------

    async def fly(self, http: Http) -> None:
        """Stream the archive once. `end` must follow. Raises what goes wrong."""
        token = trio.lowlevel.current_trio_token()
        builder = None if self.spill is None else self.spill.begin()
        sink = ArchiveSink(self, token, index=builder)
        try:
            ref = self.archive.ref
            await http.stream(ref.urls, _Feed(self, sink, token), account=ref.source, lender=self._lending)
            await sink.finish()
        finally:
            with trio.CancelScope(shield=True):
                await sink.close()

    def clear(self) -> None:
        """Let the object whose rehearsal went well stream again, for good."""
        self._cleared, self.rehearsal = self.validator, False
        self.members.clear()

    def end(self, error: RefgenfsError | None) -> None:
        """End every flight on this stream, and give back what is reserved. Never awaits."""
        self._ended = True
        gone = error or OriginMissing(f"{self.archive.ref.key}: the archive has no such file")
        for name, index in self._wanted:
            self._board.fail(self.archive.content_id(name), (index,), self, gone)
        self._wanted.clear()
        for reservation in self._reservations.values():
            reservation.release()
        self._reservations.clear()
        if self.spill is not None:
            self.spill.close()
        self.tail.clear()  # its arrivals know the stream: a cycle with megabytes in it
        self._contents.clear()

    # -- what the sink tells ------------------------------------------------------------------------------

    async def begun(self, validator: str) -> None:
        """Decide how far the object that the origin answered with is trusted; its validator says which it is.

        Nothing is confirmed yet: what comes is provisional, and what came from another object goes first.
        All is confirmed, and this is the object that was: what comes is as good. Confirmed, but from another
        object (archived again, or rebuilt and the catalog old): a rehearsal. Never two objects at a time.
        """
        async with self.archive.judging:  # two streams that begin must not decide at the same time
            await self._begun(validator)

    async def _begun(self, validator: str) -> None:
        archive, table = self.archive, self.archive.table
        self.validator = validator or NO_VALIDATOR
        others = {stream.validator for stream in archive.streams if stream is not self} - {""}
        if others - {self.validator}:
            raise StaleContent(f"{archive.ref.key}: the archive was replaced while it is being read")
        if self._cleared and self.validator != self._cleared:
            raise StaleContent(f"{archive.ref.key}: the archive was replaced while it is being checked")
        if archive.distrusted and not self._cleared:
            self.rehearsal = True
            return
        if table.judged:
            known = self.validator in (table.confirmed, self._cleared)
            self.rehearsal = not known or (self.validator == NO_VALIDATOR and not self._cleared)
            return
        same = table.validator == self.validator and bool(validator or others)
        dropped = True
        if table.validator and not same:
            log.warning("%s: the origin has another archive now; dropping what was not confirmed", archive.ref.key)
            dropped = await drop_all(archive, self._store, besides=self)
        archive.table.validator = self.validator
        # What is stored must be known to be of this object, in the next life too; else nothing is.
        self._unrecorded = not (dropped and await archive.save(self._store.ledger))

    async def take_back(self) -> None:
        """Drop what this stream has brought: it turned out to be wrong. Raises no CacheError."""
        archive = self.archive
        self.tail.clear()
        if not archive.table.judged:
            await drop_all(archive, self._store, besides=self)
            return
        for name, indices in self._stored.items():
            for index in indices:
                self._contents[name].drop(Run(index, index + 1))
        if self._stored:
            await self._store.flush()
            archive.generation += 1
            archive.dropped([archive.content_id(name) for name in self._stored])

    def member(self, member: Member) -> None:
        """A header went by; the blocks that follow are this member's."""
        named = renamed(member, self.archive.canonical)
        name = named.name
        self.members[name] = named
        self.progress += 512
        if self.rehearsal:
            return
        self._leave_current()
        self._current, self._next_index = name, 0
        self.archive.table.note(self.members[name])
        self.archive.announce()

    async def admit(self, offers: list[BlockOffer]) -> list[Content | None]:
        """Say for each block where to store it; None: nowhere. Waits while nobody wants the stream to go on."""
        if self.rehearsal:
            return [None] * len(offers)
        return [await self._admit(self.archive.canonical(offer.name), offer) for offer in offers]

    def commit(self, arrivals: list[BlockArrival]) -> None:
        """Blocks are stored, or could not be: make them resident and wake who waits for them."""
        if self.spill is not None:
            self.spill.look_after(self._born)
        for arrival in arrivals:
            self.progress += len(arrival.data)
            self._budget.moved(len(arrival.data))
            if self.rehearsal:
                continue
            name = self.archive.canonical(arrival.name)
            place = (name, arrival.index)
            reservation = self._reservations.pop(place, None)
            if reservation is not None:
                content = self._contents[name]
                if arrival.crc is not None and content.commit(arrival.index, arrival.crc, reservation):
                    self._stored.setdefault(name, []).append(arrival.index)
                reservation.release()
            if reservation is None or arrival.crc is None:
                self._keep_in_tail(place, arrival.data)
            self._next_index = arrival.index + 1
            if place in self._wanted:
                self._wanted.remove(place)
                self._awaited_until = trio.current_time()
            self._board.land(self.archive.content_id(name), arrival.index, memoryview(arrival.data))

    def _keep_in_tail(self, place: tuple[str, int], data: memoryview) -> None:
        arrival = self.tail[place] = Arrival(self)
        arrival.hold()  # by the tail itself
        arrival.land(memoryview(bytes(data)))  # a copy: the view would keep a whole inflated piece
        if len(self.tail) > TAIL:
            self.tail.popitem(last=False)[1].release()

    def finished(self, members: list[Member], digest: str) -> None:
        """The whole archive went by and was well-formed."""
        self._leave_current()
        self.all_members, self.digest = members, digest

    def _leave_current(self) -> None:
        if self._current:
            self._passed.add(self._current)
            self._reached = self.position
        missed = [place for place in self._wanted if place[0] == self._current]
        for name, index in missed:  # asked for beyond the member's end: the sizes disagree
            self._wanted.discard((name, index))
            gone = OriginMissing(f"{self.archive.ref.key}: {name} ends before block {index}")
            self._board.fail(self.archive.content_id(name), (index,), self, gone)
        self._current = ""

    # -- room ---------------------------------------------------------------------------------------------

    async def _admit(self, name: str, offer: BlockOffer) -> Content | None:
        content = await self._content(name)
        if content is None:
            return None
        block = Run(offer.index, offer.index + 1)
        while True:
            # no await between these checks and the reservation
            if content.missing(block) < 0:
                return None
            wanted = (name, offer.index) in self._wanted
            if wanted or self.eager or self._has_company():
                # What somebody waits for may push out anything but pins; what merely passes by only what is
                # older than this stream, or a small cache would forget each file for the sake of the next.
                reservation = content.reserve(block, older_than=None if wanted else self._born)
                if reservation is not None:
                    self._reservations[name, offer.index] = reservation
                    return content
            if wanted or self._wanted or self._has_company():
                return None  # somebody waits for what comes later: go on, and let this one go
            if not await self._somebody_comes():
                self._ended = True  # who comes from here on starts another stream
                raise StreamIdle(f"{self.archive.ref.key}: nobody waits for the rest of the archive")

    def _has_company(self) -> bool:
        return bool(self.archive.pulls or self.archive.header_waiters)

    def _is_awaited(self) -> bool:
        """Say whether somebody waits for it, or did a moment ago."""
        return bool(self._wanted) or self._has_company() or trio.current_time() - self._awaited_until < COURTESY

    async def _somebody_comes(self) -> bool:
        self._wake = trio.Event()
        with self._lending.resting(), self._idle.waiting(self), trio.move_on_after(self._linger):
            await self._wake.wait()
            return not self._given_up
        return False

    async def _content(self, name: str) -> Content | None:
        content = self._contents.get(name)
        if content is None and not self._unrecorded:
            try:
                content = await self._store.content(self.archive.content_id(name), self.members[name].size)
            except CacheError as exc:  # the readers are served all the same
                self._refusals.warning("%s %s is streamed past the cache: %s", self.archive.ref.key, name, exc)
                return None
            await label(self._store, content.id, self.archive.ref.key, name)
            self._contents[name] = content
        return content
