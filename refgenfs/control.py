"""The control socket: JSON lines on a unix socket, one request a connection.

Who asks is told by the kernel (SO_PEERCRED of unix(7)), for a socket that everybody may connect to.

→ {"op": "pull", "args": {"keys": ["hg38/fasta"]}}
← {"progress": {...}}        as often as there is something to say
← {"ok": ...}  or  {"error": {"kind": "NotInCatalog", "message": "..."}}
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from refgenfs.core.errors import ControlError, RefgenfsError
from refgenfs.core.shares import Shares

log = logging.getLogger(__name__)

LONGEST_REQUEST = 1 << 20  # bytes
# Of who is neither root nor the daemon's own: the thread that answers the kernel parses it, for 20 ms a MiB.
USERS_LONGEST_REQUEST = 1 << 16  # bytes
LONGEST_PATH = 107  # bytes; sun_path of unix(7), less its NUL
REQUEST_DEADLINE = 30.0  # seconds for a client to send its one line
SEND_DEADLINE = 60.0  # seconds for a client to take a line of ours
# Connections cost a descriptor, a task, and up to 1 MiB of a request or an answer each.
MOST_CONNECTIONS = 128  # at a time
USERS_CONNECTIONS = 8  # of one user who is neither root nor the daemon's own
BACKLOG = 1024  # connections that wait to be accepted: one user may make many at once
BUSY_DEADLINE = 1.0  # seconds for a client to take the answer that there are too many
_SO_PEERGROUPS = 59  # socket(7), Linux 4.13; the socket module has no name for it
_MOST_GROUPS = 256  # as getsockopt() of the socket module has it

Progress = Callable[[dict[str, Any]], Awaitable[None]]
Operation = Callable[[dict[str, Any], Progress], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as they were when they connected: `groups` are the supplementary ones."""

    uid: int
    gid: int
    groups: frozenset[int] = frozenset()

    @property
    def is_master(self) -> bool:
        """Whether this is root or who runs the daemon, who may ask for everything."""
        return self.uid in (0, os.getuid())


OperationsFor = Callable[[Caller], Mapping[str, Operation]]


class ControlServer:
    """Serves operations by name, as each caller has them. Each connection has a task in the nursery of `serve`.

    `shared`: everybody may connect; else its owner and root.
    """

    def __init__(self, path: Path, operations: OperationsFor, *, shared: bool = False) -> None:
        self._path = path
        self._operations = operations
        self._shared = shared
        self._connections = Shares(MOST_CONNECTIONS, USERS_CONNECTIONS, exempt=(0, os.getuid()))

    def listen(self) -> trio.SocketListener:
        """Bind the socket with mode 0600, or 0666 if shared, in a folder that exists; a dead one is replaced.

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
                if self._shared:
                    os.chmod(self._path, 0o666)  # noqa: S103  # who asks is looked at
                listener.listen(BACKLOG)
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
                    caller = _caller_of(stream)
                except OSError as exc:
                    log.debug("a client that has gone: %s", exc)
                    return
                if not self._connections.take(caller.uid):
                    await self._turn_away(stream, caller)
                    return
                try:
                    await self._answer_to(stream, caller)
                finally:
                    self._connections.give_back(caller.uid)

    async def _turn_away(self, stream: trio.SocketStream, caller: Caller) -> None:
        many = "you have" if self._connections.full(caller.uid) else "there are"
        with trio.move_on_after(BUSY_DEADLINE):
            await _send(stream, _error("ControlError", f"{many} too many requests under way; try again in a moment"))

    async def _answer_to(self, stream: trio.SocketStream, caller: Caller) -> None:
        try:
            request = await _read_request(stream, LONGEST_REQUEST if caller.is_master else USERS_LONGEST_REQUEST)
            reply = _line({"ok": await self._run(request, stream, caller)})
        except RefgenfsError as exc:
            reply = _error(type(exc).__name__, str(exc))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise
        except Exception as exc:
            log.exception("a control request failed unexpectedly")
            reply = _error(type(exc).__name__, f"unexpected: {exc}; the daemon's log has more")
        await _send(stream, reply)

    async def _run(self, request: dict[str, Any], stream: trio.SocketStream, caller: Caller) -> Any:
        operations = self._operations(caller)
        operation = operations.get(str(request.get("op")))
        arguments = request.get("args", {})
        if operation is None or not isinstance(arguments, dict):
            known = ", ".join(sorted(operations))
            raise ControlError(f"no operation {request.get('op')!r}; this daemon knows: {known}")

        async def progress(step: dict[str, Any]) -> None:
            await _send(stream, _line({"progress": step}))

        try:
            return await operation(arguments, progress)
        except ExceptionGroup as group:  # out of a nursery of the operation's
            raise _first(group) from group


def _caller_of(stream: trio.SocketStream) -> Caller:
    """Return who connected, as the kernel noted it then. Raises OSError."""
    peer = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, gid = struct.unpack("iII", peer)
    try:
        groups = stream.socket.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
    except OSError as exc:
        if exc.errno != errno.ERANGE:
            raise
        groups = b""  # there are more: what is for one of them is read through the mount
    return Caller(uid, gid, frozenset(struct.unpack(f"{len(groups) // 4}I", groups)))


async def _read_request(stream: trio.SocketStream, longest: int) -> dict[str, Any]:
    line, end = bytearray(), -1
    with trio.move_on_after(REQUEST_DEADLINE):
        while end < 0 and len(line) <= longest:
            chunk = await stream.receive_some(65536)
            if not chunk:
                break
            line += chunk
            end = line.find(b"\n", len(line) - len(chunk))
    if end >= 0:
        del line[end:]
    if len(line) > longest:
        raise ControlError(f"a request is at most {longest:,} bytes; ask for fewer keys at a time")
    try:
        request = json.loads(line)
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
