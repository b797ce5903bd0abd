"""MD5s that no refget server has: asked for once a while, and of one user only so many."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from refgenfs.cache.opening import open_store
from refgenfs.cache.store import CacheLimits
from refgenfs.catalog.flights import Flights
from refgenfs.core.errands import on_behalf_of
from refgenfs.core.errors import OriginMissing, TooManyRequests
from refgenfs.fetch.http import Http
from refgenfs.made import servers
from refgenfs.made.servers import RefgetServers
from refgenfs.reader.reader import Reader

ANN, BOB = 1, 2
MOST = 5


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[RefgetServers, list[str]]]:
    """Have a server that has nothing, and what it was asked for."""
    asked: list[str] = []

    async def head(urls: tuple[str, ...], **_: Any) -> None:
        await trio.lowlevel.checkpoint()
        asked.append(urls[0].rpartition("/")[2])
        raise OriginMissing(urls[0])

    async with open_store(folder, CacheLimits(1 << 26), owner="test") as store, trio.open_nursery() as nursery:
        flights = Flights()
        flights.open(nursery)
        http = cast(Http, SimpleNamespace(head=head))
        found = RefgetServers(http, store, cast(Reader, None), flights, lambda: 0.0)
        found.renew(["http://refget.example.org"])
        yield found, asked


async def test_one_user_s_random_names_are_not_asked_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "MISSES", MOST)
    async with opened(tmp_path) as (found, asked):
        with on_behalf_of(ANN):
            for number in range(MOST):
                for _ in range(3):
                    assert await found.facts(f"{number:032x}") is None
            assert len(asked) == MOST, "once each"
            for number in range(MOST, 100):
                with pytest.raises(TooManyRequests, match="user 1 has asked for 5 sequences"):
                    await found.facts(f"{number:032x}")
        assert len(asked) == MOST
        with on_behalf_of(BOB):
            assert await found.facts(f"{100:032x}") is None
        assert len(asked) == MOST + 1
