"""A disk that is full, read-only, broken, or without power, at the start and later: reads go on, nothing is wrong."""

from __future__ import annotations

import contextlib
import gc
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from refgenfs.cache.opening import open_store
from refgenfs.cache.shelf import BlockDamaged
from refgenfs.cache.store import CacheLimits, Store
from refgenfs.core.content import BLOCK, Run
from refgenfs.core.errors import CacheBusy, CacheError
from tests.integration.test_store import MIB, assert_reads_right, disk_use, fill, name_of
from tests.support.disks import Disk, ext4, fill_up, tmpfs

pytestmark = pytest.mark.needs_root

LIMITS = CacheLimits(24 * MIB)
SIZE = 20 * BLOCK - 77


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with ext4(tmp_path, 64) as made:
        yield made


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def _heals(store: Store, clock: Clock) -> None:
    """Wait until the store has tried again, and well."""
    clock.now += 11
    store._hurry()
    with trio.fail_after(20):
        while store.uncached:
            await trio.sleep(0.02)
            store._hurry()


async def _fill_some(cache: Path, *, clean: bool) -> None:
    async with open_store(cache, LIMITS, owner="/genomes") as store:
        for number in range(3):
            assert fill(await store.content(name_of(number), SIZE), range(number, 20))
        store.keep(await store.content(name_of(0), SIZE))
        store.set_note(name_of(0), "zero")
        store.pin(name_of(1))
        await store.flush()
        store._shelf.sound = clean
    del store
    gc.collect()  # threads' connections to the database, which would keep the disk from being remounted


async def _assert_reads(store: Store) -> None:
    for number in range(3):
        content = await store.content(name_of(number), SIZE)
        assert content.missing(Run(number, 20)) == -1
        for index in range(number, 20):
            assert_reads_right(content, index)
    assert store.note(name_of(0)) == "zero"
    assert store.is_pinned(name_of(1))
    assert [one.cid for one in store.summary() if one.kept] == [name_of(0)]


@pytest.mark.parametrize("clean", [True, False])
async def test_a_cache_on_a_read_only_disk_is_read_and_heals(disk: Disk, clean: bool) -> None:
    cache = disk.point / "cache"
    await _fill_some(cache, clean=clean)
    disk.remount(writable=False)
    clock = Clock()
    async with open_store(cache, LIMITS, owner="/genomes", clock=clock) as store:
        assert store.uncached
        assert "ead-only" in store.errors.last
        with pytest.raises(CacheBusy):
            async with open_store(cache, LIMITS, owner="/other"):
                pass
        await _assert_reads(store)
        other = await store.content(name_of(7), SIZE)
        assert other.reserve(Run(0, 1)) is None
        await trio.to_thread.run_sync(store.ledger.set, "listing/x", "kept in memory")
        await store.flush()
        clock.now += 11
        store._hurry()
        await trio.sleep(0.3)
        assert store.uncached, "the disk is as it was"
        assert store.ledger.get("listing/x") == "kept in memory"
        assert "listing/x" in set(store.ledger.keys())
        disk.remount(writable=True)
        await _heals(store, clock)
        await _assert_reads(store)
        assert fill(other, range(20))
        assert store.used >= disk_use(cache)
        store.unpin(name_of(1))
        store.evict(name_of(1))
        store.pin(name_of(2))
    async with open_store(cache, LIMITS, owner="/genomes") as store:
        assert not store.uncached
        assert store.resident_bytes(name_of(1)) == 0
        assert store.resident_bytes(name_of(7)) == SIZE
        assert store.is_pinned(name_of(2))
        assert store.ledger.get("listing/x") == "kept in memory"
        for number in (0, 2, 7):
            content = await store.content(name_of(number), SIZE)
            for index in range(number % 7, 20):
                assert_reads_right(content, index)


async def test_a_restart_on_a_read_only_disk_changes_nothing(disk: Disk) -> None:
    cache = disk.point / "cache"
    await _fill_some(cache, clean=True)
    disk.remount(writable=False)
    for _ in range(2):
        async with open_store(cache, LIMITS, owner="/genomes") as store:
            await _assert_reads(store)
    disk.remount(writable=True)
    async with open_store(cache, LIMITS, owner="/genomes") as store:
        assert not store.uncached
        await _assert_reads(store)


async def test_a_cache_that_cannot_be_made_on_a_read_only_disk(disk: Disk) -> None:
    disk.remount(writable=False)
    clock = Clock()
    cache = disk.point / "deep" / "cache"
    async with open_store(cache, LIMITS, owner="/genomes", clock=clock) as store:
        assert store.uncached
        content = await store.content(name_of(1), SIZE)
        assert content.reserve(Run(0, 1)) is None
        await store.flush()
        disk.remount(writable=True)
        await _heals(store, clock)
        assert fill(content, range(20))
    async with open_store(cache, LIMITS, owner="/genomes") as store:
        assert store.resident_bytes(name_of(1)) == SIZE


@pytest.mark.parametrize("clean", [True, False])
async def test_a_cache_on_a_full_disk_is_read_and_heals(tmp_path: Path, clean: bool) -> None:
    with tmpfs(tmp_path / "disk", "14m") as point:
        cache = point / "cache"
        await _fill_some(cache, clean=clean)
        fill_up(point / "hog")
        clock = Clock()
        async with open_store(cache, LIMITS, owner="/genomes", clock=clock) as store:
            await _assert_reads(store)
            content = await store.content(name_of(7), 10 * BLOCK)
            assert not fill(content, range(1))
            await store.flush()
            assert store.uncached
            assert "full" in store.errors.last or "No space" in store.errors.last
            (point / "hog").unlink()
            await _heals(store, clock)
            await _assert_reads(store)
            assert fill(content, range(10))
        async with open_store(cache, LIMITS, owner="/genomes") as store:
            await _assert_reads(store)
            assert store.resident_bytes(name_of(7)) == 10 * BLOCK


async def test_a_new_cache_on_a_full_disk(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "6m") as point:
        (point / "cache").mkdir(mode=0o700)
        fill_up(point / "hog")
        clock = Clock()
        async with open_store(point / "cache", CacheLimits(4 * MIB), owner="/genomes", clock=clock) as store:
            content = await store.content(name_of(1), 5 * BLOCK)
            assert content.reserve(Run(0, 1)) is None
            (point / "hog").unlink()
            await store.flush()
            clock.now += 11
            await _heals(store, clock)
            assert fill(content, range(5))
            await store.flush()


async def test_a_disk_that_answers_with_errors_is_left_alone_and_heals(disk: Disk) -> None:
    """At the start: nothing can be read. The disk comes back: what it has is there again."""
    cache = disk.point / "cache"
    await _fill_some(cache, clean=True)
    disk.unmount()
    disk.mount()
    disk.cut_power()
    clock = Clock()
    async with open_store(cache, LIMITS, owner="/genomes", clock=clock) as store:
        assert store.uncached
        content = await store.content(name_of(5), SIZE)
        held = await store.content(name_of(0), SIZE)
        assert content.reserve(Run(0, 1)) is None
        disk.unmount()
        disk.mount()
        await _heals(store, clock)
        assert fill(content, range(20))
        assert store.resident_bytes(name_of(1)) == SIZE - BLOCK
        assert_reads_right(held, 3)
        await store.flush()
    async with open_store(cache, LIMITS, owner="/genomes") as store:
        await _assert_reads(store)


async def test_a_disk_that_breaks_while_it_is_used(disk: Disk) -> None:
    cache = disk.point / "cache"
    await _fill_some(cache, clean=True)
    async with open_store(cache, LIMITS, owner="/genomes") as store:
        held = await store.content(name_of(0), SIZE)
        disk.cut_power()
        for index in range(20):
            with contextlib.suppress(BlockDamaged):
                assert_reads_right(held, index)
        with contextlib.suppress(CacheError):
            content = await store.content(name_of(2), SIZE)
            for index in range(2, 20):
                with contextlib.suppress(BlockDamaged, CacheError):
                    assert_reads_right(content, index)
        fresh = await store.content(name_of(9), SIZE)
        reservation = fresh.reserve(Run(0, 1))
        if reservation is not None:
            with reservation, pytest.raises(CacheError):
                fresh.write(0, bytes(BLOCK))
        await store.flush()
        assert store.uncached
        assert store.errors.last


async def test_another_users_or_a_foreign_directory_stays_an_error(disk: Disk) -> None:
    (disk.point / "cache").mkdir()
    (disk.point / "cache" / "thesis.tex").write_text("do not delete")
    for writable in (True, False):
        disk.remount(writable=writable)
        with pytest.raises(CacheError, match="no cache's"):
            async with open_store(disk.point / "cache", LIMITS, owner="/genomes"):
                pass


WRITER = """
import random, sys, trio
from pathlib import Path
from refgenfs.cache import store as module
from refgenfs.cache.opening import open_store
from refgenfs.core.content import BLOCK, Run
from tests.integration.test_store import fill, name_of
module.FLUSH_EVERY = 0.05

async def main():
    choose = random.Random(sys.argv[2])
    limits = module.CacheLimits(int(sys.argv[3]))
    async with open_store(Path(sys.argv[1]), limits, owner="/genomes") as store:
        done = []
        while True:
            number, first = choose.randrange(6), choose.randrange(40)
            content = await store.content(name_of(number), 40 * BLOCK - 100)
            blocks = [index for index in range(first, min(40, first + 4)) if not content.map.flags[index]]
            fill(content, blocks)
            done += [f"{number}/{index}" for index in blocks]
            if choose.random() < 0.3 and await store.flush():
                print(*done, flush=True)
                done = []
            await trio.sleep(0.002)

trio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ledger", ["whole", "lost"])
@pytest.mark.parametrize("quota", [60 * MIB, 9 * MIB], ids=["roomy", "evicting"])
async def test_a_power_cut_loses_nothing_recorded_and_serves_nothing_wrong(
    disk: Disk, quota: int, ledger: str
) -> None:
    cache = disk.point / "cache"
    served = 0
    for turn in range(6):
        command = [sys.executable, "-c", WRITER, str(cache), f"{turn}", str(quota)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as victim:  # noqa: ASYNC220
            assert victim.stdout is not None
            first = victim.stdout.readline()
            await trio.sleep(random.Random(turn).uniform(0.05, 0.6))
            disk.cut_power()
            victim.kill()
            recorded = (first + victim.stdout.read()).decode()
        disk.unmount()
        disk.mount()
        lines = recorded.split("\n")[:-1]  # the last line may have been on its way when the power went
        if ledger == "lost":
            for path in (cache / "ledger").iterdir():
                path.unlink()
        async with open_store(cache, CacheLimits(quota), owner="/genomes") as store:
            assert not store.uncached
            for number in range(6):
                content = await store.content(name_of(number), 40 * BLOCK - 100)
                for index in range(40):
                    if content.map.flags[index]:
                        with contextlib.suppress(BlockDamaged):
                            assert_reads_right(content, index)
                            served += 1
            if quota == 60 * MIB:
                for place in " ".join(lines[:-1]).split():
                    number, index = map(int, place.split("/"))
                    content = await store.content(name_of(number), 40 * BLOCK - 100)
                    assert content.missing(Run(index, index + 1)) < 0, f"{place} was recorded and is lost"
            assert disk_use(cache) <= quota
            await store.flush()
            if turn % 2:
                store._shelf.sound = False
            store.clear()
            await store.flush()
    assert served > 100
