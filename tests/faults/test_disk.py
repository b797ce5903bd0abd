"""The cache's disk: full, read-only, gone, damaged behind the daemon's back. Reads go on; no wrong byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.world import ALIAS, BLOCK, Site, assert_log_is_clean, make_site
from tests.support.disks import fill_up
from tests.support.recorded import wait_until_recorded

pytestmark = pytest.mark.needs_fuse

ROUTES = pytest.mark.parametrize("remotes", [False, True], ids=["archive", "ranges"])


@contextmanager
def _tmpfs(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.needs_root
@ROUTES
def test_a_mount_comes_up_on_a_disk_that_is_read_only(tmp_path: Path, remotes: bool) -> None:
    """What is there is read, also with the origin away; the rest comes uncached; status and doctor say so."""
    with _tmpfs(tmp_path / "cache", "40m") as folder, make_site(tmp_path, ["a", "b"], remotes=remotes) as site:
        with site.mount():
            site.read_right("a")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        site.origin.reset_stats()
        with site.mount() as m:
            assert any("the cache" in problem for problem in m.ready["problems"]), m.ready
            site.read_right("a")
            assert site.origin.stats().matching(site.bytes_glob("a")).bytes == 0
            site.read_right("b")
            status = _cache_status(site)
            assert status["uncached"], status
            assert "ead-only" in str(status["error"])
            assert "without the cache" in m.refgenfs("status").stdout
            assert "nothing is kept" in m.refgenfs("doctor", check=False).stdout
            subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
            _until(lambda: not _cache_status(site)["uncached"], 30)
            _fresh_reads(site, "a", "b")
            _until(lambda: _resident(site, "b") > 0, 20)
            assert not m.call("cache_verify")["damaged"]
            assert_log_is_clean(m)
        site.origin.reset_stats()
        with site.mount():
            site.read_right("a", "b")
        assert site.origin.stats().matching(site.bytes_glob("b")).bytes == 0


@pytest.mark.needs_root
@ROUTES
def test_a_mount_comes_up_on_a_disk_that_is_full(tmp_path: Path, remotes: bool) -> None:
    with _tmpfs(tmp_path / "cache", "6m") as folder, make_site(tmp_path, ["a", "b"], remotes=remotes) as site:
        filler = folder / "lost+found"
        fill_up(filler)
        with site.mount() as m:
            site.read_right("a", "b")
            assert _cache_status(site)["uncached"]
            filler.unlink()
            _until(lambda: not _cache_status(site)["uncached"], 30)
            _fresh_reads(site, "a")
            _until(lambda: _resident(site, "a") > 0, 20)
            assert_log_is_clean(m)


def _cache_status(site: Site) -> dict[str, object]:
    status: dict[str, object] = site.m.status()["cache"]
    return status


def _until(true: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def _fresh_reads(site: Site, *assets: str) -> None:
    """Read out of the daemon, not out of the kernel's pages."""
    site.drop_pages(*assets)
    site.read_right(*assets)


@pytest.mark.needs_root
@ROUTES
def test_the_disk_gets_full(tmp_path: Path, remotes: bool) -> None:
    """Somebody else fills the disk: reads go on uncached, status says so; with room again, the cache goes on."""
    with _tmpfs(tmp_path / "cache", "6m"), make_site(tmp_path, ["a", "b", "c"], remotes=remotes) as site:
        with site.mount() as m:
            site.read_right("a")
            filler = m.cache / "somebody-elses"
            with filler.open("wb", buffering=0) as file:  # unbuffered: or what did not fit is tried again at the end
                try:
                    while True:
                        file.write(bytes(65_536))
                except OSError:
                    pass
            site.read_right("b", "c")
            _fresh_reads(site, "a", "b", "c")
            status = _cache_status(site)
            # what is free is measured once a second: either a write was refused before, or room was made in time
            assert status["uncached"] or status["error"] or status["evictions"], status
            filler.unlink()
            if not remotes:
                return
            site.m.call("cache_clear")
            _until(lambda: _is_kept_again(site, "b"), 40)  # the store leaves a disk that refused alone for 10 s
            assert not _cache_status(site)["uncached"]
            assert not m.call("cache_verify")["damaged"]
            assert_log_is_clean(m)
        with site.mount() as m:
            site.read_right("a", "b", "c")
            assert_log_is_clean(m)


def _is_kept_again(site: Site, asset: str) -> bool:
    _fresh_reads(site, asset)
    return _resident(site, asset) > 0


def _resident(site: Site, asset: str) -> int:
    rows = site.m.call("cache_info")["contents"]
    return sum(row["resident"] for row in rows if f"/{asset}:" in str(row["key"]) and "seek index" not in row["name"])


@pytest.mark.needs_root
def test_a_disk_smaller_than_the_cache_may_be(tmp_path: Path) -> None:
    """cache.size says 200 MB, the disk has 3: everything reads, several times over."""
    with (
        _tmpfs(tmp_path / "cache", "3m"),
        make_site(tmp_path, ["a", "b", "c", "d"]) as site,
        site.mount() as m,
    ):
        for _ in range(2):
            _fresh_reads(site, "a", "b", "c", "d")
        assert_log_is_clean(m)
        assert not m.call("cache_verify")["damaged"]


@pytest.mark.needs_root
@ROUTES
def test_the_cache_becomes_read_only(tmp_path: Path, remotes: bool) -> None:
    """Not even root can make a file in it any more: reads go on uncached, and status says so."""
    with make_site(tmp_path, ["a", "b"], remotes=remotes) as site:
        with site.mount() as m:
            site.read_right("a")
            folders = [str(m.cache / "contents"), str(m.cache / "ledger"), str(m.cache)]
            subprocess.run(["chattr", "+i", *folders], check=True)
            try:
                site.read_right("b")
                _fresh_reads(site, "a", "b")
                status = _cache_status(site)
            finally:
                subprocess.run(["chattr", "-i", *folders], check=True)
            assert status["uncached"], status
            assert status["error"], status
            assert _resident(site, "b") == 0
            assert_log_is_clean(m)
        with site.mount() as m:
            site.read_right("a", "b")
            assert_log_is_clean(m)


@ROUTES
def test_the_cache_is_removed_under_the_daemon(tmp_path: Path, remotes: bool) -> None:
    with make_site(tmp_path, ["a", "b"], remotes=remotes) as site:
        with site.mount() as m:
            site.read_right("a")
            shutil.rmtree(m.cache)
            site.read_right("b")
            _fresh_reads(site, "a", "b")
            m.run("ls", "-lR", f"{m.path}/{ALIAS}", timeout=60)
            m.status()
        with site.mount() as m:
            site.read_right("a", "b")
            assert not m.call("cache_verify")["damaged"]


# --- damage -------------------------------------------------------------------------------------------------


def _content_files(cache: Path) -> list[Path]:
    return sorted((path for path in (cache / "contents").iterdir()), key=lambda path: -path.stat().st_size)


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))


def _damage(path: Path, how: str) -> None:
    size = path.stat().st_size
    if how == "flip":
        _flip(path, size // 2)
    elif how in ("truncate", "empty", "grow"):
        os.truncate(path, {"truncate": 3 * BLOCK + 10, "empty": 0, "grow": size + 4096}[how])
    elif how == "remove":
        path.unlink()
    elif how == "zero":
        with path.open("r+b") as file:
            file.write(bytes(2 * BLOCK))


@ROUTES
def test_damage_behind_the_daemons_back_and_kill(tmp_path: Path, remotes: bool) -> None:
    """kill -9, then content files are damaged: after the restart not a byte is wrong, and what is good stays."""
    hows = ["flip", "truncate", "empty", "remove", "grow", "zero"]
    with make_site(tmp_path, [*hows, "whole"], remotes=remotes) as site:
        with site.mount() as m:
            site.read_right(*hows, "whole")
            wait_until_recorded(m)
            m.kill()
            for how in hows:
                _damage(_content_of(m.cache, site, how), how)
        site.origin.reset_stats()
        with site.mount() as m:
            site.read_right(*hows, "whole")
            assert not m.call("cache_verify")["damaged"]
            assert_log_is_clean(m)
        stats = site.origin.stats()
        for how in hows:
            assert stats.matching(site.bytes_glob(how)).bytes > 0, f"{how}: the damage was not met"
            if remotes:
                assert stats.matching(f"/files/*/{how}__*/c.exact").bytes == 0, "what was good was fetched again"
        assert stats.matching(site.bytes_glob("whole")).bytes == 0


def _content_of(cache: Path, site: Site, asset: str, *, at: int = 0) -> Path:
    """Return the content file of an asset's largest file, found by its first bytes."""
    with (site.world.unpacked(asset) / "a.big").open("rb") as file:
        file.seek(at)
        head = file.read(4096)
    for path in _content_files(cache):
        with path.open("rb") as file:
            file.seek(at)
            if file.read(4096) == head:
                return path
    raise AssertionError(f"nothing of {asset} is in the cache")


@ROUTES
def test_a_damaged_ledger(tmp_path: Path, remotes: bool) -> None:
    with make_site(tmp_path, ["a", "b"], remotes=remotes) as site:
        with site.mount() as m:
            site.read_right("a", "b")
            wait_until_recorded(m)
            m.kill()
            for path in (m.cache / "ledger").iterdir():
                if path.name.endswith((".db", "-wal")):
                    data = bytearray(path.read_bytes())
                    data[len(data) // 3 : len(data) // 3 + 9_000] = os.urandom(9_000)
                    path.write_bytes(data)
        site.origin.reset_stats()
        with site.mount() as m:
            site.read_right("a", "b")
            assert not m.call("cache_verify")["damaged"]
            assert "Traceback" not in m.log_text()
        stats = site.origin.stats()
        assert all(stats.matching(site.bytes_glob(asset)).bytes == 0 for asset in "ab"), "what was recorded is lost"
