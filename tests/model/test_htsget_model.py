"""What a search finds, joined and read by htslib, has every record that htslib finds in the whole file."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refgenfs.core.htsget.binning import BinningIndex
from refgenfs.core.htsget.edges import settle
from refgenfs.core.htsget.indexed import IndexedFile
from refgenfs.core.htsget.model import UNPLACED, Class, Format, Interval, Query, Region
from tests.support.htsfiles import Files, named_offsets
from tests.support.htsmake import Sample, make_samples, names_in

KINDS = [
    "bai", "csi14", "csi9", "csi20", "bam-split", "cram-slices", "cram-mixed", "cram-2.1",
    "tbi", "vcf-bgzip", "vcf-csi", "bcf", "bcf-csi17",
]  # fmt: skip

Place = tuple[str, int | None, int | None]
Opened = Callable[[str, bool], tuple[Sample, Files, IndexedFile]]


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    return make_samples(tmp_path_factory.mktemp("hts"))


@pytest.fixture(scope="session")
def opened(samples: dict[str, Sample]) -> Opened:
    """A sample, its files with or without a GZI, and the file as a search has it open."""

    @cache
    def once(kind: str, gzi: bool) -> tuple[Sample, Files, IndexedFile]:
        files = samples[kind].files if gzi else replace(samples[kind].files, gzi=None)
        return samples[kind], files, files.open()

    return once


@st.composite
def places(draw: st.DrawFn, sample: Sample) -> Place:
    """Draw a reference and an interval of it, near where the records are as a rule."""
    name, length = draw(st.sampled_from(sample.references))
    if sample.format.is_reads and draw(st.integers(0, 15)) == 0:
        return UNPLACED, None, None
    around = draw(st.sampled_from([0, length // 3, length // 2, max(0, length - 200_000)]))
    start = draw(st.none() | st.integers(0, 100_000).map(lambda n: min(length - 1, around + n)))
    if draw(st.booleans()) and draw(st.booleans()):
        return name, start, None
    size = draw(st.integers(1, 1_000) | st.integers(1, 200_000) | st.integers(1, 50_000_000))
    return name, start, min(length, (start or 0) + size)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_what_is_found_has_every_record(opened: Opened, tmp_path: Path, kind: str, data: st.DataObject) -> None:
    sample, files, file = opened(kind, data.draw(st.booleans()))
    wanted = data.draw(st.lists(places(sample), min_size=1, max_size=4))
    regions = tuple(Region(name, Interval(start, end)) for name, start, end in wanted)
    answer = files.run(settle(file, file.search(Query("x", regions=regions))))
    part = tmp_path / sample.path.name
    part.write_bytes(files.joined(answer))
    found = names_in(part, sample.format)
    missing = set().union(*(sample.names(place) for place in wanted)) - set(found)
    assert not missing
    order = _order(sample.path, sample.format)
    assert [order[name] for name in found] == sorted({order[name] for name in found})  # in order, and each once


@cache
def _order(path: Path, format_: Format) -> dict[str, int]:
    """Return the place of each record of the original in its order."""
    return {name: at for at, name in enumerate(names_in(path, format_))}


@pytest.mark.parametrize("kind", KINDS)
def test_every_reference_is_found_whole(opened: Opened, tmp_path: Path, kind: str) -> None:
    for gzi in (False, True):
        sample, files, file = opened(kind, gzi)
        part = tmp_path / sample.path.name
        for name, _ in sample.references:
            part.write_bytes(files.joined(files.run(settle(file, file.search(Query("x", regions=(Region(name),)))))))
            assert sample.names((name, None, None)) <= set(names_in(part, sample.format))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "cram" not in kind])
def test_boundaries_are_the_smallest_that_the_index_names(samples: dict[str, Sample], kind: str) -> None:
    """Without a GZI, ranges end where htsget-search has them end: that looks at all offsets of all references."""
    sample = samples[kind]
    assert sample.files.index is not None
    named = sorted(named_offsets(sample.files.index))
    file = replace(sample.files, gzi=None).open()
    assert isinstance(file.index, BinningIndex)
    for _ in range(2):  # before and after offsets were sorted
        for name, length in sample.references:
            number = file.references[name]
            if number is None:
                continue
            for first, end in ((0, None), (length // 2, length // 2 + 5_000)):
                for _, stop in file.index.chunks(number, first, end):
                    at = bisect_right(named, stop >> 16)
                    assert file.index.boundary_after(number, stop >> 16) == (named[at] if at < len(named) else None)


@pytest.mark.parametrize("kind", KINDS)
def test_less_is_found_than_there_is(opened: Opened, kind: str) -> None:
    """A small region is a small part of the file: the search does not just give everything."""
    sample, files, file = opened(kind, True)
    name, length = sample.references[0]
    region = Region(name, Interval(length // 2, length // 2 + 1_000))
    ranges = file.search(Query("x", regions=(region,))).ranges
    body = sum(one.stop - one.start for one in ranges) - file.header_end
    assert 0 < body < len(files.data) / 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_alone_can_be_read(opened: Opened, tmp_path: Path, kind: str) -> None:
    sample, files, file = opened(kind, True)
    answer = files.run(settle(file, file.search(Query("x", class_=Class.HEADER))))
    part = tmp_path / sample.path.name
    part.write_bytes(files.joined(answer) + files.data[file.body_end :])
    assert names_in(part, sample.format) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_file_is_one_range(opened: Opened, kind: str) -> None:
    _, files, file = opened(kind, False)
    answer = file.search(Query("x"))
    assert files.joined(answer) == files.data
    assert len(answer.ranges) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_lengths_are_the_header_s(opened: Opened, kind: str) -> None:
    sample, _, file = opened(kind, True)
    assert dict(file.lengths) == dict(sample.references)
    assert set(file.references) == {name for name, _ in sample.references}
