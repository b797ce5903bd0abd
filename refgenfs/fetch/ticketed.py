"""Contents that are blocks of tickets: how long they are, and their bytes.

Awaited from trio; a call crosses to the asyncio loop once, where everything below its first lines runs.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from refgenfs.core.content import BLOCK
from refgenfs.core.errors import DeadlineExceeded, IntegrityError, OriginDenied, OriginMissing, StaleContent
from refgenfs.core.htsget import bgzf, cram
from refgenfs.core.htsget.model import Class, Format, Query
from refgenfs.core.httprange import UNKNOWN
from refgenfs.core.retry import Retry
from refgenfs.core.ticket import Place
from refgenfs.core.ticketblocks import TicketBlock, TicketBlocks
from refgenfs.fetch.answers import AttemptFailed
from refgenfs.fetch.blocks import DIGEST, BlockTransfer, PartRefused, Probe, SpoolTransfer, SteppedBack, Taker, probe
from refgenfs.fetch.http import Http
from refgenfs.fetch.pieces import PIECE, Assembler, RangeSink
from refgenfs.fetch.spools import Scratch, Spool, Spools
from refgenfs.fetch.tickets import LiveTicket, Manner, Tickets, digest_of
from refgenfs.fetch.transfers import Line

V = TypeVar("V")

PROBES = 8  # objects that are asked for their validator where their ticket has told all lengths
AT_ONCE = 4  # blocks that are asked for their lengths at a time
STEPS_BACK = 3  # how often a fetch loses what it has received of earlier blocks
REMEMBERED = 4096  # blocks that were spooled, of which it is known what they were
_ENDS = 64  # bytes at either end of a header that are looked at


@dataclass(frozen=True, slots=True)
class Settled:
    """What a ticket's blocks are, and when their objects were last changed (Unix seconds; 0.0: nobody says)."""

    extent: TicketBlocks
    mtime: float


class TicketFetcher:
    """Brings contents that are blocks of tickets. `servers` gives the URLs of an account's server."""

    def __init__(self, http: Http, scratch: Scratch, servers: Callable[[str], Sequence[str]]) -> None:
        self.tickets = Tickets(http, servers)
        self.spools = Spools(scratch)
        self._http = http
        self._told: _Few[tuple[tuple[int | None, ...], TicketBlock]] = (
            _Few()
        )  # what spools told, by the ticket's look
        self._seen: _Few[str] = _Few()  # digests of blocks that were spooled

    async def aclose(self) -> None:
        """End what is under way, and remove what was spooled."""
        await self._http.run(self._aclose)

    async def _aclose(self) -> None:
        await self.tickets.aclose()
        await self.spools.aclose()

    # ---- sizes

    async def settle(self, query: Query, *, account: str, patience: float | None = None) -> Settled:
        """Ask for a ticket, and for the exact length of each of its blocks.

        A header gets the end marker that makes it a file. With `patience` (seconds), nobody is asked twice, nor
        waited for longer: DeadlineExceeded. Raises the errors of the server and of the hosts of its blocks.
        """
        return await self._http.run(lambda: self._settle(account, query, patience))

    async def sibling(self, query: Query, suffix: str, *, account: str) -> Settled | None:
        """Return what is beside the one object that a query's ticket is of, under its URL and `suffix`.

        None: there is nothing, or the ticket is not of one whole object, or of one whose URL has a query: it may be
        a signature.
        """
        return await self._http.run(lambda: self._sibling(account, query, suffix))

    async def _settle(self, account: str, query: Query, patience: float | None) -> Settled:
        limit = asyncio.timeout(patience)
        try:
            async with limit:
                live = await self.tickets.ask(account, query, patience=patience)
                return await self._measure(live, patience)
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise DeadlineExceeded(f"the blocks of {query.id} told no length within {patience:g} s") from exc

    async def _measure(self, live: LiveTicket, patience: float | None) -> Settled:
        probes = _Probes(self, live, patience)
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(index: int) -> TicketBlock:
            async with turns:
                return await probes.block(index)

        tasks = [asyncio.create_task(one(index)) for index in range(len(live.blocks))]
        try:
            blocks = tuple([await task for task in tasks])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.exception()  # seen: the first is told
            await probes.aclose()
        extent = TicketBlocks(live.query, blocks, live.md5)
        if live.query.class_ is Class.HEADER:
            extent = TicketBlocks(live.query, blocks, live.md5, await self._missing_end(live, extent))
        return Settled(extent, probes.mtime)

    async def _missing_end(self, live: LiveTicket, extent: TicketBlocks) -> bytes:
        """Return the end marker that a header has not, in the form that its file has."""
        if not extent.size:
            return b""
        head = await self._read(extent, 0, min(_ENDS, extent.size), live.account)
        tail = await self._read(extent, max(0, extent.size - _ENDS), extent.size, live.account)
        marker = b""
        if extent.query.format is Format.CRAM:
            marker = cram.eof_marker(cram.parse_version(head))
        elif bgzf.is_bgzf(head):
            marker = bgzf.EOF_MARKER
        return b"" if tail.endswith(marker) else marker

    async def _sibling(self, account: str, query: Query, suffix: str) -> Settled | None:
        live = await self.tickets.get(account, query)
        whole = _one_object(live)
        if whole is None or "?" in whole.url:
            return None
        place = live.object(0, suffix)
        assert isinstance(place, Place)
        if whole.stop is not None and (await self.probe(account, whole, None)).size != whole.stop:
            return None  # the file is a part of the object: offsets are others
        found = await self._look_for(account, place)
        if found is None or found.size in (0, UNKNOWN) or not found.ranges:
            return None
        return Settled(TicketBlocks(query, (TicketBlock(found.size, found.validator),), suffix=suffix), found.mtime)

    async def probe(self, account: str, place: Place, patience: float | None) -> Probe:
        """Ask the host of an object what it is."""
        line = self._http.line(account)

        async def attempt(url: str, retry: Retry) -> Probe:
            return await probe(line, place, url, retry)

        retry_for = None if patience is None else 0
        return await self._http.attempts.make([place.url], account, attempt, retry_for=retry_for)

    async def _look_for(self, account: str, place: Place) -> Probe | None:
        """Return what an object is that need not be there; None: it isn't, which is no failure."""
        line = self._http.line(account)

        async def attempt(url: str, retry: Retry) -> Probe | None:
            try:
                return await probe(line, place, url, retry)
            except AttemptFailed as failure:
                if failure.kind in (OriginMissing, OriginDenied):
                    return None
                raise

        return await self._http.attempts.make([place.url], account, attempt)

    async def _read(self, extent: TicketBlocks, start: int, stop: int, account: str) -> bytes:
        gathered = _Gathered(start)
        await self._bring(extent, stop, gathered, account)
        return bytes(gathered.data)

    # ---- bytes

    async def fetch_range(
        self, extent: TicketBlocks, start: int, stop: int, size: int, sink: RangeSink, *, account: str
    ) -> None:
        """Bring the bytes `start` up to `stop` of a content of `size` bytes to the sink, in pieces.

        `start` and `stop` lie on borders of blocks of the cache, but for a `stop` at the end. A ticket whose blocks
        are refused is asked for again, once; StaleContent where that is for other blocks.
        """
        if start % BLOCK or (stop % BLOCK and stop != size) or not 0 <= start <= stop <= size == extent.size:
            raise ValueError(f"no whole blocks: {start} to {stop} of {size}")
        if start == stop:
            return

        async def transfer() -> None:
            assembler = Assembler(start, stop, sink)
            try:
                await self._bring(extent, stop, assembler, account)
                await assembler.finish()
            finally:
                await assembler.aclose()

        await self._http.run(transfer)

    async def _bring(self, extent: TicketBlocks, stop: int, taker: Taker, account: str) -> None:
        """Push the bytes from the taker's position up to `stop`."""
        steps_back, renewed = 0, False
        while taker.position < stop:
            piece = next(extent.pieces(taker.position, stop))
            if piece.index is None:
                await taker.push(memoryview(extent.tail)[piece.start : piece.stop])
                continue
            live = await self.tickets.get(account, extent.query)
            live.check(extent)
            try:
                await self._bring_piece(live, extent, piece.index, taker.position - piece.start, piece.stop, taker)
            except SteppedBack as exc:
                steps_back += 1
                if steps_back > STEPS_BACK:
                    raise exc.error from None
            except (OriginDenied, OriginMissing):
                if renewed:
                    raise
                renewed = True
                (await self.tickets.renew(live)).check(extent)

    async def _bring_piece(
        self, live: LiveTicket, extent: TicketBlocks, index: int, base: int, stop: int, taker: Taker
    ) -> None:
        """Push the bytes of one block from the taker's position up to its `stop`; it begins at `base`."""
        place, block = live.object(index, extent.suffix), extent.blocks[index]
        if isinstance(place, bytes):
            await taker.push(memoryview(place)[taker.position - base : stop])
            return
        if live.manners[index] is not Manner.WHOLE and not place.whole and not block.validator.startswith(DIGEST):
            whole = stop == block.length and taker.position == base
            try:
                await self._transfer(live, place, BlockTransfer(self._line(live), place, block, base, stop, taker))
            except OriginDenied:
                # It may have expired, or its range may be signed: then it is to be had as the ticket says.
                if whole or live.manners[index] is Manner.PARTS or not place.exact:
                    raise
            except PartRefused:
                pass
            else:
                if not whole:
                    live.manners[index] = Manner.PARTS
                return
            live.manners[index] = Manner.WHOLE
        await self._bring_spooled(live, extent, index, place, base, stop, taker)

    async def _bring_spooled(
        self, live: LiveTicket, extent: TicketBlocks, index: int, place: Place, base: int, stop: int, taker: Taker
    ) -> None:
        block = extent.blocks[index]
        if block.length > self.spools.limit:
            slices = BlockTransfer(self._line(live), place, block, base, stop, taker, slicing=True)
            await self._transfer(live, place, slices)
            return
        key = _spool_key(live, index, block, extent.suffix)
        known = block.validator if block.validator.startswith(DIGEST) else self._seen.get(key)
        spool = self.spools.find(key) or self._spool(key, live, place, block)
        with spool.use():
            if known is not None and (await spool.whole() != block.length or DIGEST + spool.digest != known):
                self.spools.drop(key)
                self._told.pop((live.account, live.query, index), None)
                raise StaleContent(f"{extent.query.id}: a block has other bytes now; open the file again")
            while taker.position < base + stop:
                at = taker.position - base
                await taker.push(memoryview(await spool.read(at, min(stop, at + PIECE))))
            if spool.length is not None:
                self._seen.put(key, DIGEST + spool.digest)

    def _spool(self, key: Hashable, live: LiveTicket, place: Place, block: TicketBlock | None) -> Spool:
        """Begin to spool a block."""

        async def fill(spool: Spool) -> None:
            await self._transfer(live, place, SpoolTransfer(self._line(live), place, self.spools, spool, block))

        return self.spools.begin(key, fill)

    async def spool_now(self, live: LiveTicket, index: int, place: Place) -> TicketBlock:
        """Return a block of which nobody tells the length, by having it all. What is read of it comes from there.

        What once came so is believed until the ticket looks different, or it turns out to have other bytes.
        """
        key = (live.account, live.query, index)
        told = self._told.get(key)
        if told is not None and told[0] == live.lengths:
            return told[1]
        spool = self.spools.find(key) or self._spool(key, live, place, None)
        with spool.use():
            block = TicketBlock(await spool.whole(), DIGEST + spool.digest)
        self.spools.rename(key, _spool_key(live, index, block))
        self._told.put(key, (live.lengths, block))
        return block

    async def _transfer(self, live: LiveTicket, place: Place, transfer: BlockTransfer | SpoolTransfer) -> None:
        await self._http.attempts.make([place.url], live.account, transfer.attempt)

    def _line(self, live: LiveTicket) -> Line:
        return self._http.line(live.account)


def _one_object(live: LiveTicket) -> Place | None:
    """Return the one object that a ticket's blocks are, from its first byte on without gaps; None: they are not."""
    reached: int | None = 0
    first = live.blocks[0]
    for block in live.blocks:
        if not isinstance(block, Place) or not isinstance(first, Place) or block.whole:
            return None
        if (block.url, block.headers) != (first.url, first.headers) or block.start != reached:
            return None
        reached = block.stop
    assert isinstance(first, Place)
    return Place(first.url, first.headers, 0, reached)


def _spool_key(live: LiveTicket, index: int, block: TicketBlock, suffix: str = "") -> Hashable:
    return live.account, live.query, index, block, suffix


class _Few(OrderedDict[Hashable, V]):
    """The values that were put last."""

    def put(self, key: Hashable, value: V) -> None:
        """Put a value, and forget the oldest where there are many."""
        self.pop(key, None)
        self[key] = value
        if len(self) > REMEMBERED:
            self.popitem(last=False)


class _Gathered:
    """Bytes that are wanted in memory."""

    def __init__(self, start: int) -> None:
        self.data = bytearray()
        self._start = start

    @property
    def position(self) -> int:
        return self._start + len(self.data)

    def forget_piece(self) -> None:
        self.data.clear()

    async def push(self, chunk: memoryview) -> None:
        self.data += chunk


class _Probes:
    """The lengths of one ticket's blocks: what it tells, what the hosts of their objects tell, what comes."""

    def __init__(self, fetcher: TicketFetcher, live: LiveTicket, patience: float | None) -> None:
        self.mtime = 0.0
        self._fetcher = fetcher
        self._live = live
        self._patience = patience
        self._objects: dict[Hashable, asyncio.Task[Probe]] = {}

    async def block(self, index: int) -> TicketBlock:
        """Return a block with its exact length."""
        place = self._live.blocks[index]
        if isinstance(place, bytes):
            return TicketBlock(len(place), digest_of(place))
        if place.whole:
            return await self._fetcher.spool_now(self._live, index, place)
        found = await self._look_at(place, needed=place.length is None)
        if found is not None:
            self._note(index, found)
        if place.length is not None:
            return TicketBlock(place.length, found.validator if found is not None else "")
        if found is None or found.size == UNKNOWN:
            return await self._fetcher.spool_now(self._live, index, place)
        if found.size < place.start:
            raise IntegrityError(f"the ticket of {self._live.query.id} has a range behind the end of its object")
        return TicketBlock(found.size - place.start, found.validator)

    def _note(self, index: int, found: Probe) -> None:
        self.mtime = max(self.mtime, found.mtime)
        if found.ranges:
            self._live.manners[index] = Manner.PARTS
        elif found.denied or found.size > 1:
            self._live.manners[index] = Manner.WHOLE

    async def _look_at(self, place: Place, *, needed: bool) -> Probe | None:
        """Ask what an object is, each once; None where there are many, and it need not be known."""
        key = (place.url, place.headers)
        task = self._objects.get(key)
        if task is None:
            if not needed and len(self._objects) >= PROBES:
                return None
            call = self._fetcher.probe(self._live.account, place, self._patience)
            task = self._objects[key] = asyncio.create_task(call)
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        """End what is under way."""
        for task in self._objects.values():
            task.cancel()
        if self._objects:
            await asyncio.wait(self._objects.values())
        for task in self._objects.values():
            if not task.cancelled():
                task.exception()  # seen: whoever wanted it has it
