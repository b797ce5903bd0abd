"""Queries as htsget 1.3 sends them: the parameters of a GET, the JSON of a POST (hts-specs, `htsget.md`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from refgenfs.core.errors import InvalidInput, InvalidRange, PayloadTooLarge, UnsupportedFormat
from refgenfs.core.htsget.model import LARGEST_POSITION, Class, Format, Interval, Query, Region

MAX_BODY = 1 << 20  # bytes
MAX_REGIONS = 10_000
_LISTS = ("fields", "tags", "notags")
_FIELDS = frozenset(["QNAME", "FLAG", "RNAME", "POS", "MAPQ", "CIGAR", "RNEXT", "PNEXT", "TLEN", "SEQ", "QUAL"])


class Endpoint(StrEnum):
    """What is asked for: each has formats of its own, the first of which is the default."""

    READS = "reads"
    VARIANTS = "variants"

    @property
    def formats(self) -> tuple[Format, Format]:
        """The formats that it has."""
        return (Format.BAM, Format.CRAM) if self is Endpoint.READS else (Format.VCF, Format.BCF)


def parse_get(endpoint: Endpoint, id_: str, parameters: Iterable[tuple[str, str]]) -> Query:
    """Return the query that the parameters of a GET are, decoded already.

    Raises InvalidInput, InvalidRange and UnsupportedFormat. Parameters that the protocol has not are passed over.
    """
    given: dict[str, str] = {}
    for key, value in parameters:
        if key in given:
            raise InvalidInput(f"{key} is there twice")
        given[key] = value
    others = sorted(given.keys() & {"referenceName", "start", "end", "fields", "tags", "notags"})
    class_ = _class(given.get("class"), others)
    name, start, end = given.get("referenceName"), _digits(given, "start"), _digits(given, "end")
    if name is None and (start is not None or end is not None):
        raise InvalidInput("start and end need a referenceName")
    regions = () if name is None else (Region(name, Interval(start, end)),)
    lists = {key: _names(given.get(key), endpoint, key) for key in _LISTS}
    format_ = _format(endpoint, given.get("format"))
    return Query(id_, format_, class_, regions, lists["fields"], lists["tags"], lists["notags"])


def parse_post(endpoint: Endpoint, id_: str, parameters: Iterable[tuple[str, str]], body: bytes) -> Query:
    """Return the query that the body of a POST is; it has no parameters in its URL.

    Raises as `parse_get` does, and PayloadTooLarge.
    """
    if tuple(parameters):
        raise InvalidInput("a POST has its query in its body, and no parameters in its URL")
    if len(body) > MAX_BODY:
        raise PayloadTooLarge(f"the body has {len(body)} bytes; {MAX_BODY} are allowed")
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise InvalidInput("the body is no JSON") from exc
    if not isinstance(given, dict):
        raise InvalidInput("the body is no JSON object")
    class_ = _class(given.get("class"), sorted(given.keys() & {"regions", "fields", "tags", "notags"}))
    lists = {key: _names(given.get(key), endpoint, key) for key in _LISTS}
    format_ = _format(endpoint, given.get("format"))
    regions = _regions(given["regions"]) if "regions" in given else ()
    return Query(id_, format_, class_, regions, lists["fields"], lists["tags"], lists["notags"])


def _class(value: object, others: list[str]) -> Class | None:
    if value is None:
        return None
    if value != Class.HEADER:
        raise InvalidInput("class can only be header")
    if others:
        raise InvalidInput(f"class=header goes with the format only, not with {', '.join(others)}")
    return Class.HEADER


def _format(endpoint: Endpoint, value: object) -> Format:
    if value is None:
        return endpoint.formats[0]
    for known in endpoint.formats:
        if value == known:
            return known
    raise UnsupportedFormat(f"/{endpoint} has {' and '.join(endpoint.formats)}, not {str(value)[:40]!r}")


def _digits(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise InvalidInput(f"{name} is no number from 0 to {LARGEST_POSITION}")
    return int(text)


def _names(value: object, endpoint: Endpoint, what: str) -> frozenset[str] | None:
    """Return the names of a list: with commas in a GET, a JSON array in a POST."""
    if value is None:
        return None
    parts = ([] if not value else value.split(",")) if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(one, str) for one in parts):
        raise InvalidInput(f"{what} is no list of names")
    unknown = set(parts) - _FIELDS if what == "fields" and endpoint is Endpoint.READS else ()
    if unknown:
        raise InvalidInput(f"no such fields: {', '.join(sorted(unknown))[:80]}")
    return frozenset(parts)


def _regions(value: object) -> tuple[Region, ...]:
    if not isinstance(value, list) or not value:
        raise InvalidInput("regions is a list, and not an empty one")
    if len(value) > MAX_REGIONS:
        raise PayloadTooLarge(f"{len(value)} regions; {MAX_REGIONS} are allowed")
    return tuple(_region(one) for one in value)


def _region(value: Any) -> Region:
    if not isinstance(value, dict) or not isinstance(value.get("referenceName"), str):
        raise InvalidInput("a region is an object with a referenceName")
    start, end = value.get("start"), value.get("end")
    for name, number in (("start", start), ("end", end)):
        if number is not None and type(number) is not int:
            raise InvalidInput(f"{name} of a region is no number from 0 to {LARGEST_POSITION}")
    if end is not None and (start or 0) >= end:
        raise InvalidRange(f"the region of {value['referenceName']!r} ends before it begins, or is empty")
    return Region(value["referenceName"], Interval(start, end))
