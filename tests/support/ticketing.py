"""A server of htsget tickets and of their blocks for tests: right, but for the faults that a test gives it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

BEARER = "Bearer t0ken-of-the-lab"
TOKEN = BEARER.removeprefix("Bearer ")
Slice = Callable[[int, int], bytes]


@dataclass
class Blob:
    """An object: its bytes (or what gives stretches of them), and how its host goes about it."""

    data: bytes = b""
    size: int = -1
    slice: Slice | None = None
    etag: str | None = '"1"'
    ranges: bool = True  # else 200 for all
    tells_total: bool = True  # `*` in Content-Range
    tells_length: bool = True  # else chunked
    head: int = 200
    head_length: bool = True
    only: str = ""  # the one Range that is allowed (signed): others are 403
    needs: dict[str, str] = field(default_factory=dict)  # headers without which it is 403
    coding: str = ""
    cut: int | None = None  # bytes of a body that are sent, of those announced
    shift: int = 0  # a 206 says another range
    short: int = 0  # a 206 that has fewer bytes, and says so
    statuses: deque[int] = field(default_factory=deque)  # for the next GETs
    redirect: str = ""
    endless: bool = False

    def __post_init__(self) -> None:
        if self.size < 0:
            self.size = len(self.data)

    def part(self, start: int, stop: int) -> bytes:
        return self.data[start:stop] if self.slice is None else self.slice(start, stop)


Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
TicketOf = Callable[[web.BaseRequest, Any], Any]


class TicketServer:
    """`tickets` answer ids of `/reads` and `/variants`; `blobs` are at their paths. `requests` are those that came.

    A ticket is a list of its URLs, or a whole answer: JSON, bytes, or (status, body).
    """

    def __init__(self) -> None:
        self.url = ""
        self.tickets: dict[str, TicketOf] = {}
        self.blobs: dict[str, Blob] = {}
        self.requests: list[web.BaseRequest] = []
        self.sent: Counter[str] = Counter()  # bytes of bodies by path
        self.token: str | None = None
        self.info = 200

    def serve(self, path: str, data: bytes = b"", **options: Any) -> str:
        """Put an object, and return its URL."""
        self.blobs[path] = Blob(data, **options)
        return f"{self.url}{path}"

    def asked(self, path: str) -> list[str | None]:
        """Return the ranges that GETs of a path asked for."""
        return [one.headers.get("Range") for one in self.requests if one.path == path and one.method == "GET"]

    def count(self, prefix: str) -> int:
        """Return how many requests came for what begins so."""
        return sum(one.path.startswith(prefix) for one in self.requests)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        found = re.fullmatch(r"/(reads|variants)/(.+)", request.path)
        if found is not None:
            return await self._ticket(request, found[2])
        blob = self.blobs.get(request.path)
        return web.Response(status=404, text="no") if blob is None else await self._blob(request, blob)

    async def _ticket(self, request: web.BaseRequest, id_: str) -> web.StreamResponse:
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return _json(401, {"htsget": {"error": "InvalidAuthentication", "message": str(request.headers)}})
        if id_ == "service-info":
            return _json(self.info, {"type": {"group": "org.ga4gh", "artifact": "htsget", "version": "1.3.0"}})
        give = self.tickets.get(id_)
        if give is None:
            return _json(404, {"htsget": {"error": "NotFound", "message": f"no {id_}"}})
        body = json.loads(await request.read()) if request.method == "POST" else None
        made = give(request, body)
        if isinstance(made, web.StreamResponse):
            return made
        if isinstance(made, list):
            format_ = (body or {}).get("format") or request.query.get("format")
            made = {"htsget": {"format": format_, "urls": made}}
        status, made = made if isinstance(made, tuple) else (200, made)
        return web.Response(status=status, body=made) if isinstance(made, bytes) else _json(status, made)

    async def _blob(self, request: web.BaseRequest, blob: Blob) -> web.StreamResponse:
        if request.method == "GET" and blob.statuses:
            status = blob.statuses.popleft()
            if status != 200:
                return web.Response(status=status, text="no", headers={"Retry-After": "0"} if status == 503 else {})
        if any(request.headers.get(name) != value for name, value in blob.needs.items()):
            return web.Response(status=403, text="no")
        if blob.redirect:
            return web.Response(status=307, headers={"Location": blob.redirect})
        asked = request.headers.get("Range")
        if request.method == "HEAD":
            headers = {"Content-Length": str(blob.size)} if blob.head_length else {}
            headers |= {"Accept-Ranges": "bytes"} if blob.ranges else {}
            response = web.StreamResponse(status=blob.head, headers=headers)
            await response.prepare(request)
            return response
        if blob.only and asked != blob.only:
            return web.Response(status=403, text="no")
        return await self._body(request, blob, asked)

    async def _body(self, request: web.BaseRequest, blob: Blob, asked: str | None) -> web.StreamResponse:
        headers = {"ETag": blob.etag} if blob.etag is not None else {}
        span = _span(asked, blob.size) if blob.ranges else None
        start, stop = span or (0, blob.size)
        if start >= stop and span is not None:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{blob.size}"})
        if span is not None:
            stop -= min(blob.short, stop - start - 1)
            total = str(blob.size) if blob.tells_total else "*"
            headers["Content-Range"] = f"bytes {start + blob.shift}-{stop - 1 + blob.shift}/{total}"
        if blob.coding:
            headers["Content-Encoding"] = blob.coding
        response = web.StreamResponse(status=200 if span is None else 206, headers=headers)
        if blob.tells_length and not blob.endless and not blob.coding:
            response.headers["Content-Length"] = str(stop - start)
        else:
            response.enable_chunked_encoding()
        await response.prepare(request)
        await self._send(request, response, blob, start, stop)
        return response

    async def _send(
        self, request: web.BaseRequest, response: web.StreamResponse, blob: Blob, start: int, stop: int
    ) -> None:
        end = stop if blob.cut is None else min(stop, start + blob.cut)
        for at in range(start, end, 1 << 16):
            data = blob.part(at, min(at + (1 << 16), end))
            await response.write(gzip.compress(data) if blob.coding == "gzip" else data)
            self.sent[request.path] += len(data)
        while blob.endless:
            await response.write(bytes(1 << 16))
            self.sent[request.path] += 1 << 16
        if end < stop:
            await asyncio.sleep(0.02)
            assert request.transport is not None
            request.transport.abort()
            return
        await response.write_eof()


def inline(data: bytes) -> str:
    """Return a data URI."""
    return f"data:;base64,{base64.b64encode(data).decode()}"


def ranged(url: str, start: int, stop: int, **fields: Any) -> dict[str, Any]:
    """Return the URL of a ticket for a range."""
    headers = {"Range": f"bytes={start}-{stop - 1}", **fields.pop("headers", {})}
    return {"url": url, "headers": headers, **fields}


def _json(status: int, value: Any) -> web.Response:
    return web.Response(status=status, text=json.dumps(value), content_type="application/json")


def _span(asked: str | None, size: int) -> tuple[int, int] | None:
    found = re.fullmatch(r"bytes=([0-9]*)-([0-9]*)", asked or "")
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        return max(0, size - int(found[2])), size
    return int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)


@contextmanager
def served(*servers: TicketServer) -> Iterator[None]:
    """Serve each on a loopback port of its own, on a thread; sets `url`."""
    loop = asyncio.SelectorEventLoop()
    thread = threading.Thread(target=loop.run_forever, name="tickets", daemon=True)
    thread.start()
    runners: list[web.ServerRunner] = []

    def ask(server: TicketServer) -> Answer:  # a test may give a server another `answer` later
        return lambda request: server.answer(request)

    async def start() -> None:
        for server in servers:
            runner = web.ServerRunner(web.Server(ask(server)), shutdown_timeout=0.1)
            await runner.setup()
            runners.append(runner)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            server.url = f"http://{host}:{port}"

    async def stop() -> None:
        for runner in runners:
            await runner.cleanup()

    asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
