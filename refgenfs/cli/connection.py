"""Which daemon a command asks: the one at the mountpoint that was named, or the one there is."""

from __future__ import annotations

import os
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path

from refgenfs.control_client import ControlClient, NoDaemon
from refgenfs.core.errors import ConfigError, ControlError
from refgenfs.mount_table import mount_at
from refgenfs.paths import config_places, find_sockets, home_dir, mountpoint_of, socket_of


def canonical(mountpoint: str | Path) -> Path:
    """Return the absolute path that the kernel knows a mountpoint by, and never ask what is mounted there.

    Links above it are followed; the mountpoint itself is only read as a link, which a file system that hangs
    doesn't hear of.
    """
    path = os.path.abspath(os.path.expanduser(mountpoint))
    for _ in range(8):
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        try:
            target = os.readlink(path)
        except OSError:
            break
        path = os.path.normpath(os.path.join(os.path.dirname(path), target))
    return Path(path)


def running(environ: Mapping[str, str], uid: int, *, timeout: float = 2.0) -> list[ControlClient]:
    """Return a client for every daemon that listens, and lets this user ask: their own, and the machine's."""
    clients = (
        ControlClient(path, mountpoint=mountpoint_of(path.stem), connect_timeout=timeout)
        for path in find_sockets(environ, uid)
    )
    return [client for client in clients if client.is_open()]


def choose(mountpoint: str | None, config: Path | None, environ: Mapping[str, str], uid: int) -> ControlClient:
    """Return a client for the daemon that a command is for; raise ControlError that says what to do.

    That is the one at `mountpoint`; else at the mount.point that a configuration names (that of `config` also
    where it is the default), and nobody else; else, where nobody named any, the one at the default or the only one.
    """
    if mountpoint is not None:
        where = canonical(mountpoint)
        return ControlClient(socket_of(where, environ, uid), mountpoint=where)
    named = configured_mountpoint(config, environ) if config is not None else named_mountpoint(environ, uid)
    if named is not None:
        client = ControlClient(socket_of(named, environ, uid), mountpoint=named)
        if client.is_absent():
            raise _absent(named, config, environ, uid)
        return client
    clients = running(environ, uid)
    if len(clients) == 1:
        return clients[0]
    where = configured_mountpoint(None, environ)
    if not clients:
        for dead in map(mountpoint_of, (path.stem for path in find_sockets(environ, uid))):
            if dead and mount_at(dead):
                raise _absent(dead, None, environ, uid)
        raise _absent(where, None, environ, uid)
    for client in clients:
        if client.socket_path == socket_of(where, environ, uid):
            return client
    names = ", ".join(sorted(map(mountpoint_of_daemon, clients)))
    raise ControlError(f"several daemons are running: say which with -m: {names}")


def is_ambiguous(mountpoint: Path, environ: Mapping[str, str], uid: int) -> bool:
    """Say whether commands need -m to mean the daemon at `mountpoint`."""
    wanted = socket_of(mountpoint, environ, uid)
    named = named_mountpoint(environ, uid)
    if named is not None:
        return named != mountpoint
    return any(client.socket_path != wanted for client in running(environ, uid))


def _absent(where: Path, config: Path | None, environ: Mapping[str, str], uid: int) -> NoDaemon:
    option = f" -c {shlex.quote(str(config))}" if config else ""
    mounted = mount_at(where)
    if mounted is not None and mounted.is_refgenfs:
        again = option or f" {shlex.quote(str(where))}"
        return NoDaemon(f"the daemon for {where} has died: `refgenfs mount{again}` recovers its mount")
    others = ", ".join(f"-m {mountpoint_of_daemon(client)}" for client in running(environ, uid))
    return NoDaemon(
        f"no daemon is running for {where} ({socket_of(where, environ, uid)}): start it with "
        f"`refgenfs mount{option}`{f'; running: {others}' if others else _of_others(environ, uid)}"
    )


def mountpoint_of_daemon(client: ControlClient) -> str:
    """Return where a daemon's mount is; the daemon itself is asked where its socket's name doesn't tell."""
    try:
        return str(client.mountpoint or client.call("status")["mountpoint"])
    except (ControlError, LookupError, TypeError):
        return str(client.socket_path)


def named_mountpoint(environ: Mapping[str, str], uid: int) -> Path | None:
    """Return the mount.point that the configuration in force sets, None where it leaves the default.

    The file is read as mere TOML: that is quick, and other mistakes in it don't hide a daemon that runs.
    """
    home, named = home_dir(environ, uid), environ.get("REFGENFS_CONFIG")
    file = Path(_expanded(named, home)) if named else next(filter(os.path.exists, config_places(environ, home)), None)
    if file is None:
        return None
    try:
        point = tomllib.loads(file.read_text(encoding="utf-8"))["mount"]["point"]
    except (KeyError, TypeError):
        return None
    except (OSError, ValueError):
        point = None
    if not isinstance(point, str) or not point or "\0" in point:
        return configured_mountpoint(file, environ)  # it says what is wrong
    return canonical(file.absolute().parent / _expanded(point, home))


def _expanded(path: str, home: str) -> str:
    return home + path[1:] if path == "~" or path.startswith("~/") else os.path.expanduser(path)


def configured_mountpoint(config: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the configuration's mount.point; the default one where a file that nobody named is wrong."""
    from refgenfs.config import Config, load_config

    try:
        return canonical(load_config(config, {}, environ).config.mount.point)
    except ConfigError:
        if config is not None:
            raise
        return Config().mount.point


def _of_others(environ: Mapping[str, str], uid: int) -> str:
    """Return what to say of daemons that this user can't ask, if there are any."""
    closed = any(not os.access(path, os.W_OK) for path in find_sockets(environ, uid))
    return "; one runs that serves another user alone" if closed else ""
