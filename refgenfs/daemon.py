"""The daemon: builds every part, owns the nursery, mounts, and takes it all down again.

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
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from refgenfs import paths
from refgenfs.administration import Daemon, Reporting, operations
from refgenfs.administration.metrics import collect
from refgenfs.cache.opening import open_store
from refgenfs.cache.store import Store
from refgenfs.catalog import Catalog
from refgenfs.catalog.flights import Flights
from refgenfs.config import Config, LoadedConfig, load_config
from refgenfs.control import ControlServer
from refgenfs.core.catalog import CatalogSnapshot
from refgenfs.core.content import (
    ArchiveRef,
    ByteRange,
    CheckedRange,
    ContentId,
    FileFacts,
    Generated,
    LocalFile,
    Ranged,
    Sliced,
)
from refgenfs.core.content import Sequence as SequenceOf
from refgenfs.core.errors import ConfigError, NotInCatalog, RefgenfsError
from refgenfs.core.ticketblocks import TicketBlocks
from refgenfs.fetch.bridge import Bridge, open_bridge
from refgenfs.fetch.http import Http
from refgenfs.fetch.local import LocalFiles
from refgenfs.fetch.ticketed import TicketFetcher
from refgenfs.fuse import Mount, Operations
from refgenfs.library import Library
from refgenfs.logs import set_up_logging
from refgenfs.made.finder import Finder
from refgenfs.made.indexer import Indexer, IndexSettings
from refgenfs.made.indices import Indices
from refgenfs.made.records import Records
from refgenfs.made.sequences import Sequences
from refgenfs.made.servers import CheckedFetcher, RefgetServers
from refgenfs.memory import give_back, tame_allocator, tame_collector
from refgenfs.mountpoint import HANDED_OVER, MountFailed, prepare, raise_background, raise_readahead, why_refused
from refgenfs.notify import ServiceManager, handed_over
from refgenfs.reader.archives import Archives, ArchiveSettings
from refgenfs.reader.budget import Budget
from refgenfs.reader.flights import FlightBoard
from refgenfs.reader.leftovers import kept_memory
from refgenfs.reader.ranges import Fetchers, RangeFetcher, RangeFlights
from refgenfs.reader.reader import Reader
from refgenfs.reader.scratch import open_tickets
from refgenfs.reader.siblings import Siblings
from refgenfs.reader.spooling import Spooler
from refgenfs.regions.making import make_slices
from refgenfs.reload import Reload, Tuned, budget_of, cache_limits, http_settings
from refgenfs.sources.making import make_sources, rules_of, ticket_servers
from refgenfs.tree import FileNode, FolderNode, Node, Tree

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
    tame_allocator()
    tame_collector()
    set_up_logging(loaded.config.log.level, os.environ)
    announce = partial(_announce, ready_fd)
    manager = ServiceManager.of(os.environ, os.getpid())
    device = handed_over(os.environ, os.getpid(), HANDED_OVER)
    if device is not None:
        manager.drop(HANDED_OVER)  # the mount dies with us, and with nobody else who holds it
    try:
        trio.run(_main, loaded, announce, manager, device, strict_exception_groups=True)
    except BaseException as exc:
        error = _first(exc)
        if isinstance(error, RefgenfsError):
            log.error("%s", error)  # noqa: TRY400  # said for people; a traceback would bury it
            announce({"error": {"kind": type(error).__name__, "message": str(error)}})
        else:
            log.critical("the daemon ends: %r", error, exc_info=exc)
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


async def _main(loaded: LoadedConfig, announce: Ready, manager: ServiceManager, device: int | None) -> None:
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
        await _Running(loaded, store, bridge, http, tickets, servers, nursery, announce, manager, device).serve()


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
    """One run of the daemon: its parts, and how they call each other."""

    def __init__(
        self,
        loaded: LoadedConfig,
        store: Store,
        bridge: Bridge,
        http: Http,
        tickets: TicketFetcher,
        servers: dict[str, tuple[str, ...]],
        nursery: trio.Nursery,
        announce: Ready,
        manager: ServiceManager,
        device: int | None,
    ) -> None:
        self._config = config = loaded.config
        self._manager = manager
        self._device = device  # a /dev/fuse that is mounted already; None: we mount
        self._mountpoint = os.fspath(config.mount.point)
        self._store = store
        self._http = http
        self._nursery = nursery
        self._announce = announce
        self._stopping = trio.Event()
        self._started = time.time()
        board = FlightBoard()
        self._budget = budget = Budget(*budget_of(config))
        sources = make_sources(http, tickets, config.source)
        self._catalog = Catalog(
            sources, store.ledger, refresh=config.catalog.refresh, spooler=Spooler(store, http, budget)
        )
        fetchers: dict[type[Ranged], RangeFetcher[Any]] = {
            ByteRange: http,
            LocalFile: LocalFiles(bridge),
            TicketBlocks: tickets,
        }
        flights = RangeFlights(Fetchers(fetchers), board, budget, nursery, http.manners)
        archives = self._make_archives(board, flights)
        self._reader = self._make_reader(board, flights, archives)
        records = Records(store.ledger)
        self._indexer = self._make_indexer(bridge, records)
        self._indices = Indices(self._indexer, records)
        rules = rules_of(config.source, os.getuid())
        self._sequences = self._make_sequences(bridge, records, frozenset(rules))
        slices = make_slices(sources, tickets, self._reader, bridge, config.limits.lookup_deadline, nursery)
        self._regions = slices.regions
        fetchers |= {
            CheckedRange: CheckedFetcher(http),
            Generated: self._indexer,
            SequenceOf: self._sequences,
            Sliced: slices.cutter,
        }
        self._library = Library(
            self._catalog,
            archives,
            self._reader,
            store.pins,
            config.limits.lookup_deadline,
            derivers=(*slices.derivers, self._sequences),
            companions=self._indices if config.indices.make else None,
        )
        for part in (self._indices, slices, self._sequences):
            part.attach(self._library)
        siblings = self._make_siblings()
        self._tree = Tree(self._catalog, self._library, self._started, siblings, self._sequences, rules=rules)
        self._operations = Operations(self._tree, self._reader, self._describe, lambda: (store.quota, store.used))
        self._mount = Mount(self._operations, self._mountpoint, device, allow_other=config.mount.allow_other)
        self._parts = Daemon(
            self._mountpoint,
            self._started,
            self._catalog,
            self._library,
            store,
            self._reader,
            board,
            http,
            self._operations,
            self._stopping.set,
            self._forget_pages,
            self._take_configuration,
            os.fspath(loaded.path) if loaded.path else None,
            self._indexer,
            budget=budget,
            archives=archives,
        )
        self._reporting = Reporting(manager, self._parts, http.probe)
        tuned = Tuned(
            self._catalog,
            http,
            tickets,
            servers,
            store,
            budget,
            archives,
            self._reader,
            self._library,
            slices,
            self._tree,
            siblings,
        )
        self._reload = Reload(loaded, sources, tuned, self._reporting, manager)

    # -- the parts ----------------------------------------------------------------------------------------

    def _make_archives(self, board: FlightBoard, flights: RangeFlights) -> Archives:
        limits = self._config.limits
        return Archives(
            self._store,
            self._http,
            board,
            flights,
            self._recheck,
            self._on_damage,
            ArchiveSettings(patience=limits.read_deadline, kept=kept_memory(limits.memory)),
            self._nursery,
        )

    def _make_reader(self, board: FlightBoard, flights: RangeFlights, archives: Archives) -> Reader:
        patience = self._config.limits.read_deadline
        return Reader(
            self._store,
            board,
            flights,
            archives,
            self._on_stale,
            patience=patience,
            nursery=self._nursery,
            on_damage=self._on_damage,
        )

    def _make_indexer(self, bridge: Bridge, records: Records) -> Indexer:
        settings = IndexSettings(self._config.indices.largest)
        return Indexer(self._store, self._reader, records, bridge, self._budget, settings, self._nursery)

    def _make_sequences(self, bridge: Bridge, records: Records, guarded: frozenset[str]) -> Sequences:
        wanted, flights = self._config.refget, Flights()
        flights.open(self._nursery)
        finder = Finder(self._catalog, self._store, records, genomes=wanted.genomes, search=wanted.search)
        servers = RefgetServers(wanted.servers, self._http, self._store, self._reader, flights, time.time)
        return Sequences(self._reader, self._indexer, finder, servers, bridge, guarded)

    def _make_siblings(self) -> Siblings:
        prefetch = self._config.prefetch
        return Siblings(
            self._library,
            self._reader,
            self._store,
            prefetch.rules(),
            budget=prefetch.siblings,
            connections=self._config.limits.connections,
            nursery=self._nursery,
        )

    # -- from mount to unmount ----------------------------------------------------------------------------

    async def serve(self) -> None:
        """Mount, answer, and take everything down again."""
        self._nursery.start_soon(self._heed_signals)
        await self._catalog.load()
        self._catalog.on_change(self._on_change)
        await self._nursery.start(self._catalog.run)
        if not self._catalog.snapshot.genomes:
            self._manager.extend(2 * FIRST_CATALOG, "waiting for a first catalog")
            with trio.move_on_after(FIRST_CATALOG):
                await self._unless_stopped(self._catalog.refresh)
        if self._stopping.is_set():
            self._nursery.cancel_scope.cancel()
            return
        folder = paths.make_runtime_dir(os.environ, os.getuid())
        path = folder / paths.socket_path(Path(self._mountpoint), os.environ, os.getuid()).name
        control = ControlServer(path, operations(self._parts))
        listener = control.listen()
        try:
            self._mount.open()
        except RuntimeError as exc:
            path.unlink(missing_ok=True)
            config = self._config.mount
            raise MountFailed(why_refused(config.point, exc, allow_other=config.allow_other)) from exc
        try:
            await self._answer(control, listener)
        finally:
            self._manager.stopping("unmounting")
            self._mount.close()
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
            nursery.start_soon(self._show_metrics)
            nursery.start_soon(self._operations.watch_callers)
            nursery.start_soon(give_back, lambda: self._budget.landed)
            nursery.start_soon(self._end_when_told, nursery)
            await self._mount.serve()
            nursery.cancel_scope.cancel()

    async def _greet(self) -> None:
        """Say that the tree answers, once the kernel has shaken hands with us, and raise the kernel's limits.

        Not before: the handshake sets the readahead to 128 KiB whatever it was.
        """
        await self._operations.greeted.wait()
        if self._device is None:  # who handed it over raises them
            raise_readahead(self._config.mount.point, self._config.mount.readahead)
            raise_background(self._config.mount.point)
        self._say_ready()
        await self._reporting.run()

    async def _show_metrics(self) -> None:
        """Let Prometheus have the metrics, where that is wanted; what goes wrong with that ends nothing else."""
        place = self._config.web.place
        if place is not None:
            from refgenfs.web import MetricsPage  # what it imports is 2 MiB that a daemon without it need not hold

            page = MetricsPage(self._http.bridge, place, self._config.web.token_file, partial(collect, self._parts))
            await self._survive(page.serve)

    def _say_ready(self) -> None:
        status = self._catalog.status()
        snapshot = self._catalog.snapshot
        problems = [
            f"{source.name}: {source.error or 'has not answered yet'}"
            for source in status
            if source.error or source.last_refresh is None
        ]
        if self._store.uncached:
            problems.append(f"the cache: {self._store.errors.last}; reads go on without it")
        self._store.look()  # not before: it takes a large cache a second of this process
        log.info("mounted on %s: %d genome names", self._mountpoint, len(snapshot.genomes))
        self._manager.ready(self._reporting.sentence())
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
                    self._nursery.start_soon(self._survive, self._take_configuration)
                else:
                    self._stopping.set()

    async def _end_when_told(self, nursery: trio.Nursery) -> None:
        await self._stopping.wait()
        log.info("stopping")
        self._mount.stop()
        await trio.sleep(GRACE)
        nursery.cancel_scope.cancel()

    # -- how the parts call each other --------------------------------------------------------------------

    async def _recheck(self, ref: ArchiveRef) -> str | None:
        return await self._library.recheck(ref)

    async def _take_configuration(self) -> dict[str, Any]:
        return await self._reload.run()

    async def _survive(self, call: Callable[[], Awaitable[object]]) -> None:
        """Run something in the background; a defect in it is logged, and ends nothing else."""
        try:
            await call()
        except ConfigError:
            log.debug("a reload was refused")  # and why is in the log already
        except Exception:
            log.exception("something in the background failed unexpectedly")

    def _on_change(self, old: CatalogSnapshot, new: CatalogSnapshot) -> None:
        for parent, name in self._tree.outdated(new):
            self._mount.forget_name(parent, name)

    def _on_stale(self, facts: FileFacts) -> None:
        """Another version is at the origin: the next lookup must find it."""
        with contextlib.suppress(NotInCatalog):  # a sequence's from a refget server
            self._catalog.note_stale(facts)
        for content in (facts.content, *self._indices.of(facts.content), *self._regions.forget(facts)):
            for parent, name in self._tree.names_of(content):
                self._mount.forget_name(parent, name)

    def _on_damage(self, wrong: Iterable[ContentId]) -> None:
        """Bytes that were served turned out wrong: the kernel must not keep them, nor mix them with others."""
        contents = tuple(wrong)
        made = []
        for content in contents:
            made += self._indices.of(content)
            self._indices.drop(content)
            self._sequences.forget(content)
            self._nursery.start_soon(self._survive, partial(self._indices.forget, content))
        for content in made:
            self._store.evict(content)
        for content in (*contents, *made):
            names = self._tree.names_of(content)
            number = self._tree.retire(content)
            if number is not None:
                for parent, name in names:
                    self._mount.forget_name(parent, name)
                self._nursery.start_soon(self._survive, partial(self._mount.forget_pages, number))

    async def _forget_pages(self, content: ContentId) -> None:
        number = self._tree.number_of(content)
        if number is not None:
            await self._mount.forget_pages(number)

    def _describe(self, node: Node) -> dict[str, str]:
        """Return the extended attributes of a node, without their prefix."""
        if not isinstance(node, FileNode | FolderNode):
            return {}
        described = {"key": str(node.version.key), "digest": node.version.asset_digest}
        if isinstance(node, FolderNode):
            return described
        facts = node.facts or self._library.known_facts(node.version, node.name)
        content = facts.content if facts else node.content
        held = self._store.resident_bytes(content)
        size = facts.size if facts else None
        full = size is not None and held >= size
        described["origin"] = facts.origin if facts else "unknown"
        described["resident"] = "100" if full else str(held * 100 // size if size else 0)
        described["pinned"] = "1" if self._store.is_pinned(content) else "0"
        return described


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
