"""Seek indexes at the origin that lie, are replaced, or go away: over a real mount."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from refgenfs.core.seekindex import SeekIndex, SpanTable, encode_head, pack_window
from refgenfs.demo.replies import Ask, Reply, file_reply, text_reply
from tests.faults.world import (
    ALIAS,
    ScriptedOrigin,
    Site,
    World,
    assert_log_is_clean,
    make_site,
    noise,
    replace,
)
from tests.support.seekindexes import build_index

pytestmark = pytest.mark.needs_fuse

MIB = 1 << 20
PEAK = 150 * MIB
ASSET = "fasta"
FILES = {"a.big": noise("index", 6 * MIB + 77), "b.small": noise("small", 5000), "c.next": noise("next", 2 * MIB)}


class Offering(ScriptedOrigin):
    """An origin that has a seek index beside its archive, as long as there is a file `index` in its folder."""

    def __init__(self, root: Path, **options: bool) -> None:
        super().__init__(root, **options)
        self.index = root / "index"
        self.status = 0  # that it answers with for the index, if not as it should
        self.length = 0  # of the index, if it is to be another one than it has

    def answer(self, ask: Ask) -> Reply:
        if not ask.path.endswith(".seekidx"):
            return super().answer(ask)
        if self.status:
            return text_reply("not now", self.status)
        if not self.index.exists():
            return text_reply("none", 404)
        reply = file_reply(self.index, ask)
        if self.length and "Content-Range" in reply.headers:
            reply.headers["Content-Range"] = f"{reply.headers['Content-Range'].partition('/')[0]}/{self.length}"
        return reply


@contextmanager
def offering(folder: Path) -> Iterator[tuple[Site, Offering, bytes]]:
    """Make a site with one archive and its index, which is given too."""
    world, made = World(folder / "root"), folder / "made"
    world.add(ASSET, FILES)
    made.mkdir()
    index, _ = build_index([world.archive(ASSET).read_bytes()], made, MIB // 4)
    with make_site(folder, world=world, origin=Offering) as site:
        origin = site.origin
        assert isinstance(origin, Offering)
        replace(origin.index, index)
        yield site, origin, index


def read_at(site: Site, offset: int) -> None:
    """Read a page of the large file, and no more, and compare it."""
    path = f"{site.m.path}/{ALIAS}/{ASSET}/a.big"
    command = ["dd", f"if={path}", "iflag=skip_bytes", f"skip={offset}", "bs=4096", "count=1", "status=none"]
    done = site.m.run(*command, check=False, text=False, timeout=30)
    assert done.returncode == 0, (done.stderr, site.tail())
    assert done.stdout == FILES["a.big"][offset : offset + 4096]


@pytest.mark.parametrize("event", ["made again", "removed"])
def test_an_index_that_is_replaced_or_removed_costs_a_stream(tmp_path: Path, event: str) -> None:
    with offering(tmp_path) as (site, origin, index), site.mount() as mounted:
        read_at(site, 0)
        assert "offers a seek index" in mounted.log_text()
        if event == "removed":
            origin.index.unlink()
        else:
            replace(origin.index, index)  # the same bytes, and another validator
        for offset in (5 * MIB, 3 * MIB, 2 * MIB):
            read_at(site, offset)
        site.read_right(ASSET)
        assert_log_is_clean(mounted)


@pytest.mark.parametrize("status", [403, 503])
def test_an_index_that_is_refused_for_ever_costs_a_stream(tmp_path: Path, status: int) -> None:
    """What the origin answers for the index alone says nothing of the archive, and no reader hears of it."""
    with offering(tmp_path) as (site, origin, _), site.mount() as mounted:
        read_at(site, 0)
        assert "offers a seek index" in mounted.log_text()
        origin.status = status
        for offset in (5 * MIB, 3 * MIB, 2 * MIB):
            read_at(site, offset)
        site.read_right(ASSET)
        assert "its seek index is dropped" in mounted.log_text()
        assert_log_is_clean(mounted)


def test_an_index_that_the_origin_says_is_endless(tmp_path: Path) -> None:
    with offering(tmp_path) as (site, origin, _), site.mount() as mounted:
        origin.length = 1 << 44
        site.read_right(ASSET)
        assert mounted.memory() < PEAK
        assert mounted.status()["cache"]["error"] is None
        assert_log_is_clean(mounted)


def test_an_index_of_countless_points(tmp_path: Path) -> None:
    """Spans of one byte, each with a window of 32 KiB: a block has 65,536 of them."""
    with offering(tmp_path) as (site, origin, index), site.mount() as mounted:
        good = SeekIndex.parse(index)
        window = pack_window(bytes(32_768))
        begin = next(member.offset for member in good.members if member.name == "a.big")
        rest = good.unpacked_size - begin - 65_536
        table = SpanTable(10)
        for length in (begin, *[1] * 65_536, rest):
            table.packed.append(1)
            table.out.append(length)
            table.windows.append(len(window))
            table.bits.append(0)
            table.digests += bytes(16)
        head = encode_head(table, good.members, good.archive_digest, good.archive_size, good.unpacked_size)
        replace(origin.index, head + window * len(table))
        read_at(site, 0)
        assert "its seek index is dropped" in mounted.log_text()
        assert mounted.memory() < PEAK
        site.read_right(ASSET)
        assert_log_is_clean(mounted)
