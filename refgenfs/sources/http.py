"""Plain files on a web server as a source: each is named by a URL, and read by byte ranges."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import quote, urljoin, urlsplit

from refgenfs.core.catalog import AssetVersion, ListedFile, SourceCatalog
from refgenfs.core.content import ByteRange, ContentId, Extent, FileFacts, InlineData, content_id
from refgenfs.core.errors import (
    IntegrityError,
    OriginMissing,
    SizeUnknown,
    redact_url,
)
from refgenfs.core.keys import AssetKey
from refgenfs.core.manifest import Listed
from refgenfs.core.patterns import Arrangement, Layout, is_file_name
from refgenfs.deadlines import deadline
from refgenfs.fetch.http import RemoteFacts
from refgenfs.sources import Spooler
from refgenfs.sources.asking import CATALOG_DEADLINE, Asker, Headers
from refgenfs.sources.listed import AskedFiles, find_file, listed_catalog
from refgenfs.sources.websites import Site

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """An asset by the configuration: its key, and its files, or the folder or the list that they are found in.

    `files` are paths below the source's URL, or URLs; of those that are found, `only` (patterns of names) may choose.
    """

    key: str
    files: tuple[str, ...] = ()
    folder: str | None = None
    manifest: str | None = None
    only: tuple[str, ...] = ()

    def choose(self, found: Iterable[Listed]) -> list[ListedFile]:
        """Return of the files that were found those of the asset, by their names in it."""
        folder = self.folder if self.folder is not None else (self.manifest or "").rpartition("/")[0]
        files = []
        for one in found:
            name = one.path.removeprefix(f"{folder}/") if folder else one.path
            base = name.rpartition("/")[2]
            chosen = not self.only or any(fnmatchcase(each, only) for only in self.only for each in (name, base))
            if chosen and is_file_name(name):
                files.append(ListedFile(name, _place(one.path), one.size))
        return files


class HttpSource(AskedFiles):
    """A web server and its mirrors, with the assets that are named, and those that a layout finds there.

    With a `layout` all files below `url` that its pages of folders name, or those that the list `manifest` has, are
    assets by the layout (`core/patterns.py`).

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
        assets: Sequence[Wanted] = (),
        layout: Layout | None = None,
        manifest: str | None = None,
        hold: float = 60.0,
        timeout: float = 20.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(http, name, url, hold, timeout, wall)
        self._bases = tuple(base if base.endswith("/") else f"{base}/" for base in (url, *mirrors))
        self._assets = assets
        self._layout = layout
        self._manifest = manifest
        self._site = Site(http, name, self._bases, self._deadline)

    async def catalog(self, known: SourceCatalog | None = None) -> SourceCatalog:
        """Return what the configuration names, and what is found at the server; raise what that answers."""
        del known
        named: dict[AssetKey, Sequence[ListedFile]] = {}
        with deadline(CATALOG_DEADLINE, f"{redact_url(self.url)}: its list of files"):
            for wanted in self._assets:
                key = AssetKey.parse(wanted.key)
                files = await self._find(wanted)
                if files:
                    named[key] = files
                else:
                    log.warning("source %s: %s has no files: nothing fits", self.name, wanted.key)
            found = await self._arrange() if self._layout is not None else ()
        every = [*named.items(), *((key, files) for key, files in found if key not in named)]
        return listed_catalog(self.name, redact_url(self._bases[0]), every)

    async def _find(self, wanted: Wanted) -> list[ListedFile]:
        if wanted.manifest is not None:
            return wanted.choose(await self._site.listed(wanted.manifest))
        if wanted.folder is not None:
            return wanted.choose([Listed(path) for path in await self._site.crawl(wanted.folder)])
        return [_listed(path) for path in wanted.files]

    async def _arrange(self) -> Sequence[tuple[AssetKey, Sequence[ListedFile]]]:
        assert self._layout is not None
        if self._manifest is not None:
            found = await self._site.listed(self._manifest)
        else:
            found = [Listed(path) for path in await self._site.crawl("")]
        arranged = Arrangement(self._layout)
        for one in found:
            arranged.add(one.path, _place(one.path), one.size)
        made = arranged.arranged()
        if made.left_out:
            examples = ", ".join(made.examples)
            log.info("source %s: %d files fit no layout: %s, …", self.name, made.left_out, examples)
        if not made.assets:
            such = f", such as {made.examples[0]}" if made.examples else ""
            raise IntegrityError(f"{redact_url(self.url)}: none of its {len(found)} files fits the layout{such}")
        return made.assets

    def unpacked(self, version: AssetVersion) -> str | None:
        """Return the URL below which the files are."""
        return self._bases[0]

    async def facts(
        self, version: AssetVersion, name: str, salt: str | None = "", *, patience: float | None = None
    ) -> FileFacts | None:
        """Return exact size, mtime and validator by HEAD; None where the server has no such file.

        Where it tells no time, the mtime is now. With `patience`, only the server itself is asked, and no mirror.
        Raises SizeUnknown where it tells no size.
        """
        file = find_file(version, name)
        if file is None:
            return None
        urls = self._urls(file)
        found: Headers
        try:
            found = await self._http.head(
                urls if patience is None else urls[:1],  # a mirror has no word in what is known
                account=self.name,
                deadline=self._deadline if patience is None else patience,
                retry_for=None if patience is None else 0,
                probe=patience is None,
            )
        except OriginMissing as exc:
            log.debug("source %s: %s is not there: %s", self.name, name, exc)
            return None
        except SizeUnknown as exc:
            if file.size is None:
                raise
            # every byte of it is counted as it comes
            found = RemoteFacts(urls[0], file.size, exc.validator, exc.mtime, ranges=False)
        if file.size not in (None, found.size):
            what = f"{name} of {version.key} has {found.size} bytes at its host, and {file.size} by the list of files"
            raise IntegrityError(what)
        cid = self._identify(version, name, salt, found.mtime)(found.validator)
        extent = ByteRange(urls, found.validator, whole=not found.ranges)
        return self._facts(cid, found.size, found.mtime, extent)

    async def settle(
        self, version: AssetVersion, name: str, salt: str | None, mtime: float, spooler: Spooler
    ) -> FileFacts | None:
        """Do as `facts`, for a file whose host keeps its size to itself: all of it goes by."""
        file = find_file(version, name)
        if file is None:
            return None
        urls = self._urls(file)
        log.info("source %s: %s comes whole, for its host does not tell its size", self.name, name)
        found = await spooler.settle(
            ByteRange(urls, "", whole=True), self.name, self._identify(version, name, salt, mtime)
        )
        return self._facts(found.content, found.size, mtime, ByteRange(urls, found.validator, whole=True))

    def _identify(
        self, version: AssetVersion, name: str, salt: str | None, mtime: float
    ) -> Callable[[str], ContentId]:
        def identify(validator: str) -> ContentId:
            mark = validator or str(mtime) if salt is None else salt
            return content_id(self.name, version.asset_digest, name, mark)

        return identify

    def _facts(self, cid: ContentId, size: int, mtime: float, extent: ByteRange) -> FileFacts:
        if size == 0:
            return FileFacts(cid, 0, mtime or self._wall(), InlineData(b""), self.name, "inline")
        return FileFacts(cid, size, mtime or self._wall(), extent, self.name, "range")

    def name_of(self, version: AssetVersion, extent: Extent) -> str | None:
        """Return the name of the file of this version whose bytes are there."""
        if not isinstance(extent, ByteRange):
            return None
        return next((one.name for one in version.files or () if self._urls(one) == extent.urls), None)

    def _urls(self, file: ListedFile) -> tuple[str, ...]:
        return file_urls(file.place, self._bases)


def file_urls(place: str, bases: Sequence[str]) -> tuple[str, ...]:
    """Return where a file is: at a URL of its own, or at this path below each of these, which end with '/'."""
    if urlsplit(place).scheme:
        return (place,)
    return tuple(urljoin(base, quote(place, safe="/%+=&,;:@!$'()*~?")) for base in bases)


def _place(path: str) -> str:
    """Return where a file that was found is: its path as a part of a URL."""
    return quote(path, errors="surrogateescape")


def _listed(path: str) -> ListedFile:
    return ListedFile(urlsplit(path).path.rpartition("/")[2], path)
