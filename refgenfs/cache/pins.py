"""Pins: contents that people keep from eviction."""

from __future__ import annotations

from refgenfs.cache.opened import OpenContents
from refgenfs.cache.room import Room
from refgenfs.cache.shelf import Shelf
from refgenfs.core.content import ContentId
from refgenfs.core.errors import CacheError

PIN_GROWTH = 12 * 1024  # bytes that the ledger may grow by for a pin


class Pins:
    """Which contents are pinned; on the shelf at once, in the ledger with the next flush."""

    def __init__(self, shelf: Shelf, contents: OpenContents, room: Room) -> None:
        self._shelf = shelf
        self._contents = contents
        self._room = room

    def has(self, cid: ContentId) -> bool:
        """Say whether a content is pinned."""
        entry = self._shelf.entries.get(cid)
        return entry is not None and entry.pinned

    @property
    def resident(self) -> int:
        """Resident bytes of what is pinned."""
        return sum(entry.resident for entry in self._shelf.entries.objects() if entry.pinned)

    def set(self, cid: ContentId, pinned: bool) -> None:
        """Pin a content, or unpin it. Raises CacheError if it is not known, or that can't be written down."""
        shelf = self._shelf
        live = self._contents.get(cid)
        entry = shelf.entries.get(cid) or (live.entry if live is not None else None)
        if entry is None:
            raise CacheError(f"content {cid} is not in the cache")
        entry.pinned = pinned
        shelf.entries[cid] = entry
        (shelf.index.pin if pinned or entry.kept else shelf.index.unpin)(cid)
        if pinned:
            try:
                self._room.admit(PIN_GROWTH)
            except CacheError:
                entry.pinned = False  # no room to write it down: then it is not so
                if not entry.kept:
                    shelf.index.unpin(cid)
                raise
        shelf.unlisted.add(cid)
        if not pinned and not entry.resident:
            shelf.entries.forget(cid)
            shelf.removed[cid] = entry.size
