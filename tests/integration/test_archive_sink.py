"""The archive's sink with a trio thread, an asyncio thread and its own worker: order, bytes, faults, cancels."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import tarfile
import threading
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from refgenfs.core.content import BLOCK
from refgenfs.core.errors import ArchiveError, CacheError
from refgenfs.core.tar import Member
from refgenfs.fetch.archive import BATCH, STEP, ArchiveSink, BlockArrival, BlockOffer, SinkClosed
from refgenfs.fetch.bridge import Bridge, open_bridge
from refgenfs.fetch.intake import AHEAD
from refgenfs.fetch.seekpoints import IndexBuilder
from tests.support.seekindexes import SPACING, build_index, inflate, parse_index, sample_tar
from tests.support.tars import END, entry, header, make_tar, pax

RANDOM = random.Random(1)


def noise(length: int) -> bytes:
    return RANDOM.randbytes(length)


FILES = {
    "x.fa": bytes(RANDOM.choices(b"ACGT", k=3 * BLOCK + 17)),
    "x.fa.fai": b"chr1\t393233\t6\t60\t61\n",
    "x.fa.amb": b"",
    "x.fa.bwt": noise(20 * BLOCK),
    "sub/x.fa.sa": noise(BLOCK - 1),
    "x.fa.pac": noise(BLOCK + 1),
}


def tar_of(files: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    entries = []
    for name, data in files.items():
        info = tarfile.TarInfo(f"default/{name}")
        info.size = len(data)
        entries.append((info, data))
    return make_tar(entries, form)


def tgz_of(files: dict[str, bytes]) -> bytes:
    return gzip.compress(tar_of(files), 1, mtime=0)


ARCHIVE = tgz_of(FILES)
MD5 = hashlib.md5(ARCHIVE).hexdigest()


class Shelf:
    """Where one content's blocks go: memory, written by the worker."""

    def __init__(self) -> None:
        self.blocks: dict[int, bytes] = {}
        self.writes: list[tuple[int, int]] = []
        self.error: Exception | None = None

    def write(self, index: int, data: memoryview) -> int:
        assert threading.current_thread().name == "archive"
        if self.error is not None:
            raise self.error
        self.writes.append((index, len(data)))
        for at in range(0, len(data), BLOCK):
            self.blocks[index + at // BLOCK] = bytes(data[at : at + BLOCK])
        return len(data)

    @property
    def data(self) -> bytes:
        return b"".join(self.blocks[index] for index in sorted(self.blocks))


class Receiver:
    """Stores everything, and notes what it is told, on which thread, in which order."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.log: list[tuple[str, object]] = []
        self.shelves: dict[str, Shelf] = {}
        self.arrivals: list[BlockArrival] = []
        self.gate: trio.Event | None = None  # admit waits for it
        self.waiting = trio.Event()  # admit does
        self.news = trio.Event()  # something has arrived
        self.wanted: Callable[[BlockOffer], bool] = lambda offer: True
        self.errors: dict[str, Exception] = {}
        self.digest = ""
        self.members: list[Member] = []

    def _note(self, what: str, about: object) -> None:
        assert threading.current_thread() is self.thread
        self.log.append((what, about))
        if what in self.errors:
            raise self.errors[what]

    def member(self, member: Member) -> None:
        self.shelves[member.name] = Shelf()
        self._note("member", member.name)

    async def admit(self, offers: list[BlockOffer], /) -> Sequence[Shelf | None]:
        self._note("admit", [(offer.name, offer.index, offer.length) for offer in offers])
        if self.gate is not None:
            self.waiting.set()
            await self.gate.wait()
        return [self.shelves[offer.name] if self.wanted(offer) else None for offer in offers]

    def commit(self, arrivals: list[BlockArrival], /) -> None:
        self._note("commit", [(arrival.name, arrival.index, len(arrival.data)) for arrival in arrivals])
        self.arrivals += arrivals
        self.news.set()

    def finished(self, members: list[Member], digest: str, /) -> None:
        self._note("finished", len(members))
        self.members, self.digest = members, digest

    async def has_received(self, length: int) -> None:
        """Wait until at least so many bytes have arrived."""
        while sum(len(arrival.data) for arrival in self.arrivals) < length:
            await self.news.wait()
            self.news = trio.Event()

    @property
    def data(self) -> dict[str, bytes]:
        """What arrived, by member."""
        found = {name: b"" for kind, name in self.log if kind == "member" and isinstance(name, str)}
        for arrival in self.arrivals:
            found[arrival.name] += arrival.data
        return found


class Forgetful(Receiver):
    """Counts bytes, and keeps none."""

    total = 0

    def commit(self, arrivals: list[BlockArrival], /) -> None:
        self.total += sum(len(arrival.data) for arrival in arrivals)


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    async with open_bridge() as bridge:
        yield bridge


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "archive"]


@asynccontextmanager
async def open_sink(receiver: Receiver, index: IndexBuilder | None = None) -> AsyncIterator[ArchiveSink]:
    sink = ArchiveSink(receiver, trio.lowlevel.current_trio_token(), index)
    try:
        yield sink
    finally:
        with trio.fail_after(20) as scope:
            scope.shield = True
            await sink.close()
        assert workers() == []
        told = len(receiver.log)
        await trio.sleep(0.01)
        assert len(receiver.log) == told


async def pour(bridge: Bridge, sink: ArchiveSink, archive: bytes, piece: int = 65536) -> None:
    async def feed() -> None:
        for start in range(0, len(archive), piece):
            await sink.feed(archive[start : start + piece])

    await bridge.run(feed)


async def unpack(bridge: Bridge, archive: bytes, receiver: Receiver | None = None, piece: int = 65536) -> Receiver:
    receiver = receiver or Receiver()
    with trio.fail_after(30):
        async with open_sink(receiver) as sink:
            await pour(bridge, sink, archive, piece)
            await sink.finish()
    return receiver


# ---------------------------------------------------------------- what arrives


@pytest.mark.parametrize("piece", [997, 65536, AHEAD, 1 << 30])
async def test_every_byte_arrives_once(bridge: Bridge, piece: int) -> None:
    receiver = await unpack(bridge, ARCHIVE, piece=piece)
    assert receiver.data == FILES
    assert {name: shelf.data for name, shelf in receiver.shelves.items()} == FILES
    assert [member.name for member in receiver.members] == list(FILES)
    assert receiver.digest == MD5
    for arrival in receiver.arrivals:
        assert arrival.crc == zlib.crc32(arrival.data)
        assert len(arrival.data) == min(BLOCK, len(FILES[arrival.name]) - arrival.index * BLOCK)


async def test_members_offers_and_arrivals_come_in_order(bridge: Bridge) -> None:
    receiver = await unpack(bridge, ARCHIVE)
    assert receiver.log[-1] == ("finished", len(FILES))
    current, expected, offered = "", 0, None
    for what, about in receiver.log[:-1]:
        if what == "member":
            assert offered is None
            assert expected == -(-len(FILES.get(current, b"")) // BLOCK)
            assert isinstance(about, str)
            current, expected = about, 0
        elif what == "admit":
            assert offered is None
            offered = about
        else:
            assert isinstance(about, list)
            assert about == offered
            assert len(about) <= BATCH
            assert [place[:2] for place in about] == [(current, expected + at) for at in range(len(about))]
            expected, offered = expected + len(about), None


async def test_neighbouring_blocks_are_written_in_one_piece(bridge: Bridge) -> None:
    receiver = Receiver()
    receiver.wanted = lambda offer: offer.index % 8 != 3
    await unpack(bridge, ARCHIVE, receiver, piece=1 << 30)
    assert receiver.data == FILES
    shelf = receiver.shelves["x.fa.bwt"]
    assert sorted(set(range(20)) - set(shelf.blocks)) == [3, 11, 19]
    assert len(shelf.writes) < len(shelf.blocks)
    assert {arrival.index for arrival in receiver.arrivals if arrival.crc is None} == {3, 11, 19}


async def test_the_first_bytes_do_not_wait_for_the_rest(bridge: Bridge) -> None:
    receiver = Receiver()
    half = ARCHIVE[: len(ARCHIVE) // 2]
    with trio.fail_after(10):
        async with open_sink(receiver) as sink:
            await pour(bridge, sink, half)
            await receiver.has_received(len(half) * 8 // 10)


async def test_memory_that_the_feeder_uses_again(bridge: Bridge) -> None:
    receiver = Receiver()
    buffer = bytearray(4096)

    async with open_sink(receiver) as sink:

        async def feed() -> None:
            for start in range(0, len(ARCHIVE), len(buffer)):
                part = ARCHIVE[start : start + len(buffer)]
                buffer[: len(part)] = part
                await sink.feed(memoryview(buffer)[: len(part)])

        await bridge.run(feed)
        await sink.finish()
    assert receiver.data == FILES


async def test_links_folders_and_devices_are_members_without_blocks(bridge: Bridge) -> None:
    archive = (
        entry(b"t/", flag=b"5") + entry(b"t/d/", flag=b"5") + header(b"t/l", b"2", link=b"f") + header(b"t/p", b"6")
    )
    receiver = await unpack(bridge, gzip.compress(archive + entry(b"t/_refgenie_build/log", b"made") + END))
    assert [(member.name, member.kind) for member in receiver.members] == [
        ("d", "dir"),
        ("l", "link"),
        ("p", "other"),
        ("_refgenie_build/log", "other"),
    ]
    assert receiver.arrivals == []


async def test_several_gzip_members_and_padding(bridge: Bridge) -> None:
    tar = tar_of(FILES)
    cut = gzip.compress(tar[:100_000]) + gzip.compress(b"") + gzip.compress(tar[100_000:])
    for piece in (1, 65536):
        small = tar_of({"a": b"1"})
        parts = gzip.compress(small[:700]) + gzip.compress(small[700:]) + bytes(700)
        assert (await unpack(bridge, parts, piece=piece)).data == {"a": b"1"}
    assert (await unpack(bridge, cut + bytes(10_000))).data == FILES


async def test_two_sinks_at_once(bridge: Bridge) -> None:
    receivers = [Receiver(), Receiver()]

    async def one(receiver: Receiver) -> None:
        sink = ArchiveSink(receiver, trio.lowlevel.current_trio_token())
        await pour(bridge, sink, ARCHIVE)
        await sink.finish()
        await sink.close()

    async with trio.open_nursery() as nursery:
        for receiver in receivers:
            nursery.start_soon(one, receiver)
    assert [receiver.data for receiver in receivers] == [FILES, FILES]


# ---------------------------------------------------------------- waiting and stopping


async def test_a_waiting_receiver_holds_the_feeder_up(bridge: Bridge) -> None:
    receiver, fed = Receiver(), 0
    receiver.gate = trio.Event()
    archive = tgz_of({"big": noise(8 << 20)})

    with trio.fail_after(20):
        async with open_sink(receiver) as sink, trio.open_nursery() as nursery:

            async def feed() -> None:
                nonlocal fed
                for start in range(0, len(archive), 65536):
                    await sink.feed(archive[start : start + 65536])
                    fed = start + 65536

            nursery.start_soon(bridge.run, feed)
            await receiver.waiting.wait()
            await trio.sleep(0.2)
            # What waits, the piece that is being unpacked, and what is in the batch.
            assert fed <= AHEAD + (BATCH + 1) * BLOCK + 3 * 65536
            assert receiver.arrivals == []
            receiver.gate.set()
            await receiver.has_received(1)
            nursery.cancel_scope.cancel()


async def test_a_cancelled_stream_stops_while_admit_waits(bridge: Bridge) -> None:
    receiver = Receiver()
    receiver.gate = trio.Event()
    archive = tgz_of({"big": noise(8 << 20)})
    with trio.fail_after(20):
        async with open_sink(receiver) as sink, trio.open_nursery() as nursery:
            nursery.start_soon(pour, bridge, sink, archive)
            await receiver.waiting.wait()
            nursery.cancel_scope.cancel()
    assert [what for what, _ in receiver.log] == ["member", "admit"]
    assert receiver.shelves["big"].blocks == {}


async def test_a_cancelled_stream_stops_anywhere(bridge: Bridge) -> None:
    for delay in range(12):
        receiver = Receiver()
        with trio.move_on_after(delay / 1000):
            async with open_sink(receiver) as sink:
                await pour(bridge, sink, ARCHIVE, 4096)
                await sink.finish()
        for name, body in receiver.data.items():
            assert FILES[name].startswith(body)


async def test_a_closed_sink_says_so(bridge: Bridge) -> None:
    receiver = Receiver()
    async with open_sink(receiver) as sink:
        await pour(bridge, sink, ARCHIVE[:1000])
        await sink.close()
        with pytest.raises(SinkClosed):
            await pour(bridge, sink, ARCHIVE[1000:2000])
        with pytest.raises(SinkClosed):
            await sink.finish()
    async with open_sink(receiver) as sink:
        pass  # never fed: no thread was made


def test_a_worker_outlives_no_run() -> None:
    async def main() -> ArchiveSink:
        receiver = Receiver()
        receiver.gate = trio.Event()
        async with open_bridge() as bridge:
            sink = ArchiveSink(receiver, trio.lowlevel.current_trio_token())
            await pour(bridge, sink, ARCHIVE[:200_000])
            await receiver.waiting.wait()
        return sink  # not closed: a mistake, but no reason to hang

    trio.run(main)
    for thread in workers():
        thread.join(5)
    assert workers() == []


# ---------------------------------------------------------------- what goes wrong


async def fails(bridge: Bridge, archive: bytes, error: type[Exception], message: str) -> Receiver:
    """Check that an archive is refused with this error, and that what arrived before is right."""
    receiver = Receiver()
    with pytest.raises(error, match=message):
        await unpack(bridge, archive, receiver)
    assert receiver.digest == ""
    return receiver


async def test_a_truncated_archive(bridge: Bridge) -> None:
    for stop in (0, 5, 17, len(ARCHIVE) // 2, len(ARCHIVE) - 8, len(ARCHIVE) - 1):
        receiver = await fails(bridge, ARCHIVE[:stop], ArchiveError, "cut short: its gzip data has no end")
        for name, body in receiver.data.items():
            assert FILES[name].startswith(body)


async def test_an_archive_without_its_end_mark(bridge: Bridge) -> None:
    tar = tar_of(FILES)
    for stop in (len(tar) // 2, len(tar.rstrip(b"\0"))):
        await fails(bridge, gzip.compress(tar[:stop]), ArchiveError, "cut short: its tar data has no end")
    await fails(bridge, gzip.compress(b""), ArchiveError, "cut short: its tar data has no end")


async def test_a_flipped_bit(bridge: Bridge) -> None:
    plain = gzip.compress(tar_of({"noise": noise(500_000)}), 0, mtime=0)  # stored: any damage inflates well
    for at in (0, 3000, len(plain) // 2, len(plain) - 8, len(plain) - 1):
        damaged = bytearray(plain)
        damaged[at] ^= 0x10
        receiver = Receiver()
        with pytest.raises(ArchiveError) as caught:
            await unpack(bridge, bytes(damaged), receiver)
        if at != 3000:
            assert caught.value.__cause__ is not None
        assert receiver.digest == ""


async def test_trailing_garbage(bridge: Bridge) -> None:
    await fails(bridge, ARCHIVE + b"<html>" * 10, ArchiveError, "followed by something else")
    await fails(bridge, ARCHIVE + bytes(512) + b"x", ArchiveError, "followed|no end")
    await fails(bridge, b"<html>not an archive</html>" * 10, ArchiveError, "damaged")


async def test_an_unsafe_archive_is_not_half_read(bridge: Bridge) -> None:
    archive = gzip.compress(entry(b"t/a", b"1") + entry(b"t/../b", b"2") + entry(b"t/c", b"3") + END)
    receiver = await fails(bridge, archive, ArchiveError, r"'t/\.\./b'")
    assert receiver.data == {"a": b"1"}


async def test_feed_hears_of_an_error_before_the_stream_ends(bridge: Bridge) -> None:
    long = b"\x1f\x8bnot deflate" + noise(32 << 20)
    with trio.fail_after(10):
        async with open_sink(Receiver()) as sink:
            with pytest.raises(ArchiveError):
                await pour(bridge, sink, long)
            with pytest.raises(ArchiveError):
                await sink.finish()


@pytest.mark.parametrize("what", ["member", "admit", "commit", "finished"])
async def test_errors_of_the_receiver_come_back(bridge: Bridge, what: str) -> None:
    receiver = Receiver()
    receiver.errors[what] = LookupError("no such content")
    with pytest.raises(LookupError, match="no such content"):
        await unpack(bridge, ARCHIVE, receiver)
    assert [told for told, _ in receiver.log].count(what) == 1


async def test_a_disk_that_refuses_costs_the_copy_only(bridge: Bridge) -> None:
    class Full(Receiver):
        def member(self, member: Member) -> None:
            super().member(member)
            if member.name == "x.fa.bwt":
                self.shelves[member.name].error = CacheError("the disk is full")

    receiver = await unpack(bridge, ARCHIVE, Full())
    assert receiver.data == FILES
    for arrival in receiver.arrivals:
        assert (arrival.crc is None) == (arrival.name == "x.fa.bwt")


async def test_other_errors_of_the_disk_stop_the_stream(bridge: Bridge) -> None:
    class Broken(Receiver):
        def member(self, member: Member) -> None:
            super().member(member)
            self.shelves[member.name].error = ValueError("not whole blocks")

    with pytest.raises(ValueError, match="not whole blocks"):
        await unpack(bridge, ARCHIVE, Broken())


@pytest.mark.slow
async def test_a_bomb_takes_time_and_no_memory(bridge: Bridge) -> None:
    size = 256 << 20
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(header(b"t/zeros", size=size))]
    parts += [packer.compress(bytes(STEP)) for _ in range(size // STEP)]
    archive = b"".join([*parts, packer.compress(END), packer.flush()])
    assert len(archive) < 600_000

    receiver = Forgetful()
    receiver.wanted = lambda offer: False
    tracemalloc.start()
    try:
        await unpack(bridge, archive, receiver, piece=AHEAD)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert receiver.total == size
    assert peak < 8 * STEP


async def test_a_bomb_of_names(bridge: Bridge) -> None:
    big = pax((b"comment", b"c" * (2 << 20)))
    await fails(bridge, gzip.compress(big + entry(b"t/a") + END), ArchiveError, "pax header of")
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as packed:
        for number in range(2500):
            packed.write(pax((b"path", b"t/%d/" % number + b"/".join([b"n" * 250] * 15))) + header(b"t/x"))
    await fails(bridge, out.getvalue(), ArchiveError, "names of more than")


# ---------------------------------------------------------------- with a seek index


@pytest.mark.parametrize("piece", [1009, 65536, 1 << 30])
async def test_the_seek_index_is_made_on_the_way(bridge: Bridge, tmp_path: Path, piece: int) -> None:
    tar = sample_tar(seed=piece)
    archive = gzip.compress(tar, 6, mtime=0)
    builder, receiver = IndexBuilder(tmp_path / "windows", SPACING), Receiver()
    with trio.fail_after(30):
        async with open_sink(receiver, index=builder) as sink:
            await pour(bridge, sink, archive, piece)
            digest = await sink.finish()
    size = await trio.to_thread.run_sync(builder.finish, receiver.members, digest, tmp_path / "archive.seekidx")
    builder.close()
    assert os.listdir(tmp_path) == ["archive.seekidx"]
    file = (tmp_path / "archive.seekidx").read_bytes()
    assert size == len(file)
    (tmp_path / "archive.seekidx").unlink()
    assert file == build_index([archive], tmp_path)[0]
    index = parse_index(file)
    assert list(index.members) == receiver.members
    for member in receiver.members:
        spans = index.spans_for(member.offset, member.offset + member.size)
        data = b"".join(inflate(file, archive, number) for number in spans)
        skip = member.offset - index.span(spans[0]).out_start
        assert data[skip : skip + member.size] == receiver.data[member.name]


async def test_an_index_that_fails_costs_nothing_else(bridge: Bridge, tmp_path: Path) -> None:
    builder, receiver = IndexBuilder(tmp_path / "no such folder" / "windows", 4096), Receiver()
    async with open_sink(receiver, builder) as sink:
        await pour(bridge, sink, ARCHIVE)
        await sink.finish()
    builder.close()
    assert receiver.data == FILES
    assert "can't be kept" in builder.failed


async def test_a_sink_that_is_closed_in_the_middle_of_its_index(bridge: Bridge, tmp_path: Path) -> None:
    builder = IndexBuilder(tmp_path / "windows", SPACING)
    async with open_sink(Receiver(), index=builder) as sink:
        await pour(bridge, sink, ARCHIVE[:-1])
        with pytest.raises(ArchiveError, match="cut short"):
            await sink.finish()
    builder.close()
    assert os.listdir(tmp_path) == []


async def test_the_index_takes_little_memory(bridge: Bridge, tmp_path: Path) -> None:
    archive = gzip.compress(sample_tar(scale=10), 6, mtime=0)
    peaks = []
    for index in (None, IndexBuilder(tmp_path / "windows", SPACING)):
        receiver = Forgetful()
        tracemalloc.start()
        try:
            async with open_sink(receiver, index=index) as sink:
                await pour(bridge, sink, archive)
                await sink.finish()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert receiver.total > 10 << 20
        if index is not None:
            assert index.spans > 100
            index.close()
    assert peaks[1] < peaks[0] + (2 << 20)
