"""Sources: what exists, and where its bytes are.

A source answers from its origin, and remembers nothing that its origin could change but what `state` gives:
keeping answers is the catalog's work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from refgenfs.core.catalog import AssetVersion, SourceCatalog
from refgenfs.core.catalog_json import JSONValue
from refgenfs.core.content import ArchiveRef, ByteRange, ContentId, Extent, FileFacts
from refgenfs.core.errors import OriginUnavailable

# Asking for a file's size costs a server of these work, and may cost its bytes: no file is asked for unasked.
DEAR_KINDS = frozenset({"htsget"})


class Unchecked(OriginUnavailable):
    """An origin that can't be asked how it is; `catalog` holds all the same: the configuration says it."""

    def __init__(self, message: str, catalog: SourceCatalog) -> None:
        super().__init__(message)
        self.catalog = catalog


class Source(Protocol):
    """One origin of assets. Every coroutine has a deadline of its own, and raises the errors of core.errors.

    An origin that can't be reached raises; it never answers as one that has nothing.
    """

    @property
    def name(self) -> str:
        """The name in the configuration; part of every content's identity."""
        ...

    @property
    def kind(self) -> str:
        """The `type` in the configuration."""
        ...

    @property
    def url(self) -> str:
        """The URL in the configuration; may hold a password, so redact it before showing it."""
        ...

    @property
    def hold(self) -> float | None:
        """How long (seconds) what was said of a file is believed before it is asked for again; None: for good."""
        ...

    async def catalog(self, known: SourceCatalog | None = None) -> SourceCatalog:
        """Ask for all that the source has, and for where its unpacked copies are (see `unpacked`).

        `known` is what it had before; of what is the same still, the answer may have the very same values.
        Raises Unchecked where it is known what there is, and the origin does not answer.
        """
        ...

    async def listing(self, version: AssetVersion) -> tuple[str, ...] | None:
        """Return the names of a version's files, relative to its folder, as the origin spells them.

        None: the origin keeps no listing of this version; the archive's members are the listing. Not called for a
        version whose `files` the catalog has.
        """
        ...

    def unpacked(self, version: AssetVersion) -> str | None:
        """Return the place where a version's files are one by one; None if the source has them in archives only.

        What was said of files at one place is not believed of another.
        """
        ...

    async def facts(
        self, version: AssetVersion, name: str, salt: str | None = "", *, patience: float | None = None
    ) -> FileFacts | None:
        """Return what the host of the files, or of unpacked copies, says of one; None where it has no copy of it.

        The content's identity is made with `salt`; None makes the file's validator the salt. With `patience`
        (seconds), the host is asked once and no longer waited for: something is known, and may be out of date.
        """
        ...

    def name_of(self, version: AssetVersion, extent: Extent) -> str | None:
        """Return the name of the file of this version whose bytes are there; None: it has none."""
        ...

    def archive(self, version: AssetVersion) -> ArchiveRef | None:
        """Return where a version's archive is; None: it has none, its files are there one by one."""
        ...

    async def fresh_version(self, version: AssetVersion) -> AssetVersion | None:
        """Ask what the origin now says of this genome, asset and tag; None: it has it no more."""
        ...

    def state(self) -> JSONValue:
        """Return what `restore` needs so that `unpacked` answers with the origin away."""
        ...

    def restore(self, state: object) -> None:
        """Take what `state` gave in an earlier life; anything else is passed over."""
        ...


class Whole(Protocol):
    """What an object turned out to be when all of it had gone by."""

    @property
    def size(self) -> int: ...

    @property
    def validator(self) -> str: ...

    @property
    def content(self) -> ContentId: ...


class Spooler(Protocol):
    """What has all of an object go by (and keeps it, as far as there is room) to settle its size."""

    async def settle(self, extent: ByteRange, source: str, identify: Callable[[str], ContentId]) -> Whole:
        """Return what an object is; `identify` says which content a validator makes it.

        Raises the origin's errors.
        """
        ...


@runtime_checkable
class SettlesSizes(Protocol):
    """A source whose hosts may keep sizes to themselves: its `facts` raises SizeUnknown then."""

    async def settle(
        self, version: AssetVersion, name: str, salt: str | None, mtime: float, spooler: Spooler
    ) -> FileFacts | None:
        """Return what `facts` would, with a size that was settled by having all of the file go by."""
        ...
