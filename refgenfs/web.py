"""The page that Prometheus scrapes: `/metrics` over HTTP, on the asyncio loop of the fetch thread.

What it shows is a snapshot that the trio thread takes when somebody asks, at most one a second: nothing is done while
nobody does, and who asks too often gets the same again.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import trio
from aiohttp import web

from refgenfs.core.errors import ControlError, RefgenfsError
from refgenfs.core.metrics import CONTENT_TYPE, Reading, exposition
from refgenfs.fetch.bridge import Bridge

log = logging.getLogger(__name__)

Place = tuple[str, int] | Path
Take = Callable[[], tuple[Reading, ...]]

FRESH = 1.0  # seconds that a snapshot is shown again: taking one costs the trio thread about a millisecond
SNAPSHOT_DEADLINE = 5.0  # seconds; Prometheus itself gives up after 10
TRY_AGAIN = 10.0  # seconds until a place that is taken is tried again
GRACE = 1.0  # seconds that answers under way have at the end
LONGEST_TOKEN = 4096  # bytes

_FRONT = "refgenfs: /metrics has the metrics\n"


class SnapshotFailed(RefgenfsError):
    """What takes the snapshots has a defect."""


class MetricsPage:
    """Serves `/metrics` at a place, for who has the token of a file where there is one.

    `take` is called on the trio thread. The mount never waits for the page: a place that can't be had is logged once,
    and tried again.
    """

    def __init__(self, bridge: Bridge, place: Place, token_file: Path | None, take: Take) -> None:
        self._bridge = bridge
        self._place = place
        self._token_file = token_file
        self._take = take
        self._trio: trio.lowlevel.TrioToken | None = None
        # Owned by the asyncio thread.
        self._runner: web.AppRunner | None = None
        self._turn: asyncio.Lock | None = None
        self._text = ""
        self._taken = float("-inf")

    async def serve(self) -> NoReturn:
        """Answer until cancelled."""
        self._trio = trio.lowlevel.current_trio_token()
        listener = await self._listen()
        try:
            await self._bridge.run(partial(self._start, listener))
            log.info("metrics at %s", self._shown)
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(2 * GRACE) as scope:
                scope.shield = True
                await self._bridge.run(self._stop)
            listener.close()
            if isinstance(self._place, Path):
                self._place.unlink(missing_ok=True)
        raise AssertionError("unreachable")

    @property
    def _shown(self) -> str:
        if isinstance(self._place, Path):
            return str(self._place)
        host, port = self._place
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    async def _listen(self) -> socket.socket:
        told = False
        while True:
            try:
                return bind(self._place)
            except OSError as exc:
                if not told:
                    log.warning("no metrics at %s: %s; tried again every %g s", self._shown, _why(exc), TRY_AGAIN)
                told = True
            await trio.sleep(TRY_AGAIN)

    # -- on the asyncio thread ----------------------------------------------------------------------------

    async def _start(self, listener: socket.socket) -> None:
        self._turn = asyncio.Lock()
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/", self._front)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=GRACE, handle_signals=False)
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _front(self, request: web.Request) -> web.Response:
        self._admit(request)
        return web.Response(text=_FRONT)

    async def _metrics(self, request: web.Request) -> web.Response:
        self._admit(request)
        loop = asyncio.get_running_loop()
        assert self._turn is not None
        try:
            async with asyncio.timeout(SNAPSHOT_DEADLINE), self._turn:
                if loop.time() - self._taken >= FRESH:
                    self._text = exposition(await self._snapshot(loop))
                    self._taken = loop.time()
        except (TimeoutError, trio.RunFinishedError):
            return web.Response(status=503, text="the daemon is busy\n")
        except SnapshotFailed:
            return web.Response(status=500, text="the metrics could not be taken; the log says why\n")
        return web.Response(body=self._text.encode(), headers={"Content-Type": CONTENT_TYPE})

    def _admit(self, request: web.Request) -> None:
        """Raise HTTPUnauthorized unless the request has the token, where one is needed."""
        if self._token_file is None:
            return
        given = request.headers.get("Authorization", "")
        scheme, _, secret = given.partition(" ")
        try:
            wanted = read_token(self._token_file)
        except ControlError as exc:
            log.warning("metrics: %s", exc)
            raise web.HTTPServiceUnavailable(text="the token file can't be used; the log says why\n") from exc
        if scheme.lower() != "bearer" or not hmac.compare_digest(secret.strip().encode(), wanted.encode()):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"}, text="a bearer token is needed\n")

    async def _snapshot(self, loop: asyncio.AbstractEventLoop) -> tuple[Reading, ...]:
        answer: asyncio.Future[tuple[Reading, ...]] = loop.create_future()

        def settle(readings: tuple[Reading, ...] | None) -> None:
            if answer.done():
                return
            if readings is None:
                answer.set_exception(SnapshotFailed("no metrics"))
            else:
                answer.set_result(readings)

        def take() -> None:  # on the trio thread, where nothing may be raised
            readings = None
            try:
                readings = self._take()
            except Exception:
                log.exception("the metrics could not be taken")
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(settle, readings)

        assert self._trio is not None
        self._trio.run_sync_soon(take)
        return await answer


def bind(place: Place) -> socket.socket:
    """Return a socket that listens; a unix socket that nobody answers on is replaced. Raises OSError."""
    family = socket.AF_UNIX if isinstance(place, Path) else socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if isinstance(place, Path):
            _remove_dead(place)
            previous = os.umask(0o117)  # for its owner and its group
            try:
                listener.bind(os.fspath(place))
            finally:
                os.umask(previous)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
        listener.listen(16)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        with suppress(FileNotFoundError, ConnectionRefusedError):
            probe.connect(os.fspath(path))
            return  # somebody answers: binding says so
    if path.is_socket():
        path.unlink(missing_ok=True)


def read_token(path: Path) -> str:
    """Return the token in a file; raise ControlError, which names the file and not its text."""
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_TOKEN).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ControlError(f"the token file {path} can't be read: {_why(exc)}") from exc
    if not text or " " in text or not text.isprintable():
        raise ControlError(f"the token file {path} holds no single token")
    return text


def _why(exc: Exception) -> str:
    return str(getattr(exc, "strerror", None) or exc)
