"""Seek indexes and what can happen while they are made, kept and used: a disk that refuses, a kill, a small cache.

Promises:
- a disk that refuses anything of an index costs the index, and no reader a byte;
- a daemon that is killed at any step of keeping an index leaves nothing wrong, and nothing that grows;
- an archive larger than the cache, and more indexes than it may keep, are read right within the bound;
- what the origin said of an index is said of one archive, and not of the next;
- what the cache refuses to note is in the log, once.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from refgenfs.cache.content import Content
from refgenfs.cache.keeping import bound_of
from refgenfs.cache.ledger import Ledger
from refgenfs.cache.store import Store
from refgenfs.core.content import BLOCK, ArchiveRef
from refgenfs.core.errors import CacheError
from refgenfs.fetch.seekpoints import IndexBuilder
from refgenfs.reader.archive import Archive
from refgenfs.reader.indexes import MAPS, index_content, index_key
from tests.support.scripted import MIB, Packed, Rig, entry, open_rig, pack
from tests.support.seekindexes import build_index

SPACING = 300_000
SIZES = {"a.fa": 9 * BLOCK + 11, "b.bwt": 20 * BLOCK, "c.sa": 6 * BLOCK + 1}
PACKED = pack([entry(name, size) for name, size in SIZES.items()])
INDEX_URL = "http://origin/a.tgz.seekidx"


async def assert_reads_right(rig: Rig, archive: Archive, packed: Packed = PACKED) -> None:
    """Read every file of an archive."""
    for name, data in packed.data.items():
        file = await rig.open_member(archive, name)
        got = [await rig.read(file, at, 2 * BLOCK) for at in range(0, len(data), 2 * BLOCK)]
        assert b"".join(got) == data, name
        assert rig.store.used <= rig.store.quota


def evict(rig: Rig, archive: Archive, packed: Packed = PACKED) -> None:
    for name in packed.data:
        rig.store.evict(archive.content_id(name))


def scratch(directory: Path) -> list[Path]:
    return list((directory / "scratch").iterdir())


# ---- a disk that refuses


def refuse(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _of_index(real: Callable[..., Any], broken: str) -> Callable[..., Any]:
    """Return a method that refuses what is of the index: by the content's identity, or the ledger's key."""

    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        what = self.id if isinstance(self, Content) else arguments[0]
        if what == broken:
            raise CacheError(f"{what}: the disk refuses")
        return real(self, *arguments, **options)

    return method


@pytest.mark.parametrize("where", ["windows", "file", "content", "row", "flush"])
async def test_a_disk_that_refuses_an_index_costs_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        _, ref = rig.serve_archive(PACKED)
        cid = index_content(ref.source, ref.archive_digest)
        with monkeypatch.context() as patched:
            if where == "windows":
                patched.setattr(IndexBuilder, "_keep", refuse)
            elif where == "file":
                patched.setattr(IndexBuilder, "finish", refuse)
            elif where == "content":
                patched.setattr(Content, "write", _of_index(Content.write, cid))
            elif where == "row":
                patched.setattr(Ledger, "set", _of_index(Ledger.set, index_key(ref)))
            else:

                async def flush(_: Store) -> bool:
                    await trio.lowlevel.checkpoint()
                    return False

                patched.setattr(Store, "flush", flush)
            archive = await rig.open_archive(ref)
            await rig.archives.pull(archive, list(PACKED.data))
            await rig.settled(archive)
            assert (archive.index is None) == (where not in ("row", "flush")), "in this life it can be used"
            assert scratch(tmp_path) == []
            await assert_reads_right(rig, archive)
        evict(rig, archive)
        await assert_reads_right(rig, archive)
        await rig.settled(archive)
        assert archive.index is not None
        assert scratch(tmp_path) == []
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        _, ref = rig.serve_archive(PACKED)
        archive = await rig.open_archive(ref)
        evict(rig, archive)
        await assert_reads_right(rig, archive)
        await rig.settled(archive)


# ---- a kill


async def test_a_kill_at_any_step_of_keeping_an_index_leaves_nothing_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the directory is after each step is what a killed daemon leaves."""
    cache, left = tmp_path / "cache", list[Path]()

    def leave(what: str) -> None:
        left.append(tmp_path / f"{len(left)} {what}")
        shutil.copytree(cache, left[-1], ignore_dangling_symlinks=True)

    def stepwise(owner: type, name: str, of: Callable[[Any, Any], bool]) -> None:
        real = getattr(owner, name)

        def method(self: Any, *arguments: Any, **options: Any) -> Any:
            if not of(self, arguments):
                return real(self, *arguments, **options)
            leave(f"before {name}")
            result = real(self, *arguments, **options)
            leave(f"after {name}")
            return result

        monkeypatch.setattr(owner, name, method)

    async with open_rig(cache, spacing=SPACING) as rig:
        _, ref = rig.serve_archive(PACKED)
        cid, row = index_content(ref.source, ref.archive_digest), index_key(ref)
        stepwise(IndexBuilder, "finish", lambda *_: True)
        stepwise(Content, "write", lambda content, _: content.id == cid)
        stepwise(Content, "commit", lambda content, _: content.id == cid)
        stepwise(Ledger, "apply", lambda *_: True)  # the maps of blocks
        stepwise(Ledger, "set", lambda _, arguments: arguments[0] == row)
        archive = await rig.open_archive(ref)
        await rig.archives.pull(archive, list(PACKED.data))
        await rig.settled(archive)
        assert archive.index is not None
        monkeypatch.undo()
    steps = [path.name.partition(" ")[2] for path in left]
    assert steps.index("after apply") < steps.index("before set"), "the index is noted when it is on the disk"
    streams = []
    for path in left:
        async with open_rig(path, spacing=SPACING) as rig:
            _, ref = rig.serve_archive(PACKED)
            archive = await rig.open_archive(ref)
            assert scratch(path) == []
            await assert_reads_right(rig, archive)
            await rig.settled(archive)
            evict(rig, archive)
            await assert_reads_right(rig, archive)
            await rig.settled(archive)
            streams.append(rig.http.streams)
            assert archive.index is not None
            kept = [one for one in rig.store.summary() if one.size == archive.index.size]
            assert len(kept) == 1
        shutil.rmtree(path)
    assert streams[0] == 1, "there was none yet"
    assert streams[-1] == 0
    assert max(streams) == 1


# ---- small caches


async def test_an_archive_of_100_mb_through_a_cache_of_4_mib(tmp_path: Path) -> None:
    packed = pack([entry("a.fa", 40_000_000), entry("b.bwt", 52_000_000), entry("c.sa", 8_000_000)])
    dice = random.Random(1)
    async with open_rig(tmp_path, size=4 * MIB, spacing=2 * MIB, linger=0.1, patience=30.0) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        for name in ("a.fa", "c.sa"):
            data, file = packed.data[name], await rig.open_member(archive, name)
            for at in range(0, len(data), MIB):
                assert await rig.read(file, at, MIB) == data[at : at + MIB]
                assert rig.store.used <= rig.store.quota
        await rig.settled_streams(archive)
        whole, rig.http.fetched = sum(rig.http.fetched.values()), {}
        assert whole < 3 * len(packed.body)
        for _ in range(8):
            name = dice.choice(list(packed.data))
            data, file = packed.data[name], await rig.open_member(archive, name)
            at = dice.randrange(len(data))
            assert await rig.read(file, at, 5000) == data[at : at + 5000]
            assert rig.store.used <= rig.store.quota
        await rig.settled(archive)
        assert scratch(tmp_path) == []


async def test_two_hundred_archives_in_a_cache_that_may_keep_a_tenth_of_their_indexes(tmp_path: Path) -> None:
    def packed_of(number: int) -> Packed:
        return pack([entry("a.fa", 3 * BLOCK + number, str(number)), entry("b.bwt", BLOCK, str(number))])

    def refs(rig: Rig, number: int) -> ArchiveRef:
        return rig.serve_archive(packed_of(number), name=f"a{number}")[1]

    size, dice, most = 8 * MIB, random.Random(1), 0
    async with open_rig(tmp_path, size=size, spacing=2 * BLOCK, linger=0.1) as rig:
        for number in range(200):
            archive = await rig.open_archive(refs(rig, number))
            await rig.archives.pull(archive, ["b.bwt"])
            await rig.settled(archive)
            assert rig.store.used <= rig.store.quota
            rig.http.objects.clear()
            kept = sum(entry.resident for entry in rig.store._keeping._kept.values())
            most = max(most, kept)
            assert kept <= bound_of(size)
        assert most > bound_of(size) // 2
        assert len(rig.archives._indexes._maps) <= MAPS
        for number in (199, *(dice.randrange(200) for _ in range(8))):
            archive = await rig.open_archive(refs(rig, number))
            evict(rig, archive, packed_of(number))
            rig.http.streams = 0
            await assert_reads_right(rig, archive, packed_of(number))
            await rig.settled(archive)
            assert number != 199 or rig.http.streams == 0, "the last one's is there"
        assert scratch(tmp_path) == []


# ---- what was said of another archive


def offer(rig: Rig, packed: Packed, index: bytes | None) -> ArchiveRef:
    """Put an archive at the origin, and an index beside it."""
    _, ref = rig.serve_archive(packed)
    rig.http.objects.pop(INDEX_URL, None)
    if index is not None:
        rig.http.serve(INDEX_URL, index)
    return replace(ref, index_urls=(INDEX_URL,))


async def test_an_origin_without_an_index_is_not_asked_again_when_the_one_made_here_is_lost(tmp_path: Path) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        archive = await rig.open_archive(offer(rig, PACKED, None))
        await assert_reads_right(rig, archive)
        await rig.settled(archive)
        assert rig.http.asked == [INDEX_URL]
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        archive = await rig.open_archive(offer(rig, PACKED, None))
        assert archive.index is not None
        rig.store.clear()
        await assert_reads_right(rig, archive)
        await rig.settled(archive)
        await rig.archives._indexes.forget(archive, "the test says so")
        rig.store.clear()
        await assert_reads_right(rig, archive)
        await rig.settled(archive)
        assert rig.http.asked == []


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("before", ["none", "its own"])
async def test_an_archive_that_is_packed_again_has_its_index_asked_for(
    tmp_path: Path, *, restart: bool, before: str
) -> None:
    """ "None" is believed for a day, but of the archive that it was said of; so is an index."""
    again = pack([entry(name, size) for name, size in SIZES.items()], level=9, top="again")
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old = build_index([PACKED.body], tmp_path / "old", SPACING)[0] if before == "its own" else None
    new = build_index([again.body], tmp_path / "new", SPACING)[0]

    async def read(rig: Rig, ref: ArchiveRef) -> Archive:
        archive = await rig.open_archive(ref)
        file = await rig.open_member(archive, "b.bwt")
        assert await rig.read(file, 9 * BLOCK, 10) == PACKED.data["b.bwt"][9 * BLOCK : 9 * BLOCK + 10]
        await rig.settled(archive)
        evict(rig, archive)
        return archive

    async def read_again(rig: Rig) -> None:
        rig.http.asked.clear()
        rig.http.streams = 0
        archive = await read(rig, offer(rig, again, new))
        assert rig.http.asked == [INDEX_URL]
        assert archive.index is not None
        assert archive.index.archive == again.digest

    async with open_rig(tmp_path / "cache", spacing=None) as rig:
        archive = await read(rig, offer(rig, PACKED, old))
        assert rig.http.asked == [INDEX_URL]
        assert (archive.index is not None) == (before == "its own")
        if not restart:
            await read_again(rig)
    if restart:
        async with open_rig(tmp_path / "cache", spacing=None) as rig:
            await read_again(rig)


# ---- what is said


async def test_what_the_cache_refuses_to_note_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_rig(tmp_path, spacing=SPACING) as rig:
        _, ref = rig.serve_archive(PACKED)
        archive = await rig.open_archive(ref)
        await rig.archives.pull(archive, list(PACKED.data))
        await rig.settled(archive)

        def broken(_: Ledger, key: str, *__: object) -> None:
            raise CacheError(f"no {key}")

        with caplog.at_level(logging.WARNING), monkeypatch.context() as patched:
            patched.setattr(Ledger, "set", broken)
            for _ in range(3):
                assert not await archive.save(rig.store.ledger)
                await rig.archives._indexes._save(archive)
        said = [record.getMessage() for record in caplog.records if "not written down" in record.getMessage()]
        assert len(said) == 2, said
        assert await archive.save(rig.store.ledger)
