"""A bucket as a source: a layout arranges what ListObjectsV2 lists; bytes come by ranges, as those of a web server.

A listing tells size, ETag and time of every object, so facts cost no request until they are to be asked for anew.
An ETag is a validator and nothing more: that of an object that was uploaded in parts is no MD5.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import trio

from refgenfs.core.catalog import AssetVersion, ListedFile, SourceCatalog
from refgenfs.core.content import ByteRange, Extent, FileFacts, InlineData, content_id
from refgenfs.core.errors import DeadlineExceeded, IntegrityError, OriginMissing
from refgenfs.core.patterns import Arrangement, Layout
from refgenfs.core.s3 import Bucket, Page, parse_page
from refgenfs.sources.asking import Asker
from refgenfs.sources.listed import AskedFiles, LeftOut, arrange_catalog, find_file

# For 10 million keys at 5 pages a second; a bucket that takes longer wants a prefix.
LISTING_DEADLINE = 1800.0  # seconds
PATIENCE = 30.0  # seconds, of a page's retries: a million keys are a thousand pages

log = logging.getLogger(__name__)


class S3Source(AskedFiles):
    """A bucket. `assets` are keys, each with its files: paths below the prefix; `layout` arranges what is listed.

    `hold` and `timeout` are in seconds: see `Source.hold`, and `RefgenieSource`.
    """

    kind = "s3"

    def __init__(
        self,
        http: Asker,
        bucket: Bucket,
        *,
        name: str,
        layout: Layout | None = None,
        assets: Sequence[tuple[str, Sequence[str]]] = (),
        hold: float = 60.0,
        timeout: float = 20.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(http, name, bucket.shown, hold, timeout, wall)
        self._bucket = bucket
        self._layout = layout
        self._assets = assets
        self._left_out = LeftOut()

    # -- the catalog --------------------------------------------------------------------------------------

    async def catalog(self, known: SourceCatalog | None = None) -> SourceCatalog:
        """List the bucket, page by page, and arrange what is there; keys that have no place are only counted.

        Raises the origin's errors; IntegrityError where answers are no listing, or too much would have a place.
        """
        del known
        arrangement = None
        if self._layout is not None:
            arrangement = Arrangement(self._layout, self.url)
            try:
                with trio.fail_after(LISTING_DEADLINE):
                    await self._list(arrangement)
            except trio.TooSlowError as exc:
                what = f"{self.url}: not listed within {LISTING_DEADLINE:g} s; name a narrower prefix"
                raise DeadlineExceeded(what) from exc
        catalog, arranged = await trio.to_thread.run_sync(
            arrange_catalog, self.name, self._bucket.identity, arrangement, self._assets
        )
        self._left_out.say(self.name, arranged)
        return catalog

    async def _list(self, arrangement: Arrangement) -> None:
        token, prefix = "", self._bucket.prefix

        def take(text: str) -> Page:  # on a thread, where the page is long
            page = parse_page(text, self.url)
            for one in page.objects:
                path = one.key[len(prefix) :] if one.key.startswith(prefix) else ""
                if path and not path.endswith("/"):  # else it stands for a folder
                    arrangement.add(path, path, one.size, one.etag, one.mtime)
            return Page((), page.next)

        while True:
            page = await self._http.get_document(
                [self._bucket.page_url(token)],
                take,
                account=self.name,
                deadline=self._deadline + PATIENCE,
                retry_for=PATIENCE,
            )
            if page.next == "":
                return
            if page.next == token:
                raise IntegrityError(f"{self.url}: a listing that goes round in circles")
            token = page.next

    # -- files --------------------------------------------------------------------------------------------

    def unpacked(self, version: AssetVersion) -> str | None:
        """Return the URL of the bucket."""
        return self._bucket.base()

    async def facts(
        self, version: AssetVersion, name: str, salt: str | None = "", *, patience: float | None = None
    ) -> FileFacts | None:
        """Return exact size, mtime and validator: at first as the listing had them, then by HEAD.

        None where the bucket has no such object. Where no time is told, the mtime is now.
        """
        file = find_file(version, name)
        if file is None:
            return None
        if file.size is not None and file.validator and patience is None and salt is not None:
            return self._facts(version, file, file.size, file.validator, file.mtime, salt)
        try:
            found = await self._http.head(
                [self._bucket.url(file.place)],
                account=self.name,
                deadline=self._deadline if patience is None else patience,
                retry_for=None if patience is None else 0,
            )
        except OriginMissing as exc:
            log.debug("source %s: %s is not there: %s", self.name, name, exc)
            return None
        mark = found.validator or str(found.mtime) if salt is None else salt
        return self._facts(version, file, found.size, found.validator, found.mtime, mark)

    def _facts(
        self, version: AssetVersion, file: ListedFile, size: int, validator: str, mtime: float, salt: str
    ) -> FileFacts:
        cid = content_id(self.name, version.asset_digest, file.name, salt)
        when = mtime or self._wall()
        if size == 0:
            return FileFacts(cid, 0, when, InlineData(b""), self.name, "inline")
        extent = ByteRange((self._bucket.url(file.place),), validator)
        return FileFacts(cid, size, when, extent, self.name, "range")

    def name_of(self, version: AssetVersion, extent: Extent) -> str | None:
        """Return the name of the file of this version whose bytes are there."""
        path = self._bucket.path_of(extent.urls[0]) if isinstance(extent, ByteRange) and extent.urls else None
        return None if path is None else next((one.name for one in version.files or () if one.place == path), None)
