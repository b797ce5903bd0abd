"""The mountpoint before and after mounting, with a mount table that is made up: nothing is mounted here.

Promises:
- a folder is made if there is none; what can't be used is said in words that help;
- a live mount is never touched, a dead one is detached, however many lie upon one another, within bounds;
- readahead that can't be raised is no reason not to mount.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from refgenfs import mountpoint
from refgenfs.mount_table import Mount
from refgenfs.mountpoint import RECOVERIES, MountFailed, prepare, raise_readahead, unmount_dead

DEVICE = "no:device"  # never a number that some real mount may have: its readahead would be written


class Table:
    """What is mounted on a folder, the topmost last; `dead` ones can be detached."""

    def __init__(self, *sources: str, dead: bool = False) -> None:
        self.sources = list(sources)
        self.dead = dead
        self.detached = 0

    def mount_at(self, point: Path) -> Mount | None:
        return Mount(point, "fuse.refgenfs", self.sources[-1], DEVICE) if self.sources else None

    def detach(self, point: Path) -> None:
        self.detached += 1
        self.sources.pop()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Table], Table]:
    def put(table: Table) -> Table:
        monkeypatch.setattr(mountpoint, "mount_at", table.mount_at)
        monkeypatch.setattr(mountpoint, "is_dead", lambda _: table.dead)
        monkeypatch.setattr(mountpoint, "unmount_dead", table.detach)
        return table

    return put


def test_a_folder_is_made_where_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare(tmp_path / "a" / "genomes")
    assert (tmp_path / "a" / "genomes").is_dir()
    prepare(tmp_path / "a" / "genomes")
    assert caplog.records == []


def test_what_will_be_hidden_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("kept")
    prepare(tmp_path)
    assert "not empty" in caplog.text
    assert (tmp_path / "file").read_text() == "kept"


def test_a_file_is_no_place_to_mount(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(MountFailed, match="can't mount on") as caught:
            prepare(place)
        assert str(place) in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)


def test_a_folder_of_others_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(MountFailed, match=r"no permission .*refgenfs mount ~/genomes"):
        prepare(tmp_path / "genomes")


def test_a_live_mount_is_refused_and_not_touched(tmp_path: Path, install: Callable[[Table], Table]) -> None:
    table = install(Table("refgenfs"))
    with pytest.raises(MountFailed) as caught:
        prepare(tmp_path / "genomes")
    assert f"refgenfs is mounted on {tmp_path / 'genomes'} already" in str(caught.value)
    assert f"`refgenfs umount {tmp_path / 'genomes'}`" in str(caught.value)
    assert table.detached == 0
    assert not (tmp_path / "genomes").exists()


def test_another_file_system_is_named(tmp_path: Path, install: Callable[[Table], Table]) -> None:
    install(Table("/dev/sdb1"))
    with pytest.raises(MountFailed, match=r"^/dev/sdb1 is mounted on"):
        prepare(tmp_path)


def test_dead_mounts_are_detached_however_many(
    tmp_path: Path, install: Callable[[Table], Table], caplog: pytest.LogCaptureFixture
) -> None:
    table = install(Table("refgenfs", "refgenfs", "refgenfs", dead=True))
    prepare(tmp_path)
    assert table.detached == 3
    assert len([line for line in caplog.messages if "dead mount" in line]) == 3


def test_a_mount_that_comes_back_for_ever_ends(tmp_path: Path, install: Callable[[Table], Table]) -> None:
    table = install(Table(*["refgenfs"] * (RECOVERIES + 5), dead=True))
    prepare(tmp_path)
    assert table.detached == RECOVERIES


def done(returncode: int, stderr: str = "") -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    return run


@pytest.mark.parametrize(
    ("returncode", "stderr", "dead"),
    [
        (0, "", False),
        (1, "stat: cannot statx '/genomes': Transport endpoint is not connected", True),
        (1, "stat: cannot statx '/genomes': Software caused connection abort", True),
        (1, "stat: cannot statx '/genomes': Permission denied", False),
        (137, "", False),  # it hangs: killed
    ],
)
def test_only_a_mount_without_a_daemon_is_dead(
    monkeypatch: pytest.MonkeyPatch, returncode: int, stderr: str, dead: bool
) -> None:
    monkeypatch.setattr(subprocess, "run", done(returncode, stderr))
    assert mountpoint.is_dead(Path("/genomes")) is dead


def test_a_mount_that_is_no_mount_is_not_dead(tmp_path: Path) -> None:
    """With the real tool, in the language of the machine."""
    assert not mountpoint.is_dead(tmp_path)


def test_what_the_unmounting_tool_says_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", done(1, "umount: /genomes: not permitted.\n"))
    with pytest.raises(
        MountFailed, match=r"^can't unmount the dead mount on /genomes: umount: /genomes: not permitted\.$"
    ):
        unmount_dead(Path("/genomes"))
    monkeypatch.setattr(subprocess, "run", done(3))
    with pytest.raises(MountFailed, match="exit 3"):
        unmount_dead(Path("/genomes"))
    monkeypatch.setattr(subprocess, "run", done(0))
    unmount_dead(Path("/genomes"))


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no umount"), subprocess.TimeoutExpired("umount", 10)])
def test_a_tool_that_fails_is_said(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(MountFailed, match="can't unmount the dead mount"):
        unmount_dead(Path("/genomes"))


# ---- readahead


def test_readahead_of_no_mount_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert not raise_readahead(tmp_path, 1 << 20)
    assert "the mount is gone" in caplog.text
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_readahead_that_cannot_be_set_is_no_error(
    tmp_path: Path, install: Callable[[Table], Table], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    install(Table("refgenfs"))  # with a device that there is none of
    assert not raise_readahead(tmp_path, 1 << 20)
    assert "`refgenfs doctor` says how" in caplog.text


@pytest.mark.parametrize(("nbytes", "written"), [(1 << 20, "1024"), (0, "4"), (128 * 1024, "128")])
def test_readahead_is_set_in_kib_and_the_mount_not_touched(
    tmp_path: Path,
    install: Callable[[Table], Table],
    monkeypatch: pytest.MonkeyPatch,
    nbytes: int,
    written: str,
) -> None:
    install(Table("refgenfs"))
    wrote: list[tuple[str, str]] = []
    monkeypatch.setattr(Path, "write_text", lambda path, text, **_: wrote.append((str(path), text)))
    assert raise_readahead(tmp_path / "never touched", nbytes)
    assert wrote == [(f"/sys/class/bdi/{DEVICE}/read_ahead_kb", written)]
