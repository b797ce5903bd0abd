"""What `refgenfs service install` writes below a root, and what it makes of updatedb's configuration."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from refgenfs.cli import installing, renewing, run
from refgenfs.cli.installing import FILES, InstallFailed, pruned

UNITS = [file for file in FILES if file.target.endswith(".service")]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(installing, "find_program", lambda: "/opt/my genomes/bin/refgenfs")
    return "/opt/my genomes/bin/refgenfs"


def test_everything_is_installed_and_removed(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["service", "install", "--root", str(tmp_path)]) == 0
    written = capsys.readouterr().out.splitlines()
    assert written == [str(tmp_path / file.target) for file in FILES]
    for file in FILES:
        text = (tmp_path / file.target).read_text()
        assert "/usr/bin/refgenfs" not in text
        assert os.access(tmp_path / file.target, os.X_OK) == bool(file.mode & 0o100)
    helper = (tmp_path / "sbin/mount.refgenfs").read_text()
    assert "exec '/opt/my genomes/bin/refgenfs' mount.refgenfs" in helper
    assert subprocess.run(["sh", "-n", tmp_path / "sbin/mount.refgenfs"], check=False).returncode == 0
    assert run(["service", "install", "--root", str(tmp_path)]) == 0  # again: the same
    assert run(["service", "uninstall", "--root", str(tmp_path)]) == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("unit", UNITS, ids=lambda file: file.target)
def test_units_say_what_they_run(program: str, tmp_path: Path, unit: installing.File) -> None:
    list(installing.install(tmp_path))
    parser = configparser.RawConfigParser(strict=False, comment_prefixes=("#",), delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((tmp_path / unit.target).read_text())
    service = parser["Service"]
    assert service["Type"] == "notify"
    for name in ("ExecStart", "ExecReload", "ExecStopPost"):
        assert service[name].lstrip("+-").startswith("/opt/my\\x20genomes/bin/refgenfs ")


@pytest.mark.parametrize("place", ["/root/venv/bin/refgenfs", "/home/me/venv/bin/refgenfs"])
def test_a_program_in_a_home_is_refused(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "find_program", lambda: place)
    with pytest.raises(InstallFailed, match="can't be run by the unit's user"):
        list(installing.install(Path("/")))


def test_the_program_is_that_of_this_python() -> None:
    assert os.path.dirname(installing.find_program()) == os.path.dirname(sys.executable)


def test_updatedb_is_told_once(tmp_path: Path) -> None:
    conf = tmp_path / "updatedb.conf"
    assert pruned(conf) is None
    conf.write_text('# PRUNEFS="old"\nPRUNEFS = "NFS afs"\nPRUNEPATHS="/tmp"\n')
    text = pruned(conf)
    assert text == '# PRUNEFS="old"\nPRUNEFS = "NFS afs fuse.refgenfs"\nPRUNEPATHS="/tmp"\n'
    conf.write_text(text)
    assert pruned(conf) is None
    conf.write_text('PRUNEPATHS="/tmp"')
    assert pruned(conf) == 'PRUNEPATHS="/tmp"\nPRUNEFS="fuse.refgenfs"\n'
    conf.write_text("")
    assert pruned(conf) == 'PRUNEFS="fuse.refgenfs"\n'


@pytest.mark.parametrize(("answer", "changed"), [("--yes", True), ("--no", False), (None, False)])
def test_updatedb_is_touched_only_where_that_is_wanted(
    program: str, tmp_path: Path, answer: str | None, changed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = tmp_path / "etc/updatedb.conf"
    conf.parent.mkdir()
    conf.write_text('PRUNEFS="NFS"\n')
    assert run(["service", "install", "--root", str(tmp_path), *([answer] if answer else [])]) == 0
    assert ("fuse.refgenfs" in conf.read_text()) == changed
    assert ("is as it was" in capsys.readouterr().err) != changed


# --- as a package -------------------------------------------------------------------------------------------------

OURS = f"{installing.PACKAGES}0.2.0"


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", OURS)


@pytest.mark.usefixtures("packaged")
def test_a_package_has_installed_it_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(installing, "FILES", ())  # nothing is to be written, whoever runs the test
    assert run(["service", "install", "--no"]) == 0
    assert "came with the package" in capsys.readouterr().err
    assert run(["service", "uninstall"]) == 1
    assert "`apt remove refgenfs`" in capsys.readouterr().err


@pytest.mark.usefixtures("packaged")
def test_only_who_has_no_file_open_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    before, now = f"{installing.PACKAGES}0.1.0/bin/python", f"{OURS}/bin/python"
    programs = {
        "read": before,
        "off": before,
        "idle": before,
        "broken": before,
        "new": now,
        "pip": "/opt/x/bin/python",
    }
    files = {"read": 2, "off": None, "idle": 0, "broken": 0}
    restarted = []

    def restart(*command: str) -> str:
        restarted.append(command)
        return "no" if "broken" in command[1] else ""

    units = [renewing.Instance(f"refgenfs@{name}.service", program) for name, program in programs.items()]
    monkeypatch.setattr(renewing, "instances", lambda: iter(units))
    monkeypatch.setattr(renewing, "open_files", lambda unit: files[unit.split("@")[1].removesuffix(".service")])
    monkeypatch.setattr(renewing, "_systemctl", restart)
    assert list(renewing.renew()) == [
        "refgenfs@read goes on with the version before, 2 files open: `systemctl restart refgenfs@read` later",
        "refgenfs@off goes on with the version before, as it doesn't answer: `systemctl restart refgenfs@off` later",
        "refgenfs@idle runs the new version",
        "refgenfs@broken can't be restarted: no",
    ]
    assert restarted == [("restart", "refgenfs@idle.service"), ("restart", "refgenfs@broken.service")]
