"""A daemon under a service manager that the test plays, and one that is told to take a changed configuration."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from refgenfs.demo.build import DemoRoot, build_demo_root
from refgenfs.demo.origin import Origin, serve
from tests.support.mounted import Setup

pytestmark = [pytest.mark.needs_fuse, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRoot:
    return build_demo_root(tmp_path_factory.mktemp("demo") / "root")


@pytest.fixture
def origin(demo: DemoRoot) -> Iterator[Origin]:
    with serve(demo.root, remotes=True) as origin:
        yield origin


def refgenie(name: str, url: str, more: str = "") -> str:
    return f'[[source]]\nname = "{name}"\ntype = "refgenie"\nurl = "{url}"\n{more}\n'


class Manager:
    """A service manager's socket; `heard` are all lines that came."""

    def __init__(self, channel: socket.socket) -> None:
        self.heard: list[str] = []
        self._channel = channel
        channel.settimeout(0.2)

    def waits_for(self, what: Callable[[str], bool]) -> str:
        """Return the first line, of those that came and that come, that is wanted."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found = next(filter(what, self.heard), None)
            if found is not None:
                return found
            with contextlib.suppress(TimeoutError):
                self.heard += self._channel.recv(4096).decode().split("\n")
        raise AssertionError(f"nothing of the kind in {self.heard}")

    def drain(self) -> None:
        """Pass over all that came already."""
        with contextlib.suppress(TimeoutError):
            while True:
                self._channel.recv(4096)

    def is_fed_within(self, seconds: float) -> bool:
        """Say whether the watchdog is fed from now on."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                if b"WATCHDOG=1" in self._channel.recv(4096):
                    return True
        return False


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "2000000")
        yield Manager(channel)


def test_a_manager_is_told_of_the_start_of_life_and_of_the_end(
    origin: Origin, manager: Manager, tmp_path: Path
) -> None:
    with Setup(tmp_path, refgenie("demo", origin.url)).mount() as mounted:
        manager.waits_for(lambda line: line == "READY=1")
        first = manager.heard.index("READY=1")
        assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in manager.heard[:first])
        point = mounted.path
        assert manager.heard[first + 1].startswith(f"STATUS=serving {point}: 1 genome; cache ")
        manager.waits_for(lambda line: line == "WATCHDOG=1")
        held = os.open(point / "demo" / "fasta" / "demo.fa", os.O_RDONLY)
        try:
            manager.waits_for(lambda line: line.endswith("; 1 file open"))
        finally:
            os.close(held)
        assert mounted.stop() == 0
        manager.waits_for(lambda line: line == "STOPPING=1")


def test_a_daemon_that_is_stopped_in_its_tracks_is_not_said_to_be_alive(
    origin: Origin, manager: Manager, tmp_path: Path
) -> None:
    with Setup(tmp_path, refgenie("demo", origin.url)).mount() as mounted:
        manager.waits_for(lambda line: line == "WATCHDOG=1")
        os.kill(mounted.process.pid, signal.SIGSTOP)
        try:
            manager.drain()
            assert not manager.is_fed_within(2)
        finally:
            os.kill(mounted.process.pid, signal.SIGCONT)
        assert manager.is_fed_within(30)
