"""The mountpoint: made ready before mounting, and the kernel's readahead set after it."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refgenfs.core.errors import RefgenfsError
from refgenfs.mount_table import mount_at

log = logging.getLogger(__name__)

UNMOUNT_TIMEOUT = 10.0  # seconds
PROBE_TIMEOUT = 5  # seconds
MAX_BACKGROUND = 1024  # requests
CONNECTIONS = Path("/sys/fs/fuse/connections")
# Of Linux 5.2, with the same numbers on every architecture; the C library of Debian 12 has no names for them.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC, _FSCONFIG_CMD_CREATE = 1, 1, 6
DEAD = frozenset({errno.ENOTCONN, errno.ECONNABORTED})  # what a mount says whose daemon is gone
DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")
HANDED_OVER = "fuse"  # the name of the descriptor by which a service manager hands a mounted DEVICE over
RECOVERIES = 8  # dead mounts that may lie upon one another


class MountFailed(RefgenfsError):
    """The tree can't be mounted; the message says what to do."""


def prepare(mountpoint: Path) -> None:
    """Leave a folder to mount on: made if there is none, freed of dead mounts.

    Raises MountFailed when it can't be, or when something is mounted there and alive. A mount that is there is
    only ever touched by a child with a time limit, for it may hang whoever touches it.
    """
    for _ in range(RECOVERIES):
        mount = mount_at(mountpoint)
        if mount is None:
            break
        if mount.is_trigger:  # the folder is there; to look into it would wait for ourselves
            return
        if not is_dead(mountpoint):
            raise MountFailed(
                f"{mount.source} is mounted on {mountpoint} already; "
                f"`refgenfs umount {mountpoint}`, or name another folder"
            )
        log.warning("a dead mount on %s: unmounting it", mountpoint)
        unmount_dead(mountpoint)
    try:
        mountpoint.mkdir(parents=True, exist_ok=True)
        if any(mountpoint.iterdir()):
            log.warning("%s is not empty: what is in it is hidden while the tree is mounted", mountpoint)
    except OSError as exc:
        raise MountFailed(_why_not(mountpoint, exc)) from exc


def is_dead(mountpoint: Path) -> bool:
    """Whether the mount's daemon is gone. One that does not answer in time is not dead: it hangs."""
    command = ["timeout", "-s", "KILL", str(PROBE_TIMEOUT), "stat", "--", str(mountpoint)]
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=environment
    )
    return done.returncode != 0 and any(os.strerror(number) in done.stderr for number in DEAD)


def _why_not(mountpoint: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"no permission to make {mountpoint}; name a folder of yours: refgenfs mount ~/genomes"
    return f"can't mount on {mountpoint}: {error.strerror}"


def why_refused(mountpoint: Path, error: RuntimeError, *, allow_other: bool) -> str:
    """Return why a mount was refused, and what to do: libfuse itself says only that it was."""
    begins = f"can't mount on {mountpoint}"
    if not os.path.exists(DEVICE):
        return f"{begins}: there is no {DEVICE}: `modprobe fuse` as root, or give the container the device"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"{begins}: {DEVICE} isn't for this user: `chmod 666 {DEVICE}` as root"
    if os.geteuid():
        if not (shutil.which("fusermount3") or shutil.which("fusermount")):
            return f"{begins}: fusermount3 is missing (Debian: apt install fuse3)"
        if not os.access(mountpoint, os.W_OK):
            return f"{begins}: it isn't this user's; name a folder of yours: refgenfs mount ~/genomes"
        if allow_other and not permits_allow_other(FUSE_CONF):
            return (
                f"{begins} with allow_other: {FUSE_CONF} doesn't permit it; "
                f"as root: echo user_allow_other >> {FUSE_CONF}, or mount without it"
            )
    return f"{begins} ({error}); `refgenfs doctor` looks for the reason"


def permits_allow_other(conf: Path) -> bool:
    """Say whether fuse.conf lets users who aren't root share their mounts."""
    try:
        lines = conf.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return "user_allow_other" in (line.strip() for line in lines)


def unmount_dead(mountpoint: Path) -> None:
    """Detach a mount whose daemon is gone; raise MountFailed with what the tool said."""
    tool = shutil.which("fusermount3") or shutil.which("fusermount")
    command = ["umount", "-l", str(mountpoint)] if os.geteuid() == 0 or not tool else [tool, "-uz", str(mountpoint)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=UNMOUNT_TIMEOUT, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise MountFailed(f"can't unmount the dead mount on {mountpoint}: {exc}") from exc
    if done.returncode:
        said = done.stderr.strip() or f"exit {done.returncode}"
        raise MountFailed(f"can't unmount the dead mount on {mountpoint}: {said}")


def raise_readahead(mountpoint: Path, nbytes: int) -> bool:
    """Have the kernel read ahead further on this mount; only root may. Return whether it does.

    128 KiB, the kernel's default, costs the daemon about twice the processor time a byte that 1 MiB costs. The
    mount itself is not touched: its daemon is who asks.
    """
    mount = mount_at(mountpoint)
    try:
        if mount is None:
            raise FileNotFoundError(errno.ENOENT, "the mount is gone")
        path = Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb")
        path.write_text(str(max(4, nbytes // 1024)), encoding="ascii")
    except OSError as exc:
        log.info("readahead stays as it is (%s); `refgenfs doctor` says how to raise it", exc.strerror)
        return False
    return True


def raise_background(mountpoint: Path) -> bool:
    """Let more reads wait in the daemon at once. Return whether the kernel does.

    The kernel gives a FUSE file system 12 readahead requests at a time (Documentation/filesystems/fuse.rst,
    max_background). A dozen that wait for a slow origin would hold up every reader of what is resident.
    """
    mount = mount_at(mountpoint)
    try:
        if mount is None:
            raise FileNotFoundError(errno.ENOENT, "the mount is gone")
        connection = mount.device.partition(":")[2]
        with _connections(connection) as folder:
            for name, value in (
                ("max_background", MAX_BACKGROUND),
                ("congestion_threshold", MAX_BACKGROUND * 3 // 4),
            ):
                fd = os.open(f"{connection}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
                try:
                    os.write(fd, str(value).encode())
                finally:
                    os.close(fd)
    except OSError as exc:
        log.info("requests under way stay limited to the kernel's default (%s)", exc.strerror)
        return False
    return True


@contextmanager
def _connections(connection: str) -> Iterator[int]:
    """Open the folder of the kernel's FUSE connections, by a mount of our own that nobody sees where there is none.

    There is none in most containers. Raises OSError.
    """
    if (CONNECTIONS / connection).is_dir():
        folder = os.open(CONNECTIONS, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        context = _system_call(_FSOPEN, b"fusectl", _FSOPEN_CLOEXEC)
        try:
            _system_call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
            folder = _system_call(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
        finally:
            os.close(context)
    try:
        yield folder
    finally:
        os.close(folder)


def _system_call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
