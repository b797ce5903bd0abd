"""Sequences by their MD5, as CRAM asks for them: out of the FASTAs of the tree, or from refget servers.

The MD5s of a FASTA's sequences are known from its dictionary, which is made here of the very bytes that are served
(`made.indexer`); one that an origin has beside a FASTA is not believed. So an MD5 that nobody has looked for yet has
FASTAs read for it, each once for good, and not all there are (`Finder`).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import trio

from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import ContentId, FileFacts, Sequence, content_id
from refgenfs.core.errors import GenerateFailed, IntegrityError, NotInCatalog, RefgenfsError
from refgenfs.core.fasta import (
    Blocks,
    Line,
    check_last_row,
    cut,
    end_of,
    is_md5,
    last_row,
    parse_dict,
    parse_fai,
    span_of,
    unpack,
)
from refgenfs.core.indices import KINDS, is_packed, maker_of, name_index
from refgenfs.core.layout import DERIVED, Child
from refgenfs.core.readahead import Window
from refgenfs.fetch.bridge import Bridge
from refgenfs.fetch.pieces import PIECE, RangeSink
from refgenfs.library import Library, Located
from refgenfs.made.finder import Finder
from refgenfs.made.indexer import Indexer
from refgenfs.made.servers import SERVERS, RefgetServers
from refgenfs.reader.reader import OpenFile, Reader

log = logging.getLogger(__name__)

READ = 1 << 20  # bytes read at a time
NONE_FOR = 30.0  # seconds for which "there is none" is believed, and
REMEMBERED = 4096  # of so many
ENTRIES = 500_000  # sequences whose MD5s are in memory; 200 bytes each
TABLES = 16  # FASTAs whose `.fai` and `.gzi` are in memory as tables
LARGEST_TABLE = 64 << 20  # bytes of a dictionary, `.fai` or `.gzi` that is taken to memory
BRING = 4  # ranges cut out at a time, which no budget counts: 2 MiB each
_NAME = f"{DERIVED}md5{DERIVED}"  # and the MD5: what a sequence is called within the FASTA's version


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a sequence is: of which file, when that was this content, under which name."""

    version: AssetVersion
    base: str
    content: ContentId
    name: str
    length: int


@dataclass(frozen=True, slots=True)
class _Table:
    """The layout of a FASTA: its rows, and its blocks if it is packed."""

    lines: Mapping[str, Line]
    blocks: Blocks | None


class Sequences:
    """The sequences of the tree. Lives on the trio thread. A `Deriver`, and the fetcher of `Sequence`."""

    def __init__(
        self, reader: Reader, indexer: Indexer, finder: Finder, servers: RefgetServers, bridge: Bridge
    ) -> None:
        self._reader = reader
        self._indexer = indexer
        self._finder = finder
        self._servers = servers
        self._bridge = bridge
        self._library: Library | None = None
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._learned: set[ContentId] = set()
        self._tables: OrderedDict[ContentId, _Table] = OrderedDict()
        self._absent: OrderedDict[str, float] = OrderedDict()  # until when that is believed, in trio time
        self._checked: OrderedDict[tuple[ContentId, str], None] = OrderedDict()  # whose last rows are right
        self._searching = trio.Lock()
        self._bringing = trio.CapacityLimiter(BRING)

    def attach(self, library: Library) -> None:
        """Look for sequences in what this library has."""
        self._library = library
        self._finder.attach(library)

    @property
    def _places(self) -> Library:
        if self._library is None:
            raise AssertionError("it was not attached")
        return self._library

    # -- by MD5 -------------------------------------------------------------------------------------------

    def place(self, md5: str) -> tuple[AssetVersion, str]:
        """Return a version and a name by which the library finds a sequence: here, by `facts`."""
        return server_version(md5), _NAME + md5

    async def locate(self, md5: str) -> Located:
        """Return where the sequence with this MD5 (lower-case hex) is.

        Raises NotInCatalog where there is none, and what hinders to find out.
        """
        if not is_md5(md5):
            raise NotInCatalog(f"{md5!r} is no MD5")
        found = await self._known(md5)
        if found is not None:
            return found
        if self._absent.get(md5, 0.0) > trio.current_time():
            raise NotInCatalog(f"there is no sequence {md5}")
        hindrance: RefgenfsError | None = None
        async with self._searching:
            found = await self._known(md5)
            if found is None:
                hindrance = await self._search(md5)
                found = await self._known(md5)
        if found is not None:
            return found
        facts = await self._servers.facts(md5)
        if facts is not None:
            return Located(facts, server_version(md5), _NAME + md5)
        if hindrance is not None:
            raise hindrance
        self._absent[md5] = trio.current_time() + NONE_FOR
        while len(self._absent) > REMEMBERED:
            self._absent.popitem(last=False)
        raise NotInCatalog(f"no FASTA that was looked at, and no refget server, has the sequence {md5}")

    async def _known(self, md5: str) -> Located | None:
        """Return where a sequence is, as far as no FASTA has to be read for that."""
        entry = self._entries.get(md5)
        if entry is None:
            return None
        data = await self._places.locate(entry.version, entry.base)
        if data.facts.content != entry.content:  # replaced in place
            self.forget(entry.content)
            return None
        table = await self._table(data)
        line = table.lines.get(entry.name)
        if line is None or line.length != entry.length:
            raise IntegrityError(
                f"{entry.base} of {entry.version.key}: its .fai and its dictionary differ on {entry.name}"
            )
        if (entry.content, md5) not in self._checked:
            file = await self._open(data)
            tail = await self._raw(file, table.blocks, *last_row(line))
            check_last_row(line, tail)
            self._checked[entry.content, md5] = None
            while len(self._checked) > REMEMBERED:
                self._checked.popitem(last=False)
        return Located(_facts(md5, data, line), data.version, _NAME + md5)

    def forget(self, content: ContentId) -> None:
        """Forget what is known of a FASTA: it was replaced, or its bytes were wrong."""
        self._tables.pop(content, None)
        for key in [key for key in self._checked if key[0] == content]:
            del self._checked[key]
        self._learned.discard(content)
        for md5 in [md5 for md5, entry in self._entries.items() if entry.content == content]:
            del self._entries[md5]

    async def _search(self, md5: str) -> RefgenfsError | None:
        """Learn the MD5s of FASTAs until one has this; return why one of them could not be looked at, if so."""
        hindrance: RefgenfsError | None = None
        async for version, base in self._finder.candidates():
            try:
                await self._learn(version, base)
            except NotInCatalog as exc:  # there can be no dictionary of it, or no .fai
                log.debug("no MD5s of %s of %s: %s", base, version.key, exc)
            except RefgenfsError as exc:
                hindrance = exc
            if md5 in self._entries:
                return None
        return hindrance

    async def _learn(self, version: AssetVersion, base: str) -> None:
        data = await self._places.locate(version, base)
        content = data.facts.content
        if content in self._learned or not await self._finder.afford(data):
            return
        text = await self._text(data, ".dict")
        await self._table(data)  # a FASTA that can't have one is of no use
        for md5, (name, length) in (await trio.to_thread.run_sync(parse_dict, text.decode())).items():
            self._entries.setdefault(md5, _Entry(version, base, content, name, length))
        self._learned.add(content)
        while len(self._entries) > ENTRIES:
            self._learned.discard(self._entries.popitem(last=False)[1].content)

    async def _table(self, data: Located) -> _Table:
        content = data.facts.content
        table = self._tables.get(content)
        if table is None:
            fai = await self._text(data, ".fai")
            gzi = await self._text(data, ".gzi") if is_packed(data.name) else None
            table = await trio.to_thread.run_sync(_parse, fai, gzi)
            self._tables[content] = table
        self._tables.move_to_end(content)
        while len(self._tables) > TABLES:
            self._tables.popitem(last=False)
        return table

    async def _text(self, data: Located, ending: str) -> bytes:
        """Return all of an index of a FASTA, made if it was not."""
        kind = KINDS[ending]
        facts = await self._indexer.facts(data, kind, maker_of(kind, data.name))
        if facts.size > LARGEST_TABLE:
            raise GenerateFailed(f"{data.name}{ending} is too large: {facts.size} bytes")
        file = await self._places.open(facts, data.version, name_index(data.name, kind, kind.usual))
        offsets = range(0, facts.size, READ)
        return b"".join([await self._reader.read(file, offset, READ) for offset in offsets])

    # -- a Deriver ----------------------------------------------------------------------------------------

    async def child(
        self, version: AssetVersion, shown_as: str, prefix: str, name: str, listed: Mapping[str, Child]
    ) -> Child | None:
        """Return None: sequences are found by MD5, and in no asset's folder."""
        return None

    async def children(self, version: AssetVersion, shown_as: str, prefix: str) -> Mapping[str, Child] | None:
        """Return None, as `child` does."""
        return None

    async def facts(self, version: AssetVersion, name: str) -> FileFacts | None:
        """Return the facts of a sequence that `locate` named; None: it has named no such."""
        return (await self.locate(name.removeprefix(_NAME))).facts if name.startswith(_NAME) else None

    def known_facts(self, version: AssetVersion, name: str) -> FileFacts | None:
        """Return None: they are asked for."""
        return None

    # -- bytes --------------------------------------------------------------------------------------------

    async def fetch_range(
        self, extent: Sequence, start: int, stop: int, size: int, sink: RangeSink, *, account: str
    ) -> None:
        """Bring the bases `start` up to `stop` to the sink, out of the FASTA. Raises as `Reader.read` does."""
        data = Located(extent.data, extent.version, extent.name)
        async with self._bringing:
            file = await self._open(data)
            blocks = (await self._table(data)).blocks
            for at in range(start, stop, PIECE):
                end = min(at + PIECE, stop)
                raw = await self._raw(file, blocks, *span_of(extent.line, at, end))
                tail = await self._raw(file, blocks, *end_of(extent.line, end))
                bases = await trio.to_thread.run_sync(cut, extent.line, at, end, raw, tail)
                await self._bridge.run(partial(sink.write, at, memoryview(bases)))

    async def _open(self, data: Located) -> OpenFile:
        file = await self._places.open(data.facts, data.version, data.name)
        file.window = Window(file.facts.size, eager=False)
        return file

    async def _raw(self, file: OpenFile, blocks: Blocks | None, start: int, stop: int) -> bytes:
        """Return bytes of a FASTA as they are when it is unpacked."""
        if start >= stop:
            return b""
        if blocks is None:
            return await self._read(file, start, stop)
        first, end, begins = blocks.span(start, stop)
        packed = await self._read(file, first, end)
        return (await trio.to_thread.run_sync(unpack, packed, stop - begins))[start - begins : stop - begins]

    async def _read(self, file: OpenFile, start: int, stop: int) -> bytes:
        stop = min(stop, file.facts.size)
        offsets = range(start, stop, READ)
        return b"".join([await self._reader.read(file, at, min(READ, stop - at)) for at in offsets])


def server_version(md5: str) -> AssetVersion:
    """Return what stands for the asset of a sequence that no asset of the tree has."""
    return AssetVersion(SERVERS, ".refget", ".refget", "sequence", "default", md5, files=())


def _facts(md5: str, data: Located, line: Line) -> FileFacts:
    # whichever FASTA it is of, the bytes are those that the MD5 says
    cid = content_id("", "refget", md5)
    extent = Sequence(md5, line, data.facts, data.version, data.name)
    return FileFacts(cid, line.length, data.facts.mtime, extent, data.facts.source, "sequence")


def _parse(fai: bytes, gzi: bytes | None) -> _Table:
    return _Table(parse_fai(fai.decode()), Blocks(gzi) if gzi is not None else None)
