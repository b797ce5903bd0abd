"""What mkdocs does beside its own work: pages of the repository's root, links out of docs, and marks for tests.

Pages read well on a code host and on the site: links are written as paths of the repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
SHOWN = ROOT / "mount"  # files for readers to copy, that pages link to: they are in the site as they are
_MARKS = re.compile(r"^ *<!-- (?:world|prepare|file|run|within): .*?-->\n", re.MULTILINE | re.DOTALL)


def on_config(config: Any, **_: Any) -> Any:
    """Put every decision into the navigation, in their order."""
    decisions = sorted(path.name for path in (ROOT / "docs/decisions").glob("[0-9]*.md"))
    for part in config.nav or []:
        for entry in next(iter(part.values())):
            if isinstance(entry, dict) and "Decisions" in entry:
                entry["Decisions"] += [f"decisions/{name}" for name in decisions]
    return config


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the pages of the root, with their links as they are below docs, and the files that readers copy."""
    for name, page in PAGES.items():
        text = re.sub(r"\]\(docs/", "](", (ROOT / name).read_text())
        files.append(File.generated(config, page, content=text))
    for path in sorted(path for path in SHOWN.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        files.append(File.generated(config, str(path.relative_to(ROOT)), content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Take out what only tests read, and lead links to the root's pages to where those are here."""
    for name, page in PAGES.items():
        markdown = re.sub(rf"\]\((\.\./)+{re.escape(name)}", f"]({page}", markdown)
    return _MARKS.sub("", markdown.replace(f"](../{SHOWN.name}/", f"]({SHOWN.name}/"))
