"""Queries and tickets of htsget 1.3 (hts-specs, `htsget.md`), as values."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from enum import StrEnum

from refgenfs.core.errors import InvalidInput, InvalidRange

UNPLACED = "*"  # the reference name that means reads that are unmapped and placed nowhere
LARGEST_POSITION = (1 << 32) - 1  # `start` and `end` are 32 bit unsigned


class Format(StrEnum):
    """What the blocks of a ticket make when they are joined."""

    BAM = "BAM"
    CRAM = "CRAM"
    VCF = "VCF"
    BCF = "BCF"

    @property
    def is_reads(self) -> bool:
        """Whether the `/reads` endpoint has it, not `/variants`."""
        return self in {Format.BAM, Format.CRAM}

    @property
    def is_bgzf(self) -> bool:
        """Whether a file of it is a sequence of BGZF blocks (SAMv1, 4.1)."""
        return self is not Format.CRAM


class Class(StrEnum):
    """What a block holds of the file: its header only, or none of it."""

    HEADER = "header"
    BODY = "body"


@dataclass(frozen=True, slots=True)
class Interval:
    """Positions `start` up to, not including, `end`, 0-based; None is where the reference begins or ends.

    Raises InvalidRange for an end before the start, and for what no 32 bits hold.
    """

    start: int | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            if value is not None and not 0 <= value <= LARGEST_POSITION:
                raise InvalidRange(f"{name} is {value}: it has to be from 0 to {LARGEST_POSITION}")
        if self.end is not None and self.first > self.end:
            raise InvalidRange(f"start {self.start} is behind end {self.end}")

    @property
    def first(self) -> int:
        """The first position."""
        return self.start or 0

    @property
    def is_empty(self) -> bool:
        """Whether no position is in it."""
        return self.end is not None and self.first >= self.end


@dataclass(frozen=True, slots=True)
class Region:
    """An interval of one reference; `UNPLACED` has no positions: InvalidInput."""

    reference_name: str
    interval: Interval = Interval()

    def __post_init__(self) -> None:
        if not self.reference_name:
            raise InvalidInput("an empty reference name")
        if self.reference_name == UNPLACED and self.interval != Interval():
            raise InvalidInput("reads that are placed nowhere have no start and no end")


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for of one file: its header only, some regions, or (neither) all of it.

    `format` is None where the file's own will do. `fields`, `tags` and `no_tags` are None where all are wanted:
    a file's blocks have them all, and more than asked for is allowed.
    """

    id: str
    format: Format | None = None
    class_: Class | None = None
    regions: tuple[Region, ...] = ()
    fields: frozenset[str] | None = None
    tags: frozenset[str] | None = None
    no_tags: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.class_ is Class.BODY:
            raise InvalidInput("class can only be header")
        if self.class_ is not None and (self.regions or {self.fields, self.tags, self.no_tags} != {None}):
            raise InvalidInput("class=header goes with nothing else but the format")
        both = (self.tags or frozenset()) & (self.no_tags or frozenset())
        if both:
            raise InvalidInput(f"in tags and in notags: {', '.join(sorted(both))}")


@dataclass(frozen=True, slots=True)
class BlockUrl:
    """One block of a ticket: where it is, the headers to send, and its class where the ticket tells classes.

    URL and headers may hold secrets, so they are not in its representation.
    """

    url: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    class_: Class | None = None

    @classmethod
    def of_range(cls, url: str, start: int, stop: int, class_: Class | None = None) -> BlockUrl:
        """Return the block that is the bytes `start` up to, not including, `stop` of what is at `url`."""
        if not 0 <= start < stop:
            raise ValueError(f"no range: {start} to {stop}")
        return cls(url, (("Range", f"bytes={start}-{stop - 1}"),), class_)

    @classmethod
    def inline(cls, data: bytes, class_: Class | None = None) -> BlockUrl:
        """Return the block whose bytes are in its URL (RFC 2397)."""
        return cls(f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}", (), class_)


@dataclass(frozen=True, slots=True)
class Ticket:
    """The answer to a query: blocks that make a file of `format` when they are joined in order.

    `md5` (hex) is that of the whole, where it is known. Blocks have a class all or none, else ValueError.
    """

    format: Format
    urls: tuple[BlockUrl, ...]
    md5: str | None = None

    def __post_init__(self) -> None:
        if len({block.class_ is None for block in self.urls}) > 1:
            raise ValueError("some blocks have a class, and some have none")

    def to_json(self, indent: int | None = None) -> str:
        """Return the ticket as a server sends it, `htsget` alone at the top: htslib looks there first."""
        body: dict[str, object] = {"format": self.format.value, "urls": [_block_json(block) for block in self.urls]}
        if self.md5 is not None:
            body["md5"] = self.md5
        return json.dumps({"htsget": body}, indent=indent)


def _block_json(block: BlockUrl) -> dict[str, object]:
    row: dict[str, object] = {"url": block.url}
    if block.headers:
        row["headers"] = dict(block.headers)
    if block.class_ is not None:
        row["class"] = block.class_.value
    return row
