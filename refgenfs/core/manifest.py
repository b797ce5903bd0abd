"""Lists of files, as people keep them beside files: names, with sizes or checksums or without.

A list is text or JSON. In text each line is one of

    GRCm39.fa.gz                                          a name
    GRCm39.fa.gz  883214                                  a name, and a size, a checksum, or both
    d41d8cd98f00b204e9800998ecf8427e  GRCm39.fa.gz        what md5sum, sha256sum and their like print
    MD5 (GRCm39.fa.gz) = d41d8cd98f00b204e9800998ecf8427e what they print with --tag

Columns are parted by tabs, or else by blanks. Lines that begin with '#' say nothing. JSON is a list of names, or of
objects with `name` (or `path`) and perhaps `size`, or an object with such a list as `files`. Checksums are known from
their length, and not looked at further.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from refgenfs.core.errors import IntegrityError
from refgenfs.core.webindex import is_plain_path

_DIGEST = r"(?:[0-9a-fA-F]{32}|[0-9a-fA-F]{40}|[0-9a-fA-F]{64}|[0-9a-fA-F]{96}|[0-9a-fA-F]{128})"
_SUM = re.compile(rf"\\?{_DIGEST}[ \t]+\*?(\S.*)")
_TAGGED = re.compile(rf"[A-Z0-9/-]+ \((.+)\) = {_DIGEST}")
_DETAIL = re.compile(rf"{_DIGEST}|[0-9]{{1,18}}")
_SIZE = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Listed:
    """A file of a list: its path relative to the list, and its size in bytes where the list has it."""

    path: str
    size: int | None = None


def parse_manifest(text: str) -> list[Listed]:
    """Return the files of a list, each once; raise IntegrityError for what is none.

    Paths that lead out of the list's folder are left out.
    """
    rows = _parse_json(text) if text.lstrip().startswith(("[", "{")) else _parse_lines(text)
    found: dict[str, Listed] = {}
    for name, size in rows:
        path = name.removeprefix("./")
        if is_plain_path(path):
            found.setdefault(path, Listed(path, size))
    return list(found.values())


def _parse_lines(text: str) -> Iterator[tuple[str, int | None]]:
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("<"):
            raise IntegrityError("it is a page and no list of files")
        if not line or line.startswith("#"):
            continue
        match = _SUM.fullmatch(line) or _TAGGED.fullmatch(line)
        if match is not None:
            yield match[1], None
            continue
        name, *details = (part.strip() for part in line.split("\t")) if "\t" in line else _split(line)
        sizes = [int(detail) for detail in details if _SIZE.fullmatch(detail)]
        yield name, sizes[0] if sizes else None


def _split(line: str) -> list[str]:
    """Split a line at blanks, from its end, as far as there are sizes and checksums: a name may have blanks in it."""
    details: list[str] = []
    while True:
        rest, blank, last = line.rpartition(" ")
        if not blank or not rest.strip() or _DETAIL.fullmatch(last) is None:
            return [line.strip(), *details]
        details.insert(0, last)
        line = rest.rstrip()


def _parse_json(text: str) -> Iterator[tuple[str, int | None]]:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise IntegrityError(f"it is no JSON: {exc}") from exc
    rows = value.get("files") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise IntegrityError("it is no list of files")
    for row in rows:
        name = row.get("name", row.get("path")) if isinstance(row, dict) else row
        size = row.get("size") if isinstance(row, dict) else None
        if not isinstance(name, str):
            raise IntegrityError('it has an entry without a name; write "name" or {"name": …, "size": …}')
        yield name, size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None
