"""Searches of indexed files that are read by byte ranges, wherever they are: a header, an index, and no more.

Reads are of `PIECE` bytes at the most, a few at a time; what takes long (an index of 10 MB takes tens of
milliseconds) is done on a worker thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio

from refgenfs.core.errors import IntegrityError, RefgenfsError
from refgenfs.core.htsget.answer import Answer
from refgenfs.core.htsget.edges import settle
from refgenfs.core.htsget.indexed import IndexedFile
from refgenfs.core.htsget.model import Query, Region, Ticket
from refgenfs.core.htsget.opening import Sizes, open_file
from refgenfs.core.htsget.plan import Need, Part, Plan

PIECE = 1 << 20  # bytes of a read
AT_ONCE = 4  # reads of a round under way

T = TypeVar("T")


class RangeReader(Protocol):
    """A file that is read by byte ranges."""

    @property
    def size(self) -> int:
        """How many bytes it has."""
        ...

    async def read(self, start: int, stop: int) -> bytes | memoryview:
        """Return the bytes `start` up to, not including, `stop`."""
        ...


@dataclass(frozen=True, slots=True)
class Indexed:
    """A file with its index, opened: it can be searched any number of times."""

    file: IndexedFile
    data: RangeReader

    def region(self, text: str) -> Region:
        """Parse a region as samtools writes it."""
        return self.file.region(text)

    async def search(self, query: Query) -> Answer:
        """Return what of the file answers a query; reads the blocks at the edges of its ranges.

        Raises HtsgetError for a query that it can't answer, IntegrityError for an index that is not the file's, and
        what the reader raises.
        """
        answer = await trio.to_thread.run_sync(self.file.search, query)
        return await _run(settle(self.file, answer), {Part.DATA: self.data})


async def open_indexed(data: RangeReader, index: RangeReader | None, gzi: RangeReader | None = None) -> Indexed:
    """Read the header of a BAM, CRAM, VCF or BCF and its index (and GZI), without the rest of the file.

    Raises UnsupportedFormat, IntegrityError, and what the readers raise.
    """
    sizes = Sizes(data.size, index.size if index else None, gzi.size if gzi else None)
    readers = {Part.DATA: data, Part.INDEX: index, Part.GZI: gzi}
    file = await _run(open_file(sizes), {part: reader for part, reader in readers.items() if reader is not None})
    return Indexed(file, data)


async def ticket(
    data: RangeReader, index: RangeReader | None, gzi: RangeReader | None, query: Query, url: str
) -> Ticket:
    """Return the ticket that answers a query of a file that is at `url`; raises as opening and searching do."""
    opened = await open_indexed(data, index, gzi)
    return (await opened.search(query)).ticket(url)


async def _run(plan: Plan[T], readers: dict[Part, RangeReader]) -> T:
    """Run a plan; what it computes is done on a thread, one step at a time."""
    got: Sequence[bytes] | None = None
    while True:
        needs, result = await trio.to_thread.run_sync(_step, plan, got)
        if needs is None:
            return result[0]
        got = await _read_all(needs, readers)


def _step(plan: Plan[T], got: Sequence[bytes] | None) -> tuple[tuple[Need, ...] | None, list[T]]:
    """Return what a plan needs next, or None and its result: no StopIteration gets out of a thread."""
    try:
        return (next(plan) if got is None else plan.send(got)), []
    except StopIteration as end:
        return None, [end.value]


async def _read_all(needs: Sequence[Need], readers: dict[Part, RangeReader]) -> list[bytes]:
    """Read what is needed, a few pieces at a time; the first error ends the others."""
    out = [bytearray(len(need)) for need in needs]
    pieces = iter(
        [
            (target, need, at)
            for target, need in zip(out, needs, strict=True)
            for at in range(need.start, need.stop, PIECE)
        ]
    )

    failed: list[RefgenfsError] = []

    async def work() -> None:
        for target, need, at in pieces:
            stop = min(at + PIECE, need.stop)
            try:
                data = await readers[need.part].read(at, stop)
            except RefgenfsError as exc:
                failed.append(exc)
                nursery.cancel_scope.cancel()
                return
            if len(data) != stop - at:
                failed.append(IntegrityError(f"{len(data)} bytes came of the {stop - at} from {at} on"))
                nursery.cancel_scope.cancel()
                return
            target[at - need.start : stop - need.start] = data

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(work)
    if failed:
        raise failed[0]
    return [bytes(one) for one in out]
