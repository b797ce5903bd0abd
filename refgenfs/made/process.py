"""One run of the worker: a process that is fed data through a pipe, and leaves what it made in memory files.

Nothing touches the mount: the data comes from whoever calls, through a pipe, so a cold file is read once, in order,
at the pace of the worker, and no copy of it is kept for it. What is made is a few megabytes at the most and has no
name anywhere (memfd_create(2)), so nothing of it outlives a kill (decision 18).
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from refgenfs.core.errors import CannotBeMade, DeadlineExceeded, GenerateFailed
from refgenfs.made.worker import REFUSED

log = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("worker.py")
PIPE = 1 << 20  # bytes that the pipe holds, where the kernel allows: a worker is woken once a piece, not 16 times
COMPLAINTS = 16 * 1024  # bytes kept of what the worker says
ENDING = 10.0  # seconds for a killed process to be gone

# What says nothing about the data.
STARVED = re.compile("memory|alloc|file too large|no space", re.IGNORECASE)

Feed = Callable[[Callable[[bytes | memoryview], Awaitable[None]]], Awaitable[None]]


class TooSlow(DeadlineExceeded):
    """A worker did not end in the time that its data should take."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a run may take: `seconds` of time, bytes of `memory`, bytes of the `largest` thing that it makes."""

    seconds: float
    memory: int
    largest: int


class Product:
    """One thing that was made, in a memory file. It is to be closed."""

    def __init__(self, maker: str) -> None:
        self.fd = os.memfd_create(f"refgenfs-{maker}", os.MFD_CLOEXEC)

    @property
    def size(self) -> int:
        """Bytes that it has."""
        return os.fstat(self.fd).st_size

    def read(self, start: int, stop: int) -> bytes:
        """Return these bytes, or fewer at its end."""
        parts = []
        while start < stop and (part := os.pread(self.fd, stop - start, start)):
            parts.append(part)
            start += len(part)
        return b"".join(parts)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of all of it. Takes a while; for any thread."""
        found = hashlib.sha256()
        for start in range(0, self.size, PIPE):
            found.update(self.read(start, start + PIPE))
        return found.hexdigest()

    def close(self) -> None:
        """Give its memory back; idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


async def run_worker(maker: str, products: Sequence[Product], feed: Feed, bounds: Bounds) -> None:
    """Fill the products with what `maker` makes of what `feed` gives, which is called with what takes the data.

    Raises what `feed` raises, CannotBeMade when htslib refuses the data, GenerateFailed when the process fails or is
    killed, TooSlow. The process is gone when this returns.
    """
    with trio.move_on_after(bounds.seconds) as scope:
        await _run(maker, [product.fd for product in products], feed, bounds)
    if scope.cancelled_caught:
        raise TooSlow(f"{maker}: not done within {bounds.seconds:.0f} s")


async def _run(maker: str, files: Sequence[int], feed: Feed, bounds: Bounds) -> None:
    process = await _start(maker, files, bounds)
    complaints = bytearray()
    failed: list[Exception] = []  # raised as it is: a nursery would wrap it in a group
    broken = False
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_listen, process, complaints)
            try:
                broken = not await _feed(process, feed)
            except Exception as exc:  # noqa: BLE001 - raised again below
                failed.append(exc)
                process.kill()  # before its input ends: what came so far is not all of the data
            await process.wait()
    finally:
        await _end(process)
    if failed:
        raise failed[0]
    _judge(maker, process.returncode, bytes(complaints), complete=not broken)


async def _start(maker: str, files: Sequence[int], bounds: Bounds) -> trio.Process:
    numbers = [bounds.memory, bounds.largest, int(bounds.seconds) + 1, *files]
    try:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-I", str(WORKER), maker, *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=files,
            cwd="/",
            env=_environment(),
            start_new_session=True,  # what is typed at a daemon in the foreground is not for it
        )
    except OSError as exc:
        raise GenerateFailed(f"{maker}: no process for it can be started: {exc.strerror}") from exc
    assert isinstance(process.stdin, trio.lowlevel.FdStream)
    with suppress(OSError):
        fcntl.fcntl(process.stdin.fileno(), fcntl.F_SETPIPE_SZ, PIPE)
    return process


def _environment() -> dict[str, str]:
    """Return an environment in which htslib looks for no reference anywhere, and finds no secret of the daemon's."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PATH", "TMPDIR") if name in os.environ}
    return {**kept, "LC_ALL": "C.UTF-8", "REF_PATH": "/nonexistent", "REF_CACHE": "/nonexistent"}


async def _feed(process: trio.Process, feed: Feed) -> bool:
    """Give the worker all of the data; False if it did not want it all."""
    assert process.stdin is not None
    try:
        await feed(process.stdin.send_all)
    except trio.BrokenResourceError:
        return False
    await process.stdin.aclose()
    return True


async def _listen(process: trio.Process, complaints: bytearray) -> None:
    """Take what the worker says, and keep the end of it."""
    assert process.stderr is not None
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for chunk in process.stderr:
            complaints += chunk
            del complaints[:-COMPLAINTS]


async def _end(process: trio.Process) -> None:
    """Kill the process if it runs, wait until it is gone, and close our ends of its pipes."""
    if process.returncode is None:
        process.kill()
    with trio.CancelScope(shield=True), trio.move_on_after(ENDING):
        await process.wait()
    if process.returncode is None:
        log.warning("the process %d that makes an index was killed and does not end", process.pid)
    with trio.CancelScope(shield=True):
        for stream in (process.stdin, process.stderr):
            if stream is not None:
                await stream.aclose()


def _judge(maker: str, code: int | None, complaints: bytes, *, complete: bool) -> None:
    """Raise what the end of the process means; nothing if all is well."""
    said = _last_line(complaints)
    if code == REFUSED and STARVED.search(said):
        raise GenerateFailed(f"{maker}: its process has not enough of something: {said}")
    if code == REFUSED:
        raise CannotBeMade(said or "htslib refuses it, and does not say why")
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        raise GenerateFailed(f"{maker}: its process was ended by {name}{': ' if said else ''}{said}")
    if code != 0:
        raise GenerateFailed(f"{maker}: its process failed ({code}){': ' if said else ''}{said}")
    if not complete:
        raise GenerateFailed(f"{maker}: its process ended before it had all of the data")


def _last_line(complaints: bytes) -> str:
    """Return the first error of the last ones that were said, or else the last line, as text for people."""
    lines = [line for line in complaints.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("[E::")]
    chosen = (errors or lines[-1:] or [""])[0]
    return "".join(char if char.isprintable() else "?" for char in chosen)[:300]
