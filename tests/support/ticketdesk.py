"""A fetcher of tickets with everything below it real, over servers of a test."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from refgenfs.cache.opening import open_store
from refgenfs.cache.store import CacheLimits, Store
from refgenfs.core.content import BLOCK
from refgenfs.core.htsget.model import Format, Query
from refgenfs.core.retry import RetryPolicy
from refgenfs.core.ticketblocks import TicketBlocks
from refgenfs.fetch.bridge import open_bridge
from refgenfs.fetch.http import Http
from refgenfs.fetch.settings import Account, HttpSettings
from refgenfs.fetch.ticketed import TicketFetcher
from refgenfs.reader.scratch import StoreScratch

MIB = 1 << 20
LAB = "lab"


@dataclass
class Sink:
    """Takes pieces, and sees that they are as a sink may expect them."""

    start: int
    size: int
    data: bytearray = field(default_factory=bytearray)

    async def write(self, offset: int, data: memoryview) -> None:
        assert offset == self.start + len(self.data)
        assert offset % BLOCK == 0
        assert len(data) <= MIB
        assert len(data) % BLOCK == 0 or offset + len(data) == self.size
        self.data += data


@dataclass
class Desk:
    """A fetcher, and what it needs."""

    fetcher: TicketFetcher
    http: Http
    store: Store

    async def settle(self, id_: str = "a", format_: Format = Format.BAM, **query: object) -> TicketBlocks:
        """Ask for a ticket and the lengths of its blocks."""
        asked = Query(id_, format_, **query)  # type: ignore[arg-type]
        return (await self.fetcher.settle(asked, account=LAB)).extent

    async def fetch(self, extent: TicketBlocks, start: int = 0, stop: int | None = None) -> bytes:
        """Fetch a stretch; borders are those of blocks, or the end."""
        sink = Sink(start, extent.size)
        end = extent.size if stop is None else stop
        await self.fetcher.fetch_range(extent, start, end, extent.size, sink, account=LAB)
        return bytes(sink.data)

    async def whole(self, id_: str = "a", format_: Format = Format.BAM, **query: object) -> bytes:
        """Return all that a ticket is for."""
        return await self.fetch(await self.settle(id_, format_, **query))

    @property
    def reserved(self) -> int:
        """Bytes of the cache that are promised and not used."""
        return self.store._shelf.account.reserved


@asynccontextmanager
async def open_desk(
    folder: Path, url: str, *, quota: int = 64 * MIB, token_file: Path | None = None, retry_for: float = 3.0
) -> AsyncIterator[Desk]:
    """Open everything; at the end nothing may be promised any more, nor lie in the scratch folder."""
    account = Account(url, timeout=2.0, token_file=token_file)
    policy = RetryPolicy(retry_for=retry_for, first=0.01, longest=0.05)
    async with open_store(folder, CacheLimits(quota), owner="test") as store, open_bridge(grace=0.5) as bridge:
        await store.ready()
        http = Http(bridge, HttpSettings(policy=policy, accounts={LAB: account}))
        fetcher = TicketFetcher(http, StoreScratch(store), lambda _: (url,))
        try:
            yield Desk(fetcher, http, store)
        finally:
            await fetcher.aclose()
            await http.aclose()
        assert list(store.scratch.iterdir()) == []


def assert_no_secret(caplog: pytest.LogCaptureFixture, http: Http, *secrets: str) -> None:
    """See that no log line and no failure that people are told of holds one of these."""
    told = [record.getMessage() + str(record.exc_info or "") for record in caplog.records if record.name != "asyncio"]
    told += [repr(failure) for failure in (*http.failures, *http.failing.values())]
    assert not [text for text in told for secret in secrets if secret in text]


def listen(caplog: pytest.LogCaptureFixture) -> None:
    """Have all that the fetcher logs."""
    caplog.set_level(logging.DEBUG, logger="refgenfs")
