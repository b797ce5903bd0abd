"""Starting a daemon in the background, and waiting until it says that it is ready."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refgenfs.core.errors import RefgenfsError

if TYPE_CHECKING:
    from refgenfs.config import LoadedConfig

START_SECONDS = 60.0  # a cold catalog over a slow line; with a filled cache it takes less than one
ANSWER_SECONDS = 15.0
_GRACE_SECONDS = 5.0
# exits with 0 where the path is on another device than the folder that holds it
_STAT = "import os, sys; sys.exit(len({os.stat(path).st_dev for path in sys.argv[1:]}) != 2)"


class StartFailed(RefgenfsError):
    """The daemon didn't come up; the message says why, and where its log is."""


@dataclass(frozen=True, slots=True)
class Started:
    """A daemon that is ready: its process id, and what it said."""

    pid: int
    facts: dict[str, Any]


def command(ready_fd: int) -> list[str]:
    """Return the command that runs a daemon which tells its readiness on a file descriptor."""
    isolated = ["-I"] if sys.flags.isolated else []  # as we are: a package's program hears of no PYTHONPATH
    return [sys.executable, *isolated, "-m", "refgenfs.daemon", "--ready-fd", str(ready_fd)]


def start(loaded: LoadedConfig, log: Path, *, deadline: float = START_SECONDS) -> Started:
    """Start a daemon and return when it is ready, and in a session of its own; raise StartFailed.

    It reads its configuration's path and overrides as JSON from standard input, writes to `log`, and says one
    line of JSON on a pipe: `{"ready": {...}}` or `{"error": {"kind": ..., "message": ...}}`.
    """
    request = {
        "path": str(loaded.path) if loaded.path else None,
        "overrides": {key: str(v) if isinstance(v, Path) else v for key, v in loaded.overrides.items()},
    }
    ready, told = os.pipe()
    try:
        with tempfile.TemporaryFile() as stdin, _open_log(log) as output:
            stdin.write(json.dumps(request).encode())
            stdin.seek(0)
            process = subprocess.Popen(
                command(told),
                stdin=stdin,
                stdout=output,
                stderr=output,
                pass_fds=(told,),
                cwd="/",
            )
    finally:
        os.close(told)
    try:
        return _wait(process, ready, log, deadline)
    finally:
        os.close(ready)


def _wait(process: subprocess.Popen[bytes], ready: int, log: Path, deadline: float) -> Started:
    try:
        line = _read_line(ready, deadline)
    except BaseException:
        _end(process)
        raise
    if line is None:
        _end(process)
        raise StartFailed(f"the daemon wasn't ready after {deadline:g} s and was ended; its log: {log}")
    if not line:
        code = process.wait()
        last = _last_line(log)
        raise StartFailed(f"the daemon ended with status {code}{f': {last}' if last else ''}; its log: {log}")
    try:
        told = json.loads(line)
        if "ready" in told:
            # It may outlive us; where it doesn't, somebody has to take note of its end, or it stays as a zombie.
            threading.Thread(target=process.wait, name="reap", daemon=True).start()
            return Started(process.pid, told["ready"] or {})
        message = told["error"]["message"]
    except (ValueError, LookupError, TypeError) as exc:
        _end(process)
        raise StartFailed(f"the daemon said what is no readiness; its log: {log}") from exc
    _end(process)
    raise StartFailed(f"{message} (log: {log})")


def _read_line(fd: int, seconds: float) -> bytes | None:
    """Return the first line that arrives, empty at end of file, None when the time is over."""
    deadline, line = time.monotonic() + seconds, b""
    while b"\n" not in line:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            return None
        piece = os.read(fd, 65536)
        if not piece:
            return line
        line += piece
    return line


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a daemon that didn't come up, so that it leaves no mount; it gets a moment to do so itself."""
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _open_log(log: Path) -> Any:
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")
    except OSError as exc:
        raise StartFailed(f"the log {log} can't be written: {exc.strerror}; set XDG_STATE_HOME") from exc


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def tree_answers(mountpoint: Path, seconds: float = ANSWER_SECONDS) -> bool:
    """Say whether a file system is mounted that answers.

    A child asks, since who asks one that hangs can't be interrupted.
    """
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _STAT, str(mountpoint), str(mountpoint.parent)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # of our process group: an automounter that waits for the mount holds up every other
    try:
        return child.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        child.kill()
        child.returncode = -9  # not waited for: it may be in D state until the daemon ends
        return False
