"""Indices, made once for whoever asks, and made again when the cache has lost them. Lives on the trio thread."""

from __future__ import annotations

import copy
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import trio

from refgenfs.cache.store import Store
from refgenfs.core.content import BLOCK, ContentId, FileFacts, Generated, InlineData, Run, block_count, content_id
from refgenfs.core.errors import (
    CacheError,
    CannotBeMade,
    DeadlineExceeded,
    GenerateFailed,
    RefgenfsError,
    StaleContent,
    without_frames,
)
from refgenfs.core.indices import (
    KINDS,
    Kind,
    check_index,
    hindrance,
    kinds_of,
    name_index,
    tells_lengths,
    wants_csi,
)
from refgenfs.core.readahead import Window
from refgenfs.core.units import human_bytes
from refgenfs.fetch.bridge import Bridge
from refgenfs.fetch.pieces import PIECE, RangeSink
from refgenfs.library import Located
from refgenfs.made.jobs import Failures, Job, Unfit, bounds_of, say, what
from refgenfs.made.process import Product, run_worker
from refgenfs.made.products import KeptProducts, store_product
from refgenfs.made.records import Made, Record, Records
from refgenfs.reader.budget import Budget
from refgenfs.reader.reader import OpenFile, Reader

log = logging.getLogger(__name__)

AT_A_TIME = 2  # workers: each has a processor for itself, and reads as any reader does
QUEUE = 900.0  # seconds that one waits for its turn
READ = 1 << 20  # bytes read at a time
HEADS = (BLOCK, 1 << 20, 16 << 20)  # bytes of data in which the lengths of its references are looked for
BRING = 2  # ranges of them brought at a time, which no budget counts: 4 MiB each at the most


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """`largest` is the size of data, in bytes, beyond which no index of it is made."""

    largest: int


class Indexer:
    """Makes indices of files. `nursery` owns what is under way; `budget` hears that something goes on."""

    def __init__(
        self,
        store: Store,
        reader: Reader,
        records: Records,
        bridge: Bridge,
        budget: Budget,
        settings: IndexSettings,
        nursery: trio.Nursery,
    ) -> None:
        self.made = 0  # since the start
        self._store = store
        self._reader = reader
        self._records = records
        self._bridge = bridge
        self._budget = budget
        self._settings = settings
        self._nursery = nursery
        self._open: Callable[[Located], Awaitable[OpenFile]] | None = None
        self._jobs: dict[tuple[ContentId, str], Job] = {}
        self._failures = Failures()
        self._products = KeptProducts(nursery)
        self._turns = trio.CapacityLimiter(AT_A_TIME)
        self._bringing = trio.CapacityLimiter(BRING)

    def attach(self, open_data: Callable[[Located], Awaitable[OpenFile]]) -> None:
        """Have data opened so: not before this can anything be made."""
        self._open = open_data

    def renew(self, settings: IndexSettings) -> None:
        """Make indices by these settings from now on; what is under way goes on."""
        if settings != self._settings:
            self._settings = settings
            self._failures.clear()

    @property
    def jobs(self) -> Sequence[Job]:
        """What is being made, or waits for its turn."""
        return tuple(self._jobs.values())

    # -- what is asked for --------------------------------------------------------------------------------

    async def facts(self, data: Located, kind: Kind, maker: str) -> FileFacts:
        """Return the facts of an index of this data, which is made if it was not.

        Raises CannotBeMade where there can be none, GenerateFailed, DeadlineExceeded, and what hinders the reading.
        """
        made = await self._records.get(data.facts.content)
        if kind.ending not in made:
            made = await self._make(data, maker)
        return facts_of(data, kind, maker, made[kind.ending])

    async def _make(self, data: Located, maker: str) -> Made:
        key = (data.facts.content, maker)
        self._failures.recall(key)
        # no await until the insert: whoever asks shares one job
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = Job(data, maker, data.facts.size, trio.current_time())
            self._nursery.start_soon(self._work, key, job)
        with job.held():
            await job.ended.wait()
        if job.error is not None:
            raise copy.copy(job.error)
        return await self._records.get(data.facts.content)

    def forget(self, data: ContentId) -> None:
        """Believe nothing that was found out about this data, and end what is being made of it."""
        for key, job in self._jobs.items():
            if key[0] == data:
                job.spoilt = True
                job.scope.cancel()
        self._failures.forget(data)

    # -- one job ------------------------------------------------------------------------------------------

    async def _work(self, key: tuple[ContentId, str], job: Job) -> None:
        error: RefgenfsError | None = GenerateFailed(f"{what(job)}: given up, nobody waits for it any more")
        try:
            with job.scope:
                assert self._open is not None
                file = await self._open(job.data)
                await self._look(job, replace(file, window=Window(file.facts.size, eager=False)))
                await self._take_turn(job)
                try:
                    await self._run(job, file)
                finally:
                    self._turns.release_on_behalf_of(job)
                error = None
        except RefgenfsError as exc:
            error = without_frames(exc)
            self._failures.note(key, error)
            say(job, error)
        except Exception as exc:
            log.exception("%s could not be made", what(job))
            error = GenerateFailed(f"{what(job)}: unexpected {type(exc).__name__}")
        finally:
            job.error = StaleContent(f"{what(job)}: its data was wrong; look it up again") if job.spoilt else error
            del self._jobs[key]
            job.ended.set()

    async def _take_turn(self, job: Job) -> None:
        with trio.move_on_after(QUEUE) as scope:
            await self._turns.acquire_on_behalf_of(job)
        if scope.cancelled_caught:
            raise DeadlineExceeded(f"{what(job)}: too much else is being made")

    async def _run(self, job: Job, file: OpenFile) -> None:
        kinds = kinds_of(job.maker, job.data.name)
        products = [Product(job.maker) for _ in kinds]
        try:
            await run_worker(job.maker, products, partial(self._feed, job, file), bounds_of(job.maker, job.total))
            made = {
                kind.ending: await self._judge(kind, product) for kind, product in zip(kinds, products, strict=True)
            }
            for kind, product in zip(kinds, products, strict=True):
                await self._keep(facts_of(job.data, kind, job.maker, made[kind.ending]), job.data, kind, product)
        finally:
            for product in products:
                if product not in self._products:
                    product.close()
        await self._records.add(job.data.facts.content, made)
        self.made += 1
        log.info("%s: made, in %.1f s", what(job), job.age)

    async def _look(self, job: Job, file: OpenFile) -> None:
        """Raise CannotBeMade if the beginning of the data, or its size, says that there can be no index."""
        kind = kinds_of(job.maker, job.data.name)[0]
        name, size = job.data.name, job.data.facts.size
        if isinstance(job.data.facts.extent, InlineData):
            raise Unfit("it is empty")
        first = bytes(await self._reader.read(file, 0, BLOCK))
        reason = hindrance(kind, name, first)
        if reason:
            raise Unfit(reason)
        if tells_lengths(name):
            csi = await self._wants_csi(file, name, first)
            if csi != (kind.ending == ".csi"):
                longer = "a reference of it is longer than 2^29 bases, which needs a .csi"
                raise Unfit(longer if csi else "no reference of it is so long that it needs a .csi")
        if size > self._settings.largest:
            raise CannotBeMade(f"the data has {human_bytes(size)}, which is more than indices.largest")

    async def _wants_csi(self, file: OpenFile, name: str, first: bytes) -> bool:
        for length in HEADS:
            if length > len(first) and len(first) < file.facts.size:
                first += await self._read(file, len(first), length)
            csi = await trio.to_thread.run_sync(wants_csi, name, first)
            if csi is not None:
                return csi
        return False

    async def _read(self, file: OpenFile, start: int, stop: int) -> bytes:
        offsets = range(start, min(stop, file.facts.size), READ)
        return b"".join([await self._reader.read(file, at, min(READ, stop - at)) for at in offsets])

    async def _feed(self, job: Job, file: OpenFile, take: Callable[[bytes | memoryview], Awaitable[None]]) -> None:
        """Give the worker the data, in order."""
        job.done = 0
        for offset in range(0, job.total, READ):
            data = await self._reader.read(file, offset, READ)
            await take(data)
            job.done += len(data)
            self._budget.moved(1)  # for who reads an index that is being made again: something goes on

    async def _judge(self, kind: Kind, product: Product) -> Record:
        if not product.size:
            raise GenerateFailed("nothing was made")
        check_index(kind, product.read(0, BLOCK) if kind.ending != ".gzi" else product.read(0, product.size))
        return Record(await trio.to_thread.run_sync(product.digest), product.size, frozenset({kind.usual}))

    # -- bytes --------------------------------------------------------------------------------------------

    async def _keep(self, facts: FileFacts, data: Located, kind: Kind, product: Product) -> None:
        """Put what was made into the cache, as far as that has room; who reads it soon can have it all the same."""
        stored = False
        try:
            await self._reader.vouch(facts, str(data.version.key), name_index(data.name, kind, kind.usual))
            content = await self._store.content(facts.content, facts.size)
            stored = await store_product(content, product)
            if stored:
                self._store.keep(content)
        except CacheError as exc:
            log.debug("an index is not kept: %s", exc)
        if not stored:
            self._products.put(facts.content, product)

    async def fetch_range(
        self, extent: Generated, start: int, stop: int, size: int, sink: RangeSink, *, account: str
    ) -> None:
        """Bring a stretch of an index to the sink: it is made again. Raises as `facts` does, and StaleContent."""
        data = Located(extent.data, extent.version, extent.name)
        facts = facts_of(data, KINDS[extent.ending], extent.maker, Record(extent.validator, size))
        async with self._bringing:
            product = self._products.get(facts.content)
            if product is None:
                await self._make_again(data, extent)
                product = self._products.get(facts.content)
            # all of it now: while the sink is waited for, the product may be closed
            found = await self._stored(facts, start, stop) if product is None else product.read(start, stop)
            for at in range(0, stop - start, PIECE):
                piece = memoryview(found)[at : at + PIECE]
                await self._bridge.run(partial(sink.write, start + at, piece))

    async def _make_again(self, data: Located, extent: Generated) -> None:
        made = await self._make(data, extent.maker)
        if made[extent.ending].sha256 != extent.validator:
            raise StaleContent(f"{extent.name}{extent.ending} came out otherwise when it was made again")

    async def _stored(self, facts: FileFacts, start: int, stop: int) -> bytes:
        """Return what a making has just put into the cache."""
        content = await self._store.content(facts.content, facts.size)
        if content.missing(Run(start // BLOCK, block_count(stop))) >= 0:
            raise GenerateFailed("what was made was evicted at once")
        return content.read(start, stop - start)

    def close(self) -> None:
        """Give back the memory of what was made."""
        self._products.close()


def facts_of(data: Located, kind: Kind, maker: str, record: Record) -> FileFacts:
    """Return the facts of an index of this data, which is as old as the data: so it is the same wherever made."""
    facts = data.facts
    cid = content_of(facts.content, kind.ending, record.sha256)
    extent = Generated(maker, kind.ending, record.sha256, facts, data.version, data.name)
    return FileFacts(cid, record.size, facts.mtime, extent, facts.source, "generated")


def content_of(data: ContentId, ending: str, sha256: str) -> ContentId:
    """Return the identity of an index of this data with these bytes: one that came out otherwise is another."""
    return content_id("", data, ending, sha256)
