"""A daemon in a process of its own, with its mount, for tests that read through the kernel.

Every command that touches the mount runs under `timeout -s KILL`, and the mount is taken down whatever happens:
a read that is never answered would freeze the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refgenfs.control_client import ControlClient
from refgenfs.paths import socket_path

START_TIMEOUT = 60.0


@dataclass
class Mounted:
    """A running daemon. `environ` is what it and its client commands run with."""

    path: Path
    cache: Path
    config: Path
    environ: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path
    ready: dict[str, Any]
    seconds: float  # from exec to readiness

    def run(
        self, *command: str, timeout: int = 60, check: bool = True, cwd: Path | None = None, text: bool = True
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command that may touch the mount; it is killed after `timeout` seconds."""
        full = ["timeout", "-s", "KILL", str(timeout), *command]
        done = subprocess.run(full, capture_output=True, text=text, check=False, cwd=cwd, stdin=subprocess.DEVNULL)
        if check and done.returncode:
            tail = "\n".join(self.log_text().splitlines()[-30:])
            raise AssertionError(
                f"{' '.join(command)}: exit {done.returncode}\n{done.stdout!r}\n{done.stderr!r}\nlog:\n{tail}"
            )
        return done

    def shell(self, script: str, *, timeout: int = 60, check: bool = True) -> str:
        """Run a bash script with $M set to the mountpoint; return what it printed."""
        done = self.run(
            "env", f"M={self.path}", "bash", "-euo", "pipefail", "-c", script, timeout=timeout, check=check
        )
        return str(done.stdout)

    def refgenfs(self, *arguments: str, check: bool = True, timeout: int = 60) -> subprocess.CompletedProcess[str]:
        """Run a client command against this daemon."""
        command = [sys.executable, "-m", "refgenfs", *arguments]
        full = ["timeout", "-s", "KILL", str(timeout), *command]
        environ = {**self.environ, "REFGENFS_CONFIG": str(self.config)}
        done = subprocess.run(
            full, capture_output=True, text=True, check=False, env=environ, stdin=subprocess.DEVNULL
        )
        if check and done.returncode:
            raise AssertionError(f"refgenfs {arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def call(self, op: str, **arguments: Any) -> Any:
        """Ask the daemon by its control socket."""
        path = socket_path(self.path, self.environ, os.getuid())
        return ControlClient(path, mountpoint=self.path).call(op, **arguments)

    def status(self) -> dict[str, Any]:
        """Return what `refgenfs status --json` is made of."""
        status: dict[str, Any] = self.call("status")
        return status

    def log_text(self) -> str:
        """Return the daemon's log."""
        return self.log.read_text(errors="replace")

    def memory(self, field_name: str = "VmHWM") -> int:
        """Return the daemon's peak (VmHWM) or present (VmRSS) resident memory in bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field_name):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {field_name}")

    def stop(self, number: int = signal.SIGTERM, timeout: float = 20) -> int:
        """End the daemon by a signal and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the daemon did not end:\n{self.log_text()[-4000:]}") from None

    def kill(self) -> None:
        """End the daemon by SIGKILL: nothing of it can clean up."""
        self.process.kill()
        self.process.wait(10)


@dataclass
class Setup:
    """What a daemon is to run with; `mount` starts one, as often as wanted over the same cache."""

    folder: Path
    sources: str  # TOML of the [[source]] tables
    size: str = "1GB"
    extra: str = ""
    mountpoint: Path | None = None
    limits: Mapping[str, str] = field(default_factory=dict)
    runtime: Path = field(default_factory=lambda: _short_folder())  # a socket's path must be short

    def write(self) -> Path:
        """Write the configuration file and return its path."""
        point = self.mountpoint or self.folder / "mnt"
        limits = "".join(f'{key} = "{value}"\n' for key, value in self.limits.items())
        config = self.folder / "config.toml"
        config.write_text(
            f'[mount]\npoint = "{point}"\n{self.extra}\n'
            f'[cache]\ndir = "{self.folder / "cache"}"\nsize = "{self.size}"\nmin_free = "0%"\n'
            f"[limits]\n{limits}\n{self.sources}\n"
        )
        return config

    def environ(self) -> dict[str, str]:
        """Return an environment in which nothing of the user's own is touched."""
        return {**os.environ, "REFGENFS_RUNTIME_DIR": str(self.runtime), "XDG_STATE_HOME": str(self.runtime)}

    @contextlib.contextmanager
    def mount(self, *, prefix: Sequence[str] = ()) -> Iterator[Mounted]:
        """Run a daemon, wait until its tree answers, and take it down at the end."""
        config, environ = self.write(), self.environ()
        point = self.mountpoint or self.folder / "mnt"
        with contextlib.suppress(FileExistsError):  # also where a killed daemon's mount is: that can't be looked at
            os.mkdir(point)
        log = self.folder / "daemon.log"
        read_end, write_end = os.pipe()
        began = time.monotonic()
        with log.open("ab") as sink:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "refgenfs.daemon", "--ready-fd", str(write_end)],
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                pass_fds=[write_end],
                env=environ,
            )
        os.close(write_end)
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"path": str(config), "overrides": {}}).encode())
            process.stdin.close()
            message = _read_ready(read_end, log)
            seconds = time.monotonic() - began
            yield Mounted(point, self.folder / "cache", config, environ, process, log, message, seconds)
        finally:
            os.close(read_end)
            _take_down(process, point)


class Haste:
    """A bound for starts of a second, or of more on a machine that others keep busy: four times bare imports."""

    START = 1.0  # seconds; on a machine that does nothing else the imports take a quarter of it

    def __init__(self) -> None:
        self._imports: list[float] = []

    def measure(self) -> float:
        """Import what the daemon imports, in a process of its own; return the bound, by the best of all times."""
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import trio, aiohttp, pyfuse3, pydantic"], check=True, timeout=60)
        self._imports.append(time.monotonic() - began)
        return max(self.START, 4 * min(self._imports))


SHORT_FOLDERS: list[Path] = []  # removed at the end of the session (tests/conftest.py): a lane runs no atexit


def _short_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="rgfs-"))
    SHORT_FOLDERS.append(folder)
    return folder


def _read_ready(fd: int, log: Path) -> dict[str, Any]:
    deadline = time.monotonic() + START_TIMEOUT
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise AssertionError(f"no readiness in {START_TIMEOUT} s:\n{log.read_text()[-4000:]}")
        chunk = os.read(fd, 65536)
        if not chunk:
            raise AssertionError(f"the daemon ended before it was ready:\n{log.read_text()[-4000:]}")
        line += chunk
    message: dict[str, Any] = json.loads(line)
    if "ready" not in message:
        raise AssertionError(f"not ready: {message}")
    ready: dict[str, Any] = message["ready"]
    return ready


def _take_down(process: subprocess.Popen[bytes], point: Path) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(8)
    if process.poll() is None:
        process.kill()
        process.wait(10)
    subprocess.run(["fusermount3", "-uz", str(point)], check=False, capture_output=True, timeout=20)
