"""Blocks that came by spans and are kept in memory for a while: those without room in the cache, and parts of others.

Lives on the trio thread.
"""

from __future__ import annotations

from collections import OrderedDict

from refgenfs.core.content import ContentId
from refgenfs.reader.flights import Arrival
from refgenfs.reader.spanbatch import Slot, SpanBatch

# Blocks kept in memory when their flights have ended: those that there is no room for in the cache, for who reads on
# in order, and half as many of which only a part has come.
KEPT = 12 * 1024 * 1024  # bytes at the most, or
KEPT_SHARE = 3, 16  # of all memory that the configuration has for what is on its way


def kept_memory(memory: int) -> int:
    """Return how many of `memory` bytes are for blocks that are kept in memory when their flights have ended."""
    return min(KEPT, memory * KEPT_SHARE[0] // KEPT_SHARE[1])


class Spare:
    """Whole blocks that could not be stored, for who reads on in order; at most `most` of them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._blocks: OrderedDict[tuple[ContentId, int], Arrival] = OrderedDict()

    def keep(self, batch: SpanBatch, slot: Slot, data: memoryview) -> None:
        """Keep a block that a batch brought; the oldest goes for it."""
        arrival = self._blocks[slot.cid, slot.place.index] = Arrival(batch)
        arrival.hold()  # by this table itself
        arrival.land(memoryview(bytes(data)))  # a copy: the view would keep a whole inflated piece
        self._trim()

    def resize(self, most: int) -> None:
        """Keep so many blocks at most from now on."""
        self.most = most
        self._trim()

    def _trim(self) -> None:
        while len(self._blocks) > self.most:
            self._blocks.popitem(last=False)[1].release()

    def find(self, content: ContentId, index: int) -> Arrival | None:
        """Return a block, but not of an archive that was taken back since: that is nobody's any more."""
        arrival = self._blocks.get((content, index))
        batch = arrival.carrier if arrival is not None else None
        return arrival if isinstance(batch, SpanBatch) and batch.generation == batch.archive.generation else None


class Seams:
    """Blocks of which a part has come, by the index that says which part; at most `most` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._slots: OrderedDict[tuple[bytes, ContentId, int], Slot] = OrderedDict()

    def __len__(self) -> int:
        return len(self._slots)

    def put(self, batch: SpanBatch, slot: Slot) -> None:
        """Keep what a batch has of a block, with what has come of it before. It flies no more, and has no room."""
        slot.give_up()
        if slot.done and batch.generation == batch.archive.generation:
            other = self.take(batch.numbering, slot.cid, slot.place.index)
            if other is not None:
                slot.merge(other)
            self._slots[batch.numbering, slot.cid, slot.place.index] = slot
            self._trim()

    def resize(self, most: int) -> None:
        """Keep so many blocks at most from now on."""
        self._most = most
        self._trim()

    def _trim(self) -> None:
        while len(self._slots) > self._most:
            self._slots.popitem(last=False)

    def get(self, numbering: bytes, content: ContentId, index: int) -> Slot | None:
        """Return what has come of a block by the spans of an index."""
        return self._slots.get((numbering, content, index))

    def take(self, numbering: bytes, content: ContentId, index: int) -> Slot | None:
        """Return what has come of a block, for who brings the rest; it is kept here no more."""
        return self._slots.pop((numbering, content, index), None)
