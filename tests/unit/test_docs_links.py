"""Every relative link in the documentation leads to a file, and to a heading in it where it names one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
_CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)


def _links(text: str) -> Iterator[str]:
    for target in _LINK.findall(_CODE.sub("", text)):
        if not re.match(r"[a-z][a-z0-9+.-]*:", target):
            yield target


def _anchors(text: str) -> set[str]:
    """Return the anchors of headings: lower case, marks dropped, blanks as hyphens."""
    plain = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(plain)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(REPOSITORY)) for path in DOCUMENTS])
def test_relative_links_resolve(document: Path) -> None:
    broken = []
    for target in _links(document.read_text()):
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        inside = file.exists() and file.is_relative_to(REPOSITORY)
        if not inside or (anchor and anchor not in _anchors(file.read_text())):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(REPOSITORY)) for path in DOCUMENTS])
def test_urls_of_others_are_urls(document: Path) -> None:
    """There is no network here to follow them, but a slip of the pen is found."""
    for target in _LINK.findall(_CODE.sub("", document.read_text())):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            url = urlsplit(target)
            assert url.scheme in {"http", "https"}, target
            assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", url.hostname or ""), target
            assert not re.search(r"[,;:!?]$|\.$", target), target


def test_every_document_is_reached_from_the_readme() -> None:
    seen, waiting = set(), [REPOSITORY / "README.md"]
    while waiting:
        file = waiting.pop()
        if file in seen or file.suffix != ".md":
            continue
        seen.add(file)
        targets = (target.partition("#")[0] for target in _links(file.read_text()))
        found = [(file.parent / target).resolve() for target in targets if target]
        waiting += [path / "README.md" if path.is_dir() else path for path in found if path.exists()]
    assert set(DOCUMENTS) <= seen
