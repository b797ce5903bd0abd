"""Pins on a mount: a content that two keys need, a rebuilt asset, an asset that is gone."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.faults.world import DIGEST, TAG, Site, make_site, member, noise, tar_of
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
