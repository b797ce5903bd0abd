"""`docs/man` is made from the commands and the documentation.

`python -m tests.unit.test_man_pages` writes it anew.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from refgenfs.cli.app import build
from refgenfs.cli.installing import FILES, install
from tests.support.manpages import CONFIGURATION, FOLDER, PAGES, REPOSITORY, render
from tests.unit.test_cli_doc import _commands


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_what_code_and_documentation_say(page: str) -> None:
    assert (FOLDER / page).read_text() == render(page), "run: python -m tests.unit.test_man_pages"


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "program", [["mandoc", "-T", "lint", "-W", "warning"], ["groff", "-ww", "-man", "-Tutf8", "-z"]]
)
def test_a_page_has_no_fault(page: str, program: list[str]) -> None:
    done = subprocess.run([*program, FOLDER / page], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_read_in_80_columns(page: str) -> None:
    shown = rendered(FOLDER / page)
    assert shown.isprintable() or "\n" in shown
    name, _, number = page.rpartition(".")
    assert shown.splitlines()[0].startswith(f"{name.upper()}({number})")
    wanted = {"NAME", "SYNOPSIS", "DESCRIPTION", "FILES", "SEE ALSO"}
    assert wanted <= set(shown.splitlines())
    left = re.findall(r"\*\*|`|\]\(|\\f[BIR]|^\.[A-Z]{2}\b", shown, re.MULTILINE)
    assert left == [], "what is Markdown's or roff's own"


def rendered(file: Path) -> str:
    """Return a page as it is read on a terminal of 80 columns, without its fonts."""
    environ = {"MANWIDTH": "80", "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "MANROFFOPT": "-c"}
    done = subprocess.run(["man", "-l", file], capture_output=True, text=True, timeout=60, check=True, env=environ)
    assert done.stderr == ""
    return re.sub(r".\x08|\x1b\[[\d;]*m", "", done.stdout)


def test_every_command_option_and_setting_is_there() -> None:
    first, fifth, eighth = (rendered(FOLDER / page) for page in PAGES)
    for path, command in _commands(get_command(build()), "refgenfs"):
        assert path in first
        for parameter in command.params:
            assert all(name in first for name in parameter.opts if name.startswith("-"))
    for row in re.findall(r"^\| `([a-z_]+\.[a-z_.]+)` \|", CONFIGURATION, re.MULTILINE):
        assert row in fifth
    for option in re.findall(r"^\| `(-o [a-z_]+)", CONFIGURATION, re.MULTILINE):
        assert option in eighth


def test_what_is_typed_can_be_copied_out_of_a_page() -> None:
    """Hyphens, quotes and tildes are those of a keyboard."""
    first = rendered(FOLDER / "refgenfs.1")
    assert "refgenfs mount -c lab.toml -f" in first
    assert "~/genomes" in first
    assert "\u2010" not in "".join(re.findall(r"^ {11}(?:refgenfs|bwa|samtools) .*", first, re.MULTILINE))


def test_the_wheel_and_the_service_install_every_page() -> None:
    wheel = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for page in PAGES:
        place = f"share/man/man{page[-1]}/{page}"
        assert wheel["shared-data"][f"docs/man/{page}"] == place, "for `man` beside the program"
        assert f"usr/local/{place}" in {file.target for file in FILES}
    assert wheel["force-include"]["docs/man"] == "refgenfs/share/docs/man", "for `refgenfs service install`"
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_man_finds_what_was_installed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refgenfs.cli.installing.find_program", lambda: "/opt/refgenfs/bin/refgenfs")
    list(install(tmp_path))
    name, _, number = page.rpartition(".")
    done = subprocess.run(
        [shutil.which("man") or "man", "-M", tmp_path / "usr/local/share/man", "-w", number, name],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == str(tmp_path / f"usr/local/share/man/man{number}/{page}")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in PAGES:
        (FOLDER / each).write_text(render(each))
    sys.stderr.write(f"{FOLDER} written\n")
