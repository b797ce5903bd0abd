"""Indices, made once for whoever asks, and made again when the cache has lost them. Lives on the trio thread."""

from __future__ import annotations

import copy
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import trio

from refgenfs.cache.content import Content, checksum
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
    shown_index,
    tells_lengths,
    wants_csi,
)
from refgenfs.core.readahead import Window
from refgenfs.core.units import human_bytes
from refgenfs.fetch.bridge import Bridge
from refgenfs.fetch.pieces import PIECE, RangeSink
from refgenfs.library import Located
from refgenfs.made.process import Bounds, Product, TooSlow, run_worker
from refgenfs.made.records import Made, Record, Records
from refgenfs.reader.budget import Budget
from refgenfs.reader.reader import OpenFile, Reader

log = logging.getLogger(__name__)

AT_A_TIME = 2  # workers: each has a processor for itself, and reads as any reader does
QUEUE = 900.0  # seconds that one waits for its turn
# Seconds from the start of a worker to its end, for data of some bytes. Who waits can be killed, and an origin that
# is silent is given up after `limits.read_deadline`: so this is for a worker that hangs, and for a very slow line.
SECONDS = 60.0
RATE = 2e6  # bytes a second
LINGER = 30.0  # seconds for which something is made that nobody waits for any more
MEMORY = 1 << 30  # bytes of address space; 35 MB is the usual, a .bai of a whole genome takes 100
# `samtools dict` has a sequence in memory as a whole, in a buffer that doubles as it grows.
LONGEST_SEQUENCE = 4 << 30  # bytes
UNPACKED = 5  # times what packed bases take
LARGEST = 256 << 20  # bytes of one index; 10 MB is a large one
SMALLEST_BOUND = 16 << 20  # a BAM of one read may have 100,000 references
READ = 1 << 20  # bytes read at a time
HEADS = (BLOCK, 1 << 20, 16 << 20)  # bytes of data in which the lengths of its references are looked for
# Seconds for which a failure is believed. What htslib says of data stays so, but one can be asked to look again.
REFUSED_FOR = 3600.0
SLOW_FOR = 600.0
FAILED_FOR = 10.0
REMEMBERED = 4096
KEPT_PRODUCTS = 4  # that readers may want more of than the cache had room for
KEPT_FOR = 30.0  # seconds
BRING = 2  # ranges of them brought at a time, which no budget counts: 4 MiB each at the most


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """`largest` is the size of data, in bytes, beyond which no index of it is made."""

    largest: int


@dataclass(slots=True, eq=False)
class Job:
    """Something that is being made. `done` of `total` bytes of data were read; times are trio's."""

    data: Located
    maker: str
    total: int
    asked: float
    done: int = 0
    error: RefgenfsError | None = None
    ended: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    holders: int = 0
    spoilt: bool = False  # its data was wrong

    @property
    def names(self) -> list[str]:
        """The names of what is being made."""
        name = self.data.name
        return [name_index(name, kind, kind.usual) for kind in kinds_of(self.maker, name)]

    @property
    def age(self) -> float:
        """Seconds since it was asked for."""
        return trio.current_time() - self.asked

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for it in here; when nobody does, it is given up after a while."""
        self.holders += 1
        self.scope.deadline = math.inf
        try:
            yield
        finally:
            self.holders -= 1
            if not self.holders:
                self.scope.deadline = trio.current_time() + LINGER


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
        self._refused: OrderedDict[tuple[ContentId, str], tuple[RefgenfsError, float]] = OrderedDict()
        self._products: OrderedDict[ContentId, Product] = OrderedDict()
        self._turns = trio.CapacityLimiter(AT_A_TIME)
        self._bringing = trio.CapacityLimiter(BRING)

    def attach(self, open_data: Callable[[Located], Awaitable[OpenFile]]) -> None:
        """Have data opened so: not before this can anything be made."""
        self._open = open_data

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
        self._recall_failure(key)
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

    def _recall_failure(self, key: tuple[ContentId, str]) -> None:
        """Raise what a making failed with a while ago."""
        if key in self._refused:
            error, until = self._refused[key]
            if trio.current_time() < until:
                raise copy.copy(error)
            del self._refused[key]

    def _note_failure(self, key: tuple[ContentId, str], error: RefgenfsError) -> None:
        """Remember a failure for as long as asking again would be in vain. What an origin did is not one."""
        times: dict[type[Exception], float] = {
            CannotBeMade: REFUSED_FOR,
            TooSlow: SLOW_FOR,
            GenerateFailed: FAILED_FOR,
        }
        seconds = next((seconds for kind, seconds in times.items() if isinstance(error, kind)), None)
        if seconds is not None:
            self._refused[key] = (error, trio.current_time() + seconds)
            while len(self._refused) > REMEMBERED:
                self._refused.popitem(last=False)

    def forget(self, data: ContentId) -> None:
        """Believe nothing that was found out about this data, and end what is being made of it."""
        for key, job in self._jobs.items():
            if key[0] == data:
                job.spoilt = True
                job.scope.cancel()
        for key in [key for key in self._refused if key[0] == data]:
            del self._refused[key]

    # -- one job ------------------------------------------------------------------------------------------

    async def _work(self, key: tuple[ContentId, str], job: Job) -> None:
        error: RefgenfsError | None = GenerateFailed(f"{_what(job)}: given up, nobody waits for it any more")
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
            self._note_failure(key, error)
            _say(job, error)
        except Exception as exc:
            log.exception("%s could not be made", _what(job))
            error = GenerateFailed(f"{_what(job)}: unexpected {type(exc).__name__}")
        finally:
            job.error = StaleContent(f"{_what(job)}: its data was wrong; look it up again") if job.spoilt else error
            del self._jobs[key]
            job.ended.set()

    async def _take_turn(self, job: Job) -> None:
        with trio.move_on_after(QUEUE) as scope:
            await self._turns.acquire_on_behalf_of(job)
        if scope.cancelled_caught:
            raise DeadlineExceeded(f"{_what(job)}: too much else is being made")

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
                if product not in self._products.values():
                    product.close()
        await self._records.add(job.data.facts.content, made)
        self.made += 1
        log.info("%s: made, in %.1f s", _what(job), job.age)

    async def _look(self, job: Job, file: OpenFile) -> None:
        """Raise CannotBeMade if the beginning of the data, or its size, says that there can be no index."""
        kind = kinds_of(job.maker, job.data.name)[0]
        name, size = job.data.name, job.data.facts.size
        if isinstance(job.data.facts.extent, InlineData):
            raise _Unfit("it is empty")
        first = bytes(await self._reader.read(file, 0, BLOCK))
        reason = hindrance(kind, name, first)
        if reason:
            raise _Unfit(reason)
        if tells_lengths(name):
            csi = await self._wants_csi(file, name, first)
            if csi != (kind.ending == ".csi"):
                longer = "a reference of it is longer than 2^29 bases, which needs a .csi"
                raise _Unfit(longer if csi else "no reference of it is so long that it needs a .csi")
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
            stored = await _store(content, product)
            if stored:
                self._store.keep(content)
        except CacheError as exc:
            log.debug("an index is not kept: %s", exc)
        if not stored:
            self._nursery.start_soon(self._keep_for_a_while, facts.content, product)
            self._products[facts.content] = product

    async def _keep_for_a_while(self, content: ContentId, product: Product) -> None:
        while len(self._products) > KEPT_PRODUCTS:
            self._products.popitem(last=False)[1].close()
        try:
            await trio.sleep(KEPT_FOR)
        finally:
            if self._products.get(content) is product:
                del self._products[content]
            product.close()

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
        while self._products:
            self._products.popitem()[1].close()


class _Unfit(CannotBeMade):
    """Data that is none of which there are such indices: tools probe, so nobody needs to be told."""


def facts_of(data: Located, kind: Kind, maker: str, record: Record) -> FileFacts:
    """Return the facts of an index of this data, which is as old as the data: so it is the same wherever made."""
    facts = data.facts
    cid = content_of(facts.content, kind.ending, record.sha256)
    extent = Generated(maker, kind.ending, record.sha256, facts, data.version, data.name)
    return FileFacts(cid, record.size, facts.mtime, extent, facts.source, "generated")


def content_of(data: ContentId, ending: str, sha256: str) -> ContentId:
    """Return the identity of an index of this data with these bytes: one that came out otherwise is another."""
    return content_id("", data, ending, sha256)


def bounds_of(maker: str, size: int) -> Bounds:
    """Return what making something of `size` bytes of data may take."""
    memory = MEMORY + (3 * min(UNPACKED * size, LONGEST_SEQUENCE) if maker == "dict" else 0)
    return Bounds(SECONDS + size / RATE, memory, min(LARGEST, SMALLEST_BOUND + size))


async def _store(content: Content, product: Product) -> bool:
    """Make a content resident; False where the cache has no room. Raises CacheError."""
    run = Run(0, block_count(content.size))
    if content.missing(run) < 0:
        return True
    reservation = content.reserve(run)
    if reservation is None:
        return False
    with reservation:
        crcs = await trio.to_thread.run_sync(_copy, product, content)
        for index, crc in enumerate(crcs):
            content.commit(index, crc, reservation)
    return content.missing(run) < 0


def _copy(product: Product, content: Content) -> list[int]:
    crcs: list[int] = []
    while data := product.read(len(crcs) * BLOCK, (len(crcs) + 1) * BLOCK):
        content.write(len(crcs), memoryview(data))
        crcs.append(checksum(data))
    return crcs


def _what(job: Job) -> str:
    names = " and ".join(shown_index(name) for name in job.names)
    return f"{names} of {job.data.version.key}"


def _say(job: Job, error: RefgenfsError) -> None:
    if isinstance(error, _Unfit):
        log.debug("%s: there is none: %s", _what(job), error)
    else:
        log.warning("%s: not made: %s", _what(job), error)
