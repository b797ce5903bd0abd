"""`reload`: have a running daemon take its changed configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refgenfs.cli.connection import choose, running
from refgenfs.cli.options import AsJson, ConfigFile, Mountpoint
from refgenfs.cli.output import note, write, write_json
from refgenfs.cli.state import Point, the_one
from refgenfs.control_client import ControlClient, DaemonRefused, NoDaemon
from refgenfs.core.errors import ConfigError, ControlError


def reload(
    point: Point = None, mountpoint: Mountpoint = None, config: ConfigFile = None, as_json: AsJson = False
) -> None:
    """Have the daemon take its changed configuration, and ask its sources for what they have.

    The mount stays, and so do files that are open. A file that is wrong changes nothing.
    """
    client = _find(the_one(point, mountpoint), config)
    try:
        answer = client.call("reload")
    except DaemonRefused as exc:
        if exc.kind == ConfigError.__name__:
            raise ConfigError(f"{exc.message}\nnothing is changed: {_name(client)} goes on with what it has") from exc
        raise
    if as_json:
        write_json(answer)
    else:
        _tell(_name(client), answer)


def _find(mountpoint: str | None, config: Path | None) -> ControlClient:
    """Return the daemon that is meant; with a file, also one that runs with it elsewhere than it says by now."""
    environ, uid = os.environ, os.geteuid()
    try:
        return choose(mountpoint, config, environ, uid)
    except (NoDaemon, ConfigError):
        if config is None or mountpoint is not None:
            raise
        path = os.path.abspath(os.path.expanduser(config))
        for client in running(environ, uid):
            if _config_of(client) == path:
                return client
        raise


def _config_of(client: ControlClient) -> object:
    try:
        return client.call("status").get("config")
    except (ControlError, AttributeError):
        return None


def _name(client: ControlClient) -> str:
    return str(client.mountpoint or client.socket_path)


def _tell(name: str, answer: dict[str, Any]) -> None:
    changes = list(_changes(answer))
    write(f"{name}: {answer['config'] or 'the defaults'}: {'taken' if changes else 'nothing is another'}")
    for line in changes:
        write(f"  {line}")
    for kept in answer["kept"]:
        note(f"{kept['key']} stays {kept['value']} until the next mount (the file says {kept['wanted']})")
    if not answer["fits"]:
        note("what is pinned takes more than cache.size: nothing else is kept")
    for source in answer["sources"]:
        if source["error"]:
            note(f"source {source['name']}: {source['error']}")


def _changes(answer: dict[str, Any]) -> Iterator[str]:
    for change in answer["changed"]:
        now, was = change["now"] or "none", change["was"] or "none"
        yield f"{change['key']} = {now} (was {was})"
    for source in answer["sources"]:
        if source["what"] in ("added", "changed"):
            genomes = source["genomes"]
            yield f"source {source['name']}: {source['what']}, {genomes:,} genome{'' if genomes == 1 else 's'}"
        elif source["what"] == "removed":
            yield f"source {source['name']}: removed"
