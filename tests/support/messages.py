"""What refgenfs can say: the log's lines and the errors' texts, as they stand in its code.

What is filled in is shown as "…". Nothing is run: the code is read.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "refgenfs"
_TOLD = {"warning", "error", "exception", "critical"}
_QUIET = {"DEBUG", "INFO"}
_FILLED_IN = re.compile(r"%[-+ #0]*\d*(?:\.\d+)?[sdrgfx]")
# Functions whose texts are reasons of errors.
_REASONS = {"_connection_trouble": "OriginUnavailable", "_why_not": "MountFailed", "why_refused": "MountFailed"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Message:
    """A text of the code: which kind of error or level it is of, and where it stands."""

    text: str
    kind: str
    module: str
    line: int


def shown(template: str) -> str:
    """Return a message of the log as the documentation shows it."""
    return re.sub("…+", "…", _FILLED_IN.sub("…", template))


@cache
def modules() -> dict[str, ast.Module]:
    """Return the package's modules by their paths below it."""
    return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def is_log(receiver: ast.expr) -> bool:
    """Say whether something is a logger, or what logs as one does: `log`, `self._log`, `self._refusals`."""
    name = receiver.id if isinstance(receiver, ast.Name) else getattr(receiver, "attr", "")
    return name.strip("_") in {"log", "refusals"}


def log_calls() -> Iterator[tuple[str, ast.Call, ast.expr]]:
    """Yield each call that logs a warning or worse: its module, the call, and its message."""
    for module, tree in modules().items():
        if module in {"logs.py", "reader/refusals.py"}:  # they pass on what others say
            continue
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_log(node.func.value)):
                continue
            if node.func.attr in _TOLD:
                yield module, node, node.args[0]
            elif node.func.attr == "log" and getattr(node.args[0], "attr", "") not in _QUIET:
                yield module, node, node.args[1]


def log_lines() -> list[Message]:
    """Return the lines that the daemon can log as a warning or worse."""
    return [
        Message(shown(message.value), ast.unparse(call.func), module, call.lineno)
        for module, call, message in log_calls()
        if isinstance(message, ast.Constant) and isinstance(message.value, str)
    ]


@cache
def error_kinds() -> dict[str, tuple[str, ...]]:
    """Return the package's errors, each with the names of those that it is one of, itself first."""
    bases = {
        node.name: [ast.unparse(base).removeprefix("errors.") for base in node.bases]
        for tree in modules().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }

    def line(name: str) -> tuple[str, ...]:
        parents = (line(base) for base in bases.get(name, []))
        return (name, *(each for parent in parents for each in parent))

    return {name: kin for name in bases if "RefgenfsError" in (kin := line(name))}


def _text(node: ast.expr | None, given: dict[str, ast.expr]) -> str:
    """Return a text with "…" for what is filled in; "" where none is to be seen."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left, given) + _text(node.right, given)
    if isinstance(node, ast.Name) and node.id in given:
        return _text(given[node.id], {})
    return ""


def _scopes(tree: ast.Module) -> Iterator[tuple[Function, dict[str, ast.expr]]]:
    """Yield each function with the texts that are given names in it."""
    for scope in ast.walk(tree):
        if isinstance(scope, Function):
            yield (
                scope,
                {
                    node.targets[0].id: node.value
                    for node in ast.walk(scope)
                    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
                },
            )


def _raised(node: ast.Call, given: dict[str, ast.expr]) -> tuple[str, str]:
    """Return kind and text of an error that is made by a call; "" for both where it makes none."""
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    kind, text = name, node.args[0] if node.args else None
    if name in {"AttemptFailed", "Judgement"} and len(node.args) > 1:  # the reason of one that is made later
        stale = ast.unparse(node.args[0]) == "Verdict.STALE"
        kind = ast.unparse(node.args[0]) if name == "AttemptFailed" else "StaleContent" if stale else "IntegrityError"
        kind, text = kind if kind in error_kinds() else "OriginUnavailable", node.args[1]
    told = _text(text, given)
    return (kind, told) if kind in error_kinds() and re.search(r"[a-z]{2}", told) else ("", "")


@cache
def error_texts() -> tuple[Message, ...]:
    """Return the texts of the package's errors, without those that are another error's."""
    found: dict[tuple[str, int, int], Message] = {}
    for module, tree in modules().items():
        for scope, given in _scopes(tree):
            for node in ast.walk(scope):
                if isinstance(node, ast.Call):
                    kind, text = _raised(node, given)
                elif isinstance(node, ast.Return) and scope.name in _REASONS:
                    kind, text = _REASONS[scope.name], _text(node.value, given)
                else:
                    continue
                if text:
                    where = (module, node.lineno, node.col_offset)
                    found.setdefault(where, Message(text, kind, module, node.lineno))
    return tuple(found.values())


@cache
def all_text() -> str:
    """Return every text of the package, for a look at whether some words are in it."""
    texts = []
    for tree in modules().values():
        docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                texts.append(_text(node, {}))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
                texts.append(_FILLED_IN.sub("…", node.value))
    return "\n".join(texts)
