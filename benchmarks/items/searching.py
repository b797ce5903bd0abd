"""Searches of a whole genome's index: parsed for one query, and with the index in memory."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pysam

from benchmarks import indices
from benchmarks.bench import Bench
from benchmarks.results import MIB, OURS, Goal, Item, Sample
from refgenfs.core.htsget.bgzf import EOF_MARKER, deflate
from refgenfs.core.htsget.indexed import IndexedFile
from refgenfs.core.htsget.model import Interval, Query, Region
from refgenfs.core.htsget.opening import Sizes, open_file
from refgenfs.core.htsget.plan import Need, Part

PYSAM = "pysam (htslib)"
COUNT = 200  # queries of a run
LENGTH = 50_000  # positions of a query
RECORDS = deflate(random.Random(1).randbytes(256 * 1024))  # stand behind a header in what is read of it

_STATE = (
    f"{COUNT} intervals of {LENGTH // 1000} kb of a whole genome, one at a time; milliseconds a query. The index is "
    "made from a seed and in memory (pysam's: on the disk, its pages in memory); no record is read. "
)


@dataclass(frozen=True, slots=True)
class Case:
    """An index, and how it is opened by each of the two."""

    name: str
    index: bytes
    ours: Callable[[], IndexedFile]
    theirs: Callable[[], pysam.AlignmentFile | pysam.TabixFile]


def parsed_bai(bench: Bench) -> Item:
    """Parse a BAI of 10 MB for one query."""
    return _parsed(bench, _bai(bench))


def parsed_tbi(bench: Bench) -> Item:
    """Inflate and parse a whole genome's TBI for one query."""
    return _parsed(bench, _tbi(bench))


def kept_bai(bench: Bench) -> Item:
    """Search a BAI that is in memory."""
    return _kept(bench, _bai(bench))


def kept_tbi(bench: Bench) -> Item:
    """Search a TBI that is in memory."""
    return _kept(bench, _tbi(bench))


def _parsed(bench: Bench, case: Case) -> Item:
    size = f"{len(case.index) / MIB:.0f} MiB"
    item = Item(
        f"search-{case.name}", f"one region, the {case.name.upper()} of a whole genome ({size}) parsed for it", "ms",
        f"{_STATE}Each query parses header and index anew.", Goal("≤", 100, " ms"), "", "–",
    )  # fmt: skip
    places = list(indices.regions(COUNT // 20, LENGTH))
    item.setting = f"{len(places)} queries, {bench.runs} runs"

    def ours() -> Sample:
        return _timed(places, lambda place: _search(case.ours(), place))

    def theirs() -> Sample:
        return _timed(places, lambda place: _fetch(case.theirs(), place))

    return bench.item(item, {OURS: ours, PYSAM: theirs})


def _kept(bench: Bench, case: Case) -> Item:
    item = Item(
        f"search-{case.name}-kept", f"one region, the {case.name.upper()} of a whole genome in memory", "ms",
        f"{_STATE}The same queries were made before, so what is parsed of an index is there.",
        Goal("≤", 10, " ms"), "", "–",
    )  # fmt: skip
    places = list(indices.regions(COUNT, LENGTH))
    item.setting = f"{COUNT} queries, {bench.runs} runs"
    file, opened = case.ours(), case.theirs()
    for place in places:
        _search(file, place)

    def ours() -> Sample:
        return _timed(places, lambda place: _search(file, place))

    def theirs() -> Sample:
        return _timed(places, lambda place: _fetch(opened, place))

    return bench.item(item, {OURS: ours, PYSAM: theirs})


def _timed(places: Sequence[tuple[str, int, int]], search: Callable[[tuple[str, int, int]], object]) -> Sample:
    began = time.perf_counter()
    for place in places:
        search(place)
    return Sample(1000 * (time.perf_counter() - began) / len(places))


def _search(file: IndexedFile, place: tuple[str, int, int]) -> object:
    name, start, end = place
    return file.search(Query("x", regions=(Region(name, Interval(start, end)),)))


def _fetch(file: pysam.AlignmentFile | pysam.TabixFile, place: tuple[str, int, int]) -> object:
    """Have htslib look up where a region is; nothing is read until the first record is asked for."""
    return file.fetch(*place)


def _bai(bench: Bench) -> Case:
    (index, size), head = indices.make_bai(), indices.bam_header()
    path = _written(bench, "reads.bam", head + EOF_MARKER, ".bai", index)
    return Case("bai", index, lambda: _open(head, index, size), lambda: pysam.AlignmentFile(str(path)))


def _tbi(bench: Bench) -> Case:
    (index, size), head = indices.make_tbi(), indices.vcf_header()
    path = _written(bench, "variants.vcf.gz", head + EOF_MARKER, ".tbi", index)
    return Case("tbi", index, lambda: _open(head, index, size), lambda: pysam.TabixFile(str(path)))


def _written(bench: Bench, name: str, data: bytes, suffix: str, index: bytes) -> Path:
    path = bench.folder("search") / name
    path.write_bytes(data)
    Path(f"{path}{suffix}").write_bytes(index)  # last: an index older than its file draws a warning
    return path


def _open(head: bytes, index: bytes, size: int) -> IndexedFile:
    """Open a file of which there are only its header, its end and its index."""

    def answer(need: Need) -> bytes:
        if need.part is Part.INDEX:
            return index
        return EOF_MARKER.rjust(len(need), b"\0") if need.start else (head + RECORDS)[: len(need)]

    plan = open_file(Sizes(size, len(index)))
    needs = next(plan)
    try:
        while True:
            needs = plan.send([answer(need) for need in needs])
    except StopIteration as end:
        file: IndexedFile = end.value
        return file


ITEMS = {
    "search-bai": parsed_bai,
    "search-bai-kept": kept_bai,
    "search-tbi": parsed_tbi,
    "search-tbi-kept": kept_tbi,
}
