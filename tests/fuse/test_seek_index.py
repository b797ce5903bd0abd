"""Archives that are entered in the middle: what that saves is counted at the origin, by nginx."""

from __future__ import annotations

import hashlib
import json
import random
import signal
from pathlib import Path

import pytest

from tests.support.ecoli import ALIAS, Ecoli, Origin, Origins, drop_pages, genome, settled
from tests.support.mounted import Mounted
from tests.support.nginx import Served
from tests.support.seekindexes import build_index

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data]

ASSET = "bwa_index"
SPACING = 1 << 20
KEY = f"{ALIAS}/{ASSET}"


ALONE = '[prefetch]\nsiblings = "0"\n'  # what is read, and nothing that a tool would read next


def largest(ecoli: Ecoli) -> Path:
    """Return the largest plain file of the asset; the FASTA is the link to another one's."""
    folder = ecoli.plain(ASSET)
    paths = [folder / name for name in ecoli.files(ASSET) if not name.endswith(".fa")]
    return max(paths, key=lambda path: path.stat().st_size)


def read_piece(mounted: Mounted, ecoli: Ecoli, offset: int, length: int) -> None:
    """Read a piece of the largest file, and compare it with the plain one's."""
    plain = largest(ecoli)
    path = genome(mounted) / ASSET / plain.name
    part = f"iflag=skip_bytes,count_bytes skip={offset} count={length} bs=64K status=none | md5sum"
    assert mounted.shell(f"dd if='{path}' {part}") == mounted.shell(f"dd if='{plain}' {part}")


def forget(mounted: Mounted, ecoli: Ecoli) -> None:
    """Evict the asset, and what the kernel has of it."""
    mounted.refgenfs("evict", KEY)
    drop_pages(mounted, genome(mounted) / ASSET / largest(ecoli).name)


def served(origin: Origin) -> list[Served]:
    """Return the requests for the archive, or an index beside it."""
    return [one for one in origin.served() if f"/{ASSET}" in one.path]


def sent(origin: Origin) -> int:
    """Return the bytes of the archive, and of an index beside it, that were sent."""
    return sum(one.bytes for one in served(origin))


@pytest.fixture
def offered(ecoli: Ecoli, tmp_path: Path) -> Path:
    """A folder with the index of the asset's archive, as it would be beside it."""
    archive = ecoli.archive(ASSET)
    made, folder = tmp_path / "made", tmp_path / "indexes"
    target = folder / archive.parent.name / f"{archive.name}.seekidx"
    target.parent.mkdir(parents=True)
    made.mkdir()
    folder.chmod(0o755)
    target.write_bytes(build_index([archive.read_bytes()], made, SPACING)[0])
    return folder


def test_a_piece_of_an_evicted_file_costs_its_spans(origins: Origins, tmp_path: Path) -> None:
    origin = origins("archive")
    size = origin.ecoli.archive(ASSET).stat().st_size
    setup = origin.setup(tmp_path, extra=ALONE)
    with setup.mount() as mounted:
        mounted.refgenfs("pull", KEY)
        settled(mounted)
        forget(mounted, origin.ecoli)
        origin.clear()
        read_piece(mounted, origin.ecoli, 2_000_000, 4096)
        settled(mounted)
        cost = sent(origin)
        print(f"a piece of 4 KiB of an evicted file: {cost} of {size} bytes, {len(served(origin))} requests")
        assert 0 < cost < size / 3
        assert {one.status for one in served(origin)} == {206}
        forget(mounted, origin.ecoli)
        mounted.refgenfs("cache", "info")
        mounted.kill()
    with setup.mount() as again:  # the index outlives also a kill
        origin.clear()
        read_piece(again, origin.ecoli, 2_000_000, 4096)
        settled(again)
        assert 0 < sent(origin) < size / 3
        assert not list((again.cache / "scratch").iterdir())


def test_whole_files_come_back_by_spans_about_once(origins: Origins, tmp_path: Path) -> None:
    origin = origins("archive")
    ecoli = origin.ecoli
    with origin.setup(tmp_path).mount() as mounted:
        mounted.refgenfs("pull", KEY)
        settled(mounted)
        forget(mounted, ecoli)
        drop_pages(mounted, *(genome(mounted) / ASSET / name for name in ecoli.files(ASSET)))
        origin.clear()
        for name in ecoli.files(ASSET):
            line = mounted.run("md5sum", f"{genome(mounted)}/{ASSET}/{name}").stdout
            assert line.split()[0] == ecoli.md5(ASSET)[name]
        settled(mounted)
        ratio = sent(origin) / ecoli.archive(ASSET).stat().st_size
        print(f"all files again, by spans: {ratio:.2f} archives in {len(served(origin))} requests")
        assert ratio < 1.1


def test_a_fresh_node_with_an_offered_index(origins: Origins, tmp_path: Path, offered: Path) -> None:
    origin = origins("archive", indexes=offered)
    ecoli = origin.ecoli
    size = ecoli.archive(ASSET).stat().st_size
    with origin.setup(tmp_path / "node", extra=ALONE).mount() as mounted:
        plain = largest(ecoli)
        shown = mounted.run("stat", "-c", "%s", f"{genome(mounted)}/{ASSET}/{plain.name}").stdout
        assert int(shown) == plain.stat().st_size
        assert all(".seekidx" in one.path for one in served(origin)), "sizes need no byte of the archive"
        assert len(served(origin)) == 1
        read_piece(mounted, ecoli, 3_000_000, 100_000)
        settled(mounted)
        cost = sent(origin)
        print(f"a fresh node's piece of 100 kB: {cost} of {size} bytes, {len(served(origin))} requests")
        assert cost < size / 2
        assert {one.status for one in served(origin)} == {206}
        dice = random.Random(3)
        for _ in range(10):
            read_piece(mounted, ecoli, dice.randrange(plain.stat().st_size), 70_000)
        settled(mounted)
        info = json.loads(mounted.refgenfs("cache", "info", "--json").stdout)
        assert any("seek index" in row["name"] for row in info["contents"])
        assert not any(row["pinned"] for row in info["contents"])


def test_an_offered_index_of_another_archive_is_ignored(origins: Origins, tmp_path: Path, offered: Path) -> None:
    origin = origins("archive", indexes=offered)
    ecoli = origin.ecoli
    target = next(offered.rglob("*.seekidx"))
    other = ecoli.archive("fasta")
    (tmp_path / "made2").mkdir()
    target.write_bytes(build_index([other.read_bytes()], tmp_path / "made2", SPACING)[0])
    with origin.setup(tmp_path / "node").mount() as mounted:
        for name in ecoli.files(ASSET):
            data = mounted.run("cat", f"{genome(mounted)}/{ASSET}/{name}", text=False).stdout
            assert hashlib.md5(data).hexdigest() == ecoli.md5(ASSET)[name]
        settled(mounted)
        assert "is that of another archive" in mounted.log_text()
        streamed = [one for one in served(origin) if ".seekidx" not in one.path]
        assert {one.status for one in streamed} == {206}  # it streams, once, in stretches
        assert sum(one.bytes for one in streamed) == ecoli.archive(ASSET).stat().st_size


def test_the_origin_is_asked_for_an_index_once_a_day(origins: Origins, tmp_path: Path) -> None:
    origin = origins("archive")
    setup = origin.setup(tmp_path)
    for _ in range(2):
        with setup.mount() as mounted:
            mounted.run("ls", "-l", f"{genome(mounted)}/{ASSET}")
            mounted.refgenfs("cache", "clear", "--yes")
            read_piece(mounted, origin.ecoli, 0, 100)
            settled(mounted)
            assert mounted.stop(signal.SIGTERM) == 0
    asked = [one for one in origin.api.log() if f"{ASSET}.seekidx" in one.path]
    assert len(asked) == 1
    assert asked[0].status == 404
