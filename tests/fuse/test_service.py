"""A daemon under a service manager that the test plays, and one that is told to take a changed configuration."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from refgenfs.demo.build import DemoRoot, build_demo_root
from refgenfs.demo.origin import Origin, serve
from tests.support.mounted import Mounted, Setup

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


# --- reload ---------------------------------------------------------------------------------------------------


def names(mounted: Mounted) -> list[str]:
    return sorted(name for name in mounted.run("ls", str(mounted.path)).stdout.split() if len(name) < 32)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def guarded(origin: Origin, token: str) -> Iterator[str]:
    """Serve what an origin has to who brings the token; yield the URL."""
    upstream = urlsplit(origin.url)

    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.headers.get("Authorization") != f"Bearer {token}":
                self._send(401, b"", [])
                return
            connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=20)
            kept = {key: value for key, value in self.headers.items() if key in ("Range", "If-Range")}
            connection.request(self.command, self.path, headers=kept)
            answer = connection.getresponse()
            headers = [(key, value) for key, value in answer.getheaders() if key.lower() not in HOP]
            self._send(answer.status, answer.read(), headers)
            connection.close()

        do_HEAD = do_GET  # noqa: N815

        def _send(self, status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
            self.send_response(status)
            for key, value in headers:
                self.send_header(key, value)
            if not any(key.lower() == "content-length" for key, _ in headers):
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


HOP = ("connection", "keep-alive", "transfer-encoding", "date", "server")


def test_sources_come_and_go_and_open_files_are_read_on(origin: Origin, demo: DemoRoot, tmp_path: Path) -> None:
    place = f"{origin.url}/files/{demo.digest}/fasta__default/{demo.digest}.fa"
    setup = Setup(tmp_path, refgenie("demo", origin.url), size="64MiB")
    with setup.mount() as mounted:
        assert names(mounted) == ["demo"]
        whole = mounted.run("cat", str(mounted.path / "demo/fasta/demo.fa"), text=False).stdout
        mounted.refgenfs("cache", "clear", "--yes")
        held = os.open(mounted.path / "demo/fasta/demo.fa", os.O_RDONLY)
        try:
            setup.sources = (
                f'[[source]]\nname = "plain"\ntype = "http"\nurl = "{origin.url}"\n'
                f'[[source.asset]]\nkey = "GRCm39/fasta"\nfiles = ["{place}"]\n'
            )
            setup.write()
            assert mounted.refgenfs("reload").stdout.splitlines() == [
                f"{mounted.path}: {mounted.config}: taken",
                "  source plain: added, 1 genome",
                "  source demo: removed",
            ]
            assert names(mounted) == ["GRCm39"]
            assert mounted.run("stat", str(mounted.path / "demo"), check=False).returncode == 1
            added = mounted.path / "GRCm39/fasta" / f"{demo.digest}.fa"
            assert mounted.run("cat", str(added), text=False).stdout == whole
            # of what nobody offers any more no block and no page is kept: who has it open has it fetched
            os.posix_fadvise(held, 0, 0, os.POSIX_FADV_DONTNEED)
            script = "import os, sys; sys.stdout.buffer.write(os.pread(0, 1 << 30, 0))"
            command = ["timeout", "-s", "KILL", "60", sys.executable, "-c", script]
            assert subprocess.run(command, stdin=held, stdout=subprocess.PIPE, check=True).stdout == whole
        finally:
            os.close(held)
        assert [source["name"] for source in mounted.status()["sources"]] == ["plain"]


def test_limits_change_and_the_rest_is_said_to_stay(origin: Origin, tmp_path: Path) -> None:
    setup = Setup(tmp_path, refgenie("demo", origin.url), size="1GB")
    with setup.mount() as mounted:
        mounted.refgenfs("pull", "demo/bwa_index")
        assert mounted.status()["cache"]["used"] > 4 * 2**20
        setup.size = "4MiB"
        setup.limits = {"memory": "16MiB", "read_deadline": "5s"}
        setup.extra = "readahead = 65536"
        setup.sources = '[log]\nlevel = "warning"\n' + refgenie("demo", origin.url)
        setup.write()
        done = mounted.refgenfs("reload")
        changed = [line.strip() for line in done.stdout.splitlines()[1:]]
        assert changed == [
            'cache.size = "4MiB" (was "1GB")',
            'limits.memory = "16MiB" (was "64MiB")',
            'limits.read_deadline = "5s" (was "1m")',
            'log.level = "warning" (was "info")',
        ]
        assert done.stderr == (
            'refgenfs: mount.readahead stays "1MiB" until the next mount (the file says "64KiB")\n'
        )
        assert mounted.status()["cache"]["size"] == 4 * 2**20
        assert mounted.status()["cache"]["used"] <= 4 * 2**20
        mounted.run("cat", str(mounted.path / "demo/bwa_index/demo.fa.bwt"), text=False)
        assert mounted.status()["cache"]["used"] <= 4 * 2**20
        assert "reloaded" not in mounted.log_text()
        assert mounted.refgenfs("reload").stdout == f"{mounted.path}: {mounted.config}: nothing is another\n"
        setup.sources = refgenie("demo", origin.url)
        setup.write()
        mounted.refgenfs("reload")
        assert 'log.level = "info" (was "warning")' in mounted.log_text()


def test_a_wrong_file_changes_nothing_and_says_what_is_wrong(origin: Origin, tmp_path: Path) -> None:
    setup = Setup(tmp_path, refgenie("demo", origin.url))
    with setup.mount() as mounted:
        before = mounted.status()
        setup.size = "2 bananas"
        setup.sources = refgenie("other", origin.url, 'tokenfile = "x"')
        setup.write()
        done = mounted.refgenfs("reload", "-m", str(mounted.path), check=False)
        assert done.returncode == 1
        lines = done.stderr.splitlines()
        assert any("cache.size" in line and "bananas" in line for line in lines)
        assert any("tokenfile: unknown key" in line for line in lines)
        assert lines[-1] == f"refgenfs: nothing is changed: {mounted.path} goes on with what it has"
        assert "nothing is reloaded: " in mounted.log_text()
        after = mounted.status()
        assert [one["name"] for one in after["sources"]] == ["demo"]
        assert after["cache"]["size"] == before["cache"]["size"]
        secret = tmp_path / "secret"
        secret.write_text("abc")
        secret.chmod(0o644)
        setup.size, setup.sources = "1GB", refgenie("demo", origin.url, f'token_file = "{secret}"')
        setup.write()
        done = mounted.refgenfs("reload", check=False)
        assert (done.returncode, "can be read by others" in done.stderr) == (1, True)
        setup.sources = refgenie("demo", origin.url, 'allow_users = ["nobody"]')
        setup.write()
        done = mounted.refgenfs("reload", check=False)
        assert (done.returncode, "allow_users and allow_groups can't change" in done.stderr) == (1, True)
        mounted.config.write_text("[mount\n")
        done = mounted.refgenfs("reload", "-m", str(mounted.path), check=False)
        assert (done.returncode, "is no TOML" in done.stderr) == (1, True)
        assert names(mounted) == ["demo"]


def test_a_signal_reloads_and_tokens_are_taken(
    origin: Origin, manager: Manager, demo: DemoRoot, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("right\n")
    with guarded(origin, "right") as url:
        setup = Setup(tmp_path, refgenie("lab", url), limits={"retry_for": "0s"})
        with setup.mount() as mounted:
            assert "answered" not in mounted.ready
            assert names(mounted) == []
            manager.waits_for(lambda line: "lab is away since" in line)
            setup.sources = refgenie("lab", url, f'token_file = "{token}"')
            setup.write()
            manager.heard.clear()
            mounted.process.send_signal(signal.SIGHUP)
            manager.waits_for(lambda line: line.startswith("MONOTONIC_USEC="))
            manager.waits_for(lambda line: line == "READY=1")
            assert manager.heard.index("RELOADING=1") < manager.heard.index("READY=1")
            until(lambda: names(mounted) == ["demo"])
            got = mounted.run("cat", str(mounted.path / "demo/fasta/demo.fa.fai")).stdout
            assert got.count("\t") > 3
