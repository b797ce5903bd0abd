"""A refgenieserver as a source: API v3, its one-call dictionary, and the unpacked copies it may offer."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from urllib.parse import quote, unquote, urlsplit

import trio

from refgenfs.core.catalog import AssetVersion, SourceCatalog, iter_versions
from refgenfs.core.catalog_json import JSONValue
from refgenfs.core.content import ArchiveRef, ByteRange, Extent, FileFacts, InlineData, content_id
from refgenfs.core.errors import (
    DeadlineExceeded,
    IntegrityError,
    OriginDenied,
    OriginMissing,
    RefgenfsError,
    redact_url,
)
from refgenfs.core.refgenie import (
    Parsed,
    PublicAnswers,
    parse_archive_size,
    parse_fresh,
    parse_genome_list,
    parse_listing,
    parse_private_text,
    parse_public,
    parse_remotes,
    parse_tags,
    private_url,
    unpacked_url,
    v3_path,
    v3_url,
)
from refgenfs.core.seekindex import SUFFIX
from refgenfs.fetch.answers import OriginFailing, OriginUnusable
from refgenfs.sources.asking import CATALOG_DEADLINE, Asker, ask_all

log = logging.getLogger(__name__)


class RefgenieSource:
    """One refgenieserver and its mirrors. `remotes` says whether unpacked copies are used where offered, `seek_index`
    whether indexes of archives are looked for.

    `timeout` (seconds) is the silence that the HTTP client bears; a call with its retries takes at most twice
    that. `warnings` are what the last catalog had to leave out, one line each.
    """

    kind = "refgenie"
    hold = None  # a version is named by its digest

    def __init__(
        self,
        http: Asker,
        *,
        name: str,
        url: str,
        mirrors: Sequence[str] = (),
        remotes: bool = True,
        seek_index: bool = True,
        timeout: float = 20.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.url = url
        self.warnings: tuple[str, ...] = ()
        self._http = http
        self._wall = wall
        self._bases = (url, *mirrors)
        self._remotes = remotes
        self._seek_index = seek_index
        self._patience = timeout / 2  # of retries, when a catalog's next refresh is a retry anyway
        self._deadline = 2 * timeout
        self._prefix: str | None = None
        self._recipes: dict[tuple[str, str], object] = {}

    def __repr__(self) -> str:
        return f"RefgenieSource({self.name!r}, {redact_url(self.url)!r})"

    # -- the catalog --------------------------------------------------------------------------------------

    async def catalog(self, known: SourceCatalog | None = None) -> SourceCatalog:
        """Ask for the catalog, in one call where the server has that, else in pieces.

        Raises the origin's errors; IntegrityError where the answers are not the protocol's.
        """
        try:
            with trio.fail_after(CATALOG_DEADLINE):
                parsed = await self._ask_whole(known) or await self._ask_pieces()
                if self._remotes:
                    await self._refresh_prefix(parsed.catalog)
        except trio.TooSlowError as exc:
            where = redact_url(self.url)
            raise DeadlineExceeded(f"{where}: no catalog within {CATALOG_DEADLINE:g} s") from exc
        for line in sorted(set(parsed.warnings) - set(self.warnings)):
            log.warning("source %s: in its catalog, %s", self.name, line)
        self.warnings = parsed.warnings
        return parsed.catalog

    async def _ask_whole(self, known: SourceCatalog | None) -> Parsed | None:
        """Ask the one call; None where the server has, or gives, none: the pieces may be had all the same."""
        urls = [private_url(base) for base in self._bases]
        try:
            return await self._http.get_document(
                urls,
                partial(parse_private_text, source=self.name, known=known),
                account=self.name,
                deadline=self._deadline,
                retry_for=self._patience,
            )
        except (OriginMissing, OriginDenied, OriginFailing, IntegrityError) as exc:
            log.debug("source %s: no catalog in one call: %s", self.name, exc)
        except OriginUnusable as exc:
            if not 400 <= exc.status < 500:
                raise
        return None

    async def _ask_pieces(self) -> Parsed:
        genomes = await self._catalog_json(self._urls("genomes", "list"))
        aliases = await self._or_none(self._catalog_json(self._urls("genomes", "alias_dict")))
        listed = [f"{url}?includeSeekKeys=true" for url in self._urls("assets", "list")]
        assets = await self._catalog_json(listed)
        tags = parse_tags(assets)
        digests = set(parse_genome_list(genomes))
        places = [place for place in tags if place[0] in digests]
        defaults = await ask_all(places, self._ask_default_tag)
        known = [(*place, tag) for place in places for tag in tags[place] or [defaults.get(place, "default")]]
        self._recipes.update(await ask_all([p for p in places if p not in self._recipes], self._ask_recipe))
        answers = PublicAnswers(
            genomes,
            aliases or {},
            assets,
            await ask_all(digests, lambda digest: self._catalog_json(self._urls("genomes", "attrs", digest))),
            defaults,
            self._recipes,
            await ask_all(known, lambda place: self._ask_attrs(*place)),
        )
        return await trio.to_thread.run_sync(parse_public, answers, self.name)

    async def _ask_default_tag(self, place: tuple[str, str]) -> str:
        urls = self._urls("assets", "default_tag", *place)
        text = await self._http.get_text(urls, account=self.name, deadline=self._deadline, retry_for=self._patience)
        return text.strip().strip('"')

    async def _ask_attrs(self, genome: str, asset: str, tag: str) -> object:
        return await self._catalog_json(self._urls("assets", "attrs", genome, asset, tag=tag))

    async def _ask_recipe(self, place: tuple[str, str]) -> object:
        """Ask for the recipe, which has the description of the asset; older assets have none."""
        return await self._or_none(self._catalog_json(self._urls("assets", "recipe", *place)))

    async def _catalog_json(self, urls: Sequence[str]) -> object:
        return await self._http.get_json(urls, account=self.name, deadline=self._deadline, retry_for=self._patience)

    async def _or_none(self, asked: Awaitable[object]) -> object:
        """Await an answer that a catalog can do without; None where the server refuses it."""
        try:
            return await asked
        except (OriginMissing, OriginDenied, IntegrityError):
            return None
        except (OriginFailing, OriginUnusable) as exc:
            if exc.status == 500 or 400 <= exc.status < 500:
                return None
            raise

    # -- unpacked copies ----------------------------------------------------------------------------------

    async def _refresh_prefix(self, catalog: SourceCatalog) -> None:
        """Ask where unpacked copies are; what is known stays when the server can't say."""
        where = v3_path("remotes", "dict")
        try:
            if not await self._offers_remotes(catalog):
                self._prefix = None
                return
            answer = await self._http.get_json(
                self._urls("remotes", "dict"), account=self.name, deadline=self._deadline, retry_for=0
            )
            self._prefix = parse_remotes(answer, where)
        except (OriginMissing, IntegrityError) as exc:
            if isinstance(exc, IntegrityError):
                log.warning("source %s: unpacked copies are not used: %s", self.name, exc)
            self._prefix = None
        except OriginFailing as exc:
            if exc.status == 500:  # how a server without remotes answers
                self._prefix = None
        except RefgenfsError as exc:
            log.debug("source %s: where unpacked copies are could not be asked: %s", self.name, exc)

    async def _offers_remotes(self, catalog: SourceCatalog) -> bool:
        """Say whether asking for remotes makes sense; raise OriginUnavailable when that can't be known.

        A server without remotes answers that question with an internal error, which would then be among the
        daemon's recent errors; but the path that it gives for a file tells the same: it is no URL.
        """
        for version in iter_versions(catalog):
            for key in version.seek_keys:
                path = (version.genome_digest, version.asset, key)
                urls = [
                    f"{url}&remoteClass=http" for url in self._urls("assets", "file_path", *path, tag=version.tag)
                ]
                text = await self._or_none(
                    self._http.get_text(urls, account=self.name, deadline=self._deadline, retry_for=0)
                )
                return not isinstance(text, str) or urlsplit(text.strip().strip('"')).scheme != ""
        return True

    def unpacked(self, version: AssetVersion) -> str | None:
        """Return the URL of the folder with a version's unpacked copies, None if the server offers none."""
        return None if self._prefix is None or not self._remotes else unpacked_url(self._prefix, version)

    async def facts(
        self, version: AssetVersion, name: str, salt: str | None = "", *, patience: float | None = None
    ) -> FileFacts | None:
        """Return exact size, mtime and validator by HEAD; None where the host has no usable copy of the file.

        Where the host tells no time, the mtime is now. A host that denies access counts as one without a copy: object
        stores answer 403 for what isn't there.
        """
        folder = self.unpacked(version)
        if folder is None:
            return None
        url = folder + quote(name, safe="/", errors="surrogateescape")
        try:
            found = await self._http.head(
                [url],
                account=self.name,
                deadline=self._deadline if patience is None else patience,
                retry_for=None if patience is None else 0,
            )
        except (OriginMissing, OriginDenied, IntegrityError) as exc:
            log.debug("source %s: no unpacked copy of %s: %s", self.name, name, exc)
            return None
        except OriginUnusable as exc:
            if not 400 <= exc.status < 500:
                raise
            return None
        cid = content_id(
            self.name,
            version.asset_digest,
            name,
            found.validator or str(found.mtime) if salt is None else salt,
        )
        # Not 1970 where the host tells no time: there are programs that refuse that (zip). It is kept with the facts.
        mtime = found.mtime or self._wall()
        if found.size == 0:
            return FileFacts(cid, 0, mtime, InlineData(b""), self.name, "inline")
        return FileFacts(cid, found.size, mtime, ByteRange((url,), found.validator), self.name, "range")

    def name_of(self, version: AssetVersion, extent: Extent) -> str | None:
        """Return the name of the file that an extent is an unpacked copy of."""
        folder = self.unpacked(version)
        url = extent.urls[0] if isinstance(extent, ByteRange) and extent.urls else ""
        return unquote(url.removeprefix(folder)) if folder is not None and url.startswith(folder) else None

    def state(self) -> JSONValue:
        """Return where unpacked copies are, to be told again with `restore`."""
        return {"prefix": self._prefix}

    def restore(self, state: object) -> None:
        """Take what `state` gave in an earlier life; anything else is passed over."""
        if isinstance(state, dict) and isinstance(state.get("prefix"), str):
            try:
                self._prefix = parse_remotes({"http": {"prefix": state["prefix"]}}, "the kept state")
            except IntegrityError as exc:
                log.warning("source %s: where its unpacked copies were is not used: %s", self.name, exc)

    # -- one version --------------------------------------------------------------------------------------

    async def listing(self, version: AssetVersion) -> tuple[str, ...] | None:
        """Return the names of a version's files as the server spells them, sorted.

        None where the server has no listing (older archives), or an empty one: then the archive tells.
        """
        place = (version.genome_digest, version.asset)
        urls = self._urls("assets", "dir_contents", *place, tag=version.tag)
        try:
            answer = await self._http.get_json(urls, account=self.name, deadline=self._deadline)
        except OriginMissing:
            return None
        except OriginUnusable as exc:
            if not 400 <= exc.status < 500:
                raise
            return None
        return parse_listing(answer, v3_path("assets", "dir_contents", *place)) or None

    def archive(self, version: AssetVersion) -> ArchiveRef:
        """Return where a version's archive is: the server, then its mirrors."""
        place = (version.genome_digest, version.asset)
        return ArchiveRef(
            source=self.name,
            key=f"{version.genome_digest}/{version.asset}:{version.tag}",
            asset_digest=version.asset_digest,
            archive_digest=version.archive_digest,
            urls=tuple(self._urls("assets", "archive", *place, tag=version.tag)),
            index_urls=self._index_urls(version) if self._seek_index else (),
            archive_size=parse_archive_size(version.archive_size),
        )

    def _index_urls(self, version: AssetVersion) -> tuple[str, ...]:
        """Return where a seek index of the archive is if there is one: beside it.

        A server with remotes redirects from its own URL of an archive to `<digest>/<asset>__<tag>.tgz` there.
        """
        folder = self.unpacked(version)
        if folder is not None:
            return (f"{folder.rstrip('/')}.tgz{SUFFIX}",)
        place = (version.genome_digest, f"{version.asset}{SUFFIX}")
        return tuple(self._urls("assets", "archive", *place, tag=version.tag))

    async def fresh_version(self, version: AssetVersion) -> AssetVersion | None:
        """Ask for a version's digests as they are now; None if the server has the version no more."""
        place = (version.genome_digest, version.asset)
        urls = self._urls("assets", "attrs", *place, tag=version.tag)
        try:
            answer = await self._http.get_json(urls, account=self.name, deadline=self._deadline)
        except OriginMissing:
            return None
        return parse_fresh(answer, version, v3_path("assets", "attrs", *place))

    def _urls(self, *segments: str, tag: str | None = None) -> list[str]:
        return [v3_url(base, *segments, tag=tag) for base in self._bases]
