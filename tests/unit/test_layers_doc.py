"""docs/architecture.md has the layers that import-linter holds the code to: the same rows in the same order."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_of_layers_is_import_linter_s_list() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one["id"] == "layers")
    held = [set(re.findall(r"\w+", layer)) for layer in layers if "__main__" not in layer]
    text = (ROOT / "docs/architecture.md").read_text()
    section = text[text.index("## Layers") : text.index("## Words")]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == held


def test_the_table_s_modules_are_there() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"`((?:\w+/)+\w+\.py)`", text))
    missing = [name for name in sorted(named) if not (ROOT / "refgenfs" / name).exists()]
    assert not missing
