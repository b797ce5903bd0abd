"""The control socket: JSON lines on a unix socket, one request a connection.

→ {"op": "pull", "args": {"keys": ["hg38/fasta"]}}
← {"progress": {...}}        as often as there is something to say
← {"ok": ...}  or  {"error": {"kind": "NotInCatalog", "message": "..."}}
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import trio

from refgenfs.core.errors import ControlError, RefgenfsError

log = logging.getLogger(__name__)

LONGEST_REQUEST = 1 << 20  # bytes
LONGEST_PATH = 107  # bytes; sun_path of unix(7), less its NUL
REQUEST_DEADLINE = 30.0  # seconds for a client to send its one line
SEND_DEADLINE = 60.0  # seconds for a client to take a line of ours

Progress = Callable[[dict[str, Any]], Awaitable[None]]
Operation = Callable[[dict[str, Any], Progress], Awaitable[Any]]


class ControlServer:
    """Serves operations by name. Each connection has a task in the nursery of `serve`."""

    def __init__(self, path: Path, operations: Mapping[str, Operation]) -> None:
        self._path = path
        self._operations = operations

    def listen(self) -> trio.SocketListener:
        """Bind the socket with mode 0600 in a folder that exists; one that nobody answers on is replaced.

        Raises ControlError when a daemon answers on it, or the folder can't be used.
        """
        if len(os.fsencode(self._path)) > LONGEST_PATH:
            raise ControlError(f"{self._path} is too long for a socket: set REFGENFS_RUNTIME_DIR to a shorter folder")
        try:
            self._remove_dead()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            previous = os.umask(0o177)
            try:
                listener.bind(os.fspath(self._path))
                listener.listen(64)
            except OSError:
                listener.close()
                raise
            finally:
                os.umask(previous)
        except OSError as exc:
            raise ControlError(f"can't listen on {self._path}: {exc.strerror or exc}") from exc
        return trio.SocketListener(trio.socket.from_stdlib_socket(listener))

    def _remove_dead(self) -> None:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        probe.settimeout(2)
        try:
            probe.connect(os.fspath(self._path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:  # any other error is no sign of death: a busy daemon's queue is full
            self._path.unlink(missing_ok=True)
        else:
            raise ControlError(f"a daemon answers on {self._path} already; `refgenfs umount` stops it")
        finally:
            probe.close()

    async def serve(self, listener: trio.SocketListener) -> None:
        """Answer requests until cancelled; the socket's file goes with it."""
        try:
            async with trio.open_nursery() as nursery:
                await trio.serve_listeners(self._answer, [listener], handler_nursery=nursery)
        finally:
            self._path.unlink(missing_ok=True)

    async def _answer(self, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                try:
                    request = await _read_request(stream)
                    reply = _line({"ok": await self._run(request, stream)})
                except RefgenfsError as exc:
                    reply = _error(type(exc).__name__, str(exc))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    raise
                except Exception as exc:
                    log.exception("a control request failed unexpectedly")
                    reply = _error(type(exc).__name__, f"unexpected: {exc}; the daemon's log has more")
                await _send(stream, reply)

    async def _run(self, request: dict[str, Any], stream: trio.SocketStream) -> Any:
        operation = self._operations.get(str(request.get("op")))
        arguments = request.get("args", {})
        if operation is None or not isinstance(arguments, dict):
            known = ", ".join(sorted(self._operations))
            raise ControlError(f"no operation {request.get('op')!r}; this daemon knows: {known}")

        async def progress(step: dict[str, Any]) -> None:
            await _send(stream, _line({"progress": step}))

        try:
            return await operation(arguments, progress)
        except ExceptionGroup as group:  # out of a nursery of the operation's
            raise _first(group) from group


async def _read_request(stream: trio.SocketStream) -> dict[str, Any]:
    line = bytearray()
    with trio.move_on_after(REQUEST_DEADLINE):
        while b"\n" not in line and len(line) <= LONGEST_REQUEST:
            chunk = await stream.receive_some(65536)
            if not chunk:
                break
            line += chunk
    try:
        request = json.loads(bytes(line).partition(b"\n")[0])
    except (ValueError, RecursionError) as exc:
        raise ControlError("a request is one line of JSON") from exc
    if not isinstance(request, dict):
        raise ControlError('a request is an object: {"op": …, "args": {…}}')
    return request


async def _send(stream: trio.SocketStream, line: bytes) -> None:
    try:
        with trio.fail_after(SEND_DEADLINE):
            await stream.send_all(line)
    except trio.TooSlowError:
        raise trio.BrokenResourceError("the client does not read its answers") from None


def _line(reply: dict[str, Any]) -> bytes:
    return json.dumps(reply).encode() + b"\n"


def _error(kind: str, message: str) -> bytes:
    return _line({"error": {"kind": kind, "message": message}})


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
