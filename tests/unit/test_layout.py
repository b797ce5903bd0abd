"""The names that the tree shows."""

from __future__ import annotations

import pytest

from refgenfs.core.layout import build_layout, is_junk

DIGEST = "0a2b33"


def test_the_alias_stands_where_the_digest_stood() -> None:
    layout = build_layout([f"{DIGEST}.fa", f"{DIGEST}.fa.fai", "plain.txt"], DIGEST, "hg38")
    assert {name: child.origin_name for name, child in layout.children("").items()} == {
        "hg38.fa": f"{DIGEST}.fa",
        "hg38.fa.fai": f"{DIGEST}.fa.fai",
        "plain.txt": "plain.txt",
    }


def test_under_the_digest_names_stay() -> None:
    layout = build_layout([f"{DIGEST}.fa"], DIGEST, DIGEST)
    assert list(layout.children("")) == [f"{DIGEST}.fa"]


def test_folders() -> None:
    layout = build_layout([f"Bisulfite/CT/{DIGEST}.1.bt2", "Bisulfite/x"], DIGEST, "hg38")
    assert layout.children("")["Bisulfite"].is_dir
    assert set(layout.children("Bisulfite")) == {"CT", "x"}
    assert layout.children("Bisulfite/CT")["hg38.1.bt2"].origin_name == f"Bisulfite/CT/{DIGEST}.1.bt2"
    with pytest.raises(KeyError):
        layout.children("Bisulfite/x")


def test_a_file_and_a_folder_of_one_name_the_first_stays() -> None:
    layout = build_layout(["a", "a/b"], "", "")
    assert not layout.children("")["a"].is_dir
    with pytest.raises(KeyError):
        layout.children("a")


def test_two_files_of_one_shown_name_the_first_stays() -> None:
    layout = build_layout(["hg38.fa", f"{DIGEST}.fa"], DIGEST, "hg38")
    assert layout.children("")["hg38.fa"].origin_name == f"{DIGEST}.fa"


@pytest.mark.parametrize(
    "name", [".Trash", ".Trash-1000", ".hidden", "autorun.inf", ".DS_Store", "._x", "desktop.ini"]
)
def test_junk(name: str) -> None:
    assert is_junk(name)


@pytest.mark.parametrize("name", ["hg38.fa", "chrLength.txt", "SA", "Genome", "info.json"])
def test_no_junk(name: str) -> None:
    assert not is_junk(name)
