"""A `.tgz` on its way in: inflated, parsed, cut into blocks and stored while it arrives.

Three threads take part. The asyncio loop feeds compressed bytes; a worker thread, one a sink, does what costs
time (MD5, inflation, checksums, writing); the trio thread decides, through an `ArchiveReceiver`, where each
block goes, and hears when it is there. Memory is bounded: `AHEAD` compressed bytes that wait, and one batch.
"""

from __future__ import annotations

import hashlib
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Protocol, TypeVar, cast

import trio
from isal import isal_zlib

from refgenfs.core.content import BLOCK, block_length
from refgenfs.core.errors import ArchiveError, CacheError, IntegrityError, RefgenfsError
from refgenfs.core.tar import Data, EndOfMember, Member, NeedData, TarParser
from refgenfs.fetch.intake import Intake, IntakeClosed

STEP = 1 << 20  # bytes inflated at once: bounds what a bomb can take, and is large enough to cost no overhead
BATCH = 8  # blocks a crossing to the trio thread: 1 MiB, some 2 ms of inflation against 0.2 ms of crossing

_GZIP_ERROR = cast(type[Exception], isal_zlib.error)  # which isal's stub calls an instance


class SinkClosed(RefgenfsError):
    """The archive's sink was closed while it was in use."""


class BlockWriter(Protocol):
    """Where blocks of one content are written to. Called on the worker thread."""

    def write(self, index: int, data: memoryview) -> object:
        """Write whole consecutive blocks from block `index` on; raise CacheError when the disk refuses."""
        ...


@dataclass(frozen=True, slots=True)
class BlockOffer:
    """A block that is here: block `index` of the member `name`, `length` bytes."""

    name: str
    index: int
    length: int


@dataclass(frozen=True, slots=True)
class BlockArrival:
    """A block's bytes, which stay valid. `crc` is its CRC-32, or None where it was not stored."""

    name: str
    index: int
    data: memoryview
    crc: int | None


W_co = TypeVar("W_co", bound=BlockWriter, covariant=True)


class ArchiveReceiver(Protocol[W_co]):
    """What an archive is unpacked for. Called on the trio thread, in the order of the archive.

    A member comes before offers of its blocks, and all arrivals of its blocks before the next member.
    """

    def member(self, member: Member) -> None:
        """Hear that a member's header went by."""
        ...

    async def admit(self, offers: list[BlockOffer], /) -> Sequence[W_co | None]:
        """Return for each offer where to write the block, None for nowhere. The archive waits meanwhile."""
        ...

    def commit(self, arrivals: list[BlockArrival], /) -> None:
        """Take the blocks that were offered last."""
        ...

    def finished(self, members: list[Member], digest: str, /) -> None:
        """Hear that the whole archive went by, well-formed; `digest` is the MD5 (hex) of its packed bytes."""
        ...


class ArchiveSink:
    """Unpacks one archive for a receiver. `feed` is awaited on the asyncio loop, all else on trio.

    What goes wrong is raised by `feed` or `finish`: ArchiveError for a damaged or unsafe archive (with its
    cause), IntegrityError for another MD5 than `digest`, and what the receiver raises as it is. Blocks that
    arrived before are not taken back: the gzip checksum is known at the end only. `close` must be called.
    """

    def __init__(
        self, receiver: ArchiveReceiver[BlockWriter], token: trio.lowlevel.TrioToken, digest: str = ""
    ) -> None:
        self._receiver = receiver
        self._token = token
        self._digest = digest
        self._intake = Intake()
        self._gzip = GzipInflater()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._parser = TarParser()
        self._cutter = _Cutter()
        self._members: list[Member] = []
        self._batch: list[_Span] = []
        self._batched = 0  # blocks in the batch
        self._thread: threading.Thread | None = None
        self._stopped = trio.Event()
        self._closed = False
        self._failed = False  # the receiver raised, outside of admit
        self._error: Exception | None = None
        self._admission: trio.CancelScope | None = None

    async def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the archive; waits while the worker is behind."""
        self._start()
        try:
            await self._intake.put(data if isinstance(data, bytes) else bytes(data))
        except IntakeClosed:
            self._raise_error()
            raise SinkClosed("the archive's sink is closed") from None
        self._raise_error()

    async def finish(self) -> str:
        """Wait until everything fed is unpacked, check that it is a whole archive, and return its MD5 (hex)."""
        self._start()
        self._intake.end()
        await self._stopped.wait()
        self._raise_error()
        if self._closed:
            raise SinkClosed("the archive's sink is closed")
        return self._md5.hexdigest()

    async def close(self) -> None:
        """Stop, and wait until the worker is gone; the receiver is not called any more. To be shielded."""
        self._closed = True
        self._intake.close()
        if self._admission is not None:
            self._admission.cancel()
        if self._thread is not None:
            await self._stopped.wait()
            self._thread.join()  # at its last statement
        self._error = None  # its frames know the sink: a cycle with its buffers in it
        self._batch = []

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    # On the trio thread

    async def _admit(self, offers: list[BlockOffer]) -> Sequence[BlockWriter | None] | None:
        """Ask the receiver; None when the sink is closed."""
        if self._closed:
            return None
        with trio.CancelScope() as self._admission:
            return await self._receiver.admit(offers)
        return None

    def _tell(self, call: Callable[[], None]) -> None:
        """Call the receiver. An error of it stops the worker; nothing may escape into trio's own loop."""
        if self._closed or self._failed:
            return
        try:
            call()
        except Exception as exc:  # noqa: BLE001 - raised again by feed and finish
            self._failed = True
            self._error = self._error or exc
            traceback.clear_frames(exc.__traceback__)  # they hold the buffers, and the error is kept
            self._intake.close()

    # On the worker thread

    def _start(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="archive", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            self._unpack()
        except (_Stopped, trio.RunFinishedError, trio.Cancelled):
            pass  # closed, or trio is ending: nobody wants the rest
        except Exception as exc:  # noqa: BLE001 - raised again by feed and finish
            self._error = self._error or exc
            traceback.clear_frames(exc.__traceback__)  # they hold the buffers, and the error is kept
        finally:
            self._intake.close()
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._stopped.set)

    def _unpack(self) -> None:
        while (piece := self._intake.take()) is not None:
            self._md5.update(piece)
            for inflated in self._gzip.inflate(piece):
                self._parser.feed(inflated)
                self._parse()
            if self._intake.empty:  # else what comes next may fill the batch
                self._flush()
        self._check_running()
        self._flush()
        self._conclude()

    def _parse(self) -> None:
        while True:
            match self._parser.next_event():
                case Data(data):
                    for span in self._cutter.cut(data):
                        self._collect(span)
                case Member() as member:
                    self._members.append(member)
                    self._cutter.begin(member)
                    self._post(partial(self._receiver.member, member))
                case EndOfMember():
                    self._flush()
                case NeedData():
                    return
                case _:
                    return

    def _collect(self, span: _Span) -> None:
        while span.data:
            head, span = span.split(BATCH - self._batched)
            self._batch.append(head)
            self._batched += head.blocks
            if self._batched == BATCH:
                self._flush()

    def _flush(self) -> None:
        """Have the batch admitted, write what was, and tell of all of it."""
        if not self._batch:
            return
        spans, self._batch, self._batched = self._batch, [], 0
        offers = [BlockOffer(span.name, index, len(data)) for span in spans for index, data in span]
        self._check_running()
        writers = trio.from_thread.run(self._admit, offers, trio_token=self._token)
        if writers is None:
            raise _Stopped
        arrivals: list[BlockArrival] = []
        for span in spans:
            first = len(arrivals)
            arrivals += _store(span, writers[first : first + span.blocks])
        self._post(partial(self._receiver.commit, arrivals))

    def _conclude(self) -> None:
        if not self._gzip.ended:
            raise ArchiveError("the archive is cut short: its gzip data has no end")
        if not self._parser.ended:
            raise ArchiveError("the archive is cut short: its tar data has no end mark")
        digest = self._md5.hexdigest()
        if self._digest not in ("", digest):
            raise IntegrityError(f"the archive's MD5 is {digest}, not {self._digest} as the catalog says")
        self._post(partial(self._receiver.finished, self._members, digest))

    def _post(self, call: Callable[[], None]) -> None:
        self._token.run_sync_soon(self._tell, call)

    def _check_running(self) -> None:
        if self._closed or self._failed:
            raise _Stopped


class _Stopped(Exception):
    """Inside the worker: the sink was closed, or the receiver failed."""


class GzipInflater:
    """Inflates gzip (RFC 1952) fed in pieces: one or more gzip members, and zero bytes after the last.

    Raises ArchiveError for data that is no gzip, or that differs from the length or CRC that gzip has of it.
    """

    def __init__(self) -> None:
        self._member: isal_zlib.Decompress | None = None
        self._seen = 0  # members that ended well

    @property
    def ended(self) -> bool:
        """Say whether the last member that began has ended, with the right checksum."""
        return self._seen > 0 and self._member is None

    def inflate(self, data: bytes) -> Iterator[bytes]:
        """Give what the data inflates to, at most `STEP` bytes at once, never empty."""
        full = False
        while data or full:
            if self._member is None:
                if self._seen:
                    data = data.lstrip(b"\0")  # tapes pad; gzip(1) ignores it too
                if not data:
                    return
                self._member = isal_zlib.decompressobj(wbits=31)
            try:
                inflated = self._member.decompress(data, STEP)
            except _GZIP_ERROR as exc:
                what = "followed by something else" if self._seen else "damaged"
                raise ArchiveError(f"the archive's gzip data is {what}: {exc}") from exc
            full = len(inflated) == STEP
            data = self._member.unconsumed_tail
            if self._member.eof:
                full, data, self._member = False, self._member.unused_data, None
                self._seen += 1
            if inflated:
                yield inflated


@dataclass(frozen=True, slots=True)
class _Span:
    """Whole consecutive blocks of one member, from block `index` on."""

    name: str
    index: int
    data: memoryview

    @property
    def blocks(self) -> int:
        return -(-len(self.data) // BLOCK)

    def __iter__(self) -> Iterator[tuple[int, memoryview]]:
        for at in range(self.blocks):
            yield self.index + at, self.data[at * BLOCK : (at + 1) * BLOCK]

    def part(self, first: int, stop: int) -> _Span:
        return _Span(self.name, self.index + first, self.data[first * BLOCK : stop * BLOCK])

    def split(self, blocks: int) -> tuple[_Span, _Span]:
        return self.part(0, blocks), self.part(blocks, self.blocks)


class _Cutter:
    """Cuts the data of members into blocks. Copies only blocks that come in several pieces."""

    def __init__(self) -> None:
        self._name = ""
        self._size = 0
        self._index = 0  # of the block that comes next
        self._begun: list[memoryview] = []  # its first bytes
        self._held = 0

    def begin(self, member: Member) -> None:
        """Go on to a member."""
        self._name, self._size, self._index = member.name, member.size, 0
        self._begun, self._held = [], 0

    def cut(self, data: memoryview) -> Iterator[_Span]:
        """Take the member's next bytes and give the blocks that are complete."""
        if self._begun:
            wanted = block_length(self._size, self._index) - self._held
            self._begin_block(data[:wanted])
            if len(data) < wanted:
                return
            yield self._span(memoryview(b"".join(self._begun)))
            self._begun, self._held = [], 0
            data = data[wanted:]
        at_end = len(data) == self._size - self._index * BLOCK
        whole = len(data) if at_end else len(data) // BLOCK * BLOCK
        if whole:
            yield self._span(data[:whole])
        if data[whole:]:
            self._begin_block(data[whole:])

    def _begin_block(self, data: memoryview) -> None:
        self._begun.append(data)
        self._held += len(data)

    def _span(self, data: memoryview) -> _Span:
        span = _Span(self._name, self._index, data)
        self._index += span.blocks
        return span


def _store(span: _Span, writers: Sequence[BlockWriter | None]) -> Iterator[BlockArrival]:
    """Write the blocks that have a writer, neighbours in one piece, and give all of them."""
    numbered = enumerate(writers)
    for _, group in groupby(numbered, key=lambda pair: id(pair[1])):
        places = list(group)
        part = span.part(places[0][0], places[-1][0] + 1)
        stored = _write(part, places[0][1])
        for index, data in part:
            yield BlockArrival(span.name, index, data, isal_zlib.crc32(data) if stored else None)


def _write(span: _Span, writer: BlockWriter | None) -> bool:
    if writer is None:
        return False
    try:
        writer.write(span.index, span.data)
    except CacheError:
        return False  # the store counts it; whoever waits for the bytes gets them all the same
    return True
