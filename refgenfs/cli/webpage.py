"""`web`: where the status page of a running daemon is."""

from __future__ import annotations

import os
import shlex
import socket
import webbrowser
from typing import Annotated, Any

import typer

from refgenfs.cli.connection import choose
from refgenfs.cli.options import AsJson, ConfigFile, Mountpoint
from refgenfs.cli.output import clean, note, write, write_json
from refgenfs.core.errors import ControlError

PORT = 8080  # at the end of a tunnel


def web(
    opens: Annotated[bool, typer.Option("--open", metavar="", help="Show it in a browser, too.")] = False,
    mountpoint: Mountpoint = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Print where the status page is, or how to get to its socket."""
    place = page_of(choose(mountpoint, config, os.environ, os.geteuid()).call("status"))
    if as_json:
        write_json({"web": place})
        return
    if not place.startswith("/"):
        write(clean(place))
        if opens and not webbrowser.open(place):
            raise ControlError(f"no browser could be started here; open {place} in yours")
        return
    if opens:
        raise ControlError(f"the page is at a unix socket, which browsers can't open: {tunnel(place)}")
    write(clean(place))
    note(f"from another machine: {tunnel(place)}, then open http://localhost:{PORT}/")


def page_of(status: dict[str, Any]) -> str:
    """Return where a daemon's page is; raise ControlError, which says what to do, where there is none."""
    place = status.get("web")
    if not isinstance(place, str):
        raise ControlError(
            'this daemon serves no status page: set listen = "127.0.0.1:9417" in [web] of its configuration, then '
            "umount and mount"
        )
    return place


def tunnel(path: str) -> str:
    """Return the command that brings a socket of this machine to a port of another."""
    return f"ssh -N -L {PORT}:{shlex.quote(path)} {socket.gethostname()}"
