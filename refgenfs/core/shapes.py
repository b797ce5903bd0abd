"""The shapes of values that came as JSON from outside: what isn't of the shape that it should have is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from refgenfs.core.errors import IntegrityError


def or_else(value: object, missing: object) -> object:
    """Return a value, or `missing` where it is null."""
    return missing if value is None else value


def as_object(value: object, where: str, what: str) -> Mapping[str, object]:
    """Return what is a JSON object; raise IntegrityError, which names `where` and `what`."""
    if not isinstance(value, dict):
        raise IntegrityError(f"{where}: {what} is {_kind(value)}, not an object")
    return value


def as_list(value: object, where: str, what: str) -> Iterable[object]:
    """Return what is a JSON list; raise IntegrityError, which names `where` and `what`."""
    if not isinstance(value, list):
        raise IntegrityError(f"{where}: {what} is {_kind(value)}, not a list")
    return value


def as_text(value: object, where: str, what: str) -> str:
    """Return what is text; raise IntegrityError, which names `where` and `what`."""
    if not isinstance(value, str):
        raise IntegrityError(f"{where}: {what} is {_kind(value)}, not text")
    return value


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "nothing"}
    return kinds.get(type(value), "a number")


def show(text: str) -> str:
    """Return the beginning of a text as it can be shown anywhere."""
    return ascii(text[:80])
