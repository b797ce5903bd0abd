"""Room in the cache: reserved ahead, made by evicting what was used least recently."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from refgenfs.cache.opened import OpenContents
from refgenfs.cache.shelf import Reservation, Shelf, file_cost
from refgenfs.core.content import BLOCK, ContentId, Run
from refgenfs.core.errors import CacheError
from refgenfs.core.eviction import WHOLE, Segment

FLUSH_GROWTH = 128 * 1024  # bytes of ledger that may be owed before it is written sooner
SPACE_PATIENCE = 1.0  # seconds until the disk's free space is fought for again
SHRINK_STEP = 1 << 20  # bytes evicted at a time by who can wait: of the smallest contents, some milliseconds
BOUND_STEP = 64 << 20  # bytes evicted at a time for a smaller quota: a thousand files of one block
AT_ONCE = 16 << 20  # bytes evicted for others' files before a reader has room; more than that, little by little


class Room:
    """Keeps the quota and the free space of the disk. `hurry` is called when the ledger should be written."""

    def __init__(self, shelf: Shelf, contents: OpenContents, hurry: Callable[[], None]) -> None:
        self._shelf = shelf
        self._contents = contents
        self._hurry = hurry
        self._space_retry = float("-inf")
        self._shrinking = False

    def reserve(self, nbytes: int, older_than: int | None) -> Reservation | None:
        """Make room for `nbytes` and return it (see `Store.reserve`)."""
        shelf = self._shelf
        account, free = shelf.account, shelf.free
        if shelf.errors.waiting or not shelf.known or self._shrinking:
            return None
        if not self.make(self._over(nbytes), older_than):
            return None
        room = free.room(unwritten=account.reserved)
        if -room > AT_ONCE:  # others have filled the disk: nobody waits for all that has to go
            self._hurry()
            return None
        if room < nbytes and not self._make_free(nbytes, nbytes - room, older_than):
            return None
        account.reserved += nbytes
        free.take(nbytes)
        if account.growth > FLUSH_GROWTH:
            self._hurry()
        return Reservation(shelf, nbytes)

    @property
    def total(self) -> int:
        """Bytes that are unused, or that could be evicted."""
        return max(0, self._shelf.account.quota - self._shelf.account.used) + self._shelf.index.evictable

    def fits(self, sizes: Mapping[ContentId, int]) -> bool:
        """Say whether contents of these sizes, in bytes, could be resident all at once, whatever else has to go."""
        entries, index = self._shelf.entries, self._shelf.index
        held = sum(file_cost(entries.resident(cid)) for cid in sizes if index.is_pinned(cid))
        coming = self._shelf.account.reserved  # what is promised can be evicted once it has come
        return sum(map(file_cost, sizes.values())) <= self.total + held + coming

    def admit(self, nbytes: int) -> None:
        """Make room for a value in the ledger; raises CacheError when there is none."""
        account = self._shelf.account
        if not self.make(self._short(nbytes)):
            raise CacheError(
                f"the cache in {self._shelf.directory} has no room for {nbytes} bytes of its ledger; "
                "raise cache.size, or unpin what is not needed"
            )
        account.growth += nbytes

    async def keep_free(self) -> None:
        """Evict when others have filled the disk, a little at a time: reads are answered meanwhile."""
        shelf = self._shelf
        shortage = -shelf.free.room(unwritten=shelf.account.reserved)
        if shortage <= 0 or shelf.clock() < self._space_retry:
            return
        while shortage > 0 and self.make(min(shortage, SHRINK_STEP)):
            shortage -= SHRINK_STEP
            await trio.lowlevel.checkpoint()
        self._is_free(0)

    async def shrink(self) -> None:
        """Evict what an earlier life has left above the quota, a little at a time: reads are answered meanwhile.

        No room is reserved before it is done, or finds that the rest is pinned.
        """
        self._shrinking = True  # also after a cancel: closing the cache evicts no more, and the next life goes on
        while (short := self._over(0)) > 0 and self.make(min(short, SHRINK_STEP)):
            await trio.lowlevel.checkpoint()
        self._shrinking = False

    async def bound(self, quota: int) -> None:
        """Keep to another quota from now on; to a smaller one a step at a time: reads are answered meanwhile."""
        account = self._shelf.account
        while account.quota > quota:
            step = max(quota, min(account.quota, account.used) - BOUND_STEP)
            if not self.make(account.used - step):
                step = quota
            account.quota = step
            await trio.lowlevel.checkpoint()
        account.quota = quota

    def hold_quota(self) -> None:
        """Evict what is above the quota; the ledger, which was measured, may be larger than was thought."""
        self.make(self._short(0))

    def _short(self, nbytes: int) -> int:
        """Return how much is to be evicted for `nbytes`: while the cache shrinks, no more than takes their place."""
        return min(self._over(nbytes), nbytes) if self._shrinking else self._over(nbytes)

    def _over(self, nbytes: int) -> int:
        return self._shelf.account.used + nbytes - self._shelf.account.quota

    def make(self, short: int, older_than: int | None = None) -> bool:
        """Evict until `short` bytes are freed; return False if they can't be: before all is known, nothing is."""
        account = self._shelf.account
        if not self._shelf.known:
            return short <= 0
        while short > 0:
            before = account.files + account.excess
            self._shelf.make_evictable(short)
            segments = self._shelf.index.evict_for(short, older_than)
            if not segments:
                return False
            cut = [self._evict(segment) for segment in segments]
            freed = before - account.files - account.excess
            self._shelf.free.give(freed)
            short -= freed
            if freed <= 0 and not any(cut):
                return False
        return True

    def _make_free(self, nbytes: int, shortage: int, older_than: int | None) -> bool:
        shelf = self._shelf
        if shelf.clock() < self._space_retry:
            return False
        self.make(shortage, older_than)
        return self._is_free(nbytes)

    def _is_free(self, nbytes: int) -> bool:
        """Measure whether so much is free now; else fight for it no more for a while."""
        shelf = self._shelf
        if shelf.free.room(unwritten=shelf.account.reserved, fresh=True) >= nbytes:
            return True
        # a file system may count what was freed only after a while: don't evict for it again at once
        self._space_retry = shelf.clock() + SPACE_PATIENCE
        return False

    def _evict(self, segment: Segment) -> bool:
        """Evict a segment that the index gave up; or cut up a large content and return True."""
        shelf = self._shelf
        entry = shelf.entries.get(segment.content)
        if entry is None:
            return False
        if segment.index == WHOLE and shelf.punch and entry.resident > 2 * shelf.segment_blocks * BLOCK:
            return self._contents.open_now(entry, segment.stamp) is not None
        shelf.evictions += 1
        if segment.index == WHOLE:
            self._contents.discard(entry)
            return False
        shelf.index.restore(segment)  # its blocks are taken out of it one by one
        content = self._contents.get(segment.content) or self._contents.open_now(entry)
        if content is not None:
            first = segment.index * shelf.segment_blocks
            content.evict(Run(first, min(first + shelf.segment_blocks, len(content.map.flags))))
        return False
