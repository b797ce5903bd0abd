"""Regions as samtools writes them: `chr1:1,000-2,000`, 1-based, the end included."""

from __future__ import annotations

import re
from collections.abc import Container

from refgenfs.core.errors import InvalidInput, InvalidRange, ReferenceNotFound
from refgenfs.core.htsget.model import UNPLACED, Interval, Region

_POSITIONS = re.compile(r"(?P<first>[0-9,]*)(?P<dash>-(?P<last>[0-9,]*))?")
_LONGEST = 20  # digits, and their commas


def parse_region(text: str, names: Container[str]) -> Region:
    """Parse `NAME`, `NAME:FIRST`, `NAME:FIRST-`, `NAME:-LAST`, `NAME:FIRST-LAST`, or `*`, as samtools' view does.

    A colon may be part of a name: what is one of `names` as a whole is a name, and braces (`{NAME}:1-2`) say where
    it ends. Raises InvalidInput where both readings are names, or there is none; ReferenceNotFound; InvalidRange.
    """
    if text == UNPLACED:
        return Region(UNPLACED)
    if text.startswith("{"):
        return _parse_braced(text, names)
    whole = text in names
    head, colon, tail = text.rpartition(":")
    if colon and head in names and _POSITIONS.fullmatch(tail):
        if whole:
            raise InvalidInput(f"{text!r} can mean two things; write {{{text}}} or {{{head}}}:{tail}")
        return Region(head, _interval(tail, text))
    if whole:
        return Region(text)
    if colon and head in names:
        raise InvalidInput(f"{tail!r} in {text!r} are no positions; write {head}:FIRST-LAST")
    name = head if colon and tail and _POSITIONS.fullmatch(tail) else text
    raise ReferenceNotFound(f"the file has no reference {name!r}")


def _parse_braced(text: str, names: Container[str]) -> Region:
    name, brace, rest = text[1:].rpartition("}")
    if not brace or (rest and not rest.startswith(":")):
        raise InvalidInput(f"{text!r} is no region; write {{NAME}} or {{NAME}}:FIRST-LAST")
    if name not in names:
        raise ReferenceNotFound(f"the file has no reference {name!r}")
    return Region(name, _interval(rest[1:], text) if rest else Interval())


def _interval(text: str, region: str) -> Interval:
    found = _POSITIONS.fullmatch(text)
    if found is None or not text or len(text) > 2 * _LONGEST:
        raise InvalidInput(f"{text!r} in {region!r} are no positions; write NAME:FIRST-LAST")
    first, last = _position(found["first"]), _position(found["last"])
    if first == 0 or last == 0:
        raise InvalidRange(f"positions begin with 1, in {region!r}")
    if first is not None and last is not None and first > last:
        raise InvalidRange(f"{region!r} ends before it begins")
    return Interval(None if first is None else first - 1, last)


def _position(text: str | None) -> int | None:
    digits = (text or "").replace(",", "")
    return int(digits) if digits else None
