"""The site: which path has which answer, who gets it, and when it is made anew.

What it shows are snapshots that the trio thread takes when somebody asks: nothing is done while nobody does, and who
asks too often gets the same again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any, NoReturn, Protocol

import trio
from aiohttp import web

from refgenfs.core.errors import KeyFormatError, NotInCatalog, RefgenfsError
from refgenfs.core.metrics import CONTENT_TYPE, Reading, exposition
from refgenfs.fetch.bridge import Bridge
from refgenfs.web.admission import SESSION, Admission, why
from refgenfs.web.bodies import HEADERS, LONG, Body, encode
from refgenfs.web.crossing import AnswerFailed, Crossing, Kept, NoAnswer
from refgenfs.web.door import IDLE, Door
from refgenfs.web.places import Place, bind, shown

log = logging.getLogger(__name__)

FRESH = 1.0  # seconds that the metrics are shown again: taking them costs the trio thread about a millisecond
FRESH_NOW = 0.5  # what the page asks for every second
FRESH_LISTS = 5.0  # the catalog, and what the cache holds
SNAPSHOT_DEADLINE = 5.0  # seconds; Prometheus itself gives up after 10
LIST_DEADLINE = 30.0  # seconds; a cache of a million files is looked through on a thread
ASSET_DEADLINE = 40.0  # seconds: an origin may be asked for a listing
ASSETS_AT_A_TIME = 4
TRY_AGAIN = 10.0  # seconds until a place that is taken is tried again
GRACE = 1.0  # seconds that answers under way have at the end
LARGEST_FORM = 8192  # bytes
MOST_KEPT = 24  # answers; a long one is half a megabyte

JSON = "application/json; charset=utf-8"
STATIC = Path(__file__).with_name("static")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Told(Protocol):
    """Who is asked, on the trio thread. `viewer` is the user who looks, None one who may see all."""

    def metrics(self) -> tuple[Reading, ...]:
        """Return what Prometheus is told."""
        ...

    async def now(self, *, viewer: int | None) -> Mapping[str, Any]:
        """Return how the daemon is."""
        ...

    async def history(self) -> Mapping[str, Any]:
        """Return the counters over time."""
        ...

    async def catalog(self, *, viewer: int | None) -> Mapping[str, Any]:
        """Return every asset."""
        ...

    async def cache(self, *, viewer: int | None) -> Mapping[str, Any]:
        """Return what the cache holds."""
        ...

    async def asset(self, key: str, *, viewer: int | None) -> Mapping[str, Any]:
        """Return one asset; raise NotInCatalog or KeyFormatError where there is none."""
        ...


class StatusPage:
    """Serves the page, its API and `/metrics` at a place, for who has the token of a file where there is one.

    The mount never waits for it: a place that can't be had is logged once, and tried again.
    """

    def __init__(self, bridge: Bridge, place: Place, token_file: Path | None, told: Told) -> None:
        self._bridge = bridge
        self._place = place
        self._told = told
        self._crossing = Crossing()
        # Owned by the asyncio thread.
        self._admission = Admission(token_file, place)
        self._door = Door()
        self._doorkeepers: list[asyncio.Task[NoReturn]] = []
        self._runner: web.AppRunner | None = None
        self._kept: dict[tuple[str, int | None], Kept[Body]] = {}
        self._files: dict[str, Body] = {}
        self._assets = asyncio.Semaphore(ASSETS_AT_A_TIME)

    async def serve(self) -> NoReturn:
        """Answer until cancelled."""
        listener = await self._listen()
        self._files = await trio.to_thread.run_sync(read_files)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._crossing.run)
                try:
                    await self._bridge.run(partial(self._start, listener))
                    log.info("the status page and the metrics are at %s", shown(self._place))
                    await trio.sleep_forever()
                finally:
                    with trio.move_on_after(2 * GRACE) as scope:
                        scope.shield = True
                        await self._bridge.run(self._stop)
        finally:
            listener.close()
            if isinstance(self._place, Path):
                self._place.unlink(missing_ok=True)
        raise AssertionError("unreachable")

    async def _listen(self) -> socket:
        said = False
        while True:
            try:
                return bind(self._place)
            except OSError as exc:
                if not said:
                    where = shown(self._place)
                    log.warning(
                        "no status page and no metrics at %s: %s; tried again every %g s", where, why(exc), TRY_AGAIN
                    )
                said = True
            await trio.sleep(TRY_AGAIN)

    # -- on the asyncio thread ----------------------------------------------------------------------------

    async def _start(self, listener: socket) -> None:
        app = web.Application(client_max_size=LARGEST_FORM, middlewares=[self._in_turn, _guarded])
        for path, handler in (
            ("/", self._front),
            ("/metrics", self._metrics),
            ("/static/{name}", self._static),
            ("/api/now", self._now),
            ("/api/history", self._history),
            ("/api/catalog", self._catalog),
            ("/api/cache", self._cache),
            ("/api/asset", self._asset),
        ):
            app.router.add_get(path, handler)
        if self._admission.needs_token:
            app.router.add_post("/login", self._log_in)
            app.router.add_post("/logout", self._log_out)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=GRACE, handle_signals=False, keepalive_timeout=IDLE
        )
        await self._runner.setup()
        assert self._runner.server is not None
        keepers = self._door.accept(listener, self._runner.server), self._door.watch()
        self._doorkeepers = [asyncio.create_task(keeper) for keeper in keepers]

    async def _stop(self) -> None:
        for keeper in self._doorkeepers:
            keeper.cancel()
        await asyncio.gather(*self._doorkeepers, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _in_turn(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        await self._door.turn(request)
        return await handler(request)

    async def _front(self, request: web.Request) -> web.StreamResponse:
        try:
            await self._admission.admit(request)
        except web.HTTPUnauthorized as exc:
            if "text/html" not in request.headers.get("Accept", ""):
                raise
            answer = self._files["login.html"].answer(request, status=exc.status)
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        return self._files["index.html"].answer(request)

    async def _static(self, request: web.Request) -> web.StreamResponse:
        """Answer with a file of the page itself: there is nothing in it that anybody must not see."""
        found = self._files.get(request.match_info["name"])
        if found is None or found.kind == KINDS[".html"]:
            raise web.HTTPNotFound(text="there is no such file\n")
        return found.answer(request)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        await self._admission.admit(request, checks_host=False)

        async def take() -> tuple[Reading, ...]:
            return self._told.metrics()

        async def make() -> Body:
            text = exposition(await self._crossing.ask(take, SNAPSHOT_DEADLINE))
            return Body.of(text.encode(), CONTENT_TYPE)

        return (await self._keep("metrics", None).get(FRESH, SNAPSHOT_DEADLINE, make)).answer(request)

    async def _now(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "now", FRESH_NOW, SNAPSHOT_DEADLINE)

    async def _catalog(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "catalog", FRESH_LISTS, LIST_DEADLINE)

    async def _cache(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "cache", FRESH_LISTS, LIST_DEADLINE)

    async def _answer(self, request: web.Request, what: str, fresh: float, deadline: float) -> web.StreamResponse:
        viewer = await self._admission.admit(request)
        ask: Callable[[], Awaitable[Mapping[str, Any]]] = partial(getattr(self._told, what), viewer=viewer)
        make = partial(self._make, ask, deadline)
        answer = (await self._keep(what, viewer).get(fresh, deadline, make)).answer(request)
        if self._admission.needs_token:
            answer.headers["X-Refgenfs-Login"] = "token"  # the page shows how to log out
        return answer

    async def _history(self, request: web.Request) -> web.StreamResponse:
        await self._admission.admit(request)
        make = partial(self._make, self._told.history, SNAPSHOT_DEADLINE)
        return (await self._keep("history", None).get(FRESH_NOW, SNAPSHOT_DEADLINE, make)).answer(request)

    async def _asset(self, request: web.Request) -> web.StreamResponse:
        viewer = await self._admission.admit(request)
        if self._assets.locked():
            raise NoAnswer("several assets are being looked up already")
        async with self._assets:
            ask = partial(self._told.asset, request.query.get("key", ""), viewer=viewer)
            return (await self._make(ask, ASSET_DEADLINE)).answer(request)

    async def _make(self, ask: Callable[[], Awaitable[Mapping[str, Any]]], deadline: float) -> Body:
        value = await self._crossing.ask(ask, deadline)
        if _is_long(value):
            return await asyncio.to_thread(_json, value)
        return _json(value)

    def _keep(self, what: str, viewer: int | None) -> Kept[Body]:
        """Return where an answer is kept; those of the viewers who looked last are."""
        found = self._kept.pop((what, viewer), None) or Kept()
        self._kept[what, viewer] = found
        for oldest in list(self._kept)[:-MOST_KEPT]:
            del self._kept[oldest]
        return found

    # -- the token of a browser ---------------------------------------------------------------------------

    async def _log_in(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise web.HTTPForbidden(text="another web site asks for this\n")
        given = (await request.post()).get("token", "")
        session = await self._admission.log_in(given if isinstance(given, str) else "")
        if session is None:
            return web.Response(status=303, headers={"Location": "./?wrong"})
        answer = web.Response(status=303, headers={"Location": "./"})
        answer.set_cookie(
            self._admission.cookie,
            session,
            max_age=SESSION,
            httponly=True,
            samesite="Strict",
            secure=request.headers.get("X-Forwarded-Proto") == "https",  # of a proxy that has TLS
        )
        return answer

    async def _log_out(self, request: web.Request) -> web.StreamResponse:
        await self._admission.admit(request)
        answer = web.Response(status=303, headers={"Location": "./"})
        answer.del_cookie(self._admission.cookie, httponly=True, samesite="Strict")
        return answer


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give each answer the headers that keep a browser from doing anything with it but show it."""
    answer: web.StreamResponse
    try:
        answer = await handler(request)
    except web.HTTPException as exc:
        exc.headers.update(HEADERS | {"Cache-Control": "no-store"})
        raise
    except (NotInCatalog, KeyFormatError) as exc:
        answer = _refusal(404, str(exc))
    except AnswerFailed:
        answer = _refusal(500, "this could not be told; the log says why")
    except RefgenfsError as exc:
        answer = _refusal(503, str(exc) if isinstance(exc, NoAnswer) else "the daemon could not tell")
    answer.headers.update(HEADERS)
    return answer


def _refusal(status: int, why_not: str) -> web.Response:
    return web.Response(
        status=status,
        body=encode({"error": why_not}),
        headers={"Content-Type": JSON, "Cache-Control": "no-store"},
    )


def _is_long(value: Mapping[str, Any]) -> bool:
    return sum(len(part) for part in value.values() if isinstance(part, list)) * 64 > LONG


def _json(value: Mapping[str, Any]) -> Body:
    return Body.of(encode(value), JSON)


def read_files() -> dict[str, Body]:
    """Return the page's own files by their names. Blocks."""
    return {
        path.name: Body.of(path.read_bytes(), KINDS[path.suffix], cached="no-cache")
        for path in sorted(STATIC.iterdir())
        if path.suffix in KINDS
    }
