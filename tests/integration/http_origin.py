"""An origin for the tests of `fetch`: it serves one object right, but for the faults that a test scripts."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from refgenfs.fetch.bridge import Bridge

DATE = "Fri, 01 Jan 2021 00:00:00 GMT"
Fault = Callable[["Origin", web.BaseRequest], Awaitable[web.StreamResponse]]


class Origin:
    """One object at every path. `script` holds faults for the next requests, `requests` those that came."""

    def __init__(self, data: bytes, *, etag: str | None = '"v1"', date: str | None = DATE) -> None:
        self.data = data
        self.etag = etag
        self.date = date
        self.ranges = True
        self.head_status = 200
        self.script: deque[Fault] = deque()
        self.requests: list[web.BaseRequest] = []
        self.url = ""
        self.sent = 0

    @property
    def ranges_asked(self) -> list[str | None]:
        return [request.headers.get("Range") for request in self.requests]

    def validators(self) -> dict[str, str]:
        found = {"ETag": self.etag, "Last-Modified": self.date}
        return {name: value for name, value in found.items() if value is not None}

    def span(self, request: web.BaseRequest) -> tuple[int, int] | None:
        """The range to send, None for the whole object."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        condition = request.headers.get("If-Range")
        if match is None or not self.ranges or (condition is not None and condition != self.etag):
            return None
        stop = int(match[2]) + 1 if match[2] else len(self.data)
        return int(match[1]), min(stop, len(self.data))

    def head(self, request: web.BaseRequest, **changes: str | None) -> tuple[web.StreamResponse, bytes]:
        """The right answer before its body, with headers changed, and the right body."""
        span = self.span(request)
        start, stop = span or (0, len(self.data))
        headers = {**self.validators(), "Content-Length": str(stop - start)}
        if self.ranges:
            headers["Accept-Ranges"] = "bytes"
        if span is not None:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(self.data)}"
        for name, value in changes.items():
            headers.pop(name.replace("_", "-"), None)
            if value is not None:
                headers[name.replace("_", "-")] = value
        return web.StreamResponse(status=200 if span is None else 206, headers=headers), self.data[start:stop]

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        if self.script and request.method == "GET":
            return await self.script.popleft()(self, request)
        if request.method == "HEAD" and self.head_status != 200:
            return web.Response(status=self.head_status)
        span = self.span(request)
        if span is not None and span[0] >= span[1]:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(self.data)}"})
        return await self.send(request, *self.head(request))

    async def send(self, request: web.BaseRequest, response: web.StreamResponse, body: bytes) -> web.StreamResponse:
        await response.prepare(request)
        if request.method != "HEAD":
            for begin in range(0, len(body), 65536):
                await response.write(body[begin : begin + 65536])
                self.sent += len(body[begin : begin + 65536])
        await response.write_eof()
        return response


def reset_after(count: int) -> Fault:
    """Send `count` bytes of the right body, then reset the connection."""

    async def fault(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        response, body = origin.head(request)
        await response.prepare(request)
        await response.write(body[:count])
        await asyncio.sleep(0.05)  # a reset overtakes what lies in socket buffers
        assert request.transport is not None
        request.transport.abort()
        return response

    return fault


def truncate_after(count: int) -> Fault:
    """Send `count` bytes of the right body, then end the connection in good order."""

    async def fault(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        response, body = origin.head(request)
        await response.prepare(request)
        await response.write(body[:count])
        assert request.transport is not None
        request.transport.close()
        return response

    return fault


def stall_after(count: int) -> Fault:
    """Send `count` bytes of the right body, then nothing."""

    async def fault(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        response, body = origin.head(request)
        await response.prepare(request)
        await response.write(body[:count])
        await asyncio.sleep(60)
        return response

    return fault


def status(code: int, **headers: str) -> Fault:
    """Answer with a status and no object."""

    async def fault(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=code, headers={k.replace("_", "-"): v for k, v in headers.items()}, text="no")

    return fault


def with_headers(**changes: str | None) -> Fault:
    """Send the right body under changed headers; None leaves one out."""

    async def fault(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        return await origin.send(request, *origin.head(request, **changes))

    return fault


def chunked(body: Callable[[bytes], bytes]) -> Fault:
    """Send `body(right body)` in chunked coding, so that its length is told by nothing."""

    async def fault(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        response, right = origin.head(request, Content_Length=None)
        response.enable_chunked_encoding()
        return await origin.send(request, response, body(right))

    return fault


def redirect(code: int, location: Callable[[], str]) -> Fault:
    """Send elsewhere."""

    async def fault(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=code, headers={"Location": location()}, text="go there")

    return fault


def then_change(fault: Fault, change: Callable[[Origin], None]) -> Fault:
    """Do as the fault does, then change the origin."""

    async def changing(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await fault(origin, request)
        finally:
            change(origin)

    return changing


@asynccontextmanager
async def serve(bridge: Bridge, *origins: Origin) -> AsyncIterator[None]:
    """Serve each origin on a loopback port of its own; sets `url` (without a slash at the end)."""
    runners: list[web.ServerRunner] = []

    async def start() -> None:
        for origin in origins:
            runner = web.ServerRunner(web.Server(origin.answer), shutdown_timeout=0.1)
            await runner.setup()
            runners.append(runner)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            origin.url = f"http://{host}:{port}"

    async def stop() -> None:
        for runner in runners:
            await runner.cleanup()

    await bridge.run(start)
    try:
        yield
    finally:
        await bridge.run(stop)
