"""Requests and replies as plain values: what was asked, and the status, headers and body to send."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Ask:
    """The parts of a request that decide the answer; header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


class Body(Protocol):
    """Bytes to send, readable in pieces until `close`."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes from offset, at most size of them; none at the end."""

    def close(self) -> None:
        """Let go of what the body holds open; a second time does nothing."""


class Inline:
    """A body held in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def close(self) -> None:
        pass


class FileSlice:
    """`size` bytes of an open file from `start`; a file replaced meanwhile goes on being the one it was."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd, self._start, self._size = fd, start, size

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, max(0, min(size, self._size - offset)), self._start + offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(slots=True)
class Reply:
    """A status, headers without Content-Length, and the body they announce: whoever sends it closes it."""

    status: int
    headers: dict[str, str]
    body: Body


def json_reply(value: object, status: int = 200) -> Reply:
    """Return the value as compact JSON."""
    data = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return Reply(status, {"Content-Type": "application/json"}, Inline(data))


def text_reply(text: str, status: int = 200) -> Reply:
    """Return plain text."""
    return Reply(status, {"Content-Type": "text/plain; charset=utf-8"}, Inline(text.encode()))


def redirect_reply(location: str) -> Reply:
    """Return 307 to the location: the method and the range survive it."""
    return Reply(307, {"Location": location}, Inline(b""))


def file_reply(path: Path, ask: Ask) -> Reply:
    """Return the file, or the one range asked for, with the ETag that If-Range is compared with.

    Several ranges at once get the whole file, as RFC 9110 section 14.2 allows. Raises OSError when the file
    can't be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stat = os.fstat(fd)
    size = stat.st_size
    version = hashlib.md5(f"{stat.st_mtime_ns}-{size}".encode(), usedforsecurity=False).hexdigest()
    headers = {
        "Content-Type": "application/octet-stream",
        "Accept-Ranges": "bytes",
        "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
        "ETag": f'"{version}"',
    }
    reply = Reply(200, headers, FileSlice(fd, 0, size))
    validator = ask.headers.get("if-range")
    if "range" not in ask.headers or validator not in (None, headers["ETag"], headers["Last-Modified"]):
        return reply
    try:
        span = _parse_range(ask.headers["range"], size)
    except ValueError as exc:
        reply.body.close()
        return text_reply(str(exc), 400)
    if span is None:
        return reply
    start, stop = span
    if not 0 <= start < size:
        reply.body.close()
        return Reply(416, {"Content-Range": f"*/{size}"}, Inline(b""))  # without `bytes`, as Starlette has it
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Reply(206, headers, FileSlice(fd, start, stop - start))


def _parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the half-open range asked for, its stop cut to size; None for several ranges.

    Raises ValueError, with Starlette's words, for a header that is no byte range.
    """
    unit, equals, spec = header.partition("=")
    if not equals:
        raise ValueError("Malformed range header.")
    if unit.strip().lower() != "bytes":
        raise ValueError("Only support bytes range")
    if "," in spec:
        return None
    match = re.fullmatch(r"\s*(\d*)-(\d*)\s*", spec, re.ASCII)
    if match is None or not any(match.groups()):
        raise ValueError("Range header: range must be requested")
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    start, stop = int(first), int(last) + 1 if last else size
    if start < size and start >= stop:
        raise ValueError("Range header: start must be less than end")
    return start, min(stop, size)
