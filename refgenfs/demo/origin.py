"""An embedded origin: a refgenieserver look-alike that serves a folder over HTTP and counts what it sends.

In process, `with serve(root) as origin:` runs it in a thread. In a process of its own:

    python -m refgenfs.demo.origin --root DIR [--port 0] [--remotes] [--rate 20MB] [--latency 20ms]

prints one line, `READY http://127.0.0.1:PORT`, and ends on SIGTERM. `GET /_stats` tells the counts as JSON, `DELETE
/_stats` sets them to zero; neither is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from aiohttp import web

from refgenfs.demo.answers import Catalog
from refgenfs.demo.replies import Ask, Body, Reply

PIECE = 128 << 10  # more than the 64 KiB that aiohttp lets pass without waiting for the socket
SMALLEST_PIECE = 4 << 10
PIECES_PER_SECOND = 50  # of a limited connection: what it brings looks like a stream, not like bursts
GRACE = 0.2  # seconds that a stopping origin gives to answers under way
SETTLE = 8  # rounds of the loop; asyncio needs three from accepting a connection to telling its protocol
THREAD_DEADLINE = 30.0  # seconds for the thread to start or stop an origin

O_ = TypeVar("O_", bound="Origin")


@dataclass(frozen=True, slots=True)
class Count:
    """Requests, and body bytes sent in answer to them."""

    requests: int = 0
    bytes: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.requests + other.requests, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class Stats:
    """What an origin was asked and has sent, by path (without the query), since it started or was reset."""

    paths: dict[str, Count] = field(default_factory=dict)

    def matching(self, pattern: str) -> Count:
        """Return the sum over the paths that match a glob; `*` matches slashes too."""
        return sum((count for path, count in self.paths.items() if fnmatchcase(path, pattern)), Count())

    @property
    def total(self) -> Count:
        return self.matching("*")


class Origin:
    """One folder served on one port; `stats` and `reset_stats` may be called from any thread.

    A body byte is counted once the kernel has taken it for the socket. When a client leaves in the middle, the
    piece that was being written (128 KiB at most) is not counted.
    """

    def __init__(
        self,
        root: Path,
        *,
        remotes: bool = False,
        private_api: bool = True,
        rate: float | None = None,
        latency: float = 0.0,
        bind: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Prepare to serve `root` (see `answers` for its layout).

        remotes: redirect to unpacked copies under /files/, as a server with remotes does.
        private_api: offer the catalog in one call; False imitates a server without that route.
        rate: body bytes a second a connection; latency: seconds before every answer.
        port: 0 takes a free one, which is then kept when the origin is started again.
        Raises OSError or ValueError when root holds no catalog.
        """
        self._catalog = Catalog(root, remotes=remotes, private_api=private_api)
        self._rate = rate
        self._latency = latency
        self._bind = bind
        self._port = port
        self._runner: web.AppRunner | None = None
        self._listener: socket.socket
        self._lock = threading.Lock()
        self._counts: dict[str, Count] = {}

    @property
    def url(self) -> str:
        """Where it listens, without a final slash; the port is known once it has started."""
        return f"http://{self._bind}:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    def stats(self) -> Stats:
        """Return the counts up to now."""
        with self._lock:
            return Stats(dict(self._counts))

    def reset_stats(self) -> None:
        """Set every count to zero."""
        with self._lock:
            self._counts.clear()

    async def start(self) -> None:
        """Listen. Raises OSError when the port is taken."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=GRACE)
        await runner.setup()
        try:
            self._listener = socket.create_server((self._bind, self._port))
            await web.SockSite(runner, self._listener).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._port = self._listener.getsockname()[1]
        self._runner = runner

    async def stop(self) -> None:
        """Stop listening and cut every connection; answers under way get 0.2 s."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        # A connection that was just accepted must get to its protocol before the server is closed: asyncio drops it
        # half made otherwise, with its socket open.
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        await _let_callbacks_run()
        await runner.cleanup()
        await _let_callbacks_run()  # what was closed lets go of its socket

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # --- one request: what a subclass may change ---

    async def control(self, request: web.Request) -> web.StreamResponse:
        """Answer a request to the origin itself, about `/_…`."""
        if request.path != "/_stats":
            raise web.HTTPNotFound
        if request.method == "DELETE":
            self.reset_stats()
        stats = self.stats()
        paths = {path: {"requests": c.requests, "bytes": c.bytes} for path, c in sorted(stats.paths.items())}
        total = stats.total
        return web.json_response({"requests": total.requests, "bytes": total.bytes, "paths": paths})

    async def exchange(self, request: web.Request, ask: Ask) -> web.StreamResponse:
        """Answer one request for the folder's contents."""
        return await self.send(request, self.answer(ask))

    def answer(self, ask: Ask) -> Reply:
        """Return what the catalog answers; the caller sends it or closes its body."""
        return self._catalog.answer(ask, self.url)

    async def send(self, request: web.Request, reply: Reply) -> web.StreamResponse:
        """Send a whole reply and close its body."""
        try:
            response = await self.begin(request, reply, reply.body.size)
            if request.method != "HEAD":
                await self.transmit(request, response, reply.body)
            await response.write_eof()
        finally:
            reply.body.close()
        return response

    async def begin(self, request: web.Request, reply: Reply, length: int) -> web.StreamResponse:
        """Send the reply's status and headers, and a Content-Length."""
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        response.content_length = length
        await response.prepare(request)
        return response

    async def transmit(self, request: web.Request, response: web.StreamResponse, body: Body) -> None:
        """Send the body's bytes at the rate allowed, and count them."""
        if request.transport is not None:
            request.transport.set_write_buffer_limits(high=0)  # a write returns when the kernel has the bytes
        piece = PIECE
        if self._rate is not None:
            piece = max(SMALLEST_PIECE, min(PIECE, int(self._rate / PIECES_PER_SECOND)))
        clock = asyncio.get_running_loop().time
        started = clock()
        sent = 0
        while data := body.read(sent, piece):
            await response.write(data)
            sent += len(data)
            self._add(request.path, Count(bytes=len(data)))
            if self._rate is not None:  # also when late: another connection gets its turn
                await asyncio.sleep(started + sent / self._rate - clock())

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/_") and not request.path.startswith("/_private_api/"):
            return await self.control(request)
        self._add(request.path, Count(requests=1))
        if self._latency > 0:
            await asyncio.sleep(self._latency)
        headers = {name.lower(): value for name, value in request.headers.items()}
        return await self.exchange(request, Ask(request.method, request.path, dict(request.query), headers))

    def _add(self, path: str, count: Count) -> None:
        with self._lock:
            self._counts[path] = self._counts.get(path, Count()) + count


async def _let_callbacks_run() -> None:
    """Have the loop go round as often as a new connection, or a closed one, needs until it is settled."""
    for _ in range(SETTLE):
        await asyncio.sleep(0)


# --- in a thread --------------------------------------------------------------------------------------------


def serve(
    root: Path,
    *,
    remotes: bool = False,
    private_api: bool = True,
    rate: float | None = None,
    latency: float = 0.0,
    bind: str = "127.0.0.1",
    port: int = 0,
) -> AbstractContextManager[Origin]:
    """Return a context in which an origin runs in a thread of its own; the options are those of `Origin`."""
    origin = Origin(root, remotes=remotes, private_api=private_api, rate=rate, latency=latency, bind=bind, port=port)
    return running(origin)


@contextmanager
def running(origin: O_) -> Iterator[O_]:
    """Run the origin on an event loop in a thread of its own, and stop it at the end. Raises OSError as start does.

    The same origin can be run again afterwards: it comes back on the same port with its counts.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="origin", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(origin.start(), loop).result(THREAD_DEADLINE)
        try:
            yield origin
        finally:
            asyncio.run_coroutine_threadsafe(origin.stop(), loop).result(THREAD_DEADLINE)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(THREAD_DEADLINE)
        loop.close()


# --- in a process of its own --------------------------------------------------------------------------------


def parse_rate(text: str) -> float:
    """Return bytes a second from `20MB`, `512 kB`, `1000`: units of 1000. Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMG]?)B?", text.strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is no rate: say bytes a second, as in 20MB")
    return float(match[1]) * {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}[match[2]]


def parse_latency(text: str) -> float:
    """Return seconds from `20ms`, `0.5s`. Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no latency: say milliseconds or seconds, as in 20ms")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


def main(arguments: Sequence[str] | None = None, make: Callable[..., Origin] = Origin) -> None:
    """Run an origin until SIGTERM or SIGINT, or the end of standard input with --die-with-parent."""
    parser = argparse.ArgumentParser(description="Serve a demo folder as a refgenieserver would.")
    parser.add_argument("--root", type=Path, required=True, help="the folder to serve")
    parser.add_argument("--bind", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=0, help="the port; 0 takes a free one")
    parser.add_argument("--remotes", action="store_true", help="offer unpacked copies, read by ranges")
    parser.add_argument("--no-private-api", action="store_true", help="do not offer the catalog in one call")
    parser.add_argument("--rate", type=parse_rate, help="bytes a second a connection, as in 20MB")
    parser.add_argument("--latency", type=parse_latency, default=0.0, help="before every answer, as in 20ms")
    parser.add_argument("--die-with-parent", action="store_true", help="end when standard input does")
    options = parser.parse_args(arguments)
    try:
        origin = make(
            options.root,
            remotes=options.remotes,
            private_api=not options.no_private_api,
            rate=options.rate,
            latency=options.latency,
            bind=options.bind,
            port=options.port,
        )
        asyncio.run(_run(origin, die_with_parent=options.die_with_parent))
    except (OSError, ValueError) as exc:
        parser.exit(1, f"{parser.prog}: {exc}\n")


async def _run(origin: Origin, *, die_with_parent: bool) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if die_with_parent:
        _call_at_end(loop, sys.stdin.fileno(), ended.set)
    async with origin:
        sys.stdout.write(f"READY {origin.url}\n")
        sys.stdout.flush()
        await ended.wait()


def _call_at_end(loop: asyncio.AbstractEventLoop, fd: int, call: Callable[[], None]) -> None:
    """Call once a pipe is at its end; what comes before is thrown away. Raises OSError when fd is a file."""

    def read() -> None:
        if not os.read(fd, 4096):
            loop.remove_reader(fd)
            call()

    loop.add_reader(fd, read)


if __name__ == "__main__":
    main()
