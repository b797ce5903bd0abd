"""Archives: who wants what of which, and whether what came is right.

A `.tgz` can't be entered in the middle. So while somebody waits for a member, every member that streams past
is stored, and a reader gets each block as soon as it is inflated. A block that a stream has not come to yet
is joined, never fetched again: one archive, one stream, unless what is wanted has gone by already.

Trust: an object is confirmed when the whole archive has gone by and its MD5 is the catalog's. Until then its
blocks are *provisional*: served, kept, and tied to the validator (ETag) of the object that they came from. A
stream that meets another validator, and an archive that turns out to be wrong, drop them, and who has read some
of them gets an error, not the rest from elsewhere. Once an object is confirmed, only a confirmed object may add
to what came from it: another one is streamed twice, first to be checked, then to be stored.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from weakref import WeakValueDictionary

import trio

from refgenfs.cache.store import Store
from refgenfs.core.content import ArchiveRef, ContentId, Run, block_count
from refgenfs.core.errors import (
    CacheError,
    DeadlineExceeded,
    IntegrityError,
    OriginMissing,
    OriginUnavailable,
    RefgenfsError,
    StaleContent,
    without_frames,
)
from refgenfs.core.tar import Member
from refgenfs.fetch.http import Http
from refgenfs.reader.flights import Arrival, FlightBoard
from refgenfs.reader.member_table import Canonical, MemberTable, canonical_names, table_key
from refgenfs.reader.stream import Archive, ArchiveStream, IdleStreams, StreamIdle

log = logging.getLogger(__name__)

# Member tables kept in memory without a stream: a few kilobytes each, re-read from the ledger in a millisecond.
TABLES = 256
QUEUE_BEAT = 1.0  # seconds between the signs of life of a stream that waits for its turn

# Asks the origin which digest the archive has now; None when the version is gone or rebuilt.
Recheck = Callable[[ArchiveRef], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class Naming:
    """What is needed to give members their names: the origin's listing, the genome's digest and aliases."""

    listing: tuple[str, ...] | None
    digest: str
    aliases: tuple[str, ...]

    def canonical(self) -> Canonical:
        """Return the function that gives a member its name at the origin."""
        return canonical_names(self.listing, self.digest, self.aliases)


@dataclass(frozen=True, slots=True)
class ArchiveSettings:
    """How long to wait, in seconds.

    patience: without a byte coming in, before who waits gets an error.
    linger: a stream that nobody waits for is held this long before it is given up;
    idle: so many of these at a time, since each holds one of the host's connections.
    streams: so many at a time in all, for the memory they take and the connections they hold.
    """

    patience: float = 60.0
    linger: float = 30.0
    idle: int = 2
    streams: int = 4


class Archives:
    """All archives in use. Lives on the trio thread; `nursery` owns the streams."""

    def __init__(
        self,
        store: Store,
        http: Http,
        board: FlightBoard,
        recheck: Recheck,
        on_damage: Callable[[list[ContentId]], None],
        settings: ArchiveSettings,
        nursery: trio.Nursery,
    ) -> None:
        self._store = store
        self._http = http
        self._board = board
        self._recheck = recheck
        self._on_damage = on_damage
        self._settings = settings
        self._nursery = nursery
        self._archives: OrderedDict[tuple[str, str], Archive] = OrderedDict()
        self._live: WeakValueDictionary[tuple[str, str], Archive] = WeakValueDictionary()  # some reader's, too
        self._idle = IdleStreams(settings.idle)
        self._slots = trio.CapacityLimiter(settings.streams)
        self._opening: dict[tuple[str, str], trio.Event] = {}

    # -- tables -------------------------------------------------------------------------------------------

    async def open(self, ref: ArchiveRef, naming: Naming) -> Archive:
        """Return the archive, with its member table from the ledger where there is one. No network."""
        place = (ref.source, ref.asset_digest)
        while (opening := self._opening.get(place)) is not None:
            await opening.wait()
        archive = self._live.get(place)
        if archive is None:
            # no await until the insert: an archive has one object
            self._opening[place] = trio.Event()
            try:
                table = await self._kept_table(ref)
                archive = Archive(ref, table, naming.canonical(), self._on_damage)
                self._live[place] = archive
            finally:
                self._opening.pop(place).set()
        self._archives[place] = archive
        self._archives.move_to_end(place)
        self._trim()
        if ref != archive.ref and not archive.streams:
            archive.ref = ref  # re-archived, or moved: the same files
        return archive

    async def _kept_table(self, ref: ArchiveRef) -> MemberTable:
        try:
            row = await trio.to_thread.run_sync(self._store.ledger.get, table_key(ref))
        except CacheError as exc:
            log.warning("%s: its member table can't be read, so its archive is: %s", ref.key, exc)
            return MemberTable()
        return MemberTable.from_json(row) if row is not None else MemberTable()

    def known(self, ref: ArchiveRef) -> Archive | None:
        """Return the archive if it is in memory."""
        return self._live.get((ref.source, ref.asset_digest))

    def _trim(self) -> None:
        for place, archive in list(self._archives.items()):
            if len(self._archives) <= TABLES:
                return
            if not archive.streams and not archive.header_waiters:
                del self._archives[place]

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
                await self._news(archive)

    async def members(self, archive: Archive) -> dict[str, Member]:
        """Return the whole member table; the whole archive must go by once, for good."""
        with _header_waiter(archive):
            while not archive.table.complete:
                await self._news(archive)
        return archive.table.members

    async def _news(self, archive: Archive) -> None:
        """Wait for the next header; see to it that a stream runs."""
        news = archive.news  # before the stream can end
        archive.forget_error()
        stream = archive.streams[0] if archive.streams else self._start(archive)
        before = stream.progress
        while not news.is_set():
            with trio.move_on_after(self._settings.patience):
                await news.wait()
            if not news.is_set() and stream.progress == before:
                raise DeadlineExceeded(f"{archive.ref.key}: nothing came in for {self._settings.patience:g} s")
            before = stream.progress
        if archive.error is not None and not archive.streams:
            raise archive.error

    def join(self, archive: Archive, content: ContentId, name: str, index: int) -> Arrival:
        """Return the flight of a block that is not resident, launched if there is none. Never awaits."""
        arrival = self._board.find(content, index) or archive.just_passed(name, index)
        if arrival is None:
            stream = archive.stream_to(name, index) or self._start(archive)
            stream.want(content, name, index)
            arrival = self._board.find(content, index)
        if arrival is None:
            raise AssertionError("a stream that wants a block has registered its flight")
        return arrival

    async def pull(self, archive: Archive, names: Iterable[str]) -> None:
        """Make these members resident, all of each; the archive goes by at most twice.

        Raises CacheError when the cache has no room for them.
        """
        wanted = list(names)
        archive.pulls += 1
        archive.wake_streams()
        try:
            for _ in range(2):  # a stream that is half-way brings the second half only
                if await self._missing(archive, wanted) is None:
                    return
                await self._stream_end(archive)
        finally:
            archive.pulls -= 1
        missing = await self._missing(archive, wanted)
        if missing is not None:
            raise CacheError(f"{archive.ref.key}: no room in the cache for {missing}; raise cache.size or unpin")

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

    # -- streams ------------------------------------------------------------------------------------------

    def _start(self, archive: Archive) -> ArchiveStream:
        stream = ArchiveStream(archive, self._store, self._board, self._settings.linger, self._idle)
        archive.streams.append(stream)
        self._nursery.start_soon(self._fly, archive, stream)
        return stream

    async def _fly(self, archive: Archive, stream: ArchiveStream) -> None:
        """Own one stream from its start to its verdict. Raises only a cancellation."""
        error: RefgenfsError | None = OriginUnavailable(f"the stream of {archive.ref.key} was given up")
        try:
            await self._take_turn(stream)
            error = await self._try(archive, stream)
            if error is not None:
                without_frames(error)
        finally:
            with suppress(RuntimeError):  # ended before its turn came
                self._slots.release_on_behalf_of(stream)
            archive.streams.remove(stream)
            archive.error = None if isinstance(error, StreamIdle) else error
            stream.end(error)
            archive.announce()
            with trio.CancelScope(shield=True):  # what went by is known for good, also to the next life
                await archive.save(self._store.ledger)

    async def _take_turn(self, stream: ArchiveStream) -> None:
        """Wait until there is room for one more stream; that is a queue, and not an origin that is silent."""
        while True:
            with trio.move_on_after(QUEUE_BEAT):
                await self._slots.acquire_on_behalf_of(stream)
                return
            stream.progress += 1

    async def _try(self, archive: Archive, stream: ArchiveStream) -> RefgenfsError | None:
        """Stream, and judge; return what went wrong, after taking back what must not stay."""
        try:
            await self._stream(archive, stream)
        except StreamIdle as exc:
            log.info("%s", exc)
            return exc
        except (IntegrityError, StaleContent) as exc:
            log.warning("%s: dropping what came: %s", archive.ref.key, exc)
            archive.distrusted = archive.distrusted or isinstance(exc, IntegrityError)
            await self._take_back(archive, stream)
            return exc
        except RefgenfsError as exc:
            log.warning("%s: %s", archive.ref.key, exc)
            return exc
        except Exception as exc:
            log.exception("%s: the stream failed unexpectedly", archive.ref.key)
            await self._take_back(archive, stream)
            return OriginUnavailable(f"{archive.ref.key}: unexpected {type(exc).__name__}")
        return None

    async def _take_back(self, archive: Archive, stream: ArchiveStream) -> None:
        """Drop what a stream brought; a defect in that must not take the daemon along."""
        try:
            await stream.take_back()
        except Exception:
            archive.generation += 1  # so that nobody reads on
            log.exception("%s: what came can't be taken back", archive.ref.key)

    async def _stream(self, archive: Archive, stream: ArchiveStream) -> None:
        await stream.fly(self._http)
        await self._check(archive, stream)
        if stream.rehearsal:
            log.info("%s: another object than was confirmed, or after a wrong one: its MD5 is right", archive.ref.key)
            stream.clear()
            await stream.fly(self._http)
            await self._check(archive, stream)
        archive.distrusted = False
        table = archive.table
        table.members = dict(stream.members)
        table.complete, table.confirmed, table.validator = True, stream.validator, ""

    async def _check(self, archive: Archive, stream: ArchiveStream) -> None:
        """Raise IntegrityError unless the archive's MD5 is the catalog's, or what the origin says it is now."""
        expected = archive.ref.archive_digest
        if expected and stream.digest != expected:
            # Archiving again changes the archive's digest and not its files: ask before judging.
            fresh = await self._recheck(archive.ref)
            if stream.digest != fresh:
                raise IntegrityError(
                    f"{archive.ref.key}: the archive's MD5 is {stream.digest}, the catalog's {expected}"
                )


@contextmanager
def _header_waiter(archive: Archive) -> Iterator[None]:
    archive.header_waiters += 1
    archive.wake_streams()
    try:
        yield
    finally:
        archive.header_waiters -= 1
