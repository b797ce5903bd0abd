"""A cache directory with things in it that no daemon has left there, and a clock that jumps."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import trio

from refgenfs.cache.content import Content
from refgenfs.cache.ledger import JSONValue
from refgenfs.cache.opening import open_store
from refgenfs.cache.store import CacheLimits, Store
from refgenfs.core.content import BLOCK, Run
from refgenfs.core.errors import CacheError
from tests.integration.test_store import assert_reads_right, fill, name_of

LIMITS = CacheLimits(64 << 20)
SIZE = 4 * BLOCK
GOOD: dict[str, JSONValue] = {"size": SIZE, "resident": SIZE, "last_used": 1.0, "pinned": False}
ODD_ROWS: dict[str, JSONValue] = {
    "negative": {**GOOD, "size": -5, "resident": -5},
    "more resident than there is": {**GOOD, "resident": SIZE + 1},
    "huge": {**GOOD, "size": 1 << 62, "resident": 1 << 62},
    "beyond 64 bits": {**GOOD, "size": 1 << 80, "resident": 0},
    "no size": {"resident": 3},
    "texts": {**GOOD, "size": "4", "resident": "4"},
    "a fraction": {**GOOD, "size": 4.5, "resident": 4.5},
    "used never": {**GOOD, "last_used": None},
    "used at no time": {**GOOD, "last_used": float("nan")},
    "used at the end of time": {**GOOD, "last_used": float("inf")},
    "used beyond all floats": {**GOOD, "last_used": 10**400},
    "a list": [1, 2],
    "nothing": None,
    "a true size": {**GOOD, "size": True, "resident": True},
}


async def fill_some(store: Store, count: int = 3) -> None:
    for number in range(count):
        assert fill(await store.content(name_of(number), SIZE), range(4))


async def assert_works(store: Store, *numbers: int) -> None:
    """Assert that these contents are whole, and that others can be stored and read."""
    for number in numbers:
        content = await store.content(name_of(number), SIZE)
        assert content.missing(Run(0, 4)) == -1
        for index in range(4):
            assert_reads_right(content, index)
    fresh = await store.content(name_of(9), SIZE)
    assert fill(fresh, range(4))
    assert_reads_right(fresh, 2)
    store.evict(fresh.id)
    assert store.used < store.quota
    assert not store.uncached


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("odd", ODD_ROWS)
async def test_a_row_that_no_daemon_wrote_costs_its_content_only(tmp_path: Path, odd: str, clean: bool) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await fill_some(store)
        await store.flush()
        await trio.to_thread.run_sync(store.ledger.set, f"content/{name_of(0)}", ODD_ROWS[odd])
        await trio.to_thread.run_sync(store.ledger.set, "content/not-a-content", GOOD)
        store._contents._live.clear()
        store._shelf.sound = clean
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await assert_works(store, 1, 2)
        found = await store.content(name_of(0), SIZE)
        found.drop(Run(0, 4))
        found = await store.content(name_of(0), SIZE)
        assert fill(found, range(4))
        assert_reads_right(found, 3)


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("row", [
    None, 1, "x", [], {}, {"epoch": 1, "block": BLOCK, "bits": "", "crc": ""},
    {"epoch": 1, "block": BLOCK, "bits": "/////w==", "crc": ""},
    {"epoch": 1, "block": 1, "bits": "Dw==", "crc": "AAAA"},
    {"epoch": 1, "block": BLOCK, "bits": "Dw==", "crc": "AAAAAAAAAAAAAAAAAAAAAA=="},
])  # fmt: skip
async def test_a_page_that_no_daemon_wrote_is_absent_blocks(tmp_path: Path, row: JSONValue, clean: bool) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await fill_some(store)
        await store.flush()
        for page in ("0", "1", "-1", "99999999999999999999", "x"):
            await trio.to_thread.run_sync(store.ledger.set, f"blocks/{name_of(0)}/{page}", row)
        store._shelf.sound = clean
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await store.content(name_of(0), SIZE)
        await store.verify()
        await assert_works(store, 1, 2)


def stand_in(path: Path, how: str, elsewhere: Path) -> None:
    """Put something in a content file's place."""
    path.unlink()
    match how:
        case "link":
            path.symlink_to(elsewhere)
        case "folder":
            path.mkdir()
            (path / "somebody's").write_text("own")
        case "fifo":
            os.mkfifo(path)
        case "longer":
            path.write_bytes(bytes(SIZE + 1))
        case "shorter":
            path.write_bytes(bytes(SIZE - 1))
        case "another":
            path.write_bytes(os.urandom(SIZE))


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("how", ["link", "folder", "fifo", "longer", "shorter", "another", "gone"])
async def test_what_stands_in_a_content_files_place_at_the_start(tmp_path: Path, how: str, clean: bool) -> None:
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    elsewhere.write_bytes(bytes(SIZE))
    async with open_store(cache, LIMITS, owner="/genomes") as store:
        await fill_some(store)
        await store.flush()
        store._shelf.sound = clean
    stand_in(cache / "contents" / name_of(0), how, elsewhere)
    async with open_store(cache, LIMITS, owner="/genomes") as store:
        with trio.fail_after(10):
            await assert_refills(store, await store.content(name_of(0), SIZE))
            await assert_works(store, 0, 1, 2)
    assert elsewhere.read_bytes() == bytes(SIZE)
    assert (cache / "contents" / f"{name_of(0)}.foreign").exists() == (how == "folder")


async def assert_refills(store: Store, content: Content) -> None:
    """Assert that nothing wrong is read of a content, and that it can be filled again."""
    for index in range(4):
        if content.missing(Run(index, index + 1)) < 0:
            try:
                assert_reads_right(content, index)
            except CacheError:
                assert content.missing(Run(index, index + 1)) == index
    absent = [index for index in range(4) if content.missing(Run(index, index + 1)) >= 0]
    try:
        assert fill(content, absent)
    except CacheError:  # once, when somebody else's file is in the way
        await store.flush()
        assert fill(content, range(4))


@pytest.mark.parametrize("how", ["link", "folder", "fifo", "longer", "shorter"])
async def test_what_stands_in_the_way_of_a_new_content_is_cleared_away(tmp_path: Path, how: str) -> None:
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    elsewhere.write_bytes(bytes(SIZE))
    async with open_store(cache, LIMITS, owner="/genomes") as store:
        await fill_some(store)
        path = cache / "contents" / name_of(5)
        path.touch()
        stand_in(path, how, elsewhere)
        with trio.fail_after(10):
            await assert_refills(store, await store.content(name_of(5), SIZE))
        assert not store.uncached, "the disk is well"
        await assert_works(store, 0, 1, 2, 5)
        assert stat.S_ISREG(os.lstat(path).st_mode)
    assert elsewhere.read_bytes() == bytes(SIZE)


async def test_a_directory_that_is_closed_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing wrong is read, reads go on uncached, and the cache goes on when it may be written again."""
    now = [0.0]
    real = os.open
    denied = [False]

    def guarded(path: Any, *arguments: Any, **options: Any) -> int:
        if denied[0] and "/contents/" in os.fspath(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *arguments, **options)

    async with open_store(tmp_path, LIMITS, owner="/genomes", clock=lambda: now[0]) as store:
        await fill_some(store)
        await store.flush()
        store._shelf.handles.close()
        monkeypatch.setattr(os, "open", guarded)
        denied[0] = True
        content = await store.content(name_of(6), SIZE)
        with pytest.raises(CacheError, match="Permission denied"):
            fill(content, range(4))
        assert store.uncached
        assert "Permission denied" in store.errors.last
        denied[0] = False
        now[0] += 11
        assert fill(content, range(4))
        await assert_works(store, 1, 2, 6)


async def test_a_clock_that_jumps_back_keeps_the_order_of_use(tmp_path: Path) -> None:
    now = [2_000_000_000.0]
    async with open_store(tmp_path, LIMITS, owner="/genomes", now=lambda: now[0]) as store:
        for number in range(3):
            now[0] += 10
            assert fill(await store.content(name_of(number), SIZE), range(4))
    now[0] = 1_000_000_000.0
    async with open_store(tmp_path, LIMITS, owner="/genomes", now=lambda: now[0]) as store:
        now[0] += 10
        (await store.content(name_of(0), SIZE)).read(0, 10)
        assert max(row.last_used for row in store.summary()) <= now[0]
    async with open_store(tmp_path, LIMITS, owner="/genomes", now=lambda: now[0]) as store:
        assert store._room.make(1)
        assert [number for number in range(3) if store.resident_bytes(name_of(number)) == SIZE] == [0, 2]
