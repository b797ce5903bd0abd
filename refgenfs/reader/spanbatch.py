"""What is wanted of an archive by spans: batches of blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from refgenfs.cache.content import Content
from refgenfs.cache.shelf import Reservation
from refgenfs.core.content import ContentId
from refgenfs.core.spanplan import Place
from refgenfs.reader.archive import Archive, KnownIndex

Wanted = tuple[str, int]  # a member's name, a block of it


@dataclass(slots=True, eq=False)
class Slot:
    """A block to be: where it is in the tar, where it goes, and what has come of it."""

    place: Place
    cid: ContentId
    content: Content | None = None
    reservation: Reservation | None = None
    flies: bool = False  # all of it is on its way, and it has a flight
    done: set[int] = field(default_factory=set)  # spans that gave their part of it
    edges: dict[int, tuple[int, int]] = field(default_factory=dict)  # which part that is, by span
    _data: bytearray | None = None

    def begin(self) -> None:
        """Make room in memory for its parts."""
        if self._data is None:
            self._data = bytearray(self.place.stop - self.place.start)

    def fill(self, at: int, data: memoryview) -> None:
        """Take bytes of the tar from offset `at` on, after `begin`. For any thread: parts do not overlap."""
        assert self._data is not None
        begin = at - self.place.start
        self._data[begin : begin + len(data)] = data

    def merge(self, other: Slot) -> None:
        """Take what another slot has of the same block."""
        for span in other.done - self.done:
            start, stop = other.edges[span]
            self.begin()
            self.fill(start, other.data[start - self.place.start : stop - self.place.start])
            self.edges[span] = start, stop
        self.done |= other.done

    def give_up(self) -> None:
        """Give up bringing it, and the room for it; idempotent."""
        self.flies, self.content = False, None
        self.give_room_back()

    def give_room_back(self) -> None:
        """Give back the room for it: it goes to who waits for it, and not into the cache; idempotent."""
        if self.reservation is not None:
            self.reservation.release()
            self.reservation = None

    @property
    def data(self) -> memoryview:
        """The block, once it is whole."""
        assert self._data is not None
        return memoryview(self._data)


class SpanBatch:
    """What is wanted of an archive at one moment; the carrier of the flights of its blocks."""

    def __init__(
        self,
        archive: Archive,
        born: int,
        keep_spare: Callable[[SpanBatch, Slot, memoryview], None],
        came: Callable[[int], None],
        *,
        modest: bool = False,
    ) -> None:
        self.archive = archive
        self.came = came  # told how many bytes came in, on any thread
        self.keep_spare = keep_spare  # told of blocks that could not be stored
        self.spare = 0  # how many those will be
        self.born = born  # the store's stamp: what is older may go for what merely comes along
        self.generation = archive.generation
        self.known = archive.index  # where its spans are, and
        self.numbering = b""  # the identity of that index: what numbers its slots have parts of
        self.modest = modest  # nobody wants it yet: all of it makes room only of what is older
        self.lacked = 0  # bytes of memory that there were not for a run; with them, it is worth another batch
        self.ended = trio.Event()
        self._moved = 0
        self.asked: set[Wanted] = set()
        self.beyond: set[Wanted] = set()
        self.slots: dict[Wanted, Slot] = {}  # what its spans have of blocks that are missing

    def use(self, known: KnownIndex | None, numbering: bytes) -> None:
        """Go by this index from now on: what came of blocks by the spans of another one does not count."""
        self.known = known
        if numbering != self.numbering:
            self.numbering = numbering
            for slot in self.slots.values():
                slot.done.clear()
                slot.edges.clear()

    @property
    def progress(self) -> int:
        """Change with the bytes that come in, of the index that is needed for it too."""
        return self._moved + self.archive.index_progress

    def moved(self, nbytes: int) -> None:
        """Note that bytes came in. For any thread."""
        self.beat()
        self.came(nbytes)

    def beat(self) -> None:
        """Give a sign of life. For any thread."""
        self._moved += 1
