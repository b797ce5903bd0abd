"""A `.tgz` on its way in: inflated, parsed, cut into blocks and stored while it arrives.

Three threads take part. The asyncio loop feeds compressed bytes; a worker thread, one a sink, does what costs
time (MD5, inflation, checksums, writing); the trio thread decides, through an `ArchiveReceiver`, where each
block goes, and hears when it is there. Memory is bounded: `AHEAD` compressed bytes that wait, and one batch.
"""

from __future__ import annotations

import hashlib
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol, TypeVar

import trio

from refgenfs.core.content import BLOCK
from refgenfs.core.errors import ArchiveError, RefgenfsError
from refgenfs.core.tar import Data, EndOfMember, Member, NeedData, TarParser
from refgenfs.fetch.cutting import BlockArrival as BlockArrival
from refgenfs.fetch.cutting import BlockOffer as BlockOffer
from refgenfs.fetch.cutting import Blocks, BlockWriter, Cutter, store
from refgenfs.fetch.inflating import STEP as STEP
from refgenfs.fetch.inflating import GzipInflater
from refgenfs.fetch.intake import Intake, IntakeClosed
from refgenfs.fetch.seekpoints import IndexBuilder

# A crossing to the trio thread: some 2 ms of inflation against 0.2 ms of crossing.
BATCH = 1024 * 1024 // BLOCK  # blocks


class SinkClosed(RefgenfsError):
    """The archive's sink was closed while it was in use."""


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
    cause), and what the receiver raises as it is. Blocks that arrived before are not taken back: the gzip checksum
    is known at the end only. `close` must be called.

    With `index` the archive's seek index is made on the way: after `finish` and `close`, the builder may write it.
    """

    def __init__(
        self,
        receiver: ArchiveReceiver[BlockWriter],
        token: trio.lowlevel.TrioToken,
        index: IndexBuilder | None = None,
    ) -> None:
        self._receiver = receiver
        self._token = token
        self._intake = Intake()
        self._gzip: GzipInflater | IndexBuilder = GzipInflater() if index is None else index
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._parser = TarParser()
        self._cutter = Cutter()
        self._members: list[Member] = []
        self._batch: list[Blocks] = []
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
                    for blocks in self._cutter.cut(data):
                        self._collect(blocks)
                case Member() as member:
                    self._members.append(member)
                    if isinstance(self._gzip, IndexBuilder):
                        self._gzip.expect(member)
                    self._cutter.begin(member)
                    self._post(partial(self._receiver.member, member))
                case EndOfMember():
                    self._flush()
                case NeedData():
                    return
                case _:
                    return

    def _collect(self, blocks: Blocks) -> None:
        while blocks.data:
            head, blocks = blocks.split(BATCH - self._batched)
            self._batch.append(head)
            self._batched += head.count
            if self._batched == BATCH:
                self._flush()

    def _flush(self) -> None:
        """Have the batch admitted, write what was, and tell of all of it."""
        if not self._batch:
            return
        batch, self._batch, self._batched = self._batch, [], 0
        offers = [BlockOffer(blocks.name, index, len(data)) for blocks in batch for index, data in blocks]
        self._check_running()
        writers = trio.from_thread.run(self._admit, offers, trio_token=self._token)
        if writers is None:
            raise _Stopped
        arrivals: list[BlockArrival] = []
        for blocks in batch:
            first = len(arrivals)
            arrivals += store(blocks, writers[first : first + blocks.count])
        self._post(partial(self._receiver.commit, arrivals))

    def _conclude(self) -> None:
        if not self._gzip.ended:
            raise ArchiveError("the archive is cut short: its gzip data has no end")
        if not self._parser.ended:
            raise ArchiveError("the archive is cut short: its tar data has no end mark")
        self._post(partial(self._receiver.finished, self._members, self._md5.hexdigest()))

    def _post(self, call: Callable[[], None]) -> None:
        self._token.run_sync_soon(self._tell, call)

    def _check_running(self) -> None:
        if self._closed or self._failed:
            raise _Stopped


class _Stopped(Exception):
    """Inside the worker: the sink was closed, or the receiver failed."""
