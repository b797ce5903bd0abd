"""Plain files on a web server as a source: each is named by a URL, and read by byte ranges."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from urllib.parse import quote, urljoin, urlsplit

from refgenfs.core.catalog import AssetVersion, ListedFile, SourceCatalog
from refgenfs.core.catalog_json import JSONValue
from refgenfs.core.content import ArchiveRef, ByteRange, Extent, FileFacts, InlineData, content_id
from refgenfs.core.errors import OriginMissing, redact_url
from refgenfs.core.keys import AssetKey
from refgenfs.sources.listed import listed_catalog
from refgenfs.sources.refgenie import Asker

log = logging.getLogger(__name__)


class HttpSource:
    """A web server and its mirrors. `assets` are keys, each with its files: paths below `url`, or URLs.

    `hold` and `timeout` are in seconds: see `Source.hold`, and `RefgenieSource`.
    """

    kind = "http"

    def __init__(
        self,
        http: Asker,
        *,
        name: str,
        url: str,
        mirrors: Sequence[str] = (),
        assets: Sequence[tuple[str, Sequence[str]]] = (),
        hold: float = 60.0,
        timeout: float = 20.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.url = url
        self.hold = hold
        self._http = http
        self._wall = wall
        self._deadline = 2 * timeout
        self._bases = tuple(base if base.endswith("/") else f"{base}/" for base in (url, *mirrors))
        self._assets = assets

    def __repr__(self) -> str:
        return f"HttpSource({self.name!r}, {redact_url(self.url)!r})"

    async def catalog(self, known: SourceCatalog | None = None) -> SourceCatalog:
        """Return what the configuration names; asks nobody."""
        del known
        named = ((AssetKey.parse(key), [_listed(path) for path in files]) for key, files in self._assets)
        return listed_catalog(self.name, redact_url(self._bases[0]), named)

    async def listing(self, version: AssetVersion) -> tuple[str, ...] | None:
        """Return the names of a version's files."""
        return tuple(file.name for file in version.files or ())

    def unpacked(self, version: AssetVersion) -> str | None:
        """Return the URL below which the files are."""
        return self._bases[0]

    async def facts(
        self, version: AssetVersion, name: str, salt: str | None = "", *, patience: float | None = None
    ) -> FileFacts | None:
        """Return exact size, mtime and validator by HEAD; None where the server has no such file.

        Where it tells no time, the mtime is now.
        """
        file = next((one for one in version.files or () if one.name == name), None)
        if file is None:
            return None
        urls = self._urls(file)
        try:
            found = await self._http.head(
                urls,
                account=self.name,
                deadline=self._deadline if patience is None else patience,
                retry_for=None if patience is None else 0,
            )
        except OriginMissing as exc:
            log.debug("source %s: %s is not there: %s", self.name, name, exc)
            return None
        mark = found.validator or str(found.mtime) if salt is None else salt
        cid = content_id(self.name, version.asset_digest, name, mark)
        mtime = found.mtime or self._wall()
        if found.size == 0:
            return FileFacts(cid, 0, mtime, InlineData(b""), self.name, "inline")
        return FileFacts(cid, found.size, mtime, ByteRange(urls, found.validator), self.name, "range")

    def name_of(self, version: AssetVersion, extent: Extent) -> str | None:
        """Return the name of the file of this version whose bytes are there."""
        if not isinstance(extent, ByteRange):
            return None
        return next((one.name for one in version.files or () if self._urls(one) == extent.urls), None)

    def archive(self, version: AssetVersion) -> ArchiveRef | None:
        """Return None: files are there one by one."""
        return None

    async def fresh_version(self, version: AssetVersion) -> AssetVersion | None:
        """Return the version as it is."""
        return version

    def state(self) -> JSONValue:
        """Return nothing: all is in the catalog."""
        return None

    def restore(self, state: object) -> None:
        """Take nothing."""

    def _urls(self, file: ListedFile) -> tuple[str, ...]:
        if urlsplit(file.place).scheme:
            return (file.place,)
        return tuple(urljoin(base, quote(file.place, safe="/%+=&,;:@!$'()*~?")) for base in self._bases)


def _listed(path: str) -> ListedFile:
    return ListedFile(urlsplit(path).path.rpartition("/")[2], path)
