"""The content store on real files: restarts, kills, full disks, damage and the quota."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from refgenfs.cache import disk, opened, startup
from refgenfs.cache.blockmap import BlockMap
from refgenfs.cache.content import Content, checksum
from refgenfs.cache.keeping import bound_of
from refgenfs.cache.ledger import Ledger
from refgenfs.cache.opening import open_store
from refgenfs.cache.shelf import BlockDamaged
from refgenfs.cache.store import CacheLimits
from refgenfs.core.content import BLOCK, Run, block_count, block_length, content_id
from refgenfs.core.errors import CacheBusy, CacheError

MIB = 1 << 20
LIMITS = CacheLimits(64 * MIB)


def name_of(number: int) -> str:
    return content_id("source", "digest", f"file-{number}")


def block_of(cid: str, index: int, length: int) -> bytes:
    """The bytes that block `index` of a content has, always the same."""
    return random.Random(f"{cid}/{index}").randbytes(length)


def fill(content: Content, indexes: Iterator[int] | range | list[int]) -> bool:
    """Write and commit blocks one by one; False when there was no room for one."""
    for index in indexes:
        reservation = content.reserve(Run(index, index + 1))
        if reservation is None:
            return False
        with reservation:
            data = block_of(content.id, index, block_length(content.size, index))
            content.write(index, data)
            assert content.commit(index, checksum(data), reservation)
    return True


def assert_reads_right(content: Content, index: int) -> None:
    length = block_length(content.size, index)
    assert content.read(index * BLOCK, length) == block_of(content.id, index, length)


def flip(directory: Path, cid: str, offset: int) -> None:
    with (directory / "contents" / cid).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def disk_use(directory: Path) -> int:
    """What `du` says; files that go away while it looks are none of its business."""
    done = subprocess.run(
        ["du", "-s", "--block-size=1", str(directory)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    return int(done.stdout.split()[0])


async def test_blocks_are_read_back_and_survive_a_restart(tmp_path: Path) -> None:
    size = 5 * BLOCK + 1000
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        content = await store.content(name_of(1), size)
        assert content.missing(Run(0, 6)) == 0
        assert fill(content, [0, 1, 5])
        assert content.missing(Run(0, 6)) == 2
        assert content.missing(Run(0, 2)) == -1
        assert (
            content.read(BLOCK - 10, 20)
            == (block_of(content.id, 0, BLOCK) + block_of(content.id, 1, BLOCK))[BLOCK - 10 : BLOCK + 10]
        )
        with pytest.raises(CacheError, match="not all resident"):
            content.read(0, 3 * BLOCK)
        store.set_note(content.id, {"key": "hg38/fasta", "name": "hg38.fa"})
        store.pin(content.id)
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert store.open_content(name_of(1)) is None
        assert store.resident_bytes(name_of(1)) == 2 * BLOCK + 1000
        content = await store.content(name_of(1), size)
        assert await store.content(name_of(1), size) is content
        assert bytes(content.map.flags) == b"\1\1\0\0\0\1"
        for index in (0, 1, 5):
            assert_reads_right(content, index)
        assert store.is_pinned(name_of(1))
        assert store.note(name_of(1)) == {"key": "hg38/fasta", "name": "hg38.fa"}
        assert store.evict(name_of(1)) == 0
        store.unpin(name_of(1))
        assert store.evict(name_of(1)) == 2 * BLOCK + 1000
        assert not (tmp_path / "contents" / name_of(1)).exists()
        assert fill(content, [2])
        assert_reads_right(content, 2)
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        content = await store.content(name_of(1), size)
        assert bytes(content.map.flags) == b"\0\0\1\0\0\0"
        assert store.clear() == BLOCK
        assert store.summary() == []
        await store.flush()
        assert list(store.ledger.keys()) == ["store/pins", "store/state"]


async def test_a_block_is_resident_only_when_it_was_written_whole(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        content = await store.content(name_of(1), 4 * BLOCK)
        assert not content.commit(0, 0)
        with pytest.raises(ValueError, match="no whole blocks"):
            content.write(0, bytes(BLOCK + 1))
        content.write(0, bytes(2 * BLOCK))
        content.drop(Run(0, 1))
        assert not content.commit(0, checksum(bytes(BLOCK)))
        assert content.commit(1, checksum(bytes(BLOCK)))
        assert bytes(content.map.flags) == b"\0\1\0\0"


async def test_what_was_written_and_never_committed_is_given_back(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        content = await store.content(name_of(1), 64 * BLOCK)
        used = store.used
        reservation = content.reserve(Run(0, 64))
        assert reservation is not None
        assert store.used >= used + 64 * BLOCK
        await trio.to_thread.run_sync(content.write, 0, bytes(64 * BLOCK))
        content.commit(3, checksum(bytes(BLOCK)), reservation)
        reservation.release()
        reservation.release()
        path = tmp_path / "contents" / content.id
        assert path.stat().st_blocks * 512 < 2 * BLOCK
        assert store.used < used + 2 * BLOCK
        assert content.read(3 * BLOCK, BLOCK) == bytes(BLOCK)


async def test_eviction_punches_the_oldest_and_shows_in_the_file(tmp_path: Path) -> None:
    async with open_store(tmp_path, CacheLimits(64 * BLOCK), owner="/genomes") as store:
        content = await store.content(name_of(1), 1000 * BLOCK)
        assert fill(content, range(40))
        content.read(0, 1)
        assert fill(content, range(40, 80))
        assert content.missing(Run(0, 1)) == -1
        assert content.missing(Run(1, 20)) == 1
        assert store.evictions > 20
        resident = content.resident()
        taken = (tmp_path / "contents" / content.id).stat().st_blocks * 512
        assert resident <= taken <= resident + 64 * 1024
        assert store.used <= store.quota
        for index in range(80):
            if content.map.flags[index]:
                assert_reads_right(content, index)


async def test_only_what_is_older_than_a_stamp_goes(tmp_path: Path) -> None:
    async with open_store(tmp_path, CacheLimits(64 * BLOCK), owner="/genomes") as store:
        old = await store.content(name_of(1), 10 * BLOCK)
        assert fill(old, range(10))
        mark = store.stamp
        content = await store.content(name_of(2), 1000 * BLOCK)
        stored = 0
        for index in range(1000):
            reservation = content.reserve(Run(index, index + 1), older_than=mark)
            if reservation is None:
                break
            with reservation:
                content.write(index, bytes(BLOCK))
                content.commit(index, checksum(bytes(BLOCK)), reservation)
            stored += 1
        assert old.resident() == 0
        assert 30 < stored < 64
        assert content.missing(Run(0, stored)) == -1
        assert store.reserve(BLOCK, older_than=mark) is None
        assert store.reserve(100 * MIB) is None
        assert content.missing(Run(0, stored)) == -1


async def test_pinned_contents_are_never_evicted(tmp_path: Path) -> None:
    async with open_store(tmp_path, CacheLimits(8 * MIB), owner="/genomes") as store:
        kept = await store.content(name_of(1), 10 * BLOCK)
        store.pin(kept.id)
        assert fill(kept, range(10))
        content = await store.content(name_of(2), 1000 * BLOCK)
        assert fill(content, range(200))
        assert kept.missing(Run(0, 10)) == -1
        store.pin(content.id)
        assert not fill(content, range(200, 300))


async def test_a_large_content_that_is_not_open_is_evicted_in_parts(tmp_path: Path) -> None:
    async with open_store(tmp_path, CacheLimits(128 * BLOCK), owner="/genomes") as store:
        assert fill(await store.content(name_of(1), 80 * BLOCK), range(80))
    async with open_store(tmp_path, CacheLimits(128 * BLOCK), owner="/genomes") as store:
        assert fill(await store.content(name_of(2), 60 * BLOCK), range(60))
        assert 10 * BLOCK < store.resident_bytes(name_of(1)) < 80 * BLOCK
        content = await store.content(name_of(1), 80 * BLOCK)
        for index in range(80):
            if content.map.flags[index]:
                assert_reads_right(content, index)


async def test_the_quota_is_hard_with_two_thousand_contents_open(tmp_path: Path) -> None:
    """Each is partly resident and held; what is pinned stays, all else gives way in parts."""
    quota, size = 20 * MIB, 3 * BLOCK - 900
    choose = random.Random(20)
    async with open_store(tmp_path, CacheLimits(quota), owner="/genomes") as store:
        sampler = Sampler(tmp_path)
        held = [await store.content(name_of(number), size) for number in range(2000)]
        pinned = held[:8]
        for content in pinned:
            assert fill(content, [1])
            store.pin(content.id)
        sampler.start()
        try:
            for turn in range(4000):
                content = held[choose.randrange(2000)]
                index = choose.randrange(3)
                if content.missing(Run(index, index + 1)) >= 0:
                    assert fill(content, [index])
                assert_reads_right(content, index)
                assert store.used <= quota
                if turn % 100 == 0:
                    await trio.sleep(0.005)
        finally:
            sampler.ending.set()
            sampler.join()
        assert store.evictions > 1000
        for content in pinned:
            assert content.missing(Run(1, 2)) == -1
            assert_reads_right(content, 1)
        assert sum(1 for content in held if 0 < content.resident() < size) > 20
        store._shelf.sound = False
    assert quota / 3 < sampler.most <= quota
    (tmp_path / "ledger" / "cache.db").unlink()  # pins hold across this, too
    async with open_store(tmp_path, CacheLimits(quota), owner="/genomes") as store:
        assert all(store.is_pinned(content.id) for content in pinned)
        others = [await store.content(name_of(number), size) for number in range(3000, 3200)]
        for content in others:
            assert fill(content, range(3))
        for content in pinned:
            assert store.resident_bytes(content.id) >= BLOCK
        assert disk_use(tmp_path) <= quota


async def test_a_smaller_quota_evicts_at_the_next_start(tmp_path: Path) -> None:
    ticks = itertools.count(1e9)
    async with open_store(tmp_path, CacheLimits(256 * BLOCK), owner="/genomes", now=lambda: next(ticks)) as store:
        for number in range(20):
            assert fill(await store.content(name_of(number), 10 * BLOCK), range(10))
    assert disk_use(tmp_path) > 192 * BLOCK
    async with open_store(tmp_path, CacheLimits(64 * BLOCK), owner="/genomes") as store:
        assert store.used <= 64 * BLOCK
        assert disk_use(tmp_path) <= 64 * BLOCK
        assert store.resident_bytes(name_of(19)) == 10 * BLOCK
        assert store.resident_bytes(name_of(0)) == 0


async def test_whole_contents_go_where_holes_cannot_be_punched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(disk, "punch_hole", refuse)
    async with open_store(tmp_path, CacheLimits(8 * MIB), owner="/genomes") as store:
        for number in range(8):
            assert fill(await store.content(name_of(number), 20 * BLOCK), range(20))
            assert disk_use(tmp_path) <= 8 * MIB
        assert store.resident_bytes(name_of(7)) == 20 * BLOCK
        assert store.resident_bytes(name_of(0)) == 0


async def test_contents_nobody_holds_are_forgotten_and_files_closed(tmp_path: Path) -> None:
    async with open_store(tmp_path, CacheLimits(64 * MIB), owner="/genomes") as store:
        store._shelf.handles.limit = 20
        held = await store.content(name_of(0), 100)
        assert fill(held, [0])
        for number in range(1, 600):
            assert fill(await store.content(name_of(number), 100), [0])
        await store.flush()
        store._shelf.unsettled.clear()
        await store.content(name_of(1), 100)
        await store.content(name_of(2), 100)
        assert len(store._shelf.handles) <= 21
        assert len(store._contents.all()) < 270
        assert store.open_content(name_of(0)) is held
        for number in range(600):
            assert_reads_right(await store.content(name_of(number), 100), 0)


async def test_a_flush_of_many_contents_needs_few_open_files(tmp_path: Path) -> None:
    """An archive of thousands of small files is written down in one go, under the usual limit of 1,024."""
    async with open_store(tmp_path, CacheLimits(64 * MIB), owner="/genomes") as store:
        store._shelf.handles.limit = 20
        for number in range(300):
            assert fill(await store.content(name_of(number), 100), [0])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        await store.content(name_of(0), 100)
        in_use = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 60, hard))
        try:
            assert await store.flush(), store.errors.last
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(os.listdir("/proc/self/fd")) < in_use + 60
    async with open_store(tmp_path, CacheLimits(64 * MIB), owner="/genomes") as store:
        for number in range(300):
            assert_reads_right(await store.content(name_of(number), 100), 0)


async def test_a_second_daemon_is_told_who_holds_the_cache(tmp_path: Path) -> None:
    script = (
        "import sys, trio\nfrom pathlib import Path\nfrom refgenfs.cache.opening import *\n"
        "async def main():\n"
        "    async with open_store(Path(sys.argv[1]), CacheLimits(4 << 20), owner='/mnt/g'):\n"
        "        print('open', flush=True)\n        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as other:  # noqa: ASYNC220
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(CacheBusy, match=rf"process {other.pid} \(/mnt/g\).*umount /mnt/g"):
            async with open_store(tmp_path, LIMITS, owner="/genomes"):
                pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    async with open_store(tmp_path, LIMITS, owner="/genomes"):
        assert json.loads((tmp_path / "lock").read_text())["owner"] == "/genomes"


async def test_a_directory_that_cannot_be_made_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"set cache\.dir"):
        async with open_store(tmp_path / "file" / "cache", LIMITS, owner="/genomes"):
            pass


async def test_an_error_in_the_body_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        async with open_store(tmp_path, LIMITS, owner="/genomes"):
            raise KeyError("x")
    assert (tmp_path / "clean").exists()


async def test_a_cancel_still_closes_the_cache_cleanly(tmp_path: Path) -> None:
    with trio.move_on_after(0.2) as scope:
        async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
            assert fill(await store.content(name_of(1), 10 * BLOCK), range(10))
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert (tmp_path / "clean").exists()
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert (await store.content(name_of(1), 10 * BLOCK)).missing(Run(0, 10)) == -1


async def test_what_was_gathered_is_written_though_the_flush_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert fill(await store.content(name_of(1), 10 * BLOCK), range(10))
        with trio.CancelScope() as scope:
            real = store._writeback._gather

            def gather() -> object:
                scope.cancel()
                return real()

            monkeypatch.setattr(store._writeback, "_gather", gather)
            await store.flush()
        monkeypatch.undo()
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert store.resident_bytes(name_of(1)) == 10 * BLOCK


async def test_a_map_of_blocks_of_another_size_says_nothing(tmp_path: Path) -> None:
    """A cache that a version with other blocks left: read as it stands, holes would be taken for bytes."""
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        content = await store.content(name_of(1), 10 * BLOCK)
        assert fill(content, range(3))
        await store.flush()
        row = content.map.encode(0, 1)
        assert isinstance(row, dict)
        for other in ({**row, "block": 2 * BLOCK}, {key: row[key] for key in row if key != "block"}):
            blocks = BlockMap(10 * BLOCK)
            assert not blocks.load(0, other, 1)
            assert not any(blocks.flags)
        assert BlockMap(10 * BLOCK).load(0, row, 1)


async def test_a_flipped_bit_is_found_after_an_unclean_stop(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert fill(await store.content(name_of(1), 10 * BLOCK), range(10))
    (tmp_path / "clean").unlink()
    flip(tmp_path, name_of(1), 3 * BLOCK + 77)
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        content = await store.content(name_of(1), 10 * BLOCK)
        assert_reads_right(content, 2)
        with pytest.raises(BlockDamaged) as caught:
            content.read(3 * BLOCK, 1)
        assert caught.value.index == 3
        assert content.missing(Run(0, 10)) == 3
        assert bytes(content.map.flags) == b"\2\2\1\0" + b"\2" * 6
        assert fill(content, [3])
        assert_reads_right(content, 3)
    flip(tmp_path, name_of(1), 5 * BLOCK)
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        content = await store.content(name_of(1), 10 * BLOCK)
        assert bytes(content.map.flags) == b"\2\2\1\1" + b"\2" * 6, "doubt outlives a clean stop"
        with pytest.raises(BlockDamaged):
            content.read(5 * BLOCK, 1)


@pytest.mark.parametrize(("size", "place"), [(3 * BLOCK - 5, 3 * BLOCK - 6), (3 * BLOCK - 5, BLOCK), (100, 50)])
async def test_a_flipped_bit_under_a_running_daemon_is_found_by_who_reads_the_whole_block(
    tmp_path: Path, size: int, place: int
) -> None:
    """The last block too, which is shorter, and is all of a small file."""
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        content = await store.content(name_of(1), size)
        assert fill(content, range(block_count(size)))
        flip(tmp_path, name_of(1), place)
        with pytest.raises(BlockDamaged) as caught:
            content.read(0, size)
        assert caught.value.index == place // BLOCK == content.missing(Run(0, block_count(size)))
        assert fill(content, [place // BLOCK])
        content.read(0, size)


async def test_verify_finds_and_drops_a_flipped_bit(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        for number in range(3):
            assert fill(await store.content(name_of(number), 50 * BLOCK - 5), range(50))
        flip(tmp_path, name_of(1), 20 * BLOCK + 9)
        flip(tmp_path, name_of(2), 50 * BLOCK - 6)
        report = await store.verify(lambda done, total: progress.append((done, total)))
        found = [(damage.content, damage.index, damage.offset) for damage in report.damaged]
        assert found == [(name_of(1), 20, 20 * BLOCK), (name_of(2), 49, 49 * BLOCK)]
        assert report.blocks == 150
        assert progress[-1] == (3 * (50 * BLOCK - 5), 3 * (50 * BLOCK - 5))
        content = await store.content(name_of(1), 50 * BLOCK - 5)
        assert content.missing(Run(0, 50)) == 20
        assert (await store.verify()).damaged == ()


async def test_verify_is_right_while_blocks_come_and_go(tmp_path: Path) -> None:
    async with open_store(tmp_path, CacheLimits(128 * BLOCK), owner="/genomes") as store:
        contents = [await store.content(name_of(number), 60 * BLOCK) for number in range(4)]

        async def churn() -> None:
            choose = random.Random(1)
            while True:
                first = choose.randrange(52)
                fill(choose.choice(contents), range(first, first + 8))
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(churn)
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                report = await store.verify()
                assert report.damaged == ()
            nursery.cancel_scope.cancel()
        assert store.evictions > 100


KILLED = """
import random, sys, time, trio
from pathlib import Path
from refgenfs.cache import store as module
from refgenfs.cache.opening import open_store
from refgenfs.core.content import BLOCK, Run
from tests.integration.test_store import fill, name_of
module.FLUSH_EVERY = 0.05

async def main():
    choose = random.Random(sys.argv[2])
    async with open_store(Path(sys.argv[1]), module.CacheLimits(8 << 20), owner="/genomes") as store:
        print("open", flush=True)
        while True:
            content = await store.content(name_of(choose.randrange(6)), 40 * BLOCK - 100)
            first = choose.randrange(40)
            fill(content, range(first, min(40, first + 8)))
            await trio.sleep(0.002)

trio.run(main)
"""


@pytest.mark.slow
async def test_after_kill_nine_every_block_that_is_served_is_right(tmp_path: Path) -> None:
    served = 0
    for turn in range(12):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(turn)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as victim:  # noqa: ASYNC220
            assert victim.stdout is not None
            assert victim.stdout.readline() == b"open\n"
            await trio.sleep(random.Random(turn).uniform(0.05, 0.6))
            victim.kill()
        async with open_store(tmp_path, CacheLimits(8 * MIB), owner="/genomes") as store:
            assert disk_use(tmp_path) <= 8 * MIB
            for number in range(6):
                content = await store.content(name_of(number), 40 * BLOCK - 100)
                for index in range(40):
                    if content.map.flags[index]:
                        with contextlib.suppress(BlockDamaged):
                            assert_reads_right(content, index)
                            served += 1
            if turn % 3:
                store._shelf.sound = False  # leave no marker: unclean again
    assert served > 100


class Sampler(threading.Thread):
    """Runs du again and again."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.most = 0
        self.samples = 0
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.is_set():
            self.most = max(self.most, disk_use(self.directory))
            self.samples += 1


@pytest.mark.parametrize("quota", [4 * MIB, 16 * MIB])
async def test_the_quota_bounds_what_du_says(tmp_path: Path, quota: int) -> None:
    choose = random.Random(quota)
    async with open_store(tmp_path, CacheLimits(quota), owner="/genomes") as store:
        sampler = Sampler(tmp_path)
        sampler.start()
        try:
            deadline = time.monotonic() + 90
            data = bytes(range(256)) * (BLOCK // 256)
            written = 0
            while written <= 6 * quota or sampler.samples <= 60:
                assert time.monotonic() < deadline, f"{written} bytes written, du ran {sampler.samples} times"
                number = choose.randrange(1600)
                size = [100, 5000, 3 * BLOCK, 100 * BLOCK][number % 4]
                content = await store.content(name_of(number), size)
                for _ in range(min(8, block_count(size))):
                    index = choose.randrange(block_count(size))
                    with contextlib.ExitStack() as stack:
                        reservation = content.reserve(Run(index, index + 1))
                        if reservation is None:
                            continue
                        stack.enter_context(reservation)
                        piece = data[: block_length(size, index)]
                        await trio.to_thread.run_sync(content.write, index, piece)
                        if choose.random() < 0.95:
                            content.commit(index, checksum(piece), reservation)
                        written += len(piece)
                assert store.used <= quota
        finally:
            sampler.ending.set()
            sampler.join()
        assert store.errors.count == 0
    assert quota / 3 < sampler.most <= quota
    assert disk_use(tmp_path) <= quota


async def test_values_of_others_in_the_ledger_count_too(tmp_path: Path) -> None:
    async with open_store(tmp_path, CacheLimits(4 * MIB), owner="/genomes") as store:
        assert fill(await store.content(name_of(1), 100 * BLOCK), range(100))
        text = "".join(random.Random(1).choices("abcdefgh", k=500_000))
        await store.flush()
        growth = store._shelf.account.growth
        await trio.to_thread.run_sync(store.ledger.set, "catalog/one", text)
        assert store._shelf.account.growth >= growth + 2 * len(text)
        assert disk_use(tmp_path) <= 4 * MIB
        assert store.ledger.get("catalog/one") == text
        with pytest.raises(CacheError, match=r"raise cache\.size"):
            await trio.to_thread.run_sync(store.ledger.set, "catalog/two", text * 8)
        await store.flush()
        assert store.used <= 4 * MIB


def small_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have the disk tell of so many bytes free, but for what the contents take; return the number, to be changed."""
    real = os.statvfs(tmp_path)
    free = [10 * MIB]

    class Facts:
        f_frsize = real.f_frsize
        f_blocks = real.f_blocks

        @property
        def f_bavail(self) -> int:
            taken = sum(item.stat().st_blocks * 512 for item in (tmp_path / "contents").iterdir())
            return (free[0] - taken) // real.f_frsize

    monkeypatch.setattr(os, "statvfs", lambda path: Facts())
    return free


async def test_min_free_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = small_free_space(tmp_path, monkeypatch)
    async with open_store(tmp_path, CacheLimits(64 * MIB, lambda total: 2 * MIB), owner="/genomes") as store:
        content = await store.content(name_of(1), 100 * BLOCK)
        assert fill(content, range(100))
        assert 5 * MIB < content.resident() <= 8 * MIB
        assert content.missing(Run(99, 100)) == -1
        free[0] = 3 * MIB
        await store._room.keep_free()
        store._shelf.free.room(fresh=True)
        await store._room.keep_free()
        assert content.resident() <= 1 * MIB


async def test_a_disk_that_others_fill_is_given_room_little_by_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody who reads waits for all that has to go: meanwhile reads go on uncached."""
    free = small_free_space(tmp_path, monkeypatch)
    free[0] = 40 * MIB
    async with open_store(tmp_path, CacheLimits(64 * MIB, lambda total: 2 * MIB), owner="/genomes") as store:
        content = await store.content(name_of(1), 400 * BLOCK)
        assert fill(content, range(400))
        before = content.resident()
        free[0] = 4 * MIB
        store._shelf.free.room(fresh=True)
        assert store.reserve(BLOCK) is None
        assert content.resident() == before
        ticks = 0
        async with trio.open_nursery() as nursery:

            async def others() -> None:
                nonlocal ticks
                while True:
                    await trio.lowlevel.checkpoint()
                    ticks += 1

            nursery.start_soon(others)
            await store._room.keep_free()
            nursery.cancel_scope.cancel()
        assert ticks >= 10
        assert content.resident() <= 2 * MIB
        reserved = store.reserve(BLOCK)
        assert reserved is not None
        reserved.release()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    point = tmp_path / "disk"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)


@pytest.mark.needs_root
async def test_a_full_disk_stops_caching_and_nothing_else(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    async with open_store(
        small_disk / "cache", CacheLimits(6 * MIB), owner="/genomes", clock=lambda: now[0]
    ) as store:
        content = await store.content(name_of(1), 40 * BLOCK)
        assert fill(content, range(10))
        await store.flush()
        hog = small_disk / "hog"
        with hog.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        monkeypatch.setattr(store._shelf.free, "room", lambda **_: 1 << 40)  # as if it filled up just now
        reservation = content.reserve(Run(10, 11))
        assert reservation is not None
        with reservation, pytest.raises(CacheError, match="No space left"):
            content.write(10, bytes(BLOCK))
        assert not content.commit(10, checksum(bytes(BLOCK)), reservation)
        assert content.missing(Run(0, 11)) == 10
        assert store.uncached
        assert "No space left" in store.errors.last
        assert content.reserve(Run(11, 12)) is None
        for index in range(10):
            assert_reads_right(content, index)
        await store.flush()
        hog.unlink()
        now[0] += 11
        assert fill(content, range(10, 15))
        assert not store.errors.uncached
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    async with open_store(small_disk / "cache", CacheLimits(6 * MIB), owner="/genomes") as store:
        content = await store.content(name_of(1), 40 * BLOCK)
        assert content.missing(Run(0, 15)) == -1
        for index in range(15):
            assert_reads_right(content, index)


@pytest.mark.parametrize("damage", ["both copies of the ledger", "file gone", "file short", "page"])
async def test_what_others_broke_is_never_served(tmp_path: Path, damage: str) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert fill(await store.content(name_of(1), 10 * BLOCK), range(10))
    if damage == "both copies of the ledger":
        (tmp_path / "ledger" / "cache.db").write_bytes(os.urandom(50_000))
        (tmp_path / "contents" / "journal").write_bytes(os.urandom(50_000))
    elif damage == "page":
        ledger = Ledger(tmp_path / "ledger")
        ledger.set(f"blocks/{name_of(1)}/0", {"epoch": 1, "bits": "/////w==", "crc": ""})
        ledger.close()
    elif damage == "file gone":
        (tmp_path / "contents" / name_of(1)).unlink()
    else:
        os.truncate(tmp_path / "contents" / name_of(1), 5 * BLOCK)
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        content = await store.content(name_of(1), 10 * BLOCK)
        if damage == "file short":
            with pytest.raises(BlockDamaged):
                content.read(0, 100)
        assert content.missing(Run(0, 10)) == 0
        store.evict(content.id)
        assert fill(content, range(10))
        for index in range(10):
            assert_reads_right(content, index)


async def test_two_at_once_get_one_object(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert fill(await store.content(name_of(1), 10 * BLOCK), range(10))
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        found: list[Content] = []

        async def ask() -> None:
            found.append(await store.content(name_of(1), 10 * BLOCK))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert len({id(content) for content in found}) == 1


async def test_files_that_no_row_names_are_removed(tmp_path: Path) -> None:
    for marked in (True, False):
        async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
            assert fill(await store.content(name_of(1), 10 * BLOCK), range(10))
        (tmp_path / "contents" / name_of(2)).write_bytes(bytes(3 * MIB))
        if not marked:
            (tmp_path / "clean").unlink()
        async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
            assert sorted(os.listdir(tmp_path / "contents")) == [name_of(1), "journal"]
            assert store.resident_bytes(name_of(1)) == 10 * BLOCK


async def test_blocks_that_no_row_names_are_given_back_after_an_unclean_stop(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert fill(await store.content(name_of(1), 100 * BLOCK), range(10))
    path = tmp_path / "contents" / name_of(1)
    with path.open("r+b") as file:
        file.seek(20 * BLOCK)
        file.write(bytes(range(256)) * (30 * BLOCK // 256))
    assert path.stat().st_blocks * 512 >= 40 * BLOCK
    (tmp_path / "clean").unlink()
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert path.stat().st_blocks * 512 < 11 * BLOCK
        content = await store.content(name_of(1), 100 * BLOCK)
        assert content.missing(Run(0, 100)) == 10
        for index in range(10):
            assert_reads_right(content, index)


@pytest.mark.parametrize("whole", [True, False])
async def test_a_map_read_before_an_eviction_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        assert fill(await store.content(name_of(1), 10 * BLOCK), range(10))
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        real: Callable[..., object] = startup.read_map

        def evict() -> None:
            if whole:
                store.evict(name_of(1))
            else:  # opened, changed, written and closed again
                entry = store._shelf.entries.get(name_of(1))
                assert entry is not None
                content = store._contents.open_now(entry)
                assert content is not None
                content.drop(Run(0, 5))
                batch = store._writeback._gather()
                store._writeback._persist(batch)
                store._contents._recent.clear()

        def slow(*args: object) -> object:
            blocks = real(*args)
            monkeypatch.setattr(opened, "read_map", real)
            trio.from_thread.run_sync(evict)
            return blocks

        monkeypatch.setattr(opened, "read_map", slow)
        content = await store.content(name_of(1), 10 * BLOCK)
        assert content.missing(Run(0, 10)) == 0
        assert content.resident() == (0 if whole else 5 * BLOCK)


# --- kept by the daemon itself


async def test_what_is_kept_stays_while_it_is_little(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="test") as store:
        kept = await store.content(name_of(1), 8 * BLOCK)
        assert fill(kept, range(8))
        store.keep(kept)
        other = await store.content(name_of(2), 1000 * BLOCK)
        assert fill(other, range(1000))
        assert kept.resident() == kept.size
        assert not store.is_pinned(kept.id)
        assert not any(one.pinned for one in store.summary())
    async with open_store(tmp_path, LIMITS, owner="test") as store:  # and after a restart
        other = await store.content(name_of(3), 1000 * BLOCK)
        assert fill(other, range(1000))
        assert store.resident_bytes(name_of(1)) == 8 * BLOCK


async def test_beyond_the_bound_what_was_used_longest_ago_is_let_go(tmp_path: Path) -> None:
    now = itertools.count(1.0).__next__
    async with open_store(tmp_path, LIMITS, owner="test", now=now) as store:
        bound = bound_of(LIMITS.size) // BLOCK
        contents = [await store.content(name_of(number), bound // 2 * BLOCK) for number in range(4)]
        for content in contents:
            assert fill(content, range(bound // 2))
            store.keep(content)
        contents[0].read(0, 1)
        store.keep(contents[0])
        most = LIMITS.size // BLOCK
        fill(await store.content(name_of(9), most * BLOCK), range(most))
        held = [content.resident() > 0 for content in contents]
        assert held == [True, False, False, False], "the one that was read last; two are more than the bound"


async def test_what_is_kept_goes_when_the_cache_is_cleared(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="test") as store:
        kept = await store.content(name_of(1), 8 * BLOCK)
        assert fill(kept, range(8))
        store.keep(kept)
        assert store.clear() == 8 * BLOCK
        assert store.summary() == []
        other = await store.content(name_of(1), 8 * BLOCK)
        assert fill(other, range(8))
        most = LIMITS.size // BLOCK
        fill(await store.content(name_of(2), most * BLOCK), range(most))
        assert other.resident() == 0, "evicted as any other"


async def test_scratch_files_do_not_outlive_the_daemon(tmp_path: Path) -> None:
    async with open_store(tmp_path, LIMITS, owner="test") as store:
        (store.scratch / "left").write_bytes(bytes(1000))
    async with open_store(tmp_path, LIMITS, owner="test") as store:
        assert list(store.scratch.iterdir()) == []


async def test_a_scratch_folder_that_is_a_link_is_refused_and_nothing_behind_it_removed(tmp_path: Path) -> None:
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    cache.mkdir()
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    (cache / "scratch").symlink_to(elsewhere)
    with pytest.raises(CacheError, match="is a link"):
        async with open_store(cache, LIMITS, owner="test"):
            pass
    assert (elsewhere / "precious").exists()


async def test_a_note_outlives_an_eviction_just_before_it(tmp_path: Path) -> None:
    """What says which version the bytes are of must not go with the bytes that were there before."""
    size = 4 * BLOCK
    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        content = await store.content(name_of(0), size)
        await trio.to_thread.run_sync(store.set_note, content.id, "first")
        assert fill(content, range(4))
        await store.flush()
        store.evict(content.id)
        content = await store.content(name_of(0), size)
        await trio.to_thread.run_sync(store.set_note, content.id, "second")
        await store.flush()
        assert fill(content, range(4))
        await store.flush()
        assert store.note(content.id) == "second"
        store.evict(content.id)
        await store.flush()
        assert store.note(content.id) is None
