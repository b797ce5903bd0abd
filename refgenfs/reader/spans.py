"""Blocks of an archive's members that come by spans: the stretches of the archive that a seek index names.

Blocks that are wanted at one moment are one *batch*. Its spans are fetched in runs of neighbours, several at a time,
and every block that is complete in them becomes resident, whoever's it is: its bytes are paid for. Of a block that
straddles the batch's edge, the part that has come is kept in memory for a while (a *seam*). All of this lives on the
trio thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import trio

from refgenfs.cache.content import Content
from refgenfs.cache.shelf import BlockDamaged
from refgenfs.cache.store import Store
from refgenfs.core.content import BLOCK, ContentId, Run
from refgenfs.core.errands import Errand, current, go_on
from refgenfs.core.errors import CacheError, IntegrityError, OriginUnavailable, RefgenfsError, without_frames
from refgenfs.core.spanplan import MemberMap, Place, plan_runs
from refgenfs.fetch.http import Http
from refgenfs.reader.archive import Archive
from refgenfs.reader.budget import BEAT
from refgenfs.reader.flights import Arrival, FlightBoard
from refgenfs.reader.indexes import Indexes
from refgenfs.reader.indexfiles import IndexLost
from refgenfs.reader.labels import label
from refgenfs.reader.leftovers import Seams, Spare
from refgenfs.reader.ranges import RangeFlights
from refgenfs.reader.refusals import Refusals
from refgenfs.reader.spanbatch import Slot, SpanBatch, Wanted
from refgenfs.reader.spanrun import SpanRun, SpansUseless, land_whole

log = logging.getLogger(__name__)

ROUNDS = 8  # how often what is asked for is fetched anew because it went meanwhile
MODEST = 8 * 1024 * 1024  # bytes of memory to spare before what nobody wants yet is brought: a run of spans, and some


class SpanReader:
    """Fetches blocks by spans. `stream` is called with what can't come that way, to bring it another way."""

    def __init__(
        self,
        store: Store,
        http: Http,
        board: FlightBoard,
        indexes: Indexes,
        stream: Callable[[SpanBatch, list[Wanted]], None],
        flights: RangeFlights,
        kept: int,
        nursery: trio.Nursery,
    ) -> None:
        self._store = store
        self._http = http
        self._board = board
        self._indexes = indexes
        self._stream = stream
        self._flights = flights
        self._budget = flights.budget
        self._refusals = Refusals(log)
        blocks = kept // BLOCK
        self._seams = Seams(blocks // 3)
        self._spare = Spare(blocks - blocks // 3)
        self._nursery = nursery
        self._open: dict[int, SpanBatch] = {}  # that more may be added to, by the archive's id
        self._flying: dict[tuple[bytes, int], SpanRun] = {}  # by the index's identity and the span

    def renew(self, kept: int) -> None:
        """Keep so many bytes of blocks in memory from now on."""
        blocks = kept // BLOCK
        self._seams.resize(blocks // 3)
        self._spare.resize(blocks - blocks // 3)

    def want(self, archive: Archive, content: ContentId, name: str, index: int) -> None:
        """Launch a flight of a block that has none. Never awaits: what is wanted in one go is fetched as one."""
        batch = self._batch(archive)
        self._board.launch(content, (index,), batch)
        batch.asked.add((name, index))

    def just_passed(self, content: ContentId, index: int) -> Arrival | None:
        """Return a block that came a moment ago and could not be stored."""
        return self._spare.find(content, index)

    def prefetch(self, archive: Archive, name: str, indices: Iterable[int]) -> None:
        """Bring blocks that nobody waits for, as far as there is memory for it."""
        self._batch(archive).beyond.update((name, index) for index in indices)

    async def bring(self, archive: Archive, name: str, indices: Iterable[int], older_than: int) -> None:
        """Bring blocks that nobody wants yet, as there comes to be memory to spare, and wait until that has ended.

        Only what was last used before the stamp `older_than` makes room for them. Raises nothing but a cancellation.
        """
        wanted, needed = {(name, index) for index in indices}, MODEST
        while needed:
            while not self._budget.has_spare(needed):
                await self._budget.freed.park()
            batch = SpanBatch(archive, older_than, self._spare.keep, self._budget.moved, modest=True)
            batch.beyond.update(wanted)
            self._nursery.start_soon(self._fly, batch)  # which goes on for who joins it, when nobody waits here
            await batch.ended.wait()
            needed = batch.lacked

    def _batch(self, archive: Archive) -> SpanBatch:
        batch = self._open.get(id(archive))
        if batch is None or batch.generation != archive.generation:
            batch = self._open[id(archive)] = SpanBatch(
                archive, self._store.stamp, self._spare.keep, self._budget.moved
            )
            self._nursery.start_soon(self._fly, batch)
        return batch

    async def _fly(self, batch: SpanBatch) -> None:
        """Bring a batch, or have it streamed. Raises only a cancellation."""
        archive = batch.archive
        if self._open.get(id(archive)) is batch:
            del self._open[id(archive)]
        error: RefgenfsError = OriginUnavailable(f"a fetch of {archive.ref.key} was given up")
        try:
            try:
                await self._bring(batch)
            except SpansUseless as exc:
                log.debug("%s", without_frames(exc))
                batch.lacked = 0
                self._stream(batch, self._awaited(batch))
        except RefgenfsError as exc:
            batch.lacked = 0
            error = without_frames(exc)
        except Exception as exc:
            batch.lacked = 0
            log.exception("%s: a fetch of spans failed unexpectedly", archive.ref.key)
            error = OriginUnavailable(f"{archive.ref.key}: unexpected {type(exc).__name__}")
        finally:
            self._end(batch, error)
            batch.ended.set()

    def _awaited(self, batch: SpanBatch) -> list[Wanted]:
        """Return the blocks on this batch that were asked for, or that somebody has joined."""
        found = []
        for name, index in sorted(batch.asked | batch.slots.keys()):
            arrival = self._board.find(batch.archive.content_id(name), index)
            if arrival is not None and arrival.carrier is batch and (arrival.held or (name, index) in batch.asked):
                found.append((name, index))
        return found

    def _end(self, batch: SpanBatch, error: RefgenfsError) -> None:
        """End what has not landed, and give back the room."""
        for name, index in batch.asked | batch.slots.keys():
            self._board.fail(batch.archive.content_id(name), (index,), batch, error)
        for slot in batch.slots.values():
            self._seams.put(batch, slot)
        batch.slots.clear()

    # -- a batch ----------------------------------------------------------------------------------------------

    async def _bring(self, batch: SpanBatch) -> None:
        for _ in range(ROUNDS):
            found = await self._map(batch)
            await self._await_others(batch, found)
            # no await until the runs are noted: a span has one flight
            runs = self._plan(batch, found)
            try:
                await self._prepare(batch, found, {number for run in runs for number in run.spans})
                for run in runs:
                    if not run.urgent and not run.has_room() and not self._is_awaited(run):
                        self._withdraw(run)  # what would only be read ahead waits for better times
                await self._fly_all(batch, [run for run in runs if not run.ended.is_set()])
            finally:
                for run in runs:
                    self._settle(run)
            if not self._awaited(batch):
                return
        raise OriginUnavailable(f"{batch.archive.ref.key}: the cache forgets blocks quicker than they are read")

    async def _map(self, batch: SpanBatch) -> MemberMap:
        archive = batch.archive
        await self._indexes.ask(archive)
        if archive.index is None:
            raise SpansUseless(f"{archive.ref.key}: it has no seek index")
        known = archive.index
        try:
            found = await self._indexes.map(archive)
        except (IndexLost, IntegrityError, CacheError) as exc:
            if archive.index is known:
                await self._indexes.forget(archive, exc)
            raise SpansUseless(f"{archive.ref.key}: {exc}") from exc
        batch.use(archive.index, found.index.identity)
        return found

    async def _await_others(self, batch: SpanBatch, found: MemberMap) -> None:
        """Wait for spans with asked blocks that other batches bring: then their part of them is here."""
        index = found.index.identity
        while True:
            wants = [*self._awaited(batch), *(batch.beyond if batch.modest else ())]
            needed = set().union(*(self._lacks(batch, found, wanted) for wanted in wants))
            other = next((self._flying[index, at] for at in needed if (index, at) in self._flying), None)
            if other is None:
                return
            before = other.batch.progress
            with trio.move_on_after(BEAT):
                await other.ended.wait()
            if other.ended.is_set() or other.batch.progress != before:
                batch.beat()

    def _plan(self, batch: SpanBatch, found: MemberMap) -> list[SpanRun]:
        """Return the runs that bring what is asked for, and what is not as far as there is memory; note them."""
        index = found.index.identity
        needed, beyond = set[int](), set[int]()
        for wanted in self._awaited(batch):
            needed |= self._lacks(batch, found, wanted)
            self._claim(batch, found, wanted)
        for wanted in batch.beyond:
            place = batch.archive.content_id(wanted[0]), wanted[1]
            if self._board.find(*place) is not None or self.just_passed(*place) is not None:
                continue
            lacks = self._lacks(batch, found, wanted)
            if not any((index, at) in self._flying for at in lacks):  # else it comes when it is asked for
                beyond |= lacks
        runs = []
        for spans in plan_runs(found.index, needed | beyond):
            run = SpanRun(self._http, self._board, self._indexes, self._store, batch, found, spans)
            run.urgent = not needed.isdisjoint(spans)
            run.claim = None if run.urgent else self._budget.take(run.cost)
            if run.urgent or run.claim is not None:
                runs.append(run)
                self._flying.update({(index, at): run for at in spans})
            else:
                batch.lacked = run.cost
        return runs

    async def _fly_all(self, batch: SpanBatch, runs: list[SpanRun]) -> None:
        failed: list[RefgenfsError] = []
        mine = current()

        async def fly(run: SpanRun) -> None:
            go_on(Errand(mine.user, mine.urgent and run.urgent))
            flies = False
            try:
                if run.claim is None:
                    run.claim = self._budget.claim(run.cost)
                await run.claim.wait(batch.beat)
                self._flights.under_way += 1
                flies = True
                if not any(isinstance(exc, SpansUseless) for exc in failed):  # else a stream brings it
                    await run.fly()
            except RefgenfsError as exc:
                failed.append(without_frames(exc))  # they hold what came
            finally:
                self._flights.under_way -= flies
                self._settle(run)

        async with trio.open_nursery() as nursery:
            for run in sorted(runs, key=lambda run: not run.urgent):
                nursery.start_soon(fly, run)
        if failed:
            raise next((exc for exc in failed if isinstance(exc, SpansUseless)), failed[0])

    def _is_awaited(self, run: SpanRun) -> bool:
        """Say whether somebody waits for a block that has flown to this run from another batch."""
        arrivals = (self._board.find(slot.cid, slot.place.index) for slot in run.overlapping() if slot.flies)
        return any(arrival is not None and arrival.held for arrival in arrivals)

    def _withdraw(self, run: SpanRun) -> None:
        """End the flights of a run that is not to fly; who asks for one of its blocks next has it launched."""
        edges = run.edges()  # of which another run may bring its part
        error = OriginUnavailable(f"{run.batch.archive.ref.key}: it is not read ahead now")
        for slot in run.overlapping():
            self._board.fail(slot.cid, (slot.place.index,), run.batch, error)
            slot.give_up()
            if slot not in edges:
                del run.batch.slots[slot.place.name, slot.place.index]
        run.batch.lacked = 0  # memory would not help
        run.ended.set()
        self._settle(run)

    def _settle(self, run: SpanRun) -> None:
        """Give back the memory that a run took, and let others have what came of blocks at its edges; idempotent."""
        if run.claim is not None:
            run.claim.release()
        index = run.found.index.identity
        for at in run.spans:
            if self._flying.get((index, at)) is run:
                del self._flying[index, at]
        if not run.ended.is_set():
            for slot in run.edges():
                if not slot.flies:
                    run.batch.slots.pop((slot.place.name, slot.place.index), None)
                    self._seams.put(run.batch, slot)
            run.ended.set()

    # -- blocks of which a part is here -------------------------------------------------------------------------

    def _lacks(self, batch: SpanBatch, found: MemberMap, wanted: Wanted) -> set[int]:
        """Return the spans that have a block, but for what of it is here already. Raises SpansUseless."""
        (name, index), archive = wanted, batch.archive
        member = archive.table.members.get(name)
        if member is None or member.size != found.size(name):
            raise SpansUseless(f"{archive.ref.key}: its seek index knows no such {name}")
        content = self._store.open_content(archive.content_id(name))
        if content is not None and content.missing(Run(index, index + 1)) < 0:
            return set()
        seam = batch.slots.get(wanted)
        seam = seam or self._seams.get(found.index.identity, archive.content_id(name), index)
        spans = set(found.spans_of(found.place(name, index)))
        return spans - seam.done if seam is not None else spans

    def _claim(self, batch: SpanBatch, found: MemberMap, wanted: Wanted) -> Slot:
        """Return the batch's slot of a block, with what has come of it before."""
        slot = batch.slots.get(wanted)
        if slot is None:
            (name, index), archive = wanted, batch.archive
            cid = archive.content_id(name)
            slot = self._seams.take(found.index.identity, cid, index)
            slot = batch.slots[wanted] = slot or Slot(found.place(name, index), cid)
        return slot

    # -- room and flights ---------------------------------------------------------------------------------------

    async def _prepare(self, batch: SpanBatch, found: MemberMap, spans: set[int]) -> None:
        """Make a slot for every missing block of which these spans have a part, with room for it if there is any."""
        archive = batch.archive
        places = {wanted: slot.place for wanted, slot in batch.slots.items()}
        for run in plan_runs(found.index, spans, longest=found.index.archive_size):
            start, stop = found.index.span(run[0]).out_start, found.index.span(run[-1]).out_stop
            places.update({(place.name, place.index): place for place in found.places(start, stop)})
        contents = {name: await self._content(archive, found, name) for name in {name for name, _ in places}}
        # no await from here on: a block has one flight
        for wanted in sorted(places, key=lambda wanted: (wanted not in batch.asked, places[wanted].start)):
            self._add_slot(batch, found, wanted, contents[wanted[0]], spans)

    async def _content(self, archive: Archive, found: MemberMap, name: str) -> Content | None:
        member = archive.table.members.get(name)
        if member is None or member.size != found.size(name):
            return None
        try:
            content = await self._store.content(archive.content_id(name), member.size)
        except CacheError as exc:  # the readers are served all the same
            self._refusals.warning("%s %s is read without the cache: %s", archive.ref.key, name, exc)
            return None
        self._refusals.clear()
        await label(self._store, content.id, archive.ref.key, name)
        return content

    def _add_slot(
        self, batch: SpanBatch, found: MemberMap, wanted: Wanted, content: Content | None, spans: set[int]
    ) -> None:
        place, cid = found.place(*wanted), batch.archive.content_id(wanted[0])
        block, asked = Run(place.index, place.index + 1), wanted in batch.asked
        if self._is_there(content, place, cid) or (content is None and not asked):
            batch.slots.pop(wanted, None)
            return
        slot = self._claim(batch, found, wanted)
        if not set(found.spans_of(place)) <= spans | slot.done:
            return  # a part of it, for who wants it next
        arrival = self._board.find(cid, place.index)
        if arrival is not None and not self._takes_over(batch, wanted, arrival):
            del batch.slots[wanted]
            return
        asked = asked or arrival is not None  # of this batch, or of one that has waited for it
        older_than = None if asked or (wanted in batch.beyond and not batch.modest) else batch.born
        slot.content = content
        slot.reservation = content.reserve(block, older_than=older_than) if content is not None else None
        if slot.reservation is None and not asked and (batch.modest or batch.spare >= self._spare.most // 2):
            del batch.slots[wanted]  # without room, and nobody waits
            return
        if slot.reservation is None:
            batch.spare += 1
        if arrival is None:
            self._board.launch(cid, (place.index,), batch)
        slot.flies = True
        if set(found.spans_of(place)) <= slot.done:
            land_whole(batch, self._board, slot)

    def _takes_over(self, batch: SpanBatch, wanted: Wanted, arrival: Arrival) -> bool:
        """Say whether a block's flight is on this batch, also if it was on one that only waits for these spans."""
        other = arrival.carrier
        if isinstance(other, SpanBatch) and other is not batch and wanted not in other.slots:
            arrival.carrier = batch
        return arrival.carrier is batch

    def _is_there(self, content: Content | None, place: Place, cid: ContentId) -> bool:
        """Say whether a block is resident, and hand it to those who wait for it all the same."""
        if content is None or content.missing(Run(place.index, place.index + 1)) >= 0:
            return False
        if self._board.find(cid, place.index) is not None:
            try:
                data = content.read(place.index * BLOCK, place.stop - place.start)
            except BlockDamaged as exc:
                log.warning("%s; fetching it again", exc)
                return False
            self._board.land(cid, place.index, memoryview(data))
        return True
