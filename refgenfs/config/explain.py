"""Saying what is wrong with a configuration, and what would be right, in a line for each thing."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from refgenfs.config.model import (
    LOG_LEVELS,
    PUBLIC_SERVER,
    SOURCE_MODELS,
    Config,
    PrefetchRule,
    RefgenieSource,
    Table,
)
from refgenfs.core.keys import is_name

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_WANTED = {
    "bool": "must be true or false",
    "int": "must be a whole number",
    "string": "must be text in quotes",
    "path": "must be a path in quotes",
    "tuple": "must be a list",
    "model": "must be a table",
}


def relevant(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Return the errors without those that a wrong type of source brings with it."""
    wrong = {error["loc"][:2] for error in errors if error["loc"][-1:] == ("type",) and error["loc"][0] == "source"}
    return [error for error in errors if error["loc"][:2] not in wrong or error["loc"][-1] in ("type", "name")]


def explain(error: ErrorDetails, data: Mapping[str, Any]) -> tuple[str, str]:
    """Return the dotted key that an error is about, and what would be right."""
    loc, kind = error["loc"], error["type"]
    key = _dotted(loc, data)
    if kind == "value_error":
        return key, str(error["ctx"]["error"])
    if kind == "extra_forbidden":
        return key, f"unknown key{_suggest_for(loc)}"
    if loc[-1] == "type" and loc[0] == "source":
        what = 'missing; write type = "refgenie"' if kind == "missing" else "no such type of source"
        return key, f"{what}; this version has: {', '.join(SOURCE_MODELS)}"
    if kind == "missing":
        examples = {"name": '"lab"', "url": f'"{PUBLIC_SERVER}"', "opens": '[".bwt"]', "brings": '[".sa", ".pac"]'}
        example = examples.get(str(loc[-1]), "…")
        return key, f"missing; write {loc[-1]} = {example}"
    if kind == "literal_error":
        return key, f"must be one of: {', '.join(LOG_LEVELS)}"
    if loc[:2] == ("prefetch", "rule") and len(loc) <= 3 and kind.startswith(("model", "tuple")):
        return key, "must be a table; write [[prefetch.rule]]"
    if len(loc) <= 2 and kind.startswith(("model", "tuple")):
        return key, f"must be a table; write {'[[source]]' if loc[0] == 'source' else f'[{key}]'}"
    return key, _WANTED.get(kind.split("_")[0], error["msg"])


def _dotted(loc: tuple[int | str, ...], data: Mapping[str, Any]) -> str:
    """Return the key of a location; a source goes by its name, or by its place where it has none."""
    if len(loc) > 1 and loc[0] == "source" and isinstance(loc[1], int):
        source = data["source"][loc[1]]
        name = source.get("name") if isinstance(source, dict) else None
        head = f"source.{name}" if isinstance(name, str) and is_name(name) else f"source[{loc[1] + 1}]"
        loc = (head, *loc[2:])
    text = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def _suggest_for(loc: tuple[int | str, ...]) -> str:
    if loc[:2] == ("prefetch", "rule"):
        return suggestion(str(loc[-1]), list(PrefetchRule.model_fields))
    tables = {
        **{name: list(type(table).model_fields) for name, table in Config() if isinstance(table, Table)},
        "source": list(RefgenieSource.model_fields),
    }
    name = str(loc[-1])
    if len(loc) > 1 and (close := get_close_matches(name, tables[str(loc[0])], 1)):
        return f"; did you mean {close[0]!r}?"
    owners = [f"[{table}]" for table, keys in tables.items() if name in keys and table != loc[0]]
    if owners:
        return f"; it belongs to {' or '.join(owners)}"
    return suggestion(name, tables[str(loc[0])] if len(loc) > 1 else [*tables])


def suggestion(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are: {', '.join(known)}"
