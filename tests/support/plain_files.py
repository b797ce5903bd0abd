"""A folder of plain files behind a real nginx, and an `http` source of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.nginx import Served

START_TIMEOUT = 15.0  # seconds
SETTLE = 0.15


@dataclass
class PlainFiles:
    """A folder that is served at `url`, at `rate` bytes a second and request (0: at once)."""

    folder: Path
    rate: int = 0
    port: int = 0
    home: Path = Path()
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def source(self, assets: Mapping[str, Sequence[str]], *, name: str = "plain", revalidate: str = "60s") -> str:
        """Return the table of a source that has these assets."""
        tables = "".join(
            f"[[source.asset]]\nkey = {json.dumps(key)}\nfiles = {json.dumps(list(files))}\n"
            for key, files in assets.items()
        )
        return (
            f'[[source]]\nname = "{name}"\ntype = "http"\nurl = "{self.url}"\nrevalidate = "{revalidate}"\n'
            f'timeout = "5s"\n{tables}'
        )

    def start(self) -> None:
        """Listen; always at the same port."""
        self.port = self.port or _free_port()
        rate = f"limit_rate {self.rate};" if self.rate else ""
        entry = '{"method": "$request_method", "path": "$request_uri", "status": $status, "bytes": $body_bytes_sent}'
        temporary = "".join(
            f"{kind}_temp_path {self.home}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self.home / "nginx.conf").write_text(
            f"{'user root;' if os.geteuid() == 0 else ''}\n"
            f"daemon off; pid {self.home}/pid; worker_processes 1; events {{}}\n"
            f"http {{ {temporary} log_format j escape=json '{entry}'; access_log {self.home}/access.log j;\n"
            f"server {{ listen 127.0.0.1:{self.port}; root {self.folder}; {rate} }} }}\n"
        )
        command = ["nginx", "-p", str(self.home), "-e", str(self.home / "error.log"), "-c", "nginx.conf"]
        with (self.home / "output").open("ab") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        deadline = time.monotonic() + START_TIMEOUT
        while not _answers(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.home / "error.log").read_text())
            time.sleep(0.02)

    def stop(self) -> None:
        """Close every connection and end."""
        process, self.process = self.process, None
        if process is not None:
            process.terminate()
            process.wait(10)

    def log(self) -> list[Served]:
        """Return what was served so far."""
        time.sleep(SETTLE)
        log = self.home / "access.log"
        entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [Served(e["method"], e["path"], int(e["status"]), int(e["bytes"])) for e in entries]

    def sent(self, name: str = "") -> int:
        """Return the bytes of bodies sent of the file with this name, or of all."""
        return sum(one.bytes for one in self.log() if one.path.endswith(name))


@contextmanager
def plain_files(folder: Path, *, rate: int = 0) -> Iterator[PlainFiles]:
    """Serve a folder until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="plain-") as home:
        served = PlainFiles(folder, rate, home=Path(home))
        served.start()
        try:
            yield served
        finally:
            served.stop()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
