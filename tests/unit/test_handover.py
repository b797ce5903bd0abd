"""What root believes, and does, around a unit's daemon; the mount itself is tested on a booted systemd."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from refgenfs import handover
from refgenfs.handover import RECORD, SERVED
from refgenfs.mount_table import Mount
from refgenfs.mountpoint import MountFailed
from refgenfs.notify import ServiceManager

GENOMES = Path("/nowhere/genomes")


@pytest.fixture
def unmounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was aborted and unmounted, as root sees it, of a mount of ours with the number 0:77."""
    done: list[str] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(handover, "enter_host", lambda: None)
    monkeypatch.setattr(handover, "mount_at", lambda _: Mount(GENOMES, "fuse.refgenfs", "refgenfs", "0:77"))
    monkeypatch.setattr(handover, "_abort", lambda device: done.append(f"abort {device}"))
    monkeypatch.setattr(handover, "_unmount", lambda point: done.append(f"unmount {point}"))
    return done


def detach(folder: Path, result: str = "success") -> None:
    environ = {"RUNTIME_DIRECTORY": str(folder), "SERVICE_RESULT": result}
    handover.detach(GENOMES, environ, ServiceManager())


@pytest.mark.parametrize(
    ("record", "result", "expected"),
    [
        ("0:77" + SERVED, "success", ["abort 0:77", f"unmount {GENOMES}"]),
        ("0:77" + SERVED, "signal", ["abort 0:77"]),  # the next daemon takes it over
        ("0:77", "exit-code", ["abort 0:77", f"unmount {GENOMES}"]),  # it never served
        ("0:78" + SERVED, "success", []),  # another one's
        ("", "success", []),
        (None, "success", []),
    ],
)
def test_what_is_taken_away(
    unmounted: list[str], tmp_path: Path, record: str | None, result: str, expected: list[str]
) -> None:
    if record is not None:
        (tmp_path / RECORD).write_text(record)
    detach(tmp_path, result)
    assert unmounted == expected


def test_nothing_is_followed_that_the_daemon_left(unmounted: list[str], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("0:77" + SERVED)
    (tmp_path / RECORD).symlink_to(secret)
    detach(tmp_path)
    handover._write_record(tmp_path, GENOMES)
    assert secret.read_text() == "0:77" + SERVED
    assert (tmp_path / RECORD).read_text() == "0:77"
    (tmp_path / RECORD).unlink()
    os.mkfifo(tmp_path / RECORD)
    detach(tmp_path)  # does not wait for who would write into it
    assert unmounted == []


def test_it_is_for_units_only(unmounted: list[str]) -> None:
    for_units = "this is for a unit of systemd"
    with pytest.raises(MountFailed, match=for_units):
        handover.attach(GENOMES, {}, ServiceManager(), for_all=True)
    with pytest.raises(MountFailed, match=for_units):
        handover.detach(GENOMES, {}, ServiceManager())
    with pytest.raises(MountFailed, match=for_units):
        handover.tune(GENOMES, 1 << 20, {})
