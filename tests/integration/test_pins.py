"""Pins by the keys that people named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from refgenfs.cache.ledger import JSONValue
from refgenfs.cache.opening import open_store
from refgenfs.cache.pinrows import BY_HAND, KEPT_BY_KEY, MOST_CLAIMS, UNKNOWN, Pin
from refgenfs.cache.store import FLUSH_EVERY, CacheLimits, Store
from refgenfs.core.content import BLOCK
from refgenfs.core.errors import CacheError
from tests.integration.test_store import fill, name_of

LIMITS = CacheLimits(64 << 20)
SIZE = 4 * BLOCK
FASTA, INDEX = "abc/fasta:default", "abc/bwa_index:default"


def pin(store: Store, key: str, *numbers: int, digest: str = "one") -> None:
    for number in numbers:
        store.pins.hold(name_of(number), Pin(key, f"hg{key[2:]}", digest), f"file-{number}")


def pinned(store: Store) -> list[int]:
    """Return what is pinned, by all who say so."""
    found = [number for number in range(8) if store.is_pinned(name_of(number))]
    assert found == [number for number in range(8) if store._shelf.index.is_pinned(name_of(number))]
    rows = {row.cid for row in store.summary() if row.pinned}
    assert rows == {name_of(number) for number in found}
    assert store.pinned == sum(store.resident_bytes(name_of(number)) for number in found)
    return found


async def fill_some(store: Store, count: int = 4) -> None:
    for number in range(count):
        assert fill(await store.content(name_of(number), SIZE), range(4))


async def test_what_two_keys_need_stays_until_both_let_go(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await fill_some(store)
        pin(store, FASTA, 0)
        pin(store, INDEX, 0, 1, 2)
        assert store.pins.holders(name_of(0)) == ["hgc/bwa_index:default", "hgc/fasta:default"]
        assert store.pins.release(FASTA) == [name_of(0)]
        assert pinned(store) == [0, 1, 2]
        assert store.evict(name_of(0)) == 0
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert pinned(store) == [0, 1, 2]
        pin(store, FASTA, 0)
        store.pins.release(INDEX)
        assert pinned(store) == [0]
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert pinned(store) == [0]
        assert store.pins.release("no/such:key") == []
        store.pins.release(FASTA)
        assert pinned(store) == []
        assert store.clear() == 4 * SIZE
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert [*store.ledger.keys("pin/"), *store.ledger.keys("content/")] == []


async def test_pins_outlast_both_copies_of_the_ledger_while_the_daemon_runs(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await fill_some(store)
        pin(store, FASTA, 0)
        pin(store, INDEX, 0, 1)
        await store.flush()
        store.ledger.checkpoint()
        store._contents._recent.clear()
        for path in (tmp_path / "ledger").iterdir():
            path.write_bytes(os.urandom(60_000))
        (tmp_path / "contents" / "journal").write_bytes(b"")
        await store.content(name_of(3), SIZE)
        assert store.ledger.generation == 1
        assert await store.flush()
        assert pinned(store) == [0, 1]
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert pinned(store) == [0, 1]
        assert store.pins.holders(name_of(0)) == ["hgc/bwa_index:default", "hgc/fasta:default"]
        store.pins.release(FASTA)
        store.pins.release(INDEX)
        assert pinned(store) == []


async def test_the_pins_of_a_cache_before_keys_are_taken_over(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await fill_some(store)
        for number in (0, 1, 2):
            store.pin(name_of(number))
        await store.content(name_of(7), SIZE)
        store.pin(name_of(7))  # nothing of it is resident
        await store.flush()

        def forget_keys() -> None:  # only the contents' own rows say it
            for key in (KEPT_BY_KEY, f"pin/{UNKNOWN}"):
                store.ledger.delete(key)

        await trio.to_thread.run_sync(forget_keys)
    for _ in range(2):
        async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
            assert pinned(store) == [0, 1, 2, 7]
            assert store.pins.holders(name_of(0)) == [""]
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        pin(store, FASTA, 0)  # it is known now who wants it
        store.pins.release(FASTA)
        assert pinned(store) == [1, 2, 7]
        assert store.pins.release_unknown([name_of(1), name_of(3)]) == [name_of(1)]
        assert pinned(store) == [2, 7]
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert pinned(store) == [2, 7]


async def test_what_a_contents_own_row_says_counts_no_more(tmp_path: Path) -> None:
    """A kill between the two rows of an unpin must not bring the pin back."""
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await fill_some(store)
        pin(store, FASTA, 0)
        await store.flush()
        await trio.to_thread.run_sync(store.ledger.delete, f"pin/{FASTA}")
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert pinned(store) == []


async def test_a_rebuilt_asset_is_followed_when_it_is_opened(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await fill_some(store, 8)
        pin(store, INDEX, 0, 1)
        pin(store, "abc/bwa_index.fa:default", 0)
        pin(store, FASTA, 2)
        store.pins.follow(INDEX, "one", "file-0", name_of(0))
        assert pinned(store) == [0, 1, 2]
        store.pins.follow(INDEX, "two", "file-1", name_of(4))
        assert pinned(store) == [0, 2, 4], "the file's own pin is of what it holds until that is opened"
        store.pins.follow(INDEX, "two", "file-0", name_of(5))
        assert pinned(store) == [2, 4, 5]
        store.pins.follow(INDEX, "two", "file-0", name_of(6))  # replaced in place
        assert pinned(store) == [2, 4, 6]
        store.pins.follow("abc/other:default", "two", "file-0", name_of(7))
        assert pinned(store) == [2, 4, 6]
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert pinned(store) == [2, 4, 6]


async def test_a_pin_that_was_named_again_holds_what_it_is_now(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await fill_some(store)
        pin(store, FASTA, 0, 1)
        pin(store, FASTA, 2, digest="two")
        store.pins.retain(FASTA, ["file-2"])
        assert pinned(store) == [2]
        with pytest.raises(CacheError, match="not in the cache"):
            pin(store, FASTA, 6)
        assert pinned(store) == [2]


async def test_a_pinned_content_that_lost_its_row_is_pinned_when_it_is_back(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await fill_some(store)
        pin(store, FASTA, 0)
    (tmp_path / "contents" / name_of(0)).unlink()
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert store.is_pinned(name_of(0))
        assert fill(await store.content(name_of(0), SIZE), range(4))
        assert pinned(store) == [0]
        assert store.evict(name_of(0)) == 0


async def test_damaged_rows_of_pins_are_passed_over(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await fill_some(store)
        pin(store, FASTA, 0)
        rows: dict[str, JSONValue] = {
            "pin/a": 1,
            "pin/b": {"files": [1]},
            "pin/c": {"files": {"x": 1}},
            "pin/": {"files": None},
        }
        await store.flush()
        for key, value in rows.items():
            await trio.to_thread.run_sync(store.ledger.set, key, value)
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert pinned(store) == [0]


def claim(store: Store, key: str, number: int, claims: dict[str, float | None]) -> None:
    store.pins.hold(name_of(number), Pin(key, f"hg{key[2:]}", "one", claims=claims), f"file-{number}")


async def test_what_several_names_claim_stays_until_the_last_lets_go(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await fill_some(store)
        claim(store, FASTA, 0, {"job-1": None})
        claim(store, FASTA, 0, {"job-2": None})
        claim(store, INDEX, 1, {"job-1": None})
        assert store.pins.disclaim(FASTA, "job-1") == []
        assert store.pins.disclaim(FASTA, "job-3") == []
        assert store.pins.disclaim(FASTA, BY_HAND) == []
        assert pinned(store) == [0, 1]
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        pin(store, INDEX, 1)  # by hand, or because it was pulled again: that is the same pin, and nobody's claim more
        assert [(one.key, one.claims) for one in store.pins.all()] == [
            (INDEX, {"job-1": None}),
            (FASTA, {"job-2": None}),
        ]
        assert store.pins.disclaim(FASTA, "job-2") == [name_of(0)]
        assert pinned(store) == [1]
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert pinned(store) == [1]
        claim(store, INDEX, 1, {BY_HAND: None})
        assert store.pins.disclaim(INDEX, "job-1") == []
        assert store.pins.disclaim(INDEX, BY_HAND) == [name_of(1)]
        assert pinned(store) == []


async def test_a_claim_ends_when_its_time_has_come_also_while_no_daemon_runs(tmp_path: Path) -> None:
    today = [1_800_000_000.0]
    async with open_store(tmp_path, LIMITS, owner="/genomes", now=lambda: today[0]) as store:
        await fill_some(store)
        claim(store, FASTA, 0, {"job-1": today[0] + 100})
        claim(store, FASTA, 0, {"job-2": today[0] + 200})
        claim(store, INDEX, 1, {"job-1": today[0] + 100})
        pin(store, "abc/other:default", 2)
        store.pins.expire(today[0] + 99)
        assert pinned(store) == [0, 1, 2]
        claim(store, INDEX, 1, {"job-1": today[0] + 300})  # named again: it counts from then
        store.pins.expire(today[0] + 100)
        assert pinned(store) == [0, 1, 2]
        assert [sorted(one.claims) for one in store.pins.all()] == [["job-1"], ["job-2"], [BY_HAND]]
    today[0] += 1000
    async with open_store(tmp_path, LIMITS, owner="/genomes", now=lambda: today[0]) as store:
        with trio.fail_after(20 * FLUSH_EVERY):  # it is looked at with every flush
            while len([*store.ledger.keys("pin/")]) > 1:  # noqa: ASYNC110 - nobody tells it
                await trio.sleep(0.05)
        assert pinned(store) == [2]
        assert [*store.ledger.keys("pin/")] == ["pin/abc/other:default"]


async def test_a_row_of_before_there_were_claims_stays_until_it_is_unpinned(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await fill_some(store)
        rows: dict[str, JSONValue] = {
            f"pin/{FASTA}": {"shown": "hg/fasta:default", "digest": "one", "files": {"file-0": name_of(0)}},
            f"pin/{INDEX}": {"files": {"file-1": name_of(1)}, "claims": {"job-1": "soon", "job-2": 12}},
        }
        await store.flush()
        for key, value in rows.items():
            await trio.to_thread.run_sync(store.ledger.set, key, value)
    async with open_store(tmp_path, LIMITS, owner="/genomes", now=lambda: 10.0) as store:
        assert pinned(store) == [0, 1]
        assert {one.key: one.claims for one in store.pins.all()} == {
            FASTA: {BY_HAND: None},
            INDEX: {"job-1": None, "job-2": 12.0},
        }
        assert store.pins.disclaim(FASTA, BY_HAND) == [name_of(0)]


async def test_the_names_that_pin_a_key_are_bounded(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await fill_some(store)
        claim(store, FASTA, 0, {f"job-{number}": None for number in range(MOST_CLAIMS)})
        with pytest.raises(CacheError, match="1,000 names already"):
            claim(store, FASTA, 0, {"job-x": None})
        claim(store, FASTA, 0, {"job-7": None})
