"""The content store: contents in sparse files under a hard bound of bytes.

The quota bounds what the whole directory takes on disk. Room is reserved before bytes are written, and made
by evicting the least recently used segments. What is resident is in the ledger a few seconds later, after
the bytes themselves are on disk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from refgenfs.cache.content import Content
from refgenfs.cache.keeping import Keeping
from refgenfs.cache.ledger import JSONValue, Ledger
from refgenfs.cache.lock import DirectoryLock
from refgenfs.cache.opened import OpenContents
from refgenfs.cache.room import Room
from refgenfs.cache.shelf import DiskErrors, Reservation, Shelf, file_cost
from refgenfs.cache.startup import SCRATCH, Image, leave_marker, load_image, summary_of
from refgenfs.cache.verify import VerifyReport, verify_content
from refgenfs.cache.writeback import Writeback
from refgenfs.core.content import ContentId, Run
from refgenfs.core.errors import CacheError
from refgenfs.core.eviction import WHOLE

FLUSH_EVERY = 2.0  # seconds

log = logging.getLogger(__name__)


def _keep_nothing_free(_total: int) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """`size` bounds the directory's use of the disk in bytes; `min_free(total)` stays free on the disk."""

    size: int
    min_free: Callable[[int], int] = _keep_nothing_free


@dataclass(frozen=True, slots=True)
class ContentSummary:
    """A content as the store knows it; sizes in bytes, `last_used` in Unix seconds."""

    cid: ContentId
    size: int
    resident: int
    pinned: bool
    last_used: float


class Store:
    """An open cache directory; made by `open_store`. Its methods are for the trio thread."""

    def __init__(
        self,
        directory: Path,
        limits: CacheLimits,
        image: Image,
        token: trio.lowlevel.TrioToken,
        *,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self.directory = directory
        self.limits = limits
        self.ledger: Ledger = image.ledger
        self._epoch = image.epoch
        self._shelf = shelf = Shelf(directory, limits.size, limits.min_free, punch=image.punch, clock=clock, now=now)
        self._contents = OpenContents(shelf, image.ledger, image.epoch, self._reserve)
        self._room = Room(shelf, self._contents, self._hurry)
        self._writeback = Writeback(shelf, image.ledger, self._contents, image.epoch)
        self._keeping = Keeping(shelf, image.ledger)
        self._wake = trio.Event()
        self._token = token
        self._adopt(image)

    def _adopt(self, image: Image) -> None:
        shelf = self._shelf
        for entry in sorted(image.entries.values(), key=lambda entry: entry.last_used):
            shelf.entries[entry.cid] = entry
            if entry.pinned:
                shelf.index.pin(entry.cid)
            if entry.kept:
                self._keeping.adopt(entry)
            if entry.resident:
                shelf.account.files += file_cost(entry.resident)
                shelf.index.grow(entry.cid, WHOLE, file_cost(entry.resident))
        for cid, nbytes in image.excess.items():
            shelf.set_excess(cid, nbytes)
        self._writeback.measure()
        self._room.make(self.used - self.quota)
        self.ledger.admit = self._admit

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

    def summary(self) -> list[ContentSummary]:
        """Return all contents that have resident bytes or are pinned."""
        return [
            ContentSummary(entry.cid, entry.size, entry.resident, entry.pinned, entry.last_used)
            for entry in self._shelf.entries.values()
        ]

    def resident_bytes(self, cid: ContentId) -> int:
        """Return how many bytes of a content are resident; 0 for one that is not known."""
        entry = self._shelf.entries.get(cid)
        return 0 if entry is None else entry.resident

    def is_pinned(self, cid: ContentId) -> bool:
        """Say whether a content is pinned."""
        entry = self._shelf.entries.get(cid)
        return entry is not None and entry.pinned

    def set_note(self, cid: ContentId, note: JSONValue) -> None:
        """Attach to a content what people know it by; it goes when the content does. Writes to the ledger."""
        self.ledger.set(f"note/{cid}", note)

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
        can't be read, or when a content of another size is in use.
        """
        return await self._contents.open(cid, size)

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
            trio.from_thread.run_sync(self._room.admit, nbytes, trio_token=self._token)
        except trio.RunFinishedError:
            raise CacheError(f"the cache in {self.directory} is closed") from None

    # Pins and removal

    def pin(self, cid: ContentId) -> None:
        """Keep a content from eviction, also after a restart. Raises CacheError if it is not known."""
        self._set_pin(cid, True)

    def unpin(self, cid: ContentId) -> None:
        """Let a content be evicted again; one that is not known is passed over."""
        if self.is_pinned(cid):
            self._set_pin(cid, False)

    def _set_pin(self, cid: ContentId, pinned: bool) -> None:
        shelf = self._shelf
        live = self._contents.get(cid)
        entry = shelf.entries.get(cid) or (live.entry if live is not None else None)
        if entry is None:
            raise CacheError(f"content {cid} is not in the cache")
        entry.pinned = pinned
        shelf.entries[cid] = entry
        (shelf.index.pin if pinned else shelf.index.unpin)(cid)
        if pinned:
            try:
                self.ledger.set(f"content/{cid}", summary_of(entry))
            except CacheError:
                entry.pinned = False  # no room to write it down: then it is not so
                shelf.index.unpin(cid)
                raise
        elif entry.resident:
            self.ledger.apply(
                {f"content/{cid}": summary_of(entry)}, iter(())
            )  # the row is there: no more room needed
        else:
            del shelf.entries[cid]
            self.ledger.delete(f"content/{cid}")

    def keep(self, content: Content) -> None:
        """Keep a content from eviction while all such contents take a small share of the quota (see `Keeping`).

        That is the daemon's own doing, and no pin: `evict` and `clear` take it away.
        """
        self._keeping.keep(content.entry)
        self._shelf.dirty[content.id] = content  # so that the next flush writes it down

    @property
    def scratch(self) -> Path:
        """The folder for files of work under way; what they take has to be reserved. Emptied at each start."""
        return self.directory / SCRATCH

    def evict(self, cid: ContentId) -> int:
        """Remove the resident blocks of a content, unless it is pinned; return how many bytes those were."""
        entry = self._shelf.entries.get(cid)
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
        for entry in list(self._shelf.entries.values()):
            if pinned and entry.pinned:
                self.unpin(entry.cid)
            freed += self.evict(entry.cid)
        return freed

    async def verify(self, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """Check every resident block against its checksum and drop the damaged ones.

        `progress(done, total)` is called with bytes. Reads go on meanwhile.
        """
        total = sum(entry.resident for entry in self._shelf.entries.values())
        done = blocks = 0
        damaged = []

        def step(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            if progress is not None:
                progress(done, max(total, done))

        await trio.lowlevel.checkpoint()
        for cid, entry in list(self._shelf.entries.items()):
            if entry.resident and self._shelf.entries.get(cid) is entry:
                # an entry may be evicted while its map is read: it is then empty, and nothing is checked
                content = await self.content(cid, entry.size)
                count, _, found = await verify_content(self._shelf, content, step)
                blocks += count
                damaged += found
        return VerifyReport(blocks, done, tuple(damaged))

    # The disk

    async def flush(self) -> None:
        """Bring bytes, and then the block maps that name them, to the disk; also done every little while.

        An error is noted in `errors`, and the next flush tries again.
        """
        self._keeping.trim()
        await self._writeback.flush()
        self._room.make(self.used - self.quota)  # the ledger was measured, and may be larger than was thought

    async def look_after(self) -> None:
        """Flush every little while, and keep room on the disk; never returns."""
        while True:
            with trio.move_on_after(FLUSH_EVERY):
                await self._wake.wait()
            self._wake = trio.Event()
            try:
                await self.flush()
                self._shelf.handles.trim()
                self._room.keep_free()
            except Exception:  # a defect of ours must not end the daemon
                log.exception("the cache in %s could not be looked after", self.directory)

    async def aclose(self) -> None:
        """Bring everything to the disk and close it; it is clean afterwards if the disk took it all."""
        self.ledger.admit = None
        for content in list(self._shelf.unsettled.values()):
            content.abandon(Run(0, len(content.map.flags)))
        await self.flush()
        clean = self._shelf.sound and not self._writeback.pending
        await trio.to_thread.run_sync(self._finish, self._writeback.last_uses(), clean)
        self._shelf.handles.close()

    def _finish(self, rows: dict[str, JSONValue], clean: bool) -> None:
        try:
            self.ledger.apply(rows, iter(()))
            self.ledger.close()
            if clean:
                leave_marker(self.directory, self._epoch)
        except (CacheError, OSError) as exc:
            log.warning("the cache in %s was not closed cleanly: %s", self.directory, exc)
            self.ledger.abort()


@asynccontextmanager
async def open_store(
    directory: Path,
    limits: CacheLimits,
    *,
    owner: str,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
) -> AsyncIterator[Store]:
    """Open the cache in `directory`, which is made if it is not there, and keep it in order while it is open.

    `owner` is who holds it, for people (the mountpoint). Raises CacheBusy when another process does, and
    CacheError when the directory can't be used.
    """
    lock = await trio.to_thread.run_sync(DirectoryLock.acquire, directory, owner)
    failure: BaseException | None = None
    try:
        token = trio.lowlevel.current_trio_token()
        store = await trio.to_thread.run_sync(lambda: _load(directory, limits, token, clock, now))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.look_after)
                try:
                    yield store
                except BaseException as exc:  # noqa: BLE001 - raised below: a nursery wraps it in a group
                    failure = exc
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await store.aclose()
        if failure is not None:
            raise failure
    finally:
        lock.release()


def _load(
    directory: Path,
    limits: CacheLimits,
    token: trio.lowlevel.TrioToken,
    clock: Callable[[], float],
    now: Callable[[], float],
) -> Store:
    """Make the store; in a thread, since a large cache takes a second."""
    image = load_image(directory)
    try:
        return Store(directory, limits, image, token, clock=clock, now=now)
    except BaseException:
        image.ledger.abort()
        raise
