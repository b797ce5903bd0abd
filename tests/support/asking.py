"""Plain HTTP questions to an origin, and an origin in a process of its own."""

from __future__ import annotations

import http.client
import subprocess
import sys
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """A whole response; `broken` says that the connection ended before the body did."""

    status: int
    headers: dict[str, str]
    body: bytes
    broken: bool = False


def ask(
    base: str,
    path: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request on a connection of its own, following no redirect."""
    parts = urllib.parse.urlsplit(base)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=10)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        broken = False
        try:
            data = response.read()
        except http.client.IncompleteRead as exc:
            data, broken = exc.partial, True
        except ConnectionResetError:
            data, broken = b"", True
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, data, broken)
    finally:
        connection.close()


def spawn_origin(module: str, root: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """Start an origin's module in a process of its own, its standard input a pipe; return it with its URL."""
    command = [sys.executable, "-m", module, "--root", str(root), *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready, _, url = process.stdout.readline().strip().partition(" ")
    assert ready == "READY"
    return process, url
