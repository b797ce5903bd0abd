"""Sizes and durations, read and written."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core import units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (4096, 4096),
        ("0", 0),
        ("4096", 4096),
        ("200GB", 200 * 10**9),
        ("200GiB", 200 * 2**30),
        (" 1.5 gib ", 3 * 2**29),
        ("1kB", 1000),
        ("1KIB", 1024),
        ("512 MiB", 2**29),
        ("12b", 12),
        ("0.5kB", 500),
        ("1.0001kB", 1000),
    ],
)
def test_sizes_are_read(text: object, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "is no size"),
        ("GB", "is no size"),
        ("-1GB", "is no size"),
        (-1, "can't be negative"),
        ("nan", "is no size"),
        ("inf", "is no size"),
        (math.inf, "is no size"),
        (1.5, "is no size"),
        (True, "is no size"),
        (None, "is no size"),
        ([], "is no size"),
        ("1e9", "is no size"),
        ("0x10", "is no size"),
        ("1_000", "is no size"),
        ("٣GB", "is no size"),
        ("5 GB free", "is no size"),
        ("20GBs", "'GBs' in '20GBs' is no unit"),
        ("20Gb/s", "is no size"),
        ("20G", "write 20GB (powers of 1000) or 20GiB (powers of 1024)"),
        ("20k", "write 20kB (powers of 1000) or 20KiB (powers of 1024)"),
        ("9999999PB", "larger than any file"),
    ],
)
def test_what_is_no_size_says_what_would_be(text: object, wanted: str) -> None:
    with pytest.raises(ValueError, match="write") as caught:
        units.parse_size(text)
    assert wanted in str(caught.value)


@given(st.integers(0, 2**63 - 1))
def test_sizes_are_written_exactly(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size


def test_sizes_are_written_as_people_do() -> None:
    for text in ("0B", "1500B", "200GB", "64MiB", "1kB", "4KiB", "3TiB"):
        assert units.format_size(units.parse_size(text)) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (0, 0.0),
        (30, 30.0),
        (0.25, 0.25),
        ("30", 30.0),
        ("500ms", 0.5),
        ("30s", 30.0),
        ("5m", 300.0),
        ("5 min", 300.0),
        ("1h", 3600.0),
        ("1.5H", 5400.0),
        ("2d", 172800.0),
    ],
)
def test_durations_are_read(text: object, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "s", "-5s", -5, "nan", math.nan, math.inf, "inf", True, None, "5 weeks", "1h30m", "5S s", 1e10, "99999d"],
)
def test_what_is_no_duration_says_what_would_be(text: object) -> None:
    with pytest.raises(ValueError, match='write a duration like "500ms"'):
        units.parse_duration(text)


@given(st.floats(0, 1e9))
def test_durations_are_written_exactly(seconds: float) -> None:
    assert units.parse_duration(units.format_duration(seconds)) == seconds


def test_durations_are_written_as_people_do() -> None:
    for text in ("0s", "500ms", "30s", "90s", "5m", "1h", "36h", "2d"):
        assert units.format_duration(units.parse_duration(text)) == text


def test_numbers_for_people() -> None:
    sizes = (0, 999, 1000, 999_499, 999_500, 2_938_400_000, 12_345, 5 * 10**18)
    assert [units.human_bytes(size) for size in sizes] == [
        "0 B", "999 B", "1.00 kB", "999 kB", "1.00 MB", "2.94 GB", "12.3 kB", "5000 PB",
    ]  # fmt: skip
    assert units.human_rate(118e6) == "118 MB/s"
    assert [units.human_duration(s) for s in (0.35, 4.21, 42, 61, 3599.6, 8062, 90_000)] == [
        "350 ms", "4.2 s", "42 s", "1 min 01 s", "1 h 00 min", "2 h 14 min", "1 d 1 h",
    ]  # fmt: skip
    assert [units.human_age(s) for s in (-1, 5, 65, 7300, 200_000)] == [
        "0 s ago", "5 s ago", "1 min ago", "2 h ago", "2 d ago",
    ]  # fmt: skip


def test_shares_are_whole_only_where_they_are() -> None:
    pairs = ((0, 0), (0, 7), (1, 1000), (17, 100), (99_995, 100_000), (999_999_999, 10**9), (7, 7))
    assert [units.human_percent(part, whole) for part, whole in pairs] == [
        "0 %", "0 %", "<1 %", "17 %", "99.99 %", "99.99 %", "100 %",
    ]  # fmt: skip


@given(st.floats(0, 1e20))
def test_a_size_for_people_is_short(size: float) -> None:
    number, _, unit = units.human_bytes(size).partition(" ")
    assert len(number) <= 4 or unit == "PB"
    assert unit in ("B", "kB", "MB", "GB", "TB", "PB")


@given(st.floats(0, 1e9))
def test_a_duration_for_people_never_says_sixty(seconds: float) -> None:
    words = units.human_duration(seconds).split()
    for number, unit in zip(words[::2], words[1::2], strict=True):
        assert unit in ("ms", "d") or float(number) < 60


def test_one_thing_is_not_plural() -> None:
    assert [units.counted(number, "file") for number in (0, 1, 2, 2000)] == [
        "0 files",
        "1 file",
        "2 files",
        "2,000 files",
    ]
