"""Archives: who wants what of which, and whether what came is right.

Without a seek index a `.tgz` can't be entered in the middle. So while somebody waits for a member, every member
that streams past is stored, and a reader gets each block as soon as it is inflated. A block that a stream has not
come to yet is joined, never fetched again: one archive, one stream, unless what is wanted has gone by already. With
an index, which is made as the archive goes by or offered beside it, a block comes by its spans (decision 14).

Trust: an object is confirmed when the whole archive has gone by and its MD5 is the catalog's. Until then its
blocks are *provisional*: served, kept, and tied to the validator (ETag) of the object that they came from. A
stream that meets another validator, and an archive that turns out to be wrong, drop them, and who has read some
of them gets an error, not the rest from elsewhere. Once an object is confirmed, only a confirmed object may add
to what came from it: another one is streamed twice, first to be checked, then to be stored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import trio

from refgenfs.cache.store import Store
from refgenfs.core.content import BLOCK, ArchiveRef, ContentId, Run, block_count
from refgenfs.core.errors import (
    CacheError,
    DeadlineExceeded,
    IntegrityError,
    OriginMissing,
    RefgenfsError,
)
from refgenfs.core.seekindex import spacing_for
from refgenfs.core.spanplan import packed_size, plan_runs
from refgenfs.core.tar import Member
from refgenfs.fetch.http import Http
from refgenfs.reader.archive import Archive
from refgenfs.reader.flights import Arrival, FlightBoard
from refgenfs.reader.indexes import Indexes
from refgenfs.reader.indexfiles import IndexLost
from refgenfs.reader.judge import Judge, Recheck
from refgenfs.reader.leftovers import KEPT
from refgenfs.reader.openarchives import Naming, OpenArchives
from refgenfs.reader.rangeruns import EVICTED, missing_blocks, not_kept
from refgenfs.reader.ranges import RangeFlights
from refgenfs.reader.spanbatch import SpanBatch, Wanted
from refgenfs.reader.spans import SpanReader
from refgenfs.reader.spill import Spill
from refgenfs.reader.stream import ArchiveStream, IdleStreams
from refgenfs.reader.uncached import AnyContent

log = logging.getLogger(__name__)

PULL = 32 * 1024 * 1024 // BLOCK  # blocks asked for at a time by a pull; as many fly as there is memory for
PULLS = 2  # how often that is done anew for what was evicted meanwhile
# A stream that has so much of the tar before it until it comes to a block is not waited for where spans can be had:
# about what one or two round trips take at 1 Gbit/s.
FAR = 16 << 20  # bytes


@dataclass(frozen=True, slots=True)
class ArchiveSettings:
    """How long to wait, in seconds.

    patience: without a byte coming in, before who waits gets an error.
    linger: a stream that nobody waits for is held this long before it is given up;
    idle: so many of these at a time, since each holds one of the host's connections.
    kept: bytes of blocks that came by spans, and are kept in memory for a while: see `leftovers.KEPT`.
    spacing: unpacked bytes of a span in the indexes that are made here; 0: as fits the archive.
    indexes: whether any are made.
    """

    patience: float = 60.0
    linger: float = 30.0
    idle: int = 2
    kept: int = KEPT
    spacing: int = 0
    indexes: bool = True


class Archives:
    """All archives in use. Lives on the trio thread; `nursery` owns the streams."""

    def __init__(
        self,
        store: Store,
        http: Http,
        board: FlightBoard,
        flights: RangeFlights,
        recheck: Recheck,
        on_damage: Callable[[list[ContentId]], None],
        settings: ArchiveSettings,
        nursery: trio.Nursery,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._http = http
        self._board = board
        self._settings = settings
        self._nursery = nursery
        self._idle = IdleStreams(settings.idle)
        self._budget = flights.budget
        self._indexes = Indexes(store, http, board, flights, nursery, patience=settings.patience, wall=wall)
        self._opened = OpenArchives(store, self._indexes, on_damage)
        self._judge = Judge(store, http, self._indexes, recheck, flights.budget, self._idle)
        self._spans = SpanReader(
            store, http, board, self._indexes, self._stream_instead, flights, settings.kept, nursery
        )

    def renew(self, patience: float, kept: int) -> None:
        """Take another patience and another `kept` (see `ArchiveSettings`), and what the budget now has."""
        self._settings = replace(self._settings, patience=patience, kept=kept)
        self._indexes.be_patient(patience)
        self._judge.renew()
        self._spans.renew(kept)

    async def open(self, ref: ArchiveRef, naming: Naming) -> Archive:
        """Return the archive, with its member table from the ledger where there is one. No network."""
        return await self._opened.open(ref, naming)

    def known(self, ref: ArchiveRef) -> Archive | None:
        """Return the archive if it is in memory."""
        return self._opened.known(ref)

    def streaming(self) -> list[Archive]:
        """Return the archives of which a stream runs."""
        return self._opened.streaming()

    # -- what readers want --------------------------------------------------------------------------------

    async def member(self, archive: Archive, name: str) -> Member:
        """Return a member's facts, waiting for its header if need be.

        Raises OriginMissing when the archive has no such member, DeadlineExceeded when nothing comes in for
        the settings' patience, and whatever ends the stream.
        """
        with _header_waiter(archive):
            while True:
                member = archive.table.members.get(name)
                if member is not None:
                    return member
                if archive.table.complete:
                    raise OriginMissing(f"{archive.ref.key}: the archive has no file {name!r}")
                await self._learn(archive)

    async def members(self, archive: Archive) -> dict[str, Member]:
        """Return the whole member table; the whole archive must go by once, for good."""
        with _header_waiter(archive):
            while not archive.table.complete:
                await self._learn(archive)
        return archive.table.members

    async def _learn(self, archive: Archive) -> None:
        """Learn of more members: all at once from an index, if there is one, or else the next header."""
        if not archive.streams:
            await self._indexes.ask(archive)
            if archive.index is not None and not archive.table.complete:
                try:
                    await self._indexes.tell(archive)
                except (IntegrityError, CacheError, IndexLost) as exc:
                    await self._indexes.forget(archive, exc)
            if archive.table.complete:
                return
        await self._news(archive)

    async def _news(self, archive: Archive) -> None:
        """Wait for the next header; see to it that a stream runs."""
        news = archive.news  # before the stream can end
        archive.forget_error()
        if not archive.streams:
            self._start(archive)
        before = archive.progress
        while not news.is_set():
            with trio.move_on_after(self._settings.patience):
                await news.wait()
            if not news.is_set() and archive.progress == before:
                raise DeadlineExceeded(f"{archive.ref.key}: nothing came in for {self._settings.patience:g} s")
            before = archive.progress
        if archive.error is not None and not archive.streams:
            raise archive.error

    def join(self, archive: Archive, content: ContentId, name: str, index: int) -> Arrival:
        """Return the flight of a block that is not resident, launched if there is none. Never awaits.

        A stream that will soon come to the block is joined. Else it comes by spans where that is possible, or may be
        since the origin was not asked for an index yet; else by a stream, from the archive's beginning.
        """
        arrival = self._board.find(content, index) or archive.just_passed(name, index)
        if arrival is None and archive.index is not None:
            arrival = self._spans.just_passed(content, index)
        if arrival is None:
            stream = archive.stream_to(name, index)
            if self._may_have_spans(archive) and (stream is None or self._is_far(archive, stream, name, index)):
                self._spans.want(archive, content, name, index)
            else:
                (stream or self._start(archive)).want(content, name, index)
            arrival = self._board.find(content, index)
        if arrival is None:
            raise AssertionError("what was wanted has a flight, on a stream or a batch of spans")
        return arrival

    async def cost(self, archive: Archive, name: str, runs: Sequence[Run]) -> tuple[int, int] | None:
        """Return how many requests, and how many bytes of the archive, spans would cost for runs of a member.

        None where it would not come by spans, or where the index is not at hand. Fetches nothing.
        """
        known = archive.index
        if known is None or not self._has_spans(archive) or self._store.resident_bytes(known.content) < known.size:
            return None
        try:
            found = await self._indexes.map(archive)
        except RefgenfsError:
            return None
        if found.size(name) <= 0:
            return None
        spans: set[int] = set()
        for run in runs:
            first, last = found.place(name, run.first), found.place(name, run.stop - 1)
            spans.update(found.index.spans_for(first.start, last.stop))
        planned = plan_runs(found.index, spans)
        return len(planned), sum(packed_size(found.index, one) for one in planned)

    def prefetch(self, archive: Archive, name: str, indices: Sequence[int]) -> None:
        """Have blocks brought that a reader in order will want, where spans bring them; a stream does so anyway."""
        if indices and self._has_spans(archive):
            self._spans.prefetch(archive, name, indices)

    def can_bring(self, ref: ArchiveRef) -> bool:
        """Say whether `bring` has a way to fetch parts of an archive; a stream brings all of it anyway."""
        archive = self.known(ref)
        return archive is not None and self._has_spans(archive)

    async def bring(self, archive: Archive, content: AnyContent, name: str, run: Run, older_than: int) -> bool:
        """Have what is missing of a run fetched by spans, and wait for it; nobody need want it yet.

        Only what was last used before the stamp `older_than` makes room for it. False: there is none, or it can't be
        had that way. Raises what goes wrong with a flight that was there already.
        """
        missing = missing_blocks(content, run)
        while missing:
            if not self._has_spans(archive):
                return False
            under_way = [self._board.find(content.id, index) for index in missing]
            await self._spans.bring(archive, name, missing, older_than)
            for arrival in under_way:
                if arrival is not None:
                    await arrival.wait(self._settings.patience, content.id)
            before, missing = len(missing), missing_blocks(content, run)
            if len(missing) == before:
                return False
        return True

    def _has_spans(self, archive: Archive) -> bool:
        return archive.index is not None and archive.ranges and not archive.streams

    def _may_have_spans(self, archive: Archive) -> bool:
        if not archive.ranges:
            return False
        return archive.index is not None or (not archive.streams and self._indexes.is_open(archive))

    def _is_far(self, archive: Archive, stream: ArchiveStream, name: str, index: int) -> bool:
        member = archive.table.members.get(name)
        return (
            archive.index is not None
            and member is not None
            and (stream.rehearsal or member.offset + index * BLOCK - stream.position > FAR)
        )

    def _stream_instead(self, batch: SpanBatch, wanted: list[Wanted]) -> None:
        """Bring by a stream what spans could not; who waits for it notices nothing. Never awaits."""
        archive = batch.archive
        for name, index in wanted:
            stream = archive.stream_to(name, index) or self._start(archive)
            self._board.hand_over(archive.content_id(name), index, stream)
            stream.await_block(name, index)

    async def pull(self, archive: Archive, names: Iterable[str]) -> None:
        """Make these members resident, all of each; what is evicted meanwhile is fetched again.

        Raises the origin's errors, and CacheError when the cache has no room for them.
        """
        wanted = list(names)
        for _ in range(PULLS):
            if not await self._pull_by_spans(archive, wanted):
                await self._pull_by_streams(archive, wanted)
            missing = await self._missing(archive, wanted)
            if missing is None:
                return
            if self._store.uncached or not self._store.fits(self._sizes(archive, wanted)):
                raise not_kept(self._store, f"{missing} of {archive.ref.key}")
        raise CacheError(f"{archive.ref.key}: {EVICTED}")

    def _sizes(self, archive: Archive, names: Iterable[str]) -> dict[ContentId, int]:
        members = ((name, archive.table.members.get(name)) for name in names)
        return {archive.content_id(name): member.size for name, member in members if member and member.kind == "file"}

    async def _pull_by_streams(self, archive: Archive, wanted: list[str]) -> None:
        archive.pulls += 1
        archive.wake_streams()
        try:
            for _ in range(2):  # a stream that is half-way brings the second half only
                if await self._missing(archive, wanted) is None:
                    return
                await self._stream_end(archive)
        finally:
            archive.pulls -= 1

    async def _pull_by_spans(self, archive: Archive, wanted: list[str]) -> bool:
        """Bring what is missing by spans if that is the smaller part of the archive; say whether it was.

        What is larger comes by one request, and is compared with the catalog's MD5.
        """
        if not archive.streams:
            await self._indexes.ask(archive)
        if not self._has_spans(archive):
            return False
        try:
            await self._indexes.tell(archive)
            found = await self._indexes.map(archive)
        except RefgenfsError as exc:
            log.info("%s: it is streamed: %s", archive.ref.key, exc)
            return False
        missing = await self._missing_blocks(archive, wanted)
        spans = {
            number
            for name, index in missing
            if found.size(name) > 0
            for number in found.spans_of(found.place(name, index))
        }
        packed = sum(packed_size(found.index, range(number, number + 1)) for number in spans)
        if packed * 2 > found.index.archive_size:
            return False
        for at in range(0, len(missing), PULL):
            await self._await_spans(archive, missing[at : at + PULL])
        return True

    async def _await_spans(self, archive: Archive, wanted: Iterable[Wanted]) -> None:
        arrivals = []
        for name, index in wanted:
            cid = archive.content_id(name)
            content = self._store.open_content(cid)
            if content is None or content.missing(Run(index, index + 1)) >= 0:
                arrivals.append((cid, self.join(archive, cid, name, index)))
        for cid, arrival in arrivals:
            await arrival.wait(self._settings.patience, cid)

    async def _missing_blocks(self, archive: Archive, names: Iterable[str]) -> list[Wanted]:
        """Return the blocks of members that are not resident, in their order in the archive."""
        found: list[tuple[int, Wanted]] = []
        for name in names:
            member = archive.table.members.get(name)
            if member is not None and member.kind == "file":
                content = await self._store.content(archive.content_id(name), member.size)
                blocks = range(block_count(member.size))
                missing = [index for index in blocks if content.missing(Run(index, index + 1)) >= 0]
                found += [(member.offset + index * BLOCK, (name, index)) for index in missing]
        return [wanted for _, wanted in sorted(found)]

    async def _missing(self, archive: Archive, names: Iterable[str]) -> str | None:
        if not archive.table.complete:
            return "its files"
        for name in names:
            member = archive.table.members.get(name)
            if member is None or member.kind != "file":
                continue
            content = await self._store.content(archive.content_id(name), member.size)
            whole = Run(0, block_count(member.size))
            content.touch(whole)  # or room for the rest would be made of what is there already
            if content.missing(whole) >= 0:
                return name
        return None

    async def _stream_end(self, archive: Archive) -> None:
        stream = archive.streams[0] if archive.streams else self._start(archive)
        while stream in archive.streams:
            await self._news(archive)

    async def restore_index(self, archive: Archive, blocks: Iterable[int]) -> bool:
        """Have the index whole again: fetched, or made as the archive goes by. Raises the origin's errors."""
        known = archive.index
        if known is not None and known.offered:
            await self._indexes.refetch(archive, known, blocks)
            return True
        await self._indexes.forget(archive, "it was damaged in the cache")
        await self._indexes.ask(archive)
        with _header_waiter(archive):
            for _ in range(2):  # a stream that is half-way makes none
                if archive.index is None:
                    await self._stream_end(archive)
        return archive.index is not None

    # -- streams ------------------------------------------------------------------------------------------

    def _start(self, archive: Archive) -> ArchiveStream:
        spill = None
        if self._settings.indexes and archive.index is None and not any(one.spill for one in archive.streams):
            spill = Spill(self._store, self._settings.spacing or spacing_for(archive.ref.archive_size))
        stream = ArchiveStream(
            archive, self._store, self._board, self._settings.linger, self._idle, self._budget, spill
        )
        archive.streams.append(stream)
        self._nursery.start_soon(self._judge.fly, archive, stream)
        return stream


@contextmanager
def _header_waiter(archive: Archive) -> Iterator[None]:
    archive.header_waiters += 1
    archive.wake_streams()
    try:
        yield
    finally:
        archive.header_waiters -= 1
