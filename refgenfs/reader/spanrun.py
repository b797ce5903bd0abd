"""One request for neighbouring spans of an archive: fetched, checked, inflated, and cut into blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import trio

from refgenfs.cache.content import checksum
from refgenfs.cache.store import Store
from refgenfs.core.content import BLOCK, ByteRange
from refgenfs.core.errors import CacheError, IntegrityError, RefgenfsError, StaleContent
from refgenfs.core.seekindex import WINDOW
from refgenfs.core.spanplan import MemberMap, packed_size
from refgenfs.fetch.answers import RangesIgnored
from refgenfs.fetch.http import Http
from refgenfs.fetch.parts import Part
from refgenfs.fetch.spans import inflate_span
from refgenfs.reader.archive import NO_VALIDATOR
from refgenfs.reader.budget import Claim
from refgenfs.reader.flights import FlightBoard
from refgenfs.reader.indexes import Indexes
from refgenfs.reader.indexfiles import IndexLost, reading_memory
from refgenfs.reader.spanbatch import Slot, SpanBatch
from refgenfs.reader.trust import drop_all

# What a run has in memory besides its packed bytes: a piece that was inflated, one at the disk, the inflater.
UNPACKED = 3 << 20


class SpansUseless(RefgenfsError):
    """This archive can't be read by spans, now or at all; a stream may still bring it."""


@dataclass(frozen=True, slots=True)
class _Landed:
    """Whole blocks, neighbours of one content, and their CRCs if they were stored."""

    slots: tuple[Slot, ...]
    data: tuple[memoryview, ...]
    crcs: tuple[int, ...] | None


class SpanRun:
    """Neighbouring spans on their way. `fly` is awaited on the trio thread; what costs time is done on a worker's."""

    def __init__(
        self,
        http: Http,
        board: FlightBoard,
        indexes: Indexes,
        store: Store,
        batch: SpanBatch,
        found: MemberMap,
        spans: range,
    ) -> None:
        self.spans = spans
        self.urgent = False  # somebody waits for it
        self.claim: Claim | None = None  # of its memory
        self._http = http
        self._board = board
        self._indexes = indexes
        self._store = store
        self.batch = batch
        self.found = found
        self.ended = trio.Event()
        self._rows = [found.index.span(number) for number in spans]
        windows = self._rows[-1].window_stop - self._rows[0].window_start
        # bytes of memory; those of the requests for windows too
        self.cost = packed_size(found.index, spans) + reading_memory(windows) + len(spans) * WINDOW + UNPACKED
        self._slots: list[Slot] = []  # in the order of the tar
        self._first = 0  # of those that may still get bytes
        self._came: dict[Slot, int] = {}  # bytes, of blocks that are not whole yet

    def has_room(self) -> bool:
        """Say whether anything of it can be stored."""
        return any(slot.reservation is not None for slot in self.overlapping())

    def overlapping(self) -> list[Slot]:
        """Return the slots of blocks of which these spans have at least a part."""
        low, high = self._rows[0].out_start, self._rows[-1].out_stop
        slots = self.batch.slots.values()
        return [slot for slot in slots if slot.place.start < high and slot.place.stop > low]

    def edges(self) -> list[Slot]:
        """Return the slots of blocks of which these spans have a part only."""
        low, high = self._rows[0].out_start, self._rows[-1].out_stop
        return [
            slot
            for slot in self.batch.slots.values()
            if slot.place.start < low < slot.place.stop or slot.place.start < high < slot.place.stop
        ]

    async def fly(self) -> None:
        """Bring the blocks. Raises SpansUseless when a stream should, and what the origin answers."""
        windows: list[bytes] = []
        lost: list[RefgenfsError] = []
        failed: RefgenfsError | None = None

        async def read_windows() -> None:
            known = self.batch.known
            assert known is not None, "a run is planned by an index"
            try:
                windows.extend(await self._indexes.windows(self.batch.archive, known, self._rows))
            except RefgenfsError as exc:
                lost.append(exc)

        part: Part | None = None
        async with trio.open_nursery() as nursery:  # both at once: where the origin offers the index, a round trip
            nursery.start_soon(read_windows)
            try:
                part = await self._fetch()
            except RefgenfsError as exc:
                failed = exc  # this first: a stream would fail alike, while an index that can't be had costs one
        if part is None or lost:
            raise await self._explained(failed or lost[0])
        try:
            await self._bring(windows, part)
        except IntegrityError:  # once more: bytes may have been hurt on their way
            try:
                await self._bring(windows, await self._fetch())
            except IntegrityError as exc:
                raise await self._refused(exc) from exc

    async def _explained(self, exc: RefgenfsError) -> RefgenfsError:
        """Return what to raise for what went wrong before anything was inflated."""
        if isinstance(exc, IndexLost | IntegrityError | CacheError):
            if self.batch.archive.index is self.batch.known:  # not one that was made meanwhile
                await self._indexes.forget(self.batch.archive, exc)
            return SpansUseless(str(exc))
        return exc

    async def _bring(self, windows: list[bytes], part: Part) -> None:
        low, high = self._rows[0].out_start, self._rows[-1].out_stop
        self._slots = sorted(self.overlapping(), key=lambda slot: slot.place.start)
        for slot in self._slots:
            if slot.place.start < low or slot.place.stop > high:
                slot.begin()  # here: another run's thread has a part of it too
        self._first, self._came = 0, {}
        await trio.to_thread.run_sync(self._inflate, windows, part.data)
        await self._join_seams()

    async def _fetch(self) -> Part:
        archive, index = self.batch.archive, self.found.index
        judged = archive.table.judged
        # Of an archive that was judged, the digest of a span says whether it is the right one. As long as it was not,
        # what came before is tied to a validator.
        validator = "" if judged else archive.table.validator
        start, stop = self._rows[0].packed_start, self._rows[-1].packed_stop
        if not archive.ranges or validator == NO_VALIDATOR:
            raise SpansUseless(f"{archive.ref.key}: the origin can't be read in parts")
        try:
            part = await self._http.fetch_part(
                ByteRange(archive.ref.urls, validator),
                start,
                stop,
                index.archive_size,
                account=archive.ref.source,
                moved=self.batch.moved,
            )
        except (RangesIgnored, IntegrityError) as exc:
            archive.ranges = False
            raise SpansUseless(f"{archive.ref.key}: the origin can't be read in parts: {exc}") from exc
        except StaleContent as exc:
            raise await self._refused(exc) from exc
        if not judged and not await self._tie(part.validator):
            for slot in self.overlapping():
                slot.give_room_back()
        return part

    async def _tie(self, validator: str) -> bool:
        """Note which object what was not judged is of; False if that can't be written down: then store nothing of it.

        Raises SpansUseless when another one is known.
        """
        archive = self.batch.archive
        async with archive.judging:
            table = archive.table
            if table.judged:
                return True
            if not validator or (table.validator and table.validator != validator):
                raise SpansUseless(f"{archive.ref.key}: the origin does not say which archive it has")
            table.validator = validator
            return archive.recorded == validator or await archive.save(self._store.ledger)

    async def _refused(self, exc: RefgenfsError) -> SpansUseless:
        """Let go of an index that the origin's archive does not fit, and of what is in doubt."""
        archive, batch = self.batch.archive, self.batch
        async with archive.judging:
            if archive.index is not None and archive.index.archive == self.found.index.archive_digest:
                archive.distrusted = True  # the next object is looked at before anybody reads of it
                if not archive.table.judged and archive.generation == batch.generation:
                    await drop_all(archive, self._store)
                await self._indexes.forget(archive, exc)
        return SpansUseless(f"{archive.ref.key}: {exc}")

    # -- on the worker thread -----------------------------------------------------------------------------------

    def _inflate(self, windows: list[bytes], packed: memoryview) -> None:
        base = self._rows[0].packed_start
        for span, window in zip(self._rows, windows, strict=True):
            at = span.out_start
            for piece in inflate_span(span, window, packed[span.packed_start - base : span.packed_stop - base]):
                landed = [_store(slots, data) for slots, data in self._cut(at, piece)]
                at += len(piece)
                trio.from_thread.run_sync(partial(self._land, landed))

    def _cut(self, at: int, piece: memoryview) -> Iterator[tuple[list[Slot], memoryview]]:
        """Give the blocks that are whole with this piece of the tar, neighbours of one content together."""
        end = at + len(piece)
        row: list[Slot] = []
        while self._first < len(self._slots) and self._slots[self._first].place.stop <= at:
            self._first += 1
        for slot in self._slots[self._first :]:
            start, stop = slot.place.start, slot.place.stop
            if start >= end:
                break
            if at <= start and stop <= end:
                if row and not _follows(row[-1], slot):
                    yield row, piece[row[0].place.start - at : row[-1].place.stop - at]
                    row = []
                row.append(slot)
            elif self._fill(slot, at, piece):
                yield [slot], slot.data
        if row:
            yield row, piece[row[0].place.start - at : row[-1].place.stop - at]

    def _fill(self, slot: Slot, at: int, piece: memoryview) -> bool:
        """Put a part of a block to the others; say whether all of it came by this run."""
        slot.begin()
        begin, stop = max(at, slot.place.start), min(at + len(piece), slot.place.stop)
        slot.fill(begin, piece[begin - at : stop - at])
        self._came[slot] = self._came.get(slot, 0) + stop - begin
        if self._came[slot] < slot.place.stop - slot.place.start:
            return False
        del self._came[slot]
        return True

    # -- back on the trio thread --------------------------------------------------------------------------------

    def _land(self, landed: list[_Landed]) -> None:
        for blocks in landed:
            _land(self.batch, self._board, blocks)

    async def _join_seams(self) -> None:
        """Note what came of blocks that other runs, or other batches, have the rest of; land those now whole."""
        mine = frozenset(self.spans)
        whole = []
        for slot in self._came:
            needed = set(self.found.spans_of(slot.place))
            for number in needed & mine:
                span = self.found.index.span(number)
                slot.edges[number] = max(span.out_start, slot.place.start), min(span.out_stop, slot.place.stop)
                slot.done.add(number)
            if slot.flies and needed <= slot.done:
                whole.append(slot)
        for slot in whole:
            self._land([await trio.to_thread.run_sync(_store, [slot], slot.data)])


def land_whole(batch: SpanBatch, board: FlightBoard, slot: Slot) -> None:
    """Store and land a block of which all parts are here; on the trio thread, since it is one, now and then."""
    _land(batch, board, _store([slot], slot.data))


def _land(batch: SpanBatch, board: FlightBoard, blocks: _Landed) -> None:
    """Make blocks resident, and wake who waits for them. Raises SpansUseless when they were taken back.

    Who waits for them and has read nothing of what went reads what a stream brings; who has, learns it from its
    archive's generation.
    """
    if batch.generation != batch.archive.generation:
        raise SpansUseless(f"{batch.archive.ref.key}: what came of it was taken back")
    for number, (slot, data) in enumerate(zip(blocks.slots, blocks.data, strict=True)):
        batch.moved(len(data))
        if blocks.crcs is None:
            batch.keep_spare(batch, slot, data)
        elif slot.content is not None:
            slot.content.commit(slot.place.index, blocks.crcs[number], slot.reservation)
        slot.give_up()
        batch.slots.pop((slot.place.name, slot.place.index), None)
        board.land(slot.cid, slot.place.index, data)


def _follows(before: Slot, slot: Slot) -> bool:
    """Say whether two blocks can be written in one piece."""
    return (
        before.cid == slot.cid
        and before.place.index + 1 == slot.place.index
        and (before.reservation is None) == (slot.reservation is None)
    )


def _store(slots: list[Slot], data: memoryview) -> _Landed:
    """Write neighbouring blocks, if they have room; for any thread."""
    parts = tuple(data[at : at + BLOCK] for at in range(0, len(data), BLOCK))
    content = slots[0].content
    if content is None or slots[0].reservation is None:
        return _Landed(tuple(slots), parts, None)
    try:
        content.write(slots[0].place.index, data)
    except CacheError:
        return _Landed(tuple(slots), parts, None)  # the store counts it; the readers are served all the same
    return _Landed(tuple(slots), parts, tuple(checksum(part) for part in parts))
