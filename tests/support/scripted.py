"""A reader with everything below it real but the origin: what that has, and how it flows, is the test's to say."""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import math
import random
import tarfile
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import trio

from refgenfs.cache.content import Content
from refgenfs.cache.opening import open_store
from refgenfs.cache.store import CacheLimits, Store
from refgenfs.core.content import (
    BLOCK,
    ArchiveMember,
    ArchiveRef,
    ByteRange,
    ContentId,
    FileFacts,
    Run,
    block_count,
    content_id,
)
from refgenfs.core.errors import OriginMissing, RefgenfsError, StaleContent
from refgenfs.core.manners import Manners
from refgenfs.core.tar import Member
from refgenfs.fetch.answers import RangesIgnored
from refgenfs.fetch.bridge import Bridge, open_bridge
from refgenfs.fetch.http import Http
from refgenfs.fetch.legs import Lease, Lender
from refgenfs.fetch.parts import Part
from refgenfs.fetch.pieces import RangeSink, StreamSink
from refgenfs.reader.archives import Archives, ArchiveSettings
from refgenfs.reader.budget import Budget
from refgenfs.reader.flights import FlightBoard
from refgenfs.reader.openarchives import Naming
from refgenfs.reader.ranges import Fetchers, RangeFlights
from refgenfs.reader.reader import OpenFile, Reader
from refgenfs.reader.stream import Archive

MIB = 1 << 20
SOURCE = "lab"
# What an empty store takes of its quota, with some room for the ledger to grow.
EMPTY = 928 * 1024


async def eventually(true: Callable[[], object], what: str = "") -> None:
    """Wait until something is so; other threads have their part in it."""
    with trio.move_on_after(20):
        while not true():  # noqa: ASYNC110 - nobody sets an event
            await trio.sleep(0.001)
        return
    raise AssertionError(f"it never came: {what or true}")


def room_for(blocks: int) -> int:
    """Return the size of a cache that holds about so many blocks."""
    return EMPTY + blocks * (BLOCK + 4096) + 16 * 1024


class Tap:
    """How far an object flows. Turned from trio, waited for on the asyncio loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.limit: float = math.inf  # bytes from the beginning of the object
        self._loop = loop
        self._moved = asyncio.Event()

    def flow_to(self, limit: float) -> None:
        """Let bytes below `limit` flow."""
        self._loop.call_soon_threadsafe(self._set, limit)

    def shut(self) -> None:
        """Let nothing flow."""
        self.flow_to(0)

    def open(self) -> None:
        """Let everything flow."""
        self.flow_to(math.inf)

    def _set(self, limit: float) -> None:
        self.limit = limit
        self._moved.set()
        self._moved = asyncio.Event()

    async def ready(self, position: int) -> None:
        while position > self.limit:
            await self._moved.wait()


@dataclass
class Served:
    """An object at the origin."""

    body: bytes
    tap: Tap
    validator: str = '"1"'
    pieces: Sequence[int] = (65_536,)  # how many bytes come at a time, in turn
    fault: RefgenfsError | None = None  # raised when `fault_at` is reached
    fault_at: int = 0
    ranges: bool = True
    fed: int = 0  # by the last stream


class ScriptedHttp:
    """Stands for `Http`, over the real bridge; notes what it is asked for."""

    def __init__(self, bridge: Bridge) -> None:
        self.objects: dict[str, Served] = {}
        self.ranges: list[Run] = []  # in blocks
        self.parts: list[tuple[int, int]] = []  # in bytes
        self.asked: list[str] = []  # beginnings
        self.lenders: list[Lender] = []  # of memory, one a stream
        self.streams = 0
        self.refused = 0  # ranges of objects that come whole only
        self.manners = Manners()
        self.fetched: dict[str, int] = {}
        self.under_way = 0
        self._bridge = bridge

    def serve(self, url: str, body: bytes, **options: object) -> Served:
        """Put an object at a URL."""
        served = self.objects[url] = Served(body, Tap(self._bridge.loop))
        for name, value in options.items():
            setattr(served, name, value)
        return served

    async def fetch_range(
        self, extent: ByteRange, start: int, stop: int, size: int, sink: RangeSink, *, account: str
    ) -> None:
        url = extent.urls[0]
        served = self.objects[url]
        if stop - start < size or served.ranges:
            self.manners.note(account, url, time.monotonic(), ranges=served.ranges)
        if not served.ranges and stop - start < size:
            self.refused += 1
            raise RangesIgnored(f"{url}: it knows no ranges")
        await self._bridge.run(lambda: self._range(served, start, stop, sink, account))

    async def fetch_part(
        self,
        extent: ByteRange,
        start: int,
        stop: int,
        size: int,
        *,
        account: str,
        moved: Callable[[int], None] = lambda _: None,
    ) -> Part:
        return await self._bridge.run(lambda: self._part(extent, start, stop, size, account, moved))

    async def fetch_beginning(
        self, urls: Sequence[str], length: int, *, account: str, deadline: float
    ) -> Part | None:
        self.asked.append(urls[0])
        if urls[0] not in self.objects:
            return None
        served = self.objects[urls[0]]
        return await self._bridge.run(lambda: self._beginning(served, urls[0], length, account))

    async def _beginning(self, served: Served, url: str, length: int, account: str) -> Part:
        await served.tap.ready(1)
        if served.fault is not None:
            raise served.fault
        data = served.body[:length]
        self._count(account, len(data))
        return Part(url, len(served.body), served.validator, memoryview(data))

    async def _part(
        self, extent: ByteRange, start: int, stop: int, size: int, account: str, moved: Callable[[int], None]
    ) -> Part:
        url = extent.urls[0]
        served = self.objects[url]
        self.parts.append((start, stop))
        self.under_way += 1
        try:
            if not served.ranges:
                raise RangesIgnored(f"{url}: it knows no ranges")
            await served.tap.ready(stop)
            if served.fault is not None and stop > served.fault_at:
                raise served.fault
            if len(served.body) != size or extent.validator not in ("", served.validator):
                raise StaleContent(f"{url}: another one")
            self._count(account, stop - start)
            moved(stop - start)
            return Part(url, size, served.validator, memoryview(bytearray(served.body[start:stop])))
        finally:
            self.under_way -= 1

    async def stream(
        self, urls: Sequence[str], sink: StreamSink, *, account: str, lender: Lender | None = None
    ) -> None:
        """Feed it over one connection, whatever memory could be lent."""
        if lender is not None:
            self.lenders.append(lender)
        await self._bridge.run(lambda: self._stream(urls[0], sink, account))

    async def borrow(self, nbytes: int, recall: Callable[[], None]) -> Lease | None:
        """Ask for memory as a leg of the last stream would."""
        return await self._bridge.run(lambda: self.lenders[-1].take(nbytes, recall))

    async def _range(self, served: Served, start: int, stop: int, sink: RangeSink, account: str) -> None:
        self.ranges.append(Run(start // BLOCK, -(-stop // BLOCK)))
        self.under_way += 1
        try:
            while start < stop:
                end = min(start + 2 * BLOCK, stop)
                await served.tap.ready(end)
                if served.fault is not None and end > served.fault_at:
                    raise served.fault
                self._count(account, end - start)
                await sink.write(start, memoryview(bytearray(served.body[start:end])))
                start = end
        finally:
            self.under_way -= 1

    async def _stream(self, url: str, sink: StreamSink, account: str) -> None:
        self.streams += 1
        if url not in self.objects:
            raise OriginMissing(f"{url}: HTTP 404, not there")
        served = self.objects[url]
        body, at = served.body, 0
        pieces = itertools.cycle(served.pieces)
        self.under_way += 1
        try:
            if served.fault is not None and served.fault_at == 0:
                raise served.fault
            await sink.begin(served.validator)
            while at < len(body):
                await served.tap.ready(at + 1)
                end = int(min(at + next(pieces), len(body), served.tap.limit))
                if served.fault is not None:
                    end = min(end, served.fault_at)
                    if at >= served.fault_at:
                        raise served.fault
                self._count(account, end - at)
                await sink.feed(body[at:end])
                at = served.fed = end
        finally:
            self.under_way -= 1

    def _count(self, account: str, count: int) -> None:
        self.fetched[account] = self.fetched.get(account, 0) + count


# ---- archives


@dataclass(frozen=True)
class Entry:
    """A member to pack."""

    name: str
    data: bytes = b""
    link: str = ""  # target of a symbolic link
    hard: str = ""  # name of the member that a hard link repeats


@dataclass(frozen=True)
class Packed:
    """A `.tgz`; `after` is how much of it must have come for a header (block -1) or a block to be there."""

    body: bytes
    after: dict[tuple[str, int], int]
    data: dict[str, bytes]

    @property
    def digest(self) -> str:
        """The MD5 of the archive."""
        return hashlib.md5(self.body).hexdigest()


def letters(name: str, size: int) -> bytes:
    """Return the bytes that a file of this name has, always the same."""
    return random.Random(f"{name}/{size}").randbytes(size)


def entry(name: str, size: int, salt: str = "") -> Entry:
    """Return a file with bytes of its own."""
    return Entry(name, letters(salt + name, size))


def pack(entries: Iterable[Entry], *, level: int = 1, top: str = "asset") -> Packed:
    """Pack a `.tgz` that can be stopped after each header and each block."""
    gzip = zlib.compressobj(level, zlib.DEFLATED, 31)
    out = bytearray()
    after: dict[tuple[str, int], int] = {}

    def put(raw: bytes) -> int:
        out.extend(gzip.compress(raw) + gzip.flush(zlib.Z_SYNC_FLUSH))
        return len(out)

    folder = tarfile.TarInfo(top)
    folder.type = tarfile.DIRTYPE
    put(folder.tobuf(tarfile.USTAR_FORMAT))
    data: dict[str, bytes] = {}
    for item in entries:
        info = tarfile.TarInfo(f"{top}/{item.name}")
        info.mtime = 1_700_000_000
        if item.link:
            info.type, info.linkname = tarfile.SYMTYPE, item.link
        elif item.hard:
            info.type, info.linkname = tarfile.LNKTYPE, f"{top}/{item.hard}"
        else:
            info.size = len(item.data)
            data[item.name] = item.data
        after[item.name, -1] = put(info.tobuf(tarfile.GNU_FORMAT))
        for index in range(block_count(info.size)):
            after[item.name, index] = put(item.data[index * BLOCK : (index + 1) * BLOCK])
        put(bytes(-info.size % 512))
    out.extend(gzip.compress(bytes(1024)) + gzip.flush())
    return Packed(bytes(out), after, data)


def unpack_with_tarfile(packed: Packed) -> dict[str, bytes]:
    """Return the files of an archive as Python's own reader has them."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(packed.body), mode="r:gz") as tar:
        for info in tar:
            file = tar.extractfile(info) if info.isfile() else None
            if file is not None:
                found[info.name.partition("/")[2]] = file.read()
    return found


# ---- the whole


class Rig:
    """A store, a reader and archives over one scripted origin."""

    def __init__(
        self,
        store: Store,
        http: ScriptedHttp,
        nursery: trio.Nursery,
        *,
        patience: float,
        linger: float,
        memory: int,
        spacing: int | None = None,
    ) -> None:
        self.wall = 1_700_000_000.0
        self.store = store
        self.http = http
        self.nursery = nursery
        self.board = FlightBoard()
        self.stale: list[FileFacts] = []
        self.damaged: list[ContentId] = []
        self.fresh: str | None = None  # what the origin says the archive's digest is now
        self.rechecks = 0
        real = cast(Http, http)
        self.budget = Budget(memory)
        flights = RangeFlights(Fetchers({ByteRange: real}), self.board, self.budget, nursery, http.manners)
        self.archives = Archives(
            store,
            real,
            self.board,
            flights,
            self._recheck,
            self.damaged.extend,
            ArchiveSettings(patience=patience, linger=linger, spacing=spacing or 0, indexes=spacing is not None),
            nursery,
            lambda: self.wall,
        )
        self.reader = Reader(
            store,
            self.board,
            flights,
            self.archives,
            self.stale.append,
            patience=patience,
            nursery=nursery,
            on_damage=self.damaged.extend,
            linger=linger,
        )

    async def _recheck(self, ref: ArchiveRef) -> str | None:
        self.rechecks += 1
        await trio.lowlevel.checkpoint()
        return self.fresh

    # -- byte ranges

    def serve_file(self, name: str, size: int) -> tuple[Served, FileFacts]:
        """Put a plain file at the origin."""
        url = f"http://origin/{name}"
        served = self.http.serve(url, letters(name, size))
        cid = content_id(SOURCE, "ranges", name)
        return served, FileFacts(cid, size, 0.0, ByteRange((url,), served.validator), SOURCE, "range")

    async def read(self, file: OpenFile, offset: int, size: int) -> bytes:
        """Read through the reader, as bytes."""
        return bytes(await self.reader.read(file, offset, size))

    async def read_once(self, facts: FileFacts, offset: int, size: int) -> bytes:
        """Read with a handle of its own: beyond the first block, that is a reader out of order."""
        return await self.read(await self.reader.open(facts), offset, size)

    # -- archives

    def serve_archive(
        self, packed: Packed, *, digest: str | None = None, name: str = "a"
    ) -> tuple[Served, ArchiveRef]:
        """Put an archive at the origin; the catalog has its digest right unless one is given."""
        url = f"http://origin/{name}.tgz"
        served = self.http.serve(url, packed.body)
        wanted = packed.digest if digest is None else digest
        return served, ArchiveRef(SOURCE, f"d1/{name}:default", f"digest-{name}", wanted, (url,))

    async def open_archive(self, ref: ArchiveRef, listing: tuple[str, ...] | None = None) -> Archive:
        """Open an archive whose files are named as in it."""
        return await self.archives.open(ref, Naming(listing, "d1", ("hg38",)))

    async def open_member(self, archive: Archive, name: str) -> OpenFile:
        """Open a file of an archive, waiting for its header."""
        return await self.reader.open(facts_of(archive, await self.archives.member(archive, name)), archive)

    async def content(self, archive: Archive, name: str) -> Content:
        """Return the content of a member whose header has gone by."""
        return await self.store.content(archive.content_id(name), archive.table.members[name].size)

    async def resident(self, archive: Archive, name: str) -> list[int]:
        """Return which blocks of a member are resident."""
        content = await self.content(archive, name)
        return [at for at, flag in enumerate(content.map.flags) if flag]

    # -- what is left

    @property
    def reserved(self) -> int:
        """Bytes of the cache that are promised and not used."""
        return self.store._shelf.account.reserved

    def assert_nothing_left(self, *archives: Archive) -> None:
        """No flight, no stream, no room promised."""
        assert len(self.board) == 0
        assert self.reserved == 0
        assert self.http.under_way == 0
        assert self.budget.held == 0
        assert not self.store._shelf.unsettled or all(c.settle(0) for c in self.store._shelf.unsettled.values())
        for archive in archives:
            assert archive.streams == []
            assert archive.header_waiters == archive.pulls == 0

    async def settled_streams(self, *archives: Archive) -> None:
        """Wait until these archives have no stream."""
        await eventually(lambda: not any(archive.streams for archive in archives))

    async def settled(self, *archives: Archive) -> None:
        """Wait until nothing is under way, and see that nothing is left."""
        await eventually(
            lambda: len(self.board) == 0 and self.http.under_way == self.reserved == self.budget.held == 0
        )
        await self.settled_streams(*archives)
        self.assert_nothing_left(*archives)


def facts_of(archive: Archive, member: Member) -> FileFacts:
    """Return the facts of a member, as the library has them."""
    extent = ArchiveMember(archive.ref, member.name)
    return FileFacts(archive.content_id(member.name), member.size, member.mtime, extent, SOURCE, "archive")


@asynccontextmanager
async def open_rig(
    directory: Path,
    *,
    size: int = 64 * MIB,
    patience: float = 5.0,
    linger: float = 5.0,
    memory: int = 64 * MIB,
    spacing: int | None = None,
    wait: bool = True,
) -> AsyncIterator[Rig]:
    """Open everything; what flies at the end is cancelled, and must leave nothing behind.

    With `spacing`, in unpacked bytes, seek indexes of archives are made. Without `wait`, it may not be known yet what
    is resident.
    """
    failure: BaseException | None = None
    async with (
        open_store(directory, CacheLimits(size), owner="test", wait=wait) as store,
        open_bridge(grace=0.5) as bridge,
    ):
        async with trio.open_nursery() as nursery:
            rig = Rig(
                store,
                ScriptedHttp(bridge),
                nursery,
                patience=patience,
                linger=linger,
                memory=memory,
                spacing=spacing,
            )
            try:
                yield rig
            except BaseException as exc:  # noqa: BLE001 - raised below: a nursery wraps it in a group
                failure = exc
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        assert len(rig.board) == 0
        assert rig.reserved == 0
        assert rig.budget.held == 0


async def gather(*calls: Callable[[], Awaitable[object]]) -> list[object]:
    """Run calls at one time and return their results, or what they raised, in order."""
    results: list[object] = [None] * len(calls)

    async def one(at: int) -> None:
        try:
            results[at] = await calls[at]()
        except RefgenfsError as exc:
            results[at] = exc

    async with trio.open_nursery() as nursery:
        for at in range(len(calls)):
            nursery.start_soon(one, at)
    return results
