"""The documentation builds as a site: with no warning, every page in its navigation, and nothing from other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def _build(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder), *options]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False, timeout=100
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = _build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


def test_every_page_is_built(site: Path) -> None:
    sources = {
        path.relative_to(REPOSITORY / "docs").with_suffix(".html") for path in (REPOSITORY / "docs").rglob("*.md")
    }
    pages = {path.relative_to(site) for path in site.rglob("*.html")}
    sources = {path.with_name("index.html") if path.stem == "README" else path for path in sources}
    assert sources <= pages
    assert {Path("contributing.html"), Path("changelog.html")} <= pages


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    loads = re.compile(
        r"<(?:script|img|iframe)[^>]*\bsrc=\"?https?:|<link[^>]*\bhref=\"?https?:[^>]*stylesheet|@import"
    )
    for page in site.rglob("*.html"):
        assert not loads.search(page.read_text()), page
        assert not re.search(r"<link[^>]*stylesheet[^>]*https?://", page.read_text()), page


def test_marks_for_tests_are_not_in_the_pages(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not re.search(r"<!-- (?:world|prepare|file|run|within):", page.read_text()), page


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[x](nowhere.md)", "nowhere.md"),
        ("[x](index.md#no-such-heading)", "no-such-heading"),
        ("[x](/absolute.md)", "absolute.md"),
    ],
)
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# Title\n\n{text}\n")
    configuration = (REPOSITORY / "mkdocs.yml").read_text()
    head, _, _ = configuration.partition("\nnav:")
    (tmp_path / "mkdocs.yml").write_text(head.replace("hooks: [scripts/site.py]\n", ""))
    done = _build(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert done.returncode != 0
    assert told in done.stdout + done.stderr


def test_a_page_outside_of_the_navigation_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("index", "forgotten"):
        (tmp_path / f"docs/{name}.md").write_text("# Title\n")
    head, _, _ = (REPOSITORY / "mkdocs.yml").read_text().partition("\nnav:")
    (tmp_path / "mkdocs.yml").write_text(head.replace("hooks: [scripts/site.py]\n", "") + "\nnav: [index.md]\n")
    done = _build(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert done.returncode != 0
    assert "forgotten.md" in done.stdout + done.stderr
