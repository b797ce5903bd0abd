"""A cache of very many contents: opening it waits for none of them."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from refgenfs.cache import startup
from refgenfs.cache.entries import Table
from refgenfs.cache.ledger import JSONValue, Ledger
from refgenfs.cache.opening import open_store
from refgenfs.cache.store import CacheLimits
from refgenfs.core.content import BLOCK, Run
from tests.integration.test_early_reads import held
from tests.support.large_cache import SIZE, content_of, make_large_cache

LIMITS = CacheLimits(1 << 50)
COUNT = 10_000


@pytest.mark.parametrize("clean", [True, False])
async def test_a_large_cache_is_open_at_once(tmp_path: Path, clean: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is open before any summary is read; then all is known, and little memory is taken."""
    cache = tmp_path / "cache"
    make_large_cache(cache, COUNT, clean=clean)
    read: list[int] = []
    real = startup._table

    def table(ledger: Ledger) -> Table:
        read.append(1)
        return real(ledger)

    monkeypatch.setattr(startup, "_table", table)
    gc.collect()
    tracemalloc.start()
    try:
        async with open_store(cache, LIMITS, owner="/genomes", wait=False) as store:
            await trio.sleep(0.3)
            assert read == []
            content = await store.content(content_of(COUNT // 2), SIZE)
            assert read == [1]
            assert content.missing(Run(0, SIZE // BLOCK)) == -1
            assert content.read(3 * BLOCK, 4096) == bytes(4096)
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] < 250 * COUNT
            assert len(store.summary()) == COUNT
            assert store.used > COUNT * SIZE
    finally:
        tracemalloc.stop()


async def test_a_read_of_what_is_resident_reads_no_other_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor any other block map: the work is the same in a cache of ten and of ten thousand."""
    rows: list[str] = []
    real = Ledger.items

    def items(self: Ledger, prefix: str) -> Iterator[tuple[str, JSONValue]]:
        for key, value in real(self, prefix):
            rows.append(key)
            yield key, value

    read = []
    for count in (10, COUNT):
        cache = tmp_path / f"{count}"
        make_large_cache(cache, count)
        with held("before") as holding:
            async with open_store(cache, LIMITS, owner="/genomes", wait=False) as store:
                store.look()
                await holding.there()
                rows.clear()
                with monkeypatch.context() as counted:
                    counted.setattr(Ledger, "items", items)
                    assert await store.holds(content_of(5))
                    content = await store.content_to_read(content_of(5), SIZE)
                    assert content.read(3 * BLOCK, 4096) == bytes(4096)
                read.append(list(rows))
                assert not store.is_ready
                holding.go()
    assert read[0] == read[1] == [f"content/{content_of(5)}"] * 2 + [f"blocks/{content_of(5)}/0"]


async def test_the_oldest_of_many_go_first_whether_they_were_opened_or_not(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    make_large_cache(cache, 300, size=BLOCK)
    async with open_store(cache, CacheLimits(1 << 40), owner="/genomes") as store:
        (await store.content(content_of(5), BLOCK)).read(0, 100)
        await store.content(content_of(7), BLOCK)  # opened, not read
        store.pin(content_of(2))
        assert store._room.make(10 * BLOCK)
        held = {row.cid for row in store.summary()}
        gone = [number for number in range(300) if content_of(number) not in held]
        assert gone[:8] == [0, 1, 3, 4, 6, 7, 8, 9]
        assert len(gone) <= 11


async def test_files_that_came_after_a_clean_stop_are_seen_by_the_directorys_time(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    make_large_cache(cache, 10)
    stray, lost = cache / "contents" / content_of(99), cache / "contents" / content_of(3)
    stray.write_bytes(os.urandom(1000))
    lost.unlink()
    async with open_store(cache, LIMITS, owner="/genomes") as store:
        assert not stray.exists()
        assert store.resident_bytes(content_of(3)) == 0
        assert store.resident_bytes(content_of(4)) == SIZE
