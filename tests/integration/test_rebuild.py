"""A ledger that is damaged, gone, or of another version is made anew, and nothing that it had is lost."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from refgenfs.cache import ledger as ledger_module
from refgenfs.cache.blockmap import DOUBTFUL
from refgenfs.cache.journal import SLACK, Journal, replay
from refgenfs.cache.ledger import JSONValue, Ledger
from refgenfs.cache.opening import open_store
from refgenfs.cache.shelf import BlockDamaged
from refgenfs.cache.store import CacheLimits, Store
from refgenfs.core.content import BLOCK, Run
from tests.integration.test_store import LIMITS, MIB, assert_reads_right, disk_use, fill, flip, name_of

SIZE = 20 * BLOCK - 77


def _noise(cache: Path) -> None:
    (cache / "ledger" / "cache.db").write_bytes(os.urandom(50_000))


def _zeros(cache: Path) -> None:
    path = cache / "ledger" / "cache.db"
    path.write_bytes(bytes(path.stat().st_size))


def _short(cache: Path) -> None:
    os.truncate(cache / "ledger" / "cache.db", 9_000)


def _gone(cache: Path) -> None:
    shutil.rmtree(cache / "ledger")


def _only_contents(cache: Path) -> None:
    for path in cache.iterdir():
        if path.is_dir() and path.name != "contents":
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def _middle(cache: Path) -> None:
    with (cache / "ledger" / "cache.db").open("r+b") as file:
        for page in range(3, 12):
            file.seek(page * 4096)
            file.write(os.urandom(4096))


def _foreign_table(cache: Path) -> None:
    with sqlite3.connect(cache / "ledger" / "cache.db") as connection:
        connection.execute("ALTER TABLE Cache RENAME TO Shelf")
    connection.close()


def _foreign_layout(cache: Path) -> None:
    with sqlite3.connect(cache / "ledger" / "cache.db") as connection:
        connection.execute("""UPDATE Cache SET value = '{"epoch":1,"layout":99}' WHERE key = 'store/state'""")
    connection.close()


WAYS = [_noise, _zeros, _short, _gone, _only_contents, _middle, _foreign_table, _foreign_layout]
BY_NAME = pytest.mark.parametrize("damage", WAYS, ids=lambda way: way.__name__.strip("_"))


async def _fill_some(store: Store) -> None:
    for number in range(4):
        content = await store.content(name_of(number), SIZE)
        assert fill(content, range(number, 20))
        store.set_note(content.id, {"key": "hg38/fasta", "name": f"file-{number}"})
    store.pin(name_of(2))
    table: JSONValue = {"complete": True, "members": []}
    await trio.to_thread.run_sync(store.ledger.set, "members/lab/digest", table)


async def _assert_all_is_there(store: Store) -> None:
    for number in range(4):
        content = await store.content(name_of(number), SIZE)
        assert store.note(content.id) == {"key": "hg38/fasta", "name": f"file-{number}"}
        assert content.missing(Run(number, 20)) == -1
        assert content.resident() == (19 - number) * BLOCK + BLOCK - 77
        for index in range(number, 20):
            assert_reads_right(content, index)
    assert [number for number in range(4) if store.is_pinned(name_of(number))] == [2]
    assert store.ledger.get("members/lab/digest") == {"complete": True, "members": []}


@BY_NAME
@pytest.mark.parametrize("clean", [True, False])
async def test_nothing_is_lost_with_the_ledger(tmp_path: Path, damage: Callable[[Path], None], clean: bool) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await _fill_some(store)
        await store.flush()
        store._shelf.sound = clean
    damage(tmp_path)
    flip(tmp_path, name_of(3), 12 * BLOCK + 5)
    for turn in range(3):
        async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
            content = await store.content(name_of(3), SIZE)
            if turn == 0:  # what was not checked since is checked now
                assert content.map.flags[12] == DOUBTFUL
                with pytest.raises(BlockDamaged):
                    content.read(12 * BLOCK, BLOCK)
                assert fill(content, [12])
            await _assert_all_is_there(store)
            assert disk_use(tmp_path) <= store.used


async def test_an_epoch_is_never_used_again(tmp_path: Path) -> None:
    """What is doubtful after a ledger was made anew is so also if the daemon is killed then."""
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await _fill_some(store)
        before = store.ledger.epoch
    _gone(tmp_path)
    for _ in range(2):
        async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
            assert store.ledger.epoch > before
            content = await store.content(name_of(3), SIZE)
            assert set(content.map.flags[3:]) == {DOUBTFUL}
            store._shelf.sound = False
            before = store.ledger.epoch


async def test_a_ledger_that_breaks_while_it_is_used_is_made_anew(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await _fill_some(store)
        await store.flush()
        store.ledger.checkpoint()
        store._contents._recent.clear()  # nothing is in memory
        for path in (tmp_path / "ledger").iterdir():
            path.write_bytes(os.urandom(60_000))
        held = await store.content(name_of(1), SIZE)
        assert store.ledger.generation == 1
        assert_reads_right(held, 7)
        await _assert_all_is_there(store)
        assert fill(await store.content(name_of(9), SIZE), range(20))
        await store.flush()
        assert not store.uncached
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await _assert_all_is_there(store)
        assert store.resident_bytes(name_of(9)) == SIZE


async def test_a_journal_that_ends_in_the_middle_of_a_line_is_a_beginning(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await _fill_some(store)
        await store.flush()
    path = tmp_path / "contents" / "journal"
    whole = list(replay(path.parent))
    data = path.read_bytes()
    choose = random.Random(3)
    for _ in range(200):
        cut = choose.randrange(len(data))
        path.write_bytes(data[:cut])
        rows = list(replay(path.parent))
        assert rows == whole[: len(rows)]
        changed = bytearray(data)
        changed[cut] ^= 1 << choose.randrange(8)
        path.write_bytes(changed)
        rows = list(replay(path.parent))
        assert rows == whole[: len(rows)]
        assert len(rows) < len(whole)


async def test_the_journal_is_always_the_ledger_and_never_long(tmp_path: Path) -> None:
    choose = random.Random(5)
    (tmp_path / "contents").mkdir()
    ledger = Ledger(tmp_path / "ledger")
    ledger.settle()
    for turn in range(400):
        values: dict[str, JSONValue] = {
            f"k/{choose.randrange(60)}": "é\n\t" * choose.randrange(1500) for _ in range(choose.randrange(5))
        }
        ledger.apply(values, iter([f"k/{choose.randrange(60)}" for _ in range(choose.randrange(3))]))
        assert ledger.journal.path.stat().st_size <= ledger.journal.bound
        if turn % 7 == 0:
            ledger.settle()
            assert not ledger.journal.stale
            kept = {key: value for key, value in dict(replay(tmp_path / "contents")).items() if value is not None}
            assert kept == {
                key: text for key, text in ledger._rows("", ledger_module._ITEMS) if isinstance(text, str)
            }
    live = sum(len(str(text)) for _, text in ledger._rows("", ledger_module._ITEMS))
    assert ledger.journal.bound < 4 * live + 2 * SLACK
    ledger.close()


async def test_a_clean_start_goes_on_with_the_journal(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await _fill_some(store)
    before = (tmp_path / "contents" / "journal").stat().st_ino
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert not store.ledger.journal.stale
        store.unpin(name_of(2))
        store.pin(name_of(0))
    assert (tmp_path / "contents" / "journal").stat().st_ino == before
    _gone(tmp_path)
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert [number for number in range(4) if store.is_pinned(name_of(number))] == [0]
        assert store.resident_bytes(name_of(2)) == 17 * BLOCK + BLOCK - 77


def test_a_journal_that_cannot_grow_is_stale_and_stays_a_beginning(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.rewrite([("a", "1")])
    journal.append([("b", "2")])
    os.close(journal._fd)
    journal._fd = os.open("/dev/full", os.O_WRONLY)
    journal.append([("c", "3")])
    assert journal.stale
    journal.append([("d", "4")])
    assert list(replay(tmp_path)) == [("a", "1"), ("b", "2")]
    journal.close()


async def test_a_cache_without_a_journal_gets_one(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await _fill_some(store)
    (tmp_path / "contents" / "journal").unlink()
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await _assert_all_is_there(store)
    _gone(tmp_path)
    async with open_store(tmp_path, CacheLimits(64 * MIB), owner="/genomes") as store:
        await _assert_all_is_there(store)
