"""One source of the catalog: what it last said, when it is asked next, and how it is."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from refgenfs.core.catalog import SourceCatalog
from refgenfs.core.errors import redact_url
from refgenfs.sources import Source


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """How a source is, for people; `assets` counts tags.

    `last_refresh`, None for never, and `failing_since`, None for one that answers, are in Unix seconds.
    """

    name: str
    type: str
    url: str
    healthy: bool
    last_refresh: float | None
    error: str
    failing_since: float | None
    genomes: int
    assets: int


class Feed:
    """A source, and what it last said."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.catalog: SourceCatalog | None = None
        self.last_refresh: float | None = None
        self.failures = 0  # in a row
        self.failing_since: float | None = None  # Unix seconds
        self.error = ""
        self.due = float("-inf")  # trio time of the next refresh
        self.woken = trio.Event()  # set when `due` changed
        self.scope = trio.CancelScope()  # of the task that keeps it fresh

    def schedule(self, due: float) -> None:
        """Have the next refresh at this trio time."""
        self.due = due
        self.woken.set()
        self.woken = trio.Event()

    async def wait_until_due(self) -> None:
        """Wait for the time of the next refresh, whatever that comes to be meanwhile."""
        while (left := self.due - trio.current_time()) > 0:
            with trio.move_on_after(left):
                await self.woken.wait()

    @property
    def catalog_key(self) -> str:
        """The ledger's key of what the source said last."""
        return f"catalog/{self.source.name}"

    @property
    def state_key(self) -> str:
        """The ledger's key of when that was, and of which server."""
        return f"source/{self.source.name}"

    def status(self) -> SourceStatus:
        """Return how the source is."""
        genomes = self.catalog.genomes if self.catalog is not None else ()
        return SourceStatus(
            name=self.source.name,
            type=self.source.kind,
            url=redact_url(self.source.url),
            healthy=self.failures == 0,
            last_refresh=self.last_refresh,
            error=self.error,
            failing_since=self.failing_since,
            genomes=len(genomes),
            assets=sum(len(asset.tags) for genome in genomes for asset in genome.assets.values()),
        )
