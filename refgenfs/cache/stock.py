"""What a cache directory holds, put into the books at the start, and again when a disk that refused takes writes."""

from __future__ import annotations

import logging

import trio

from refgenfs.cache.entries import Table
from refgenfs.cache.keeping import Keeping
from refgenfs.cache.lock import DirectoryLock
from refgenfs.cache.opened import OpenContents
from refgenfs.cache.pins import Pins
from refgenfs.cache.room import Room
from refgenfs.cache.shelf import RETRY_AFTER, Shelf
from refgenfs.cache.startup import Image, Opened, open_for_writing, read_image
from refgenfs.cache.writeback import Writeback
from refgenfs.core.errors import CacheError

log = logging.getLogger(__name__)


class Stock:
    """Brings the shelf, what is kept and what is pinned into agreement with the directory. For the trio thread.

    `opened` is the directory as it was opened last.
    """

    def __init__(
        self,
        opened: Opened,
        lock: DirectoryLock,
        shelf: Shelf,
        contents: OpenContents,
        keeping: Keeping,
        pins: Pins,
        room: Room,
        writeback: Writeback,
    ) -> None:
        self.opened = opened
        self._lock = lock
        self._shelf = shelf
        self._contents = contents
        self._keeping = keeping
        self._pins = pins
        self._room = room
        self._writeback = writeback
        self._directory = opened.directory
        self._ledger = opened.ledger
        self._retry_at = shelf.clock() + RETRY_AFTER
        if opened.refused:
            shelf.errors.note(opened.refused)
            shelf.errors.barred = True

    @property
    def is_due(self) -> bool:
        """Whether the disk has refused, and is to be tried again."""
        return bool(self.opened.refused) and self._shelf.clock() >= self._retry_at

    async def take(self) -> None:
        """Read what is resident. A cache that can't be read is empty, and nothing is stored in it."""
        try:
            # A thread of its own: all others may be waiting for this one.
            image = await trio.to_thread.run_sync(
                read_image, self.opened, self._shelf.now(), self._contents.early, limiter=trio.CapacityLimiter(1)
            )
        except Exception as exc:
            if not isinstance(exc, CacheError | OSError):
                log.exception("the cache in %s could not be read", self._directory)
            self._shelf.sound = False
            self._shelf.errors.note(f"what the cache in {self._directory} holds can't be read: {exc}")
            self._shelf.errors.barred = True
            self.opened.refused = str(exc)
            image = Image(Table())
        self._pins.read(image.pins)
        self._contents.adopt(image)
        self._keeping.adopt()
        self._pins.adopt()
        await self._reckon(image)

    async def _reckon(self, image: Image) -> None:
        """Know what the directory takes, and have it within the quota. No await before the cache shrinks."""
        for cid, nbytes in image.excess.items():
            self._shelf.set_excess(cid, nbytes)
        self._writeback.measure()
        if not self._shelf.errors.barred:
            await self._room.shrink()

    async def take_again(self) -> None:
        """Try whether a disk that could not be written when the cache was opened can be now."""
        self._retry_at = self._shelf.clock() + RETRY_AFTER
        try:
            await trio.to_thread.run_sync(self._lock.retake)
            opened = await trio.to_thread.run_sync(open_for_writing, self._directory, self._ledger)
            image = await trio.to_thread.run_sync(read_image, opened, self._shelf.now())
            live = [content.id for content in self._contents.all()]
            maps = await trio.to_thread.run_sync(self._contents.maps_of, image, live)
        except (CacheError, OSError) as exc:
            log.debug("the cache in %s still can't be used: %s", self._directory, exc)
            return
        self.opened = opened
        self._shelf.punch = opened.punch
        self._pins.read(image.pins)
        image.table.set_pinned(self._shelf.pinned)
        self._contents.restart(image, maps)
        self._keeping.adopt()
        self._pins.adopt()
        self._contents.rewrite_all()
        self._shelf.errors.barred = False
        self._shelf.errors.clear()
        await self._reckon(image)
