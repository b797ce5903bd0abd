"""A process that does on a mount what it is told, one JSON line after the other, and may be killed while it waits.

    {"do": "open", "path": P}                          → {"error", "handle", "size"}
    {"do": "read", "handle": N, "offset": O, "length": L} → {"error", "data"}   data in hex
    {"do": "map", …}                                   the same through mmap, in a child: SIGBUS is its error
    {"do": "drop", "handle": N}                        have the kernel forget the file's pages
    {"do": "close", "handle": N}

Run as a script it is that process (standard library only); `Reading` is the test's end of it.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

PATIENCE = 30.0  # seconds for one answer: the daemon's own deadlines in these tests are 2 or 3


class Reading:
    """The process, and what it has open."""

    def __init__(self) -> None:
        command = ["timeout", "-s", "KILL", "900", sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer; raise AssertionError when none comes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self._process.stdin.flush()
        answered = select.select([self._process.stdout], [], [], PATIENCE)[0]
        assert answered, f"no answer within {PATIENCE:g} s to {do} {arguments}"
        line = self._process.stdout.readline()
        assert line, f"the reading process is gone at {do} {arguments}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process, also one that waits."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.terminate()  # timeout(1) hands it on
            self._process.wait(30)
        self._process.stdout.close()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
    for line in sys.stdin:
        ask = json.loads(line)
        try:
            answer = {"error": "", **ACTS[ask.pop("do")](**ask)}
        except OSError as exc:
            answer = {"error": errno.errorcode[exc.errno or 0]}
        print(json.dumps(answer), flush=True)


def _open(path: str) -> dict[str, Any]:
    fd = os.open(path, os.O_RDONLY)
    return {"handle": fd, "size": os.fstat(fd).st_size}


def _read(handle: int, offset: int, length: int) -> dict[str, Any]:
    return {"data": os.pread(handle, length, offset).hex()}


def _map(handle: int, offset: int, length: int) -> dict[str, Any]:
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        with mmap.mmap(handle, 0, access=mmap.ACCESS_READ) as pages, os.fdopen(write_end, "wb") as sink:
            sink.write(pages[offset : offset + length])
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as source:
        data = source.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return {"error": signal.Signals(os.WTERMSIG(status)).name}
    return {"data": data.hex()}


def _drop(handle: int) -> dict[str, Any]:
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    return {}


def _close(handle: int) -> dict[str, Any]:
    os.close(handle)
    return {}


ACTS: dict[str, Callable[..., dict[str, Any]]] = {
    "open": _open,
    "read": _read,
    "map": _map,
    "drop": _drop,
    "close": _close,
}


if __name__ == "__main__":
    main()
