"""Names of the files of asset versions: from memory, else the ledger, else the origin.

A listing holds for good, since a version is named by its digest; only "the origin has none" is asked again after a
while. An origin that can't be reached raises, and changes nothing that is known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

import trio

from refgenfs.catalog.flights import Flights
from refgenfs.catalog.notebook import Notebook
from refgenfs.catalog.recent import Recent
from refgenfs.core.catalog import AssetVersion
from refgenfs.core.catalog_json import KeptListing, dump_listing, load_listing
from refgenfs.core.errors import CacheError, NotInCatalog, RefgenfsError
from refgenfs.sources import Source

log = logging.getLogger(__name__)

NAMES = 50_000  # file names of listings in memory, about 150 bytes each
WARMERS = 4  # listings asked for at a time with nobody waiting; half of what a host is asked at a time
CHUNK = 256  # versions that one thread call looks up


class Listings:
    """The listings of versions. `keep` (seconds) is how long an origin's "none" holds."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        notebook: Notebook,
        flights: Flights,
        *,
        keep: float,
        wall: Callable[[], float],
    ) -> None:
        self._sources = sources
        self._notebook = notebook
        self._flights = flights
        self._keep = keep
        self._wall = wall
        self._listings: Recent[KeptListing] = Recent(NAMES, _count_names, lambda _: False)

    def renew(self, keep: float) -> None:
        """Believe an origin's "none" for so long (seconds) from now on."""
        self._keep = keep

    async def listing(self, version: AssetVersion, *, background: bool = False) -> tuple[str, ...] | None:
        """Return the names of a version's files as the origin spells them; None: the origin has no listing."""
        if version.files is not None:
            return tuple(file.name for file in version.files)
        key = listing_key(version)
        kept = self._listings.get(key)
        if kept is not None and self._holds(kept):
            return kept.names
        find = partial(self._find_listing, version, key)
        return await self._flights.join(key, find, background=background)

    async def _find_listing(self, version: AssetVersion, key: str) -> tuple[str, ...] | None:
        kept = self._listings.get(key) or load_listing(await self._notebook.read(key))
        if kept is None or not self._holds(kept):
            try:
                fresh = KeptListing(await source_of(self._sources, version).listing(version), self._wall())
            except RefgenfsError as exc:
                if kept is None or not exc.transient:
                    raise
            else:
                kept = fresh
                await self._notebook.write(key, dump_listing(fresh))
        self._listings.put(key, kept)
        return kept.names

    def _holds(self, kept: KeptListing) -> bool:
        return kept.names is not None or 0 <= self._wall() - kept.at < self._keep

    async def warm_up(self, versions: Iterable[AssetVersion]) -> None:
        """Ask for the listings that are not known yet, when nobody waits; stop at a source that is away."""
        away: set[str] = set()
        coming = iter(versions)
        while chunk := tuple(islice(coming, CHUNK)):
            pending = iter(await trio.to_thread.run_sync(self._unknown, chunk))
            async with trio.open_nursery() as nursery:
                for _ in range(WARMERS):
                    nursery.start_soon(self._warm, pending, away)

    async def _warm(self, pending: Iterator[AssetVersion], away: set[str]) -> None:
        for version in pending:
            await self._flights.calm()
            if version.source in away:
                continue
            try:
                await self.listing(version, background=True)
            except RefgenfsError as exc:
                log.debug("the listing of %s did not come: %s", version.key, exc)
                if exc.transient:
                    away.add(version.source)

    def _unknown(self, versions: Sequence[AssetVersion]) -> list[AssetVersion]:
        """Return those without a listing in the ledger. Blocks."""
        found = []
        for version in (one for one in versions if one.files is None):
            try:
                kept = load_listing(self._notebook.ledger.get(listing_key(version)))
            except CacheError:
                return []  # what can't be kept needn't be asked for
            if kept is None or not self._holds(kept):
                found.append(version)
        return found


def source_of(sources: Mapping[str, Source], version: AssetVersion) -> Source:
    """Return the source of a version; raise NotInCatalog where it is no more."""
    try:
        return sources[version.source]
    except KeyError:
        raise NotInCatalog(f"there is no source {version.source} any more") from None


def listing_key(version: AssetVersion) -> str:
    """Return the ledger's key of a version's listing."""
    return f"listing/{identity_of(version)}"


def identity_of(version: AssetVersion) -> str:
    """Return what tells a version from all others, in keys of the ledger."""
    place = f"{version.genome_digest}/{version.asset}:{version.tag}"
    return f"{version.source}/{place}/{version.asset_digest}"


def _count_names(listing: KeptListing) -> int:
    return 1 + len(listing.names or ())
