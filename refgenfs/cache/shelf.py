"""What the store and its contents share: the index, the account of bytes, the files, the unwritten changes.

Everything here belongs to the trio thread, except where a method says so.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from refgenfs.cache.blockmap import PAGE
from refgenfs.cache.disk import FreeSpace, Handles
from refgenfs.cache.entries import Entries, Entry, Table
from refgenfs.cache.ledger import WAL_BOUND, JSONValue
from refgenfs.core.content import BLOCK, ContentId, Run, block_length
from refgenfs.core.errors import CacheError
from refgenfs.core.eviction import WHOLE, Segment, SegmentIndex, segment_size

if TYPE_CHECKING:
    from refgenfs.cache.content import Content

CONTENT_OVERHEAD = 8 * 1024  # a file's extent tree, its directory entry and its rows in the ledger
BLOCK_OVERHEAD = 64  # an extent in a half-full leaf, with what the ledger has of it
FIXED_OVERHEAD = 64 * 1024  # the directories, lock, tag and marker
LEDGER_SLACK = 128 * 1024  # rows that nobody announced: summaries, pins, notes
_PAGE_GROWTH = 4 * 1024  # a page of a block map that is written for the first time, and
_BLOCK_GROWTH = 24  # each block in it: in the ledger, and twice in its journal
NOTED = 1024  # notes that are remembered: a content that went is forgotten in the ledger within seconds
LARGEST = 1 << 40  # bytes of a content: its block map takes 80 MiB. What says it is larger is not cached.
RETRY_AFTER = 10.0  # seconds that a disk which refused is left alone
_OLDER = 1 << 26  # stamps that are left for what was resident when the cache was opened: it is older than any touch

log = logging.getLogger(__name__)


def block_cost(length: int) -> int:
    """Return what a block of `length` bytes is charged with."""
    return -(-length // 4096) * 4096 + BLOCK_OVERHEAD


def file_cost(resident: int) -> int:
    """Return what a content with this many resident bytes is charged with."""
    if not resident:
        return 0
    return -(-resident // 4096) * 4096 + -(-resident // BLOCK) * BLOCK_OVERHEAD + CONTENT_OVERHEAD


class Account:
    """Bytes by what they are spent on; their sum is never below what the directory takes on disk."""

    def __init__(self, quota: int) -> None:
        self.quota = quota
        self.files = 0
        self.excess = 0  # measured use of files above what they are charged with
        self.reserved = 0
        self.ledger = 0
        self.log = 0
        self.journal = 0
        self.growth = 0  # what the ledger may have grown by since it was measured
        self.directory = 0

    @property
    def used(self) -> int:
        """Return the bytes that the cache takes, or has promised to be able to take."""
        ledger = self.ledger + max(self.log, WAL_BOUND) + self.journal + self.growth + LEDGER_SLACK
        return self.files + self.excess + self.reserved + ledger + self.directory + FIXED_OVERHEAD


class DiskErrors:
    """What the disk refused. Any thread may note an error."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.count = 0
        self.last = ""
        self.recent: deque[tuple[float, str]] = deque(maxlen=20)  # Unix seconds, message
        self.uncached = False
        self.barred = False  # the disk is not to be written at all, until that is lifted
        self._clock = clock
        self._until = float("-inf")

    @property
    def waiting(self) -> bool:
        """Say whether the disk is left alone for now."""
        return self.uncached and (self.barred or self._clock() < self._until)

    def note(self, message: str) -> None:
        """Count an error, and leave the disk alone for a while."""
        if not self.uncached:
            log.warning("%s; reads go on without the cache", message)
        self.count += 1
        self.last = message
        self.recent.append((time.time(), message))
        self._until = self._clock() + RETRY_AFTER
        self.uncached = True

    def clear(self) -> None:
        """Note that the disk takes writes again."""
        if self.uncached and not self.barred:
            log.info("the cache directory takes writes again")
            self.uncached = False


class Shelf:
    """The state of an open store."""

    def __init__(
        self,
        directory: Path,
        quota: int,
        min_free: Callable[[int], int],
        *,
        punch: bool,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self.directory = directory
        self.punch = punch
        self.clock = clock
        self.now = now
        self.index = SegmentIndex()
        self.segment_blocks = segment_size(quota) // BLOCK
        self.account = Account(quota)
        self.handles = Handles(directory / "contents")
        self.free = FreeSpace(directory, min_free, clock)
        self.errors = DiskErrors(clock)
        self.entries = Entries(self._index_again)
        self.known = False  # whether all that is resident is in the books; until then nothing is stored or evicted
        self._first_stamp = self.index.stamp  # of what was resident when the cache was opened
        self.index.skip(_OLDER)
        self.dirty: dict[ContentId, Content] = {}  # block maps that the ledger does not have
        self.unsettled: dict[ContentId, Content] = {}  # written to, perhaps not committed
        self.removed: dict[ContentId, int] = {}  # sizes of contents whose rows are to be forgotten
        self.unlisted: set[ContentId] = set()  # contents whose summaries the ledger may not have
        self.pinned: set[ContentId] = set()
        self.pin_rows: dict[str, JSONValue] = {}  # of the ledger, which does not have them yet
        self.noted: dict[ContentId, JSONValue] = {}  # notes of contents that the ledger may be about to forget
        self.excess: dict[ContentId, int] = {}
        self.evictions = 0
        self.sound = True  # False: the ledger must be looked through when it is opened next

    def note_row(self, cid: ContentId, note: JSONValue) -> None:
        """Remember a note that is about to be written: its content may have gone a moment ago. For any thread."""
        if len(self.noted) >= NOTED:
            self.noted = {}
        self.noted[cid] = note

    def distrust(self, reason: CacheError) -> None:
        """Note that the ledger can't be believed."""
        self.sound = False
        self.errors.note(str(reason))

    def charge(self, entry: Entry, change: int) -> None:
        """Change the resident bytes of a content, and what it is charged with."""
        before = file_cost(entry.resident)
        entry.resident += change
        entry.version += 1
        self.account.files += file_cost(entry.resident) - before

    def grows(self, new_page: bool) -> int:
        """Count what one more block in a block map may add to the ledger, and return it."""
        growth = _BLOCK_GROWTH + (_PAGE_GROWTH if new_page else 0)
        self.account.growth += growth
        return growth

    def set_excess(self, cid: ContentId, nbytes: int) -> None:
        """Note how much more a file takes than it is charged with."""
        self.account.excess += nbytes - self.excess.pop(cid, 0)
        if nbytes:
            self.excess[cid] = nbytes

    def forget_all(self) -> None:
        """Know of no content, as when the directory has not been read yet."""
        stamp = self.index.stamp
        self.index = SegmentIndex()
        self.index.skip(stamp)
        self.account.files = self.account.excess = 0
        self.entries = Entries(self._index_again)
        self.dirty, self.removed, self.unlisted, self.excess = {}, {}, set(), {}

    def adopt(self, table: Table, charged: int) -> None:
        """Know what the directory holds, older than anything that was touched; `charged` bytes in all."""
        if self.known or len(table) > _OLDER:
            self._first_stamp = self.index.stamp
            self.index.skip(len(table))
        self.known = True
        self.account.files += charged
        self.entries.adopt(table)

    def stamp_of(self, rank: int) -> int:
        """Return how old a row of the table is whose last use had this rank."""
        return self._first_stamp + rank

    def make_evictable(self, nbytes: int) -> None:
        """See that the index knows the least recently used contents, this many bytes of them."""
        self.entries.take_up_oldest(file_cost, nbytes)

    def _index_again(self, entry: Entry, rank: int) -> None:
        """Put a content into the index, as old as it is."""
        if entry.pinned or entry.kept:
            self.index.pin(entry.cid)
        if entry.resident:
            self.index.restore(Segment(entry.cid, WHOLE, file_cost(entry.resident), self.stamp_of(rank)))

    def unlink(self, entry: Entry, busy: Callable[[], bool] = bool) -> bool:
        """Remove a content with nothing resident: its file, and its rows at the next flush."""
        try:
            if not self.handles.unlink(entry.cid, busy):
                return False
        except OSError as exc:
            self.errors.note(f"the content file {entry.cid} can't be removed: {exc.strerror}")
            return False
        self.set_excess(entry.cid, 0)
        self.removed[entry.cid] = entry.size
        if not entry.pinned:
            self.entries.forget(entry.cid)
        return True


class Reservation:
    """Room in the cache that was made before bytes are fetched. It counts as used until it is released."""

    __slots__ = ("_covered", "_shelf", "left")

    def __init__(self, shelf: Shelf, nbytes: int) -> None:
        self._shelf = shelf
        self._covered: list[tuple[Content, Run]] = []
        self.left = nbytes

    def cover(self, content: Content, run: Run) -> None:
        """Name blocks that this is for: what of them is written but not committed goes at the release."""
        self._covered.append((content, run))

    def spend(self, nbytes: int) -> None:
        """Turn room into use, as far as there is any left."""
        nbytes = min(nbytes, self.left)
        self.left -= nbytes
        self._shelf.account.reserved -= nbytes

    def release(self) -> None:
        """Give back what was not spent, and covered blocks that were never committed; idempotent."""
        covered, self._covered = self._covered, []
        for content, run in covered:
            content.abandon(run)
        self._shelf.free.give(self.left)
        self.spend(self.left)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class BlockDamaged(CacheError):
    """A block on the disk was not what its checksum says; it has been dropped, and can be fetched again."""

    def __init__(self, content: ContentId, index: int, reason: str) -> None:
        super().__init__(f"block {index} of content {content} is damaged in the cache ({reason}); it was dropped")
        self.content = content
        self.index = index


def cost_of(size: int, run: Run) -> int:
    """Return the most that the blocks of a run can be charged with, all overheads included."""
    if run.stop <= run.first:
        return 0
    last = block_cost(block_length(size, run.stop - 1))
    pages = (run.stop - 1) // PAGE - run.first // PAGE + 1
    growth = pages * _PAGE_GROWTH + len(run) * _BLOCK_GROWTH
    return (len(run) - 1) * block_cost(BLOCK) + last + CONTENT_OVERHEAD + growth
