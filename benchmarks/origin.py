"""An nginx that serves a folder as a refgenieserver does, to the peers as plain files, and counts what it sends."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.machine import Failed, stop

START_TIMEOUT = 15.0  # seconds
SETTLE = 0.2  # a request is logged a moment after its end
RATE = 20_000_000  # bytes a second a connection, of the shaped origin
ROUND_TRIP = 0.020  # seconds

_LINE = re.compile(r"(?P<method>\S+) (?P<status>\d+) (?P<bytes>\d+) (?P<path>\S+)")


class Served(NamedTuple):
    """One answered request; `bytes` are those of the body that were sent."""

    method: str
    path: str
    status: int
    bytes: int


def parse_log(lines: Iterable[str]) -> list[Served]:
    """Return the requests of an access log. Raises ValueError for a line that is none."""
    served = []
    for line in lines:
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise ValueError(f"no line of this log: {line!r}")
        served.append(Served(found["method"], found["path"], int(found["status"]), int(found["bytes"])))
    return served


class Origin:
    """A running nginx; `url` without a final slash."""

    def __init__(self, port: int, pid: int, log: Path) -> None:
        self.port = port
        self.pid = pid
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        self._skip = 0

    def served(self) -> list[Served]:
        """Return what was served since `clear`, once no more is written."""
        seen = -1
        while (size := self._log.stat().st_size if self._log.exists() else 0) != seen:
            seen = size
            time.sleep(SETTLE)
        if not size:
            return []
        with self._log.open("rb") as file:
            file.seek(self._skip)
            return parse_log(file.read(size - self._skip).decode().splitlines())

    def sent(self) -> int:
        """Return the body bytes of files and archives sent since `clear`: catalogs and listings are not counted."""
        return sum(one.bytes for one in self.served() if is_bulk(one.path))

    def clear(self) -> None:
        """Begin to count anew."""
        self.served()
        self._skip = self._log.stat().st_size if self._log.exists() else 0


def is_bulk(path: str) -> bool:
    """Say whether a path is a file's or an archive's, not the catalog's or a folder's."""
    path = path.partition("?")[0]
    return path.startswith("/v3/assets/archive/") or (
        path.startswith("/files/") and not path.endswith(("/", ".json"))
    )


@contextmanager
def serving(root: Path, folder: Path) -> Iterator[Origin]:
    """Serve a `data.Shop`'s root on a free port; `folder` holds the log. Raises Failed."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    log = folder / "access.log"
    log.unlink(missing_ok=True)
    (folder / "nginx.conf").write_text(_configuration(root, folder, port))
    output = folder / "error.log"
    with output.open("ab") as sink:
        process = subprocess.Popen(
            ["nginx", "-p", str(folder), "-e", str(output), "-c", str(folder / "nginx.conf")],
            stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
        )  # fmt: skip
    try:
        _wait_for_port(process, port, output)
        yield Origin(port, process.pid, log)
    finally:
        stop(process)


@contextmanager
def shaped(origin: Origin, folder: Path) -> Iterator[str]:
    """Put 20 ms and 20 MB/s a connection before an origin; yield the URL. Raises Failed."""
    port = free_port()
    output = folder / "shaping.log"
    with output.open("ab") as sink:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "benchmarks.shaping", "--listen", str(port), "--to", str(origin.port),
                "--rate", str(RATE), "--round-trip", str(ROUND_TRIP),
            ],
            stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
        )  # fmt: skip
    try:
        _wait_for_port(process, port, output)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"an origin does not start: {log.read_text(errors='replace')[-400:]}") from None
            time.sleep(0.02)


def _configuration(root: Path, folder: Path, port: int) -> str:
    temporary = "\n".join(
        f"  {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
{"user root;" if os.geteuid() == 0 else ""}
daemon off;
worker_processes 1;
pid {folder}/pid;
events {{ worker_connections 1024; }}
http {{
  log_format counted '$request_method $status $body_bytes_sent $request_uri';
  access_log {folder}/access.log counted;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  default_type application/octet-stream;
{temporary}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    root {root};
    location = /_private_api/genomes/dict {{ default_type application/json; alias {root}/genomes.json; }}
    location = /v3/remotes/dict {{
      default_type application/json;
      return 200 '{{"http": {{"prefix": "http://$http_host/files/", "description": "unpacked copies"}}}}';
    }}
    location /v3/assets/archive/ {{
      rewrite ^/v3/assets/archive/([^/]+)/([^/]+)\\.seekidx$ /files/$1/$2__default.tgz.seekidx last;
      rewrite ^/v3/assets/archive/([^/]+)/([^/]+)$ /files/$1/$2__default.tgz last;
    }}
    location /v3/assets/dir_contents/ {{
      rewrite ^/v3/assets/dir_contents/([^/]+)/([^/]+)$ /files/$1/asset_dir_contents_$2__default.json last;
    }}
    location /files/ {{ autoindex on; }}
    location / {{ return 404; }}
  }}
}}
"""
