"""Folders of regions: what their names mean, and that equal regions are one query."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.errors import HtsgetError
from refgenfs.core.htsget.model import Class, Format, Interval, Query, Region
from refgenfs.core.indices import KINDS, name_index, parse_index, shown_index
from refgenfs.core.regions import (
    References,
    canonical,
    name_beside,
    name_slice,
    parse_beside,
    parse_slice,
    query_of,
    split_names,
    union_of,
)

LENGTHS = {"11": 135_006_516, "20": 63_025_520, "HLA-A*01:01": 3503, "odd,one": 10}
REFERENCES = References(dict.fromkeys(LENGTHS), LENGTHS)


def regions(folder: str, references: References = REFERENCES) -> tuple[Region, ...]:
    return query_of(folder, "a", Format.BAM, references).regions


@pytest.mark.parametrize(
    ("folder", "meant"),
    [
        ("11:5015001-5050000", [("11", 5_015_000, 5_050_000)]),
        ("11", [("11", None, None)]),
        ("11:1-", [("11", None, None)]),
        ("11:1-135006516", [("11", None, None)]),
        ("11:100", [("11", 99, None)]),
        ("11:-100", [("11", None, 100)]),
        ("{11}:0005-0009", [("11", 4, 9)]),
        ("HLA-A*01:01", [("HLA-A*01:01", None, None)]),
        ("HLA-A*01:01:5-9", [("HLA-A*01:01", 4, 9)]),
        ("{odd,one}:5-9", [("odd,one", 4, 9)]),
        ("20,11:5-9", [("11", 4, 9), ("20", None, None)]),
        ("11:5-9,11:10-12,11:20-30", [("11", 4, 12), ("11", 19, 30)]),
        ("11:20-30,11:5-25,11:1-3", [("11", None, 3), ("11", 4, 30)]),
        ("11:5-9,11", [("11", None, None)]),
        ("*,11", [("11", None, None), ("*", None, None)]),
        ("unmapped", [("*", None, None)]),
        ("*", [("*", None, None)]),
    ],
)
def test_what_a_folder_means(folder: str, meant: list[tuple[str, int | None, int | None]]) -> None:
    assert regions(folder) == tuple(Region(name, Interval(start, end)) for name, start, end in meant)


@pytest.mark.parametrize(
    "folder",
    [
        "12", "11:5-3", "11:0-3", "11:a-b", "", ",", "11,", ",11", "11,,20", "11:1,000-2,000", "{11", "11}", "{12}",
        "11:99999999999-", "chr11", "11:5-9-12", ",".join(["11:1-2"] * 65), "11 ", ".hidden",
    ],
)  # fmt: skip
def test_what_is_no_folder(folder: str) -> None:
    with pytest.raises(HtsgetError):
        regions(folder)


def test_header_and_unmapped() -> None:
    assert query_of("header", "a", Format.VCF, REFERENCES) == Query("a", Format.VCF, Class.HEADER)
    for folder in ("unmapped", "*", "11,*"):
        with pytest.raises(HtsgetError):
            query_of(folder, "a", Format.VCF, REFERENCES)


def test_references_that_a_header_does_not_name_are_asked_for() -> None:
    bare = References({}, {}, open=True)
    assert regions("chr1:5-9", bare) == (Region("chr1", Interval(4, 9)),)
    with pytest.raises(HtsgetError):
        regions("chr1:5-9", References({}, {}))


names = st.sampled_from(["11", "20", "HLA-A*01:01"])
intervals = st.tuples(names, st.integers(0, 50), st.integers(0, 20)).map(
    lambda row: Region(row[0], Interval(row[1], row[1] + row[2] + 1))
)


@given(st.lists(intervals, min_size=1, max_size=8), st.randoms())
def test_the_same_positions_are_the_same_regions(asked: list[Region], random: object) -> None:
    def positions(of: list[Region]) -> set[tuple[str, int]]:
        return {(one.reference_name, at) for one in of for at in range(one.interval.first, one.interval.end or 4000)}

    found = canonical(asked, REFERENCES)
    assert positions(list(found)) == positions(asked)
    random.shuffle(asked)  # type: ignore[attr-defined]
    assert canonical(asked, REFERENCES) == found
    assert canonical(found, REFERENCES) == found
    union = union_of(Query("a", Format.BAM, regions=found))
    assert not union.regions or positions(list(union.regions)) >= positions(asked)
    assert len(union.regions) <= 1


def test_names_of_slices_and_of_their_indices() -> None:
    name = name_slice("11:5-9,20", "x.bam")
    assert parse_slice(name) == ("11:5-9,20", "x.bam")
    index = name_index(name, KINDS[".bai"], "beside")
    wish = parse_index(index)
    assert wish is not None
    assert wish.base == name
    assert parse_index(name) is None
    assert parse_slice(index) is None
    assert parse_slice("x.bam") is None
    beside = name_beside(".bai", "x.bam")
    assert parse_beside(beside) == (".bai", "x.bam")
    for other in (name, index, "x.bam"):
        assert parse_beside(other) is None
    assert parse_slice(beside) is None
    assert parse_index(beside) is None
    shown = [shown_index(one) for one in (name, index, beside, "x.bam")]
    assert shown == ["regions/11:5-9,20/x.bam", "regions/11:5-9,20/x.bam.bai", "x.bam.bai", "x.bam"]


def test_braces_hold_a_name_together() -> None:
    assert split_names("{a,b}:1-2,c") == ("{a,b}:1-2", "c")
