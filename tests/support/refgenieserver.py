"""The real refgenieserver, with two tiny real genomes, as session fixtures.

The first run builds the genomes with the real refgenie and installs both programs: about a minute. That is kept
in a folder of pytest's cache, or the one that REFGENFS_TEST_CACHE names, so it is done once.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.untimed import untimed

BUILD_TIMEOUT = 900  # seconds, for everything from nothing on a slow network
STOP_TIMEOUT = 10

_live = pytest.StashKey[list["RefgenieServer"]]()


@dataclass(frozen=True)
class RefgenieServer:
    """A running refgenieserver.

    `static_url` is the host of the unpacked copies, "" for a server that offers archives only. `archives` is
    the folder that is served; `bin` has `refgenie` itself; `fasta` are the inputs, by genome.
    """

    url: str
    static_url: str
    archives: Path
    work: Path
    bin: Path
    pids: tuple[int, ...]
    logs: tuple[Path, ...]

    @property
    def fasta(self) -> dict[str, Path]:
        """The FASTA files that the genomes were built from."""
        return {name: self.work / f"{name}.fa.gz" for name in ("tinyA", "tinyB")}

    def log_tail(self, characters: int = 4000) -> str:
        """Return the end of what the server and its static host logged."""
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-characters:]}" for log in self.logs)


@contextmanager
def run_refgenieserver(script: Path, cache: Path, *, remotes: bool) -> Iterator[RefgenieServer]:
    """Run the real server, and its static host with `remotes`, on free ports; stop both at the end."""
    work, archives = cache / "work", cache / "archives"
    venv = Path(os.environ.get("RG_VENV") or cache / "venv")
    cache.mkdir(parents=True, exist_ok=True)
    server: RefgenieServer | None = None
    port = 0
    try:
        # What is built is shared by all who test at one time, so one starts at a time.
        with untimed(), (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            port = _free_ports()
            _start(script, port, archives, work, venv, remotes=remotes)
        server = RefgenieServer(
            url=f"http://127.0.0.1:{port}",
            static_url=f"http://127.0.0.1:{port + 1}" if remotes else "",
            archives=archives,
            work=work,
            bin=venv / "bin",
            pids=_pids(work, port),
            logs=tuple(sorted((work / "log").glob(f"*.{port}.log"))),
        )
        yield server
    finally:
        for pid in _pids(work, port) if port else ():
            _stop(pid, str(work))
        for left in work.glob(f"*.{port}.*"):
            left.unlink(missing_ok=True)


def _start(script: Path, port: int, archives: Path, work: Path, venv: Path, *, remotes: bool) -> None:
    command = ["bash", str(script), str(port), str(archives), *(["--remotes"] if remotes else [])]
    environ = {**os.environ, "RG_WORK": str(work), "RG_VENV": str(venv)}
    environ.pop("REFGENIE", None)
    environ.pop("PYTHONPATH", None)
    # To files: the server that stays behind would hold a pipe open, and be waited for.
    output = work.parent / f"start.{port}.log"
    with output.open("w") as stream:
        code = subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            timeout=BUILD_TIMEOUT,
            check=False,
        ).returncode
    text = output.read_text(errors="replace")
    output.unlink()
    if code != 0 or not re.search(r"^READY ", text, re.MULTILINE):
        logs = sorted((work / "log").glob("*.log"), key=lambda log: log.stat().st_mtime)
        tail = logs[-1].read_text(errors="replace")[-3000:] if logs else ""
        raise RuntimeError(f"{script} failed ({code}):\n{text}\n{tail}")


def _pids(work: Path, port: int) -> tuple[int, ...]:
    found = []
    for file in (work / f"server.{port}.pid", work / f"static.{port}.pid"):
        with suppress(OSError, ValueError):
            found.append(int(file.read_text()))
    return tuple(found)


def _stop(pid: int, work: str) -> None:
    """End a process of ours, and wait for it; one that is not ours (a number used again) is left alone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_TIMEOUT
        while work in _command_line(pid):
            if time.monotonic() >= deadline:
                break
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            time.sleep(0.05)


def _command_line(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        line = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""
    return "" if stat.rpartition(")")[2].split()[0] == "Z" else line


def _free_ports() -> int:
    """Return a port that is free along with the next one."""
    for _ in range(200):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            with suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port
    raise RuntimeError("no two neighbouring ports are free")


def _fixture(request: pytest.FixtureRequest, data_dir: Path, *, remotes: bool) -> Iterator[RefgenieServer]:
    script = data_dir / "bin" / "refgenieserver.sh"
    with run_refgenieserver(script, test_cache(request.config), remotes=remotes) as server:
        live = request.config.stash.setdefault(_live, [])
        live.append(server)
        yield server
        live.remove(server)


def test_cache(config: pytest.Config) -> Path:
    """Return the folder that keeps what takes long to build."""
    named = os.environ.get("REFGENFS_TEST_CACHE")
    if named:
        return Path(named).resolve() / "refgenieserver"
    return config.cache.mkdir("refgenieserver")


test_cache.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def archive_server(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[RefgenieServer]:
    """A real refgenieserver that offers archives only."""
    yield from _fixture(request, data_dir, remotes=False)


@pytest.fixture(scope="session")
def remotes_server(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[RefgenieServer]:
    """A real refgenieserver that redirects to a static host, which has unpacked copies."""
    yield from _fixture(request, data_dir, remotes=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failed test what the servers logged."""
    report = yield
    if report.failed:
        for server in item.config.stash.get(_live, []):
            report.sections.append((f"refgenieserver {server.url}", server.log_tail()))
    return report
