"""What is evicted first: exact least-recently-used order over segments of contents.

A segment is a stretch of one content, large enough that a full cache has a bounded number of them. A touch
writes one number into an array. The order is kept in a heap of (stamp, slot) that is corrected only when
something is evicted: a heap entry is never newer than its segment's last touch, so the smallest entry that
is still right belongs to the least recently touched segment.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace

from refgenfs.core.content import BLOCK, ContentId

SEGMENTS = 65_536  # in a full cache of large contents: about 6 MB of index
LARGEST_SEGMENT = 64 << 20  # what one eviction may take at once
WHOLE = -1  # the index of a segment that is a content's whole, not cut up yet

_SLOT_BITS = 32
_SLOT_MASK = (1 << _SLOT_BITS) - 1
_PATIENCE = 2048  # stale heap entries corrected one by one before sorting everything is cheaper


def segment_size(quota: int) -> int:
    """Return the size in bytes of a segment for a cache of `quota` bytes.

    It is `BLOCK` times a power of two, at most `LARGEST_SEGMENT`, and the smallest such that `SEGMENTS` of
    them hold the quota.
    """
    size = BLOCK
    while size < LARGEST_SEGMENT and size * SEGMENTS < quota:
        size *= 2
    return size


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment to evict: the `index`-th of a content (or `WHOLE`), and the bytes that it is charged with."""

    content: ContentId
    index: int
    nbytes: int
    stamp: int = 0  # of its last touch


class SegmentIndex:
    """The bytes of every segment, when it was touched last, and what is pinned.

    Invariant: a slot with bytes, of a content that is not pinned, is in the heap, under a stamp that is not
    newer than its own.
    """

    def __init__(self) -> None:
        self.total = 0  # bytes in all segments
        self.pinned = 0  # bytes in segments of pinned contents
        self._next = 1
        self._slots: dict[ContentId, int | array[int]] = {}
        self._pins: set[ContentId] = set()
        self._contents: list[ContentId] = []  # by slot, as all that follow
        self._indexes = array("i")
        self._sizes = array("Q")
        self._stamps = array("Q")
        self._queued = bytearray()
        self._free: list[int] = []
        self._heap: list[int] = []
        self._zombies = 0  # empty slots that the heap still names

    def __len__(self) -> int:
        """Return the number of segments."""
        return len(self._contents) - len(self._free) - self._zombies

    @property
    def stamp(self) -> int:
        """The stamp that the next touch will get: everything touched so far was touched before it."""
        return self._next

    @property
    def evictable(self) -> int:
        """Bytes that are not pinned."""
        return self.total - self.pinned

    def skip(self, count: int) -> None:
        """Leave out this many stamps, for segments that are put in later on and are older than all others."""
        self._next += count

    def grow(self, content: ContentId, index: int, nbytes: int) -> None:
        """Add bytes to a segment, which is made if it is new, and touch it."""
        slot = self._find(content, index)
        if slot < 0:
            slot = self._make(content, index, self._next)
        self._resize(slot, nbytes)
        self._stamps[slot] = self._next
        self._next += 1

    def shrink(self, content: ContentId, index: int, nbytes: int) -> None:
        """Take bytes from a segment, which is forgotten when none are left."""
        slot = self._find(content, index)
        if slot < 0 or nbytes > self._sizes[slot]:
            raise ValueError(f"segment {index} of {content} has fewer than {nbytes} bytes")
        self._resize(slot, -nbytes)
        if not self._sizes[slot]:
            self._forget(slot)

    def touch(self, content: ContentId, index: int) -> None:
        """Make a segment the most recently used one; one that is not known is passed over."""
        slot = self._find(content, index)
        if slot >= 0:
            self._stamps[slot] = self._next
            self._next += 1

    def split(self, content: ContentId, sizes: Mapping[int, int], stamp: int | None = None) -> None:
        """Replace a content's segments by these (bytes by index).

        They are as old as `stamp`, or else as its most recent segment was; a new content's are touched.
        """
        if stamp is None:
            stamp = max((self._stamps[slot] for slot in self._slots_of(content)), default=self._next)
            self._next += stamp == self._next
        self.remove(content)
        for index, nbytes in sizes.items():
            if nbytes:
                self._resize(self._make(content, index, stamp), nbytes)

    def restore(self, segment: Segment) -> None:
        """Put back a segment that `evict_for` gave, as old as it was; one that `split` has made again stays."""
        if self._find(segment.content, segment.index) >= 0:
            return
        self._resize(self._make(segment.content, segment.index, segment.stamp), segment.nbytes)

    def remove(self, content: ContentId) -> int:
        """Forget all segments of a content and return their bytes."""
        freed = 0
        for slot in list(self._slots_of(content)):
            freed += self._sizes[slot]
            self._resize(slot, -self._sizes[slot])
            self._forget(slot)
        return freed

    def age(self, content: ContentId, stamp: int) -> None:
        """Have segments of a content that were put in under the stamp 0, and not touched since, as old as `stamp`."""
        for slot in self._slots_of(content):
            self._stamps[slot] = self._stamps[slot] or stamp

    def segments(self, content: ContentId) -> dict[int, int]:
        """Return the bytes of each segment of a content by index."""
        return {self._indexes[slot]: self._sizes[slot] for slot in self._slots_of(content)}

    def pin(self, content: ContentId) -> None:
        """Keep a content from eviction; it need not have segments yet."""
        if content not in self._pins:
            self._pins.add(content)
            self.pinned += sum(self._sizes[slot] for slot in self._slots_of(content))

    def unpin(self, content: ContentId) -> None:
        """Let a content be evicted again."""
        if content in self._pins:
            self._pins.discard(content)
            for slot in self._slots_of(content):
                self.pinned -= self._sizes[slot]
                self._enqueue(slot)

    def is_pinned(self, content: ContentId) -> bool:
        """Say whether a content is pinned."""
        return content in self._pins

    def evict_for(self, nbytes: int, older_than: int | None = None) -> list[Segment]:
        """Take the least recently touched segments out, until they make `nbytes`, and return them in order.

        With `older_than`, only segments touched before that stamp go. Where all that may go is less than
        `nbytes`, nothing is taken and the list is empty.
        """
        if nbytes <= 0 or nbytes > self.evictable:
            return []
        limit = self._next if older_than is None else older_than
        taken: list[int] = []
        got = 0
        while got < nbytes:
            slot = self._pop(limit)
            if slot < 0:
                for back in taken:
                    self._enqueue(back)
                return []
            taken.append(slot)
            got += self._sizes[slot]
        return [self._take(slot) for slot in taken]

    def _pop(self, limit: int) -> int:
        """Take the oldest evictable slot out of the heap if its stamp is below `limit`; else return -1."""
        heap, patience = self._heap, _PATIENCE
        while heap:
            entry = heap[0]
            slot = entry & _SLOT_MASK
            stamp = self._stamps[slot]
            if not self._sizes[slot]:
                heappop(heap)
                self._bury(slot)
            elif self._contents[slot] in self._pins:
                self._queued[slot] = 0
                heappop(heap)
            elif stamp != entry >> _SLOT_BITS:
                patience -= 1
                if patience:
                    heapreplace(heap, stamp << _SLOT_BITS | slot)
                else:
                    self._rebuild()
            elif stamp >= limit:
                return -1
            else:
                self._queued[slot] = 0
                heappop(heap)
                return slot
        return -1

    def _take(self, slot: int) -> Segment:
        segment = Segment(self._contents[slot], self._indexes[slot], self._sizes[slot], self._stamps[slot])
        self._resize(slot, -self._sizes[slot])
        self._forget(slot)
        return segment

    def _find(self, content: ContentId, index: int) -> int:
        slots = self._slots.get(content)
        if slots is None:
            return -1
        if isinstance(slots, int):
            return slots if index == WHOLE else -1
        return slots[index] if 0 <= index < len(slots) else -1

    def _slots_of(self, content: ContentId) -> Iterator[int]:
        slots = self._slots.get(content)
        if slots is None:
            return iter(())
        return iter((slots,)) if isinstance(slots, int) else (slot for slot in slots if slot >= 0)

    def _make(self, content: ContentId, index: int, stamp: int) -> int:
        if self._free:
            slot = self._free.pop()
            self._contents[slot], self._indexes[slot] = content, index
        else:
            slot = len(self._contents)
            self._contents.append(content)
            self._indexes.append(index)
            self._sizes.append(0)
            self._stamps.append(0)
            self._queued.append(0)
        self._stamps[slot] = stamp
        slots = self._slots.get(content)
        if index == WHOLE:
            if slots is not None:
                raise ValueError(f"{content} is cut into segments")
            self._slots[content] = slot
            return slot
        if slots is None:
            slots = self._slots[content] = array("i")
        assert not isinstance(slots, int), f"{content} is not cut into segments yet"
        if index >= len(slots):
            slots.extend([-1] * (index + 1 - len(slots)))
        slots[index] = slot
        return slot

    def _resize(self, slot: int, change: int) -> None:
        """Change a slot's bytes and the sums; put it in the heap when it has its first."""
        first = not self._sizes[slot]
        self._sizes[slot] += change
        self.total += change
        if self._contents[slot] in self._pins:
            self.pinned += change
        elif first:
            self._enqueue(slot)

    def _forget(self, slot: int) -> None:
        """Unlink an empty slot; it is used again once the heap has no entry of it."""
        content, index = self._contents[slot], self._indexes[slot]
        slots = self._slots[content]
        if isinstance(slots, int):
            del self._slots[content]
        else:
            slots[index] = -1
            while slots and slots[-1] < 0:
                slots.pop()
            if not slots:
                del self._slots[content]
        if not self._queued[slot]:
            self._free.append(slot)
            return
        self._zombies += 1
        if self._zombies > 1024 and self._zombies * 2 > len(self._heap):
            self._rebuild()

    def _bury(self, slot: int) -> None:
        self._zombies -= 1
        self._queued[slot] = 0
        self._free.append(slot)

    def _enqueue(self, slot: int) -> None:
        if not self._queued[slot]:
            self._queued[slot] = 1
            heappush(self._heap, self._stamps[slot] << _SLOT_BITS | slot)

    def _rebuild(self) -> None:
        """Make the heap anew from the stamps, and let go of the slots that are empty."""
        live = []
        for entry in self._heap:
            slot = entry & _SLOT_MASK
            if self._sizes[slot]:
                live.append(self._stamps[slot] << _SLOT_BITS | slot)
            else:
                self._bury(slot)
        heapify(live)
        self._heap[:] = live
