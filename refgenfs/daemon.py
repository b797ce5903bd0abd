"""The daemon: opens what its parts need, owns the nursery, mounts, and takes it all down again.

Order of birth: cache, network thread, catalog (from the disk), tree, mount, control socket, readiness; of
death the other way round. What takes long (asking origins, checking the disk) happens after readiness.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from refgenfs import paths
from refgenfs.administration import operations_for
from refgenfs.administration.page import PageData
from refgenfs.background import survive
from refgenfs.cache.opening import open_store
from refgenfs.composition import Composition, Given
from refgenfs.config import Config, LoadedConfig, load_config
from refgenfs.control import ControlServer
from refgenfs.core.errors import ConfigError, RefgenfsError
from refgenfs.fetch.bridge import open_bridge
from refgenfs.fetch.http import Http
from refgenfs.handover import serves_all
from refgenfs.logs import BoundedHandler, keep_summing_up, set_up_logging
from refgenfs.memory import give_back, tame_allocator, tame_collector
from refgenfs.mountpoint import HANDED_OVER, MountFailed, prepare, raise_background, raise_readahead, why_refused
from refgenfs.notify import ServiceManager, handed_over
from refgenfs.processes import raise_open_files
from refgenfs.reader.scratch import open_tickets
from refgenfs.settings import cache_limits, http_settings
from refgenfs.sources.making import ticket_servers

log = logging.getLogger("refgenfs.daemon")  # also when it runs as __main__

# A first start with no catalog on the disk waits this long for the origin before it mounts all the same.
FIRST_CATALOG = 10.0  # seconds
# From SIGTERM to the end: requests under way may finish for this long.
GRACE = 2.0  # seconds

Ready = Callable[[dict[str, Any]], None]


def run(loaded: LoadedConfig, *, ready_fd: int | None = None) -> int:
    """Serve until unmounted or told to stop; return the exit code.

    One line of JSON is written to `ready_fd` when the tree answers, or when it never will.
    """
    raise_open_files()
    tame_allocator()
    tame_collector()
    lines = set_up_logging(loaded.config.log.level, os.environ)
    announce = partial(_announce, ready_fd)
    manager = ServiceManager.of(os.environ, os.getpid())
    device = handed_over(os.environ, os.getpid(), HANDED_OVER)
    if device is not None:
        manager.drop(HANDED_OVER)  # the mount dies with us, and with nobody else who holds it
    try:
        trio.run(_main, loaded, announce, manager, device, lines, strict_exception_groups=True)
    except BaseException as exc:
        error = _first(exc)
        if isinstance(error, RefgenfsError):
            log.error("the daemon ends: %s", error)  # noqa: TRY400  # said for people; a traceback would bury it
            announce({"error": {"kind": type(error).__name__, "message": str(error)}})
        else:
            log.critical("the daemon ends, unexpectedly: %r", error, exc_info=exc)
            announce({"error": {"kind": "unexpected", "message": f"{error!r}; the log has more"}})
        return 1
    log.info("ended")
    return 0


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _announce(ready_fd: int | None, message: dict[str, Any]) -> None:
    if ready_fd is None:
        return
    if "ready" in message:
        # Not before the mount is made: an automounter lets only its own process group in while it waits for one.
        with contextlib.suppress(OSError):  # it is a session of its own already
            os.setsid()
    with contextlib.suppress(OSError):
        os.write(ready_fd, json.dumps(message).encode() + b"\n")
        os.close(ready_fd)


async def _main(
    loaded: LoadedConfig, announce: Ready, manager: ServiceManager, device: int | None, lines: BoundedHandler
) -> None:
    config = loaded.config
    mountpoint = config.mount.point
    servers = ticket_servers(config.source)
    if device is None:
        prepare(mountpoint)
    async with (
        open_store(config.cache.dir, cache_limits(config), owner=str(mountpoint), wait=False) as store,
        open_bridge() as bridge,
        _http(bridge, config) as http,
        open_tickets(http, store, servers) as tickets,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(keep_summing_up, lines)
        given = Given(loaded, store, bridge, http, tickets, servers, nursery, manager, device)
        await _Running(given, announce).serve()


@asynccontextmanager
async def _http(bridge: Any, config: Config) -> AsyncIterator[Http]:
    http = Http(bridge, http_settings(config))
    try:
        yield http
    finally:
        with trio.move_on_after(GRACE) as scope:
            scope.shield = True
            await http.aclose()


class _Running:
    """One run of the daemon, from its mount to its end."""

    def __init__(self, given: Given, announce: Ready) -> None:
        self._given = given
        self._config = given.loaded.config
        self._mountpoint = os.fspath(self._config.mount.point)
        self._manager = given.manager
        self._store = given.store
        self._nursery = given.nursery
        self._announce = announce
        self._stopping = trio.Event()
        self._parts = Composition(given, self._stopping.set)

    # -- from mount to unmount ----------------------------------------------------------------------------

    async def serve(self) -> None:
        """Mount, answer, and take everything down again."""
        self._nursery.start_soon(self._heed_signals)
        await self._parts.catalog.load()
        await self._nursery.start(self._parts.catalog.run)
        if not self._parts.catalog.snapshot.genomes:
            self._manager.extend(2 * FIRST_CATALOG, "waiting for a first catalog")
            with trio.move_on_after(FIRST_CATALOG):
                await self._unless_stopped(self._parts.catalog.refresh)
        if self._stopping.is_set():
            self._nursery.cancel_scope.cancel()
            return
        # who may read may ask, too
        shared = self._config.mount.allow_other if self._given.device is None else serves_all(self._given.loaded)
        folder = paths.make_runtime_dir(os.environ, os.getuid(), shared=shared)
        path = folder / paths.socket_path(Path(self._mountpoint), os.environ, os.getuid()).name
        control = ControlServer(path, operations_for(self._parts.daemon), shared=shared)
        listener = control.listen()
        try:
            self._parts.mount.open()
        except RuntimeError as exc:
            path.unlink(missing_ok=True)
            config = self._config.mount
            raise MountFailed(why_refused(config.point, exc, allow_other=config.allow_other)) from exc
        try:
            await self._answer(control, listener)
        finally:
            self._manager.stopping("unmounting")
            self._parts.mount.close()
            self._nursery.cancel_scope.cancel()

    async def _unless_stopped(self, call: Callable[[], Awaitable[object]]) -> None:
        """Await a call, but no longer than until the daemon is told to stop."""
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await self._stopping.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await call()
            nursery.cancel_scope.cancel()

    async def _answer(self, control: ControlServer, listener: trio.SocketListener) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.serve, listener)
            nursery.start_soon(self._greet)
            nursery.start_soon(survive, self._show_page)
            nursery.start_soon(self._parts.operations.callers.watch)
            nursery.start_soon(give_back, lambda: self._parts.budget.landed)
            nursery.start_soon(self._end_when_told, nursery)
            await self._parts.mount.serve()
            nursery.cancel_scope.cancel()

    async def _greet(self) -> None:
        """Say that the tree answers, once the kernel has shaken hands with us, and raise the kernel's limits.

        Not before: the handshake sets the readahead to 128 KiB whatever it was.
        """
        await self._parts.operations.greeted.wait()
        if self._given.device is None:  # who handed it over raises them
            raise_readahead(self._config.mount.point, self._config.mount.readahead)
            raise_background(self._config.mount.point)
        self._say_ready()
        await self._parts.reporting.run()

    async def _show_page(self) -> None:
        """Serve the status page and the metrics, where that is wanted; what goes wrong there ends nothing else."""
        place = self._config.web.place
        if place is not None:
            from refgenfs.web import StatusPage  # what it imports is 2 MiB that a daemon without it need not hold

            told = PageData(self._parts.daemon)
            page = StatusPage(self._given.http.bridge, place, self._config.web.token_file, told)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(told.record)
                nursery.start_soon(page.serve)

    def _say_ready(self) -> None:
        status = self._parts.catalog.status()
        snapshot = self._parts.catalog.snapshot
        problems = [
            f"{source.name}: {source.error or 'has not answered yet'}"
            for source in status
            if source.error or source.last_refresh is None
        ]
        if self._store.uncached:
            problems.append(f"the cache: {self._store.errors.last}; reads go on without it")
        self._store.look()  # not before: it takes a large cache a second of this process
        log.info("mounted on %s: %d genome names", self._mountpoint, len(snapshot.genomes))
        self._manager.ready(self._parts.reporting.sentence())
        self._announce(
            {
                "ready": {
                    "mountpoint": self._mountpoint,
                    "pid": os.getpid(),
                    "genomes": len({id(genome) for genome in snapshot.genomes.values()}),
                    "assets": snapshot.count,
                    "problems": problems,
                }
            }
        )

    # -- the end ------------------------------------------------------------------------------------------

    async def _heed_signals(self) -> None:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        for each in numbers:
            # The receiver restores this at its end: a second SIGTERM must not kill a daemon that closes its cache.
            signal.signal(each, signal.SIG_IGN)
        with trio.open_signal_receiver(*numbers) as signals:
            async for number in signals:
                log.info("got %s", signal.Signals(number).name)
                if number == signal.SIGHUP:
                    self._nursery.start_soon(survive, self._reload)
                else:
                    self._stopping.set()

    async def _end_when_told(self, nursery: trio.Nursery) -> None:
        await self._stopping.wait()
        log.info("stopping")
        self._parts.mount.stop()
        await trio.sleep(GRACE)
        nursery.cancel_scope.cancel()

    async def _reload(self) -> None:
        with contextlib.suppress(ConfigError):  # why it was refused is in the log already
            await self._parts.reload.run()


def main() -> int:
    """Run as `python -m refgenfs.daemon --ready-fd N`: configuration {"path", "overrides"} on standard input."""
    ready_fd = int(sys.argv[sys.argv.index("--ready-fd") + 1]) if "--ready-fd" in sys.argv else None
    try:
        request = json.load(sys.stdin)
        path = Path(request["path"]) if request.get("path") else None
        loaded = load_config(path, request.get("overrides") or {}, os.environ)
    except RefgenfsError as exc:
        _announce(ready_fd, {"error": {"kind": type(exc).__name__, "message": str(exc)}})
        return 1
    return run(loaded, ready_fd=ready_fd)


if __name__ == "__main__":
    sys.exit(main())
