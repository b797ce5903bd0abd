"""Indices that hosts of blocks have beside the objects that tickets are of: htsget itself has no place for them."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import trio

from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import FileFacts
from refgenfs.core.errors import DeadlineExceeded, NotInCatalog, RefgenfsError
from refgenfs.core.indices import BESIDE, KINDS, wishes
from refgenfs.core.layout import Child
from refgenfs.core.regions import name_beside, parse_beside
from refgenfs.fetch.ticketed import Settled, TicketFetcher
from refgenfs.library import Library
from refgenfs.sources.htsget import HtsgetSource

log = logging.getLogger(__name__)

KNOWN = 4096  # indices of which it is remembered whether there are any


@dataclass(frozen=True, slots=True)
class _Known:
    settled: Settled | None
    at: float


class OriginIndices:
    """Gives the indices that stand beside whole files of htsget servers (see `library.Deriver`).

    Where there is one of a kind, none of another kind is made: tools look for `.csi` first.
    """

    def __init__(
        self,
        sources: Mapping[str, HtsgetSource],
        tickets: TicketFetcher,
        *,
        lookup_deadline: float,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._sources = sources
        self._tickets = tickets
        self._deadline = lookup_deadline
        self._wall = wall
        self._library: Library | None = None
        self._known: OrderedDict[tuple[AssetVersion, str, str], _Known] = OrderedDict()

    def be_patient(self, lookup_deadline: float) -> None:
        """Take so long (seconds) for a name or a size from now on."""
        self._deadline = lookup_deadline

    def attach(self, library: Library) -> None:
        """Take what the library says of the files that indices are of."""
        self._library = library

    async def child(
        self, version: AssetVersion, shown_as: str, prefix: str, name: str, listed: Mapping[str, Child]
    ) -> Child | None:
        """Return an index that the host has; raise NotInCatalog for one of another kind than it has."""
        if prefix or version.source not in self._sources or name in listed:
            return None
        for wish in wishes(name):
            child = listed.get(wish.base)
            if child is None or child.origin_name is None:
                continue
            if wish.spelling == BESIDE and await self._find(version, child.origin_name, wish.kind.ending):
                return Child(name, name_beside(wish.kind.ending, child.origin_name))
            for kind in KINDS.values():
                if wish.base.endswith(kind.data) and await self._find(version, child.origin_name, kind.ending):
                    raise NotInCatalog(f"{version.key} has another index of {wish.base}: {wish.base}{kind.ending}")
        return None

    async def children(self, version: AssetVersion, shown_as: str, prefix: str) -> Mapping[str, Child] | None:
        """Return None: there are no folders of these."""
        return None

    async def facts(self, version: AssetVersion, name: str) -> FileFacts | None:
        """Return the facts of an index; it is as old as its data at the most, or tools complain."""
        parsed = parse_beside(name)
        if parsed is None or self._library is None:
            return None
        ending, file = parsed
        settled = await self._find(version, file, ending)
        if settled is None:
            raise NotInCatalog(f"{version.key} has no {file}{ending} any more")
        data = await self._library.locate(version, file)
        facts = self._sources[version.source].settled_facts(version, file + ending, settled)
        return replace(facts, mtime=max(facts.mtime, data.facts.mtime))

    def known_facts(self, version: AssetVersion, name: str) -> FileFacts | None:
        """Return None: they are not listed, so nobody needs them at once."""
        return None

    async def _find(self, version: AssetVersion, file: str, ending: str) -> Settled | None:
        """Return an index of a file at the host of its blocks, asking once a while; None: there is none."""
        key = (version, file, ending)
        source = self._sources[version.source]
        known = self._known.get(key)
        if known is not None and 0 <= self._wall() - known.at < source.hold:
            return known.settled
        query = source.query(version, file)
        if query is None:
            return None
        try:
            with trio.fail_after(self._deadline):
                settled = await self._tickets.sibling(query, ending, account=source.name)
        except trio.TooSlowError:
            raise DeadlineExceeded(f"the index of {file} did not come within {self._deadline:g} s") from None
        except RefgenfsError as exc:
            if known is None or not exc.transient:
                raise
            settled = known.settled
        self._known[key] = _Known(settled, self._wall())
        while len(self._known) > KNOWN:
            self._known.popitem(last=False)
        return settled
