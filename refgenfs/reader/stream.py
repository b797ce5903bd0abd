"""One archive streaming by: headers are noted, blocks stored, waiting readers served first."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import trio

from refgenfs.cache.content import Content
from refgenfs.cache.ledger import Ledger
from refgenfs.cache.shelf import Reservation
from refgenfs.cache.store import Store
from refgenfs.core.content import ArchiveRef, ContentId, Run, block_count, content_id
from refgenfs.core.errors import CacheError, OriginMissing, RefgenfsError, StaleContent
from refgenfs.core.tar import Member
from refgenfs.fetch.archive import ArchiveSink, BlockArrival, BlockOffer
from refgenfs.fetch.http import Http
from refgenfs.reader.flights import Arrival, FlightBoard
from refgenfs.reader.labels import label, labelled
from refgenfs.reader.member_table import Canonical, MemberTable, table_key

log = logging.getLogger(__name__)

# Stands for the validator of an object that has none: never equal to any.
NO_VALIDATOR = "none"
# Blocks that went by and could not be stored are kept this long for who comes a moment later: two batches.
TAIL = 16  # blocks, 2 MiB


class StreamIdle(RefgenfsError):
    """Nobody waits for this stream any more, and there is no room to store what it brings."""


class IdleStreams:
    """Streams that wait for somebody, of all archives, oldest first: each holds a connection that others need."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._streams: list[ArchiveStream] = []

    @contextmanager
    def waiting(self, stream: ArchiveStream) -> Iterator[None]:
        """Note that a stream waits while the block lasts; the oldest beyond the limit are given up."""
        self._streams.append(stream)
        for oldest in self._streams[: -self._limit]:
            oldest.give_up()
        try:
            yield
        finally:
            self._streams.remove(stream)


@dataclass(slots=True, weakref_slot=True)
class Archive:
    """One archive: what is known of its members, and the streams that run."""

    ref: ArchiveRef
    table: MemberTable
    canonical: Canonical
    dropped: Callable[[list[ContentId]], None]  # told which contents turned out to be wrong
    streams: list[ArchiveStream] = field(default_factory=list)
    news: trio.Event = field(default_factory=trio.Event)  # replaced at each change: a header went by, a stream ended
    header_waiters: int = 0
    pulls: int = 0  # how many want all of it
    generation: int = 0  # counts how often blocks were taken back: who has read some of those must not go on
    served: set[int] = field(default_factory=set)  # generations of which somebody was given bytes
    distrusted: bool = False  # the last object was wrong: the next is looked at before anybody reads of it
    error: RefgenfsError | None = None  # why the last stream ended, if not well

    def forget_error(self) -> None:
        """Let a new attempt speak for itself."""
        self.error = None

    def announce(self) -> None:
        """Wake all who wait for a header or for the end of a stream."""
        news, self.news = self.news, trio.Event()
        news.set()

    async def save(self, ledger: Ledger) -> bool:
        """Write the member table, as it is now, to the ledger; False if that refuses: a stream more later on."""
        rows = self.table.to_json()  # here, not in the thread: it may change meanwhile
        try:
            await trio.to_thread.run_sync(ledger.set, table_key(self.ref), rows)
        except CacheError:
            return False
        return True

    def wake_streams(self) -> None:
        """Let paused streams look again whether somebody waits."""
        for stream in self.streams:
            stream.wake()

    def content_id(self, name: str) -> ContentId:
        """Return the identity of a member's bytes."""
        return content_id(self.ref.source, self.ref.asset_digest, name)

    def just_passed(self, name: str, index: int) -> Arrival | None:
        """Return a block that went by a moment ago and could not be stored."""
        return next((stream.tail[name, index] for stream in self.streams if (name, index) in stream.tail), None)

    def stream_to(self, name: str, index: int) -> ArchiveStream | None:
        """Return a running stream that has not come to this block yet."""
        return next((stream for stream in self.streams if stream.will_reach(name, index)), None)


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

    def __init__(self, archive: Archive, store: Store, board: FlightBoard, linger: float, idle: IdleStreams) -> None:
        self.archive = archive
        self.tail: OrderedDict[tuple[str, int], Arrival] = OrderedDict()
        self._idle = idle
        self._given_up = False
        self.progress = 0
        self.digest = ""  # MD5 of the archive, once it has gone by
        self.validator = ""  # of the object that streams, once the origin has answered
        self.rehearsal = False
        self.eager = False  # somebody has read: go on to the end, so that the next file is there
        self.members: dict[str, Member] = {}  # all whose headers went by
        self._cleared = ""  # the validator of the object that passed its rehearsal
        self._contents: dict[str, Content] = {}
        self._stored: dict[str, list[int]] = {}  # blocks that this stream made resident
        self._store = store
        self._board = board
        self._linger = linger
        self._wanted: set[tuple[str, int]] = set()
        self._passed: set[str] = set()
        self._current = ""
        self._next_index = 0
        self._ended = False
        self._unrecorded = False  # the ledger does not know which object this is
        self._wake = trio.Event()
        self._born = store.stamp
        self._reservations: dict[tuple[str, int], Reservation] = {}

    # -- what readers ask ---------------------------------------------------------------------------------

    def will_reach(self, name: str, index: int) -> bool:
        """Say whether this block is still to come."""
        if self._ended or self._given_up or name in self._passed:
            return False
        return self.rehearsal or name != self._current or index >= self._next_index

    def want(self, content: ContentId, name: str, index: int) -> None:
        """Register a flight of this block on this stream."""
        self._board.launch(content, (index,), self)
        self._wanted.add((name, index))
        self.eager = True
        self.wake()

    def wake(self) -> None:
        """Look again whether somebody waits."""
        self._wake.set()

    def give_up(self) -> None:
        """End if nobody waits: the connection is needed elsewhere."""
        self._given_up = not self._wanted and not self._has_company()
        self.wake()

    # -- the flight ---------------------------------------------------------------------------------------

    async def fly(self, http: Http) -> None:
        """Stream the archive once. `end` must follow. Raises what goes wrong."""
        token = trio.lowlevel.current_trio_token()
        sink = ArchiveSink(self, token)
        try:
            ref = self.archive.ref
            await http.stream(ref.urls, _Feed(self, sink, token), account=ref.source)
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
        self.tail.clear()  # its arrivals know the stream: a cycle with megabytes in it
        self._contents.clear()

    # -- what the sink tells ------------------------------------------------------------------------------

    async def begun(self, validator: str) -> None:
        """Decide how far the object that the origin answered with is trusted; its validator says which it is.

        Nothing is confirmed yet: what comes is provisional, and what came from another object goes first.
        All is confirmed, and this is the object that was: what comes is as good. Confirmed, but from another
        object (archived again, or rebuilt and the catalog old): a rehearsal. Never two objects at a time.
        """
        archive, table = self.archive, self.archive.table
        self.validator = validator or NO_VALIDATOR
        others = {stream.validator for stream in archive.streams if stream is not self} - {""}
        if others - {self.validator}:
            raise StaleContent(f"{archive.ref.key}: the archive was replaced while it is being read")
        if self._cleared and self.validator != self._cleared:
            raise StaleContent(f"{archive.ref.key}: the archive was replaced while it is being checked")
        if archive.distrusted and not self._cleared and not table.complete:
            self.rehearsal = True
            return
        if table.complete:
            known = self.validator in (table.confirmed, self._cleared)
            self.rehearsal = not known or (self.validator == NO_VALIDATOR and not self._cleared)
            return
        same = table.validator == self.validator and bool(validator or others)
        dropped = True
        if table.validator and not same:
            log.warning("%s: the origin has another archive now; dropping what was not confirmed", archive.ref.key)
            dropped = await self._drop_all()
        archive.table.validator = self.validator
        # What is stored must be known to be of this object, in the next life too; else nothing is.
        self._unrecorded = not (dropped and await archive.save(self._store.ledger))

    async def take_back(self) -> None:
        """Drop what this stream has brought: it turned out to be wrong. Raises no CacheError."""
        archive = self.archive
        self.tail.clear()
        if not archive.table.complete:
            await self._drop_all()
            return
        for name, indices in self._stored.items():
            for index in indices:
                self._contents[name].drop(Run(index, index + 1))
        if self._stored:
            await self._store.flush()
            archive.generation += 1
            archive.dropped([archive.content_id(name) for name in self._stored])

    async def _drop_all(self) -> bool:
        """Drop every block of the archive's members, pinned or not, and the member table.

        False when the disk has not taken that: then the ledger goes on to say what the blocks are of.
        """
        archive = self.archive
        # By their labels: a daemon that ended in the middle of a stream did not keep that stream's headers.
        sizes = await labelled(self._store, lambda name, cid: archive.content_id(name) == cid)
        sizes |= {archive.content_id(name): member.size for name, member in archive.table.members.items()}
        for cid, size in sizes.items():
            try:
                content = await self._store.content(cid, size)
            except CacheError as exc:
                log.warning("%s: %s can't be opened, so it can't be served either: %s", archive.ref.key, cid, exc)
            else:
                content.drop(Run(0, block_count(size)))
        archive.generation += 1
        archive.dropped(list(sizes))
        # A stream that runs on goes on storing: what it brings stays tied to its object.
        running = {stream.validator for stream in archive.streams if stream is not self} - {""}
        archive.table = MemberTable(validator=next(iter(running), ""))
        # The blocks first: after a power cut they must not be there under the name of what comes now.
        return await self._store.flush() and await archive.save(self._store.ledger)  # or its sizes would be believed

    def member(self, member: Member) -> None:
        """A header went by; the blocks that follow are this member's."""
        canonical = self.archive.canonical
        name = canonical(member.name)
        target = canonical(member.target) if member.kind == "hardlink" and member.target else member.target
        self.members[name] = replace(member, name=name, target=target)
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
        for arrival in arrivals:
            self.progress += len(arrival.data)
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
            self._wanted.discard(place)
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
        self.digest = digest

    def _leave_current(self) -> None:
        if self._current:
            self._passed.add(self._current)
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

    async def _somebody_comes(self) -> bool:
        self._wake = trio.Event()
        with self._idle.waiting(self), trio.move_on_after(self._linger):
            await self._wake.wait()
            return not self._given_up
        return False

    async def _content(self, name: str) -> Content | None:
        content = self._contents.get(name)
        if content is None and not self._unrecorded:
            try:
                content = await self._store.content(self.archive.content_id(name), self.members[name].size)
            except CacheError:
                return None  # counted by the store; the readers are served all the same
            await label(self._store, content.id, self.archive.ref.key, name)
            self._contents[name] = content
        return content
