"""Archives that are in memory: one object each, for as long as somebody holds it, a stream runs, or it is recent."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import trio

from refgenfs.cache.store import Store
from refgenfs.core.content import ArchiveRef, ContentId
from refgenfs.core.errors import CacheError
from refgenfs.reader.archive import Archive
from refgenfs.reader.indexes import Indexes, index_key
from refgenfs.reader.member_table import Canonical, MemberTable, canonical_names, table_key

log = logging.getLogger(__name__)

# Member tables kept in memory without a stream: a few kilobytes each, re-read from the ledger in a millisecond.
TABLES = 256


@dataclass(frozen=True, slots=True)
class Naming:
    """What is needed to give members their names: the origin's listing, the genome's digest and aliases."""

    listing: tuple[str, ...] | None
    digest: str
    aliases: tuple[str, ...]

    def canonical(self) -> Canonical:
        """Return the function that gives a member its name at the origin."""
        return canonical_names(self.listing, self.digest, self.aliases)


class OpenArchives:
    """The archives by their versions, with what the ledger has of them. Lives on the trio thread.

    `on_damage` is told which contents of an archive turned out to be wrong.
    """

    def __init__(self, store: Store, indexes: Indexes, on_damage: Callable[[list[ContentId]], None]) -> None:
        self._store = store
        self._indexes = indexes
        self._on_damage = on_damage
        self._recent: OrderedDict[tuple[str, str], Archive] = OrderedDict()
        self._live: WeakValueDictionary[tuple[str, str], Archive] = WeakValueDictionary()  # some reader's, too
        self._opening: dict[tuple[str, str], trio.Event] = {}

    async def open(self, ref: ArchiveRef, naming: Naming) -> Archive:
        """Return the archive, with its member table from the ledger where there is one. No network."""
        place = (ref.source, ref.asset_digest)
        while (opening := self._opening.get(place)) is not None:
            await opening.wait()
        archive = self._live.get(place)
        if archive is None:
            # no await until the insert: an archive has one object
            self._opening[place] = trio.Event()
            try:
                table, index = await self._kept(ref)
                archive = Archive(ref, table, naming.canonical(), self._on_damage, recorded=table.validator)
                self._indexes.restore(archive, index)
                self._live[place] = archive
            finally:
                self._opening.pop(place).set()
        self._recent[place] = archive
        self._recent.move_to_end(place)
        self._trim()
        if ref != archive.ref and not archive.streams:
            again, archive.ref = ref.archive_digest != archive.ref.archive_digest, ref  # or moved: the same files
            if again:
                self._indexes.renew(archive)
        return archive

    async def _kept(self, ref: ArchiveRef) -> tuple[MemberTable, Any]:
        """Return the member table, and what the ledger has of the index."""

        def read() -> tuple[Any, Any]:
            return self._store.ledger.get(table_key(ref)), self._store.ledger.get(index_key(ref))

        try:
            row, index = await trio.to_thread.run_sync(read)
        except CacheError as exc:
            log.warning("%s: its member table can't be read, so its archive is: %s", ref.key, exc)
            return MemberTable(), None
        return MemberTable.from_json(row) if row is not None else MemberTable(), index

    def known(self, ref: ArchiveRef) -> Archive | None:
        """Return the archive if it is in memory."""
        return self._live.get((ref.source, ref.asset_digest))

    def streaming(self) -> list[Archive]:
        """Return the archives of which a stream runs."""
        return [archive for archive in list(self._live.values()) if archive.streams]

    def _trim(self) -> None:
        for place, archive in list(self._recent.items()):
            if len(self._recent) <= TABLES:
                return
            if not archive.streams and not archive.header_waiters:
                del self._recent[place]
