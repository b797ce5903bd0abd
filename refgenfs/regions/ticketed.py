"""Slices of files of htsget servers: each is what a ticket of its own is for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import ContentId, FileFacts
from refgenfs.core.errors import HtsgetError, NotInCatalog, OriginNotFound, RefgenfsError
from refgenfs.core.htsget.model import Class, Format, Query
from refgenfs.core.newest import Newest
from refgenfs.core.regions import References, union_of
from refgenfs.fetch.answers import OriginUnusable
from refgenfs.htsfiles import open_indexed
from refgenfs.reader.openbytes import OpenBytes
from refgenfs.reader.reader import Reader
from refgenfs.regions.deriver import shown_files
from refgenfs.sources.htsget import HtsgetSource

log = logging.getLogger(__name__)

HEADERS = 256  # whose references are in memory; one of a human genome names some hundreds


@dataclass(frozen=True, slots=True)
class _Header:
    """What a header named, the content that it is, and when (trio time) the server last said so."""

    references: References
    content: ContentId
    at: float


class TicketSlicer:
    """Makes slices by asking servers (see `deriver.Slicer`).

    Several regions are asked for by POST. Where a server has no POST, or answers it with files one after the other
    (which no tool reads as one), the one region that has them all is asked for instead, or all of the file where they
    are of several references: a slice may hold more than its regions, and tools ask for those all the same.
    """

    def __init__(self, sources: Mapping[str, HtsgetSource], reader: Reader) -> None:
        self._sources = sources
        self._reader = reader
        self._headers: Newest[tuple[AssetVersion, str], _Header] = Newest(HEADERS)
        self._no_post: dict[str, float] = {}  # until when (trio time) a source is not asked by POST

    def takes(self, version: AssetVersion) -> bool:
        """Say whether a version is of a htsget server."""
        return version.source in self._sources

    async def files(self, version: AssetVersion, shown_as: str) -> Mapping[str, str]:
        """Return all of a version's files, by the names that are shown."""
        return shown_files([file.name for file in version.files or ()], "", shown_as)

    def hold(self, version: AssetVersion) -> float:
        """Return for how long the server's word is believed."""
        return self._source(version).hold

    def format(self, version: AssetVersion, file: str) -> tuple[str, Format]:
        """Return the id and the format of a file."""
        query = self._whole(version, file)
        assert query.format is not None
        return query.id, query.format

    async def facts(
        self, version: AssetVersion, file: str, query: Query, *, patience: float | None = None
    ) -> FileFacts:
        """Return the facts of a slice, by its ticket."""
        source = self._source(version)
        if len(query.regions) > 1:
            if trio.current_time() >= self._no_post.get(source.name, float("-inf")):
                try:
                    return await source.query_facts(version, file, query, patience=patience)
                except (HtsgetError, OriginNotFound, OriginUnusable) as exc:
                    log.info("source %s: %s; the region that has all of them is asked for instead", source.name, exc)
                    if not isinstance(exc, OriginNotFound):
                        self._no_post[source.name] = trio.current_time() + source.hold
            query = union_of(query)
        return await source.query_facts(version, file, query, patience=patience)

    # -- headers ------------------------------------------------------------------------------------------

    def known_references(self, version: AssetVersion, file: str) -> References | None:
        """Return what a header named, if that is in memory."""
        known = self._headers.get((version, file))
        return known.references if known is not None else None

    async def references(self, version: AssetVersion, file: str) -> References:
        """Return what the header of a file names. Asks for it once a while."""
        key = (version, file)
        known = self._headers.get(key)
        now = trio.current_time()
        if known is not None and now - known.at < self.hold(version):
            self._headers.move_to_end(key)
            return known.references
        try:
            facts = await self._header_facts(version, file)
        except RefgenfsError as exc:
            if known is None or not exc.transient:
                raise
            return known.references  # a server that is away changes nothing
        if known is None or known.content != facts.content:
            known = _Header(await self._read(version, file, facts), facts.content, now)
        self._headers.put(key, _Header(known.references, facts.content, now))
        return known.references

    async def _header_facts(self, version: AssetVersion, file: str) -> FileFacts:
        """Return the facts of a header; of all of the file, where the server gives no header alone."""
        source, whole = self._source(version), self._whole(version, file)
        try:
            return await source.query_facts(version, file, Query(whole.id, whole.format, Class.HEADER))
        except HtsgetError as exc:
            log.info("source %s gives no header of %s alone: %s", source.name, file, exc)
            return await source.query_facts(version, file, whole)

    async def _read(self, version: AssetVersion, file: str, facts: FileFacts) -> References:
        await self._reader.vouch(facts, str(version.key), f"the header of {file}")
        opened = await open_indexed(OpenBytes.of(self._reader, await self._reader.open(facts)), None)
        found = opened.file
        return References(dict.fromkeys(found.references), found.lengths, open=not found.format.is_reads)

    def _whole(self, version: AssetVersion, file: str) -> Query:
        query = self._source(version).query(version, file)
        if query is None:
            raise NotInCatalog(f"{version.key} has no file {file}")
        return query

    def _source(self, version: AssetVersion) -> HtsgetSource:
        return self._sources[version.source]
