"""Seek indexes of archives: made as an archive goes by or offered beside it, kept in the cache, parsed when needed.

An index file is a content of the store like any other, with an identity of its own, so it counts, is checked and is
cleared like any other; but it is kept when members are evicted (see `cache.keeping`). One that the origin offers is
read by ranges: its tables, then the windows that are needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from refgenfs.cache.content import Content, checksum
from refgenfs.cache.store import Store
from refgenfs.core.content import BLOCK, ArchiveRef, ContentId, Run, block_count, block_length, content_id
from refgenfs.core.errors import CacheError, IntegrityError, RefgenfsError
from refgenfs.core.newest import Newest
from refgenfs.core.seekindex import SeekIndex, Span, file_size, head_size, unpack_window
from refgenfs.core.spanplan import MemberMap
from refgenfs.core.tar import Member
from refgenfs.fetch.http import Http
from refgenfs.fetch.parts import Part
from refgenfs.fetch.seekpoints import IndexBuilder, NotIndexed
from refgenfs.reader.archive import Archive, KnownIndex
from refgenfs.reader.flights import FlightBoard
from refgenfs.reader.indexfiles import IndexFiles, IndexLost, reading_memory
from refgenfs.reader.labels import label
from refgenfs.reader.member_table import renamed
from refgenfs.reader.ranges import RangeFlights
from refgenfs.reader.refusals import Refusals
from refgenfs.reader.uncached import AnyContent

log = logging.getLogger(__name__)

MAPS = 8  # parsed indexes in memory, with their members: a few hundred kilobytes each
ASK_WAIT = 1.0  # seconds that a first read waits for what the origin says of an index, before it streams
ASK_DEADLINE = 10.0  # seconds for that answer, whoever waits
ASK_AGAIN = 24 * 3600.0  # seconds for which "it has none" is believed
ASK_AFTER_FAILURE = 60.0  # seconds until an origin that did not answer is asked again
LARGEST_HEAD = 16 << 20  # bytes of an offered index that are fetched before one block of its archive is
HEAD_ROOM = 256 * 1024  # bytes of an index file that are not windows, and
MEMBER_ROOM = 512  # for each member
INDEX_LABEL = "seek index of "  # and the archive's key: what an index is known by
PARSING = 4  # times the bytes of an index's tables are taken while they are parsed: they are packed


class Indexes:
    """The indexes of all archives. Lives on the trio thread; `nursery` owns what is fetched."""

    def __init__(
        self,
        store: Store,
        http: Http,
        board: FlightBoard,
        flights: RangeFlights,
        nursery: trio.Nursery,
        *,
        patience: float,
        wall: Callable[[], float],
    ) -> None:
        self._store = store
        self._http = http
        self._files = IndexFiles(store, board, flights, patience=patience)
        self._budget = flights.budget
        self._nursery = nursery
        self._wall = wall
        self._refusals = Refusals(log)
        self._maps: Newest[ContentId, MemberMap] = Newest(MAPS)

    def be_patient(self, patience: float) -> None:
        """Wait so long (seconds) without a byte from now on."""
        self._files.be_patient(patience)

    # -- what is known --------------------------------------------------------------------------------------

    def restore(self, archive: Archive, row: Any) -> None:
        """Take what the ledger has of an archive's index."""
        if isinstance(row, dict):
            archive.index = KnownIndex.from_json(row)
            none_until = row.get("none_until") if row.get("none_for") == archive.ref.archive_digest else None
            archive.ask_after = float(none_until) if isinstance(none_until, int | float) else 0.0
            self._drop_outdated(archive)

    def renew(self, archive: Archive) -> None:
        """Take it that the catalog has another archive of the same files now: forget what the origin said before."""
        archive.ask_after = 0.0
        self._drop_outdated(archive)

    def _drop_outdated(self, archive: Archive) -> None:
        """Let go of an index that the origin offered for another archive than the catalog has now."""
        known = archive.index
        if known is not None and known.offered and known.archive != archive.ref.archive_digest:
            archive.index = None
            self._maps.pop(known.content, None)
            self._store.evict(known.content)

    async def _save(self, archive: Archive) -> None:
        known = archive.index
        row: Any = {} if known is None else known.to_json()
        row |= {"none_until": archive.ask_after, "none_for": archive.ref.archive_digest}
        try:
            await trio.to_thread.run_sync(self._store.ledger.set, index_key(archive.ref), row)
        except CacheError as exc:  # one that is not written down is asked for, or made, again
            self._refusals.warning(
                "%s: what is known of its seek index is not written down: %s", archive.ref.key, exc
            )
        else:
            self._refusals.clear()

    async def forget(self, archive: Archive, why: object) -> None:
        """Let go of an index that does not fit its archive, or is not whole. Raises nothing."""
        known, archive.index = archive.index, None
        if known is None:
            return
        log.warning("%s: its seek index is dropped: %s", archive.ref.key, why)
        self._maps.pop(known.content, None)
        self._store.evict(known.content)
        if known.offered:
            again = ASK_AFTER_FAILURE if isinstance(why, IndexLost) else ASK_AGAIN  # there may be another one by now
            archive.ask_after = self._wall() + again
        await self._save(archive)

    # -- what is in it --------------------------------------------------------------------------------------

    async def map(self, archive: Archive) -> MemberMap:
        """Return where the archive's members are; from memory, or the cache, or the origin that offers it.

        Raises IndexLost, IntegrityError and CacheError.
        """
        async with archive.indexing:
            known = archive.index
            if known is None:
                raise IndexLost(f"{archive.ref.key}: it has no seek index any more")
            found = self._maps.get(known.content)
            if found is None:
                found = await self._parse(archive, known)
            self._maps.put(known.content, found)
            return found

    async def _parse(self, archive: Archive, known: KnownIndex) -> MemberMap:
        first = await self._files.read(archive, known, 0, min(BLOCK, known.size))
        size = head_size(first)
        if size > min(known.size, LARGEST_HEAD):
            raise IntegrityError(f"the seek index has tables of {size} bytes")
        claim = self._budget.claim(reading_memory(size) + PARSING * size)
        try:
            await claim.wait(lambda: archive.index_came(1))
            head = first if size <= len(first) else await self._files.read(archive, known, 0, size)
            return await self._parse_head(archive, known, head[:size])
        finally:
            claim.release()

    async def _parse_head(self, archive: Archive, known: KnownIndex, head: bytes) -> MemberMap:
        canonical = archive.canonical
        found = await trio.to_thread.run_sync(lambda: MemberMap(SeekIndex.parse(head), canonical))
        if found.index.archive_digest != known.archive or found.index.size != known.size:
            raise IntegrityError("the seek index is that of another archive")
        return found

    async def windows(self, archive: Archive, known: KnownIndex, spans: list[Span]) -> list[bytes]:
        """Return the windows of neighbouring spans of that index. Raises as `map` does."""
        start, stop = spans[0].window_start, spans[-1].window_stop
        data = await self._files.read(archive, known, start, stop - start)
        return [unpack_window(data[span.window_start - start : span.window_stop - start]) for span in spans]

    async def refetch(self, archive: Archive, known: KnownIndex, blocks: Iterable[int]) -> None:
        """Have blocks of an index that the origin offers in the cache again. Raises as `map` does."""
        for index in blocks:
            await self._files.read(archive, known, index * BLOCK, block_length(known.size, index))

    async def _label(self, archive: Archive, known: KnownIndex) -> None:
        await label(self._store, known.content, "", f"{INDEX_LABEL}{archive.ref.key}")

    # -- offered by the origin ------------------------------------------------------------------------------

    async def ask(self, archive: Archive) -> None:
        """Wait, but not for long, for what the origin says of an index that it may offer.

        It is asked once; what it says stands for a day. The catalog's MD5 is what an index must be of, so without
        one nothing is asked. Raises nothing.
        """
        asking = archive.asking
        if asking is None:
            if not self.is_open(archive):
                return
            asking = archive.asking = trio.Event()
            self._nursery.start_soon(self._ask, archive, asking)
        with trio.move_on_after(ASK_WAIT):
            await asking.wait()

    def is_open(self, archive: Archive) -> bool:
        """Say whether the origin may have an index that nobody has asked it for, or is being asked."""
        ref = archive.ref
        if archive.asking is not None:
            return True
        may = archive.index is None and ref.index_urls and ref.archive_digest
        wait = archive.ask_after - self._wall()
        return bool(may) and not 0 < wait <= ASK_AGAIN  # later than that: the clock was ahead when it was noted

    async def _ask(self, archive: Archive, done: trio.Event) -> None:
        ref = archive.ref
        archive.ask_after = self._wall() + ASK_AFTER_FAILURE
        try:
            part = await self._http.fetch_beginning(ref.index_urls, BLOCK, account=ref.source, deadline=ASK_DEADLINE)
            if part is not None and await self._adopt(archive, part):
                return
            archive.ask_after = self._wall() + ASK_AGAIN
            await self._save(archive)
        except IntegrityError as exc:
            log.warning("%s: the seek index that the origin offers is not used: %s", ref.key, exc)
            await self._drop(archive)
        except RefgenfsError as exc:
            log.info("%s: whether the origin offers a seek index is not known: %s", ref.key, exc)
            archive.index = None
        except Exception:
            log.exception("%s: a seek index could not be asked for", ref.key)
            archive.index = None
        finally:
            archive.asking = None
            done.set()

    async def _drop(self, archive: Archive) -> None:
        known, archive.index = archive.index, None
        if known is not None:
            self._store.evict(known.content)
        archive.ask_after = self._wall() + ASK_AGAIN
        await self._save(archive)

    async def _adopt(self, archive: Archive, part: Part) -> bool:
        """Use what the origin offers, if it fits; its first block is here. Raises IntegrityError if it doesn't."""
        if file_size(bytes(part.data)) != part.size:  # or it is none: then nothing of it is stored
            raise IntegrityError(f"it has {part.size} bytes, and says otherwise")
        digest = archive.ref.archive_digest
        if archive.index is not None or not part.validator:
            return archive.index is not None  # one that could change unseen can't be read in parts
        cid = index_content(archive.ref.source, digest, part.validator)
        known = KnownIndex(cid, part.size, digest, (part.url,), part.validator)
        content = await self._files.content(known)
        await self._label(archive, known)
        await self._store_block(content, part.data)
        archive.index = known
        await self.tell(archive)
        log.info("%s: the origin offers a seek index", archive.ref.key)
        await self._save(archive)
        return True

    async def tell(self, archive: Archive) -> None:
        """Put what the index says of the members into an archive's table. Raises as `map` does."""
        found, table = await self.map(archive), archive.table
        if table.complete:
            return
        ours = {name: member.size for name, member in table.members.items() if member.kind == "file" and member.size}
        if any(found.size(name) != size for name, size in ours.items()):
            raise IntegrityError("it has other files than the archive that came before")
        for member in found.index.members:
            table.note(renamed(member, archive.canonical))
        table.complete = True
        archive.announce()
        await archive.save(self._store.ledger)

    async def _store_block(self, content: AnyContent, data: memoryview) -> None:
        run = Run(0, 1)
        reservation = content.reserve(run) if content.missing(run) >= 0 else None
        if reservation is None:
            return
        with reservation, suppress(CacheError):  # which the store counts
            await trio.to_thread.run_sync(content.write, 0, data)
            content.commit(0, checksum(data), reservation)

    # -- made here ------------------------------------------------------------------------------------------

    async def keep(
        self, archive: Archive, builder: IndexBuilder, spilled: int, members: list[Member], digest: str
    ) -> None:
        """Store the index of an archive that has gone by and was right; `spilled` bytes of windows it has.

        Raises nothing but a cancellation.
        """
        if builder.failed:  # or room would be made for nothing
            log.info("%s: it has no seek index: %s", archive.ref.key, builder.failed)
            return
        path = self._store.scratch / f"{index_content(archive.ref.source, digest)}.index"
        reservation = self._store.reserve(spilled + HEAD_ROOM + MEMBER_ROOM * len(members))
        if reservation is None:
            log.info("%s: there is no room for its seek index", archive.ref.key)
            return
        try:
            size = await trio.to_thread.run_sync(builder.finish, members, digest, path)
            known = KnownIndex(index_content(archive.ref.source, digest), size, digest)
            await self._label(archive, known)
            if not await self._store_file(known, path):
                log.info("%s: there is no room for its seek index", archive.ref.key)
                return
        except (NotIndexed, IntegrityError, CacheError, OSError) as exc:
            log.info("%s: it has no seek index: %s", archive.ref.key, exc)
            return
        finally:
            with suppress(OSError):
                path.unlink()
            reservation.release()
        if archive.index is not None:  # of another archive, or offered: this one is known to be right
            self._maps.pop(archive.index.content, None)
            if archive.index.content != known.content:
                self._store.evict(archive.index.content)
        archive.index = known
        # The bytes first: a row whose index is not there costs its archive's next reader a stream all the same.
        if await self._store.flush():
            await self._save(archive)

    async def _store_file(self, known: KnownIndex, path: Path) -> bool:
        content = await self._store.content(known.content, known.size)
        run = Run(0, block_count(known.size))
        if content.missing(run) >= 0:
            content.drop(run)
            reservation = content.reserve(run)
            if reservation is None:
                return False
            with reservation:
                crcs = await trio.to_thread.run_sync(_copy, path, content)
                for index, crc in enumerate(crcs):
                    content.commit(index, crc, reservation)
        self._store.keep(content)
        return content.missing(run) < 0


def index_key(ref: ArchiveRef) -> str:
    """Return the ledger's key of what is known of an archive's index."""
    return f"index/{ref.source}/{ref.asset_digest}"


def index_content(source: str, archive_digest: str, validator: str = "") -> ContentId:
    """Return the identity of an archive's index; one that is offered may be replaced, so it has its validator."""
    return content_id(source, archive_digest, "", f"seek index {validator}")


def _copy(path: Path, content: Content) -> list[int]:
    crcs: list[int] = []
    with path.open("rb") as file:
        while data := file.read(BLOCK):
            content.write(len(crcs), memoryview(data))
            crcs.append(checksum(data))
    return crcs
