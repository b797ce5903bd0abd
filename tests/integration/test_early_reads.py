"""Contents that are read before it is known what all the others are: no wait, and the books come out the same."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from refgenfs.cache import content as content_module
from refgenfs.cache import opened, room, startup, stock
from refgenfs.cache import store as store_module
from refgenfs.cache.blockmap import DOUBTFUL, RESIDENT, BlockMap
from refgenfs.cache.content import Content
from refgenfs.cache.entries import EntryRow, Table
from refgenfs.cache.ledger import Ledger, LedgerDamaged
from refgenfs.cache.opening import open_store
from refgenfs.cache.pinrows import Pin
from refgenfs.cache.shelf import BlockDamaged, file_cost
from refgenfs.cache.startup import Image, Opened
from refgenfs.cache.store import CacheLimits, Store
from refgenfs.core.content import BLOCK, ByteRange, FileFacts, Run, block_count
from refgenfs.core.errors import CacheError, StaleContent
from tests.integration.test_store import assert_reads_right, disk_use, fill, flip, name_of
from tests.support.scripted import eventually, letters, open_rig

MIB = 1 << 20
LIMITS = CacheLimits(64 * MIB)
SIZE = 20 * BLOCK - 77
NOW = 1_700_000_000.0

STEPS = ("before", "rows", "after")  # the rows are read; then the files are made to agree with them


class Held:
    """Holds the reading of all rows back, at one of its steps, until `go`; `reached` once it is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
        self.reached, self._gate = threading.Event(), threading.Event()
        image, table = startup.read_image, startup._table

        def read_image(opened: Opened, now: float, *others: object) -> Image:
            if step == "before":
                self._wait()
            found = image(opened, now, *others)  # type: ignore[arg-type]
            if step == "after":
                self._wait()
            return found

        def read_table(ledger: Ledger) -> Table:
            found = table(ledger)
            if step == "rows":
                self._wait()
            return found

        monkeypatch.setattr(stock, "read_image", read_image)
        monkeypatch.setattr(startup, "_table", read_table)

    def _wait(self) -> None:
        self.reached.set()
        assert self._gate.wait(60)

    async def there(self) -> None:
        """Wait until it is held back."""
        assert await trio.to_thread.run_sync(self.reached.wait, 60)

    def go(self) -> None:
        """Let it go on, now and from now on."""
        self._gate.set()


@contextlib.contextmanager
def held(step: str) -> Iterator[Held]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        holding = Held(monkeypatch, step)
        try:
            yield holding
        finally:
            holding.go()


def damage_once(monkeypatch: pytest.MonkeyPatch) -> list[LedgerDamaged]:
    """Have the reading of all rows find the ledger damaged, once; what is returned is empty then."""
    table, damage = startup._table, [LedgerDamaged("the ledger is damaged")]

    def read_table(ledger: Ledger) -> Table:
        if damage:
            raise damage.pop()
        return table(ledger)

    monkeypatch.setattr(startup, "_table", read_table)
    return damage


async def make(cache: Path, count: int = 6, *, clean: bool = True) -> None:
    """Make a closed cache: of content n, the blocks from n on."""
    async with open_store(cache, LIMITS, owner="/genomes", now=lambda: NOW) as store:
        for number in range(count):
            assert fill(await store.content(name_of(number), SIZE), range(number, 20))
            await store.flush()
        store._shelf.sound = clean


def order(store: Store) -> list[tuple[str, int, int]]:
    """Everything that may be evicted or is pinned, the least recently used first: content, segment, bytes."""
    store._shelf.make_evictable(1 << 60)
    index = store._shelf.index
    slots = [slot for slot in range(len(index._contents)) if index._sizes[slot]]
    key = {slot: (index._stamps[slot], index._contents[slot], index._indexes[slot]) for slot in slots}
    return [(index._contents[s], index._indexes[s], index._sizes[s]) for s in sorted(slots, key=key.__getitem__)]


def books(store: Store) -> dict[str, object]:
    """What a store knows."""
    shelf = store._shelf
    return {
        "rows": sorted(store.summary(), key=lambda row: row.cid),
        "order": order(store),
        "files": shelf.account.files,
        "excess": shelf.account.excess // BLOCK,  # the copies are laid out on the disk a little differently
        "pinned": (sorted(shelf.pinned), shelf.index.pinned),
        "kept": sorted(cid for cid, entry in store._keeping._kept.items() if entry.resident),
        "removed": sorted(shelf.removed),
        "on the disk": sorted(os.listdir(store.directory / "contents")),
    }


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("step", STEPS)
async def test_a_read_does_not_wait_for_what_else_is_resident(tmp_path: Path, step: str, clean: bool) -> None:
    await make(tmp_path, clean=clean)
    with held(step) as holding:
        async with open_store(tmp_path, LIMITS, owner="/genomes", wait=False) as store:
            await holding.there()
            content = await store.content_to_read(name_of(2), SIZE)
            assert await store.content_to_read(name_of(2), SIZE) is content
            # what is there after an unclean stop is not believed before it was checked
            assert set(content.map.flags[2:]) == {RESIDENT if clean else DOUBTFUL}
            assert content.missing(Run(0, 20)) == 0
            for index in range(2, 20):
                assert_reads_right(content, index)
            assert await store.holds(name_of(2))
            assert await store.holds(name_of(3))
            assert not await store.holds(name_of(99))
            # nothing is stored, nothing evicted
            assert content.reserve(Run(0, 1)) is None
            with pytest.raises(CacheError, match="still being read"):
                content.write(0, bytes(BLOCK))
            assert store.evict(name_of(2)) == 0
            assert not store.is_ready
            # what nothing is resident of waits
            with trio.move_on_after(0.05) as scope:
                await store.content_to_read(name_of(99), SIZE)
            assert scope.cancelled_caught
            holding.go()
            await store.ready()
            assert await store.content(name_of(2), SIZE) is content
            assert store.contents == 6
            assert order(store)[-1][0] == name_of(2)  # it was read last
            assert fill(content, [0])
            await store.flush()
            assert disk_use(tmp_path) <= store.used
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert store._stock.opened.clean
        for number in range(6):
            content = await store.content(name_of(number), SIZE)
            assert content.resident() == (19 - number) * BLOCK + BLOCK - 77 + (BLOCK if number == 2 else 0)
            for index in range(number, 20):
                assert_reads_right(content, index)


# ---- the same as in a store that waited


class Script:
    """Steps of a life, drawn from a seed, that can be repeated."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.done: list[tuple[str, int, int, int]] = []

    def draw(self) -> tuple[str, int, int, int]:
        first = self.dice.randrange(20)
        kind = self.dice.choice(["open", "open", "read", "read", "part", "drop", "evict", "touch", "keep", "check"])
        return kind, self.dice.randrange(10), first, self.dice.randrange(first + 1, 21)


def take_step(store: Store, content: Content, step: tuple[str, int, int, int]) -> None:
    kind, _, first, stop = step
    if kind == "evict":
        content.evict(Run(first, stop) if first % 2 else Run(0, 20))
    elif kind == "drop":
        content.drop(Run(first, stop))
    elif kind == "touch":
        store.touch(content.id)
    elif kind == "keep" and content.resident():
        store.keep(content)
    elif kind == "check":
        content.recheck(first)
    elif kind in ("read", "part") and content.missing(Run(first, stop)) < 0:
        end = min(stop * BLOCK, SIZE) - (1000 if kind == "part" else 0)
        with contextlib.suppress(BlockDamaged):
            content.read(first * BLOCK + 10, end - first * BLOCK - 10)


async def make_odd(cache: Path, dice: random.Random) -> None:
    """Make a cache with pins, kept contents, and things that are not as they were left."""
    ahead = dice.choice([0.0, 0.0, 1e6])  # the clock was wrong then
    clean = dice.random() < 0.5
    uses = dict(zip(range(8), dice.sample(range(1000), 8), strict=True))
    used = [NOW]
    async with open_store(cache, LIMITS, owner="/genomes", now=lambda: used[0]) as store:
        for number in range(8):
            used[0] = NOW + ahead - 2000 + uses[number]
            content = await store.content(name_of(number), SIZE)
            assert fill(content, sorted(dice.sample(range(20), dice.randrange(1, 21))))
            store.set_note(content.id, {"name": f"file-{number}"})
        for number in dice.sample(range(8), 2):
            store.pin(name_of(number))
        store.keep(await store.content(name_of(dice.randrange(8)), SIZE))
        await store.flush()
        if not clean and dice.random() < 0.5:  # written, and not recorded
            content = await store.content(name_of(7), SIZE)
            content.write(0, bytes(BLOCK))
            content._written.clear()
        store._shelf.sound = clean
    contents = cache / "contents"
    for fault in dice.sample(["flip", "flip", "short", "gone", "stray", "row", ""], 2):
        number = dice.randrange(8)
        if not (path := contents / name_of(number)).exists():
            continue
        if fault == "flip":
            flip(cache, name_of(number), dice.randrange(SIZE))
        elif fault == "short":
            os.truncate(path, SIZE - 1)
        elif fault == "gone":
            path.unlink()
        elif fault == "stray":
            (contents / name_of(77)).write_bytes(b"x" * 5000)
        elif fault == "row":
            ledger = Ledger(cache / "ledger")
            ledger.set(f"content/{name_of(number)}", {"size": SIZE, "resident": -1})
            ledger.close()


@pytest.mark.parametrize("seed", range(60))
async def test_the_books_are_as_if_it_had_waited(tmp_path: Path, seed: int) -> None:
    script = Script(seed)
    await make_odd(tmp_path / "early", script.dice)
    subprocess.run(["cp", "-a", "--sparse=always", tmp_path / "early", tmp_path / "late"], check=True)  # noqa: ASYNC221
    with held(script.dice.choice(STEPS)) as holding:
        async with open_store(tmp_path / "early", LIMITS, owner="/g", wait=False, now=lambda: NOW) as store:
            await holding.there()
            for _ in range(script.dice.randrange(1, 30)):
                step = script.draw()
                content = await store._contents.open_early(name_of(step[1]), SIZE)
                if content is not None:
                    take_step(store, content, step)
                    script.done.append(step)
            assert not store.is_ready
            holding.go()
            await store.ready()
            early = books(store)
            assert disk_use(store.directory) <= store.used
            await flushed(store)
            after = books(store)
    async with open_store(tmp_path / "late", LIMITS, owner="/g", now=lambda: NOW) as store:
        for step in script.done:
            take_step(store, await store.content(name_of(step[1]), SIZE), step)
        late = books(store)
        await flushed(store)
        assert early | {"removed": late["removed"]} == late
        assert after == books(store)
    await assert_same(tmp_path / "early", tmp_path / "late")


async def flushed(store: Store) -> None:
    """Have all written, and none kept in memory but what the ledger has."""
    await store.flush()
    assert not store._writeback.pending


async def assert_same(one: Path, other: Path) -> None:
    """Compare two caches in their next life: books, maps, and every byte."""
    async with (
        open_store(one, LIMITS, owner="/g", now=lambda: NOW) as first,
        open_store(other, LIMITS, owner="/g", now=lambda: NOW) as second,
    ):
        assert books(first) == books(second)
        assert first._stock.opened.clean
        for row in first.summary():
            content, twin = await first.content(row.cid, row.size), await second.content(row.cid, row.size)
            assert content.map.flags == twin.map.flags
            for index in range(block_count(row.size)):
                if content.map.flags[index]:
                    with contextlib.suppress(BlockDamaged):
                        assert_reads_right(content, index)
        keys = [set(store.ledger.keys("content/")) | set(store.ledger.keys("blocks/")) for store in (first, second)]
        assert keys[0] == keys[1]


# ---- what is wrong at the start


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("how", ["gone", "short", "link"])
async def test_a_file_that_is_not_what_was_left_there(tmp_path: Path, how: str, clean: bool) -> None:
    """One that was so before is no early content; one that becomes so is found out by who reads it."""
    await make(tmp_path, clean=clean)

    def spoil(number: int) -> None:
        path = tmp_path / "contents" / name_of(number)
        if how == "short":
            os.truncate(path, SIZE - BLOCK)
        else:
            path.unlink()
            if how == "link":
                path.symlink_to("/etc/passwd")

    spoil(1)
    with held("rows") as holding:
        async with open_store(tmp_path, LIMITS, owner="/genomes", wait=False) as store:
            await holding.there()
            assert await store._contents.open_early(name_of(1), SIZE) is None
            content = await store.content_to_read(name_of(2), SIZE)
            spoil(2)
            with pytest.raises(BlockDamaged):
                content.read(5 * BLOCK, BLOCK)
            assert content.resident() == 0
            holding.go()
            empty = await store.content_to_read(name_of(1), SIZE)
            with contextlib.suppress(BlockDamaged):  # a shorter file, after a clean stop, is seen only now
                if empty.missing(Run(5, 6)) < 0:
                    empty.read(5 * BLOCK, BLOCK)
            assert empty.missing(Run(5, 6)) == 5
            assert not (tmp_path / "contents" / name_of(1)).exists()
            assert store.contents == 4
            assert store.resident_bytes(name_of(2)) == 0
            assert fill(content, range(20))
            assert fill(empty, range(20))
            await store.flush()
            assert disk_use(tmp_path) <= store.used
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        for number in range(6):
            content = await store.content(name_of(number), SIZE)
            for index in range(number, 20):
                assert_reads_right(content, index)


@pytest.mark.parametrize("lost", [False, True])
async def test_a_ledger_that_turns_out_to_be_damaged(
    tmp_path: Path, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made anew from what its journal has, and what is read already stays, whether that is in it or not."""
    await make(tmp_path)
    journal = tmp_path / "contents" / "journal"
    if lost:  # all that the journal has of content 3 is an earlier block map; of 4 and 5, nothing
        lines = journal.read_bytes().splitlines(keepends=True)
        ends = next(i for i, line in enumerate(lines) if f'"content/{name_of(3)}'.encode() in line)
        journal.write_bytes(b"".join(lines[: ends + 1]))
    damage = damage_once(monkeypatch)
    with held("before") as holding:
        async with open_store(tmp_path, LIMITS, owner="/genomes", wait=False) as store:
            await holding.there()
            contents = [await store.content_to_read(name_of(number), SIZE) for number in range(1, 6)]
            holding.go()
            await store.ready()
            assert not damage
            for number, content in enumerate(contents, 1):
                assert content.missing(Run(number, 20)) == -1
                for index in range(number, 20):
                    content.read(index * BLOCK + 1, 100)  # in part: no checksum says that it is right
                    assert_reads_right(content, index)
            assert store.contents == 6
            await store.flush()
            assert disk_use(tmp_path) <= store.used
            store._shelf.sound = False
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        for number in range(6):
            content = await store.content(name_of(number), SIZE)
            assert content.missing(Run(number, 20)) == -1
            for index in range(number, 20):
                assert_reads_right(content, index)


async def test_a_hole_is_not_punched_where_an_older_map_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger made anew may have an earlier map of what is read already; its blocks stay."""
    rows: list[bytes] = []
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        content = await store.content(name_of(0), SIZE)
        assert fill(content, range(5))
        await store.flush()
        store.ledger.journal.stale = True
        await store.flush()
        rows.append((tmp_path / "contents" / "journal").read_bytes())
        assert fill(content, range(5, 20))
    (tmp_path / "contents" / "journal").write_bytes(rows[0])
    damage = damage_once(monkeypatch)
    with held("before") as holding:
        async with open_store(tmp_path, LIMITS, owner="/genomes", wait=False) as store:
            await holding.there()
            content = await store.content_to_read(name_of(0), SIZE)
            holding.go()
            await store.ready()
            assert not damage
            for index in range(20):
                assert_reads_right(content, index)
            assert store.resident_bytes(name_of(0)) == SIZE
            await store.flush()
            assert disk_use(tmp_path) <= store.used
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        content = await store.content(name_of(0), SIZE)
        for index in range(20):
            assert_reads_right(content, index)


async def test_an_early_open_that_meets_a_damaged_ledger_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(tmp_path)

    def damaged(*_: object) -> None:
        raise LedgerDamaged("the ledger is damaged")

    monkeypatch.setattr(opened, "read_early", damaged)
    monkeypatch.setattr(store_module, "read_row", damaged)
    with held("rows") as holding:
        async with open_store(tmp_path, LIMITS, owner="/genomes", wait=False) as store:
            await holding.there()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.holds, name_of(1))
                nursery.start_soon(store.content_to_read, name_of(1), SIZE)
                await trio.sleep(0.05)
                assert store.open_content(name_of(1)) is None
                holding.go()
            content = store.open_content(name_of(1))
            assert content is not None
            assert_reads_right(content, 3)


async def test_what_can_not_be_read_leaves_what_is_read_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await make(tmp_path)
    reason = [CacheError("disk I/O error")]
    table = startup._table

    def read_table(ledger: Ledger) -> Table:
        if reason:
            raise reason.pop()
        return table(ledger)

    monkeypatch.setattr(startup, "_table", read_table)
    ahead = [0.0]
    with held("before") as holding:
        async with open_store(tmp_path, LIMITS, owner="/genomes", wait=False, clock=lambda: ahead[0]) as store:
            await holding.there()
            content = await store.content_to_read(name_of(1), SIZE)
            holding.go()
            await store.ready()
            assert store.uncached
            assert_reads_right(content, 3)
            assert content.reserve(Run(0, 1)) is None
            ahead[0] = 60.0
            store._hurry()
            await eventually(lambda: not store.uncached)
            assert store.contents == 6
            assert fill(content, [0])
            assert_reads_right(content, 3)
    assert "can't be read" in caplog.text
    caplog.clear()


# ---- pins


async def test_pins_and_what_is_kept_hold(tmp_path: Path) -> None:
    await make(tmp_path, 4)
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        store.pins.hold(name_of(1), Pin("d/fasta:default", "hg38/fasta", "v1"), "a.fa")
        store.keep(await store.content(name_of(2), SIZE))
    with held("before") as holding:
        async with open_store(tmp_path, LIMITS, owner="/genomes", wait=False) as store:
            await holding.there()
            for number in (1, 2, 3):
                assert (await store.content_to_read(name_of(number), SIZE)).missing(Run(number, 20)) == -1
            # the asset was rebuilt, and content 3 is what the pinned name means by now
            store.pins.follow("d/fasta:default", "v2", "a.fa", name_of(3))
            holding.go()
            await store.ready()
            assert [number for number in range(4) if store.is_pinned(name_of(number))] == [3]
            assert store.pins.holders(name_of(3)) == ["hg38/fasta"]
            assert not store._room.make(1 << 40)  # all that may go is less
            assert store._room.make(store._shelf.index.evictable)
            assert {row.cid for row in store.summary() if row.resident} == {name_of(2), name_of(3)}
            assert store.evict(name_of(3)) == 0
            assert store.evict(name_of(2)) > 0


# ---- ends


async def test_a_store_that_is_closed_before_it_knows_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await make(tmp_path)
    monkeypatch.setattr(store_module, "SMALL", 0)  # nobody asks for the rest
    async with open_store(tmp_path, LIMITS, owner="/genomes", wait=False) as store:
        content = await store.content_to_read(name_of(1), SIZE)
        content.drop(Run(0, 4))
        other = await store.content_to_read(name_of(2), SIZE)
        other.evict(Run(0, 20))
        assert not store.is_ready
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert store._stock.opened.clean
        assert store.contents == 5
        content = await store.content(name_of(1), SIZE)
        assert content.missing(Run(3, 4)) == 3
        for index in range(4, 20):
            assert_reads_right(content, index)


KILLED = """
import contextlib, random, sys, threading, time
from pathlib import Path
import trio
from refgenfs.cache import startup
from refgenfs.cache.opening import open_store
from refgenfs.cache.shelf import BlockDamaged, file_cost
from refgenfs.core.content import Run
from tests.integration.test_early_reads import LIMITS, SIZE, fill, name_of
table = startup._table
def slow(ledger):
    time.sleep(0.2)
    found = table(ledger)
    time.sleep(0.2)
    return found
startup._table = slow
async def main():
    dice = random.Random(int(sys.argv[2]))
    async with open_store(Path(sys.argv[1]), LIMITS, owner="/genomes", wait=False) as store:
        print("open", flush=True)
        while True:
            content = await store.content_to_read(name_of(dice.randrange(6)), SIZE)
            first = dice.randrange(20)
            with contextlib.suppress(BlockDamaged):
                if content.missing(Run(first, first + 1)) < 0:
                    content.read(first * 65536, 1000)
            if dice.random() < 0.02:
                content.drop(Run(first, first + 1))
            if store.is_ready:
                fill(content, [first])
            await trio.sleep(0.001)
trio.run(main)
"""


@pytest.mark.slow
async def test_a_kill_while_all_the_others_are_read(tmp_path: Path) -> None:
    await make(tmp_path)
    served = 0
    for turn in range(10):
        with subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", KILLED, str(tmp_path), str(turn)], stdout=subprocess.PIPE
        ) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == b"open\n"
            await trio.sleep(random.Random(turn).uniform(0.02, 0.8))
            victim.kill()
        async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
            for number in range(6):
                content = await store.content(name_of(number), SIZE)
                for index in range(20):
                    if content.map.flags[index]:
                        with contextlib.suppress(BlockDamaged):  # dropped, and that was not recorded
                            assert_reads_right(content, index)
                            served += 1
            await store.flush()
            assert disk_use(tmp_path) <= store.used
            assert fill(await store.content(name_of(turn % 6), SIZE), range(20))
            store._shelf.sound = turn % 2 == 0
    assert served > 500


@pytest.mark.parametrize("patient", [True, False])
async def test_reads_are_answered_while_a_cache_that_is_too_large_shrinks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patient: bool
) -> None:
    await make(tmp_path)
    monkeypatch.setattr(room, "SHRINK_STEP", 1)
    limits = CacheLimits(3 * MIB)
    turns = 0
    with held("before") as holding:
        async with open_store(tmp_path, limits, owner="/genomes", wait=False) as store:
            await holding.there()
            content = await store.content_to_read(name_of(5), SIZE)
            holding.go()
            while not store.is_ready and (patient or turns < 3):
                await trio.lowlevel.checkpoint()
                if store._shelf.known and store.used > store.quota:
                    turns += 1
                    assert_reads_right(content, 19)
                    assert content.reserve(Run(0, 1)) is None
                    assert (await store.content_to_read(name_of(99), SIZE)).missing(Run(0, 20)) == 0
                    assert not store.is_ready
            assert turns >= 3
            assert (store.used <= store.quota) == patient
            assert bool(content.reserve(Run(0, 1))) == patient
    async with open_store(tmp_path, limits, owner="/genomes") as store:
        assert store.used <= store.quota
        assert disk_use(tmp_path) <= store.quota
        assert_reads_right(await store.content(name_of(5), SIZE), 19)


# ---- readers


async def test_readers_of_what_is_resident_do_not_wait_and_others_are_stored(tmp_path: Path) -> None:
    size = 64 * BLOCK
    async with open_rig(tmp_path) as rig:
        _, facts = rig.serve_file("a.fa", size)
        await rig.reader.vouch(facts, "hg38/fasta", "a.fa")
        await rig.reader.fill(facts, await rig.store.content(facts.content, size))
        (await rig.store.content(facts.content, size)).drop(Run(40, 64))
    with held("rows") as holding:
        async with open_rig(tmp_path, wait=False) as rig:
            await holding.there()
            _, facts = rig.serve_file("a.fa", size)
            _, cold = rig.serve_file("b.fa", size)
            await rig.reader.vouch(facts, "hg38/fasta", "a.fa")
            file = await rig.reader.open(facts)
            assert await rig.read(file, 0, 1000) == letters("a.fa", size)[:1000]
            assert await rig.read(file, 1000, 39 * BLOCK) == letters("a.fa", size)[1000 : 1000 + 39 * BLOCK]
            assert not rig.store.is_ready
            read: dict[str, bytes] = {}

            async def read_late() -> None:
                read["late"] = await rig.read(file, 50 * BLOCK, 1000)

            async def read_cold() -> None:
                await rig.reader.vouch(cold, "hg38/fasta", "b.fa")
                read["cold"] = await rig.read_once(cold, 5, 1000)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_late)
                nursery.start_soon(read_cold)
                await trio.sleep(0.1)
                assert not read
                assert not rig.http.ranges
                holding.go()
            assert read == {
                "late": letters("a.fa", size)[50 * BLOCK : 50 * BLOCK + 1000],
                "cold": letters("b.fa", size)[5:1005],
            }
            await rig.settled()
            assert rig.reader.counts.uncached == 0
            content = await rig.store.content(facts.content, size)
            assert content.missing(Run(50, 51)) < 0
            assert content.missing(Run(40, 48)) < 0  # what follows an early reader in order came too


async def test_a_reader_does_not_wait_for_ever_for_the_others(tmp_path: Path) -> None:
    """Beyond its patience it goes on without the cache."""
    size = 64 * BLOCK
    async with open_rig(tmp_path) as rig:
        _, facts = rig.serve_file("a.fa", size)
        await rig.read_once(facts, 0, 1)
    with held("rows") as holding:
        async with open_rig(tmp_path, wait=False, patience=0.2) as rig:
            await holding.there()
            _, facts = rig.serve_file("a.fa", size)
            file = await rig.reader.open(facts)
            assert await rig.read(file, 60 * BLOCK, 1000) == letters("a.fa", size)[60 * BLOCK : 60 * BLOCK + 1000]
            assert not rig.store.is_ready
            holding.go()


async def test_blocks_of_another_version_are_seen_before_it_is_known_what_is_resident(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        _, facts = rig.serve_file("a.fa", MIB)
        await rig.reader.vouch(facts, "hg38/fasta", "a.fa")
        await rig.read_once(facts, 0, 1)
    with held("rows") as holding:
        async with open_rig(tmp_path, wait=False) as rig:
            await holding.there()
            extent = facts.extent
            assert isinstance(extent, ByteRange)
            newer = FileFacts(facts.content, MIB, 0.0, ByteRange(extent.urls, '"2"'), facts.source, facts.origin)
            with pytest.raises(StaleContent):
                await rig.reader.vouch(newer, "hg38/fasta", "a.fa")
            assert not rig.store.is_ready
            holding.go()


# ---- what comes between


def _held_early(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Hold an early open back once it has read its rows; events: it has, and it may go on."""
    read, go = threading.Event(), threading.Event()
    real = startup.read_early

    def read_early(ledger: Ledger, contents: Path, cid: str, size: int) -> tuple[EntryRow, BlockMap] | None:
        found = real(ledger, contents, cid, size)
        read.set()
        assert go.wait(60)
        return found

    monkeypatch.setattr(opened, "read_early", read_early)
    return read, go


async def test_all_is_known_while_an_early_open_reads_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens what is known by then, and charges nothing for it."""
    await make(tmp_path)
    read, go = _held_early(monkeypatch)
    with held("rows") as holding:
        async with open_store(tmp_path, LIMITS, owner="/genomes", wait=False) as store:
            await holding.there()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.content_to_read, name_of(1), SIZE)
                nursery.start_soon(store.content_to_read, name_of(3), SIZE)
                assert await trio.to_thread.run_sync(read.wait, 60)
                holding.go()
                await store.ready()
                files = store._shelf.account.files
                content = await store.content(name_of(1), SIZE)
                content.drop(Run(0, 10))
                go.set()
            assert store.open_content(name_of(1)) is content
            content.drop(Run(10, 20))
            other = await store.content(name_of(2), SIZE)
            other.drop(Run(0, 20))
            assert len({row.cid for row in store.summary()}) == store.contents == 6
            assert store._shelf.account.files == sum(file_cost(row.resident) for row in store.summary()) < files


async def test_a_ledger_is_made_anew_while_an_early_open_reads_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has read counts for nothing: its file may have been taken for a stray one since."""
    await make(tmp_path)
    (tmp_path / "contents" / "journal").unlink()
    damage_once(monkeypatch)
    read, go = _held_early(monkeypatch)
    with held("after") as holding:
        monkeypatch.setattr(store_module, "SMALL", 0)
        async with open_store(tmp_path, LIMITS, owner="/genomes", wait=False) as store:
            opening: list[Content] = []

            async def open_it() -> None:
                opening.append(await store.content_to_read(name_of(1), SIZE))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(open_it)
                assert await trio.to_thread.run_sync(read.wait, 60)
                store.look()
                await holding.there()
                go.set()
                await trio.sleep(0.05)
                assert not opening
                holding.go()
            assert opening[0].missing(Run(1, 2)) == 1
            assert store.summary() == []


@pytest.mark.parametrize("step", STEPS)
async def test_what_a_kill_left_unrecorded_in_an_early_content_is_given_back(tmp_path: Path, step: str) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        content = await store.content(name_of(1), SIZE)
        assert fill(content, [0, 1])
        content.write(5, os.urandom(8 * BLOCK))
        content._written.clear()
        store._shelf.sound = False
    file = tmp_path / "contents" / name_of(1)
    assert file.stat().st_blocks * 512 >= 10 * BLOCK
    with held(step) as holding:
        async with open_store(tmp_path, LIMITS, owner="/genomes", wait=False) as store:
            await holding.there()
            content = await store.content_to_read(name_of(1), SIZE)
            holding.go()
            await store.ready()
            assert_reads_right(content, 1)
            assert file.stat().st_blocks * 512 <= file_cost(2 * BLOCK)
            assert disk_use(tmp_path) <= store.used


async def test_what_takes_no_more_than_it_should_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert fill(await store.content(name_of(1), SIZE), range(0, 20, 2))
        store._shelf.sound = False
    punched: list[int] = []
    monkeypatch.setattr(content_module, "punch_hole", lambda _fd, offset, _length: punched.append(offset))
    with held("before") as holding:
        async with open_store(tmp_path, LIMITS, owner="/genomes", wait=False) as store:
            await holding.there()
            content = await store.content_to_read(name_of(1), SIZE)
            holding.go()
            await store.ready()
            assert_reads_right(content, 2)
            assert store._shelf.excess == {}
    assert not punched


async def test_what_a_kill_left_unrecorded_counts_where_it_can_not_be_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await test_what_a_kill_left_unrecorded_in_an_early_content_is_given_back(tmp_path / "one", STEPS[0])
    monkeypatch.setattr(startup, "can_punch", lambda _: False)
    cache = tmp_path / "two"
    async with open_store(cache, LIMITS, owner="/genomes") as store:
        content = await store.content(name_of(1), SIZE)
        assert fill(content, [0, 1])
        content.write(5, os.urandom(8 * BLOCK))
        content._written.clear()
        store._shelf.sound = False
    with held("before") as holding:
        async with open_store(cache, LIMITS, owner="/genomes", wait=False) as store:
            await holding.there()
            await store.content_to_read(name_of(1), SIZE)
            holding.go()
            await store.ready()
            assert store._shelf.account.excess >= 7 * BLOCK
            assert disk_use(cache) <= store.used


async def test_rows_that_are_wrong_about_pins_and_what_is_kept(tmp_path: Path) -> None:
    """Pins are what the rows of keys say, of contents that were opened early, too; and what went is kept no more."""
    await make(tmp_path, 4)
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        store.pin(name_of(1))
        store.keep(await store.content(name_of(3), SIZE))
    ledger = Ledger(tmp_path / "ledger")
    for number, pinned in ((1, False), (2, True)):
        row = ledger.get(f"content/{name_of(number)}")
        assert isinstance(row, dict)
        ledger.set(f"content/{name_of(number)}", {**row, "pinned": pinned})
    ledger.close()
    with held("rows") as holding:
        async with open_store(tmp_path, LIMITS, owner="/genomes", wait=False) as store:
            await holding.there()
            contents = [await store.content_to_read(name_of(number), SIZE) for number in range(4)]
            for number in (2, 3):
                (tmp_path / "contents" / name_of(number)).unlink()
                with pytest.raises(BlockDamaged):
                    contents[number].read(10 * BLOCK, BLOCK)
            holding.go()
            await store.ready()
            assert {row.cid: row.pinned for row in store.summary()} == {name_of(0): False, name_of(1): True}
            assert store.evict(name_of(1)) == 0
            assert fill(contents[3], range(20))
            assert contents[3].entry.kept is (name_of(3) in store._keeping._kept)
            assert store._room.make(store._shelf.index.evictable)
            assert {row.cid for row in store.summary()} == {name_of(1)}
