"""A mount that root makes for a daemon without privileges, and hands over by the service manager.

A sandbox and a mount don't go together: whatever gives a unit a view of the file system of its own hides from the
host what is mounted in it, and `NoNewPrivileges` keeps fusermount3 from being root. So before a unit's daemon starts,
root opens /dev/fuse, mounts it in the host's own namespace for the unit's user, and leaves the descriptor with the
manager, which gives it to the daemon (sd_listen_fds(3)). When the daemon has ended, root takes the mount away.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from refgenfs.config import LoadedConfig
from refgenfs.mount_table import mount_at
from refgenfs.mountpoint import (
    DEVICE,
    HANDED_OVER,
    RECOVERIES,
    MountFailed,
    is_dead,
    prepare,
    raise_background,
    raise_readahead,
    unmount_dead,
)
from refgenfs.notify import ServiceManager

log = logging.getLogger(__name__)

RECORD = "mounted"  # in the unit's runtime directory: which mount is the unit's, and whether it was served
SERVED = " served"
HOST = Path("/proc/1/ns/mnt")
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4  # mount(2)
_MNT_DETACH = 2  # umount(2)
_CLONE_NEWNS = 0x00020000  # setns(2)


def attach(mountpoint: Path, environ: Mapping[str, str], manager: ServiceManager, *, for_all: bool) -> None:
    """Mount for the daemon of this unit, as root in a unit's `ExecStartPre=+`; raise MountFailed.

    The files belong to the unit's user; `for_all` lets others read them too.
    """
    runtime = _runtime_dir(environ)
    enter_host()
    manager.drop(HANDED_OVER)  # of a life that never took it
    before = mount_at(mountpoint)
    dead = before is not None and before.is_refgenfs and is_dead(mountpoint)
    if not dead:
        prepare(mountpoint)
    owner = runtime.stat()
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise MountFailed(f"can't open {DEVICE}: {exc.strerror}; `modprobe fuse` as root") from exc
    try:
        if dead:  # no sooner: who comes in between finds an empty folder
            _unmount_all(mountpoint)
        _mount(mountpoint, fd, owner, for_all=for_all)
        _write_record(runtime, mountpoint)
        if not manager.keep(HANDED_OVER, fd):
            _unmount(mountpoint)
            raise MountFailed(
                "the service manager doesn't keep descriptors: the unit needs FileDescriptorStoreMax= and "
                "NotifyAccess=exec"
            )
    finally:
        os.close(fd)


def serves_all(loaded: LoadedConfig) -> bool:
    """Say whether a unit's mount is for every user: it is, unless the configuration says otherwise."""
    return loaded.config.mount.allow_other or loaded.origins["mount.allow_other"] == "default"


def detach(mountpoint: Path, environ: Mapping[str, str], manager: ServiceManager) -> None:
    """Take away the mount that this unit had, when its daemon has ended, also while files are open.

    What somebody else has mounted there by now is left alone. A daemon that died leaves its dead mount to the next
    one: "Transport endpoint is not connected" is the truth, and an empty folder would not be. For a user's own unit,
    whose daemon mounts by itself: take away a mount whose daemon is gone.
    """
    if os.geteuid():
        mount = mount_at(mountpoint)
        if mount is not None and mount.is_refgenfs and is_dead(mountpoint):
            unmount_dead(mountpoint)
        return
    runtime = _runtime_dir(environ)
    enter_host()
    manager.drop(HANDED_OVER)
    mount, ours = mount_at(mountpoint), _read_record(runtime)
    if mount is None or not mount.is_refgenfs or mount.device != ours.removesuffix(SERVED):
        return
    _abort(mount.device)
    if environ.get("SERVICE_RESULT", "success") == "success" or not ours.endswith(SERVED):
        _unmount(mountpoint)


def tune(mountpoint: Path, readahead: int, environ: Mapping[str, str]) -> None:
    """Raise the kernel's limits for a mount that serves, as root in a unit's `ExecStartPost=+`."""
    runtime = _runtime_dir(environ)
    enter_host()
    _write_record(runtime, mountpoint, SERVED)
    raise_readahead(mountpoint, readahead)
    raise_background(mountpoint)


def enter_host() -> None:
    """Enter the mount namespace of the host: a unit's own one hides what is mounted in it.

    Raises MountFailed for who isn't root; threads must not have been started.
    """
    if os.path.samefile(HOST, "/proc/self/ns/mnt"):
        return
    fd = os.open(HOST, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("setns", fd, _CLONE_NEWNS)
    except OSError as exc:
        raise MountFailed(f"can't enter the host's mount namespace: {exc.strerror}") from exc
    finally:
        os.close(fd)


def _runtime_dir(environ: Mapping[str, str]) -> Path:
    folder = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if os.geteuid() or not folder:
        raise MountFailed("this is for a unit of systemd: as root, with RuntimeDirectory=; else use `refgenfs mount`")
    return Path(folder)


def _read_record(runtime: Path) -> str:
    """Return what was noted. The folder is the daemon's: what it put there may be anything."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        fd = os.open(runtime / RECORD, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, encoding="ascii") as file:
            return file.read(100)
    return ""


def _write_record(runtime: Path, mountpoint: Path, state: str = "") -> None:
    """Note which mount is ours. The folder is the daemon's: nothing that it put there is followed."""
    mount = mount_at(mountpoint)
    record = runtime / RECORD
    record.unlink(missing_ok=True)
    fd = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "w") as file:
        file.write(f"{mount.device}{state}" if mount is not None else "")


def _mount(mountpoint: Path, fd: int, owner: os.stat_result, *, for_all: bool) -> None:
    options = f"fd={fd},rootmode=40000,user_id={owner.st_uid},group_id={owner.st_gid},default_permissions"
    if for_all:
        options += ",allow_other"
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    try:
        _call("mount", b"refgenfs", os.fsencode(mountpoint), b"fuse.refgenfs", flags, options.encode())
    except OSError as exc:
        raise MountFailed(f"can't mount on {mountpoint}: {exc.strerror}") from exc


def _unmount(mountpoint: Path) -> None:
    try:
        _call("umount2", os.fsencode(mountpoint), _MNT_DETACH)
    except OSError as exc:
        log.warning("can't unmount %s: %s", mountpoint, exc.strerror)


def _unmount_all(mountpoint: Path) -> None:
    for _ in range(RECOVERIES):
        mount = mount_at(mountpoint)
        if mount is None or not mount.is_refgenfs:
            return
        log.warning("a dead mount on %s: unmounting it", mountpoint)
        _unmount(mountpoint)


def _abort(device: str) -> None:
    """Have the kernel answer whoever still waits for the daemon, which is gone."""
    with contextlib.suppress(OSError):
        Path("/sys/fs/fuse/connections", device.partition(":")[2], "abort").write_text("1", encoding="ascii")


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library that Python lacks; raise OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
