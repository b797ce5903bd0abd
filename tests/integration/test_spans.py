"""Members of archives that come by spans, over a real store and an origin that does as the test says.

Promises:
- the index of an archive that was right is made as it goes by, and kept when its members are evicted;
- what is evicted comes back by the spans that have it, each fetched once, whoever asks;
- an index that the origin offers makes names and sizes known, and bytes read, with no stream;
- what does not fit the index is never served: the archive is streamed and judged instead;
- an index that is wrong, hostile or lost costs nothing but a stream.
"""

from __future__ import annotations

import gzip
import hashlib
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from refgenfs.cache.keeping import bound_of
from refgenfs.core.content import BLOCK, ArchiveRef, Run, block_count
from refgenfs.core.errors import (
    CacheError,
    IntegrityError,
    OriginDenied,
    OriginMissing,
    OriginUnavailable,
    RefgenfsError,
    StaleContent,
)
from refgenfs.core.seekindex import SeekIndex
from refgenfs.core.spanplan import plan_runs
from refgenfs.fetch.answers import OriginFailing, OriginUnusable
from refgenfs.reader.archive import Archive
from refgenfs.reader.budget import Claim
from refgenfs.reader.trust import drop_all
from tests.support.scripted import (
    MIB,
    SOURCE,
    Entry,
    Packed,
    Rig,
    Served,
    entry,
    eventually,
    gather,
    open_rig,
    pack,
    room_for,
)
from tests.support.seekindexes import build_index

SPACING = 400_000
SIZES = {"a.fa": 9 * BLOCK + 11, "b.bwt": 20 * BLOCK, "c.sa": 6 * BLOCK + 1, "d/e": 700}
PACKED = pack([entry(name, size) for name, size in SIZES.items()])
OTHER = pack([entry(name, size, "other") for name, size in SIZES.items()])
INDEX_URL = "http://origin/a.tgz.seekidx"


def index_of(packed: Packed, folder: Path) -> bytes:
    """Return the index file of an archive."""
    folder.mkdir(exist_ok=True)
    return build_index([packed.body], folder, SPACING)[0]


async def have_index(rig: Rig, packed: Packed = PACKED) -> tuple[Served, Archive]:
    """Have an archive go by, and all of its members evicted."""
    served, ref = rig.serve_archive(packed)
    archive = await rig.open_archive(ref)
    await rig.archives.pull(archive, list(packed.data))
    await rig.settled(archive)
    assert archive.index is not None
    evict(rig, archive, packed)
    rig.http.fetched.clear()
    rig.http.streams = 0
    return served, archive


def evict(rig: Rig, archive: Archive, packed: Packed = PACKED) -> None:
    """Evict all members."""
    for name in packed.data:
        rig.store.evict(archive.content_id(name))


def fetched(rig: Rig) -> int:
    """Return the bytes that came since the index was there."""
    return rig.http.fetched.get(SOURCE, 0)


# ---- made as it goes by


async def test_what_was_evicted_comes_back_by_its_spans(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        _, archive = await have_index(rig)
        file = await rig.open_member(archive, "b.bwt")
        at = 11 * BLOCK + 5
        assert await rig.read(file, at, 1000) == PACKED.data["b.bwt"][at : at + 1000]
        await rig.settled(archive)
        assert rig.http.streams == 0
        assert 0 < fetched(rig) < 2 * SPACING + BLOCK
        assert len(rig.http.parts) == 1


async def test_a_look_at_a_members_head_costs_its_head(tmp_path: Path) -> None:
    """The kernel asks for 128 KiB when a program reads a file's first bytes; what follows comes when it goes on."""
    packed = pack([entry("a.fa", 80 * BLOCK), entry("a.fa.fai", 700), entry("b", 80 * BLOCK)])
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        _, archive = await have_index(rig, packed)
        file = await rig.open_member(archive, "a.fa")
        assert await rig.read(file, 0, 2 * BLOCK) == packed.data["a.fa"][: 2 * BLOCK]
        await rig.settled(archive)
        looked = fetched(rig)
        assert looked <= 4 * BLOCK
        for at in range(2 * BLOCK, 24 * BLOCK, 2 * BLOCK):
            await rig.read(file, at, 2 * BLOCK)
        await rig.settled(archive)
        assert len(await rig.resident(archive, "a.fa")) > 32, "who goes on is read ahead for"


async def test_everything_reads_right_by_spans(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        _, archive = await have_index(rig)
        for name, data in PACKED.data.items():
            file = await rig.open_member(archive, name)
            parts = [await rig.read(file, at, 100_000) for at in range(0, len(data), 100_000)]
            assert b"".join(parts) == data
        await rig.settled(archive)
        assert rig.http.streams == 0
        assert fetched(rig) < 1.1 * len(PACKED.body), "each span comes about once, also those that blocks straddle"


async def test_whatever_is_complete_in_a_span_is_stored(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        _, archive = await have_index(rig)
        file = await rig.open_member(archive, "b.bwt")
        await rig.read(file, 11 * BLOCK, 10)
        await rig.settled(archive)
        there = await rig.resident(archive, "b.bwt")
        assert 11 in there
        assert len(there) > 1
        before = fetched(rig)
        for index in there:
            got = await rig.read(file, index * BLOCK, BLOCK)
            assert got == PACKED.data["b.bwt"][index * BLOCK : (index + 1) * BLOCK]
        assert fetched(rig) == before or max(there) + 1 in await rig.resident(archive, "b.bwt")


async def test_one_fetch_whoever_asks(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        served, archive = await have_index(rig)
        served.tap.shut()
        file = await rig.open_member(archive, "b.bwt")
        other = await rig.open_member(archive, "b.bwt")
        results: list[object] = []

        async def read() -> None:
            reads = [partial(rig.read, one, 12 * BLOCK + at, 10) for one in (file, other) for at in (0, 9, 700)]
            results.extend(await gather(*reads))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await eventually(lambda: rig.http.parts)
            await trio.sleep(0.05)
            served.tap.open()
        body = PACKED.data["b.bwt"][12 * BLOCK :]
        assert results == [body[at : at + 10] for at in (0, 9, 700)] * 2
        assert len(rig.http.parts) == 1
        await rig.settled(archive)


async def test_the_index_outlives_the_daemon_and_the_members(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        await have_index(rig)
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        _, ref = rig.serve_archive(PACKED)
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "c.sa")
        assert await rig.read(file, 3 * BLOCK, BLOCK) == PACKED.data["c.sa"][3 * BLOCK : 4 * BLOCK]
        await rig.settled(archive)
        assert rig.http.streams == 0
        assert not list((tmp_path / "scratch").iterdir())


async def test_the_index_is_kept_when_the_cache_is_full_of_other_things(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING, size=room_for(200)) as rig:
        _, archive = await have_index(rig)
        assert archive.index is not None
        size = archive.index.size
        _, facts = rig.serve_file("plain", 300 * BLOCK)
        file = await rig.reader.open(facts)
        for at in range(0, facts.size, 1 << 20):
            await rig.read(file, at, 1 << 20)
        assert rig.store.evictions > 0
        assert size < bound_of(rig.store.quota)
        assert rig.store.resident_bytes(archive.index.content) == size
        assert not any(one.pinned for one in rig.store.summary())


async def test_clearing_the_cache_takes_the_index_too(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        _, archive = await have_index(rig)
        rig.store.clear()
        assert rig.store.summary() == []
        file = await rig.open_member(archive, "c.sa")
        assert await rig.read(file, 3 * BLOCK, BLOCK) == PACKED.data["c.sa"][3 * BLOCK : 4 * BLOCK]
        await rig.settled(archive)
        assert rig.http.streams == 1
        assert archive.index is not None, "made anew"


async def test_a_damaged_index_costs_a_stream(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        _, archive = await have_index(rig)
        assert archive.index is not None
        path = tmp_path / "contents" / archive.index.content
        body = bytearray(path.read_bytes())
        body[200] ^= 1
    path.write_bytes(body)
    (tmp_path / "clean").unlink()
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        _, ref = rig.serve_archive(PACKED)
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "c.sa")
        assert await rig.read(file, 3 * BLOCK, BLOCK) == PACKED.data["c.sa"][3 * BLOCK : 4 * BLOCK]
        await rig.settled(archive)
        assert rig.http.streams == 1
        assert archive.index is not None


async def test_a_wrong_archive_leaves_no_index(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        _, ref = rig.serve_archive(PACKED, digest="0" * 32)
        archive = await rig.open_archive(ref)
        with pytest.raises(IntegrityError):
            await rig.archives.members(archive)
        await rig.settled(archive)
        assert archive.index is None
        assert not any(one.resident for one in rig.store.summary())
        assert not list((tmp_path / "scratch").iterdir())


async def test_a_cache_with_no_room_for_the_index_streams_as_before(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING, size=room_for(2), linger=0.05) as rig:
        _, ref = rig.serve_archive(PACKED)
        archive = await rig.open_archive(ref)
        for name in ("c.sa", "a.fa"):
            file = await rig.open_member(archive, name)
            assert await rig.read(file, 0, 6 * BLOCK) == PACKED.data[name][: 6 * BLOCK]
            assert rig.store.used <= rig.store.quota
        await rig.settled(archive)


async def test_with_no_room_spans_are_read_uncached(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        _, archive = await have_index(rig)
        for one in rig.store.summary():
            assert one.size
        file = await rig.open_member(archive, "b.bwt")
        rig.store._room.reserve = lambda *_: None  # type: ignore[method-assign]
        assert await rig.read(file, 12 * BLOCK, BLOCK) == PACKED.data["b.bwt"][12 * BLOCK : 13 * BLOCK]
        await rig.settled(archive)
        assert rig.http.streams == 0
        assert await rig.resident(archive, "b.bwt") == []
        data = PACKED.data["b.bwt"]
        got = [await rig.read(file, at, 65_536) for at in range(0, len(data), 65_536)]
        assert b"".join(got) == data
        assert fetched(rig) < 1.5 * len(data), "what came along is kept in memory for who reads on"
        await rig.settled(archive)


async def test_a_pull_of_a_little_comes_by_spans_and_of_most_by_one_stream(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        _, archive = await have_index(rig)
        await rig.archives.pull(archive, ["c.sa"])
        assert rig.http.streams == 0
        assert await rig.resident(archive, "c.sa") == list(range(7))
        rig.http.parts.clear()
        await rig.archives.pull(archive, list(PACKED.data))
        await rig.settled(archive)
        assert rig.http.streams == 1
        assert rig.http.parts == []


# ---- what does not fit


async def assert_never_mixed(rig: Rig, archive: Archive, name: str, reads: Sequence[int]) -> list[bool]:
    """Read blocks; each is the first archive's, or an error. Say of each whether it could be read."""
    file = await rig.open_member(archive, name)
    came = []
    for index in reads:
        try:
            data = await rig.read(file, index * BLOCK, BLOCK)
        except (StaleContent, IntegrityError):
            came.append(False)
        else:
            assert data == PACKED.data[name][index * BLOCK : (index + 1) * BLOCK]
            came.append(True)
    return came


@pytest.mark.parametrize("validator", ['"1"', '"2"'])
async def test_another_archive_behind_the_index_is_never_served(tmp_path: Path, validator: str) -> None:
    """The origin has another archive of the same size; the catalog does not know it."""
    async with open_rig(tmp_path, spacing=SPACING, linger=0.05) as rig:
        served, archive = await have_index(rig)
        file = await rig.open_member(archive, "b.bwt")
        assert await rig.read(file, 0, BLOCK) == PACKED.data["b.bwt"][:BLOCK]
        body = OTHER.body[: len(PACKED.body)].ljust(len(PACKED.body), b"\0")
        served.body, served.validator = body, validator
        assert await assert_never_mixed(rig, archive, "b.bwt", [0, 15, 16]) == [True, False, False]
        await rig.settled(archive)
        assert archive.index is None
        assert rig.http.streams >= 1


async def test_an_archive_of_another_size_is_streamed_and_judged(tmp_path: Path) -> None:
    """The same files, archived again: the reader notices nothing, and there is a new index."""
    again = pack([entry(name, size) for name, size in SIZES.items()], level=9, top="again")
    assert again.digest != PACKED.digest
    async with open_rig(tmp_path, spacing=SPACING, linger=0.05) as rig:
        served, archive = await have_index(rig)
        served.body, served.validator, rig.fresh = again.body + b"\0", '"2"', None
        rig.fresh = hashlib.md5(served.body).hexdigest()
        assert await assert_never_mixed(rig, archive, "b.bwt", [3, 15]) == [True, True]
        await rig.settled(archive)
        assert rig.http.streams == 2, "once to be checked, once to be stored"
        assert archive.index is not None
        assert archive.index.archive == rig.fresh
        evict(rig, archive)
        assert await assert_never_mixed(rig, archive, "a.fa", [2]) == [True]
        assert rig.http.streams == 2


async def test_another_etag_on_the_same_bytes_is_the_same_archive(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        served, archive = await have_index(rig)
        served.validator = '"moved"'
        assert await assert_never_mixed(rig, archive, "b.bwt", [3, 15]) == [True, True]
        assert rig.http.streams == 0


async def test_a_bit_that_is_hurt_on_its_way_once_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        _, archive = await have_index(rig)
        real, hurt = rig.http.fetch_part, [True]

        async def fetch_part(*arguments: Any, **options: Any) -> Any:
            part = await real(*arguments, **options)
            if hurt:
                hurt.pop()
                part.data[len(part.data) // 2] ^= 1
            return part

        monkeypatch.setattr(rig.http, "fetch_part", fetch_part)
        assert await assert_never_mixed(rig, archive, "b.bwt", [3]) == [True]
        await rig.settled(archive)
        assert rig.http.streams == 0
        assert archive.index is not None


async def test_an_origin_without_ranges_streams(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING, linger=0.05) as rig:
        served, archive = await have_index(rig)
        served.ranges = False
        assert await assert_never_mixed(rig, archive, "b.bwt", [3, 15]) == [True, True]
        await rig.settled(archive)
        assert rig.http.streams == 1
        assert archive.index is not None


async def test_an_origin_that_is_away_is_an_error_and_not_a_stream(tmp_path: Path) -> None:
    away = OriginUnavailable("away")
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        served, archive = await have_index(rig)
        served.fault = away
        file = await rig.open_member(archive, "b.bwt")
        assert await gather(partial(rig.read, file, 3 * BLOCK, 1)) == [away]
        await rig.settled(archive)
        assert rig.http.streams == 0
        served.fault = None
        assert await assert_never_mixed(rig, archive, "b.bwt", [3]) == [True]


# ---- offered by the origin


def offer(rig: Rig, index: bytes, packed: Packed = PACKED, **options: Any) -> tuple[Served, ArchiveRef]:
    """Put an archive and an index beside it at the origin."""
    served, ref = rig.serve_archive(packed, **options)
    rig.http.serve(INDEX_URL, index)
    return served, ArchiveRef(ref.source, ref.key, ref.asset_digest, ref.archive_digest, ref.urls, (INDEX_URL,))


async def test_with_an_offered_index_the_first_read_of_all_fetches_its_spans_only(tmp_path: Path) -> None:
    index = index_of(PACKED, tmp_path / "made")
    async with open_rig(tmp_path / "cache", spacing=SPACING) as rig:
        _, ref = offer(rig, index)
        archive = await rig.open_archive(ref)
        assert (await rig.archives.member(archive, "b.bwt")).size == SIZES["b.bwt"]
        assert set(await rig.archives.members(archive)) >= set(SIZES)
        assert rig.http.parts == []
        file = await rig.open_member(archive, "b.bwt")
        assert await rig.read(file, 15 * BLOCK, BLOCK) == PACKED.data["b.bwt"][15 * BLOCK : 16 * BLOCK]
        await rig.settled(archive)
        assert rig.http.streams == 0
        assert len(rig.http.parts) == 1
        assert fetched(rig) < len(index) + 3 * SPACING
        assert rig.http.asked == [INDEX_URL]
    async with open_rig(tmp_path / "cache", spacing=SPACING) as rig:  # nobody is asked again
        _, ref = offer(rig, index)
        archive = await rig.open_archive(ref)
        assert (await rig.archives.member(archive, "b.bwt")).size == SIZES["b.bwt"]
        file = await rig.open_member(archive, "b.bwt")
        assert await rig.read(file, 15 * BLOCK, BLOCK) == PACKED.data["b.bwt"][15 * BLOCK : 16 * BLOCK]
        assert rig.http.asked == []
        assert fetched(rig) == 0


async def test_a_file_that_is_open_already_is_read_by_an_index_that_is_offered(tmp_path: Path) -> None:
    """The members are known, nothing is resident, and nobody has asked yet: as after `cache clear`."""
    index = index_of(PACKED, tmp_path / "made")
    async with open_rig(tmp_path / "cache", spacing=None) as rig:
        _, ref = offer(rig, index)
        rig.http.objects.pop(INDEX_URL)
        archive = await rig.open_archive(ref)
        await rig.archives.pull(archive, list(PACKED.data))
        await rig.settled(archive)
        evict(rig, archive)
        rig.http.serve(INDEX_URL, index)
        rig.http.streams = 0
        assert await assert_never_mixed(rig, archive, "b.bwt", [3]) == [True]
        assert rig.http.streams == 1, "it said yesterday that it has none"
        await rig.settled(archive)
        evict(rig, archive)
        rig.wall += 25 * 3600
        assert await assert_never_mixed(rig, archive, "b.bwt", [3]) == [True]
        assert rig.http.streams == 1
        assert len(rig.http.parts) == 1
        await rig.settled(archive)


async def test_a_clock_that_was_ahead_does_not_hide_an_index_for_good(tmp_path: Path) -> None:
    index = index_of(PACKED, tmp_path / "made")
    async with open_rig(tmp_path / "cache", spacing=None) as rig:
        _, ref = offer(rig, index)
        rig.http.objects.pop(INDEX_URL)
        rig.wall += 50 * 365 * 24 * 3600
        archive = await rig.open_archive(ref)
        await rig.archives.members(archive)
        await rig.settled(archive)
        evict(rig, archive)
        assert rig.http.asked == [INDEX_URL]
    async with open_rig(tmp_path / "cache", spacing=None) as rig:
        _, ref = offer(rig, index)
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "b.bwt")
        assert await rig.read(file, 15 * BLOCK, BLOCK) == PACKED.data["b.bwt"][15 * BLOCK : 16 * BLOCK]
        await rig.settled(archive)
        assert rig.http.asked == [INDEX_URL]


@pytest.mark.parametrize("harm", ["other archive", "cut short", "no index", "damaged", "huge"])
async def test_an_index_that_is_none_of_this_archive_is_ignored(tmp_path: Path, harm: str) -> None:
    index = index_of(OTHER if harm == "other archive" else PACKED, tmp_path / "made")
    bad = {
        "other archive": index,
        "cut short": index[:100],
        "no index": b"<html>" * 100,
        "damaged": index[:150] + bytes([index[150] ^ 1]) + index[151:],
        "huge": index[:12] + b"\xff" * 60 + index[72:],
    }[harm]
    async with open_rig(tmp_path / "cache", spacing=SPACING) as rig:
        _, ref = offer(rig, bad)
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "b.bwt")
        assert await rig.read(file, 15 * BLOCK, BLOCK) == PACKED.data["b.bwt"][15 * BLOCK : 16 * BLOCK]
        await rig.settled(archive)
        assert rig.http.streams == 1
        assert rig.http.asked == [INDEX_URL]
        assert archive.index is not None
        assert not archive.index.offered


async def test_an_index_whose_windows_are_damaged_is_dropped(tmp_path: Path) -> None:
    index = index_of(PACKED, tmp_path / "made")
    head = SeekIndex.parse(index).head_size
    bad = index[:head] + bytes(len(index) - head)
    async with open_rig(tmp_path / "cache", spacing=SPACING) as rig:
        _, ref = offer(rig, bad)
        archive = await rig.open_archive(ref)
        assert await assert_never_mixed(rig, archive, "b.bwt", [15, 3]) == [True, True]
        await rig.settled(archive)
        assert rig.http.streams == 1


@pytest.mark.parametrize("parsed", [True, False])
@pytest.mark.parametrize("error", [StaleContent, OriginMissing, OriginDenied, OriginUnusable, OriginFailing])
async def test_an_offered_index_that_is_replaced_or_gone_costs_a_stream(
    tmp_path: Path, error: type[RefgenfsError], parsed: bool
) -> None:
    """What the origin answers about the index says nothing of the archive."""
    index = index_of(PACKED, tmp_path / "made")
    async with open_rig(tmp_path / "cache", spacing=SPACING) as rig:
        _, ref = offer(rig, index)
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "b.bwt")
        assert await rig.read(file, 15 * BLOCK, BLOCK) == PACKED.data["b.bwt"][15 * BLOCK : 16 * BLOCK]
        assert archive.index is not None
        rig.store.evict(archive.index.content)
        if not parsed:
            rig.archives._indexes._maps.clear()
        rig.http.objects[INDEX_URL].fault = error(INDEX_URL)
        assert await rig.read(file, 2 * BLOCK, BLOCK) == PACKED.data["b.bwt"][2 * BLOCK : 3 * BLOCK]
        await rig.settled(archive)
        assert rig.http.streams == 1
        assert rig.stale == []
        assert archive.index is not None
        assert not archive.index.offered


async def test_an_origin_that_is_away_with_its_index_is_an_error(tmp_path: Path) -> None:
    """And what answers for the archive says so, in bounded time; nothing is believed of the index meanwhile."""
    index, away = index_of(PACKED, tmp_path / "made"), OriginUnavailable("away")
    async with open_rig(tmp_path / "cache", spacing=SPACING) as rig:
        served, ref = offer(rig, index)
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "b.bwt")
        served.fault = rig.http.objects[INDEX_URL].fault = away
        assert archive.index is not None
        rig.store.evict(archive.index.content)
        assert await gather(partial(rig.read, file, 3 * BLOCK, 1)) == [away]
        await rig.settled(archive)
        assert rig.http.streams == 0
        served.fault = rig.http.objects[INDEX_URL].fault = None
        assert await assert_never_mixed(rig, archive, "b.bwt", [3]) == [True]
        assert rig.http.streams == 0


async def test_tables_that_come_slowly_are_no_silence(tmp_path: Path) -> None:
    """As long as bytes of the index come in, who waits for the archive's waits."""
    patience, names = 1.0, random.Random(1)
    many = pack([entry("b.bwt", 3 * BLOCK), *(Entry(f"{names.getrandbits(256):x}") for _ in range(8000))])
    index = index_of(many, tmp_path / "made")
    assert SeekIndex.parse(index).head_size > 4 * BLOCK
    async with open_rig(tmp_path / "cache", spacing=SPACING, size=256 * MIB, patience=patience) as rig:
        _, ref = offer(rig, index, many)
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "b.bwt")
        assert archive.index is not None
        rig.store.evict(archive.index.content)
        rig.archives._indexes._maps.clear()
        tap = rig.http.objects[INDEX_URL].tap
        tap.shut()
        got: list[object] = []

        async def read() -> None:
            got.extend(await gather(partial(rig.read, file, 0, 100)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for at in range(1, len(index) // BLOCK + 1, 2):
                tap.flow_to(at * BLOCK)
                await trio.sleep(patience * 0.6)
            tap.open()
        assert got == [many.data["b.bwt"][:100]]
        assert rig.http.streams == 0
        await rig.settled(archive)


async def test_what_is_taken_back_while_spans_fly_is_brought_again(tmp_path: Path) -> None:
    """By a stream, and who waits for it notices nothing: the origin has the same version still."""
    index = index_of(PACKED, tmp_path / "made")
    async with open_rig(tmp_path / "cache", spacing=SPACING) as rig:
        served, ref = offer(rig, index)
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "b.bwt")
        served.tap.shut()
        got: list[object] = []

        async def read() -> None:
            got.extend(await gather(partial(rig.read, file, 15 * BLOCK, 10)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await eventually(lambda: len(rig.http.parts) == 1)
            await drop_all(archive, rig.store)
            served.tap.open()
        assert got == [PACKED.data["b.bwt"][15 * BLOCK : 15 * BLOCK + 10]]
        assert rig.http.streams == 1
        await rig.settled(archive)


async def test_blocks_that_nobody_asked_for_and_that_find_no_room_have_no_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for one of them while the rest flies does not wait for that."""
    monkeypatch.setattr("refgenfs.reader.spans.plan_runs", lambda index, spans, **_: plan_runs(index, spans, 1))
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        served, archive = await have_index(rig)
        rig.store._room.reserve = lambda *_: None  # type: ignore[method-assign]
        cid, asked = archive.content_id("b.bwt"), 2
        served.tap.shut()
        rig.archives.join(archive, cid, "b.bwt", asked)
        rig.archives.prefetch(archive, "b.bwt", range(asked + 1, 20))
        await eventually(lambda: rig.http.parts)
        await trio.sleep(0.02)
        assert len(rig.http.parts) == 1
        assert rig.board.find(cid, asked) is not None
        assert rig.board.find(cid, 17) is None
        served.tap.open()
        await rig.settled(archive)


async def test_who_waits_is_told_at_once_when_nothing_can_bring_it(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        served, archive = await have_index(rig)
        served.ranges = False

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        rig.archives._spans._stream = fail
        file = await rig.open_member(archive, "b.bwt")
        with trio.fail_after(2):
            (got,) = await gather(partial(rig.read, file, 3 * BLOCK, 1))
        assert isinstance(got, OriginUnavailable)
        assert "ZeroDivisionError" in str(got)
        await rig.settled(archive)


async def test_an_offered_index_of_an_archive_that_is_another_drops_what_came(tmp_path: Path) -> None:
    """The index is the catalog's archive's, the object is not: nothing of it is served."""
    index = index_of(PACKED, tmp_path / "made")
    async with open_rig(tmp_path / "cache", spacing=SPACING) as rig:
        served, ref = offer(rig, index)
        served.body = OTHER.body[: len(PACKED.body)].ljust(len(PACKED.body), b"\0")
        archive = await rig.open_archive(ref)
        assert await assert_never_mixed(rig, archive, "b.bwt", [15, 3]) == [False, False]
        await rig.settled(archive)


async def test_an_object_that_is_replaced_under_an_offered_index_is_stale_for_who_has_read(tmp_path: Path) -> None:
    index = index_of(PACKED, tmp_path / "made")
    async with open_rig(tmp_path / "cache", spacing=SPACING) as rig:
        served, ref = offer(rig, index)
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "b.bwt")
        assert await rig.read(file, 15 * BLOCK, BLOCK) == PACKED.data["b.bwt"][15 * BLOCK : 16 * BLOCK]
        served.body, served.validator = OTHER.body, '"2"'
        with pytest.raises((StaleContent, IntegrityError)):
            await rig.read(file, 2 * BLOCK, BLOCK)
        await rig.settled(archive)
        assert rig.damaged


async def test_what_can_not_be_tied_to_its_object_is_served_and_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next life would not know which archive these blocks are of."""
    index = index_of(PACKED, tmp_path / "made")
    async with open_rig(tmp_path / "cache", spacing=SPACING) as rig:
        served, ref = offer(rig, index)
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "b.bwt")

        def refuse(key: str, _value: object) -> None:
            raise CacheError(f"no room for {key}")

        with monkeypatch.context() as patched:
            patched.setattr(rig.store.ledger, "set", refuse)
            assert await rig.read(file, 15 * BLOCK, BLOCK) == PACKED.data["b.bwt"][15 * BLOCK : 16 * BLOCK]
            assert await rig.read(file, 2 * BLOCK, BLOCK) == PACKED.data["b.bwt"][2 * BLOCK : 3 * BLOCK]
            await rig.settled(archive)
            for name in ("a.fa", "b.bwt", "c.sa"):
                assert await rig.resident(archive, name) == []
        assert await rig.read(file, 9 * BLOCK, BLOCK) == PACKED.data["b.bwt"][9 * BLOCK : 10 * BLOCK]
        await rig.settled(archive)
        assert 9 in await rig.resident(archive, "b.bwt")
        assert archive.recorded == served.validator
        assert rig.http.streams == 0


async def test_a_stream_confirms_what_came_by_an_offered_index(tmp_path: Path) -> None:
    index = index_of(PACKED, tmp_path / "made")
    async with open_rig(tmp_path / "cache", spacing=SPACING) as rig:
        _, ref = offer(rig, index)
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "b.bwt")
        await rig.read(file, 15 * BLOCK, BLOCK)
        await rig.archives.pull(archive, list(PACKED.data))
        await rig.settled(archive)
        assert rig.http.streams == 1
        assert archive.table.judged
        assert rig.damaged == []
        assert await rig.read(file, 0, 20 * BLOCK) == PACKED.data["b.bwt"]


async def test_what_is_left_of_a_block_is_of_one_index(tmp_path: Path) -> None:
    """Two indexes of one archive number its spans each in its own way."""
    packed = Packed(gzip.compress(gzip.decompress(PACKED.body), 1), {}, PACKED.data)  # its points are within blocks
    index = index_of(packed, tmp_path / "made")
    async with open_rig(tmp_path / "cache", spacing=SPACING * 9 // 10) as rig:
        _, ref = offer(rig, index, packed)
        archive = await rig.open_archive(ref)
        for name, at in (("a.fa", 8), ("b.bwt", 9)):
            file = await rig.open_member(archive, name)
            await rig.read(file, at * BLOCK, BLOCK)
            await rig.settled(archive)
        assert rig.archives._spans._seams
        await rig.archives._indexes.forget(archive, "the test says so")
        await rig.archives.pull(archive, list(packed.data))
        await rig.settled(archive)
        assert archive.index is not None
        assert not archive.index.offered
        evict(rig, archive, packed)
        for name, data in packed.data.items():
            for at in range(0, len(data), BLOCK):
                file = await rig.open_member(archive, name)
                assert await rig.read(file, at, BLOCK) == data[at : at + BLOCK], (name, at // BLOCK)
            evict(rig, archive, packed)
        await rig.settled(archive)


async def test_an_origin_that_does_not_say_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refgenfs.reader.indexes.ASK_WAIT", 0.05)
    index = index_of(PACKED, tmp_path / "made")
    async with open_rig(tmp_path / "cache", spacing=SPACING) as rig:
        _, ref = offer(rig, index)
        rig.http.objects[INDEX_URL].tap.shut()
        archive = await rig.open_archive(ref)
        with trio.fail_after(20):
            file = await rig.open_member(archive, "b.bwt")
            assert await rig.read(file, 0, BLOCK) == PACKED.data["b.bwt"][:BLOCK]
        assert rig.http.streams == 1
        rig.http.objects[INDEX_URL].tap.open()
        await rig.settled(archive)


async def test_an_archive_of_unknown_digest_has_no_index_asked_for(tmp_path: Path) -> None:
    async with open_rig(tmp_path / "cache", spacing=SPACING) as rig:
        _, ref = offer(rig, b"", digest="")
        archive = await rig.open_archive(ref)
        await rig.archives.members(archive)
        assert rig.http.asked == []
        await rig.settled(archive)


# ---- one budget of memory


async def test_ranges_spans_and_a_stream_share_a_budget_and_nobody_starves(tmp_path: Path) -> None:
    """Each kind is read to its end while the others are read without a pause, and no more is held than there is."""
    async with open_rig(tmp_path, spacing=SPACING, memory=4 * MIB, patience=30.0) as rig:
        _, archive = await have_index(rig)
        plain, facts = rig.serve_file("plain", 160 * BLOCK)
        _, other = rig.serve_archive(OTHER, name="other")
        held, claim = [0], rig.budget._claim

        def noted(nbytes: int) -> Claim:
            made = claim(nbytes)
            held.append(rig.budget.held)
            return made

        rig.budget._claim = noted  # type: ignore[method-assign]
        done: set[str] = set()

        async def read(kind: str, rounds: int, once: Callable[[int], Awaitable[None]]) -> None:
            turn = 0
            while turn < rounds or len(done) < 3:
                await once(turn)
                turn += 1
                if turn == rounds:
                    done.add(kind)

        async def by_ranges(turn: int) -> None:
            at = turn * 17 % 140 * BLOCK
            assert await rig.read_once(facts, at, 16 * BLOCK) == plain.body[at : at + 16 * BLOCK]
            rig.store.evict(facts.content)

        async def by_spans(turn: int) -> None:
            at = turn * 7 % 20 * BLOCK
            file = await rig.open_member(archive, "b.bwt")
            assert await rig.read(file, at, BLOCK) == PACKED.data["b.bwt"][at : at + BLOCK]
            rig.store.evict(archive.content_id("b.bwt"))

        async def by_stream(turn: int) -> None:
            streamed = await rig.open_archive(other)
            file = await rig.open_member(streamed, "c.sa")
            assert await rig.read(file, 0, 6 * BLOCK) == OTHER.data["c.sa"][: 6 * BLOCK]
            await rig.settled_streams(streamed)
            if streamed.index is not None:
                await rig.archives._indexes.forget(streamed, "the test says so")
            rig.store.evict(streamed.content_id("c.sa"))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(read, "ranges", 12, by_ranges)
                    nursery.start_soon(read, "spans", 12, by_spans)
                nursery.start_soon(read, "stream", 3, by_stream)
        assert max(held) <= rig.budget.size
        assert max(held) > rig.budget.size // 2
        assert rig.http.streams >= 3
        await rig.settled(archive)


# ---- streams and spans


async def test_a_stream_that_is_near_is_joined_and_one_that_is_far_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refgenfs.reader.archives.FAR", 10 * BLOCK)
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        served, archive = await have_index(rig)
        served.tap.flow_to(PACKED.after["a.fa", 2])
        stream = rig.archives._start(archive)
        stream.eager = True
        await eventually(lambda: stream.position > 2 * BLOCK)
        near = await rig.open_member(archive, "a.fa")
        far = await rig.open_member(archive, "c.sa")
        results: list[object] = []

        async def read() -> None:
            results.extend(await gather(partial(rig.read, near, 6 * BLOCK, 9), partial(rig.read, far, 0, 9)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await eventually(lambda: len(rig.http.parts) == 1)
            served.tap.open()
        assert results == [PACKED.data["a.fa"][6 * BLOCK :][:9], PACKED.data["c.sa"][:9]]
        await rig.settled(archive)
        assert len(rig.http.parts) == 1


async def test_the_daemons_end_leaves_nothing(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        served, archive = await have_index(rig)
        served.tap.shut()
        file = await rig.open_member(archive, "b.bwt")
        with trio.move_on_after(0.05):
            await rig.read(file, 0, BLOCK)
    rig.assert_nothing_left(archive)


async def test_random_reads_evictions_and_harm_against_slicing(tmp_path: Path) -> None:
    dice = random.Random(5)
    async with open_rig(tmp_path, spacing=SPACING, size=room_for(60), linger=0.05) as rig:
        served, archive = await have_index(rig)
        files = {name: await rig.open_member(archive, name) for name in PACKED.data}
        for _ in range(120):
            name = dice.choice(list(PACKED.data))
            data = PACKED.data[name]
            at, size = dice.randrange(len(data)), dice.choice([1, 4096, BLOCK, 6 * BLOCK])
            served.fault = OriginUnavailable("away") if dice.random() < 0.1 else None
            try:
                assert await rig.read(files[name], at, size) == data[at : at + size]
            except OriginUnavailable:
                assert served.fault is not None
            if dice.random() < 0.2:
                content = await rig.content(archive, name)
                first = dice.randrange(block_count(len(data)))
                content.evict(Run(first, min(first + dice.randrange(1, 5), block_count(len(data)))))
            assert rig.store.used <= rig.store.quota
        await rig.settled(archive)
