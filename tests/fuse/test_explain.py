"""`refgenfs explain` on real mounts: it fetches nothing, and what it says of a read is what the read then does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refgenfs.core.content import BLOCK
from tests.faults.world import ALIAS, Site, make_site
from tests.support.mounted import Setup

pytestmark = pytest.mark.needs_fuse

NAMES = ["a.big", "b.small", "c.exact", "d.empty"]


@pytest.fixture(params=[True, False], ids=["ranges", "archive"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A mount with one asset, by byte ranges or as an archive; nothing of it is in the cache."""
    with make_site(tmp_path, ["one"], remotes=request.param) as made, made.mount():
        yield made


def explained(site: Site, *arguments: str) -> list[dict[str, Any]]:
    answer = json.loads(site.m.refgenfs("explain", "--json", *arguments).stdout)
    assert answer["more"] == 0
    files: list[dict[str, Any]] = answer["files"]
    return files


def sent(site: Site) -> tuple[int, int]:
    """Return bytes and requests of the files so far."""
    status = site.m.status()
    return status["fetched"], status["requests"]


def path(site: Site, name: str = "a.big") -> str:
    return str(site.m.path / ALIAS / "one" / name)


def read_block(site: Site, index: int, name: str = "a.big") -> None:
    """Read one block past the kernel's pages, so that nothing is read ahead."""
    site.m.run(
        "dd", f"if={path(site, name)}", "of=/dev/null", f"bs={BLOCK}", f"skip={index}", "count=1", "iflag=direct"
    )


def test_a_path_and_a_key_mean_the_same_files(site: Site) -> None:
    by_key = explained(site, f"{ALIAS}/one")
    assert [file["file"] for file in by_key] == NAMES
    for same in (f"{ALIAS}/one/", str(site.m.path / ALIAS / "one"), f"{ALIAS}/one:default/", f"{ALIAS}/one/default"):
        assert [file["content"] for file in explained(site, same)] == [file["content"] for file in by_key], same
    for one in by_key:
        (alone,) = explained(site, f"{ALIAS}/one/{one['file']}")
        assert {**alone, "path": ""} == {**one, "path": ""}
        assert explained(site, path(site, one["file"])) == [alone]
        assert alone["path"] == path(site, one["file"])


def test_it_fetches_nothing_of_a_file(site: Site) -> None:
    explained(site, f"{ALIAS}/one")
    before = sent(site)
    for _ in range(3):
        explained(site, f"{ALIAS}/one")
    assert sent(site) == before
    assert before[0] < 10_000, "a listing and sizes"
    assert all(file["resident_bytes"] == 0 for file in explained(site, f"{ALIAS}/one"))


def test_what_it_says_of_ranges_is_what_a_pull_does(tmp_path: Path) -> None:
    with make_site(tmp_path, ["one"], remotes=True) as site, site.mount():
        said = explained(site, f"{ALIAS}/one")
        assert [file["route"] for file in said] == ["range", "range", "range", "inline"]
        before = sent(site)
        site.m.refgenfs("pull", f"{ALIAS}/one")
        after = sent(site)
        assert after[0] - before[0] == sum(file["read"]["bytes"] for file in said)
        assert after[1] - before[1] == sum(file["read"]["requests"] for file in said)
        assert {file["read"]["bytes"] for file in explained(site, f"{ALIAS}/one")} == {0}
        assert [file["resident"] for file in explained(site, f"{ALIAS}/one")] == [100] * 4


def test_what_is_here_is_said_by_the_byte(tmp_path: Path) -> None:
    with make_site(tmp_path, ["one"], remotes=True) as site, site.mount():
        for index in (3, 9):
            read_block(site, index)
        (file,) = explained(site, path(site))
        ranges = [(start, stop) for start, stop in file["resident_ranges"]]
        assert sum(stop - start for start, stop in ranges) == file["resident_bytes"]
        assert any(start <= 3 * BLOCK < stop for start, stop in ranges)
        (part,) = explained(site, "--offset", str(3 * BLOCK + 5), "--length", "10", path(site))
        assert part["read"]["bytes"] == 0
        (beyond,) = explained(site, "--offset", "1GB", path(site))
        assert beyond["read"]["bytes"] == 0
        gap = next(index for index in range(18) if not any(a <= index * BLOCK < b for a, b in ranges))
        (one,) = explained(site, "--offset", str(gap * BLOCK), "--length", "1", path(site))
        assert (one["read"]["bytes"], one["read"]["requests"]) == (BLOCK, 1)


def test_what_it_says_of_spans_is_what_a_read_does(tmp_path: Path) -> None:
    with make_site(tmp_path, remotes=False) as site:
        site.world.add("one")
        site.world.publish()
        with site.mount():
            (unread,) = explained(site, path(site))
            assert (unread["route"], unread["size"], unread["read"]["bytes"]) == ("stream", None, None)
            site.read_right("one")
            site.m.refgenfs("evict", f"{ALIAS}/one")
            (said,) = explained(site, "--offset", str(5 * BLOCK), "--length", "1", path(site))
            assert (said["route"], said["resident_bytes"]) == ("spans", 0)
            assert said["read"]["missing"] == BLOCK
            before = sent(site)
            site.drop_pages("one")
            read_block(site, 5)
            after = sent(site)
            assert after[0] - before[0] >= said["read"]["bytes"] > 0
            assert after[1] - before[1] >= said["read"]["requests"] == 1


def test_who_pins_it_and_why_it_is_slow(site: Site) -> None:
    site.m.refgenfs("pull", "--pin", f"{ALIAS}/one")
    (file,) = explained(site, path(site))
    assert file["pinned_by"] == [f"{ALIAS}/one:default"]
    assert file["slow"] == []
    site.m.refgenfs("unpin", f"{ALIAS}/one")
    site.m.refgenfs("evict", f"{ALIAS}/one")
    site.drop_pages("one")
    site.stop_origin()
    site.read_or("EIO", "ETIMEDOUT", asset="one")
    (file,) = explained(site, path(site))
    assert file["slow"]
    assert file["slow"][0].startswith("origin fails: http://")
    printed = site.m.refgenfs("explain", path(site))
    assert "origin fails" in printed.stderr
    assert "a read fetches" in printed.stdout


def test_no_secret_is_told(site: Site) -> None:
    for file in explained(site, f"{ALIAS}/one"):
        assert all("?" not in place for place in file["from"])
    text = site.m.refgenfs("explain", path(site)).stdout
    assert "?tag=" not in text


def test_what_is_not_there_is_said_in_one_line(site: Site) -> None:
    for what, why in (
        ("/nowhere/at/all", "below no mountpoint"),
        (f"{ALIAS}/absent", "absent"),
        (f"{ALIAS}/one/absent", "has no file 'absent'"),
        (f"{ALIAS}/one/a.big/x", "is a file, and no folder"),
        (f"{ALIAS}/one.absent", "no seek key 'absent'"),
        (ALIAS, "name a file or an asset's folder"),
    ):
        done = site.m.refgenfs("explain", what, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert why in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_what_could_be_made_is_not_made_for_it(tmp_path: Path) -> None:
    with make_site(tmp_path, remotes=True) as site:
        site.world.add("plain", {"x.fa": b">x\nACGT\n"})
        site.world.publish()
        with site.mount() as mounted:
            index = str(mounted.path / ALIAS / "plain" / "x.fa.fai")
            (unmade,) = explained(site, index)
            assert (unmade["route"], unmade["size"], unmade["file"]) == ("made", None, "x.fa.fai")
            assert [file["file"] for file in explained(site, f"{ALIAS}/plain")] == ["x.fa"]
            assert mounted.run("cat", index).stdout == "x\t4\t3\t4\t5\n"
            (made,) = explained(site, index)
            assert (made["route"], made["from"]) == ("generated", [f"x.fa of {ALIAS}/plain:default"])
            assert made["read"]["bytes"] == 0


def test_a_folder_of_this_machine_is_read_where_it_is(tmp_path: Path) -> None:
    home = tmp_path / "genomes"
    home.mkdir()
    (home / "x.fa").write_bytes(b">x\nACGT\n")
    sources = (
        f'[[source]]\nname = "here"\ntype = "local"\npath = "{home}"\n'
        '[[source.asset]]\nkey = "t/fasta"\nfiles = ["x.fa"]\n'
    )
    with Setup(tmp_path, sources=sources).mount() as mounted:
        (file,) = json.loads(mounted.refgenfs("explain", "--json", "t/fasta").stdout)["files"]
    assert (file["route"], file["from"]) == ("straight", [str(home / "x.fa")])
    assert (file["read"]["requests"], file["read"]["bytes"]) == (0, 0)
