"""The client's side of a daemon's control socket: JSON lines, one request a connection.

A request is `{"op": ..., "args": {...}}`; the daemon answers with any number of `{"progress": {...}}`, then
with `{"ok": ...}` or `{"error": {"kind": ..., "message": ...}}`.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refgenfs.core.errors import ControlError

CONNECT_TIMEOUT = 5.0  # a local socket answers at once, or its daemon is stuck
BUSY = 0.02  # seconds between two attempts at a socket to which many connect
REPLY_TIMEOUT = 60.0  # longer than any deadline inside the daemon for what is no transfer
IDLE_TIMEOUT = 300.0  # between two lines of a transfer, which has retries and deadlines of its own
_LINE_LIMIT = 256 << 20  # a catalog of a million assets is smaller


class NoDaemon(ControlError):
    """Nobody listens at the control socket."""


class NotAllowed(ControlError):
    """The control socket belongs to another user."""


class ReplyTimeout(ControlError):
    """The daemon did not answer in time."""


class DaemonRefused(ControlError):
    """The daemon answered with an error; `kind` is the name of its class there, and `message` its text."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@dataclass(frozen=True, slots=True)
class Progress:
    """What the daemon tells while it works."""

    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """The answer, which ends a request."""

    value: Any


class ControlClient:
    """Asks the daemon behind one control socket.

    Every method opens a connection of its own, and raises ControlError: NoDaemon, NotAllowed, ReplyTimeout,
    DaemonRefused, or the class itself where the daemon went away or talks nonsense.
    """

    def __init__(
        self,
        socket_path: Path,
        *,
        mountpoint: Path | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        reply_timeout: float = REPLY_TIMEOUT,
        idle_timeout: float = IDLE_TIMEOUT,
    ) -> None:
        self.socket_path = socket_path
        self.mountpoint = mountpoint
        self._connect_timeout = connect_timeout
        self._reply_timeout = reply_timeout
        self._idle_timeout = idle_timeout

    def call(self, op: str, **args: Any) -> Any:
        """Return what the daemon answers to `op`, waiting `reply_timeout` seconds at the most."""
        for event in self._request(op, args, self._reply_timeout):
            if isinstance(event, Result):
                return event.value
        raise AssertionError("a request ends with a result or an error")

    def stream(self, op: str, **args: Any) -> Generator[Progress | Result, None, None]:
        """Yield what the daemon tells, a Result last. Closing the iterator closes the connection."""
        return self._request(op, args, self._idle_timeout)

    def is_alive(self, *, mounted: bool = True) -> bool:
        """Say whether somebody listens at the socket.

        Where this user may not look there may be somebody or nobody: it is who mounted the mountpoint, if that is
        `mounted`.
        """
        try:
            self._connect().close()
        except NotAllowed:
            return mounted
        except ControlError:
            return False
        return True

    def is_open(self) -> bool:
        """Say whether somebody listens at the socket, and lets this user ask."""
        try:
            self._connect().close()
        except ControlError:
            return False
        return True

    def is_absent(self) -> bool:
        """Say whether nobody listens at the socket; a daemon that is stuck is there."""
        try:
            self._connect().close()
        except NoDaemon:
            return True
        except ControlError:
            return False
        return False

    def _request(self, op: str, args: Mapping[str, Any], timeout: float) -> Generator[Progress | Result, None, None]:
        connection = self._connect()
        try:
            connection.settimeout(timeout)
            line = json.dumps({"op": op, "args": args}, separators=(",", ":")) + "\n"
            connection.sendall(line.encode())
            with connection.makefile("rb") as replies:
                while reply := replies.readline(_LINE_LIMIT):
                    event = _parse_reply(reply)
                    yield event
                    if isinstance(event, Result):
                        return
            raise ControlError(f"the daemon for {self._where} ended before it answered; its log says why")
        except TimeoutError as exc:
            raise ReplyTimeout(
                f"the daemon for {self._where} hasn't answered {op!r} in {timeout:g} s; its log may say why"
            ) from exc
        except OSError as exc:
            raise ControlError(f"the daemon for {self._where} went away: {exc.strerror or exc}") from exc
        finally:
            connection.close()

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(self._connect_timeout)
        try:
            _connect(connection, str(self.socket_path), self._connect_timeout)
            return connection
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as exc:
            connection.close()
            raise NoDaemon(self._nobody()) from exc
        except PermissionError as exc:
            connection.close()
            raise NotAllowed(f"{self.socket_path} belongs to another user; ask as the user who mounted it") from exc
        except (TimeoutError, BlockingIOError) as exc:
            connection.close()
            raise ReplyTimeout(
                f"the daemon for {self._where} takes no connection at {self.socket_path}; its log may say why"
            ) from exc
        except OSError as exc:
            connection.close()
            raise ControlError(f"can't connect to {self.socket_path}: {exc.strerror or exc}") from exc

    @property
    def _where(self) -> str:
        return str(self.mountpoint or self.socket_path)

    def _nobody(self) -> str:
        command = f"refgenfs mount {self.mountpoint}" if self.mountpoint else "refgenfs mount"
        return f"no daemon is running for {self._where} ({self.socket_path}): start it with `{command}`"


def _connect(connection: socket.socket, path: str, timeout: float) -> None:
    """Connect, also while as many as may wait to be accepted do so; BlockingIOError after `timeout` seconds."""
    until = time.monotonic() + timeout
    while True:
        try:
            connection.connect(path)
        except BlockingIOError:  # a unix socket doesn't wait for that where it has a timeout
            if time.monotonic() >= until:
                raise
            time.sleep(BUSY)
        else:
            return


def _parse_reply(line: bytes) -> Progress | Result:
    try:
        reply = json.loads(line)
    except ValueError as exc:
        raise ControlError("the daemon's answer is no JSON: is it of another version?") from exc
    match reply:
        case {"progress": {} as fields}:
            return Progress(fields)
        case {"ok": value}:
            return Result(value)
        case {"error": {"kind": str(kind), "message": str(message)}}:
            raise DaemonRefused(kind, message)
    raise ControlError("the daemon's answer is unknown here: is it of another version?")
