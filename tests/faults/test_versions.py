"""Versions: a tag that is rebuilt, a file or an archive that is replaced while it is read. Never a mixture."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.world import (
    ALIAS,
    BLOCK,
    DIGEST,
    TAG,
    Held,
    Site,
    archive_of,
    assert_log_is_clean,
    make_site,
    noise,
    probe,
    replace,
    usual_files,
)
from tests.support.faulty_origin import Fault
from tests.support.recorded import wait_until_recorded

pytestmark = pytest.mark.needs_fuse

STALE = ("ESTALE", "EIO")


def _until(true: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def _is_version(got: bytes, version: bytes, offset: int) -> bool:
    return got == version[offset : offset + len(got)]


def _restart_and_read(site: Site, *assets: str) -> None:
    site.read_right(*assets)
    assert not site.m.call("cache_verify")["damaged"]
    assert_log_is_clean(site.m)
    time.sleep(0.4)
    site.m.stop()
    with site.mount():
        site.read_right(*assets)
        assert_log_is_clean(site.m)


# --- byte ranges --------------------------------------------------------------------------------------------


def test_a_file_that_is_replaced_between_two_ranges(tmp_path: Path) -> None:
    """The same size, other bytes, another ETag: the open file gives the old version or ESTALE."""
    with make_site(tmp_path, ["one", "two"], remotes=True) as site, site.mount() as m:
        path, old = f"{m.path}/{ALIAS}/one/a.big", usual_files("one")["a.big"]
        with Held(path) as held:
            assert held.read(0, 5_000) == ("", old[:5_000])
            replace(site.world.unpacked("one") / "a.big", noise("another", len(old)))
            failed = 0
            for offset in range(0, len(old), 50_000):
                error, got = held.read(offset, 50_000)
                assert error in ("", *STALE)
                failed += bool(error)
                assert _is_version(got, old, offset), f"another version's bytes at {offset}"
            assert failed, "the whole file was resident before it was replaced: nothing was tried"
            _until(lambda: site.compare("one", only="a.big")[0]["wrong"] == -1)  # a new open: the new version
            site.read_right("one")
            for offset in range(0, len(old), 50_000):  # and the old open file still never shows it
                error, got = held.read(offset, 50_000)
                assert error in ("", *STALE)
                assert _is_version(got, old, offset)
        _restart_and_read(site, "one", "two")


def test_a_file_that_is_replaced_in_the_middle_of_a_body(tmp_path: Path) -> None:
    with make_site(tmp_path, ["one"], remotes=True) as site, site.mount() as m:
        old = usual_files("one")["a.big"]
        m.run("ls", "-l", f"{m.path}/{ALIAS}/one")
        # half of the answer comes, then nothing for longer than the source's timeout
        site.origin.faults = [Fault("stall", "*/a.big", times=3, after=3 * BLOCK + 7)]
        with Held(f"{m.path}/{ALIAS}/one/a.big") as held:
            replace(site.world.unpacked("one") / "a.big", noise("another", len(old)))
            for offset in (0, 2 * BLOCK, 6 * BLOCK, 0, 3 * BLOCK):
                error, got = held.read(offset, BLOCK)
                assert error in ("", *STALE)
                assert _is_version(got, old, offset)
        site.reset()
        _until(lambda: site.compare("one", only="a.big")[0]["wrong"] == -1)
        _restart_and_read(site, "one")


def test_a_file_that_grew(tmp_path: Path) -> None:
    with make_site(tmp_path, ["one"], remotes=True) as site, site.mount() as m:
        old = usual_files("one")["a.big"]
        m.run("ls", "-l", f"{m.path}/{ALIAS}/one")
        replace(site.world.unpacked("one") / "a.big", noise("longer", len(old) + 70_000))
        with Held(f"{m.path}/{ALIAS}/one/a.big") as held:
            error, got = held.read(2 * BLOCK, BLOCK)
            assert error in STALE, (error, got[:10])
        _until(lambda: site.compare("one", only="a.big")[0]["wrong"] == -1)
        _restart_and_read(site, "one")


def test_what_is_known_of_a_new_version_outlives_a_stop_at_once(tmp_path: Path) -> None:
    """Who has seen the new version is not shown the old one by the next daemon."""
    with make_site(tmp_path, ["one"], remotes=True) as site:
        old = usual_files("one")["a.big"]
        with site.mount() as m:
            path = f"{m.path}/{ALIAS}/one/a.big"
            with Held(path) as held:
                assert held.read(0, 1_000) == ("", old[:1_000])
                time.sleep(0.6)  # what is known of the old version is kept
                replace(site.world.unpacked("one") / "a.big", noise("another", len(old)))
                assert held.read(8 * BLOCK, 1_000)[0] == "ESTALE"
            with Held(path) as held:
                assert held.read(0, 1_000) == ("", noise("another", len(old))[:1_000])
            m.stop()
        with site.mount():
            site.read_right("one", only="a.big")


# --- archives -----------------------------------------------------------------------------------------------


def test_an_archive_that_is_replaced_while_it_streams(tmp_path: Path) -> None:
    """Other files under the old catalog entry, another ETag after a break: not a byte of both is kept."""
    with make_site(tmp_path, ["one"]) as site, site.mount() as m:
        old = usual_files("one")
        new = {name: noise(f"new {name}", len(data)) for name, data in old.items()}
        site.origin.faults = [Fault("stall", site.bytes_glob("one"), after=600_000)]
        with Held(f"{m.path}/{ALIAS}/one/a.big") as held:
            assert held.read(0, 1_000) == ("", old["a.big"][:1_000])
            site.world.place("one", new)
            for offset in (0, 2 * BLOCK, 6 * BLOCK, 8 * BLOCK):
                error, got = held.read(offset, BLOCK)
                assert error in ("", *STALE)
                assert _is_version(got, old["a.big"], offset), f"another version's bytes at {offset}"
        # the server finishes its work: the catalog tells of the new version
        site.world.add("one", new, version="2")
        m.call("reload")
        site.read_right("one")
        _restart_and_read(site, "one")


def test_an_archive_that_is_archived_again_while_it_streams(tmp_path: Path) -> None:
    """The same files under another archive digest, told by the server's attributes: it heals by itself."""
    with make_site(tmp_path, ["one"]) as site, site.mount() as m:
        files = usual_files("one")
        site.origin.faults = [Fault("stall", site.bytes_glob("one"), after=600_000)]
        with Held(f"{m.path}/{ALIAS}/one/a.big") as held:
            assert held.read(0, 1_000) == ("", files["a.big"][:1_000])
            site.world.place("one", files, archive=archive_of(files, stamp=99))
            site.world.assets["one"]["tags"][TAG]["archive_digest"] = site.world.md5("one")
            site.world.publish()
            error, got = held.read(8 * BLOCK, 5_000)
            assert error in ("", *STALE)
            assert _is_version(got, files["a.big"], 8 * BLOCK)
        site.read_right("one")
        _restart_and_read(site, "one")


def test_another_archive_digest_that_the_server_knows_is_accepted(tmp_path: Path) -> None:
    """Archived again before the first read, the catalog not yet refreshed: `attrs` has the new digest."""
    with make_site(tmp_path, ["one"]) as site, site.mount():
        files = usual_files("one")
        site.world.place("one", files, archive=archive_of(files, stamp=5))
        site.world.assets["one"]["tags"][TAG]["archive_digest"] = site.world.md5("one")
        site.world.publish()
        site.read_right("one")
        _until(lambda: _resident(site) > 0)
        time.sleep(0.3)
        assert _resident(site) == sum(map(len, files.values()))
        assert site.origin.stats().matching(site.bytes_glob("one")).requests == 1
        _restart_and_read(site, "one")


def _resident(site: Site) -> int:
    rows = site.m.call("cache_info")["contents"]
    return sum(row["resident"] for row in rows if row["key"] and "seek index" not in row["name"])


def test_an_archive_digest_that_nobody_knows(tmp_path: Path) -> None:
    """EIO in the end, and nothing is kept; with the catalog mended, it reads."""
    with make_site(tmp_path, ["other"]) as site:
        site.world.add("one", archive_digest="0" * 32)
        with site.mount() as m:
            for _ in range(3):
                site.read_or(*STALE, asset="one")
                _until(lambda: _resident(site) == 0)
            seen = site.read_or(*STALE, asset="one")
            assert "EIO" in seen
            assert m.run("ls", f"{m.path}/{ALIAS}", timeout=20).stdout.split() == [
                "one", "one:default", "other", "other:default",
            ]  # fmt: skip
            site.world.assets["one"]["tags"][TAG]["archive_digest"] = site.world.md5("one")
            site.world.publish()
            m.call("reload")
            site.read_right("one", "other")
            _restart_and_read(site, "one", "other")


@pytest.mark.parametrize("where", ["first file", "last file", "header", "checksum"])
def test_a_flipped_bit_in_the_archive(tmp_path: Path, where: str) -> None:
    """What came is unconfirmed until the archive has gone by; then it is dropped, and nobody reads it again."""
    with make_site(tmp_path, ["one"]) as site, site.mount() as m:
        size = site.world.archive("one").stat().st_size
        at = {"first file": 700_000, "last file": size - 5_000, "header": 700, "checksum": size - 6}[where]
        site.origin.faults = [Fault("flip_bit", site.bytes_glob("one"), times=None, after=at)]
        first = site.compare("one")
        for found in first:  # a wrong bit may show once, before the checksum at the end has gone by
            assert found["error"] in ("", *STALE)
        _until(lambda: _resident(site) == 0)
        for _ in range(3):  # from then on never again
            again = site.compare("one")
            assert all(found["wrong"] == -1 for found in again), again
            assert any(found["error"] == "EIO" for found in again), again
            assert _resident(site) == 0
        site.reset()
        site.read_right("one")
        _restart_and_read(site, "one")
        assert "drop" in m.log_text()


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_unconfirmed_bytes_do_not_outlive_their_archive(tmp_path: Path, how: str) -> None:
    """A stream of a wrong archive is cut off, the daemon ends, the archive is mended: no old byte is served."""
    with make_site(tmp_path, ["one"]) as site:
        right = usual_files("one")
        wrong = {**right, "a.big": noise("wrong", len(right["a.big"])), "b.small": noise("small", 5_000)}
        site.world.place("one", wrong)
        glob = site.bytes_glob("one")
        with site.mount() as m:
            site.origin.faults = [
                Fault("truncate", glob, times=1, after=1_350_000),
                Fault("status", glob, times=None, value=503),
            ]
            with Held(f"{m.path}/{ALIAS}/one/a.big") as held:
                assert held.read(0, 1_000) == ("", wrong["a.big"][:1_000])
                time.sleep(1.5)  # the retries end
                wait_until_recorded(m)
            assert _resident(site) > len(right["a.big"]) // 2
            if how == "killed":
                m.kill()
        site.world.place("one", right)
        site.reset()
        with site.mount() as m:
            _until(lambda: "EIO" not in [found["error"] for found in site.compare("one")])
            time.sleep(0.5)
            site.read_right("one")
        _restart_after(site)


def _restart_after(site: Site) -> None:
    with site.mount():
        site.read_right("one")
        assert_log_is_clean(site.m)


def test_what_an_interrupted_archive_brought_reads_without_the_origin(tmp_path: Path) -> None:
    """With the network down everything resident reads, also after a restart."""
    with make_site(tmp_path, ["one"]) as site:
        glob = site.bytes_glob("one")
        with site.mount():
            site.origin.faults = [
                Fault("truncate", glob, times=1, after=1_500_000),
                Fault("status", glob, times=None, value=503),
            ]
            site.read_right("one", only="a.big")
            time.sleep(1.5)  # the retries end
        site.stop_origin()
        try:
            with site.mount():
                site.read_right("one", only="a.big")
        finally:
            site.start_origin()


# --- a rebuilt tag ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remotes", [False, True], ids=["archive", "ranges"])
@pytest.mark.parametrize("resident", [True, False], ids=["resident", "not-resident"])
def test_a_rebuilt_tag(tmp_path: Path, remotes: bool, resident: bool) -> None:
    with make_site(tmp_path, ["one", "two"], remotes=remotes) as site, site.mount() as m:
        old = usual_files("one")["a.big"]
        path = f"{m.path}/{ALIAS}/one/a.big"
        if resident:
            site.read_right("one")
        else:
            m.run("ls", "-l", f"{m.path}/{ALIAS}/one")
            m.call("cache_clear")
        with Held(path) as held:
            if resident:
                assert held.read(0, 100) == ("", old[:100])
            site.world.add("one", version="2")
            m.call("reload")
            site.read_right("one")  # a new open by name, at once, and under every name
            for found in probe(m, "compare", *site.pairs("one", name=DIGEST)):
                assert (found["wrong"], found["error"]) == (-1, ""), found
            for offset in (3 * BLOCK, 0, 8 * BLOCK + 5):
                error, got = held.read(offset, 20_000)
                assert error in (("",) if resident and not remotes else ("", *STALE))
                assert _is_version(got, old, offset), f"new bytes in the old file at {offset}"
        _restart_and_read(site, "one", "two")


def test_a_version_that_lost_a_file(tmp_path: Path) -> None:
    with make_site(tmp_path, ["one"]) as site, site.mount() as m:
        site.read_right("one")
        (site.world.unpacked("one") / "b.small").unlink()
        files = {name: noise(f"2 {name}", 3_000) for name in ("a.big", "e.new")}
        for name in site.world.files("one"):
            (site.world.unpacked("one") / name).unlink()
        site.world.add("one", files, version="2")
        m.call("reload")
        shown = probe(m, "list", f"{m.path}/{ALIAS}/one")[0]
        assert shown == {"error": "", "names": {"a.big": 3_000, "e.new": 3_000}}
        gone = m.run("cat", f"{m.path}/{ALIAS}/one/b.small", check=False, timeout=30)
        assert gone.returncode == 1
        assert "No such file" in gone.stderr
        _restart_and_read(site, "one")
