"""Which FASTAs are looked at for an MD5 that nobody has met yet: never all there are.

In this order: those whose dictionary was made already, those of which something was read, those of the configured
genomes, or, where none are configured, those that the configuration itself names file by file. Small ones come first;
of what has to be read for the first time, no more than `search` bytes an hour.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import trio

from refgenfs.cache.store import Store
from refgenfs.catalog import Catalog
from refgenfs.core.catalog import AssetVersion
from refgenfs.core.errors import CacheError, KeyFormatError, NotInCatalog, RefgenfsError
from refgenfs.core.indices import is_fasta, parse_index
from refgenfs.core.keys import AssetKey
from refgenfs.core.units import human_bytes
from refgenfs.library import Library, Located
from refgenfs.made.records import Records

log = logging.getLogger(__name__)

HOUR = 3600.0  # seconds
MOST = 1000  # FASTAs that are looked at for one MD5


@dataclass(frozen=True, slots=True)
class _Candidate:
    version: AssetVersion
    name: str
    rank: int  # 0: it was used; 1: it is configured
    size: int


class Finder:
    """Names FASTAs; none are read before `renew` allowed it."""

    def __init__(self, catalog: Catalog, store: Store, records: Records) -> None:
        self._catalog = catalog
        self._store = store
        self._records = records
        self._genomes: tuple[str, ...] = ()
        self._search = 0
        self._spent = 0
        self._since = float("-inf")  # trio time
        self._library: Library | None = None

    def attach(self, library: Library) -> None:
        """Ask this library for the files of genomes."""
        self._library = library

    def renew(self, genomes: tuple[str, ...], search: int) -> None:
        """Look at these genomes from now on (by any of their names), and read `search` bytes an hour for it."""
        self._genomes = genomes
        self._search = search

    async def candidates(self) -> AsyncIterator[tuple[AssetVersion, str]]:
        """Return the FASTAs to look at, by version and name at the origin, in order."""
        found: dict[tuple[AssetVersion, str], _Candidate] = {}
        for one in [*await self._used(), *await self._named()]:
            found.setdefault((one.version, one.name), one)
        for one in islice(sorted(found.values(), key=lambda one: (one.rank, one.size, one.name)), MOST):
            yield one.version, one.name

    async def afford(self, data: Located) -> bool:
        """Say whether a FASTA may be read for its MD5s, and count it; one whose dictionary was made costs nothing."""
        if ".dict" in await self._records.get(data.facts.content):
            return True
        if trio.current_time() - self._since >= HOUR:
            self._since, self._spent = trio.current_time(), 0
        size = data.facts.size
        if self._spent + size > self._search:
            log.info(
                "%s of %s is not looked at for MD5s: with it, more than refget.search (%s) were read in an hour",
                data.name,
                data.version.key,
                human_bytes(self._search),
            )
            return False
        self._spent += size
        return True

    async def _used(self) -> list[_Candidate]:
        """Return the FASTAs of which the cache has something, or an index."""
        await self._store.ready()
        try:
            rows = await trio.to_thread.run_sync(lambda: list(self._store.ledger.items("note/")))
        except CacheError as exc:
            log.warning("what is in the cache can't be read: %s", exc)
            return []
        return [one for row, note in rows if (one := self._of_note(row.removeprefix("note/"), note)) is not None]

    def _of_note(self, content: str, note: Any) -> _Candidate | None:
        name = str(note.get("name")) if isinstance(note, dict) else ""
        wish = parse_index(name)
        base = name if wish is None else wish.base
        if not is_fasta(base) or not self._store.resident_bytes(content):
            return None
        try:
            version = self._catalog.snapshot.version(AssetKey.parse(str(note.get("key"))))
        except (KeyFormatError, NotInCatalog):
            return None
        return _Candidate(version, base, 0, 0)

    async def _named(self) -> list[_Candidate]:
        """Return the FASTAs of the configured genomes; or, without any, those that the configuration names."""
        found: list[_Candidate] = []
        for version in self._versions():
            if version.files is not None:
                files = [(file.name, file.size or 0) for file in version.files]
            elif any(is_fasta(name) for name in version.seek_keys.values()) or "fasta" in version.asset:
                files = [(name, 0) for name in await self._listing(version)]
            else:
                continue
            found += [_Candidate(version, name, 1, size) for name, size in files if is_fasta(name)]
            if len(found) >= MOST:
                break
        return found

    def _versions(self) -> Iterator[AssetVersion]:
        snapshot = self._catalog.snapshot
        if not self._genomes:
            yield from (version for version in snapshot.versions() if version.files is not None)
        for name in self._genomes:
            genome = snapshot.genomes.get(name)
            for asset in genome.assets.values() if genome is not None else ():
                yield from asset.tags.values()

    async def _listing(self, version: AssetVersion) -> tuple[str, ...]:
        assert self._library is not None
        try:
            return await self._library.listing(version)
        except RefgenfsError as exc:
            log.debug("the files of %s are not known: %s", version.key, exc)
            return ()
