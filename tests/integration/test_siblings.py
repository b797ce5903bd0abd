"""Siblings, over a real store and reader and an origin that does as the test says.

Promises:
- opening a file has its siblings fetched, in the order of the rule, each byte once, whoever reads them meanwhile;
- no more than the budget is on its way at a time, and nothing with a budget of 0;
- readers come first: requests are left to them, and what they have under way is waited for;
- it ends a while after the last file of the set was closed, and goes on as long as one is open;
- who opens a file and closes it at once has no more than the beginnings fetched;
- room is made of what nobody has used since the oldest open file was opened, never of what is pinned;
- siblings that the cache can't well hold are left alone; so is what comes by a stream;
- an error of the origin ends it, and nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import BLOCK, FileFacts, Run
from refgenfs.core.errors import OriginUnavailable, StaleContent
from refgenfs.core.siblings import BUILT_IN
from refgenfs.reader import siblings as module
from refgenfs.reader.archive import Archive
from refgenfs.reader.reader import OpenFile
from refgenfs.reader.siblings import HEAD, Siblings
from tests.support.scripted import (
    MIB,
    SOURCE,
    Packed,
    Rig,
    entry,
    eventually,
    facts_of,
    open_rig,
    pack,
    room_for,
)

VERSION = AssetVersion(SOURCE, "d1", "hg38", "bwa_index", "default", "digest")


class Shelf:
    """The files of one asset, as the library knows them."""

    def __init__(self, rig: Rig, sizes: Mapping[str, int]) -> None:
        self.rig = rig
        self.files = {name: rig.serve_file(name, size) for name, size in sizes.items()}
        self.asked: list[str] = []

    async def listing(self, version: AssetVersion) -> tuple[str, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(self.files)

    async def ready_facts(self, version: AssetVersion, name: str) -> FileFacts | None:
        await trio.lowlevel.checkpoint()
        self.asked.append(name)
        return self.facts(name)

    async def open(self, facts: FileFacts, version: AssetVersion, name: str) -> OpenFile:
        return await self.rig.reader.open(facts)

    def facts(self, name: str) -> FileFacts:
        return self.files[name][1]

    def shut(self) -> None:
        for served, _ in self.files.values():
            served.tap.shut()

    def held(self, name: str) -> int:
        """Return how many bytes of a file are resident."""
        return self.rig.store.resident_bytes(self.facts(name).content)

    def fetched(self) -> int:
        return self.rig.http.fetched.get(SOURCE, 0)


class Opener:
    """Opens and closes files as the tree does."""

    def __init__(self, shelf: Shelf, siblings: Siblings) -> None:
        self.shelf = shelf
        self.siblings = siblings

    async def open(self, name: str) -> OpenFile:
        file = await self.shelf.rig.reader.open(self.shelf.facts(name))
        self.siblings.opened(file, VERSION, name)
        return file

    def close(self, file: OpenFile) -> None:
        self.siblings.closed(file)

    @property
    def busy(self) -> bool:
        return bool(self.siblings._parties)


def opener_of(shelf: Shelf, budget: int = 16 * MIB, connections: int = 8) -> Opener:
    rig = shelf.rig
    siblings = Siblings(
        shelf, rig.reader, rig.store, BUILT_IN, budget=budget, connections=connections, nursery=rig.nursery
    )
    return Opener(shelf, siblings)


SIZES = {"x.amb": 20, "x.ann": 90_000, "x.bwt": 3 * MIB, "x.pac": MIB + 7, "x.sa": 2 * MIB + 1, "y.sa": MIB}


@asynccontextmanager
async def shelved(
    folder: Path,
    sizes: Mapping[str, int] = SIZES,
    *,
    budget: int = 16 * MIB,
    connections: int = 8,
    size: int = 64 * MIB,
    memory: int = 64 * MIB,
) -> AsyncIterator[tuple[Shelf, Opener]]:
    async with open_rig(folder, size=size, memory=memory) as rig:
        shelf = Shelf(rig, sizes)
        yield shelf, opener_of(shelf, budget, connections)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are short here."""
    monkeypatch.setattr(module, "DWELL", 0.05)
    monkeypatch.setattr(module, "GRACE", 0.15)


def blocks(size: int) -> int:
    return -(-size // BLOCK)


# ---- what comes


async def test_the_siblings_come_and_nothing_else(tmp_path: Path) -> None:
    async with shelved(tmp_path) as (shelf, tool):
        file = await tool.open("x.bwt")
        await eventually(lambda: not tool.busy)
        for name in ("x.sa", "x.ann", "x.amb", "x.pac"):
            assert shelf.held(name) == SIZES[name]
        assert shelf.held("x.bwt") == shelf.held("y.sa") == 0
        assert shelf.fetched() == sum(SIZES[f"x.{ending}"] for ending in ("sa", "ann", "amb", "pac"))
        for name in ("x.sa", "x.ann", "x.amb", "x.pac"):
            other = await tool.open(name)
            assert await shelf.rig.read(other, 0, SIZES[name]) == shelf.files[name][0].body
            tool.close(other)
        tool.close(file)
        await eventually(lambda: not tool.busy)
        assert shelf.held("x.bwt") == SIZES["x.bwt"]  # brought by x.sa
        assert shelf.fetched() == sum(SIZES.values()) - SIZES["y.sa"]
        await shelf.rig.settled()


async def test_they_come_in_the_order_of_the_rule(tmp_path: Path) -> None:
    async with shelved(tmp_path, budget=4 * MIB, connections=2) as (shelf, tool):
        await tool.open("x.bwt")
        await eventually(lambda: not tool.busy)
        assert [len(run) for run in shelf.rig.http.ranges] == [
            blocks(SIZES[f"x.{ending}"]) for ending in ("sa", "ann", "amb", "pac")
        ]


async def test_what_is_read_meanwhile_is_fetched_once(tmp_path: Path) -> None:
    async with shelved(tmp_path) as (shelf, tool):
        shelf.shut()
        file = await tool.open("x.bwt")
        await eventually(lambda: shelf.rig.http.under_way == 4)
        sa = await tool.open("x.sa")
        results: list[bytes] = []

        async def read() -> None:
            results.append(await shelf.rig.read(sa, 0, SIZES["x.sa"]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.sleep(0.02)
            for served, _ in shelf.files.values():
                served.tap.open()
        assert results == [shelf.files["x.sa"][0].body]
        await eventually(lambda: not tool.busy)
        assert shelf.fetched() == sum(SIZES[f"x.{ending}"] for ending in ("sa", "ann", "amb", "pac"))
        tool.close(file)
        tool.close(sa)


async def test_what_is_there_costs_no_request_and_no_map(tmp_path: Path) -> None:
    async with shelved(tmp_path) as (shelf, tool):
        await tool.open("x.bwt")
        await eventually(lambda: not tool.busy)
        asked = len(shelf.rig.http.ranges)
        await tool.open("x.bwt")
        await eventually(lambda: not tool.busy)
        assert len(shelf.rig.http.ranges) == asked


# ---- how much


async def test_no_budget_no_prefetch(tmp_path: Path) -> None:
    async with shelved(tmp_path, budget=0) as (shelf, tool):
        file = await tool.open("x.bwt")
        await trio.sleep(0.1)
        assert not tool.busy
        assert shelf.rig.http.ranges == []
        assert shelf.asked == []
        tool.close(file)


@pytest.mark.parametrize("budget", [BLOCK, MIB, 4 * MIB, 8 * MIB, 16 * MIB])
async def test_never_more_than_the_budget_is_on_its_way(tmp_path: Path, budget: int) -> None:
    most = budget // BLOCK
    sizes = dict.fromkeys(("x.bwt", "x.sa", "x.pac", "x.ann", "x.amb"), 6 * MIB)
    async with shelved(tmp_path, sizes, budget=budget) as (shelf, tool):
        shelf.shut()
        await tool.open("x.bwt")
        await trio.sleep(0.1)
        assert 0 < len(shelf.rig.board) <= most
        seen = []
        for served, _ in shelf.files.values():
            served.tap.open()
        while tool.busy:
            seen.append(len(shelf.rig.board))
            await trio.sleep(0.0005)
        assert max(seen) <= most
        assert shelf.fetched() == 24 * MIB


async def test_two_sets_share_the_budget(tmp_path: Path) -> None:
    sizes = {f"{stem}.{ending}": 3 * MIB for stem in "xy" for ending in ("bwt", "sa", "pac")}
    async with shelved(tmp_path, sizes, budget=4 * MIB) as (shelf, tool):
        shelf.shut()
        await tool.open("x.bwt")
        await tool.open("y.bwt")
        await trio.sleep(0.1)
        assert 0 < len(shelf.rig.board) <= 4 * MIB // BLOCK


# ---- readers first


async def test_requests_are_left_to_readers(tmp_path: Path) -> None:
    sizes = {"x.bwt": 40 * MIB, "x.sa": 4 * MIB, "x.pac": 4 * MIB, "x.ann": 4 * MIB}
    async with shelved(tmp_path, sizes, connections=4) as (shelf, tool):
        shelf.shut()
        file = await tool.open("x.bwt")
        await eventually(lambda: shelf.rig.http.under_way == 2)
        await trio.sleep(0.05)
        assert shelf.rig.http.under_way == 2  # two of four

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(shelf.rig.read, file, number * 8 * MIB, 100)
            await eventually(lambda: shelf.rig.http.under_way >= 5)  # not kept waiting
            for name in ("x.sa", "x.pac", "x.ann"):
                shelf.files[name][0].tap.open()
            # what flew lands; nothing more of the siblings flies while readers' requests are out
            await eventually(lambda: shelf.rig.http.under_way == len(shelf.rig.http.ranges) - 2)
            await trio.sleep(0.05)
            assert shelf.held("x.pac") == 0
            assert tool.busy
            shelf.files["x.bwt"][0].tap.open()
        await eventually(lambda: shelf.held("x.pac") == 4 * MIB)


# ---- how long


async def test_it_ends_when_nobody_has_a_file_of_it_open(tmp_path: Path) -> None:
    sizes = {"x.bwt": MIB, "x.sa": 30 * MIB}
    async with shelved(tmp_path, sizes, budget=4 * MIB) as (shelf, tool):
        shelf.files["x.sa"][0].tap.flow_to(12 * MIB)
        file = await tool.open("x.bwt")
        await eventually(lambda: shelf.held("x.sa") == 12 * MIB)
        tool.close(file)
        await eventually(lambda: not tool.busy)
        shelf.files["x.sa"][0].tap.open()
        await shelf.rig.settled()
        assert shelf.held("x.sa") <= 16 * MIB  # what flew came down


async def test_it_goes_on_while_any_file_of_it_is_open(tmp_path: Path) -> None:
    sizes = {"x.bwt": MIB, "x.sa": 29 * MIB, "x.pac": MIB}
    async with shelved(tmp_path, sizes, budget=4 * MIB) as (shelf, tool):
        shelf.files["x.sa"][0].tap.flow_to(12 * MIB)
        file = await tool.open("x.bwt")
        await eventually(lambda: shelf.held("x.sa") == 12 * MIB)
        tool.close(file)
        pac = await tool.open("x.pac")  # which would bring nothing by itself
        await trio.sleep(0.3)
        assert tool.busy
        shelf.files["x.sa"][0].tap.open()
        await eventually(lambda: shelf.held("x.sa") == 29 * MIB)
        tool.close(pac)


async def test_a_glance_brings_the_beginnings_at_most(tmp_path: Path) -> None:
    sizes = {"x.bwt": 30 * MIB, "x.sa": 17 * MIB, "x.pac": 12 * MIB, "x.ann": 1000}
    async with shelved(tmp_path, sizes) as (shelf, tool):
        tool.close(await tool.open("x.bwt"))
        await eventually(lambda: not tool.busy)
        await shelf.rig.settled()
        assert shelf.fetched() <= 2 * HEAD * BLOCK + 1000
        assert shelf.held("x.ann") == 1000


# ---- room


async def test_it_makes_room_only_of_what_nobody_uses(tmp_path: Path) -> None:
    """A cache that is full: what was read before anything was open goes, what was read since stays."""
    sizes = {"old": 4 * MIB, "used": 4 * MIB, "x.bwt": MIB, "x.sa": 4 * MIB}
    async with shelved(tmp_path, sizes, size=room_for(8 * MIB // BLOCK + 3)) as (shelf, tool):
        for name in ("old", "used"):
            await shelf.rig.read_once(shelf.facts(name), 0, sizes[name])
        reader = await tool.open("used")
        await shelf.rig.read(reader, 0, 4 * MIB)
        await shelf.rig.settled()
        assert shelf.held("old") == shelf.held("used") == 4 * MIB
        await tool.open("x.bwt")
        await eventually(lambda: not tool.busy)
        await shelf.rig.settled()
        assert shelf.held("used") == 4 * MIB
        assert shelf.held("x.sa") == 4 * MIB
        assert shelf.held("old") < sizes["old"] // 2


async def test_it_does_without_where_all_is_in_use(tmp_path: Path) -> None:
    sizes = {"used": 8 * MIB, "x.bwt": MIB, "x.sa": 3 * MIB, "x.ann": 100_000}
    async with shelved(tmp_path, sizes, size=room_for(8 * MIB // BLOCK + 3)) as (shelf, tool):
        reader = await tool.open("used")
        await shelf.rig.read(reader, 0, 8 * MIB)
        await tool.open("x.bwt")
        await eventually(lambda: not tool.busy)
        await shelf.rig.settled()
        assert shelf.held("used") == 8 * MIB
        assert shelf.rig.reader.counts.uncached == 0
        assert shelf.held("x.sa") == 0


async def test_it_never_evicts_what_is_pinned_nor_a_sibling(tmp_path: Path) -> None:
    sizes = {"pinned": 3 * MIB, "x.bwt": MIB, "x.sa": 2 * MIB, "x.pac": 2 * MIB, "old": 2 * MIB}
    async with shelved(tmp_path, sizes, size=room_for(8 * MIB // BLOCK + 3)) as (shelf, tool):
        for name in ("pinned", "x.sa", "x.bwt", "old"):  # the siblings are the oldest
            await shelf.rig.read_once(shelf.facts(name), 0, sizes[name])
        shelf.rig.store.pin(shelf.facts("pinned").content)
        await tool.open("x.bwt")
        await eventually(lambda: not tool.busy)
        assert shelf.held("x.pac") == 2 * MIB
        assert shelf.held("x.sa") == 2 * MIB
        assert shelf.held("x.bwt") == MIB
        assert shelf.held("pinned") == 3 * MIB
        assert shelf.held("old") < sizes["old"] // 2


async def test_siblings_too_large_for_the_cache_are_left_alone(tmp_path: Path) -> None:
    sizes = {"x.bwt": MIB, "x.sa": 5 * MIB, "x.ann": 100}
    async with shelved(tmp_path, sizes, size=room_for(8 * MIB // BLOCK)) as (shelf, tool):
        await tool.open("x.bwt")
        await eventually(lambda: not tool.busy)
        assert shelf.rig.http.ranges == []


# ---- small indexes, archives, errors


async def test_only_small_indexes_come_with_a_large_file(tmp_path: Path) -> None:
    sizes = {"x.fa": 9 * MIB, "x.fa.fai": 20_000, "z.fa": MIB, "z.fa.fai": 65 * MIB}
    async with shelved(tmp_path, sizes, size=200 * MIB) as (shelf, tool):
        await tool.open("x.fa.fai")
        await tool.open("z.fa")
        await eventually(lambda: not tool.busy)
        assert shelf.rig.http.ranges == []
        await tool.open("x.fa")
        await eventually(lambda: not tool.busy)
        assert shelf.rig.http.ranges == [Run(0, 1)]
        assert shelf.held("x.fa.fai") == 20_000


async def test_the_stream_of_an_archive_brings_its_files_itself(tmp_path: Path) -> None:
    async with shelved(tmp_path) as (shelf, tool):
        _, ref = shelf.rig.serve_archive(pack([entry("x.bwt", MIB), entry("x.sa", MIB)]))
        archive = await shelf.rig.open_archive(ref)
        member = await shelf.rig.open_member(archive, "x.bwt")
        tool.siblings.opened(member, VERSION, "x.bwt")
        assert not tool.busy
        tool.siblings.closed(member)


class Packet(Shelf):
    """The members of an archive that has a seek index, and none of whose bytes are there."""

    archive: Archive

    @classmethod
    async def of(cls, rig: Rig, packed: Packed) -> Packet:
        packet = cls(rig, {})
        served, ref = rig.serve_archive(packed)
        packet.archive = await rig.open_archive(ref)
        await rig.archives.pull(packet.archive, list(packed.data))
        await rig.settled(packet.archive)
        packet.files = {
            name: (served, facts_of(packet.archive, packet.archive.table.members[name])) for name in packed.data
        }
        packet.evict()
        rig.http.streams = 0
        return packet

    def evict(self) -> None:
        for _, facts in self.files.values():
            self.rig.store.evict(facts.content)

    async def open(self, facts: FileFacts, version: AssetVersion, name: str) -> OpenFile:
        return await self.rig.reader.open(facts, self.archive)


PACKED = pack([entry("x.bwt", 3 * MIB), entry("other", 2 * MIB), entry("x.sa", 6 * MIB + 5), entry("x.ann", 90)])

ALONE = pack([entry("x.bwt", MIB), entry("x.sa", 4 * MIB)])  # one run, which with little memory comes bit by bit


@pytest.mark.parametrize("memory", [64 * MIB, 4 * MIB])
async def test_members_of_an_archive_with_an_index_come_by_its_spans(tmp_path: Path, memory: int) -> None:
    async with open_rig(tmp_path, spacing=MIB, memory=memory) as rig:
        shelf = await Packet.of(rig, PACKED)
        before = shelf.fetched()
        siblings = Siblings(
            shelf, rig.reader, rig.store, BUILT_IN, budget=16 * MIB, connections=8, nursery=rig.nursery
        )
        tool = Opener(shelf, siblings)
        opened = await tool.open("x.bwt")
        await eventually(lambda: not tool.busy or shelf.held("x.sa") == 6 * MIB + 5)
        await rig.settled(shelf.archive)
        assert shelf.held("x.sa") == 6 * MIB + 5
        assert shelf.held("x.ann") == 90
        assert shelf.fetched() - before < 10 * MIB, "each span once; and hardly any of what else there is"
        file = await rig.reader.open(shelf.facts("x.sa"), shelf.archive)
        assert await rig.read(file, MIB, 100_000) == PACKED.data["x.sa"][MIB : MIB + 100_000]
        assert rig.http.streams == 0
        tool.close(opened)


async def test_members_of_an_archive_make_no_room_of_what_is_used(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=MIB, size=room_for(14 * MIB // BLOCK)) as rig:
        shelf = await Packet.of(rig, PACKED)
        siblings = Siblings(
            shelf, rig.reader, rig.store, BUILT_IN, budget=16 * MIB, connections=8, nursery=rig.nursery
        )
        tool = Opener(shelf, siblings)
        _, facts = rig.serve_file("plain", 10 * MIB)
        used = await rig.reader.open(facts)
        tool.siblings.opened(used, VERSION, "plain")
        for at in range(0, facts.size, MIB):
            await rig.read(used, at, MIB)
        await rig.settled()
        evictions = rig.store.evictions
        opened = await tool.open("x.bwt")
        await eventually(lambda: not tool.busy)
        await rig.settled(shelf.archive)
        assert rig.store.evictions == evictions
        assert rig.store.resident_bytes(facts.content) == facts.size
        tool.close(opened)
        tool.siblings.closed(used)


@pytest.mark.parametrize("memory", [64 * MIB, 4 * MIB])
async def test_an_archive_that_can_not_be_had_ends_it(tmp_path: Path, memory: int) -> None:
    async with open_rig(tmp_path, spacing=MIB, memory=memory) as rig:
        shelf = await Packet.of(rig, ALONE)
        tool = opener_of(shelf)
        shelf.files["x.sa"][0].fault = OriginUnavailable("away")
        opened = await tool.open("x.bwt")
        await eventually(lambda: not tool.busy)
        await rig.settled(shelf.archive)
        assert shelf.held("x.sa") == 0
        tool.close(opened)


@pytest.mark.parametrize("memory", [64 * MIB, 4 * MIB])
async def test_a_cache_with_no_room_for_members_of_an_archive_ends_it(tmp_path: Path, memory: int) -> None:
    async with open_rig(tmp_path, spacing=MIB, memory=memory) as rig:
        shelf = await Packet.of(rig, ALONE)
        tool = opener_of(shelf)
        rig.store._room.reserve = lambda *_: None  # type: ignore[method-assign]
        opened = await tool.open("x.bwt")
        await eventually(lambda: not tool.busy)
        await rig.settled(shelf.archive)
        assert rig.http.parts == []
        tool.close(opened)


async def test_who_joins_a_sibling_of_an_archive_gets_it_though_the_opener_leaves(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=MIB) as rig:
        shelf = await Packet.of(rig, PACKED)
        siblings = Siblings(
            shelf, rig.reader, rig.store, BUILT_IN, budget=16 * MIB, connections=8, nursery=rig.nursery
        )
        tool = Opener(shelf, siblings)
        shelf.shut()
        opened = await tool.open("x.bwt")
        await eventually(lambda: len(rig.board))
        file = await rig.reader.open(shelf.facts("x.sa"), shelf.archive)
        got: list[bytes] = []

        async def read() -> None:
            got.append(await rig.read(file, 0, BLOCK))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            tool.close(opened)
            await eventually(lambda: not tool.busy)
            shelf.files["x.sa"][0].tap.open()
        assert got == [PACKED.data["x.sa"][:BLOCK]]
        await rig.settled(shelf.archive)


async def test_an_error_ends_it_and_is_not_remembered(tmp_path: Path) -> None:
    async with shelved(tmp_path) as (shelf, tool):
        served, _ = shelf.files["x.sa"]
        served.fault = OriginUnavailable("away")
        file = await tool.open("x.bwt")
        await eventually(lambda: not tool.busy)
        await shelf.rig.settled()
        served.fault = None
        sa = await tool.open("x.sa")
        assert await shelf.rig.read(sa, 0, SIZES["x.sa"]) == served.body
        tool.close(file)
        tool.close(sa)


async def test_a_sibling_of_another_version_is_told(tmp_path: Path) -> None:
    async with shelved(tmp_path) as (shelf, tool):
        shelf.files["x.sa"][0].fault = StaleContent("another version")
        await tool.open("x.bwt")
        await eventually(lambda: not tool.busy)
        assert [facts.content for facts in shelf.rig.stale] == [shelf.facts("x.sa").content]
