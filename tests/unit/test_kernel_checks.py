"""What `doctor` says of the kernel's readahead and of reads at a time: as it is, what it costs, what root can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from refgenfs.cli import kernel_checks
from refgenfs.cli.check import Machine
from refgenfs.cli.kernel_checks import check_background, check_readahead
from refgenfs.config import Config
from refgenfs.mount_table import Mount

USER = 4711


def machine(tmp_path: Path, uid: int = USER) -> Machine:
    return Machine(Config.model_validate({"mount": {"point": tmp_path / "g"}}), {}, uid, sysfs=tmp_path / "sys")


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mount with the number 0:77; returns its /sys."""
    mount = Mount(tmp_path / "g", "fuse.refgenfs", "refgenfs", "0:77")
    monkeypatch.setattr(kernel_checks, "mount_at", lambda point: mount)
    return tmp_path / "sys"


def setting(path: Path, value: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value + "\n")
    return path


def test_readahead_of_a_mount(tmp_path: Path, mounted: Path) -> None:
    path = setting(mounted / "class/bdi/0:77/read_ahead_kb", "128")
    check = check_readahead(machine(tmp_path))
    assert check.state == "warn"
    assert "128KiB instead of 1MiB" in check.found
    assert "twice the processor time" in check.found
    assert check.advice == f"as root: echo 1024 > {path}"
    path.write_text("1024\n")
    assert check_readahead(machine(tmp_path)).state == "ok"
    path.unlink()
    assert check_readahead(machine(tmp_path)).state == "warn"


def test_readahead_to_come(tmp_path: Path) -> None:
    assert "only root" in check_readahead(machine(tmp_path)).found
    no_sysfs = check_readahead(machine(tmp_path, uid=0))
    assert (no_sysfs.state, "can't be written to" in no_sysfs.found) == ("warn", True)
    setting(tmp_path / "sys/class/bdi/8:0/read_ahead_kb", "128")
    assert check_readahead(machine(tmp_path, uid=0)).state == "ok"


def test_a_sysfs_that_is_read_only_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting(tmp_path / "sys/class/bdi/8:0/read_ahead_kb", "128")
    monkeypatch.setattr(kernel_checks, "_can_write", lambda path: False)
    assert check_readahead(machine(tmp_path, uid=0)).state == "warn"


def test_reads_at_a_time_of_a_mount(tmp_path: Path, mounted: Path) -> None:
    path = setting(mounted / "fs/fuse/connections/77/max_background", "12")
    check = check_background(machine(tmp_path))
    assert (check.state, check.advice) == ("warn", f"as root: echo 1024 > {path}")
    path.write_text("1024\n")
    assert check_background(machine(tmp_path)).state == "ok"


def test_reads_at_a_time_without_fusectl(tmp_path: Path, mounted: Path) -> None:
    (mounted / "fs/fuse/connections").mkdir(parents=True)
    check = check_background(machine(tmp_path))
    assert check.state == "warn"
    assert "mount -t fusectl" in check.advice


def test_reads_at_a_time_to_come(tmp_path: Path) -> None:
    assert check_background(machine(tmp_path)).state == "ok"
    (tmp_path / "sys/fs/fuse/connections").mkdir(parents=True)
    assert "mount -t fusectl" in check_background(machine(tmp_path, uid=0)).advice
    setting(tmp_path / "sys/fs/fuse/connections/41/max_background", "12")
    assert check_background(machine(tmp_path, uid=0)).state == "ok"
