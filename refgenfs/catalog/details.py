"""Facts of the files of asset versions: from memory, else the ledger, else the origin.

They hold for good where a version is named by its digest; only "the origin has none" is asked again after a while.
A source whose files may be replaced says for how long its word holds (`Source.hold`). An origin that can't be reached
raises, and changes nothing that is known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import trio

from refgenfs.catalog.flights import Flights
from refgenfs.catalog.listings import Listings, identity_of, source_of
from refgenfs.catalog.notebook import Notebook
from refgenfs.catalog.recent import Recent
from refgenfs.core.catalog import AssetVersion
from refgenfs.core.catalog_json import (
    FactsRow,
    dump_facts,
    load_facts,
)
from refgenfs.core.content import FileFacts, Ranged
from refgenfs.core.errors import RefgenfsError, SizeUnknown
from refgenfs.sources import DEAR_KINDS, SettlesSizes, Source, Spooler

log = logging.getLogger(__name__)

FACTS = 20_000  # facts of files in memory, about 700 bytes each
SIBLINGS = 6  # files asked for at a time when one of their folder is wanted: two connections stay free
SWEEP = 2_000  # siblings that are asked for unasked
SAVE_AFTER = 0.25  # seconds; the facts of one folder come close together, and are one row
PATIENCE = 2.0  # seconds that a host is waited for when something is known, and may be out of date


class _Row:
    """The facts of one version in memory. While it is in use it stays, or two of it could disagree."""

    __slots__ = ("dirty", "facts", "saving", "swept", "users", "weight")

    def __init__(self, facts: FactsRow) -> None:
        self.facts = facts
        self.users = 0
        self.dirty = False
        self.saving = False
        self.swept = float("-inf")  # trio time
        self.weight = 1 + len(facts.facts) + len(facts.absent)


class Details:
    """What is known of files beyond the catalog. `keep` (seconds) is how long an origin's "none" holds."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        notebook: Notebook,
        flights: Flights,
        listings: Listings,
        *,
        keep: float,
        wall: Callable[[], float],
        spooler: Spooler | None = None,
    ) -> None:
        self._spooler = spooler
        self._sources = sources
        self._notebook = notebook
        self._flights = flights
        self._listings = listings
        self._keep = keep
        self._wall = wall
        self._away: dict[str, float] = {}  # when a source last failed to say whether a file is what it was
        self._rows: Recent[_Row] = Recent(
            FACTS, lambda row: row.weight, lambda row: row.users > 0 or row.dirty or row.saving
        )

    def renew(self, keep: float) -> None:
        """Believe an origin's "none" for so long (seconds) from now on; sources that were away may be back."""
        self._keep = keep
        self._away.clear()

    # -- facts --------------------------------------------------------------------------------------------

    def known_facts(self, version: AssetVersion, name: str, *, fresh: bool = False) -> FileFacts | None:
        """Return a file's facts if they are in memory, with `fresh` only if they still hold. No I/O, no wait."""
        row = self._rows.get(facts_key(version))
        if row is None or row.facts.folder != source_of(self._sources, version).unpacked(version):
            return None
        return row.facts.facts.get(name) if not fresh or self._is_fresh(version, name, row) else None

    def _is_fresh(self, version: AssetVersion, name: str, row: _Row) -> bool:
        """Say whether what is known of a file is believed as it is: as long as it holds, or its host is away."""
        hold = source_of(self._sources, version).hold
        since = max(row.facts.asked.get(name, float("-inf")), self._away.get(version.source, float("-inf")))
        return hold is None or 0 <= self._wall() - since < hold

    async def facts(self, version: AssetVersion, name: str, *, background: bool = False) -> FileFacts | None:
        """Return a file's facts at the host of the unpacked copies; None where there is no copy of it."""
        folder = source_of(self._sources, version).unpacked(version)
        if folder is None:
            return None
        row = await self._row(version, folder, background=background)
        known = row.facts.facts.get(name)
        asked = row.facts.absent.get(name)
        if known is not None and self._is_fresh(version, name, row):
            return known
        if known is None and asked is not None and 0 <= self._wall() - asked < self._keep:
            return None
        if not background and source_of(self._sources, version).kind not in DEAR_KINDS:
            self._start_sweep(version, row)
        ask = partial(self._ask_facts, version, name, row)
        try:
            return await self._flights.join((facts_key(version), name), ask, background=background)
        except SizeUnknown as exc:
            if background:  # nobody asked for it, and all of it would have to come
                raise
            return await self._settle_size(version, name, row, exc)
        except RefgenfsError as exc:
            if asked is None or not exc.transient:
                raise
            return None

    async def recall(self, version: AssetVersion) -> None:
        """Bring the facts that the ledger has of a version's files to memory; asks no origin."""
        folder = source_of(self._sources, version).unpacked(version)
        if folder is not None:
            await self._row(version, folder)

    async def _ask_facts(self, version: AssetVersion, name: str, row: _Row) -> FileFacts | None:
        row.users += 1
        try:
            found = await self._ask_host(version, name, row)
            return self._note_found(version, name, row, found)
        finally:
            row.users -= 1

    def _note_found(self, version: AssetVersion, name: str, row: _Row, found: FileFacts | None) -> FileFacts | None:
        row.facts.asked[name] = self._wall()
        known = row.facts.facts.get(name)
        if found is None:
            row.facts.facts.pop(name, None)
            row.facts.absent[name] = self._wall()
        else:
            if known is not None and not _version_of(found) and _same_object(known, found):
                found = replace(found, mtime=known.mtime)  # its host told none, perhaps, and then it is not now
            if found == known:
                return found
            row.facts.facts[name] = found
            row.facts.absent.pop(name, None)
        row.weight += 1
        self._rows.grow(1)
        self._save_soon(version, row)
        return found

    async def _settle_size(
        self, version: AssetVersion, name: str, row: _Row, unknown: SizeUnknown
    ) -> FileFacts | None:
        """Have a file whose host keeps its size to itself go by, once for all who ask."""
        source, spooler = source_of(self._sources, version), self._spooler
        if spooler is None or not isinstance(source, SettlesSizes):
            raise unknown

        async def settle() -> FileFacts | None:
            row.users += 1
            try:
                salt = None if name in row.facts.replaced else ""
                found = await source.settle(version, name, salt, unknown.mtime, spooler)
                return self._note_found(version, name, row, found)
            finally:
                row.users -= 1

        return await self._flights.join(("size", facts_key(version), name), settle)

    async def _ask_host(self, version: AssetVersion, name: str, row: _Row) -> FileFacts | None:
        """Ask until the answer is one to what is asked now: the folder or the salt can change meanwhile.

        Where something is known already, a host that does not answer changes nothing.
        """
        while True:
            known = row.facts.facts.get(name)
            asked = (row.facts.folder, None if name in row.facts.replaced else "")
            patience = None if known is None else PATIENCE
            try:
                found = await source_of(self._sources, version).facts(version, name, asked[1], patience=patience)
            except SizeUnknown as exc:
                if known is None:
                    raise
                if exc.validator != _version_of(known):
                    self._replace(version, name, row, known)
                    continue
                found = known
            except RefgenfsError as exc:
                if known is None or not exc.transient:
                    raise
                log.debug("whether %s of %s is what it was can't be asked: %s", name, version.key, exc)
                self._away[version.source] = self._wall()  # or every file of a folder would be waited for
                found = known
            if asked != (row.facts.folder, None if name in row.facts.replaced else ""):
                continue
            if known is None or found is None or _same_object(known, found):
                return found
            self._replace(version, name, row, known)

    async def _row(self, version: AssetVersion, folder: str, *, background: bool = False) -> _Row:
        key = facts_key(version)
        row = self._rows.get(key)
        if row is None:
            load = partial(self._load_row, key, version.source)
            row = await self._flights.join(key, load, background=background)
        row.facts.move(folder)
        return row

    async def _load_row(self, key: str, source: str) -> _Row:
        row = _Row(load_facts(await self._notebook.read(key), source) or FactsRow(""))
        self._rows.put(key, row)
        return row

    def _start_sweep(self, version: AssetVersion, row: _Row) -> None:
        """Ask for the other files of the folder too: who wants one size wants them all, as `ls -l` does."""
        if trio.current_time() - row.swept >= self._keep:
            row.swept = trio.current_time()
            self._flights.start(self._sweep, version, row)

    async def _sweep(self, version: AssetVersion, row: _Row) -> None:
        row.users += 1
        try:
            names = await self._listings.listing(version, background=True) or ()
            pending = iter(names[:SWEEP])
            async with trio.open_nursery() as nursery:
                for _ in range(SIBLINGS):
                    nursery.start_soon(self._ask_siblings, version, pending, row)
        except RefgenfsError as exc:
            log.debug("the files of %s can't be asked for: %s", version.key, exc)
            row.swept = float("-inf")
        finally:
            row.users -= 1

    async def _ask_siblings(self, version: AssetVersion, pending: Iterator[str], row: _Row) -> None:
        for name in pending:
            try:
                await self.facts(version, name, background=True)
            except RefgenfsError as exc:
                log.debug("the size of %s did not come: %s", name, exc)
                row.swept = float("-inf")
                return

    async def forget_facts(self, version: AssetVersion, name: str, stale: FileFacts | None = None) -> None:
        """Forget a file's facts, which its origin has replaced in place; its next identity is another one.

        With `stale`, only if these are the facts that are known.
        """
        folder = source_of(self._sources, version).unpacked(version)
        if folder is None:
            return
        self._replace(version, name, await self._row(version, folder), stale)

    def forget_known(self, version: AssetVersion, name: str, stale: FileFacts) -> bool:
        """Do as `forget_facts` if the file's facts are in memory; say whether they were. No wait."""
        row = self._rows.get(facts_key(version))
        if row is not None:
            self._replace(version, name, row, stale)
        return row is not None

    def _replace(self, version: AssetVersion, name: str, row: _Row, stale: FileFacts | None) -> None:
        known = row.facts.facts.get(name)
        if stale is not None and known is not None and known.content != stale.content:
            return
        row.facts.replaced.add(name)
        row.facts.facts.pop(name, None)
        row.facts.absent.pop(name, None)
        self._save_soon(version, row)

    def outdated(self, facts: FileFacts, version: AssetVersion, name: str) -> bool:
        """Say whether a file is known to have been replaced since these were its facts. No I/O, no wait."""
        row = self._rows.get(facts_key(version)) if isinstance(facts.extent, Ranged) else None
        if row is None or name not in row.facts.replaced:
            return False
        known = row.facts.facts.get(name)
        return known is None or known.content != facts.content

    def find(self, facts: FileFacts, versions: Iterable[AssetVersion]) -> tuple[AssetVersion, str] | None:
        """Return the version and the name of the file that these facts are about. No I/O, no wait."""
        for version in versions if isinstance(facts.extent, Ranged) else ():
            if version.source != facts.source:
                continue
            name = source_of(self._sources, version).name_of(version, facts.extent)
            if name is not None:
                return version, name
        return None

    def _save_soon(self, version: AssetVersion, row: _Row) -> None:
        row.dirty = True
        if not row.saving:
            row.saving = True
            self._flights.start(self._save, facts_key(version), row)

    async def _save(self, key: str, row: _Row) -> None:
        try:
            while row.dirty:
                await trio.sleep(SAVE_AFTER)
                row.dirty = False
                await self._notebook.write(key, dump_facts(row.facts))
        finally:
            row.saving = False
            if row.dirty:  # the daemon ends: what the origin has replaced must not be believed in the next life
                with trio.CancelScope(shield=True):
                    await self._notebook.write(key, dump_facts(row.facts))


def facts_key(version: AssetVersion) -> str:
    """Return the ledger's key of the facts of a version's files."""
    return f"facts/{identity_of(version)}"


def _same_object(known: FileFacts, found: FileFacts) -> bool:
    """Say whether two answers of a host are about the same version of an object."""
    return known.size == found.size and _version_of(known) == _version_of(found)


def _version_of(facts: FileFacts) -> str:
    return facts.extent.validator if isinstance(facts.extent, Ranged) else ""
