"""What `doctor` looks at in the kernel: how far it reads ahead, and how many reads may wait at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from refgenfs.cli.check import Check
from refgenfs.core.units import format_size
from refgenfs.mount_table import mount_at
from refgenfs.mountpoint import MAX_BACKGROUND

if TYPE_CHECKING:
    from refgenfs.cli.check import Machine

_FUSECTL = "mount -t fusectl fusectl /sys/fs/fuse/connections"


def check_readahead(machine: Machine) -> Check:
    """See whether the kernel's readahead is what the configuration asks for, or could be made so."""
    wanted = machine.config.mount.readahead
    mounted = mount_at(machine.config.mount.point)
    if mounted is None or not mounted.is_refgenfs:
        return _readahead_to_come(machine, wanted)
    setting = machine.sysfs / "class/bdi" / mounted.device / "read_ahead_kb"
    try:
        now = int(setting.read_text()) * 1024
    except (OSError, ValueError):
        return Check("readahead", "warn", f"{setting} can't be read", "none: it only tells how fast reading is")
    if now >= wanted:
        return Check("readahead", "ok", format_size(now))
    found = f"{format_size(now)} instead of {format_size(wanted)}: {_cost(now, wanted)}"
    return Check("readahead", "warn", found, f"as root: echo {wanted // 1024} > {setting}")


def _readahead_to_come(machine: Machine, wanted: int) -> Check:
    """Say what a mount made now will have: the kernel gives it 128 KiB, and only root may raise that."""
    some = next(machine.sysfs.glob("class/bdi/*/read_ahead_kb"), None)
    if machine.uid == 0 and some is not None and _can_write(some):
        return Check("readahead", "ok", f"{format_size(wanted)}, set when mounting")
    why = "only root can raise it" if machine.uid else f"{machine.sysfs} can't be written to here"
    advice = (
        "once mounted, `refgenfs doctor` tells the command; in a unit of systemd: ExecStartPost=+ runs it as root"
    )
    return Check("readahead", "warn", f"128KiB: {why}; {_cost(128 << 10, wanted)}", advice)


def check_background(machine: Machine) -> Check:
    """See how many reads ahead may wait in the daemon: a dozen that wait for an origin hold up all others."""
    control = machine.sysfs / "fs/fuse/connections"
    mounted = mount_at(machine.config.mount.point)
    if mounted is None or not mounted.is_refgenfs:
        if machine.uid:
            return Check("background", "ok", "12 reads ahead at a time: only root can raise that")
        if not _is_mounted(control):
            return Check("background", "warn", _held_up("12"), f"as root: {_FUSECTL}")
        return Check("background", "ok", f"{MAX_BACKGROUND} reads ahead at a time, set when mounting")
    setting = control / mounted.device.partition(":")[2] / "max_background"
    try:
        now = int(setting.read_text())
    except (OSError, ValueError):
        if _is_mounted(control):
            return Check("background", "ok", f"{setting} can't be read: it is for who mounted it")
        return Check("background", "warn", _held_up("12"), f"as root: {_FUSECTL}, then mount again")
    if now >= MAX_BACKGROUND:
        return Check("background", "ok", f"{now} reads ahead at a time")
    return Check("background", "warn", _held_up(str(now)), f"as root: echo {MAX_BACKGROUND} > {setting}")


def _cost(now: int, wanted: int) -> str:
    """Say what a short readahead costs; measured with one reader in order of what is in the cache."""
    if now <= 128 << 10 and wanted >= 1 << 20:
        return "reading in order takes the daemon twice the processor time, and longer"
    return "reading in order is slower"


def _held_up(limit: str) -> str:
    return f"{limit} reads ahead at a time: when that many wait for an origin, every reader waits"


def _is_mounted(control: Path) -> bool:
    try:
        return any(control.iterdir()) or os.path.ismount(control)
    except OSError:
        return False


def _can_write(path: Path) -> bool:
    return os.access(path, os.W_OK)
