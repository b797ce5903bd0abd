"""Which daemon a command asks: the one at the mountpoint that was named, or the one there is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from refgenfs.control_client import ControlClient, NoDaemon
from refgenfs.core.errors import ConfigError, ControlError
from refgenfs.mount_table import mount_at
from refgenfs.paths import find_sockets, mountpoint_of, socket_path


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
    """Return a client for every daemon of this user that listens."""
    clients = (
        ControlClient(path, mountpoint=mountpoint_of(path.stem), connect_timeout=timeout)
        for path in find_sockets(environ, uid)
    )
    return [client for client in clients if client.is_alive()]


def choose(mountpoint: str | None, config: Path | None, environ: Mapping[str, str], uid: int) -> ControlClient:
    """Return a client for the daemon that a command is for; raise ControlError that says what to do.

    That is the one at `mountpoint`; else at the configuration's mount.point, if it runs; else the only one.
    The configuration is read only where it decides.
    """
    if mountpoint is not None:
        where = canonical(mountpoint)
        return ControlClient(socket_path(where, environ, uid), mountpoint=where)
    clients = running(environ, uid)
    if len(clients) == 1 and config is None:
        return clients[0]
    where = configured_mountpoint(config, environ)
    wanted = socket_path(where, environ, uid)
    for client in clients:
        if client.socket_path == wanted:
            return client
    if len(clients) == 1:
        return clients[0]
    if clients:
        names = ", ".join(sorted(map(_where, clients)))
        raise ControlError(f"several daemons are running: say which with -m: {names}")
    for dead in map(mountpoint_of, (path.stem for path in find_sockets(environ, uid))):
        if dead and mount_at(dead):
            raise NoDaemon(f"the daemon for {dead} has died: `refgenfs mount {dead}` recovers its mount")
    raise NoDaemon(f"no daemon is running for {where} ({wanted}): start it with `refgenfs mount`{_of_root(uid)}")


def _where(client: ControlClient) -> str:
    """Return where a daemon's mount is; the daemon itself is asked where its socket's name doesn't tell."""
    try:
        return str(client.mountpoint or client.call("status")["mountpoint"])
    except (ControlError, LookupError, TypeError):
        return str(client.socket_path)


def configured_mountpoint(config: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the configuration's mount.point; the default one where a file that nobody named is wrong."""
    from refgenfs.config import Config, load_config

    try:
        return canonical(load_config(config, {}, environ).config.mount.point)
    except ConfigError:
        if config is not None:
            raise
        return Config().mount.point


def _of_root(uid: int) -> str:
    if uid == 0 or not find_sockets({}, 0):
        return ""
    return "; root runs one, which only root can ask"
