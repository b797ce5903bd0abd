"""Where the page is: an address and a port, or a unix socket."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

Place = tuple[str, int] | Path

BACKLOG = 128  # connections that wait to be accepted: many may come at once


def shown(place: Place) -> str:
    """Return a place for people."""
    if isinstance(place, Path):
        return str(place)
    host, port = place
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def bind(place: Place) -> socket.socket:
    """Return a socket that listens; a unix socket that nobody answers on is replaced. Raises OSError."""
    family = socket.AF_UNIX if isinstance(place, Path) else socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if isinstance(place, Path):
            _remove_dead(place)
            previous = os.umask(0o117)  # for its owner and its group
            try:
                listener.bind(os.fspath(place))
            finally:
                os.umask(previous)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        with suppress(FileNotFoundError, ConnectionRefusedError):
            probe.connect(os.fspath(path))
            return  # somebody answers: binding says so
    if path.is_socket():
        path.unlink(missing_ok=True)
