"""Slices of any file of the tree that has an index: what a search finds, cut out of the file as it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial

import trio

from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import ContentId, FileFacts, InlineData, Ranged, Sliced, content_id
from refgenfs.core.errors import GenerateFailed, IntegrityError, NotInCatalog, UnsupportedFormat
from refgenfs.core.htsget import bgzf, cram
from refgenfs.core.htsget.answer import Answer, BlockRange
from refgenfs.core.htsget.indexed import IndexedFile
from refgenfs.core.htsget.location import gzi_of, index_of
from refgenfs.core.htsget.model import Class, Format, Query
from refgenfs.core.newest import Newest
from refgenfs.core.regions import References
from refgenfs.core.ticket import ENDINGS
from refgenfs.fetch.bridge import Bridge
from refgenfs.fetch.pieces import PIECE, RangeSink
from refgenfs.htsfiles import open_indexed
from refgenfs.library import Library, Located
from refgenfs.reader.openbytes import OpenBytes
from refgenfs.reader.reader import Reader
from refgenfs.regions.deriver import shown_files

REMEMBERED = 1024  # slices and headers of contents; a slice has some hundred bytes, and blocks at its edges
BRINGING = 4  # slices that are cut at a time: each waits for flights of its file, and holds a piece
_MADE = {Format.BAM: ".bai", Format.CRAM: ".crai", Format.VCF: ".tbi", Format.BCF: ".csi"}


async def made_index(library: Library, version: AssetVersion, file: str) -> str | None:
    """Return the name of a file's index that is made, or was, where none is listed; None: none can be."""
    prefix, _, base = file.rpartition("/")
    ending = next((_MADE[one] for one, ending in ENDINGS.items() if _plain(file).endswith(ending)), None)
    if ending is None:
        return None
    child = await library.child(version, version.genome_digest, prefix, base + ending)
    return child.origin_name if child is not None else None


def _plain(file: str) -> str:
    """Return a name with the usual ending of its format."""
    return file.removesuffix(".vcf.bgz") + ".vcf.gz" if file.endswith(".vcf.bgz") else file


class IndexedSlicer:
    """Makes slices of files that are read by byte ranges, by their indices; an index that isn't there is made.

    See `deriver.Slicer`. One search at a time: each may have an index of some ten megabytes in memory.
    """

    def __init__(self, reader: Reader, bridge: Bridge) -> None:
        self._reader = reader
        self._bridge = bridge
        self._library: Library | None = None
        self._searching = trio.Lock()
        self._bringing = trio.CapacityLimiter(BRINGING)
        self._headers: Newest[ContentId, References] = Newest(REMEMBERED)
        self._slices: Newest[tuple[ContentId, Query], FileFacts] = Newest(REMEMBERED)

    def attach(self, library: Library) -> None:
        """Take files from this library."""
        self._library = library

    @property
    def _files(self) -> Library:
        if self._library is None:
            raise GenerateFailed("no slice can be made before the library is there")
        return self._library

    def takes(self, version: AssetVersion) -> bool:
        """Return True: any asset may have such files."""
        return True

    async def files(self, version: AssetVersion, shown_as: str) -> Mapping[str, str]:
        """Return the files that a search can be made of, by the last part of the names that are shown."""
        return shown_files(await self._files.names(version), version.genome_digest, shown_as)

    def hold(self, version: AssetVersion) -> float:
        """Return 0: a slice is believed for as long as its file is, which the library knows."""
        return 0.0

    def format(self, version: AssetVersion, file: str) -> tuple[str, Format]:
        """Return the file itself, and its format by its name."""
        return file, next(format_ for format_, ending in ENDINGS.items() if _plain(file).endswith(ending))

    # -- headers ------------------------------------------------------------------------------------------

    def known_references(self, version: AssetVersion, file: str) -> References | None:
        """Return what a header named, if that is in memory."""
        known = self._library.known_facts(version, file) if self._library is not None else None
        return self._headers.get(known.content) if known is not None else None

    async def references(self, version: AssetVersion, file: str) -> References:
        """Return what the header of a file names; that of a VCF with what its index does."""
        data = await self._data(version, file)
        known = self._headers.get(data.facts.content)
        if known is None:
            _, format_ = self.format(version, file)
            indices = await self._indices(version, file) if format_ is Format.VCF else (None, None)
            async with self._searching:
                opened = await open_indexed(await self._bytes(data), *indices)
            known = References(dict.fromkeys(opened.file.references), opened.file.lengths)
        self._headers.put(data.facts.content, known)
        return known

    async def _data(self, version: AssetVersion, file: str) -> Located:
        data = await self._files.locate(version, file)
        if not isinstance(data.facts.extent, Ranged):
            raise NotInCatalog(f"{version.key}: {file} comes out of an archive, so no slices are made of it")
        return data

    async def _indices(self, version: AssetVersion, file: str) -> tuple[OpenBytes | None, OpenBytes | None]:
        """Return the index and the GZI of a file, as far as there are any; an index that isn't there is made."""
        names = await self._files.names(version)
        found = (index_of(file, names) or await made_index(self._files, version, file), gzi_of(file, names))
        index, gzi = [
            None if name is None else await self._bytes(await self._files.locate(version, name)) for name in found
        ]
        return index, gzi

    async def _bytes(self, located: Located) -> OpenBytes:
        opened = await self._files.open(located.facts, located.version, located.name)
        return OpenBytes.of(self._reader, opened)

    # -- slices -------------------------------------------------------------------------------------------

    async def facts(
        self, version: AssetVersion, file: str, query: Query, *, patience: float | None = None
    ) -> FileFacts:
        """Return the facts of a slice; one of the same version of the file is not searched for again."""
        data = await self._data(version, file)
        key = (data.facts.content, query)
        known = self._slices.get(key)
        if known is None:
            indices = await self._indices(version, file) if query.class_ is not Class.HEADER else (None, None)
            async with self._searching:  # the index was waited for before, which may have to be made
                opened = await open_indexed(await self._bytes(data), *indices)
                if opened.file.format is not query.format:
                    raise UnsupportedFormat(f"{file} is {opened.file.format}, not {query.format}")
                answer = await opened.search(query)
            known = _facts(data, query, _parts(answer, opened.file, query))
        self._slices.put(key, known)
        return known

    # -- bytes --------------------------------------------------------------------------------------------

    async def fetch_range(
        self, extent: Sliced, start: int, stop: int, size: int, sink: RangeSink, *, account: str
    ) -> None:
        """Bring a stretch of a slice to the sink, out of its file. Raises as reading that does."""
        async with self._bringing:
            data = await self._bytes(Located(extent.data, extent.version, extent.name))
            for at in range(start, stop, PIECE):
                piece = await _cut(extent, data, at, min(stop, at + PIECE))
                await self._bridge.run(partial(sink.write, at, memoryview(piece)))


async def _cut(extent: Sliced, data: OpenBytes, start: int, stop: int) -> bytes:
    """Return the bytes `start` up to, not including, `stop` of a slice."""
    out = bytearray()
    begin = 0
    for part in extent.parts:
        length = len(part) if isinstance(part, bytes) else part[1] - part[0]
        first, last = max(start, begin), min(stop, begin + length)
        while first < last:
            offset = first - begin
            if isinstance(part, bytes):
                got: bytes | memoryview = part[offset : last - begin]
            else:
                got = await data.read(part[0] + offset, part[0] + last - begin)
            if not got:
                raise IntegrityError(f"{extent.name} ended within a slice of it")
            out += got
            first += len(got)
        begin += length
    return bytes(out)


def _parts(answer: Answer, file: IndexedFile, query: Query) -> tuple[tuple[int, int] | bytes, ...]:
    """Return what a slice is made of; a header alone gets the end marker that makes it a file."""
    parts: list[tuple[int, int] | bytes] = [
        (block.start, block.stop) if isinstance(block, BlockRange) else block.data for block in answer.blocks
    ]
    if query.class_ is Class.HEADER:
        parts.append(bgzf.EOF_MARKER if file.format.is_bgzf else cram.eof_marker(file.version))
    return tuple(part for part in parts if part)


def _facts(data: Located, query: Query, parts: tuple[tuple[int, int] | bytes, ...]) -> FileFacts:
    facts = data.facts
    text = repr((facts.content, facts.extent.validator if isinstance(facts.extent, Ranged) else "", parts))
    validator = hashlib.sha256(text.encode()).hexdigest()[:40]
    cid = content_id(facts.source, data.version.asset_digest, f"{data.name}\0{query!r}", validator)
    size = sum(len(part) if isinstance(part, bytes) else part[1] - part[0] for part in parts)
    if not size:
        return FileFacts(cid, 0, facts.mtime, InlineData(b""), facts.source, "inline")
    extent = Sliced(parts, validator, facts, data.version, data.name)
    return FileFacts(cid, size, facts.mtime, extent, facts.source, "slice")
