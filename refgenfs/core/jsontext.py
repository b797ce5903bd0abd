"""JSON text read in parts: of a large object, one member at a time is ever there as values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def iter_members(text: str) -> Iterator[tuple[str, int, object]]:
    """Return name, position of the value and value of each member of the object that `text` is, in order.

    Raises TypeError, before the first, where it begins no object; ValueError where it is no JSON, and
    RecursionError where it is nested too deeply for us. Names may come twice, and the last one counts.
    """
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        raise TypeError("no JSON object")
    at = _skip(text, at + 1)
    if text[at : at + 1] == "}":
        _end(text, at + 1)
        return
    while True:
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("no name of a member", text, at)
        name, at = _DECODER.raw_decode(text, at)
        place = _skip(text, _past(":", text, at))
        value, at = _DECODER.raw_decode(text, place)
        yield name, place, value
        del value
        at = _skip(text, at)
        if text[at : at + 1] == "}":
            _end(text, at + 1)
            return
        at = _skip(text, _past(",", text, at))


def decode_at(text: str, place: int) -> object:
    """Return the value that begins there; raise ValueError."""
    value: object = _DECODER.raw_decode(text, _skip(text, place))[0]
    return value


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _past(mark: str, text: str, at: int) -> int:
    at = _skip(text, at)
    if text[at : at + 1] != mark:
        raise json.JSONDecodeError(f"no {mark!r}", text, at)
    return at + 1


def _end(text: str, at: int) -> None:
    at = _skip(text, at)
    if at != len(text):
        raise json.JSONDecodeError("more than one value", text, at)
