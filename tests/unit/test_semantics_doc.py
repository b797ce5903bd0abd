"""`docs/semantics.md`: every promise names tests, and the tests that it names exist."""

from __future__ import annotations

import ast
import errno
import re
from functools import cache
from pathlib import Path

import pytest

from refgenfs.fuse import ERRNOS

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY / "docs" / "semantics.md"
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def _promises() -> dict[str, str]:
    """Return the text of each promise by its heading."""
    _, *sections = re.split(r"^(?=#{2,3} )", DOCUMENT.read_text(), flags=re.MULTILINE)
    split = (section.partition("\n") for section in sections)
    return {heading.lstrip("# "): text for heading, _, text in split if heading.startswith("### ")}


@cache
def _defined(path: str) -> frozenset[str]:
    """Return the names of the test functions and classes of a module."""
    file = REPOSITORY / path
    tree = ast.parse(file.read_text()) if file.exists() else ast.Module([], [])
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


PROMISES = _promises()


def test_promises_are_numbered_without_gaps() -> None:
    numbers = [int(heading.partition(".")[0]) for heading in PROMISES]
    assert numbers == list(range(1, len(PROMISES) + 1))
    assert numbers


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_names_tests_that_exist(promise: str) -> None:
    _, found, held_by = PROMISES[promise].partition("\nTests: ")
    named = _NAMED.findall(held_by)
    assert found
    assert named
    assert not [f"{path}::{name}" for path, name in named if name not in _defined(path)]
    assert re.sub(r"[\s,]", "", _NAMED.sub("", held_by)) == "", "after `Tests:` come tests and nothing else"


def test_every_errno_is_in_the_table() -> None:
    table = DOCUMENT.read_text().partition("\n## Errors\n")[2]
    told = set(re.findall(r"\bE[A-Z]{2,}\b", table))
    assert {errno.errorcode[number] for number in ERRNOS.values()} <= told
