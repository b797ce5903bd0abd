"""Archives that stream by, over a real store and an origin that does as the test says.

Promises:
- a member's facts are there as soon as its header has gone by, a block as soon as it is inflated;
- every member that passes is stored; one archive is streamed once, whoever wants what of it;
- in a small cache what is waited for arrives; what merely passes pushes out neither that nor pins;
- a stream that nobody waits for is held for a while, then given up, and who comes then starts another;
- bytes of a wrong archive are dropped, before a restart or after it, and whoever holds them is told;
- bytes of two versions of an archive never meet in the cache;
- the member table outlives the daemon, as far as it can be trusted;
- whatever ends a stream wakes everybody who waits and leaves nothing behind.
"""

from __future__ import annotations

import logging
import random
import shutil
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from refgenfs.core.content import BLOCK, Run, block_count
from refgenfs.core.errors import (
    ArchiveError,
    CacheError,
    DeadlineExceeded,
    IntegrityError,
    OriginDenied,
    OriginMissing,
    OriginUnavailable,
    StaleContent,
)
from refgenfs.reader.member_table import MemberTable, table_key
from refgenfs.reader.stream import Archive, ArchiveStream
from tests.support.scripted import (
    EMPTY,
    SOURCE,
    Entry,
    Packed,
    Rig,
    Served,
    entry,
    eventually,
    facts_of,
    gather,
    open_rig,
    pack,
    room_for,
    unpack_with_tarfile,
)

THREE = [entry("a.fa", 3 * BLOCK + 11), entry("b.bwt", 5 * BLOCK), entry("c.sa", 2 * BLOCK + 1)]


async def assert_all_there(rig: Rig, archive: Archive, packed: Packed) -> None:
    """Everything is resident and right."""
    for name, data in packed.data.items():
        content = await rig.content(archive, name)
        assert content.missing(Run(0, block_count(len(data)))) < 0, name
        assert content.read(0, len(data)) == data


async def assert_nothing_there(rig: Rig, archive: Archive, names: list[str]) -> None:
    for name in names:
        assert rig.store.resident_bytes(archive.content_id(name)) == 0, name


async def read_cold(rig: Rig, archive: Archive, name: str, offset: int = 0, size: int = 1) -> bytes:
    """Read what has not come yet: from then on, the stream goes to its end. The origin sends all from there on."""
    file = await rig.open_member(archive, name)
    got: list[bytes] = []

    async def read() -> None:
        got.append(await rig.read(file, offset, size))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await eventually(lambda: len(rig.board))
        rig.http.objects[archive.ref.urls[0]].tap.open()
    return got[0]


# ---- headers and blocks, as they come


def test_the_archives_made_here_are_archives() -> None:
    packed = pack([*THREE, Entry("empty"), Entry("link", link="a.fa"), entry("x" * 150, 10)])
    assert unpack_with_tarfile(packed) == packed.data


async def test_a_member_is_known_when_its_header_has_gone_by(tmp_path: Path) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed)
        served.tap.flow_to(packed.after["b.bwt", -1])
        archive = await rig.open_archive(ref)
        assert rig.http.streams == 0
        member = await rig.archives.member(archive, "b.bwt")
        assert (member.name, member.kind, member.size) == ("b.bwt", "file", 5 * BLOCK)
        assert "c.sa" not in archive.table.members
        assert not archive.table.complete
        served.tap.open()
        assert (await rig.archives.member(archive, "c.sa")).size == 2 * BLOCK + 1
        assert rig.http.streams == 1


async def test_a_block_is_read_when_it_is_there_not_when_the_archive_is(tmp_path: Path) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed)
        served.tap.flow_to(packed.after["b.bwt", 1])
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "b.bwt")
        assert await rig.read(file, BLOCK - 5, 10) == packed.data["b.bwt"][BLOCK - 5 : BLOCK + 5]
        served.tap.open()
        assert await rig.read(file, 0, 10 * BLOCK) == packed.data["b.bwt"]
        await rig.settled(archive)


@pytest.mark.parametrize("pieces", [(1, 700, 13), (999_983,), (65_536, 3, 100_000), (4096,)])
async def test_every_member_that_passes_is_stored(tmp_path: Path, pieces: tuple[int, ...]) -> None:
    dice = random.Random(str(pieces))
    entries = [entry(f"f{at}", dice.choice([1, 511, 512, BLOCK, 3 * BLOCK, 2 * BLOCK + 100])) for at in range(12)]
    packed = pack([*entries, Entry("empty"), Entry("d/e/f", b"deep")])
    if pieces[0] == 1:
        packed = pack([*entries[:2], Entry("empty")])
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed)
        served.pieces = pieces
        served.tap.flow_to(packed.after["f0", -1])
        archive = await rig.open_archive(ref)
        await read_cold(rig, archive, "f0")
        await rig.settled(archive)
        await assert_all_there(rig, archive, packed)
        assert archive.table.complete
        assert {name for name, member in archive.table.members.items() if member.kind == "file"} == set(packed.data)
        assert rig.http.streams == 1
        assert rig.http.fetched[SOURCE] == len(packed.body)


async def test_everybody_shares_one_stream(tmp_path: Path) -> None:
    """Eight readers of all files on a cold cache: the archive comes once."""
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)

        async def read(name: str, at: int) -> bytes:
            file = await rig.open_member(archive, name)
            await trio.sleep(at / 1000)
            parts = [await rig.read(file, offset, 50_000) for offset in range(0, len(packed.data[name]), 50_000)]
            return b"".join(parts)

        names = list(packed.data) * 3
        results = await gather(*(partial(read, name, at) for at, name in enumerate(names)))
        assert results == [packed.data[name] for name in names]
        await rig.settled(archive)
        assert rig.http.streams == 1
        assert served.fed == len(packed.body)


async def test_who_comes_in_the_middle_joins(tmp_path: Path) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed)
        served.tap.flow_to(packed.after["b.bwt", 2])
        archive = await rig.open_archive(ref)
        first = await rig.open_member(archive, "a.fa")
        await rig.read(first, 0, 10)
        await rig.archives.member(archive, "b.bwt")
        second = await rig.open_member(archive, "b.bwt")
        async with trio.open_nursery() as nursery:
            results: list[object] = []

            async def join() -> None:
                results.extend(
                    await gather(
                        partial(rig.read, second, 4 * BLOCK, BLOCK),
                        partial(rig.read, second, 3 * BLOCK, 2 * BLOCK),
                        partial(rig.archives.member, archive, "c.sa"),
                    )
                )

            nursery.start_soon(join)
            await eventually(lambda: len(rig.board) == 2)
            served.tap.open()
        body = packed.data["b.bwt"]
        assert results[:2] == [body[4 * BLOCK :], body[3 * BLOCK :]]
        await rig.settled(archive)
        assert rig.http.streams == 1


async def test_a_reader_that_gives_up_does_not_stop_the_stream(tmp_path: Path) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed)
        served.tap.flow_to(packed.after["a.fa", -1])
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "a.fa")
        with trio.move_on_after(0.02):
            await rig.read(file, 0, 10)
        served.tap.open()
        await rig.settled(archive)
        await assert_all_there(rig, archive, packed)


async def test_two_archives_stream_side_by_side(tmp_path: Path) -> None:
    one, two = pack(THREE), pack([entry("a.fa", 2 * BLOCK, "other")])
    async with open_rig(tmp_path) as rig:
        _, ref_one = rig.serve_archive(one, name="one")
        _, ref_two = rig.serve_archive(two, name="two")
        archives = [await rig.open_archive(ref) for ref in (ref_one, ref_two)]
        files = [await rig.open_member(archive, "a.fa") for archive in archives]
        assert await rig.read(files[0], 0, 9 * BLOCK) == one.data["a.fa"]
        assert await rig.read(files[1], 0, 9 * BLOCK) == two.data["a.fa"]
        await rig.settled(*archives)


# ---- what an archive holds


async def test_a_member_that_is_not_there_is_missing(tmp_path: Path) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        with pytest.raises(OriginMissing, match=r"has no file 'z\.fa'"):
            await rig.archives.member(archive, "z.fa")
        await rig.settled(archive)
        with pytest.raises(OriginMissing):
            await rig.archives.member(archive, "z.fa")
        assert rig.http.streams == 1  # known for good


async def test_links_are_told_as_links(tmp_path: Path) -> None:
    packed = pack(
        [
            entry("d1.fa", 2 * BLOCK),
            Entry("soft.fa", link="/brickyard/genomes/d1/fasta/default/d1.fa"),
            Entry("hard.fa", hard="d1.fa"),
        ]
    )
    async with open_rig(tmp_path) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        soft = await rig.archives.member(archive, "soft.fa")
        assert (soft.kind, soft.target) == ("link", "/brickyard/genomes/d1/fasta/default/d1.fa")
        hard = await rig.archives.member(archive, "hard.fa")
        assert (hard.kind, hard.target, hard.size) == ("hardlink", "d1.fa", 2 * BLOCK)
        await rig.settled(archive)
        await rig.archives.pull(archive, ["d1.fa", "soft.fa", "hard.fa"])
        await assert_all_there(rig, archive, packed)


async def test_members_have_the_names_of_the_listing(tmp_path: Path) -> None:
    """Old archives name files by an alias where the listing has the digest."""
    packed = pack([entry("hg38.fa", BLOCK), Entry("hg38.lnk", hard="hg38.fa"), entry("plain.txt", 5)])
    async with open_rig(tmp_path, linger=0.05) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref, ("d1.fa", "d1.lnk", "plain.txt"))
        assert (await rig.archives.member(archive, "d1.fa")).size == BLOCK
        assert (await rig.archives.member(archive, "d1.lnk")).target == "d1.fa"
        file = await rig.open_member(archive, "d1.fa")
        assert await rig.read(file, 0, BLOCK) == packed.data["hg38.fa"]
        assert (await rig.archives.member(archive, "plain.txt")).size == 5
        await rig.settled(archive)


async def test_all_members_at_once(tmp_path: Path) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        members = await rig.archives.members(archive)
        assert {name: m.size for name, m in members.items() if m.kind == "file"} == {
            name: len(data) for name, data in packed.data.items()
        }
        await rig.settled(archive)


# ---- a small cache


async def test_in_a_small_cache_what_is_waited_for_arrives(tmp_path: Path) -> None:
    packed = pack([entry(f"f{at}", 4 * BLOCK) for at in range(6)])
    async with open_rig(tmp_path, size=room_for(6), linger=0.05) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        for name in ("f0", "f5", "f2"):
            file = await rig.open_member(archive, name)
            assert await rig.read(file, 0, 4 * BLOCK) == packed.data[name]
            assert rig.store.used <= rig.store.quota
        await rig.settled(archive)


async def test_what_passes_by_pushes_out_nothing_that_is_newer_than_the_stream(tmp_path: Path) -> None:
    """Or a small cache would forget each file for the sake of the next."""
    packed = pack([entry("first", 4 * BLOCK), entry("rest", 40 * BLOCK)])
    async with open_rig(tmp_path, size=room_for(10), linger=0.05) as rig:
        served, ref = rig.serve_archive(packed)
        served.tap.flow_to(packed.after["first", -1])
        archive = await rig.open_archive(ref)
        assert await read_cold(rig, archive, "first", 0, 4 * BLOCK) == packed.data["first"]
        await rig.settled(archive)
        assert await rig.resident(archive, "first") == [0, 1, 2, 3]
        assert len(await rig.resident(archive, "rest")) < 40
        assert rig.store.evictions == 0


async def test_pins_stay_also_when_a_reader_waits(tmp_path: Path) -> None:
    packed = pack([entry("pinned", 4 * BLOCK), entry("big", 30 * BLOCK)])
    async with open_rig(tmp_path, size=room_for(7), linger=0.05) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "pinned")
        await rig.read(file, 0, 4 * BLOCK)
        rig.store.pin(file.facts.content)
        big = await rig.open_member(archive, "big")
        assert await rig.read(big, 0, 30 * BLOCK) == packed.data["big"]
        assert await rig.resident(archive, "pinned") == [0, 1, 2, 3]
        await rig.settled(archive)


async def test_what_is_waited_for_is_kept_at_the_expense_of_what_is_not(tmp_path: Path) -> None:
    packed = pack([entry("first", 4 * BLOCK), entry("big", 12 * BLOCK)])
    async with open_rig(tmp_path, size=room_for(5), linger=0.05) as rig:
        served, ref = rig.serve_archive(packed)
        served.tap.flow_to(packed.after["big", -1])
        archive = await rig.open_archive(ref)
        first, big = await rig.open_member(archive, "first"), await rig.open_member(archive, "big")
        await rig.read(first, 0, 4 * BLOCK)  # newer than the stream
        assert await read_cold(rig, archive, "big", 9 * BLOCK, BLOCK) == packed.data["big"][9 * BLOCK : 10 * BLOCK]
        await rig.settled(archive)
        assert 9 in await rig.resident(archive, "big")
        assert big.facts.size == 12 * BLOCK


async def test_with_no_room_at_all_everything_is_read_uncached(tmp_path: Path) -> None:
    packed = pack([entry(name, 3 * BLOCK) for name in ("a.fa", "b.bwt", "c.sa")])
    async with open_rig(tmp_path, size=EMPTY, linger=0.05) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        for name, data in packed.data.items():
            file = await rig.open_member(archive, name)
            assert await rig.read(file, 0, len(data)) == data
        await rig.settled(archive)
        await assert_nothing_there(rig, archive, list(packed.data))


async def test_a_disk_that_refuses_costs_the_cache_and_not_the_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path, linger=0.05) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)

        def refuse(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("refgenfs.cache.content.os.pwrite", refuse)
        file = await rig.open_member(archive, "b.bwt")
        assert await rig.read(file, 0, 5 * BLOCK) == packed.data["b.bwt"]
        await rig.settled(archive)
        await assert_nothing_there(rig, archive, list(packed.data))


# ---- streams that nobody waits for


async def test_a_stream_for_a_header_lingers_and_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`ls -l` must not pull 20 GB: with nobody reading, the stream holds still, then ends."""
    caplog.set_level(logging.INFO)
    packed = pack([entry("small", 10), entry("large", 40 * BLOCK)])
    async with open_rig(tmp_path, linger=0.05) as rig:
        served, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        await rig.archives.member(archive, "small")
        await rig.settled(archive)
        assert served.fed < len(packed.body)
        assert archive.error is None
        assert rig.store.resident_bytes(archive.content_id("large")) == 0
    assert "nobody waits for the rest" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_reader_resumes_a_stream_that_lingers(tmp_path: Path) -> None:
    packed = pack([entry("small", 10), entry("large", 40 * BLOCK)])
    async with open_rig(tmp_path, linger=5) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        await rig.archives.member(archive, "small")
        await trio.sleep(0.05)
        assert len(archive.streams) == 1
        assert rig.store.resident_bytes(archive.content_id("large")) == 0
        file = await rig.open_member(archive, "large")
        assert await rig.read(file, 0, 40 * BLOCK) == packed.data["large"]
        await rig.settled(archive)
        assert rig.http.streams == 1


async def test_memory_for_what_is_ahead_is_lent_while_somebody_waits(tmp_path: Path) -> None:
    packed = pack([entry("small", 10), entry("large", 40 * BLOCK)])
    async with open_rig(tmp_path, linger=5) as rig:
        served, ref = rig.serve_archive(packed)
        served.tap.shut()
        archive = await rig.open_archive(ref)
        recalled = trio.Event()
        token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.archives.member, archive, "small")
            await eventually(lambda: rig.http.lenders)
            lease = await rig.http.borrow(BLOCK, lambda: token.run_sync_soon(recalled.set))
            assert lease is not None, "somebody waits for a header"
            served.tap.open()
        await eventually(lambda: archive.streams[0]._idle._streams, "it lingers")
        assert await rig.http.borrow(BLOCK, recalled.set) is None, "nobody waits"
        assert not recalled.is_set()
        claims = [rig.budget.claim(BLOCK)]
        while claims[-1].granted:
            claims.append(rig.budget.claim(BLOCK))
        with trio.fail_after(5):
            await recalled.wait()
        lease.release()
        with trio.fail_after(5):
            await claims[-1].wait()
        for claim in claims:
            claim.release()


async def test_another_header_resumes_a_stream_that_lingers(tmp_path: Path) -> None:
    packed = pack([entry("small", 10), entry("large", 40 * BLOCK), entry("last", 5)])
    async with open_rig(tmp_path, linger=5) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        await rig.archives.member(archive, "small")
        await trio.sleep(0.03)
        with trio.fail_after(20):
            assert (await rig.archives.member(archive, "last")).size == 5
        assert rig.http.streams == 1


async def test_a_reader_after_a_stream_was_given_up_starts_another(tmp_path: Path) -> None:
    packed = pack([entry("small", 10), entry("large", 40 * BLOCK)])
    async with open_rig(tmp_path, linger=0.02) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        await rig.archives.member(archive, "small")
        await rig.settled(archive)
        file = await rig.open_member(archive, "large")
        assert await rig.read(file, 39 * BLOCK, BLOCK) == packed.data["large"][39 * BLOCK :]
        await rig.settled(archive)
        assert rig.http.streams == 2


async def test_a_reader_that_comes_as_a_stream_is_given_up_gets_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the decision to give up and the end of the stream, threads have to be crossed."""
    packed = pack([entry("small", 10), entry("large", 40 * BLOCK)])
    async with open_rig(tmp_path, linger=0.02) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        somebody_comes = ArchiveStream._somebody_comes
        results: list[object] = []

        async def late(stream: ArchiveStream) -> bool:
            came = await somebody_comes(stream)
            if not came:
                rig.nursery.start_soon(read)
            return came

        async def read() -> None:
            file = await rig.open_member(archive, "large")
            results.extend(await gather(partial(rig.read, file, 0, BLOCK)))

        monkeypatch.setattr(ArchiveStream, "_somebody_comes", late)
        await rig.archives.member(archive, "large")
        await eventually(lambda: results)
        assert results == [packed.data["large"][:BLOCK]]
        await rig.settled(archive)


# ---- wrong archives


async def test_a_wrong_digest_drops_everything_and_is_told(tmp_path: Path) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed, digest="0" * 32)
        served.tap.flow_to(packed.after["b.bwt", 0])
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "a.fa")
        assert await rig.read(file, 0, 10) == packed.data["a.fa"][:10]  # provisional
        results: list[object] = []

        async def wait() -> None:
            results.extend(
                await gather(
                    partial(rig.archives.member, archive, "z"),
                    partial(rig.archives.members, archive),
                    partial(rig.archives.pull, archive, ["a.fa"]),
                )
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.01)
            served.tap.open()
        assert [type(result) for result in results] == [IntegrityError] * 3
        assert rig.rechecks == 1
        await rig.settled(archive)
        await assert_nothing_there(rig, archive, list(packed.data))
        assert set(rig.damaged) >= {archive.content_id(name) for name in packed.data}
        assert archive.table.members == {}
        assert not archive.table.complete


async def test_pinned_blocks_of_a_wrong_archive_go_too(tmp_path: Path) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed, digest="0" * 32)
        served.tap.flow_to(packed.after["b.bwt", 0])
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "a.fa")
        await rig.read(file, 0, 10)
        rig.store.pin(file.facts.content)
        served.tap.open()
        await rig.settled(archive)
        await assert_nothing_there(rig, archive, list(packed.data))


async def test_what_was_archived_again_is_kept(tmp_path: Path) -> None:
    """Archiving again changes the archive's digest and not its files; the origin says which it has now."""
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        _, ref = rig.serve_archive(packed, digest="0" * 32)
        rig.fresh = packed.digest
        archive = await rig.open_archive(ref)
        await rig.archives.pull(archive, list(packed.data))
        await rig.settled(archive)
        await assert_all_there(rig, archive, packed)
        assert rig.rechecks == 1
        assert rig.damaged == []
        assert archive.table.complete


async def test_no_digest_in_the_catalog_is_nothing_to_compare(tmp_path: Path) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        _, ref = rig.serve_archive(packed, digest="")
        archive = await rig.open_archive(ref)
        await rig.archives.pull(archive, list(packed.data))
        await rig.settled(archive)
        assert archive.table.complete
        assert rig.rechecks == 0


async def test_a_damaged_archive_drops_everything(tmp_path: Path) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed)
        body = bytearray(packed.body)
        body[-8] ^= 1  # the CRC of all of it
        served.body = bytes(body)
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "a.fa")
        await rig.read(file, 0, 10)
        await rig.settled(archive)
        await assert_nothing_there(rig, archive, list(packed.data))
        with pytest.raises(ArchiveError):
            await rig.archives.members(archive)
        await rig.settled(archive)


async def test_a_rebuilt_archive_with_a_file_open_ends_neither_the_daemon_nor_in_a_short_read(tmp_path: Path) -> None:
    """The catalog is behind: the file that is open has the old size, the archive that comes the new one."""
    old, new = pack(THREE), pack([entry("a.fa", 2 * BLOCK + 5, "new"), entry("b.bwt", 7 * BLOCK, "new")])
    async with open_rig(tmp_path, linger=0.05) as rig:
        served, ref = rig.serve_archive(old)
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "a.fa")
        await rig.archives.pull(archive, ["a.fa", "b.bwt", "c.sa"])
        await rig.settled(archive)
        for name in old.data:
            rig.store.evict(archive.content_id(name))
        served.body, served.validator = new.body, '"2"'
        for offset in (2 * BLOCK, 3 * BLOCK):
            try:
                data = await rig.read(file, offset, BLOCK)
            except (StaleContent, IntegrityError, OriginMissing):
                continue
            assert data == old.data["a.fa"][offset : offset + BLOCK]
        await rig.settled(archive)
        await assert_nothing_there(rig, archive, list(old.data))
        assert rig.http.under_way == 0


# ---- two versions, and restarts


async def interrupt(rig: Rig, archive: Archive, served: Any, name: str, size: int, at: int) -> None:
    """Read a member's beginning, then have the stream break off for good at byte `at` of the archive."""
    served.tap.flow_to(at)
    file = await rig.open_member(archive, name)
    await rig.read(file, 0, size)
    await trio.sleep(0.05)  # what has come is unpacked
    served.fault, served.fault_at = OriginUnavailable("broken off for good"), at
    served.tap.open()
    await rig.settled(archive)
    served.fault = None


async def test_an_interrupted_stream_leaves_what_came(tmp_path: Path) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        await interrupt(rig, archive, served, "a.fa", BLOCK, packed.after["b.bwt", 1])
        assert await rig.resident(archive, "a.fa") == [0, 1, 2, 3]
        assert await rig.resident(archive, "b.bwt") == [0, 1]
        assert archive.table.validator == '"1"'
        file = await rig.open_member(archive, "b.bwt")
        assert await rig.read(file, 0, 5 * BLOCK) == packed.data["b.bwt"]
        await rig.settled(archive)
        await assert_all_there(rig, archive, packed)
        assert archive.table.validator == ""
        assert rig.damaged == []


@pytest.mark.parametrize("validator", ['"2"', ""])
async def test_another_validator_drops_what_was_not_confirmed_first(tmp_path: Path, validator: str) -> None:
    old, new = pack(THREE), pack([entry(item.name, len(item.data), "new") for item in THREE])
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(old, digest=new.digest)
        archive = await rig.open_archive(ref)
        await interrupt(rig, archive, served, "a.fa", BLOCK, old.after["b.bwt", 1])
        assert await rig.resident(archive, "a.fa") == [0, 1, 2, 3]
        served.body, served.validator = new.body, validator
        served.tap.flow_to(1)
        file = await rig.open_member(archive, "b.bwt")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gather, partial(rig.read, file, 4 * BLOCK, 10))
            await eventually(lambda: rig.http.streams == 2 and rig.damaged)
            await assert_nothing_there(rig, archive, list(old.data))
            served.tap.open()
        await rig.settled(archive)
        await assert_all_there(rig, archive, new)


def _lose(what: str, tmp_path: Path) -> None:
    [ledger] = tmp_path.rglob("ledger")
    if what != "nothing":
        shutil.rmtree(ledger)
    if what == "both":
        (ledger.parent / "contents" / "journal").unlink()


LOST = pytest.mark.parametrize("lost", ["nothing", "ledger", "both"])


@LOST
@pytest.mark.parametrize("clean", [True, False])
async def test_another_validator_after_a_restart_drops_what_was_not_confirmed(
    tmp_path: Path, clean: bool, lost: str
) -> None:
    """The blocks outlive the daemon; so must the knowledge that they are not to be trusted."""
    old, new = pack(THREE), pack([entry(item.name, len(item.data), "new") for item in THREE])
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(old, digest=new.digest)
        archive = await rig.open_archive(ref)
        await interrupt(rig, archive, served, "a.fa", BLOCK, old.after["b.bwt", 1])
        if not clean:  # as a daemon leaves it that is killed in the middle of its first stream
            row: Any = {"complete": False, "confirmed": "", "validator": '"1"', "members": []}
            await trio.to_thread.run_sync(rig.store.ledger.set, table_key(ref), row)
    _lose(lost, tmp_path)
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(new)
        served.validator = '"2"'
        archive = await rig.open_archive(ref)
        assert archive.table.validator == ("" if lost == "both" else '"1"')
        await rig.archives.pull(archive, list(new.data))
        await rig.settled(archive)
        await assert_all_there(rig, archive, new)


@pytest.mark.parametrize("lost", ["nothing", "ledger"])
async def test_after_a_restart_the_same_validator_keeps_what_came(tmp_path: Path, lost: str) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        await interrupt(rig, archive, served, "a.fa", BLOCK, packed.after["b.bwt", 1])
    _lose(lost, tmp_path)
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed)
        served.tap.flow_to(packed.after["b.bwt", -1])
        archive = await rig.open_archive(ref)
        await rig.archives.member(archive, "b.bwt")
        assert await rig.resident(archive, "a.fa") == [0, 1, 2, 3]
        assert rig.damaged == []


async def test_what_is_dropped_is_gone_from_the_disk_before_the_next_object_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut between the two would leave the old object's blocks under the new one's validator."""
    old, new = pack(THREE), pack([entry(item.name, len(item.data), "new") for item in THREE])
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(old, digest=new.digest)
        archive = await rig.open_archive(ref)
        await interrupt(rig, archive, served, "a.fa", BLOCK, old.after["b.bwt", 1])
        await rig.store.flush()
        ledger, events = rig.store.ledger, []
        apply, write = ledger.apply, ledger.set

        def note_apply(values: Any, forget: Any) -> None:
            gone = list(forget)
            events.append("blocks gone" if any(key.startswith("blocks/") for key in gone) else "")
            apply(values, iter(gone))

        def note_set(key: str, value: Any) -> None:
            events.append(f"validator {value['validator']}" if key == table_key(ref) else "")
            write(key, value)

        monkeypatch.setattr(ledger, "apply", note_apply)
        monkeypatch.setattr(ledger, "set", note_set)
        served, ref = rig.serve_archive(new)
        served.validator = '"2"'
        await rig.archives.pull(archive, list(new.data))
        assert events.index("blocks gone") < events.index('validator "2"')


async def test_nothing_is_stored_of_an_object_that_the_ledger_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)

        def refuse(_key: str, _value: Any) -> None:
            raise CacheError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(rig.store.ledger, "set", refuse)
            file = await rig.open_member(archive, "a.fa")
            assert await rig.read(file, 0, BLOCK) == packed.data["a.fa"][:BLOCK]
            assert rig.store.summary() == []


@pytest.mark.parametrize("lost", ["nothing", "ledger"])
async def test_the_member_table_outlives_the_daemon(tmp_path: Path, lost: str) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        await rig.archives.pull(archive, list(packed.data))
        members = archive.table.members
    _lose(lost, tmp_path)
    async with open_rig(tmp_path) as rig:
        archive = await rig.open_archive(ref)  # nothing is served
        assert await rig.archives.members(archive) == members
        file = await rig.open_member(archive, "c.sa")
        assert await rig.read(file, 0, 9 * BLOCK) == packed.data["c.sa"]
        with pytest.raises(OriginMissing):
            await rig.archives.member(archive, "z")
        assert rig.http.streams == 0


async def test_a_wrong_archives_sizes_do_not_outlive_it(tmp_path: Path) -> None:
    """No wrong size is ever shown: what a wrong archive said of its members is forgotten on the disk too."""
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed, digest="0" * 32)
        archive = await rig.open_archive(ref)
        await interrupt(rig, archive, served, "a.fa", BLOCK, packed.after["b.bwt", 1])
        # the second stream notes what is known so far before it goes on; it comes to the end, and is wrong
        with pytest.raises(IntegrityError):
            await rig.archives.members(archive)
        await rig.settled(archive)
        row = await trio.to_thread.run_sync(rig.store.ledger.get, table_key(ref))
        kept = MemberTable.from_json(row) if row is not None else MemberTable()
        assert kept.members == {}
        assert not kept.complete


async def test_tables_are_written_out_by_who_owns_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table changes on the trio thread; read from another one, it could change under the reader's eyes."""
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        _, ref = rig.serve_archive(packed)
        threads: set[int] = set()
        to_json = MemberTable.to_json

        def watched(table: MemberTable) -> dict[str, Any]:
            threads.add(threading.get_ident())
            return to_json(table)

        monkeypatch.setattr(MemberTable, "to_json", watched)
        archive = await rig.open_archive(ref)
        await rig.archives.pull(archive, ["a.fa"])
        await rig.settled(archive)
        assert threads == {threading.get_ident()}


# ---- two streams at once


@pytest.mark.parametrize("validator", ['"1"', ""])
async def test_what_was_evicted_behind_a_stream_comes_by_a_second_one(tmp_path: Path, validator: str) -> None:
    packed = pack([entry("a.fa", 4 * BLOCK), entry("b.bwt", 20 * BLOCK), entry("c.sa", BLOCK)])
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed)
        served.validator = validator
        served.tap.flow_to(packed.after["b.bwt", 9])
        archive = await rig.open_archive(ref)
        first = await rig.open_member(archive, "b.bwt")
        assert await rig.read(first, 0, BLOCK) == packed.data["b.bwt"][:BLOCK]
        again = await rig.open_member(archive, "a.fa")
        rig.store.evict(again.facts.content)
        results: list[object] = []

        async def read_both() -> None:
            results.extend(
                await gather(
                    partial(rig.read, again, BLOCK, 2 * BLOCK),
                    partial(rig.read, first, 18 * BLOCK, 2 * BLOCK),
                )
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_both)
            await eventually(lambda: rig.http.streams == 2)
            await trio.sleep(0.02)
            served.tap.open()
        assert results == [packed.data["a.fa"][BLOCK : 3 * BLOCK], packed.data["b.bwt"][18 * BLOCK :]]
        await rig.settled(archive)
        assert rig.http.streams == 2
        assert archive.table.complete
        assert set(archive.table.members) == {"a.fa", "b.bwt", "c.sa"}
        for name, data in packed.data.items():
            file = await rig.open_member(archive, name)
            assert await rig.read(file, 0, len(data)) == data


async def test_streams_of_two_versions_at_once_never_mix(tmp_path: Path) -> None:
    """The archive is rebuilt while it streams, and a second stream of the new one begins."""
    sizes = [("a.fa", 4 * BLOCK), ("b.bwt", 20 * BLOCK), ("c.sa", 3 * BLOCK)]
    old = pack([entry(name, size) for name, size in sizes])
    new = pack([entry(name, size, "new") for name, size in sizes])
    async with open_rig(tmp_path, linger=0.05) as rig:
        served, ref = rig.serve_archive(old)
        served.tap.flow_to(old.after["b.bwt", 9])
        archive = await rig.open_archive(ref)
        first = await rig.open_member(archive, "b.bwt")
        await rig.read(first, 0, BLOCK)
        again = await rig.open_member(archive, "a.fa")
        rig.store.evict(again.facts.content)
        old_object, url = served, ref.urls[0]
        served = rig.http.serve(url, new.body, validator='"2"')
        # the new one breaks off in the middle of b.bwt, the old one goes on to its end
        served.fault, served.fault_at = OriginUnavailable("broken off"), new.after["b.bwt", 4]
        results = await gather(partial(rig.read, again, BLOCK, 2 * BLOCK))
        old_object.tap.open()
        await rig.settled(archive)
        right = old.data["a.fa"][BLOCK : 3 * BLOCK]
        assert results[0] == right or isinstance(results[0], StaleContent | OriginUnavailable)
        for name in old.data:
            content = await rig.store.content(archive.content_id(name), len(old.data[name]))
            for index in await rig.resident(archive, name) if name in archive.table.members else []:
                assert content.read(index * BLOCK, BLOCK) == old.data[name][index * BLOCK : (index + 1) * BLOCK], name


async def test_a_stream_of_another_version_after_a_confirmed_one_never_mixes(tmp_path: Path) -> None:
    """All of the old one was confirmed, part of it evicted; the origin now has another, the catalog not yet."""
    old, new = pack(THREE), pack([entry(item.name, len(item.data), "new") for item in THREE])
    async with open_rig(tmp_path, linger=0.05) as rig:
        served, ref = rig.serve_archive(old)
        archive = await rig.open_archive(ref)
        await rig.archives.pull(archive, list(old.data))
        await rig.settled(archive)
        (await rig.content(archive, "b.bwt")).evict(Run(2, 5))
        served.body, served.validator = new.body, '"2"'
        file = await rig.open_member(archive, "b.bwt")
        try:
            data = await rig.read(file, 0, 5 * BLOCK)
        except (StaleContent, IntegrityError):
            pass
        else:
            assert data in (old.data["b.bwt"], new.data["b.bwt"])
        await rig.settled(archive)


async def confirmed_then_evicted(rig: Rig, old: Packed) -> tuple[Archive, Served]:
    """Have all of an archive confirmed, then some blocks of b.bwt evicted."""
    served, ref = rig.serve_archive(old)
    archive = await rig.open_archive(ref)
    await rig.archives.pull(archive, list(old.data))
    await rig.settled(archive)
    (await rig.content(archive, "b.bwt")).evict(Run(2, 5))
    return archive, served


async def test_the_object_that_was_confirmed_adds_to_itself_at_once(tmp_path: Path) -> None:
    old = pack(THREE)
    async with open_rig(tmp_path, linger=0.05) as rig:
        archive, _ = await confirmed_then_evicted(rig, old)
        file = await rig.open_member(archive, "b.bwt")
        assert await rig.read(file, 0, 5 * BLOCK) == old.data["b.bwt"]
        await rig.settled(archive)
        assert rig.http.streams == 2
        assert rig.rechecks == 0


async def test_an_object_archived_again_is_checked_before_a_byte_of_it_is_served(tmp_path: Path) -> None:
    """The same files in another archive: it goes by once to be checked and once to be stored."""
    old, again = pack(THREE), pack(THREE, level=9)
    assert old.digest != again.digest
    async with open_rig(tmp_path, linger=0.05) as rig:
        archive, served = await confirmed_then_evicted(rig, old)
        served.body, served.validator, rig.fresh = again.body, '"2"', again.digest
        served.tap.flow_to(len(again.body) - 1)
        file = await rig.open_member(archive, "b.bwt")
        got: list[object] = []

        async def read() -> None:
            got.extend(await gather(partial(rig.read, file, 0, 5 * BLOCK)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await eventually(lambda: served.fed == len(again.body) - 1)
            await trio.sleep(0.05)
            assert got == []
            assert await rig.resident(archive, "b.bwt") == [0, 1]
            served.tap.open()
        assert got == [old.data["b.bwt"]]
        await rig.settled(archive)
        assert rig.http.streams == 3
        assert archive.table.confirmed == '"2"'
        assert rig.damaged == []


async def test_a_rebuilt_object_is_refused_and_takes_nothing_along(tmp_path: Path) -> None:
    """What was confirmed stays readable; what is missing is an error, never the new version's bytes."""
    old, new = pack(THREE), pack([entry(item.name, len(item.data), "new") for item in THREE])
    async with open_rig(tmp_path, linger=0.05) as rig:
        archive, served = await confirmed_then_evicted(rig, old)
        served.body, served.validator = new.body, '"2"'
        file = await rig.open_member(archive, "b.bwt")
        with pytest.raises((StaleContent, IntegrityError)):
            await rig.read(file, 0, 5 * BLOCK)
        await rig.settled(archive)
        assert await rig.read(file, 0, 2 * BLOCK) == old.data["b.bwt"][: 2 * BLOCK]
        other = await rig.open_member(archive, "a.fa")
        assert await rig.read(other, 0, 4 * BLOCK) == old.data["a.fa"]
        assert await rig.resident(archive, "b.bwt") == [0, 1]
        assert archive.table.complete
        assert rig.damaged == []


async def test_who_has_read_what_was_taken_back_gets_an_error_not_the_rest_from_elsewhere(tmp_path: Path) -> None:
    old, new = pack(THREE), pack([entry(item.name, len(item.data), "new") for item in THREE])
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(old, digest=new.digest)
        served.tap.flow_to(old.after["a.fa", 1])
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "a.fa")
        assert await rig.read(file, 0, BLOCK) == old.data["a.fa"][:BLOCK]  # provisional
        served.tap.open()
        await rig.settled(archive)  # wrong: dropped
        served.body, served.validator = new.body, '"2"'
        with pytest.raises(StaleContent):
            await rig.read(file, BLOCK, BLOCK)
        fresh = await rig.open_member(archive, "a.fa")
        assert await rig.read(fresh, BLOCK, BLOCK) == new.data["a.fa"][BLOCK : 2 * BLOCK]
        await rig.settled(archive)
        with pytest.raises(StaleContent):  # still, though all of it is resident now
            await rig.read(file, 2 * BLOCK, 10)


# ---- pull


async def test_pull_makes_all_resident_by_one_stream(tmp_path: Path) -> None:
    packed = pack([*THREE, Entry("empty"), Entry("soft", link="a.fa")])
    async with open_rig(tmp_path) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        await rig.archives.pull(archive, [*packed.data, "soft"])
        await rig.settled(archive)
        await assert_all_there(rig, archive, packed)
        assert rig.http.streams == 1
        await rig.archives.pull(archive, list(packed.data))
        assert rig.http.streams == 1


async def test_pull_brings_back_what_a_stream_under_way_has_passed(tmp_path: Path) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed)
        served.tap.flow_to(packed.after["b.bwt", 1])
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "b.bwt")
        await rig.read(file, 0, 10)
        rig.store.evict(archive.content_id("a.fa"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.archives.pull, archive, list(packed.data))
            await trio.sleep(0.01)
            served.tap.open()
        await rig.settled(archive)
        await assert_all_there(rig, archive, packed)
        assert rig.http.streams == 2


async def test_pull_without_room_says_so(tmp_path: Path) -> None:
    packed = pack([entry("large", 40 * BLOCK)])
    async with open_rig(tmp_path, size=room_for(5), linger=0.05) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        with pytest.raises(CacheError, match="no room in the cache for large"):
            await rig.archives.pull(archive, ["large"])
        await rig.settled(archive)
        assert rig.http.streams <= 2


# ---- what ends a stream


@pytest.mark.parametrize("error", [OriginUnavailable("away"), OriginDenied("403"), OriginMissing("404")])
async def test_a_failed_stream_wakes_everybody_and_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed)
        served.tap.flow_to(packed.after["b.bwt", 1])
        served.fault, served.fault_at = error, packed.after["b.bwt", 1]  # type: ignore[assignment]
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "b.bwt")
        results: list[object] = []

        async def wait() -> None:
            results.extend(
                await gather(
                    partial(rig.read, file, 3 * BLOCK, BLOCK),
                    partial(rig.read, file, 4 * BLOCK, 7),
                    partial(rig.archives.member, archive, "c.sa"),
                    partial(rig.archives.members, archive),
                    partial(rig.archives.pull, archive, ["a.fa"]),
                )
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await eventually(lambda: len(rig.board) == 2)
            served.tap.open()
        assert results == [error] * 5
        await rig.settled(archive)
        served.fault = None
        assert await rig.read(file, 3 * BLOCK, BLOCK) == packed.data["b.bwt"][3 * BLOCK : 4 * BLOCK]
        await rig.settled(archive)


async def test_silence_ends_in_a_deadline(tmp_path: Path) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path, patience=0.05) as rig:
        served, ref = rig.serve_archive(packed)
        served.tap.flow_to(packed.after["a.fa", -1])
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "a.fa")
        with pytest.raises(DeadlineExceeded, match="nothing came in"):
            await rig.archives.member(archive, "b.bwt")
        with pytest.raises(DeadlineExceeded, match="nothing came in"):
            await rig.read(file, 0, 10)
        served.tap.open()
        assert await rig.read(file, 0, 10) == packed.data["a.fa"][:10]
        await rig.settled(archive)
        assert rig.http.streams == 1


async def test_an_unexpected_failure_is_logged_and_drops_what_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)

        def burst(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(ArchiveStream, "commit", burst)
        with pytest.raises(OriginUnavailable, match="unexpected ZeroDivisionError"):
            await rig.archives.members(archive)
        await rig.settled(archive)
        assert "failed unexpectedly" in caplog.text


@pytest.mark.parametrize("at", [("a.fa", -1), ("a.fa", 2), ("b.bwt", 4)])
async def test_the_daemons_end_leaves_nothing(tmp_path: Path, at: tuple[str, int]) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        served, ref = rig.serve_archive(packed)
        served.tap.flow_to(packed.after[at])
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "a.fa")
        with trio.move_on_after(0.02):
            await rig.read(file, 3 * BLOCK, 11)
            await rig.archives.member(archive, "c.sa")
    rig.assert_nothing_left(archive)


async def test_a_ledger_that_fails_ends_no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropping what came needs the block maps; a ledger that can't give them must not take the daemon along."""
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        _, ref = rig.serve_archive(packed, digest="0" * 32)
        archive = await rig.open_archive(ref)

        async def refuse(*_: object) -> None:
            raise CacheError("the ledger can't be read")

        def arm(_: object) -> str | None:
            monkeypatch.setattr(rig.store, "content", refuse)
            return None

        async def recheck(ref: object) -> str | None:
            await trio.lowlevel.checkpoint()
            return arm(ref)

        monkeypatch.setattr(rig.archives._judge, "_recheck", recheck)
        with pytest.raises(IntegrityError):
            await rig.archives.members(archive)
        await eventually(lambda: not archive.streams)
        monkeypatch.undo()
        await rig.settled(archive)


# ---- tables in memory


async def test_opening_at_once_gives_one_object(tmp_path: Path) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        _, ref = rig.serve_archive(packed)
        opened = await gather(*(partial(rig.open_archive, ref) for _ in range(5)))
        assert len({id(archive) for archive in opened}) == 1
        assert rig.archives.known(ref) is opened[0]


async def test_an_archive_that_is_in_use_stays_one_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tables are looked at meanwhile: two objects would mean two streams."""
    monkeypatch.setattr("refgenfs.reader.openarchives.TABLES", 2)
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "a.fa")
        await rig.archives.pull(archive, list(packed.data))
        for name in "xyz":
            await rig.open_archive(rig.serve_archive(packed, name=name)[1])
        assert file.archive is archive
        assert await rig.open_archive(ref) is archive


async def test_facts_have_the_archives_identity(tmp_path: Path) -> None:
    packed = pack(THREE)
    async with open_rig(tmp_path) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        member = await rig.archives.member(archive, "a.fa")
        assert facts_of(archive, member).content == archive.content_id("a.fa")
        moved = rig.serve_archive(packed, digest="f" * 32)[1]
        await rig.settled(archive) if not archive.streams else None
        assert (await rig.open_archive(moved)).table is archive.table
