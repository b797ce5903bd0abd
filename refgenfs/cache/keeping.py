"""Contents that the daemon keeps for itself: small ones that save many fetches, such as indexes of archives.

They are not evicted while together they take no more than a share of the quota, which is larger in a small cache:
there one index of a middling archive is worth more than anything else. Beyond that, those used longest ago lose the
privilege, and are evicted in their turn as anything else.
"""

from __future__ import annotations

from refgenfs.cache.entries import Entry
from refgenfs.cache.shelf import Shelf, file_cost
from refgenfs.core.content import ContentId

SHARE = 32  # one part in so many of the quota; or, up to
SMALL = 16 << 20  # bytes,
SMALL_SHARE = 8  # one part in so many


def bound_of(quota: int) -> int:
    """Return how many bytes may be kept from eviction in a cache of `quota` bytes."""
    return max(quota // SHARE, min(quota // SMALL_SHARE, SMALL))


class Keeping:
    """Which contents are kept. Belongs to the trio thread."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._kept: dict[ContentId, Entry] = {}

    def adopt(self) -> None:
        """Take over what an earlier life has kept, as the shelf knows it now."""
        self._kept = {entry.cid: entry for entry in self._shelf.entries.objects() if entry.kept}
        for cid in self._kept:
            self._shelf.index.pin(cid)

    def keep(self, entry: Entry) -> None:
        """Keep a content from eviction, as far as the bound allows."""
        if self._kept.get(entry.cid) is not entry:
            entry.kept = True
            self._kept[entry.cid] = entry
            self._shelf.index.pin(entry.cid)
        self.trim()

    def release(self, cid: ContentId) -> Entry | None:
        """Let a content be evicted as any other; return it if it was kept."""
        entry = self._kept.pop(cid, None)
        if entry is not None:
            entry.kept = False
            if not entry.pinned:
                self._shelf.index.unpin(cid)
        return entry

    def trim(self) -> None:
        """Release what was used longest ago, until the rest is within the bound."""
        taken = sum(file_cost(entry.resident) for entry in self._kept.values())
        bound = bound_of(self._shelf.account.quota)
        for entry in sorted(self._kept.values(), key=lambda entry: entry.last_used):
            if taken <= bound:
                return
            taken -= file_cost(entry.resident)
            self.release(entry.cid)
            self._shelf.unlisted.add(entry.cid)
