"""A real forward proxy, tinyproxy, which notes what went by it."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

START_TIMEOUT = 15.0  # seconds


class Tinyproxy:
    """A tinyproxy of its own at `url`; with `user` and `password`, it asks for them. Ends with `close`."""

    def __init__(self, user: str = "", password: str = "") -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            self._port: int = unused.getsockname()[1]
        self._folder = tempfile.TemporaryDirectory(prefix="tinyproxy-")
        self._log = Path(self._folder.name) / "log"
        asks = f"BasicAuth {user} {password}\n" if user else ""
        who = "User root\n" if os.geteuid() == 0 else ""
        config = Path(self._folder.name) / "conf"
        config.write_text(
            f'{who}Port {self._port}\nListen 127.0.0.1\nTimeout 60\nLogFile "{self._log}"\nLogLevel Connect\n'
            f"MaxClients 50\nAllow 127.0.0.1\n{asks}"
        )
        self._process = subprocess.Popen(
            ["tinyproxy", "-d", "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise RuntimeError("tinyproxy does not answer")
            time.sleep(0.02)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    def requests(self, containing: str) -> list[str]:
        """Return the requests that came and have this text in them."""
        lines = self._log.read_text(errors="replace").splitlines()
        return [line for line in lines if "Request (file descriptor" in line and containing in line]

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        except OSError:
            return False
        return True


@pytest.fixture
def tinyproxy() -> Iterator[Tinyproxy]:
    """A forward proxy that ends with the test."""
    proxy = Tinyproxy()
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.fixture
def asking_proxy() -> Iterator[Tinyproxy]:
    """A forward proxy that lets in who says `user` and `hunter2`."""
    proxy = Tinyproxy("user", "hunter2")
    try:
        yield proxy
    finally:
        proxy.close()
