"""A real nginx in front of an origin: it counts the bytes sent, denies, slows down, and can be away."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import pytest

from tests.support.children import end

START_TIMEOUT = 15.0  # seconds
SETTLE = 0.15  # a request is logged a moment after the client has its last byte


class Served(NamedTuple):
    """One answered request; `path` has the query, `bytes` are those of the body that were sent."""

    method: str
    path: str
    status: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Plan:
    upstream: str
    deny: tuple[str, ...]
    deny_status: int
    prefix: str
    rewrite: Mapping[str, str]
    limit_rate: int
    indexes: Path | None


class NginxProxy:
    """An nginx of its own between a client and `upstream`, at `url`. A context manager.

    Paths that begin with one of `deny` get `deny_status`. `prefix` is a path that `url` gets, for a server
    that does not live at its host's root. `rewrite` replaces URLs in JSON bodies and in redirects (a static
    host's, by another proxy's). `limit_rate` is in bytes a second and request, 0 for no limit. `indexes` is a
    folder of seek indexes, `<digest>/<asset>__<tag>.tgz.seekidx`, that are served beside the archives.
    `stop` and `start` keep the port and the log.
    """

    def __init__(
        self,
        upstream: str,
        deny: Sequence[str] = (),
        *,
        deny_status: int = 403,
        prefix: str = "",
        rewrite: Mapping[str, str] | None = None,
        limit_rate: int = 0,
        indexes: Path | None = None,
    ) -> None:
        path = f"/{prefix.strip('/')}" if prefix.strip("/") else ""
        self._plan = _Plan(upstream.rstrip("/"), tuple(deny), deny_status, path, rewrite or {}, limit_rate, indexes)
        self._folder = tempfile.TemporaryDirectory(prefix="nginx-")
        self._process: subprocess.Popen[bytes] | None = None
        self._port = _free_port()
        self._skip = 0  # bytes of the log that were cleared

    @property
    def url(self) -> str:
        """Where it listens, with no '/' at the end."""
        return f"http://127.0.0.1:{self._port}{self._plan.prefix}"

    @property
    def pid(self) -> int:
        """The number of the process."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Listen; returns when it answers."""
        assert self._process is None, "it runs already"
        folder = Path(self._folder.name)
        (folder / "nginx.conf").write_text(self._configuration(folder))
        output = (folder / "error.log").open("ab")
        with output:
            command = ["nginx", "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        deadline = time.monotonic() + START_TIMEOUT
        while not _answers(self._port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"nginx does not answer:\n{self.log_tail()}")
            time.sleep(0.02)

    def _configuration(self, folder: Path) -> str:
        return _configuration(folder, self._port, self._plan)

    def stop(self) -> None:
        """Close every connection and end; nothing listens then."""
        process, self._process = self._process, None
        if process is None:
            return
        end(process)  # nginx ends its workers at once

    def close(self) -> None:
        """Stop, and remove the log."""
        self.stop()
        self._folder.cleanup()

    def log(self) -> list[Served]:
        """Return what was served since the start, or since `clear`, in order of ending."""
        seen = -1
        while (size := self._access_log.stat().st_size if self._access_log.exists() else 0) != seen:
            seen = size
            time.sleep(SETTLE)
        if not size:
            return []
        with self._access_log.open("rb") as file:
            file.seek(self._skip)
            entries = [json.loads(line) for line in file.read(size - self._skip).splitlines()]
        return [Served(e["method"], e["path"], int(e["status"]), int(e["bytes"])) for e in entries]

    def bytes_sent(self, containing: str = "") -> int:
        """Return the bytes of bodies sent for paths that contain this text."""
        return sum(served.bytes for served in self.log() if containing in served.path)

    def clear(self) -> None:
        """Begin the log anew."""
        self.log()
        self._skip = self._access_log.stat().st_size if self._access_log.exists() else 0

    def log_tail(self, characters: int = 4000) -> str:
        """Return the end of both logs."""
        logs = (Path(self._folder.name) / "error.log", self._access_log)
        return "\n".join(f"== {log.name}\n{log.read_text()[-characters:]}" for log in logs if log.exists())

    @property
    def _access_log(self) -> Path:
        return Path(self._folder.name) / "access.log"


class Website(NginxProxy):
    """An nginx that serves a folder, with pages of its folders, at `url`.

    `locations` go into its server block, before that of everything; `settings` into its http block; `options` into
    the location of everything. They may be changed while it is stopped.
    """

    def __init__(self, root: Path, locations: str = "", *, settings: str = "", options: str = "") -> None:
        super().__init__("")
        self.root = root
        self.locations = locations
        self.settings = settings
        self.options = options

    def restart(self) -> None:
        """Stop and start, with what was changed."""
        self.stop()
        self.start()

    def _configuration(self, folder: Path) -> str:
        return f"""
{_beginning(folder)}
http {{
{_logging(folder)}
{self.settings}
  server {{
    listen 127.0.0.1:{self._port} sndbuf=64k;
    root {self.root};
    location = /.nginx-answers {{ access_log off; return 204; }}
{self.locations}
    autoindex on;
    location / {{ {self.options} }}
  }}
}}
"""


class WebsiteFactory:
    """Makes websites that end with the test: `website(folder)`, with the arguments of Website."""

    def __init__(self) -> None:
        self.servers: list[Website] = []

    def __call__(self, root: Path, locations: str = "", *, settings: str = "", options: str = "") -> Website:
        root.mkdir(parents=True, exist_ok=True)
        site = Website(root, locations, settings=settings, options=options)
        self.servers.append(site)
        site.start()
        return site

    def close(self) -> None:
        """End every website."""
        while self.servers:
            self.servers.pop().close()


@pytest.fixture
def website() -> Iterator[WebsiteFactory]:
    """A maker of websites; all end with the test."""
    factory = WebsiteFactory()
    try:
        yield factory
    finally:
        factory.close()


def _beginning(folder: Path) -> str:
    return f"""{"user root;" if os.geteuid() == 0 else ""}
daemon off;
worker_processes 1;
pid {folder}/pid;
events {{ worker_connections 512; }}"""


def _logging(folder: Path) -> str:
    temporary = "\n".join(
        f"  {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""  log_format line escape=json
    '{{"method":"$request_method","path":"$request_uri","status":"$status","bytes":"$body_bytes_sent"}}';
  access_log {folder}/access.log line;
{temporary}"""


def _configuration(folder: Path, port: int, plan: _Plan) -> str:
    denied = "\n".join(f"    location ^~ {plan.prefix}{path} {{ return {plan.deny_status}; }}" for path in plan.deny)
    offered = ""
    if plan.indexes is not None:
        offered = f"""    location ~ ^{plan.prefix}/v3/assets/archive/([^/]+)/([^/]+)\\.seekidx$ {{
      alias {plan.indexes}/$1/$2__$arg_tag.tgz.seekidx;
    }}
"""
    rewritten = "".join(
        f"      proxy_redirect {old} {new};\n      sub_filter {old} {new};\n" for old, new in plan.rewrite.items()
    )
    if rewritten:
        rewritten += "      sub_filter_types application/json;\n      sub_filter_once off;\n"
    return f"""
{_beginning(folder)}
http {{
{_logging(folder)}
  server {{
    listen 127.0.0.1:{port};
    location = /.nginx-answers {{ access_log off; return 204; }}
{denied}
{offered}    location {plan.prefix}/ {{
      proxy_pass {plan.upstream}/;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Accept-Encoding "";
      proxy_max_temp_file_size 0;
      limit_rate {plan.limit_rate};
{rewritten}    }}
  }}
}}
"""


def _answers(port: int) -> bool:
    request = b"GET /.nginx-answers HTTP/1.0\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(request)
            return b" 204 " in connection.recv(64)
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class NginxFactory:
    """Makes proxies that end with the test: `nginx(upstream, deny=[…])`, with the arguments of NginxProxy."""

    def __init__(self) -> None:
        self.servers: list[NginxProxy] = []

    def __call__(
        self,
        upstream: str,
        deny: Sequence[str] = (),
        *,
        deny_status: int = 403,
        prefix: str = "",
        rewrite: Mapping[str, str] | None = None,
        limit_rate: int = 0,
        indexes: Path | None = None,
    ) -> NginxProxy:
        proxy = NginxProxy(
            upstream,
            deny,
            deny_status=deny_status,
            prefix=prefix,
            rewrite=rewrite,
            limit_rate=limit_rate,
            indexes=indexes,
        )
        self.servers.append(proxy)
        proxy.start()
        return proxy

    def close(self) -> None:
        """End every proxy."""
        while self.servers:
            self.servers.pop().close()


@pytest.fixture
def nginx() -> Iterator[NginxFactory]:
    """A maker of nginx proxies; all end with the test, and a failed test shows their logs."""
    factory = NginxFactory()
    try:
        yield factory
    finally:
        factory.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failed test what its proxies logged."""
    report = yield
    made = getattr(item, "funcargs", {})
    for factory in (made.get("nginx"), made.get("website")):
        if not report.failed or not isinstance(factory, NginxFactory | WebsiteFactory):
            continue
        for proxy in factory.servers:
            report.sections.append((f"nginx {proxy.url}", proxy.log_tail()))
    return report
