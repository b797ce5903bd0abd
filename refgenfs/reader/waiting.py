"""What a read waits for, in words. Lives on the trio thread; looks, and changes nothing."""

from __future__ import annotations

from refgenfs.core.content import BLOCK, ArchiveMember, ByteRange, Derived, Extent, Run
from refgenfs.core.errors import redact_url
from refgenfs.core.indices import shown_index
from refgenfs.core.units import human_bytes
from refgenfs.core.verdict import Cause
from refgenfs.reader.flights import Carrier, FlightBoard
from refgenfs.reader.ranges import RangeRun
from refgenfs.reader.reader import OpenFile
from refgenfs.reader.spanbatch import SpanBatch
from refgenfs.reader.stream import ArchiveStream
from refgenfs.reader.wholestream import WholeStream


def waits_for(board: FlightBoard, file: OpenFile, offset: int, size: int) -> str:
    """Return what bytes that are not resident come by: the first block's flight, else how its file comes."""
    if file.content is not None:
        run = Run(offset // BLOCK, -(-min(offset + size, file.facts.size) // BLOCK))
        index = file.content.missing(run)
        if index < 0:
            return "the disk of the cache"
        arrival = board.find(file.content.id, index)
        if arrival is not None:
            return f"{carrier_words(arrival.carrier)}, from {file.facts.source}"
    return f"{way_words(file.facts.extent, file.facts.origin)}, from {file.facts.source}"


def cause_of_wait(board: FlightBoard, file: OpenFile, offset: int, size: int) -> Cause:
    """Return what kind of thing `waits_for` says."""
    if file.content is not None:
        index = file.content.missing(Run(offset // BLOCK, -(-min(offset + size, file.facts.size) // BLOCK)))
        if index < 0:
            return "disk"
        arrival = board.find(file.content.id, index)
        if arrival is not None and isinstance(arrival.carrier, RangeRun) and not arrival.carrier.flies:
            return "memory"
    return "made" if isinstance(file.facts.extent, Derived) else "origin"


def carrier_words(carrier: Carrier) -> str:
    """Return what brings a block, and how far it is."""
    if isinstance(carrier, RangeRun):
        if not carrier.flies:
            return "memory for its request"
        return f"bytes {carrier.run.first * BLOCK:,} to {carrier.run.stop * BLOCK - 1:,} by range"
    if isinstance(carrier, ArchiveStream):
        return f"the stream of {carrier.archive.ref.key}, at {human_bytes(carrier.position)} of what is unpacked"
    if isinstance(carrier, WholeStream):
        return f"all of a file whose host gives no parts, at {human_bytes(carrier.next * BLOCK)}"
    if isinstance(carrier, SpanBatch):
        return f"spans of the archive of {carrier.archive.ref.key}"
    return "bytes on their way"


def way_words(extent: Extent, origin: str) -> str:
    """Return how a content comes, where nothing of it is on its way."""
    if isinstance(extent, ByteRange) and extent.urls:
        return f"a range of {redact_url(extent.urls[0])}"
    if isinstance(extent, ArchiveMember):
        return f"the archive of {extent.archive.key}"
    if isinstance(extent, Derived):
        return f"what is made of {shown_index(extent.name)} of {extent.version.key}"
    return f"bytes of origin {origin!r}"
