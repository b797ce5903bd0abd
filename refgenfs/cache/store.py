"""The content store: contents in sparse files under a hard bound of bytes.

The quota bounds what the whole directory takes on disk. Room is reserved before bytes are written, and made
by evicting the least recently used segments. What is resident is in the ledger a few seconds later, after
the bytes themselves are on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from refgenfs.cache.content import Content
from refgenfs.cache.entries import EntryRow
from refgenfs.cache.keeping import Keeping
from refgenfs.cache.ledger import JSONValue, Ledger
from refgenfs.cache.lock import DirectoryLock
from refgenfs.cache.opened import OpenContents
from refgenfs.cache.pinrows import UNKNOWN, Pin
from refgenfs.cache.pins import Pins
from refgenfs.cache.room import Room
from refgenfs.cache.shelf import DiskErrors, Reservation, Shelf
from refgenfs.cache.startup import SCRATCH, Opened, leave_marker, read_row
from refgenfs.cache.stock import Stock
from refgenfs.cache.verify import VerifyReport, verify_all, verify_blocks
from refgenfs.cache.writeback import Writeback
from refgenfs.core.content import ContentId, Run
from refgenfs.core.errors import CacheError

FLUSH_EVERY = 2.0  # seconds
SMALL = 4 << 20  # bytes of a ledger that is read as soon as it is open; a larger one, when it is wanted

log = logging.getLogger(__name__)


def _keep_nothing_free(_total: int) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """`size` bounds the directory's use of the disk in bytes; `min_free(total)` stays free on the disk."""

    size: int
    min_free: Callable[[int], int] = _keep_nothing_free


class Store:
    """An open cache directory; made by `open_store`. Its methods are for the trio thread."""

    def __init__(
        self,
        directory: Path,
        limits: CacheLimits,
        opened: Opened,
        lock: DirectoryLock,
        *,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self.directory = directory
        self.limits = limits
        self.ledger: Ledger = opened.ledger
        self._shelf = shelf = Shelf(directory, limits.size, limits.min_free, punch=opened.punch, clock=clock, now=now)
        self._contents = OpenContents(shelf, opened.ledger, self._reserve, lambda: self._pins.rewrite_all())
        self._room = Room(shelf, self._contents, self._hurry)
        self._writeback = Writeback(shelf, opened.ledger, self._contents)
        self._keeping = Keeping(shelf)
        self._pins = Pins(shelf, self._contents, self._room)
        self._stock = Stock(
            opened, lock, shelf, self._contents, self._keeping, self._pins, self._room, self._writeback
        )
        self._wake = trio.Event()
        self._known = trio.Event()  # what is resident has been read, and is within the quota
        self._asked = trio.Event()  # somebody wants to know it
        if self.ledger.size_bytes() < SMALL:
            self.look()
        self._token = trio.lowlevel.current_trio_token()
        self.ledger.admit = self._admit

    @property
    def is_ready(self) -> bool:
        """Whether it is known what is resident."""
        return self._known.is_set()

    async def ready(self) -> None:
        """Wait until it is known what is resident, and that is within the quota: before that nothing is stored.

        `content` and `flush` do so by themselves, `content_to_read` and `holds` need not; all else is for afterwards.
        """
        self.look()
        await self._known.wait()

    def look(self) -> None:
        """Begin to find out what is resident, if that has not begun."""
        self._asked.set()

    # What people and other parts ask for

    @property
    def quota(self) -> int:
        """The bound in bytes."""
        return self._shelf.account.quota

    @property
    def used(self) -> int:
        """Bytes that the directory takes on disk, or that are promised; an upper bound."""
        return self._shelf.account.used

    @property
    def room(self) -> int:
        """Bytes that are unused, or that could be evicted."""
        return self._room.total

    def fits(self, sizes: Mapping[ContentId, int]) -> bool:
        """Say whether contents of these sizes, in bytes, could be resident all at once, whatever else has to go."""
        return self._room.fits(sizes)

    @property
    def stamp(self) -> int:
        """A mark in the order of touches: every touch so far is older than it."""
        return self._shelf.index.stamp

    @property
    def evictions(self) -> int:
        """How many segments were evicted to make room."""
        return self._shelf.evictions

    @property
    def errors(self) -> DiskErrors:
        """What the disk refused so far."""
        return self._shelf.errors

    @property
    def uncached(self) -> bool:
        """Whether the disk refuses writes now, so that reads go on without the cache."""
        return self._shelf.errors.uncached

    @property
    def free(self) -> int:
        """Bytes free on the file system, as measured last."""
        self._shelf.free.room(unwritten=self._shelf.account.reserved)
        return self._shelf.free.free

    @property
    def min_free(self) -> int:
        """Bytes that are kept free on the file system."""
        self._shelf.free.room(unwritten=self._shelf.account.reserved)
        return self._shelf.free.min_free

    @property
    def contents(self) -> int:
        """How many contents are known."""
        return len(self._shelf.entries)

    @property
    def pinned(self) -> int:
        """Resident bytes of what is pinned."""
        return self._pins.resident

    def summary(self) -> list[EntryRow]:
        """Return all contents that have resident bytes or are pinned."""
        return list(self._shelf.entries.rows())

    def peek(self, cid: ContentId) -> EntryRow | None:
        """Return what is known of a content, None for one that is not. For any thread: it may be a moment old."""
        return self._shelf.entries.peek(cid)

    def resident_bytes(self, cid: ContentId) -> int:
        """Return how many bytes of a content are resident; 0 for one that is not known."""
        return self._shelf.entries.resident(cid)

    def is_pinned(self, cid: ContentId) -> bool:
        """Say whether a content is pinned."""
        return self._pins.has(cid)

    def touch(self, cid: ContentId) -> None:
        """Make what is resident of a content the most recently used: it is about to be."""
        for index in self._shelf.index.segments(cid):
            self._shelf.index.touch(cid, index)

    def set_note(self, cid: ContentId, note: JSONValue) -> None:
        """Attach to a content what people know it by; it goes when the content does. Writes to the ledger."""
        self._shelf.note_row(cid, note)
        self.ledger.set(f"note/{cid}", note)

    def forget_notes(self, cids: Collection[ContentId]) -> Callable[[], None]:
        """Return what removes the notes of contents of which nothing is resident; it blocks, and is for a thread.

        What is noted of them anew, from now on, stays.
        """
        for cid in cids:
            self._shelf.noted.pop(cid, None)

        def forget() -> None:
            self.ledger.apply({}, iter([f"note/{cid}" for cid in cids]))
            noted = self._shelf.noted
            if back := {
                f"note/{cid}": noted[cid] for cid in cids if cid in noted
            }:  # written while they were forgotten
                self.ledger.apply(back, iter(()))

        return forget

    def note(self, cid: ContentId) -> JSONValue:
        """Return what `set_note` attached, or None. Reads the ledger."""
        return self.ledger.get(f"note/{cid}")

    # Contents

    def open_content(self, cid: ContentId) -> Content | None:
        """Return a content whose block map is in memory, or None."""
        return self._contents.get(cid)

    async def content(self, cid: ContentId, size: int) -> Content:
        """Return a content, with its block map; no I/O if it is open already or nothing of it is resident.

        `size` is in bytes. What was kept under another size is evicted. Raises CacheError when the ledger
        can't be read, when a content of another size is in use, or where it is larger than 1 TiB.
        """
        if not self._known.is_set():
            await self.ready()
        return await self._contents.open(cid, size)

    async def content_to_read(self, cid: ContentId, size: int) -> Content:
        """Do as `content`; but return one that something is resident of before it is known what else is.

        What is resident of it can be read then; it has no room for more until the store is `ready`.
        """
        shelf = self._shelf
        if not shelf.known and (early := await self._contents.open_early(cid, size)) is not None:
            return early
        if shelf.known:  # though the cache may still have to shrink
            return await self._contents.open(cid, size)
        return await self.content(cid, size)

    async def holds(self, cid: ContentId) -> bool:
        """Say whether anything of a content is resident; its own row is read while all of them are not known yet."""
        if not self._shelf.known and self.open_content(cid) is None:
            try:
                row = await trio.to_thread.run_sync(read_row, self.ledger, cid)
            except CacheError:  # whoever reads all of it has it made anew
                await self.ready()
            else:
                return row is not None and row.resident > 0
        return self.resident_bytes(cid) > 0

    def reserve(self, nbytes: int, *, older_than: int | None = None) -> Reservation | None:
        """Make room for `nbytes` and return it; None when that can't be had, or the disk refuses for now.

        Evicts the least recently used segments that are not pinned; with `older_than`, only such as were last
        touched before that stamp. `Content.cost` says what blocks need; `Content.reserve` does both.
        """
        return self._room.reserve(nbytes, older_than)

    def _reserve(self, nbytes: int, older_than: int | None) -> Reservation | None:
        return self._room.reserve(nbytes, older_than)

    def _hurry(self) -> None:
        self._wake.set()

    def _admit(self, nbytes: int) -> None:
        """Make room for a value in the ledger, from any thread."""
        if trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is self._token:
            self._room.admit(nbytes)
            return
        try:
            trio.from_thread.run(self._admit_when_known, nbytes, trio_token=self._token)
        except trio.RunFinishedError:
            raise CacheError(f"the cache in {self.directory} is closed") from None

    async def _admit_when_known(self, nbytes: int) -> None:
        await self.ready()
        self._room.admit(nbytes)

    # Pins and removal

    @property
    def pins(self) -> Pins:
        """What is pinned, by the keys that people named. To be asked and changed after `ready`."""
        return self._pins

    def pin(self, cid: ContentId) -> None:
        """Keep a content from eviction for a key that is not known, also after a restart once it was flushed.

        Raises CacheError if it is not known, or there is no room to write that down.
        """
        self._pins.hold(cid, Pin(UNKNOWN), cid)

    def unpin(self, cid: ContentId) -> None:
        """Let a content be evicted again, whoever has pinned it; one that is not known is passed over."""
        self._pins.drop(cid)

    def keep(self, content: Content) -> None:
        """Keep a content from eviction while all such contents take a small share of the quota (see `Keeping`).

        That is the daemon's own doing, and no pin: `evict` and `clear` take it away.
        """
        self._keeping.keep(content.entry)
        self._shelf.unlisted.add(content.id)

    @property
    def scratch(self) -> Path:
        """The folder for files of work under way; what they take has to be reserved. Emptied at each start."""
        return self.directory / SCRATCH

    def evict(self, cid: ContentId) -> int:
        """Remove the resident blocks of a content, unless it is pinned; return how many bytes those were."""
        entry = self._shelf.entries.get(cid) if self.is_ready else None  # or it is not known what is pinned
        if entry is None or entry.pinned:
            return 0
        self._keeping.release(cid)
        content = self._contents.get(cid)
        if content is None:
            return self._contents.discard(entry)
        freed = entry.resident
        content.evict(Run(0, len(content.map.flags)))
        return freed

    def clear(self, *, pinned: bool = False) -> int:
        """Remove everything, and what is pinned too if asked to; return the resident bytes that went."""
        freed = 0
        for entry in self.summary():
            if pinned and entry.pinned:
                self.unpin(entry.cid)
            freed += self.evict(entry.cid)
        return freed

    async def verify(self, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """Check every resident block against its checksum and drop the damaged ones.

        `progress(done, total)` is called with bytes. Reads go on meanwhile.
        """
        return await verify_all(self._shelf, self.content, progress)

    async def keeps(self, content: Content, indexes: list[int]) -> bool:
        """Bring blocks of a content to the disk, and say whether it has them all, and as they should be.

        What it has not kept is dropped.
        """
        await self.flush()
        damaged = await verify_blocks(self._shelf, content, indexes)
        return not damaged and all(content.map.flags[index] for index in indexes)

    async def renew(self, limits: CacheLimits) -> bool:
        """Take other limits; return whether the cache keeps within them, which pins can prevent.

        What is too much is evicted a step at a time: reads go on in between.
        """
        self.limits = limits
        shelf = self._shelf
        shelf.free.renew(limits.min_free)
        if limits.size < shelf.account.quota:
            await self.ready()
        await self._room.bound(limits.size)
        await self._room.keep_free()
        return self.used <= limits.size

    # The disk

    async def flush(self) -> bool:
        """Bring bytes, and then the block maps that name them, to the disk; also done every little while.

        An error is noted in `errors`, the next flush tries again, and the answer is False: not all is written.
        """
        if not self._known.is_set():
            await self.ready()
        return await self._flush()

    async def _flush(self) -> bool:
        self._keeping.trim()
        written = await self._writeback.flush()
        self._room.hold_quota()
        return written

    async def look_after(self) -> None:
        """Read what is there, then flush every little while, and keep room on the disk; never returns."""
        await self._asked.wait()
        await self._stock.take()
        self._known.set()
        while True:
            with trio.move_on_after(FLUSH_EVERY):
                await self._wake.wait()
            self._wake = trio.Event()
            try:
                if self._stock.is_due:
                    await self._stock.take_again()
                self._pins.expire(self._shelf.now())
                await self._flush()
                self._shelf.handles.trim()
                if self._stock.opened.full or not self._stock.opened.refused:
                    await self._room.keep_free()
            except Exception:  # a defect of ours must not end the daemon
                log.exception("the cache in %s could not be looked after", self.directory)

    async def aclose(self) -> None:
        """Bring everything to the disk and close it; it is clean afterwards if the disk took it all."""
        self.ledger.admit = None
        for content in list(self._shelf.unsettled.values()):
            content.abandon(Run(0, len(content.map.flags)))
        await self._flush()
        seen = self._known.is_set() or self._stock.opened.clean
        clean = seen and self._shelf.sound and not self._writeback.pending and not self._stock.opened.refused
        await trio.to_thread.run_sync(self._finish, self._writeback.last_uses(), clean)
        self._shelf.handles.close()

    def _finish(self, rows: dict[str, JSONValue], clean: bool) -> None:
        try:
            if not self._stock.opened.refused:
                self.ledger.apply(rows, iter(()))
            self.ledger.settle()
            mark = self.ledger.journal.mark
            self.ledger.close()
            if clean:
                leave_marker(self.directory, self.ledger.epoch, mark)
        except (CacheError, OSError) as exc:
            log.warning("the cache in %s was not closed cleanly: %s", self.directory, exc)
            self.ledger.abort()
