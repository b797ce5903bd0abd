"""Saying what is wrong with a configuration, and what would be right, in a line for each thing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

from refgenfs.config.model import LOG_LEVELS, Config
from refgenfs.config.sources import SOURCE_MODELS
from refgenfs.config.values import PUBLIC_SERVER, Table
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

_URLS = {"http": "https://www.example.org/genomes/", "htsget": "https://htsget.example.org"}  # else a refgenie server


def relevant(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Return the errors as they are about keys: pydantic puts the type of a source into the place of an error."""
    return [_about_key(error) for error in errors]


def _about_key(error: ErrorDetails) -> ErrorDetails:
    loc, kind = error["loc"], error["type"]
    if loc[:1] == ("source",) and kind.startswith("union_tag_"):
        return {
            **error,
            "loc": (*loc, "type"),
            "type": "missing" if kind == "union_tag_not_found" else "no_such_type",
        }
    if len(loc) > 2 and loc[0] == "source":
        return {**error, "loc": (*loc[:2], *loc[3:])}
    return error


def explain(error: ErrorDetails, data: Mapping[str, Any]) -> tuple[str, str]:
    """Return the dotted key that an error is about, and what would be right."""
    loc, kind = error["loc"], error["type"]
    key = _dotted(loc, data)
    if kind == "value_error":
        return key, str(error["ctx"]["error"])
    if kind == "extra_forbidden":
        return key, f"unknown key{_suggest_for(loc, data)}"
    if loc[-1] == "type" and loc[0] == "source":
        what = 'missing; write type = "refgenie"' if kind == "missing" else "no such type of source"
        return key, f"{what}; this version has: {', '.join(SOURCE_MODELS)}"
    if kind == "missing":
        examples = {
            "name": '"lab"',
            "url": f'"{_example_url(loc, data)}"',
            "opens": '[".bwt"]',
            "brings": '[".sa", ".pac"]',
            "key": '"hg38/fasta"',
            "files": '["hg38.fa.gz"]',
            "bucket": '"ngi-igenomes"',
            "path": '"/data/genomes"',
        }
        example = examples.get(str(loc[-1]), "…")
        return key, f"missing; write {loc[-1]} = {example}"
    if kind == "literal_error" and loc[-1] == "format":
        return key, "must be one of: BAM, CRAM, VCF, BCF"
    if kind == "literal_error":
        return key, f"must be one of: {', '.join(LOG_LEVELS)}"
    for table in (("prefetch", "rule"), ("source", "asset")):
        if tuple(part for part in loc if isinstance(part, str)) == table and kind.startswith(("model", "tuple")):
            return key, f"must be a table; write [[{'.'.join(table)}]]"
    if len(loc) <= 2 and kind.startswith(("model", "tuple")):
        if loc == ("source",):
            return key, "must be a list of tables; write [[source]]"
        return key, f"must be a table; write {'[[source]]' if loc[0] == 'source' else f'[{key}]'}"
    return key, _WANTED.get(kind.split("_")[0], error["msg"])


def _example_url(loc: tuple[int | str, ...], data: Mapping[str, Any]) -> str:
    """Return a URL such as a source of this type has."""
    kind = data["source"][loc[1]]["type"] if loc[0] == "source" and loc[-1] == "url" else ""
    return _URLS.get(kind, PUBLIC_SERVER)


def _dotted(loc: tuple[int | str, ...], data: Mapping[str, Any]) -> str:
    """Return the key of a location; a source goes by its name, or by its place where it has none."""
    if len(loc) > 1 and loc[0] == "source" and isinstance(loc[1], int):
        source = data["source"][loc[1]]
        name = source.get("name") if isinstance(source, dict) else None
        head = f"source.{name}" if isinstance(name, str) and is_name(name) else f"source[{loc[1] + 1}]"
        loc = (head, *loc[2:])
    text = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def _suggest_for(loc: tuple[int | str, ...], data: Mapping[str, Any]) -> str:
    name, table = str(loc[-1]), _table_at(loc[:-1], data)
    known = list(table.model_fields)
    if len(loc) > 1 and (close := get_close_matches(name, known, 1)):
        return f"; did you mean {close[0]!r}?"
    owners = [f"[{owner}]" for owner, keys in _tables().items() if name in keys and owner != loc[0]]
    if owners:
        return f"; it belongs to {' or '.join(owners)}"
    return suggestion(name, known)


def _tables() -> dict[str, set[str]]:
    """Return the keys of each table of the file."""
    tables = {name: set(type(table).model_fields) for name, table in Config() if isinstance(table, Table)}
    return {**tables, "source": {key for model in SOURCE_MODELS.values() for key in model.model_fields}}


def _table_at(loc: tuple[int | str, ...], data: Mapping[str, Any]) -> type[Table]:
    """Return the table at a place of the configuration; that of a source goes by its type."""
    table: type[Table] = Config
    if loc[:1] == ("source",):
        table, loc = SOURCE_MODELS[data["source"][loc[1]]["type"]], loc[2:]
    for part in loc:
        if isinstance(part, str):
            table = next(_tables_in(table.model_fields[part].annotation))
    return table


def _tables_in(annotation: Any) -> Iterator[type[Table]]:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        yield annotation
    for part in get_args(annotation):
        yield from _tables_in(part)


def suggestion(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are: {', '.join(known)}"
