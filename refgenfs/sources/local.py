"""A folder of this machine as a source: files of its own disk, or of a network's, arranged by a layout.

They are read where they are, or through the cache (`cached`): that is for a file system that is slow, or goes away.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from refgenfs.core.catalog import AssetVersion, SourceCatalog
from refgenfs.core.content import Extent, FileFacts, InlineData, LocalFile, content_id
from refgenfs.core.errors import OriginDenied, OriginMissing, RefgenfsError
from refgenfs.core.patterns import Arranged, Arrangement, Layout
from refgenfs.fetch.local import DEADLINE, THREADS, in_thread, stat_below, validator_of, walk
from refgenfs.sources.listed import LeftOut, ListedFiles, arrange_catalog, find_file

LISTING_DEADLINE = 600.0  # seconds

log = logging.getLogger(__name__)


class LocalSource(ListedFiles):
    """A folder. `assets` are keys, each with its files: paths below it; `layout` arranges what is there.

    `hold` is in seconds: see `Source.hold`.
    """

    kind = "local"

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        layout: Layout | None = None,
        assets: Sequence[tuple[str, Sequence[str]]] = (),
        hold: float = 1.0,
        cached: bool = False,
    ) -> None:
        self.name = name
        self.url = path.as_posix()
        self.hold = hold
        self._root = os.fspath(path)
        self._layout = layout
        self._assets = assets
        self._cached = cached
        self._left_out = LeftOut()
        self._threads = trio.CapacityLimiter(THREADS)

    def __repr__(self) -> str:
        return f"LocalSource({self.name!r}, {self._root!r})"

    async def catalog(self, known: SourceCatalog | None = None) -> SourceCatalog:
        """Look through the folder, and arrange what is there; files that have no place are only counted.

        Raises OriginUnavailable when it can't be read, IntegrityError where too much would have a place.
        """
        del known
        catalog, arranged = await in_thread(self._look, LISTING_DEADLINE, self._threads, self._root)
        self._left_out.say(self.name, arranged)
        return catalog

    def _look(self) -> tuple[SourceCatalog, Arranged]:
        arrangement = None
        if self._layout is not None:
            arrangement = Arrangement(self._layout, self._root)
            for path, found in walk(self._root):
                arrangement.add(path, path, found.st_size)
        return arrange_catalog(self.name, self._root, arrangement, self._assets, self._size_of)

    def _size_of(self, path: str) -> int | None:
        try:
            return stat_below(self._root, path).st_size
        except RefgenfsError:  # whoever looks for the file is told
            return None

    def unpacked(self, version: AssetVersion) -> str | None:
        """Return the folder."""
        return self._root

    async def facts(
        self, version: AssetVersion, name: str, salt: str | None = "", *, patience: float | None = None
    ) -> FileFacts | None:
        """Return exact size, mtime and validator; None where there is no such file, or it leads out of the folder."""
        file = find_file(version, name)
        if file is None:
            return None
        seconds = DEADLINE if patience is None else patience
        try:
            look = partial(stat_below, self._root, file.place)
            found = await in_thread(look, seconds, self._threads, file.place)
        except (OriginMissing, OriginDenied) as exc:
            log.debug("source %s: %s", self.name, exc)
            return None
        validator = validator_of(found)
        cid = content_id(self.name, version.asset_digest, name, validator if salt is None else salt)
        if found.st_size == 0:
            return FileFacts(cid, 0, found.st_mtime, InlineData(b""), self.name, "inline")
        extent = LocalFile(self._root, file.place, validator, self._cached)
        return FileFacts(cid, found.st_size, found.st_mtime, extent, self.name, "local")

    def name_of(self, version: AssetVersion, extent: Extent) -> str | None:
        """Return the name of the file of this version whose bytes are there."""
        path = extent.path if isinstance(extent, LocalFile) else None
        return None if path is None else next((one.name for one in version.files or () if one.place == path), None)
