"""The reader and its byte ranges, over a real store and an origin that does as the test says.

Promises:
- a read returns exactly the bytes of the file, wherever its borders are, and fewer only at the end;
- a block that several want is fetched once; who gives up takes nothing from the others;
- blocks that go (evicted, damaged) while a read waits for others are fetched again, and the read is right;
- where the cache has no room or the disk refuses, reads are served all the same, and counted as uncached;
- an origin with another version: StaleContent, and whoever is to know is told;
- an error reaches everybody who waits for the blocks; it is not remembered: the next read asks again;
- who reads in order gets windows that grow; who does not, gets what was asked for; nothing is read ahead
  while the slots for requests are scarce, or for want of room in the cache;
- whatever happens, promised room is given back.
"""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from refgenfs.cache.content import Content
from refgenfs.cache.shelf import Reservation
from refgenfs.core.content import BLOCK, FileFacts, InlineData, Run, block_count
from refgenfs.core.errors import (
    CacheError,
    DeadlineExceeded,
    IntegrityError,
    OriginDenied,
    OriginUnavailable,
    RefgenfsError,
    StaleContent,
)
from refgenfs.core.readahead import FIRST_WINDOW, LARGEST_WINDOW, LONGEST_REQUEST, SHORTEST_REQUEST
from refgenfs.reader import disk
from refgenfs.reader.ranges import RUN_MEMORY, RangeRun
from refgenfs.reader.reader import OpenFile
from tests.support.scripted import MIB, SOURCE, Rig, eventually, gather, letters, open_rig, room_for


def blocks(runs: list[Run]) -> list[int]:
    """Every block that was asked for, each as often as it was."""
    return sorted(index for run in runs for index in range(run.first, run.stop))


def content_of(file: OpenFile) -> Content:
    assert isinstance(file.content, Content)
    return file.content


# ---- what a read returns


async def test_reads_are_slices_of_the_file_cold_and_warm(tmp_path: Path) -> None:
    size = 9 * BLOCK + 777
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", size)
        dice = random.Random(1)
        for _ in range(3):
            file = await rig.reader.open(facts)
            for _ in range(60):
                offset = dice.randrange(size + BLOCK)
                length = dice.choice([1, 4096, BLOCK, 3 * BLOCK, size])
                assert await rig.read(file, offset, length) == served.body[offset : offset + length]
            await rig.settled()
            rig.store.evict(facts.content)


async def test_reads_on_borders(tmp_path: Path) -> None:
    size = 3 * BLOCK
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", size)
        file = await rig.reader.open(facts)
        for offset, length in [
            (2 * BLOCK - 1, 2), (2 * BLOCK, BLOCK), (0, 1), (size - 1, 1), (size - 1, 99), (size, 1), (size + 5, 7),
            (0, 0), (BLOCK, 0), (0, size + 1),
        ]:  # fmt: skip
            assert await rig.read(file, offset, length) == served.body[offset : offset + length]


async def test_inline_bytes_need_no_origin(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        file = await rig.reader.open(FileFacts("c" * 40, 5, 0.0, InlineData(b"12345"), SOURCE, "inline"))
        assert await rig.read(file, 1, 3) == b"234"
        assert await rig.read(file, 4, 100) == b"5"
        assert await rig.read(file, 5, 1) == b""
        empty = await rig.reader.open(FileFacts("d" * 40, 0, 0.0, InlineData(b""), SOURCE, "inline"))
        assert await rig.read(empty, 0, 4096) == b""
        assert rig.http.ranges == []


async def test_warm_reads_ask_no_origin_also_after_a_restart(tmp_path: Path) -> None:
    size = 4 * BLOCK + 5
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", size)
        file = await rig.reader.open(facts)
        assert await rig.read(file, 0, size) == served.body
        asked = len(rig.http.ranges)
        assert await rig.read(file, 0, size) == served.body
        assert len(rig.http.ranges) == asked
        assert (rig.reader.counts.reads, rig.reader.counts.cold_reads) == (2, 1)
        assert rig.reader.counts.served == 2 * size
    async with open_rig(tmp_path) as rig:
        _, facts = rig.serve_file("hg38.fa", size)
        file = await rig.reader.open(facts)
        assert await rig.read(file, 0, size) == letters("hg38.fa", size)
        assert rig.http.ranges == []


# ---- one flight


async def test_many_readers_of_a_block_share_one_flight(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 20 * BLOCK)
        files = [await rig.reader.open(facts) for _ in range(8)]
        served.tap.shut()
        offset = 10 * BLOCK
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(eventually, lambda: rig.http.under_way == 1))
            results: list[list[object]] = []

            async def read_all() -> None:
                results.append(await gather(*(partial(rig.read, file, offset + 7, 99) for file in files)))

            nursery.start_soon(read_all)
            await eventually(lambda: rig.http.under_way)
            await trio.sleep(0.02)
            served.tap.open()
        assert results == [[served.body[offset + 7 : offset + 106]] * 8]
        assert blocks(rig.http.ranges) == [10]
        await rig.settled()


async def test_overlapping_reads_fetch_each_block_once(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 64 * BLOCK)
        spans = [(40 * BLOCK + 5, 3 * BLOCK), (42 * BLOCK, BLOCK), (41 * BLOCK, 5 * BLOCK), (30 * BLOCK, 12 * BLOCK)]
        files = [await rig.reader.open(facts) for _ in spans]
        results = await gather(
            *(partial(rig.read, file, offset, length) for file, (offset, length) in zip(files, spans, strict=True))
        )
        assert results == [served.body[offset : offset + length] for offset, length in spans]
        assert blocks(rig.http.ranges) == list(range(30, 46))


async def test_a_reader_that_gives_up_takes_nothing_from_another(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 20 * BLOCK)
        served.tap.shut()
        first, second = await rig.reader.open(facts), await rig.reader.open(facts)
        got: list[bytes] = []
        scope = trio.CancelScope()

        async def impatient() -> None:
            with scope:
                await rig.reader.read(first, 10 * BLOCK, BLOCK)

        async def patient() -> None:
            got.append(await rig.read(second, 10 * BLOCK, BLOCK))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(impatient)
            await eventually(lambda: rig.http.under_way)
            nursery.start_soon(patient)
            await trio.sleep(0.01)
            scope.cancel()
            await eventually(lambda: scope.cancelled_caught)
            served.tap.open()
        assert got == [served.body[10 * BLOCK : 11 * BLOCK]]
        assert blocks(rig.http.ranges) == [10]
        await rig.settled()


async def test_a_flight_goes_on_when_its_only_reader_gives_up(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 20 * BLOCK)
        served.tap.shut()
        file = await rig.reader.open(facts)
        with trio.move_on_after(0.02):
            await rig.reader.read(file, 10 * BLOCK, BLOCK)
        served.tap.open()
        await eventually(lambda: content_of(file).missing(Run(10, 11)) < 0)
        assert await rig.read(file, 10 * BLOCK, BLOCK) == served.body[10 * BLOCK : 11 * BLOCK]
        assert blocks(rig.http.ranges) == [10]


async def test_first_bytes_come_before_the_run_is_whole(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 64 * BLOCK)
        served.tap.flow_to(2 * BLOCK)
        file = await rig.reader.open(facts)
        assert await rig.read(file, 0, 4096) == served.body[:4096]
        served.tap.open()


# ---- blocks that go


async def test_blocks_evicted_while_others_are_awaited_are_fetched_again(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 20 * BLOCK)
        assert await rig.read_once(facts, 10 * BLOCK, BLOCK) == served.body[10 * BLOCK : 11 * BLOCK]
        served.tap.shut()
        file = await rig.reader.open(facts)
        got: list[bytes] = []

        async def read() -> None:
            got.append(await rig.read(file, 10 * BLOCK, 2 * BLOCK))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await eventually(lambda: rig.http.under_way)  # block 11; block 10 is resident
            content_of(file).evict(Run(10, 11))
            served.tap.open()
        assert got == [served.body[10 * BLOCK : 12 * BLOCK]]
        assert blocks(rig.http.ranges) == [10, 10, 11]


async def test_a_block_evicted_as_it_lands_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 20 * BLOCK)
        file = await rig.reader.open(facts)
        land = rig.board.land

        def land_and_evict(content: str, index: int, data: memoryview) -> None:
            land(content, index, data)
            content_of(file).evict(Run(0, 20))

        monkeypatch.setattr(rig.board, "land", land_and_evict)
        assert await rig.read(file, 10 * BLOCK + 3, 4 * BLOCK) == served.body[10 * BLOCK + 3 : 14 * BLOCK + 3]
        assert blocks(rig.http.ranges) == [10, 11, 12, 13, 14]


async def test_a_damaged_block_is_fetched_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 8 * BLOCK)
        file = await rig.reader.open(facts)
        assert await rig.read(file, 2 * BLOCK, BLOCK) == served.body[2 * BLOCK : 3 * BLOCK]
        (tmp_path / "contents" / facts.content).unlink()
        rig.store._shelf.handles.close()
        content_of(file)._handle = None
        assert await rig.read_once(facts, 2 * BLOCK, BLOCK) == served.body[2 * BLOCK : 3 * BLOCK]
        assert blocks(rig.http.ranges) == [2, 2]
    assert "fetching it again" in caplog.text


async def test_a_slow_disk_is_waited_for_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then only what memory has is read on the spot; and what goes while the thread waits is fetched again."""
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 8 * BLOCK)
        file = await rig.reader.open(facts)
        assert await rig.read(file, 0, 8 * BLOCK) == served.body
        threads: list[str] = []

        def bring(content: Content, offset: int, length: int) -> None:
            threads.append(threading.current_thread().name)
            if len(threads) == 2:
                trio.from_thread.run_sync(content.evict, Run(0, 8))

        monkeypatch.setattr(Content, "bring", bring)
        monkeypatch.setattr(Content, "read_at_once", lambda *_: None)
        assert await rig.read(file, 5, BLOCK) == served.body[5 : BLOCK + 5]
        assert threads == []
        monkeypatch.setattr(disk, "SLOW", -1.0)
        rig.reader._disk = disk.Disk()  # for which every answer is a slow one
        for _ in range(3):
            assert await rig.read(file, 5, BLOCK) == served.body[5 : BLOCK + 5]
    assert len(threads) >= 2
    assert threading.main_thread().name not in threads


async def test_what_is_in_memory_is_read_at_once_from_a_slow_disk(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 8 * BLOCK)
        file = await rig.reader.open(facts)
        content = content_of(file)
        assert await rig.read(file, 0, 8 * BLOCK) == served.body
        found = content.read_at_once(BLOCK - 3, 2 * BLOCK)
        assert found is not None
        assert bytes(found) == served.body[BLOCK - 3 : 3 * BLOCK - 3]
        content.pass_by(Run(0, 8))  # a hint: bytes stay right whatever the system does with it
        content.bring(0, 8 * BLOCK)
        assert content.read(0, 8 * BLOCK) == served.body
        content.evict(Run(2, 3))
        with pytest.raises(CacheError):
            content.read_at_once(BLOCK, 2 * BLOCK)


async def test_a_run_that_ends_takes_no_newer_flight_with_it(tmp_path: Path) -> None:
    """A block that landed uncached is fetched by a second run while the first still flies."""
    async with open_rig(tmp_path, size=room_for(0)) as rig:
        served, facts = rig.serve_file("hg38.fa", 40 * BLOCK)
        served.tap.flow_to(22 * BLOCK)
        async with trio.open_nursery() as nursery:
            # blocks 20 and 21 land, 22 and 23 hang; then they fail
            first = partial(rig.read_once, facts, 20 * BLOCK, 4 * BLOCK)
            nursery.start_soon(gather, first)
            await eventually(lambda: rig.http.ranges and not rig.board.find(facts.content, 20))
            second: list[list[object]] = []

            async def read_again() -> None:
                second.append(await gather(partial(rig.read_once, facts, 20 * BLOCK, BLOCK)))

            served.tap.flow_to(20 * BLOCK)
            nursery.start_soon(read_again)
            await eventually(lambda: rig.board.find(facts.content, 20))
            newer = rig.board.find(facts.content, 20)
            older = rig.board.find(facts.content, 23)
            assert newer is not None
            assert older is not None
            rig.board.fail(facts.content, range(20, 24), older.carrier, OriginUnavailable("away"))
            assert not newer.done.is_set()
            served.tap.open()
        assert second == [[served.body[20 * BLOCK : 21 * BLOCK]]]
        await rig.settled()


# ---- no room


async def test_without_room_reads_are_served_uncached(tmp_path: Path) -> None:
    async with open_rig(tmp_path, size=room_for(0)) as rig:
        served, facts = rig.serve_file("hg38.fa", 40 * BLOCK)
        file = await rig.reader.open(facts)
        for offset in (0, 7 * BLOCK + 1, 0):
            assert await rig.read(file, offset, 2 * BLOCK) == served.body[offset : offset + 2 * BLOCK]
        assert rig.store.resident_bytes(facts.content) == 0
        assert rig.reader.counts.uncached == (2 + 3 + 2) * BLOCK
        await rig.settled()
        assert rig.store.used <= rig.store.quota


async def test_what_is_asked_for_comes_before_what_is_read_ahead(tmp_path: Path) -> None:
    """A cache of a few blocks holds what was asked for; the window waits for better times."""
    async with open_rig(tmp_path, size=room_for(2)) as rig:
        served, facts = rig.serve_file("hg38.fa", 40 * BLOCK)
        file = await rig.reader.open(facts)
        assert await rig.read(file, 0, BLOCK) == served.body[:BLOCK]
        await rig.settled()
        assert blocks(rig.http.ranges) == [0]
        assert content_of(file).missing(Run(0, 1)) < 0
        assert rig.reader.counts.uncached == 0


async def test_a_file_larger_than_the_cache_reads_right_and_within_the_bound(tmp_path: Path) -> None:
    async with open_rig(tmp_path, size=room_for(8)) as rig:
        served, facts = rig.serve_file("hg38.fa", 60 * BLOCK + 9)
        file = await rig.reader.open(facts)
        for offset in [*range(0, facts.size, BLOCK), 30 * BLOCK, 0]:
            assert await rig.read(file, offset, BLOCK) == served.body[offset : offset + BLOCK]
            assert rig.store.used <= rig.store.quota
        assert rig.store.evictions
        await rig.settled()


async def test_a_disk_that_refuses_costs_the_cache_and_not_the_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 8 * BLOCK)
        file = await rig.reader.open(facts)

        def refuse(*_: object) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("refgenfs.cache.content.os.pwrite", refuse)
            assert await rig.read(file, 2 * BLOCK, BLOCK) == served.body[2 * BLOCK : 3 * BLOCK]
            await rig.settled()
            assert rig.store.uncached
            assert await rig.read(file, 4 * BLOCK, BLOCK) == served.body[4 * BLOCK : 5 * BLOCK]
        assert rig.store.resident_bytes(facts.content) == 0
        await rig.settled()
    assert "reads go on without the cache" in caplog.text


# ---- errors


async def test_another_version_is_stale_and_told(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 8 * BLOCK)
        file = await rig.reader.open(facts)
        assert await rig.read(file, 2 * BLOCK, 10) == served.body[2 * BLOCK : 2 * BLOCK + 10]
        served.fault = StaleContent("the origin has another version now")
        with pytest.raises(StaleContent):
            await rig.read(file, 5 * BLOCK, 10)
        assert rig.stale == [facts]
        # what is resident is of the version that was opened
        assert await rig.read(file, 2 * BLOCK, 10) == served.body[2 * BLOCK : 2 * BLOCK + 10]
        await rig.settled()


@pytest.mark.parametrize("error", [OriginUnavailable("away"), OriginDenied("403"), IntegrityError("too long")])
async def test_an_error_reaches_all_who_wait_and_the_next_read_asks_anew(
    tmp_path: Path, error: RefgenfsError
) -> None:
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 40 * BLOCK)
        served.fault, served.fault_at = error, 22 * BLOCK
        files = [await rig.reader.open(facts) for _ in range(3)]
        results = await gather(*(partial(rig.read, file, 20 * BLOCK, 4 * BLOCK) for file in files))
        assert results == [error] * 3
        assert blocks(rig.http.ranges) == [20, 21, 22, 23]
        await rig.settled()
        # what came before the error is kept
        assert content_of(files[0]).missing(Run(20, 22)) < 0
        served.fault = None
        assert await rig.read_once(facts, 20 * BLOCK, 4 * BLOCK) == served.body[20 * BLOCK : 24 * BLOCK]
        assert blocks(rig.http.ranges) == [20, 21, 22, 22, 23, 23]
        await rig.settled()


async def test_an_unexpected_failure_is_logged_and_reaches_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 8 * BLOCK)
        file = await rig.reader.open(facts)

        async def burst(*_: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(RangeRun, "write", burst)
            with pytest.raises(OriginUnavailable, match="unexpectedly: ZeroDivisionError"):
                await rig.read(file, 0, 10)
        await rig.settled()
        assert "failed unexpectedly" in caplog.text
        assert await rig.read(file, 0, 10) == served.body[:10]


async def test_an_origin_that_ends_early_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_rig(tmp_path) as rig:
        _, facts = rig.serve_file("hg38.fa", 8 * BLOCK)
        file = await rig.reader.open(facts)

        async def nothing(*_: object, **__: object) -> None:
            await trio.lowlevel.checkpoint()

        monkeypatch.setattr(rig.http, "fetch_range", nothing)
        with pytest.raises(OriginUnavailable, match="ended before byte"):
            await rig.read(file, 3 * BLOCK, 10)
        await rig.settled()


async def test_silence_ends_in_a_deadline(tmp_path: Path) -> None:
    async with open_rig(tmp_path, patience=0.05) as rig:
        served, facts = rig.serve_file("hg38.fa", 8 * BLOCK)
        served.tap.shut()
        file = await rig.reader.open(facts)
        with pytest.raises(DeadlineExceeded, match="nothing came in"):
            await rig.read(file, 3 * BLOCK, 10)
        # the flight goes on, and the next reader is lucky
        served.tap.open()
        assert await rig.read_once(facts, 3 * BLOCK, 10) == served.body[3 * BLOCK : 3 * BLOCK + 10]
        assert blocks(rig.http.ranges) == [3]
        await rig.settled()


async def test_a_wait_for_a_turn_is_no_silence_while_others_get_theirs(tmp_path: Path) -> None:
    """Two requests at a time, and a third: it waits for longer than a reader would for a silent origin."""
    patience = 0.2
    async with open_rig(tmp_path, patience=patience, memory=2 * RUN_MEMORY) as rig:
        served, facts = rig.serve_file("hg38.fa", 200 * BLOCK)
        served.tap.shut()
        async with trio.open_nursery() as nursery:
            for first in (20, 60):
                nursery.start_soon(rig.read_once, facts, first * BLOCK, 16 * BLOCK)
            await eventually(lambda: rig.http.under_way == 2)
            waited: list[bytes] = []

            async def wait() -> None:
                waited.append(await rig.read_once(facts, 10 * BLOCK, 10))

            nursery.start_soon(wait)
            for block in range(20, 76):
                if block in range(20, 36) or block >= 60:
                    served.tap.flow_to((block + 1) * BLOCK)
                    await trio.sleep(patience / 4)
        assert waited == [served.body[10 * BLOCK : 10 * BLOCK + 10]]
        assert rig.http.ranges[-1] == Run(10, 11)


async def test_a_cancelled_daemon_gives_all_room_back(tmp_path: Path) -> None:
    """`open_rig` cancels what flies, and looks at what is left."""
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 64 * BLOCK)
        served.tap.flow_to(BLOCK)
        file = await rig.reader.open(facts)
        with trio.move_on_after(0.05):
            await rig.read(file, 0, 32 * BLOCK)
        assert rig.reserved > 0
        assert rig.http.under_way


# ---- reading ahead


async def read_in_order(rig: Rig, facts: FileFacts, length: int, stop: int) -> None:
    file = await rig.reader.open(facts)
    body = letters("hg38.fa", facts.size)
    for offset in range(0, stop, length):
        assert await rig.read(file, offset, length) == body[offset : offset + length]


async def test_a_reader_in_order_gets_windows_that_grow(tmp_path: Path) -> None:
    async with open_rig(tmp_path, size=1024 * MIB) as rig:
        _, facts = rig.serve_file("hg38.fa", 400 * BLOCK)
        await read_in_order(rig, facts, BLOCK, 300 * BLOCK)
        await rig.settled()
        asked = blocks(rig.http.ranges)
        assert asked == sorted(set(asked)), "a block was fetched twice"
        assert len(min(rig.http.ranges[:-1], key=len)) >= SHORTEST_REQUEST // 2
        assert SHORTEST_REQUEST < max(map(len, rig.http.ranges)) <= LONGEST_REQUEST
        assert len(rig.http.ranges) < 36  # of 300 reads
        assert 300 <= len(asked) <= 400


async def test_who_reads_a_little_in_order_has_a_little_more_fetched(tmp_path: Path) -> None:
    async with open_rig(tmp_path, size=128 * MIB) as rig:
        _, facts = rig.serve_file("hg38.fa", 400 * BLOCK)
        await read_in_order(rig, facts, BLOCK, 6 * BLOCK)
        await rig.settled()
        assert len(blocks(rig.http.ranges)) <= 6 + 4 * 6


async def test_readers_in_order_leave_one_another_what_was_fetched_ahead(tmp_path: Path) -> None:
    """Many at a time, beside a cache smaller than their largest windows: each block comes about once."""
    readers, size = 12, 8 * MIB
    async with open_rig(tmp_path, size=32 * MIB) as rig:
        every = [rig.serve_file(f"{number}.fa", size) for number in range(readers)]
        files = [await rig.reader.open(facts) for _, facts in every]
        for offset in range(0, size, 2 * BLOCK):
            for (served, _), file in zip(every, files, strict=True):
                assert await rig.read(file, offset, 2 * BLOCK) == served.body[offset : offset + 2 * BLOCK]
        await rig.settled()
        assert len(blocks(rig.http.ranges)) < 1.1 * readers * block_count(size)


async def test_a_reader_out_of_order_gets_what_was_asked_for(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        _, facts = rig.serve_file("hg38.fa", 400 * BLOCK)
        file = await rig.reader.open(facts)
        for index in (300, 100, 200, 399, 50):
            await rig.read(file, index * BLOCK, 4096)
        await rig.settled()
        assert blocks(rig.http.ranges) == [50, 100, 200, 300, 399]


async def test_warm_reads_in_order_have_what_follows_fetched(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        _, facts = rig.serve_file("hg38.fa", 64 * BLOCK)
        other = await rig.reader.open(facts)
        await rig.reader.fill(facts, content_of(other))
        content_of(other).evict(Run(2, 64))
        rig.http.ranges.clear()
        await read_in_order(rig, facts, BLOCK, 2 * BLOCK)
        await rig.settled()
        assert blocks(rig.http.ranges)[:3] == [2, 3, 4]


async def test_nothing_is_read_ahead_while_memory_is_scarce(tmp_path: Path) -> None:
    slots, length = 4, RUN_MEMORY // 2
    async with open_rig(tmp_path, memory=slots * RUN_MEMORY) as rig:
        busy, facts_busy = rig.serve_file("busy", 400 * BLOCK)
        _, facts = rig.serve_file("hg38.fa", 64 * BLOCK)
        busy.tap.shut()
        async with trio.open_nursery() as nursery:
            for index in (380, 300, 200, 100):
                file = await rig.reader.open(facts_busy)
                nursery.start_soon(partial(rig.read, file, index * BLOCK, length))
            await eventually(lambda: rig.http.under_way == slots)
            reader = await rig.reader.open(facts)
            nursery.start_soon(partial(rig.read, reader, 0, 10))
            await trio.sleep(0.02)
            assert len(rig.board) == slots * length // BLOCK + 1
            busy.tap.open()
        await rig.settled()
        assert Run(0, 1) in rig.http.ranges


async def test_a_reader_does_not_wait_for_what_another_reads_ahead(tmp_path: Path) -> None:
    """A window takes slots only as long as some are left for those who wait."""
    async with open_rig(tmp_path, memory=4 * RUN_MEMORY, size=256 * MIB) as rig:
        busy, facts_busy = rig.serve_file("hg38.fa", 1600 * BLOCK)
        _, facts = rig.serve_file("other", 4 * BLOCK)
        ahead = await rig.reader.open(facts_busy)
        ahead.window._blocks, ahead.window._expected, ahead.window._horizon = LARGEST_WINDOW, 0, 0
        busy.tap.flow_to(BLOCK)
        await rig.reader.open(facts)
        with trio.move_on_after(0.05):
            await rig.read(ahead, 0, BLOCK)
        other = await rig.reader.open(facts)
        with trio.fail_after(20):
            assert await rig.read(other, 2 * BLOCK, 10) == letters("other", 4 * BLOCK)[2 * BLOCK : 2 * BLOCK + 10]


async def test_reading_ahead_takes_no_room_from_the_read_itself(tmp_path: Path) -> None:
    """In a full cache, room for the window is made of what was used least recently: of the very block asked for."""
    async with open_rig(tmp_path, size=room_for(FIRST_WINDOW + 2)) as rig:
        served, facts = rig.serve_file("hg38.fa", 40 * BLOCK)
        _, facts_other = rig.serve_file("other", 40 * BLOCK)
        oldest = await rig.reader.open(facts)
        oldest.window.limit = 0
        await rig.read(oldest, 0, 10)
        for index in range(FIRST_WINDOW + 2, 3 * FIRST_WINDOW + 2, 2):
            await rig.read_once(facts_other, index * BLOCK, 10)
        await rig.settled()
        assert content_of(oldest).missing(Run(0, 1)) < 0
        assert rig.store.evictions == 0
        file = await rig.reader.open(facts)
        assert await rig.read(file, 0, BLOCK) == served.body[:BLOCK]
        await rig.settled()
        assert blocks(rig.http.ranges)[: FIRST_WINDOW + 1] == list(range(FIRST_WINDOW + 1))
        assert rig.store.evictions > 0


# ---- whole files


async def test_fill_makes_all_resident_and_fetches_what_is_missing_only(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 100 * BLOCK + 1)
        file = await rig.reader.open(facts)
        await rig.read(file, 50 * BLOCK, 10)
        rig.http.ranges.clear()
        await rig.reader.fill(facts, content_of(file))
        assert content_of(file).missing(Run(0, block_count(facts.size))) < 0
        assert blocks(rig.http.ranges) == [index for index in range(101) if index != 50]
        await rig.settled()
        await rig.reader.fill(facts, content_of(file))
        assert len(blocks(rig.http.ranges)) == 100
        assert await rig.read(file, 0, facts.size) == served.body


async def test_fill_joins_flights(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 20 * BLOCK)
        file = await rig.reader.open(facts)
        served.tap.shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(rig.read, file, 10 * BLOCK, 10))
            await eventually(lambda: rig.http.under_way)
            nursery.start_soon(partial(rig.reader.fill, facts, content_of(file)))
            await trio.sleep(0.01)
            served.tap.open()
        assert blocks(rig.http.ranges) == list(range(20))


async def test_fill_says_the_origins_error_itself(tmp_path: Path) -> None:
    """Not wrapped in a group: the command line shows it to people."""
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 100 * BLOCK)
        file = await rig.reader.open(facts)
        served.fault, served.fault_at = OriginUnavailable("away"), 40 * BLOCK
        with pytest.raises(OriginUnavailable, match="away"):
            await rig.reader.fill(facts, content_of(file))
        await rig.settled()


async def test_fill_says_the_error_also_when_it_comes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block lands, and the rest fails before anybody who waited for it has run."""
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 8 * BLOCK)
        file = await rig.reader.open(facts)

        async def fly(run: RangeRun, *_: object) -> None:
            await trio.lowlevel.checkpoint()
            rig.board.land(facts.content, 0, memoryview(served.body)[:BLOCK])
            run._error = OriginUnavailable("away")

        monkeypatch.setattr(RangeRun, "fly", fly)
        with pytest.raises(OriginUnavailable, match="away"):
            await rig.reader.fill(facts, content_of(file))
        await rig.settled()


async def test_fill_makes_room_of_other_contents_not_of_what_is_there_of_its_own(tmp_path: Path) -> None:
    """What is there was used longest ago, so the rest of the very file would push it out."""
    async with open_rig(tmp_path, size=room_for(16)) as rig:
        _, facts = rig.serve_file("hg38.fa", 10 * BLOCK)
        _, other_facts = rig.serve_file("other.fa", 10 * BLOCK)
        file, other = await rig.reader.open(facts), await rig.reader.open(other_facts)
        await rig.read(file, 2 * BLOCK, 6 * BLOCK)
        await rig.reader.fill(other_facts, content_of(other))
        await rig.settled()
        assert content_of(file).missing(Run(2, 8)) < 0
        await rig.reader.fill(facts, content_of(file))
        assert content_of(file).missing(Run(0, 10)) < 0


async def test_fill_without_room_says_so_and_does_not_fetch_it_all(tmp_path: Path) -> None:
    async with open_rig(tmp_path, size=room_for(8)) as rig:
        _, facts = rig.serve_file("hg38.fa", 400 * BLOCK)
        file = await rig.reader.open(facts)
        with pytest.raises(CacheError, match="no room in the cache"):
            await rig.reader.fill(facts, content_of(file))
        await rig.settled()
        assert len(blocks(rig.http.ranges)) < 200


async def test_what_is_evicted_while_a_file_is_filled_is_fetched_again(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        served, facts = rig.serve_file("hg38.fa", 100 * BLOCK)
        file = await rig.reader.open(facts)
        content = content_of(file)
        served.tap.flow_to(90 * BLOCK)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(rig.reader.fill, facts, content))
            await eventually(lambda: content.missing(Run(0, 50)) < 0)
            assert rig.store.evict(facts.content)
            served.tap.open()
        assert content.missing(Run(0, 100)) < 0
        await rig.settled()


async def test_a_file_that_is_evicted_again_and_again_is_given_up_and_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_rig(tmp_path) as rig:
        _, facts = rig.serve_file("hg38.fa", 2 * BLOCK)
        file = await rig.reader.open(facts)
        content, commit = content_of(file), Content.commit

        def forget(self: Content, index: int, crc: int, reservation: Reservation | None = None) -> bool:
            kept = commit(self, index, crc, reservation)
            self.evict(Run(index, index + 1))
            return kept

        monkeypatch.setattr(Content, "commit", forget)
        with pytest.raises(CacheError, match="evicted again"):
            await rig.reader.fill(facts, content)
        assert len(rig.http.ranges) == 4
        await rig.settled()


async def test_pinned_contents_are_not_pushed_out(tmp_path: Path) -> None:
    async with open_rig(tmp_path, size=room_for(6)) as rig:
        _, pinned_facts = rig.serve_file("pinned", 4 * BLOCK)
        served, facts = rig.serve_file("hg38.fa", 40 * BLOCK)
        pinned = await rig.reader.open(pinned_facts)
        await rig.read(pinned, 0, 4 * BLOCK)
        rig.store.pin(pinned_facts.content)
        file = await rig.reader.open(facts)
        for index in range(0, 40, 3):
            assert await rig.read(file, index * BLOCK, BLOCK) == served.body[index * BLOCK : (index + 1) * BLOCK]
        assert content_of(pinned).missing(Run(0, 4)) < 0
        await rig.settled()


# ---- two versions


async def test_a_landed_block_of_another_length_is_never_a_short_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes in is as long as the file says, or it is an error."""
    async with open_rig(tmp_path) as rig:
        _, facts = rig.serve_file("hg38.fa", 8 * BLOCK)
        file = await rig.reader.open(facts)
        land = rig.board.land
        shorter: Callable[[str, int, memoryview], None] = lambda c, i, d: land(c, i, d[: BLOCK // 2])  # noqa: E731
        monkeypatch.setattr(rig.board, "land", shorter)
        with pytest.raises(RefgenfsError):
            await rig.read(file, 2 * BLOCK, 2 * BLOCK)


async def test_parts_of_contents_that_nobody_has_open_are_evicted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several segments of one closed content go in one eviction: its map is read, and they are counted anew, once."""
    monkeypatch.setattr("refgenfs.cache.opened.KEEP_OPEN", 2)
    async with open_rig(tmp_path, size=room_for(48)) as rig:
        for number in range(12):
            _, facts = rig.serve_file(f"small-{number}", 4 * BLOCK)
            await rig.read_once(facts, 0, 4 * BLOCK)
        await rig.settled()
        await rig.store.flush()
        gc.collect()
        for number in range(6):
            served, facts = rig.serve_file(f"large-{number}", 14 * BLOCK)
            assert await rig.read_once(facts, 0, 14 * BLOCK) == served.body
            await rig.settled()
            shelf = rig.store._shelf
            segments = [shelf.index.segments(entry.cid) for entry in shelf.entries.objects()]
            assert shelf.index.total == sum(sum(sizes.values()) for sizes in segments)
            assert len(shelf.index) == sum(map(len, segments))
