"""Contents whose block maps are in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container
from weakref import WeakValueDictionary

import trio

from refgenfs.cache.blockmap import PAGE, BlockMap
from refgenfs.cache.content import Content
from refgenfs.cache.disk import disk_use
from refgenfs.cache.entries import Entry, EntryRow
from refgenfs.cache.ledger import Ledger, LedgerDamaged
from refgenfs.cache.shelf import LARGEST, Reservation, Shelf, block_cost, file_cost
from refgenfs.cache.startup import Image, read_early, read_map, resident_of
from refgenfs.core.content import BLOCK, ContentId, Run, block_length
from refgenfs.core.errors import CacheError

KEEP_OPEN = 256  # block maps that stay in memory though nobody holds their content
EARLY = 1024  # contents that are opened before all that is resident is known; further ones wait for that
_EARLY_THREADS = 4  # of their own: others may all be waiting until it is known


class OpenContents:
    """One object a content, for as long as somebody holds it, or it has changes to write, or is recent."""

    def __init__(
        self,
        shelf: Shelf,
        ledger: Ledger,
        reserve: Callable[[int, int | None], Reservation | None],
        rewrite_pins: Callable[[], None],
    ) -> None:
        self._shelf = shelf
        self._ledger = ledger
        self._reserve = reserve
        self._rewrite_pins = rewrite_pins
        self._mending = trio.Lock()
        self._live: WeakValueDictionary[ContentId, Content] = WeakValueDictionary()
        self._recent: OrderedDict[ContentId, Content] = OrderedDict()
        self._early: dict[ContentId, Content] = {}
        self._early_threads = trio.CapacityLimiter(_EARLY_THREADS)

    @property
    def early(self) -> Container[ContentId]:
        """The contents that were opened before all that is resident is known; may be asked from any thread."""
        return self._early

    def get(self, cid: ContentId) -> Content | None:
        """Return a content that is open, or None."""
        return self._live.get(cid)

    def all(self) -> list[Content]:
        """Return the contents that are open."""
        return list(self._live.values())

    async def open(self, cid: ContentId, size: int) -> Content:
        """Return a content, its map read in a thread if need be (see `Store.content`)."""
        if size > LARGEST:
            raise CacheError(f"content {cid} has {size} bytes, which is more than the cache has maps for")
        while True:
            found = self._live.get(cid)
            if found is not None:
                return self._same_size(found, size)
            entry = self._shelf.entries.get(cid)
            if entry is not None and entry.size != size:
                self.discard(entry)
                entry.size = size
            if entry is None or not entry.resident:
                return self._install(entry or Entry(cid, size, pinned=cid in self._shelf.pinned), BlockMap(size))
            version, generation = entry.version, self._ledger.generation
            try:
                blocks = await trio.to_thread.run_sync(read_map, self._ledger, cid, size)
            except LedgerDamaged as exc:
                await self.mend(exc, generation)
                if self._ledger.generation == generation:
                    raise
                continue
            # no await until it is installed: it was neither opened nor changed since its map was read
            if cid not in self._live and self._shelf.entries.get(cid) is entry and entry.version == version:
                if self._ledger.generation != generation:
                    continue
                return self._install(entry, blocks)

    async def open_early(self, cid: ContentId, size: int) -> Content | None:
        """Return a content as its own rows say, before all that is resident is known; None: that has to be awaited.

        In the books it is as old as it was, once `adopt` knows how old that is.
        """
        shelf, ledger = self._shelf, self._ledger
        if (found := self._live.get(cid)) is not None:
            return self._same_size(found, size)
        generation, contents = ledger.generation, shelf.handles.directory
        try:
            read = await trio.to_thread.run_sync(read_early, ledger, contents, cid, size, limiter=self._early_threads)
        except CacheError:  # whoever reads all of it has it made anew
            return None
        # no await until it is installed: its rows are what was read, and its file is not taken for a stray one
        if (found := self._live.get(cid)) is not None:
            return self._same_size(found, size)
        if read is None or shelf.known or ledger.generation != generation or len(self._early) >= EARLY:
            return None
        row, blocks = read
        entry = Entry(cid, size, row.resident, row.last_used, row.pinned, row.kept)
        shelf.entries[cid] = entry
        shelf.account.files += file_cost(entry.resident)
        content = self._early[cid] = self._install(entry, blocks, 0)
        return content

    def adopt(self, image: Image) -> None:
        """Know what the directory holds; what was opened early, and may have changed since, is what it is by now."""
        shelf, table = self._shelf, image.table
        early, self._early = self._early, {}
        rows: dict[ContentId, EntryRow] = {}
        for cid, content in early.items():
            if (position := table.find(cid)) >= 0:
                rows[cid] = row = table.row(position)
                table.take(position)
                image.charged -= file_cost(row.resident)
                shelf.index.age(cid, shelf.stamp_of(table.rank(position)))
                _take_uses(content.entry, row)
        shelf.adopt(table, image.charged)
        for cid, content in early.items():
            self._merge(content, rows.get(cid), image)

    def _merge(self, content: Content, row: EntryRow | None, image: Image) -> None:
        """Have a content that was opened early in the books as any other."""
        shelf, entry = self._shelf, content.entry
        shelf.index.age(entry.cid, shelf.index.stamp)
        entry.pinned = entry.cid in shelf.pinned
        if entry.pinned:  # its file may have gone when that was not known
            shelf.entries[entry.cid] = entry
        elif entry.cid in shelf.removed:
            shelf.entries.forget(entry.cid)
            entry.kept = False
        if row is None or row.resident != entry.resident:  # also where its rows are those of a ledger made anew
            self._rewrite(content)
        if image.agreed:  # its file was left alone
            path, charged = shelf.handles.directory / entry.cid, file_cost(entry.resident)
            if disk_use(path) > charged:  # or there is nothing in its holes, of which there may be 100,000
                content.give_back_holes()
            image.excess[entry.cid] = max(0, disk_use(path) - charged)

    async def mend(self, reason: LedgerDamaged, generation: int) -> None:
        """Have a damaged ledger made anew, and all that is known here written to it."""
        async with self._mending:
            if self._ledger.generation != generation:
                return
            self._shelf.sound = False
            try:
                await trio.to_thread.run_sync(self._ledger.rebuild, reason, generation)
            except CacheError as exc:
                self._shelf.errors.note(f"{reason}; and it can't be made anew: {exc}")
                return
            self.rewrite_all()

    def maps_of(self, image: Image, cids: list[ContentId]) -> dict[ContentId, BlockMap]:
        """Read the block maps of contents anew; blocking. Raises CacheError."""
        rows = [image.table.row(position) for cid in cids if (position := image.table.find(cid)) >= 0]
        return {row.cid: read_map(self._ledger, row.cid, row.size) for row in rows if row.resident}

    def restart(self, image: Image, maps: dict[ContentId, BlockMap]) -> None:
        """Go on with a directory that could not be written before, and may have changed since.

        Contents that are open get the maps that were read for them; what else their files have is given back.
        """
        shelf, known = self._shelf, []
        shelf.handles.close()
        shelf.forget_all()
        for content in self._live.values():
            entry, position = content.entry, image.table.find(content.id)
            if position >= 0:
                found = image.table.take(position)
                image.charged -= file_cost(found.resident)
                image.excess.pop(content.id, None)
                if found.size == entry.size:
                    entry.kept = entry.kept or found.kept
                    content.map = maps.get(content.id, content.map)
                else:
                    shelf.unlink(found)
            entry.resident = resident_of(content.map, content.size)
            entry.version += 1
            entry.pinned = content.id in shelf.pinned
            if entry.resident or entry.pinned:
                known.append(content)
        shelf.adopt(image.table, image.charged)
        for content in known:
            self._enter(content)

    def _enter(self, content: Content) -> None:
        """Have an open content in the books."""
        shelf, entry = self._shelf, content.entry
        shelf.entries[content.id] = entry
        shelf.account.files += file_cost(entry.resident)
        if entry.pinned:
            shelf.index.pin(content.id)
        shelf.index.split(content.id, self._segment_sizes(content.map, content.size))
        content.give_back_holes()

    def rewrite_all(self) -> None:
        """Make everything that is known of contents, and of pins, a change that the ledger does not have."""
        self._rewrite_pins()
        for content in self._live.values():
            self._rewrite(content)
        self._shelf.unlisted.update(entry.cid for entry in self._shelf.entries.objects())

    def _rewrite(self, content: Content) -> None:
        content.map.dirty.update(range(-(-len(content.map.flags) // PAGE)))
        self._shelf.dirty[content.id] = content

    def open_now(self, entry: Entry, stamp: int | None = None) -> Content | None:
        """Read a block map without giving way, to evict a part; discard the content if that fails."""
        try:
            blocks = read_map(self._ledger, entry.cid, entry.size)
        except CacheError as exc:
            self._shelf.distrust(exc)
            self.discard(entry)
            return None
        return self._install(entry, blocks, stamp)

    def discard(self, entry: Entry) -> int:
        """Remove all of a content that is not open; return the bytes that were resident."""
        freed = entry.resident
        self._shelf.index.remove(entry.cid)
        self._shelf.charge(entry, -freed)
        self._shelf.unlink(entry)
        return freed

    def _same_size(self, found: Content, size: int) -> Content:
        if found.size != size:
            found.drop(Run(0, len(found.map.flags)))
            raise CacheError(f"content {found.id} is in use with {found.size} bytes, not {size}")
        self._use(found)
        return found

    def _install(self, entry: Entry, blocks: BlockMap, stamp: int | None = None) -> Content:
        """Make the object of a content from its map, and see that the index has its segments."""
        shelf = self._shelf
        content = Content(shelf, entry, blocks, self._reserve)
        resident = resident_of(blocks, entry.size)
        if resident != entry.resident:
            shelf.charge(entry, resident - entry.resident)
            shelf.dirty[entry.cid] = content
        sizes = self._segment_sizes(blocks, entry.size)
        if sizes != shelf.index.segments(entry.cid):
            shelf.index.split(entry.cid, sizes, stamp)
        self._live[entry.cid] = content
        self._use(content)
        return content

    def _segment_sizes(self, blocks: BlockMap, size: int) -> dict[int, int]:
        flags, width = blocks.flags, self._shelf.segment_blocks
        sizes: dict[int, int] = {}
        for run in blocks.resident_runs(0, len(flags)):
            for segment in range(run.first // width, (run.stop - 1) // width + 1):
                first, stop = max(run.first, segment * width), min(run.stop, (segment + 1) * width)
                sizes[segment] = sizes.get(segment, 0) + (stop - first) * block_cost(BLOCK)
        if flags and flags[-1]:
            last = len(flags) - 1
            sizes[last // width] -= block_cost(BLOCK) - block_cost(block_length(size, last))
        return sizes

    def _use(self, content: Content) -> None:
        self._recent[content.id] = content
        self._recent.move_to_end(content.id)
        while len(self._recent) > KEEP_OPEN:
            self._recent.popitem(last=False)
        self._shelf.handles.trim()


def _take_uses(entry: Entry, row: EntryRow) -> None:
    """Believe the row of when a content was used last, which the clock may have bounded, unless it was since."""
    if entry.last_used == entry.stored_used:
        entry.last_used = row.last_used
    entry.stored_used = row.last_used
