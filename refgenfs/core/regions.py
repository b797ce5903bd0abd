"""Slices of files as folders: `regions/11:1-2000,X/`, `regions/header/`, `regions/unmapped/`.

Regions are written as samtools writes them (1-based, the end included), several joined by `,`. Commas within
numbers are not taken: they would be two regions. Equal regions are one content, however they are written.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass

from refgenfs.core.errors import InvalidInput
from refgenfs.core.htsget.model import UNPLACED, Class, Format, Interval, Query, Region
from refgenfs.core.htsget.regions import parse_region
from refgenfs.core.layout import DERIVED

FOLDER = "regions"
HEADER = "header"
UNMAPPED = "unmapped"
MOST = 64  # regions of one folder: a name has 255 bytes
_TAG = f"{DERIVED}{FOLDER}{DERIVED}"
_BESIDE = f"{DERIVED}origin{DERIVED}"


@dataclass(frozen=True, slots=True)
class References:
    """The references that a file names, in its order, and those of their lengths that it tells.

    `open`: it need not name all that it has, so others are asked for too.
    """

    names: Mapping[str, object]
    lengths: Mapping[str, int]
    open: bool = False


class _Anything(Container[str]):
    """All names that can be a reference's, when nothing tells which there are."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(name) and ":" not in name


def split_names(folder: str) -> tuple[str, ...]:
    """Return the texts of a folder's regions, which braces may hold together; raise InvalidInput."""
    texts, depth = [""], 0
    for char in folder:
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            texts.append("")
        else:
            texts[-1] += char
    if depth or "" in texts or len(texts) > MOST:
        raise InvalidInput(f"{folder!r} is no list of regions; write NAME:FIRST-LAST, several joined by ','")
    return tuple(texts)


def query_of(folder: str, id_: str, format_: Format, references: References) -> Query:
    """Return the query that a folder stands for in a file, in its canonical form.

    Raises InvalidInput, InvalidRange or ReferenceNotFound for a name that is no folder of this file.
    """
    if folder == HEADER:
        return Query(id_, format_, Class.HEADER)
    if folder == UNMAPPED:
        regions: tuple[Region, ...] = (Region(UNPLACED),)
    else:
        known: Container[str] = references.names
        if references.open and not references.names:
            known = _Anything()
        regions = canonical((parse_region(text, known) for text in split_names(folder)), references)
    if UNPLACED in (region.reference_name for region in regions) and not format_.is_reads:
        raise InvalidInput(f"{UNMAPPED} means reads, and a {format_} has none")
    return Query(id_, format_, regions=regions)


def canonical(regions: Iterable[Region], references: References) -> tuple[Region, ...]:
    """Return regions in the file's order, those that meet as one, without positions that say nothing."""
    found: dict[str, list[Interval]] = {}
    for region in regions:
        found.setdefault(region.reference_name, []).append(_bare(region, references))
    order = {name: rank for rank, name in enumerate(references.names)}
    last = len(order)
    names = sorted(found, key=lambda name: (name == UNPLACED, order.get(name, last), name))
    return tuple(Region(name, interval) for name in names for interval in _join(found[name]))


def _bare(region: Region, references: References) -> Interval:
    length = references.lengths.get(region.reference_name, 0)
    start, end = region.interval.start or None, region.interval.end
    if end is not None and 0 < length <= end and (start or 0) < length:
        end = None
    return Interval(start, end)


def _join(intervals: Iterable[Interval]) -> list[Interval]:
    joined: list[Interval] = []
    for one in sorted(intervals, key=lambda one: one.first):
        before = joined[-1] if joined else None
        if before is not None and (before.end is None or one.first <= before.end):
            end = None if before.end is None or one.end is None else max(before.end, one.end)
            joined[-1] = Interval(before.start, end)
        else:
            joined.append(one)
    return joined


def union_of(query: Query) -> Query:
    """Return a query with one region at the most that has all of a query's: all of the file for two references."""
    names: Collection[str] = {region.reference_name for region in query.regions}
    if len(names) != 1:
        return Query(query.id, query.format)
    intervals = [region.interval for region in query.regions]
    ends = [interval.end for interval in intervals]
    end = None if None in ends else max(one for one in ends if one is not None)
    start = min(interval.first for interval in intervals) or None
    return Query(query.id, query.format, regions=(Region(next(iter(names)), Interval(start, end)),))


# ---- names of slices, as the tree uses them


def name_slice(folder: str, file: str) -> str:
    """Return the origin's name, as the tree uses it, of a file in a folder of regions."""
    return f"{_TAG}{folder}{DERIVED}{file}"


def parse_slice(name: str) -> tuple[str, str] | None:
    """Return the folder and the file of which `name_slice` made a name; None: it has made no such."""
    if not name.startswith(_TAG):
        return None
    folder, found, file = name.removeprefix(_TAG).partition(DERIVED)
    return (folder, file) if found and folder and file and DERIVED not in file else None


def name_beside(ending: str, file: str) -> str:
    """Return the origin's name, as the tree uses it, of the index that an origin has beside a file."""
    return f"{_BESIDE}{ending}{DERIVED}{file}"


def parse_beside(name: str) -> tuple[str, str] | None:
    """Return the ending and the file of which `name_beside` made a name; None: it has made no such."""
    if not name.startswith(_BESIDE):
        return None
    ending, found, file = name.removeprefix(_BESIDE).partition(DERIVED)
    return (ending, file) if found and file and DERIVED not in file and ending.startswith(".") else None


def shown_slice(name: str) -> str:
    """Return the name of a file as people see it, be it a slice, an origin's index or any other."""
    parsed, beside = parse_slice(name), parse_beside(name)
    if beside is not None:
        return beside[1] + beside[0]
    return name if parsed is None else f"{FOLDER}/{parsed[0]}/{parsed[1]}"
