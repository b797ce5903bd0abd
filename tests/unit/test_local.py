"""Files of a folder, without a mount: what is found, what is refused, what is kept of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from refgenfs.core.catalog_json import FactsRow, dump_facts, load_facts
from refgenfs.core.content import ByteRange, FileFacts, LocalFile
from refgenfs.core.errors import OriginDenied, OriginMissing, OriginUnavailable, StaleContent
from refgenfs.fetch.local import DEEPEST, is_near, open_below, open_version, stat_below, validator_of, walk


def found(root: Path) -> list[str]:
    return sorted(path for path, _ in walk(str(root)))


def test_what_is_found(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x")
    (tmp_path / "a" / "link").symlink_to("b/file")
    (tmp_path / "linked").symlink_to("a")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "out").symlink_to("/etc")
    assert found(tmp_path) == ["a/b/file", "a/link", "linked/b/file", "linked/link"]


def test_folders_in_folders_end(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*("d" for _ in range(DEEPEST + 5)))
    deep.mkdir(parents=True)
    (deep / "file").touch()
    (tmp_path / "file").touch()
    assert found(tmp_path) == ["file"]


def test_a_folder_that_is_gone_or_empty_is_away(tmp_path: Path) -> None:
    with pytest.raises(OriginUnavailable, match="is empty; is its file system mounted"):
        found(tmp_path)
    with pytest.raises(OriginUnavailable, match="No such file"):
        found(tmp_path / "gone")
    with pytest.raises(OriginUnavailable, match="is empty"):
        stat_below(str(tmp_path), "file")
    (tmp_path / "other").touch()
    with pytest.raises(OriginMissing):
        stat_below(str(tmp_path), "file")


@pytest.mark.parametrize("path", ["out", "outdir/file", "../outside/file", "folder", "fifo"])
def test_what_is_outside_or_no_file_is_not_opened(tmp_path: Path, path: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root, outside, root / "folder"):
        folder.mkdir()
    (outside / "file").write_bytes(b"secret")
    (root / "out").symlink_to(outside / "file")
    (root / "outdir").symlink_to(outside)
    os.mkfifo(root / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OriginDenied):
        open_below(str(root), path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_whose_name_begins_alike_is_outside(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "file").touch()
    with pytest.raises(OriginDenied, match="leads out of"):
        open_below(str(tmp_path / "root"), "../root2/file")


def test_another_version_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    extent = LocalFile(str(tmp_path), "file", validator_of(path.stat()))
    os.close(open_version(extent))
    path.write_bytes(b"three")
    with pytest.raises(StaleContent, match="was replaced or changed"):
        open_version(extent)


def test_only_disks_of_this_machine_are_near() -> None:
    assert not is_near(os.stat("/proc").st_dev)


def test_facts_of_files_of_this_machine_are_not_kept() -> None:
    row = FactsRow("/data", replaced={"a"})
    row.facts["a"] = FileFacts("c" * 40, 3, 1.0, LocalFile("/data", "a", "v"), "disk", "local")
    row.facts["b"] = FileFacts("d" * 40, 3, 1.0, ByteRange(("http://h/b",), "v"), "disk", "range")
    kept = load_facts(dump_facts(row), "disk")
    assert kept is not None
    assert set(kept.facts) == {"b"}
    assert kept.replaced == {"a"}, "that it was replaced is not forgotten"
