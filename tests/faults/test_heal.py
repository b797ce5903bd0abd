"""Damage on the disk of the cache: `cache verify` finds it, says where, and fetches it again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.world import BLOCK, TAG, Held, Site, assert_log_is_clean, make_site
from tests.support.mounted import Mounted

UNIT = 64 * 1024  # what has a checksum of its own

ROUTES = pytest.mark.parametrize("remotes", [False, True], ids=["archive", "ranges"])


def flip(path: Path, *offsets: int) -> None:
    """Flip one bit at each offset of a file."""
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 4]))


def content_of(m: Mounted, data: bytes) -> Path:
    """Return the content file that has these bytes."""
    (found,) = [path for path in (m.cache / "contents").iterdir() if path.name != "journal" and same(path, data)]
    return found


def same(path: Path, data: bytes) -> bool:
    return path.stat().st_size == len(data) and path.read_bytes() == data


def big(site: Site, asset: str) -> bytes:
    return (site.world.unpacked(asset) / "a.big").read_bytes()


def verify(m: Mounted, code: int) -> tuple[str, dict[str, Any]]:
    """Run the command as people do, then ask once more; return what it said, and what it finds then."""
    done = m.refgenfs("cache", "verify", check=False)
    assert done.returncode == code, (done.stdout, done.stderr, m.log_text()[-3000:])
    answer: dict[str, Any] = json.loads(m.refgenfs("cache", "verify", "--json").stdout)
    return done.stdout + done.stderr, answer


def indexes(m: Mounted) -> list[dict[str, Any]]:
    return [row for row in m.call("cache_info")["contents"] if row["name"].startswith("seek index of")]


def await_indexes(m: Mounted, count: int) -> list[dict[str, Any]]:
    """Wait for so many seek indexes: each is kept a moment after the last byte of its archive was read."""
    end = time.monotonic() + 20
    while len(rows := indexes(m)) < count:
        assert time.monotonic() < end, "no index was made"
        time.sleep(0.1)
    return rows


@ROUTES
def test_verify_fetches_again_what_was_flipped(tmp_path: Path, remotes: bool) -> None:
    """It says which file and where; then everything is here again, and right, with the origin away."""
    with make_site(tmp_path, ["a", "b"], remotes=remotes) as site, site.mount() as m:
        site.read_right("a", "b")
        files = [content_of(m, big(site, asset)) for asset in "ab"]
        flip(files[0], 5 * BLOCK + 77, 5 * BLOCK + 78, 2 * BLOCK, 9 * BLOCK + 12_344)
        flip(files[1], 0)
        resident = [m.refgenfs("info", f"tiny/{asset}", "--json").stdout for asset in "ab"]
        site.origin.reset_stats()
        text, after = verify(m, 0)
        assert "4 damaged, 4 healed" in text, text
        assert f"a.big: byte {5 * BLOCK}, block {5 * BLOCK // UNIT} of {files[0]}: healed" in text, text
        assert f"a.big: byte 0, block 0 of {files[1]}: healed" in text, text
        assert after["damaged"] == []
        assert [path.read_bytes() for path in files] == [big(site, asset) for asset in "ab"]
        assert [m.refgenfs("info", f"tiny/{asset}", "--json").stdout for asset in "ab"] == resident
        assert site.origin.stats().matching(site.bytes_glob("a")).bytes > 0
        site.stop_origin()
        site.drop_pages("a", "b")
        site.read_right("a", "b")
        assert_log_is_clean(m)


def test_a_member_of_an_archive_without_an_index_comes_by_a_stream(tmp_path: Path) -> None:
    with make_site(tmp_path, ["a", "b"]) as site, site.mount() as m:
        m.refgenfs("pull", "--pin", "tiny/a", "tiny/b")
        await_indexes(m, 2)
        m.call("cache_clear")  # the indexes, which no pin keeps
        assert indexes(m) == []
        files = [content_of(m, big(site, asset)) for asset in "ab"]
        flip(files[0], BLOCK, 3 * BLOCK, 8 * BLOCK)
        flip(files[1], 4)
        site.origin.reset_stats()
        text, after = verify(m, 0)
        assert "4 damaged, 4 healed" in text, text
        assert after["damaged"] == []
        assert [path.read_bytes() for path in files] == [big(site, asset) for asset in "ab"]
        for asset in "ab":
            sent = site.origin.stats().matching(site.bytes_glob(asset)).bytes
            assert sent <= site.world.archive(asset).stat().st_size * 1.01, "one stream brings all of it"


@ROUTES
def test_what_was_read_damaged_is_not_in_the_kernels_pages_afterwards(tmp_path: Path, remotes: bool) -> None:
    with make_site(tmp_path, ["a"], remotes=remotes) as site, site.mount() as m:
        site.read_right("a")
        flip(content_of(m, big(site, "a")), 3 * BLOCK + 5)
        site.drop_pages("a")
        with Held(f"{m.path}/tiny/a/a.big") as held:
            error, data = held.read(3 * BLOCK, 100)  # a page alone, not its block
            assert data[5] != big(site, "a")[3 * BLOCK + 5], "the kernel has what was damaged"
            verify(m, 0)
            error, data = held.read(3 * BLOCK, 100)
            assert (error, data) == ("", big(site, "a")[3 * BLOCK : 3 * BLOCK + 100])
        site.read_right("a")


@ROUTES
def test_who_reads_whole_blocks_never_gets_what_was_flipped(tmp_path: Path, remotes: bool) -> None:
    with make_site(tmp_path, ["a"], remotes=remotes) as site, site.mount() as m:
        site.read_right("a")
        flip(content_of(m, big(site, "a")), *(index * BLOCK + 77 for index in (1, 3, 6)))
        site.drop_pages("a")
        site.read_right("a")
        assert m.call("cache_verify")["damaged"] == []
        assert m.log_text().count("(its checksum differs); it was dropped; fetching it again") == 3


@ROUTES
def test_what_can_not_be_fetched_is_named_and_stays_dropped(tmp_path: Path, remotes: bool) -> None:
    with make_site(tmp_path, ["a", "b"], remotes=remotes) as site, site.mount() as m:
        site.read_right("a", "b")
        path = content_of(m, big(site, "a"))
        flip(path, 4 * BLOCK)
        site.stop_origin()
        text, after = verify(m, 1)
        assert "1 damaged, 0 healed" in text, text
        assert f"block {4 * BLOCK // UNIT} of {path}: not healed: " in text, text
        assert "refgenfs: 1 of 1 damaged blocks could not be fetched again" in text, text
        assert after["damaged"] == []
        site.drop_pages("a", "b")
        site.read_right("b")
        assert site.compare("a", only="a.big")[0]["wrong"] == -1, "never a wrong byte"
        site.start_origin()


@ROUTES
@pytest.mark.parametrize("how", ["shorter", "longer", "gone", "link", "folder", "fifo", "other file"])
def test_a_content_file_that_was_replaced_comes_back_whole(tmp_path: Path, remotes: bool, how: str) -> None:
    """Nothing of what stands in its place is followed or waited for, and nothing else is touched."""
    with make_site(tmp_path, ["a", "b"], remotes=remotes) as site, site.mount() as m:
        site.read_right("a", "b")
        path, elsewhere = content_of(m, big(site, "a")), tmp_path / "elsewhere"
        elsewhere.write_bytes(bytes(len(big(site, "a"))))
        match how:
            case "shorter" | "longer":
                os.truncate(path, len(big(site, "a")) + (1 if how == "longer" else -70_000))
            case "other file":
                os.replace(_copy(elsewhere), path)
            case _:
                path.unlink()
        if how == "link":
            path.symlink_to(elsewhere)
        elif how == "folder":
            path.mkdir()
            (path / "something").write_text("somebody's")
        elif how == "fifo":
            os.mkfifo(path)
        text, after = verify(m, 0)
        count = -(-len(big(site, "a")) // UNIT)
        assert f"{count} damaged, {count} healed" in text, text
        assert after["damaged"] == []
        assert path.is_file()
        assert not path.is_symlink()
        assert path.read_bytes() == big(site, "a")
        assert elsewhere.read_bytes() == bytes(len(big(site, "a")))
        assert not m.status()["cache"]["uncached"]
        site.stop_origin()
        site.drop_pages("a", "b")
        site.read_right("a", "b")


def _copy(path: Path) -> Path:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    return copy


def test_a_seek_index_that_was_made_here_is_made_again(tmp_path: Path) -> None:
    with make_site(tmp_path, ["a"]) as site, site.mount() as m:
        site.read_right("a")
        rows = await_indexes(m, 1)
        (path,) = [one for one in (m.cache / "contents").iterdir() if one.stat().st_size == rows[0]["size"]]
        good = path.read_bytes()
        flip(path, 10)
        text, after = verify(m, 0)
        assert "1 damaged, 1 healed" in text, text
        assert "seek index of" in text
        assert after["damaged"] == []
        assert path.read_bytes() == good


def test_pins_outlast_a_repair(tmp_path: Path) -> None:
    with make_site(tmp_path, ["a"], remotes=True) as site, site.mount() as m:
        m.refgenfs("pull", "--pin", "tiny/a")
        path = content_of(m, big(site, "a"))
        flip(path, BLOCK)
        verify(m, 0)
        os.truncate(path, 100)
        verify(m, 0)
        assert m.call("info", key=f"tiny/a:{TAG}")["pinned"] is True
        m.call("cache_clear")
        assert path.read_bytes() == big(site, "a")


def test_a_rebuilt_asset_has_no_way_back(tmp_path: Path) -> None:
    """The version that was damaged is at no origin any more: that is said, and the new one does not replace it."""
    with make_site(tmp_path, ["a"], remotes=True) as site, site.mount() as m:
        site.read_right("a")
        path = content_of(m, big(site, "a"))
        site.world.add("a", version="2")
        m.call("reload")
        flip(path, BLOCK)
        text, _ = verify(m, 1)
        assert "not healed: the origin has another version now" in text, text
        site.drop_pages("a")
        site.read_right("a")
