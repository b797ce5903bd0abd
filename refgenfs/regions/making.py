"""Builds what makes slices and finds indices of origins, for the daemon."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import trio

from refgenfs.fetch.bridge import Bridge
from refgenfs.fetch.ticketed import TicketFetcher
from refgenfs.library import Deriver, Library
from refgenfs.reader.reader import Reader
from refgenfs.regions.beside import OriginIndices
from refgenfs.regions.deriver import Regions
from refgenfs.regions.indexed import IndexedSlicer
from refgenfs.regions.ticketed import TicketSlicer
from refgenfs.sources import Source
from refgenfs.sources.htsget import HtsgetSource


@dataclass(frozen=True, slots=True)
class Slices:
    """What gives files that no origin lists, in the order in which it is asked."""

    regions: Regions
    indices: OriginIndices
    cutter: IndexedSlicer
    served: dict[str, HtsgetSource]

    def renew(self, sources: Iterable[Source], lookup_deadline: float) -> None:
        """Ask these servers from now on; one that is gone is still there for who has a file of it open."""
        self.regions.be_patient(lookup_deadline)
        self.indices.be_patient(lookup_deadline)
        self.served.update((source.name, source) for source in sources if isinstance(source, HtsgetSource))

    @property
    def derivers(self) -> tuple[Deriver, ...]:
        """What the library asks."""
        return (self.regions, self.indices)

    def attach(self, library: Library) -> None:
        """Let them ask the library for other files; before that, none may be looked up."""
        self.indices.attach(library)
        self.cutter.attach(library)


def make_slices(
    sources: Sequence[Source],
    tickets: TicketFetcher,
    reader: Reader,
    bridge: Bridge,
    lookup_deadline: float,
    nursery: trio.Nursery,
) -> Slices:
    """Build all, with their tasks in this nursery."""
    served = {source.name: source for source in sources if isinstance(source, HtsgetSource)}
    cutter = IndexedSlicer(reader, bridge)
    regions = Regions((TicketSlicer(served, reader), cutter), lookup_deadline=lookup_deadline)
    regions.open(nursery)
    return Slices(regions, OriginIndices(served, tickets, lookup_deadline=lookup_deadline), cutter, served)
