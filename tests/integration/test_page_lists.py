"""The long lists of the status page: right, without what is hidden, and made beside the loop, not on it."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

import trio
import trio.lowlevel

from refgenfs.administration.holdings import holdings, shelf_list
from refgenfs.administration.parts import ALL, Sight
from refgenfs.cache.entries import EntryRow
from refgenfs.cache.store import Store
from refgenfs.core.catalog import Asset, AssetVersion, CatalogSnapshot, Genome, ListedFile, SourceCatalog, merge
from refgenfs.core.errors import CacheError
from refgenfs.reader.indexes import INDEX_LABEL
from refgenfs.web.bodies import encode


def version(source: str, genome: str, asset: str, tag: str = "default") -> AssetVersion:
    return AssetVersion(source, f"d{genome}", genome, asset, tag, f"{genome}{asset}{tag}", asset_size="1 MB")


def catalog(source: str, genomes: int, assets: int, prefix: str = "g") -> SourceCatalog:
    made = []
    for number in range(genomes):
        name = f"{prefix}{number}"
        rows = {}
        for at in range(assets):
            tags = {"default": version(source, name, f"a{at}")}
            rows[f"a{at}"] = Asset(f"a{at}", "default", MappingProxyType(tags), f"Asset {at}")
        made.append(Genome(f"d{name}", (name,), MappingProxyType(rows), f"Genome {number}"))
    return SourceCatalog(source, tuple(made))


class FakeStore:
    """A store with labels and contents."""

    def __init__(self, notes: dict[str, Any], rows: dict[str, EntryRow]) -> None:
        self.ledger = self
        self._notes = notes
        self._rows = rows

    def items(self, prefix: str) -> Iterator[tuple[str, Any]]:
        if "broken" in self._notes:
            raise CacheError("the ledger can't be read")
        yield from ((f"{prefix}{cid}", note) for cid, note in self._notes.items())

    def peek(self, cid: str) -> EntryRow | None:
        return self._rows.get(cid)


def store_of(*contents: tuple[str, str, int, bool]) -> Store:
    """Return a store of contents: key, name, resident bytes, pinned."""
    notes = {str(at): {"key": key, "name": name} for at, (key, name, _, _) in enumerate(contents)}
    rows = {
        str(at): EntryRow(str(at), 100, resident, pinned, 1000.0 + at)
        for at, (_, _, resident, pinned) in enumerate(contents)
    }
    return cast("Store", FakeStore(notes, rows))


def named(held: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row[0]: dict(zip(held["names"], row, strict=True)) for row in held["rows"]}


def test_what_is_here_by_asset() -> None:
    snapshot = merge([catalog("lab", 2, 2)])
    store = store_of(
        ("g0/a0:default", "f1", 60, True),
        ("g0/a0:default", "f2", 30, False),
        ("", f"{INDEX_LABEL}g0/a0:default", 5, False),
        ("g1/a1:default", "f", 100, False),
        ("gone/a0:default", "f", 70, False),
        ("g1/a0:default", "nothing is resident", 0, False),
    )
    held = holdings(store, snapshot, ALL)
    rows = named(held)
    assert list(rows) == ["g1/a1", "g0/a0", "gone/a0:default"], "the largest first; a default tag is left out"
    assert rows["g0/a0"] | {"last_used": 0} == {
        "key": "g0/a0", "source": "lab", "resident": 95, "pinned": 60, "size": 300, "files": 3, "last_used": 0
    }  # fmt: skip
    assert rows["g0/a0"]["last_used"] == 1002.0
    assert rows["gone/a0:default"]["source"] is None
    assert held["by_source"] == {"lab": 195}


def test_what_is_hidden_is_not_named() -> None:
    snapshot = merge([catalog("lab", 1, 1), catalog("secret", 1, 2, "s")])
    store = store_of(("g0/a0:default", "f", 1, False), ("s0/a1:default", "f", 2, False), ("gone/a:b", "f", 3, False))
    assert list(named(holdings(store, snapshot, Sight(frozenset({"secret"}), 1000)))) == ["g0/a0"]
    listed = shelf_list(snapshot, Sight(frozenset({"secret"}), 1000))
    assert (len(listed["rows"]), listed["sources"], len(listed["genomes"])) == (1, ["lab"], 1)
    assert "s0" not in json.dumps(listed)
    assert len(shelf_list(snapshot, ALL)["rows"]) == 3


def test_a_ledger_that_cannot_be_read_is_said() -> None:
    held = holdings(cast("Store", FakeStore({"broken": None}, {})), CatalogSnapshot(), ALL)
    assert (held["rows"], held["error"]) == ([], "the ledger can't be read")


def test_every_asset_is_listed_once_under_its_first_name() -> None:
    tags = MappingProxyType({"default": version("lab", "g0", "a0"), "old": version("lab", "g0", "a0", "old")})
    genome = Genome("dg0", ("g0", "human"), MappingProxyType({"a0": Asset("a0", "default", tags)}))
    listed = shelf_list(merge([SourceCatalog("lab", (genome,))]), ALL)
    assert [row[:4] for row in listed["rows"]] == [[0, "a0", "default", 1], [0, "a0", "old", 0]]
    assert listed["genomes"][0]["names"] == ["g0", "human", "dg0"]


def test_a_size_is_what_the_listing_said_where_the_origin_says_none_of_the_whole() -> None:
    files = ListedFile("a.fa", "http://h/a.fa", 1500), ListedFile("a.fa.fai", "http://h/a.fa.fai", 500)
    known = replace(version("bucket", "g0", "a0"), asset_size="", files=files)
    unknown = replace(known, tag="old", files=(*files, ListedFile("b", "http://h/b")))
    tags = MappingProxyType({"default": known, "old": unknown})
    genome = Genome("dg0", ("g0",), MappingProxyType({"a0": Asset("a0", "default", tags)}))
    listed = shelf_list(merge([SourceCatalog("bucket", (genome,))]), ALL)
    assert [row[5] for row in listed["rows"]] == ["2.00 kB", ""]


async def _worst_gap(work: Callable[[], object]) -> tuple[float, float]:
    """Do some work on a thread; return how long it took, and the longest time that the loop was held up meanwhile."""
    worst, done = 0.0, trio.Event()

    async def tick() -> None:
        nonlocal worst
        while not done.is_set():
            before = time.perf_counter()
            await trio.lowlevel.checkpoint()
            worst = max(worst, time.perf_counter() - before)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        began = time.perf_counter()
        await trio.to_thread.run_sync(work)
        took = time.perf_counter() - began
        done.set()
    return took, worst


async def test_forty_thousand_assets_hold_nobody_up() -> None:
    # so many that each list takes long beside 5 ms, for which Python lets a thread go on whatever it does
    snapshot = merge([catalog("lab", 100, 400)])
    store = store_of(*((f"g{at % 100}/a{at // 100}:default", "f", 10, False) for at in range(40_000)))
    listed: list[dict[str, Any]] = []
    works = (
        lambda: listed.append(shelf_list(snapshot, ALL)),
        lambda: encode(listed[0]),
        lambda: holdings(store, snapshot, ALL),
    )
    gc.disable()  # as good as in a daemon (`memory.tame_collector`): it would go over all that other tests have left
    try:
        for work in works:
            tries = [await _worst_gap(work) for _ in range(3)]
            # no more than a part of the time that it takes is the loop's at a time
            assert min(worst / took for took, worst in tries) < 0.5, tries
    finally:
        gc.enable()
    assert len(listed[0]["rows"]) == 40_000
