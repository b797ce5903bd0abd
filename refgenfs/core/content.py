"""Contents, their blocks, and where their bytes come from.

A content is one immutable sequence of bytes: a file's, under all the names that the file has. It is cut
into blocks of `BLOCK` bytes; a block is what is fetched, stored, checked and forgotten.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from refgenfs.core.catalog import AssetVersion
from refgenfs.core.fasta import Line
from refgenfs.core.ticketblocks import TicketBlocks

# A random reader costs one block at the least, so small; a sequential reader asks for runs of many, and a
# checksum a block must not make the maps large: 64 KiB is 80,000 blocks (400 KB of map) for hg38's index.
BLOCK = 64 * 1024

ContentId = str  # 40 hex digits; a name in the cache directory


def content_id(source: str, asset_digest: str, name: str, salt: str = "") -> ContentId:
    """Return the identity of a file's bytes.

    The same file of two tags with one asset digest is one content. The source is part of it, so that no
    source can put bytes into another's files. `salt` separates what an origin replaced in place.
    """
    text = "\0".join((source, asset_digest, name, salt))
    # names of an archive's members can be any bytes
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:40]


def block_count(size: int) -> int:
    """Return how many blocks a content of `size` bytes has."""
    return -(-size // BLOCK)


def block_length(size: int, index: int) -> int:
    """Return the length in bytes of block `index` of a content of `size` bytes."""
    return min(BLOCK, size - index * BLOCK)


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks `first` up to, not including, `stop`, of one content."""

    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A content that is a plain file at a URL (mirrors in order), read by byte ranges.

    `validator` tells its version from others (`core/httprange.py`); it is empty where the host gives none.
    `whole`: its host did not say that it gives parts of it (`core/manners.py`).
    """

    urls: tuple[str, ...]
    validator: str
    whole: bool = False


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A content that is a file of this machine, below the folder `root`.

    `validator` is made of what stat(2) says; a file with another one is another version. `cached`: its blocks are
    kept in the cache, as those of other origins; else the file is read straight.
    """

    root: str
    path: str
    validator: str
    cached: bool = False


@dataclass(frozen=True, slots=True)
class ArchiveRef:
    """A `.tgz` at the origin: where it is, and the MD5 (hex) of its bytes where known.

    `index_urls` are where a seek index of it would be, if the origin has one; none: not to be asked for.
    """

    source: str
    key: str  # `digest/asset:tag`, what people are told
    asset_digest: str
    archive_digest: str
    urls: tuple[str, ...]
    index_urls: tuple[str, ...] = ()
    archive_size: int | None = None  # about, in bytes, where the catalog has it


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """A content that is a member of an archive; `name` is relative to the archive's top folder."""

    archive: ArchiveRef
    name: str


@dataclass(frozen=True, slots=True)
class InlineData:
    """A content whose bytes are known already (an empty file, say)."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Generated:
    """A content that `maker` makes of another file, as the one of its results with this `ending`.

    The file is `name` of `version`, and had these facts (`data`). `validator` is the SHA-256 (hex) of what was made:
    should it come out otherwise when it is made again, that is another content.
    """

    maker: str
    ending: str
    validator: str
    data: FileFacts = field(repr=False)
    version: AssetVersion = field(repr=False)
    name: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """A content that is a sequence of a FASTA: `name` of `version`, which had these facts (`data`).

    `line` says where in it, unpacked; `validator` is the sequence's MD5.
    """

    validator: str
    line: Line
    data: FileFacts = field(repr=False)
    version: AssetVersion = field(repr=False)
    name: str


@dataclass(frozen=True, slots=True)
class Sliced:
    """A content that is parts of another file, joined: its bytes `start` up to, not including, `stop`, or own bytes.

    The file is `name` of `version`, and had these facts (`data`). `validator` is made of those and of the parts.
    """

    parts: tuple[tuple[int, int] | bytes, ...] = field(repr=False)
    validator: str
    data: FileFacts = field(repr=False)
    version: AssetVersion = field(repr=False)
    name: str


@dataclass(frozen=True, slots=True)
class CheckedRange:
    """A content at URLs whose every block was seen, and is to be what it was.

    `checks` are 8 bytes of each block's BLAKE2b, in order; `validator` is as in `ByteRange`.
    """

    urls: tuple[str, ...]
    validator: str
    checks: bytes = field(repr=False)


# Contents that are made of the bytes of other contents: who brings them reads those.
Derived = Generated | Sequence | Sliced
# Contents any stretch of which can be fetched by itself. Each has a `validator`, as `ByteRange` has.
Ranged = ByteRange | CheckedRange | LocalFile | TicketBlocks | Derived

Extent = Ranged | ArchiveMember | InlineData


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What must be known to show a file: exact size in bytes, mtime (Unix seconds), and its bytes' source."""

    content: ContentId
    size: int
    mtime: float
    extent: Extent
    source: str  # the name of the source that has it
    origin: str  # how its bytes come, for people: "archive", "range", "inline", "generated", "sequence"
