"""A small refget server (GA4GH refget 1) in a thread: sequences by MD5, with ranges, that can lie."""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class RefgetServer:
    """What it has, by MD5; `requests` are (method, MD5, Range, status). `damage` changes what it sends."""

    sequences: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str, int]] = field(default_factory=list)
    damage: bool = False
    status: int = 0  # answered instead, unless 0
    url: str = ""

    def add(self, sequence: bytes) -> str:
        """Have a sequence, and return its MD5."""
        md5 = hashlib.md5(sequence).hexdigest()
        self.sequences[md5] = sequence
        return md5

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer as the specification has it."""
        md5, asked = request.match_info["md5"], request.headers.get("Range", "")
        response = self._response(md5, asked)
        self.requests.append((request.method, md5, asked, response.status))
        return response

    def _response(self, md5: str, asked: str) -> web.Response:
        data = self.sequences.get(md5)
        if self.status:
            return web.Response(status=self.status)
        if data is None:
            return web.Response(status=404)
        if self.damage:
            data = data[:-1] + (b"A" if data[-1:] != b"A" else b"C")
        kind = {"Content-Type": "text/vnd.ga4gh.refget.v1.0.0+plain; charset=us-ascii", "ETag": f'"{md5}"'}
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        if match is None:
            return web.Response(body=data, headers=kind)
        start, stop = int(match[1]), min(int(match[2]) + 1, len(data))
        headers = {**kind, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        return web.Response(status=206, body=data[start:stop], headers=headers)


@contextmanager
def refget_server() -> Iterator[RefgetServer]:
    """Serve until the end of the block."""
    server, ready, loop = RefgetServer(), threading.Event(), asyncio.new_event_loop()
    runners: list[web.AppRunner] = []

    async def start() -> None:
        app = web.Application()
        app.router.add_get("/sequence/{md5}", server.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        runners.append(runner)
        ready.set()

    def run() -> None:
        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runners[0].cleanup())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
