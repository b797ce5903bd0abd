"""A htsget server as a source: ids of the configuration are files, whose bytes are the blocks of tickets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from refgenfs.core.catalog import Asset, AssetVersion, Genome, ListedFile, SourceCatalog
from refgenfs.core.content import Extent, FileFacts, InlineData, content_id
from refgenfs.core.errors import OriginMissing, RefgenfsError, redact_url
from refgenfs.core.htsget.model import Format, Query
from refgenfs.core.keys import AssetKey
from refgenfs.core.ticketblocks import TicketBlocks
from refgenfs.fetch.answers import OriginUnusable
from refgenfs.fetch.ticketed import Settled
from refgenfs.sources import Unchecked
from refgenfs.sources.asking import Asker
from refgenfs.sources.listed import AskedFiles, find_file, listed_catalog

log = logging.getLogger(__name__)

_FORMATS = frozenset(format_.lower() for format_ in Format)
SIZES_KEPT = 4096  # files whose mtime is remembered, where nobody tells one


class TicketAsker(Protocol):
    """What settles tickets (`fetch.ticketed.TicketFetcher`)."""

    async def settle(self, query: Query, *, account: str, patience: float | None = None) -> Settled:
        """Return the extent of what a query's ticket is for."""
        ...


class HtsgetSource(AskedFiles):
    """A server of tickets and its mirrors. `assets` are keys, each with its files: name, format and id.

    `hold` and `timeout` are in seconds: see `Source.hold`, and `RefgenieSource`.
    """

    kind = "htsget"

    def __init__(
        self,
        http: Asker,
        tickets: TicketAsker,
        *,
        name: str,
        url: str,
        assets: Sequence[tuple[str, Sequence[tuple[str, Format, str]]]] = (),
        hold: float = 600.0,
        timeout: float = 20.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(http, name, url, hold, timeout, wall)
        self._tickets = tickets
        self._assets = assets
        self._born: dict[str, float] = {}  # when a content was first seen

    async def catalog(self, known: SourceCatalog | None = None) -> SourceCatalog:
        """Return what the configuration names.

        Raises Unchecked with that where the server does not answer, or answers that it lets nobody in.
        """
        del known
        catalog = self._catalog()
        try:
            for endpoint in sorted({_endpoint(format_) for _, files in self._assets for _, format_, _ in files}):
                await self._look(endpoint)
        except RefgenfsError as exc:
            raise Unchecked(str(exc), catalog) from exc
        return catalog

    async def _look(self, endpoint: str) -> None:
        """Ask for the service's own description; older servers have none, which is an answer too."""
        url = f"{self.url.rstrip('/')}/{endpoint}/service-info"
        try:
            await self._http.get_json([url], account=self.name, deadline=self._deadline)
        except (OriginMissing, OriginUnusable) as exc:
            log.debug("source %s: it does not say what it is: %s", self.name, exc)

    def _catalog(self) -> SourceCatalog:
        files: dict[str, list[ListedFile]] = {}
        for key, named in self._assets:
            files.setdefault(key, []).extend(ListedFile(name, f"{format_}:{id_}") for name, format_, id_ in named)
        catalog = listed_catalog(
            self.name, redact_url(self.url), ((AssetKey.parse(key), found) for key, found in files.items())
        )
        return replace(catalog, genomes=tuple(_with_seek_keys(genome) for genome in catalog.genomes))

    def unpacked(self, version: AssetVersion) -> str | None:
        """Return the URL of the server."""
        return self.url

    def query(self, version: AssetVersion, name: str) -> Query | None:
        """Return what a file is asked for by; None: the version has no such file."""
        file = find_file(version, name)
        if file is None:
            return None
        format_, _, id_ = file.place.partition(":")
        return Query(id_, Format(format_))

    async def facts(
        self, version: AssetVersion, name: str, salt: str | None = "", *, patience: float | None = None
    ) -> FileFacts | None:
        """Return the exact size of a file, by its ticket; None where the server has no such id.

        The identity always has the lengths and validators of the blocks in it, whatever the salt.
        """
        query = self.query(version, name)
        if query is None:
            return None
        try:
            return await self.query_facts(version, name, query, patience=patience)
        except OriginMissing as exc:
            log.debug("source %s: %s is not there: %s", self.name, name, exc)
            return None

    async def query_facts(
        self, version: AssetVersion, name: str, query: Query, *, patience: float | None = None
    ) -> FileFacts:
        """Return the facts of what a query is for; raises the server's errors. `name` is that of the file."""
        settled = await self._tickets.settle(query, account=self.name, patience=patience)
        return self.settled_facts(version, name, settled)

    def settled_facts(self, version: AssetVersion, name: str, settled: Settled) -> FileFacts:
        """Return the facts of what a ticket is for.

        Where nobody tells when it was last changed, the mtime is when it was first seen.
        """
        extent = settled.extent
        cid = content_id(self.name, version.asset_digest, f"{name}\0{extent.query!r}", extent.validator)
        if len(self._born) >= SIZES_KEPT:
            self._born.clear()
        mtime = settled.mtime or self._born.setdefault(cid, self._wall())
        if extent.size == 0:
            return FileFacts(cid, 0, mtime, InlineData(b""), self.name, "inline")
        return FileFacts(cid, extent.size, mtime, extent, self.name, "htsget")

    def name_of(self, version: AssetVersion, extent: Extent) -> str | None:
        """Return the name of the file of this version whose bytes are there."""
        if not isinstance(extent, TicketBlocks) or extent.suffix:
            return None
        return next((one.name for one in version.files or () if self.query(version, one.name) == extent.query), None)


def _endpoint(format_: Format) -> str:
    return "reads" if format_.is_reads else "variants"


def _with_seek_keys(genome: Genome) -> Genome:
    """Add the seek keys `bam`, `cram`, `vcf` and `bcf` to assets that have one file of that format."""
    assets: dict[str, Asset] = {}
    for name, asset in genome.assets.items():
        tags = {}
        for tag, version in asset.tags.items():
            formats = [(one.place.partition(":")[0].lower(), one.name) for one in version.files or ()]
            of_format = {kind: file for kind, file in formats if [each for each, _ in formats].count(kind) == 1}
            others = {key: file for key, file in version.seek_keys.items() if key not in _FORMATS}
            tags[tag] = replace(version, seek_keys={**others, **of_format})
        assets[name] = replace(asset, tags=tags)
    return replace(genome, assets=assets)
