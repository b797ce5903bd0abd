"""Pins on a mount: a content that two keys need, a rebuilt asset, an asset that is gone."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.world import DIGEST, TAG, Site, make_site, member, noise, tar_of
from tests.support.faulty_origin import Fault
from tests.support.mounted import Mounted

ROUTES = pytest.mark.parametrize("remotes", [False, True], ids=["archive", "ranges"])
FASTA = noise("fasta", 300_000)


def linked(site: Site) -> None:
    """Add an asset with a file, and an index that has a link to it."""
    site.world.add("fa", {"a.big": FASTA})
    target = f"/elsewhere/{DIGEST}/fa/{TAG}/a.big"
    members = [
        (member(f"{TAG}/", kind=tarfile.DIRTYPE), b""),
        (member(f"{TAG}/a.big", kind=tarfile.SYMTYPE, link=target), b""),
        (member(f"{TAG}/b.small", 5000), noise("small", 5000)),
    ]
    site.world.add("idx", {"a.big": FASTA, "b.small": noise("small", 5000)}, archive=gzip.compress(tar_of(members)))


def pins(m: Mounted, asset: str) -> tuple[bool, list[str]]:
    info: dict[str, Any] = m.call("info", key=f"tiny/{asset}")
    return info["pinned"], info["pinned_by"]


def test_an_index_and_its_fasta_are_pinned_each_for_itself(tmp_path: Path) -> None:
    with make_site(tmp_path) as site:
        linked(site)
        with site.mount() as m:
            m.refgenfs("pull", "--pin", "tiny/fa", "tiny/idx")
            done = m.refgenfs("unpin", "tiny/fa")
            assert "tiny/fa stays pinned: tiny/idx:default needs it, too" in done.stderr, done.stderr
            assert pins(m, "idx") == (True, ["tiny/idx:default"])
            assert pins(m, "fa") == (True, ["tiny/idx:default"])
            refused = m.refgenfs("evict", "tiny/fa", check=False)
            assert refused.returncode == 1
            assert "`refgenfs unpin tiny/idx:default` first" in refused.stderr
            m.kill()
        with site.mount() as m:
            assert pins(m, "fa") == (True, ["tiny/idx:default"])
            shown = os.getxattr(f"{m.path}/tiny/fa/a.big", "user.refgenfs.pinned")
            assert shown == b"1"
            m.refgenfs("pin", f"{DIGEST}/fa.fa:{TAG}")
            m.refgenfs("unpin", "tiny/idx")
            assert pins(m, "idx")[0] is False
            assert pins(m, "fa") == (True, ["tiny/fa.fa:default"])
            done = m.refgenfs("unpin", "tiny/fa")
            assert "tiny/fa stays pinned: tiny/fa.fa:default needs it, too" in done.stderr, done.stderr
            assert m.status()["cache"]["pinned"] == len(FASTA)
            m.refgenfs("unpin", "tiny/fa.fa")
            assert pins(m, "fa") == (False, [])
            assert m.status()["cache"]["pinned"] == 0


@pytest.mark.parametrize("wrong", ["tiny/never", "tiny/b.never", "tiny/b"])
def test_of_several_keys_all_are_looked_at_before_one_is_touched(tmp_path: Path, wrong: str) -> None:
    with make_site(tmp_path, ["a", "b"]) as site, site.mount() as m:
        m.refgenfs("pull", "tiny/a")
        m.refgenfs("pull", "--pin", "tiny/b")
        held = m.status()["cache"]["used"]
        assert m.refgenfs("evict", "tiny/a", wrong, check=False).returncode == 1
        assert m.call("info", key="tiny/a")["resident"] == 100
        if wrong != "tiny/b":
            assert m.refgenfs("pin", "tiny/a", wrong, check=False).returncode == 1
            assert pins(m, "a") == (False, [])
            m.refgenfs("evict", "tiny/a")
            assert m.refgenfs("pull", "tiny/a", wrong, check=False).returncode == 1
            assert m.call("info", key="tiny/a")["resident"] == 0
            assert m.status()["cache"]["used"] < held


def test_a_file_of_a_pinned_asset_is_not_unpinned_alone(tmp_path: Path) -> None:
    with make_site(tmp_path, ["a"], remotes=True) as site, site.mount() as m:
        m.refgenfs("pull", "--pin", "tiny/a")
        refused = m.refgenfs("unpin", "tiny/a.a", check=False)
        assert refused.returncode == 1
        assert "tiny/a.a is pinned with all of tiny/a:default" in refused.stderr
        m.refgenfs("unpin", "tiny/a.dir")  # which is all of it
        assert pins(m, "a") == (False, [])


@ROUTES
def test_a_pin_follows_its_key_to_the_rebuilt_asset(tmp_path: Path, remotes: bool) -> None:
    with make_site(tmp_path, ["a"], remotes=remotes) as site, site.mount() as m:
        m.refgenfs("pull", "--pin", "tiny/a")
        held = m.status()["cache"]["pinned"]
        site.world.add("a", version="2")
        m.call("reload")
        assert m.status()["cache"]["pinned"] == held, "nothing is let go before there is something new"
        site.drop_pages("a")
        site.read_right("a", only="a.big")
        info = m.call("info", key="tiny/a")
        assert [row["pinned"] for row in info["files"] if row["name"] == "a.big"] == [True]
        assert 0 < m.status()["cache"]["pinned"] <= held
        m.refgenfs("pull", "tiny/a")
        assert pins(m, "a") == (True, ["tiny/a:default"])
        assert m.status()["cache"]["pinned"] == held
        m.refgenfs("unpin", "tiny/a")
        assert m.status()["cache"]["pinned"] == 0


def test_what_is_in_no_catalog_any_more_can_be_unpinned(tmp_path: Path) -> None:
    with make_site(tmp_path, ["a", "b"], remotes=True) as site, site.mount() as m:
        m.refgenfs("pull", "--pin", "tiny/a", "tiny/b")
        del site.world.assets["a"]
        site.world.publish()
        m.call("reload")
        held = m.status()["cache"]["pinned"]
        refused = m.refgenfs("unpin", "tiny/never", check=False)
        assert "in no catalog" in refused.stderr
        m.refgenfs("unpin", f"tiny/a:{TAG}")
        assert m.status()["cache"]["pinned"] < held
        assert pins(m, "b")[0]


def claims(m: Mounted) -> dict[str, list[str | None]]:
    """Return for whom each key is pinned."""
    return {row["key"]: [one["name"] for one in row["for"]] for row in m.call("pins")["keys"]}


def eventually(true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "that did not come"
        time.sleep(0.05)


def test_jobs_pin_for_themselves_and_let_go_of_their_own(tmp_path: Path) -> None:
    with make_site(tmp_path, ["a", "b"], remotes=True) as site:
        with site.mount() as m:
            m.refgenfs("pull", "--pin", "--for", "job-1", "--lease", "2d", "tiny/a", "tiny/b")
            m.refgenfs("pull", "--pin", "--for", "job-2", f"{DIGEST}/a")
            m.refgenfs("pin", "tiny/b")
            assert claims(m) == {"tiny/a:default": ["job-1", "job-2"], "tiny/b:default": [None, "job-1"]}
            refused = m.refgenfs("unpin", "tiny/a")
            assert "tiny/a stays pinned for job-1, job-2" in refused.stderr
            m.kill()
        with site.mount() as m:
            shown = m.refgenfs("pins").stdout
            rows = [line.split(maxsplit=4) for line in shown.splitlines()[1:]]
            assert [(row[0][:6], row[3], row[4]) for row in rows] == [
                ("tiny/a", "job-1", "1 d 23 h"),
                ("tiny/a", "job-2", "–"),
                ("tiny/b", "–", "–"),
                ("tiny/b", "job-1", "1 d 23 h"),
            ]
            m.refgenfs("pull", "tiny/a")  # without a pin of its own it changes nothing of whose pin it is
            done = m.refgenfs("unpin", "--for", "job-1")
            assert "tiny/a:default stays pinned for job-2" in done.stderr
            assert "tiny/b:default stays pinned for whoever gave no name" in done.stderr
            assert pins(m, "a") == (True, ["tiny/a:default"])
            m.refgenfs("unpin", "--for", "job-2", "tiny/b")  # which it has not pinned
            m.refgenfs("unpin", "--for", "job-2", "tiny/a")
            assert pins(m, "a") == (False, [])
            m.refgenfs("unpin", "tiny/b")
            assert m.call("pins") == {"keys": []}
            assert "nothing is pinned" in m.refgenfs("pins").stderr
            again = m.refgenfs("unpin", "--for", "job-1")  # as an epilog that runs twice
            assert (again.stdout, again.returncode) == ("", 0)


def test_a_pin_of_a_moment_is_over_by_itself(tmp_path: Path) -> None:
    with make_site(tmp_path, ["a"], remotes=True) as site, site.mount() as m:
        m.refgenfs("pull", "--pin", "--for", "job-1", "--lease", "100ms", "tiny/a")
        eventually(lambda: pins(m, "a") == (False, []))
        assert m.call("info", key="tiny/a")["resident"] == 100


def test_letting_go_of_a_name_ends_what_is_pulled_for_it(tmp_path: Path) -> None:
    with make_site(tmp_path, ["a", "b"], remotes=True) as site:
        site.setup.limits = {}
        site.setup.sources = site.setup.sources.replace('"500ms"', '"60s"')
        site.origin.faults = [Fault("stall", "/files/*/a__*/a.big", times=None, after=1000)]
        with site.mount() as m:
            command = [sys.executable, "-m", "refgenfs", "pull", "--pin", "--for", "job-1", "tiny/b", "tiny/a"]
            environ = {**m.environ, "REFGENFS_CONFIG": str(m.config)}
            puller = subprocess.Popen(["timeout", "-s", "KILL", "60", *command], env=environ, stderr=subprocess.PIPE)
            try:
                eventually(lambda: claims(m) == {"tiny/b:default": ["job-1"]})
                eventually(
                    lambda: any(path.endswith("a.big") and "/a__" in path for path in site.origin.stats().paths)
                )
                m.refgenfs("unpin", "--for", "job-1", timeout=20)
                _, said = puller.communicate(timeout=20)
                assert puller.returncode == 1
                assert b"job-1 was let go of" in said
                assert claims(m) == {}
            finally:
                puller.kill()
                puller.communicate()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pull", "--for", "job-1", "tiny/a"), "give --pin, too"),
        (("pin", "--for", "../x", "tiny/a"), "no name to pin for"),
        (("pin", "--lease", "soon", "tiny/a"), "--lease: 'soon' is no duration"),
        (("pin", "--lease", "0", "tiny/a"), "a lease is a number of seconds, more than 0"),
        (("unpin",), "name the keys to unpin, or --for NAME"),
    ],
)
def test_what_cannot_be_meant_is_refused(site_of_one: Mounted, arguments: tuple[str, ...], said: str) -> None:
    refused = site_of_one.refgenfs(*arguments, check=False)
    assert refused.returncode == 1
    assert said in refused.stderr


@pytest.fixture(scope="module")
def site_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with make_site(tmp_path_factory.mktemp("one"), ["a"], remotes=True) as site, site.mount() as m:
        yield m
