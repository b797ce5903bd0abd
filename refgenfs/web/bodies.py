"""Bodies of answers: compressed where that helps, with an ETag, and never executed as anything else."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from aiohttp import web

SMALL = 1024  # bytes; less is not worth the trouble
LONG = 32 * 1024  # bytes; compressing more is done on a thread
PART = 64 * 1024  # bytes of an answer that are handed over at a time, and so are held for a client that does not read
ROWS = 500  # of a long list that are encoded at a time: half a millisecond, between which other threads get on

# What an answer may do in a browser: load what is the page's own, talk to its own daemon, and nothing else.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Server": "refgenfs",
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True, slots=True)
class Body:
    """What an answer holds. `cached` is its Cache-Control."""

    data: bytes
    kind: str
    packed: bytes | None
    etag: str
    cached: str

    @classmethod
    def of(cls, data: bytes, kind: str, *, cached: str = "private, no-cache") -> Body:
        """Return a body with its ETag, and compressed where it is worth it."""
        packed = gzip.compress(data, 5, mtime=0) if len(data) >= SMALL else None
        etag = hashlib.blake2b(data, digest_size=12).hexdigest()
        return cls(data, kind, packed, f'"{etag}"', cached)

    def answer(self, request: web.Request, status: int = 200) -> web.Response:
        """Return it as the answer to a request: 304 where the browser has it already."""
        headers = {"ETag": self.etag, "Cache-Control": self.cached, "Vary": "Accept-Encoding, Cookie, Authorization"}
        if status == 200 and _names(request.headers.get("If-None-Match", ""), self.etag):
            return web.Response(status=304, headers=headers)
        headers["Content-Type"] = self.kind
        if self.packed is not None and "gzip" in request.headers.get("Accept-Encoding", ""):
            headers["Content-Encoding"] = "gzip"
            return web.Response(status=status, body=_sent(self.packed, headers), headers=headers)
        return web.Response(status=status, body=_sent(self.data, headers), headers=headers)


def _sent(data: bytes, headers: dict[str, str]) -> bytes | AsyncIterator[bytes]:
    """Return what is sent of a body: a long one part by part, or there would be a copy of all of it a connection."""
    if len(data) <= PART:
        return data
    headers["Content-Length"] = str(len(data))
    return _parts(data)


async def _parts(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), PART):
        yield data[at : at + PART]


def _names(wanted: str, etag: str) -> bool:
    """Say whether an If-None-Match names an ETag; it is compared weakly (RFC 9110, section 13.1.2)."""
    return any(one.strip().removeprefix("W/") in (etag, "*") for one in wanted.split(","))


def encode(value: Mapping[str, Any]) -> bytes:
    """Return JSON, in UTF-8. Long lists are encoded a part at a time, so that no thread is kept waiting for long.

    A name out of an archive can be any bytes: what is no Unicode becomes a question mark.
    """
    parts = (f"{json.dumps(name)}:{''.join(_pieces(part))}" for name, part in value.items())
    return ("{" + ",".join(parts) + "}").encode(errors="replace")


def _pieces(value: Any) -> Iterator[str]:
    if not isinstance(value, list) or len(value) <= ROWS:
        yield _dumped(value)
        return
    rows, lead = iter(value), "["
    while batch := list(islice(rows, ROWS)):
        yield lead + _dumped(batch)[1:-1]
        lead = ","
    yield "]"


def _dumped(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
