"""Sequences by their MD5, as CRAM asks for them: out of the FASTAs of the tree, or from refget servers.

The MD5s of a FASTA's sequences are known from its dictionary, which is made here of the very bytes that are served
(`made.indexer`); one that an origin has beside a FASTA is not believed. So an MD5 that nobody has looked for yet has
FASTAs read for it, each once for good, and not all there are (`Finder`).

Who asks is told of the FASTAs that they may read, and has no others read. So a sequence that is in FASTAs of two
guarded sources, or of one and in an open one, is a content for each: an inode is for those who may read its source.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import trio

from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import ContentId, FileFacts, Sequence, content_id
from refgenfs.core.errors import (
    GenerateFailed,
    IntegrityError,
    NotInCatalog,
    OriginMissing,
    RefgenfsError,
    StaleContent,
)
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
from refgenfs.core.newest import Newest
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
EVERYBODY = ""  # as a source: all of those that everybody may read
NONE: frozenset[str] = frozenset()


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


@dataclass(frozen=True, slots=True)
class Searched:
    """Where sequences are looked for: genomes by any of their names, refget servers in order; bytes read an hour."""

    genomes: tuple[str, ...]
    servers: tuple[str, ...]
    search: int


class Sequences:
    """The sequences of the tree. Lives on the trio thread. A `Deriver`, and the fetcher of `Sequence`.

    `guarded` names the sources that not everybody may read; calls are told which of these (`allowed`) who asks may.
    """

    def __init__(
        self,
        reader: Reader,
        indexer: Indexer,
        finder: Finder,
        servers: RefgetServers,
        bridge: Bridge,
        guarded: Collection[str] = NONE,
    ) -> None:
        self._guarded = guarded
        self._reader = reader
        self._indexer = indexer
        self._finder = finder
        self._servers = servers
        self._bridge = bridge
        self._library: Library | None = None
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()  # by guarded source or "", and MD5
        self._learned: set[ContentId] = set()
        self._tables: Newest[ContentId, _Table] = Newest(TABLES)
        # until when that is believed, in trio time
        self._absent: Newest[tuple[frozenset[str], str], float] = Newest(REMEMBERED)
        self._checked: Newest[tuple[ContentId, str], None] = Newest(REMEMBERED)  # whose last rows are right
        self._searching = trio.Lock()
        self._bringing = trio.CapacityLimiter(BRING)

    def attach(self, library: Library) -> None:
        """Look for sequences in what this library has."""
        self._library = library
        self._finder.attach(library)

    def renew(self, searched: Searched) -> None:
        """Look for sequences there from now on; none are looked for before."""
        self._finder.renew(searched.genomes, searched.search)
        self._servers.renew(searched.servers)
        self._absent.clear()

    @property
    def _places(self) -> Library:
        if self._library is None:
            raise AssertionError("it was not attached")
        return self._library

    # -- by MD5 -------------------------------------------------------------------------------------------

    def place(self, md5: str, allowed: frozenset[str]) -> tuple[AssetVersion, str]:
        """Return a version and a name by which the library finds a sequence for who asks: here, by `facts`."""
        return server_version(md5), _name(md5, allowed)

    async def locate(self, md5: str, allowed: frozenset[str]) -> Located:
        """Return where the sequence with this MD5 (lower-case hex) is, for who may read the sources `allowed`.

        Raises NotInCatalog where there is none, and what hinders to find out.
        """
        if not is_md5(md5):
            raise NotInCatalog(f"{md5!r} is no MD5")
        found = await self._known(md5, allowed)
        if found is not None:
            return found
        hindrance: RefgenfsError | None = None
        if self._absent.get((allowed, md5), 0.0) > trio.current_time():
            raise NotInCatalog(f"there is no sequence {md5}")
        async with self._searching:
            found = await self._known(md5, allowed)
            if found is None:
                hindrance = await self._search(md5, allowed)
                found = await self._known(md5, allowed)
        if found is not None:
            return found
        facts = await self._servers.facts(md5)
        if facts is not None:
            return Located(facts, server_version(md5), _name(md5, NONE))
        if hindrance is not None:
            raise hindrance
        self._absent.put((allowed, md5), trio.current_time() + NONE_FOR)
        raise NotInCatalog(f"no FASTA that was looked at, and no refget server, has the sequence {md5}")

    def _guard(self, source: str) -> str:
        return source if source in self._guarded else EVERYBODY

    def _entries_of(self, md5: str, allowed: Collection[str]) -> Iterator[_Entry]:
        """Return what is known of a sequence, that which everybody may read first."""
        for guard in (EVERYBODY, *sorted(allowed)):
            entry = self._entries.get((guard, md5))
            if entry is not None:
                yield entry

    async def _known(self, md5: str, allowed: Collection[str]) -> Located | None:
        """Return where a sequence is, as far as no FASTA has to be read for that."""
        for entry in self._entries_of(md5, allowed):
            found = await self._there(md5, entry)
            if found is not None:
                return found
        return None

    async def _there(self, md5: str, entry: _Entry) -> Located | None:
        """Return where a sequence is; None: not where it was."""
        try:
            data = await self._places.locate(entry.version, entry.base)
        except (NotInCatalog, OriginMissing) as exc:
            log.debug("%s of %s: %s", entry.base, entry.version.key, exc)
            self.forget(entry.content)
            return None
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
            self._checked.put((entry.content, md5), None)
        guard = self._guard(data.version.source)
        return Located(_facts(md5, data, line, guard), data.version, _name(md5, {guard} - {EVERYBODY}))

    def forget(self, content: ContentId) -> None:
        """Forget what is known of a FASTA: it was replaced, or its bytes were wrong."""
        self._tables.pop(content, None)
        for key in [key for key in self._checked if key[0] == content]:
            del self._checked[key]
        self._learned.discard(content)
        gone = [key for key, entry in self._entries.items() if entry.content == content]
        for key in gone:
            del self._entries[key]
        if gone:  # another FASTA may have them, too: of each the first one that has it was noted
            self._learned.clear()

    async def _search(self, md5: str, allowed: Collection[str]) -> RefgenfsError | None:
        """Learn the MD5s of FASTAs until one has this; return why one of them could not be looked at, if so."""
        hindrance: RefgenfsError | None = None
        async for version, base in self._finder.candidates():
            if self._guard(version.source) not in (EVERYBODY, *allowed):
                continue
            try:
                await self._learn(version, base, allowed)
            except NotInCatalog as exc:  # there can be no dictionary of it, or no .fai
                log.debug("no MD5s of %s of %s: %s", base, version.key, exc)
            except RefgenfsError as exc:
                hindrance = exc
            if any(self._entries_of(md5, allowed)):
                return None
        return hindrance

    async def _learn(self, version: AssetVersion, base: str, allowed: Collection[str]) -> None:
        data = await self._places.locate(version, base)
        content, guard = data.facts.content, self._guard(data.version.source)
        if guard not in (EVERYBODY, *allowed):  # a link to what is not for who asks
            return
        if content in self._learned or not await self._finder.afford(data):
            return
        text = await self._text(data, ".dict")
        await self._table(data)  # a FASTA that can't have one is of no use
        for md5, (name, length) in (await trio.to_thread.run_sync(parse_dict, text.decode())).items():
            self._entries.setdefault((guard, md5), _Entry(version, base, content, name, length))
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
        self._tables.put(content, table)
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
        if not name.startswith(_NAME):
            return None
        md5, *allowed = name.removeprefix(_NAME).split(DERIVED)
        return (await self.locate(md5, frozenset(allowed))).facts

    def known_facts(self, version: AssetVersion, name: str) -> FileFacts | None:
        """Return None: they are asked for."""
        return None

    # -- bytes --------------------------------------------------------------------------------------------

    async def fetch_range(
        self, extent: Sequence, start: int, stop: int, size: int, sink: RangeSink, *, account: str
    ) -> None:
        """Bring the bases `start` up to `stop` to the sink, out of the FASTA.

        Raises as `Reader.read` does, and StaleContent where it isn't known any more that the sequence is there: what
        comes instead of bytes that were taken back belongs to the same content.
        """
        data = Located(extent.data, extent.version, extent.name)
        async with self._bringing:
            file = await self._open(data)
            table, entry = await self._table(data), self._entry_of(extent)
            if entry is None or table.lines.get(entry.name) != extent.line:
                raise StaleContent(f"{extent.name}: it isn't known any more where {extent.validator} is in it")
            blocks = table.blocks
            for at in range(start, stop, PIECE):
                end = min(at + PIECE, stop)
                raw = await self._raw(file, blocks, *span_of(extent.line, at, end))
                tail = await self._raw(file, blocks, *end_of(extent.line, end))
                bases = await trio.to_thread.run_sync(cut, extent.line, at, end, raw, tail)
                if self._entry_of(extent) is not entry:
                    raise StaleContent(f"{extent.name}: what {extent.validator} was cut out of was taken back")
                await self._bridge.run(partial(sink.write, at, memoryview(bases)))

    def _entry_of(self, extent: Sequence) -> _Entry | None:
        """Return what is known of a sequence, if that is that it is in this very content."""
        entry = self._entries.get((self._guard(extent.version.source), extent.validator))
        return entry if entry is not None and entry.content == extent.data.content else None

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
        return b"".join([await self._reader.read_checked(file, at, min(at + READ, stop)) for at in offsets])


def server_version(md5: str) -> AssetVersion:
    """Return what stands for the asset of a sequence that no asset of the tree has."""
    return AssetVersion(SERVERS, ".refget", ".refget", "sequence", "default", md5, files=())


def _name(md5: str, allowed: Collection[str]) -> str:
    """Return what a sequence is called for who may read these guarded sources (see `facts`)."""
    return _NAME + DERIVED.join((md5, *sorted(allowed)))


def _facts(md5: str, data: Located, line: Line, guard: str) -> FileFacts:
    # whichever FASTA it is of, the bytes are those that the MD5 says; but not everybody may know that it is there
    cid = content_id(guard, "refget", md5)
    extent = Sequence(md5, line, data.facts, data.version, data.name)
    return FileFacts(cid, line.length, data.facts.mtime, extent, data.facts.source, "sequence")


def _parse(fai: bytes, gzi: bytes | None) -> _Table:
    return _Table(parse_fai(fai.decode()), Blocks(gzi) if gzi is not None else None)
