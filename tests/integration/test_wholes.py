"""Files of hosts that give no parts, over a real store and an origin that does as the test says.

Promises:
- the object goes by once, from its first byte, whoever reads and wherever; readers are served as it arrives;
- that its host gives no parts is found out once, and who waited meanwhile notices nothing;
- a block that has gone by and is not resident starts another pass; nothing else does;
- a file that is larger than the cache is read all the same, and a stream goes no further than it is wanted then;
- what is resident survives a restart, and is not fetched again;
- the same version of an object has the same bytes: what differs is dropped, and whoever reads it is told;
- memory and promised room are given back whatever happens.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from refgenfs.cache.content import Content
from refgenfs.core.content import BLOCK, ByteRange, FileFacts, Run, block_count
from refgenfs.core.errors import CacheError, OriginUnavailable, StaleContent
from refgenfs.reader.ranges import RUN_MEMORY
from refgenfs.reader.reader import OpenFile
from tests.support.scripted import MIB, Rig, Served, eventually, gather, open_rig, room_for


def serve(rig: Rig, name: str, size: int, *, told: bool = True) -> tuple[Served, FileFacts]:
    """Serve a file whole only; `told`: its facts say that the host did not offer parts."""
    served, facts = rig.serve_file(name, size)
    served.ranges = False
    assert isinstance(facts.extent, ByteRange)
    return served, replace(facts, extent=replace(facts.extent, whole=told))


def passes(rig: Rig, size: int) -> int:
    """How often the whole object was asked for; nothing else may have been."""
    assert set(rig.http.ranges) <= {Run(0, block_count(size))}
    return len(rig.http.ranges)


async def test_it_goes_by_once_whoever_reads(tmp_path: Path) -> None:
    size = 40 * BLOCK + 777
    async with open_rig(tmp_path) as rig:
        served, facts = serve(rig, "genome.fa.gz", size)
        files = [await rig.reader.open(facts) for _ in range(5)]
        dice = random.Random(3)

        async def read(file: OpenFile) -> None:
            for _ in range(12):
                offset, length = dice.randrange(size), dice.choice([1, 5000, 3 * BLOCK])
                assert await rig.read(file, offset, length) == served.body[offset : offset + length]

        await gather(*(partial(read, file) for file in files))
        await rig.settled()
        assert passes(rig, size) == 1
        assert rig.http.fetched["lab"] == size
        assert rig.store.resident_bytes(facts.content) == size


async def test_readers_are_served_as_it_arrives(tmp_path: Path) -> None:
    size = 30 * BLOCK
    async with open_rig(tmp_path) as rig:
        served, facts = serve(rig, "genome.fa.gz", size)
        served.tap.flow_to(4 * BLOCK)
        file = await rig.reader.open(facts)
        assert await rig.read(file, 2 * BLOCK + 5, 100) == served.body[2 * BLOCK + 5 :][:100]
        assert rig.http.under_way == 1
        served.tap.open()
        await rig.settled()


async def test_that_a_host_gives_no_parts_is_found_out_once(tmp_path: Path) -> None:
    size = 40 * BLOCK
    async with open_rig(tmp_path) as rig:
        served, facts = serve(rig, "a.fa.gz", size, told=False)
        other, more = serve(rig, "b.fa.gz", size, told=False)
        file = await rig.reader.open(facts)
        assert await rig.read(file, 7 * BLOCK, 2 * BLOCK) == served.body[7 * BLOCK : 9 * BLOCK]
        assert rig.http.refused == 1
        assert await rig.read_once(more, 9 * BLOCK, 10) == other.body[9 * BLOCK : 9 * BLOCK + 10]
        assert rig.http.refused == 1
        await rig.settled()
        assert len(rig.http.ranges) == 2


async def test_a_host_that_gives_parts_unsaid_is_asked_for_parts(tmp_path: Path) -> None:
    size = 300 * BLOCK
    async with open_rig(tmp_path) as rig:
        served, facts = serve(rig, "genome.fa.gz", size)
        served.ranges = True  # and its HEAD did not say so
        served.tap.flow_to(290 * BLOCK)
        at = 280 * BLOCK + 3
        assert await rig.read_once(facts, at, 10) == served.body[at : at + 10]
        await rig.settled()
        assert rig.http.ranges == [Run(0, 300), Run(280, 281)]
        assert rig.http.fetched["lab"] < 20 * BLOCK


async def test_what_has_gone_by_and_went_starts_another_pass(tmp_path: Path) -> None:
    size = 40 * BLOCK
    async with open_rig(tmp_path) as rig:
        served, facts = serve(rig, "genome.fa.gz", size)
        file = await rig.reader.open(facts)
        assert await rig.read(file, 0, size) == served.body
        await rig.settled()
        rig.store.evict(facts.content)
        assert await rig.read(file, 5 * BLOCK, 10) == served.body[5 * BLOCK : 5 * BLOCK + 10]
        await rig.settled()
        assert passes(rig, size) == 2


async def test_who_wants_what_has_gone_by_does_not_hold_up_the_others(tmp_path: Path) -> None:
    size = 40 * BLOCK
    async with open_rig(tmp_path) as rig:
        served, facts = serve(rig, "genome.fa.gz", size)
        served.tap.flow_to(20 * BLOCK)
        file = await rig.reader.open(facts)
        await rig.read(file, 18 * BLOCK, BLOCK)
        content = file.content
        assert isinstance(content, Content)
        content.drop(Run(3, 4))
        assert await rig.read(file, 3 * BLOCK, 10) == served.body[3 * BLOCK : 3 * BLOCK + 10]
        served.tap.open()
        assert await rig.read(file, 30 * BLOCK, 10) == served.body[30 * BLOCK : 30 * BLOCK + 10]
        await rig.settled()
        assert passes(rig, size) == 2


async def test_a_file_larger_than_the_cache_is_read_in_order_with_one_pass(tmp_path: Path) -> None:
    size = 200 * BLOCK + 9
    async with open_rig(tmp_path, size=room_for(48)) as rig:
        served, facts = serve(rig, "genome.fa.gz", size)
        file = await rig.reader.open(facts)
        for offset in range(0, size, 2 * BLOCK):
            assert await rig.read(file, offset, 2 * BLOCK) == served.body[offset : offset + 2 * BLOCK]
            assert rig.store.used <= rig.store.quota
        await rig.settled()
        assert passes(rig, size) == 1


async def test_it_waits_for_its_reader_where_there_is_no_room(tmp_path: Path) -> None:
    size = 200 * BLOCK
    async with open_rig(tmp_path, size=room_for(48), linger=0.3) as rig:
        served, facts = serve(rig, "genome.fa.gz", size)
        file = await rig.reader.open(facts)
        await rig.read(file, 0, BLOCK)
        await rig.settled()  # given up after a while
        assert rig.http.fetched["lab"] < 60 * BLOCK
        assert await rig.read(file, BLOCK, BLOCK) == served.body[BLOCK : 2 * BLOCK]
        assert passes(rig, size) == 1


async def test_without_any_room_it_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 60 * BLOCK
    async with open_rig(tmp_path) as rig:
        served, facts = serve(rig, "genome.fa.gz", size)
        monkeypatch.setattr(Content, "reserve", lambda *_, **__: None)
        file = await rig.reader.open(facts)
        for offset in range(0, size, BLOCK):
            assert await rig.read(file, offset, BLOCK) == served.body[offset : offset + BLOCK]
        await rig.settled()
        assert passes(rig, size) == 1


async def test_it_survives_a_restart(tmp_path: Path) -> None:
    size = 40 * BLOCK + 1
    async with open_rig(tmp_path) as rig:
        served, facts = serve(rig, "genome.fa.gz", size)
        await rig.read_once(facts, 0, size)
        await rig.settled()
    async with open_rig(tmp_path) as rig:
        served, facts = serve(rig, "genome.fa.gz", size)
        assert await rig.read_once(facts, 0, size) == served.body
        assert passes(rig, size) == 0


async def test_it_is_made_resident(tmp_path: Path) -> None:
    size = 60 * BLOCK + 1
    async with open_rig(tmp_path) as rig:
        _, facts = serve(rig, "genome.fa.gz", size, told=False)
        file = await rig.reader.open(facts)
        assert file.content is not None
        await rig.reader.fill(facts, file.content)
        assert rig.store.resident_bytes(facts.content) == size
        await rig.settled()
        _, large = serve(rig, "large.fa.gz", 65 * MIB)
        other = await rig.reader.open(large)
        assert other.content is not None
        with pytest.raises(CacheError, match="no room"):
            await rig.reader.fill(large, other.content)


async def test_other_bytes_under_the_same_version_are_never_mixed(tmp_path: Path) -> None:
    size = 40 * BLOCK
    async with open_rig(tmp_path) as rig:
        served, facts = serve(rig, "genome.fa.gz", size)
        file = await rig.reader.open(facts)
        await rig.read(file, 0, size)
        await rig.settled()
        content = file.content
        assert isinstance(content, Content)
        content.drop(Run(20, 30))
        served.body = bytes(byte ^ 1 for byte in served.body)
        with pytest.raises(StaleContent):
            await rig.read(file, 25 * BLOCK, 10)
        await rig.settled()
        assert rig.store.resident_bytes(facts.content) == 0
        assert rig.damaged == [facts.content]
        assert rig.stale


async def test_a_damaged_block_is_no_other_version(tmp_path: Path) -> None:
    size = 40 * BLOCK
    async with open_rig(tmp_path) as rig:
        served, facts = serve(rig, "genome.fa.gz", size)
        file = await rig.reader.open(facts)
        await rig.read(file, 0, size)
        await rig.settled()
        assert await rig.store.flush()
        with (tmp_path / "contents" / facts.content).open("r+b") as disk:
            disk.seek(3 * BLOCK + 5)
            disk.write(b"damage")
        assert await rig.read(file, 3 * BLOCK, BLOCK) == served.body[3 * BLOCK : 4 * BLOCK]
        content = file.content
        assert isinstance(content, Content)
        await rig.settled()
        assert rig.damaged == []
        assert rig.store.resident_bytes(facts.content) == size


async def test_an_error_reaches_all_who_wait_and_is_not_remembered(tmp_path: Path) -> None:
    size = 40 * BLOCK
    async with open_rig(tmp_path) as rig:
        served, facts = serve(rig, "genome.fa.gz", size)
        served.fault, served.fault_at = OriginUnavailable("it went away"), 20 * BLOCK
        files = [await rig.reader.open(facts) for _ in range(3)]
        failed = await gather(*(partial(rig.read, file, 30 * BLOCK + at, 9) for at, file in enumerate(files)))
        assert [type(one) for one in failed] == [OriginUnavailable] * 3
        await rig.settled()
        served.fault = None
        assert await rig.read(files[0], 30 * BLOCK, 9) == served.body[30 * BLOCK : 30 * BLOCK + 9]
        await rig.settled()


async def test_who_gives_up_takes_nothing_down(tmp_path: Path) -> None:
    size = 40 * BLOCK
    async with open_rig(tmp_path) as rig:
        served, facts = serve(rig, "genome.fa.gz", size)
        served.tap.shut()
        files = [await rig.reader.open(facts) for _ in range(2)]
        with trio.move_on_after(0.05):
            await rig.read(files[0], 10 * BLOCK, 5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(rig.read, files[1], 10 * BLOCK, 5))
            await eventually(lambda: len(rig.board) > 0)
            served.tap.open()
        await rig.settled()
        assert passes(rig, size) == 1


async def test_memory_is_claimed_while_it_streams(tmp_path: Path) -> None:
    size = 40 * BLOCK
    async with open_rig(tmp_path, memory=4 * MIB) as rig:
        opened = []
        for number in range(4):
            served, facts = serve(rig, f"{number}.fa.gz", size)
            served.tap.flow_to(BLOCK)
            opened.append((served, await rig.reader.open(facts)))
        async with trio.open_nursery() as nursery:
            for _, file in opened:
                nursery.start_soon(partial(rig.read, file, 10 * BLOCK, 5))
            await eventually(lambda: rig.http.under_way > 0)
            await trio.sleep(0.05)
            assert rig.budget.held <= rig.budget.size
            assert rig.http.under_way * RUN_MEMORY <= rig.budget.size
            for served, _ in opened:
                served.tap.open()
        await rig.settled()


async def test_what_nobody_waits_for_makes_way(tmp_path: Path) -> None:
    size = 400 * BLOCK
    async with open_rig(tmp_path, size=512 * MIB) as rig:
        first = []
        for number in range(rig.budget.streams):
            served, facts = serve(rig, f"{number}.fa.gz", size)
            served.tap.flow_to(20 * BLOCK)
            first.append(served)
            assert await rig.read_once(facts, 0, 10) == served.body[:10]
        assert rig.http.under_way == rig.budget.streams
        served, facts = serve(rig, "late.fa.gz", size)
        assert await rig.read_once(facts, 0, 10) == served.body[:10]  # somebody waits for that
        for one in first:
            one.tap.open()
        await rig.settled()
