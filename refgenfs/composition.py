"""The parts of a daemon, built once and in the order in which they need each other. Nothing here waits or starts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from refgenfs.administration import Daemon, Reporting
from refgenfs.cache.store import Store
from refgenfs.catalog import Catalog
from refgenfs.catalog.flights import Flights
from refgenfs.config import LoadedConfig
from refgenfs.core.content import (
    ArchiveRef,
    ByteRange,
    CheckedRange,
    Generated,
    LocalFile,
    Ranged,
    Sequence,
    Sliced,
)
from refgenfs.core.ticketblocks import TicketBlocks
from refgenfs.fetch.bridge import Bridge
from refgenfs.fetch.http import Http
from refgenfs.fetch.local import LocalFiles
from refgenfs.fetch.ticketed import TicketFetcher
from refgenfs.fuse import Mount, Operations
from refgenfs.invalidation import Invalidation
from refgenfs.library import Library
from refgenfs.made.finder import Finder
from refgenfs.made.indexer import Indexer
from refgenfs.made.indices import Indices
from refgenfs.made.records import Records
from refgenfs.made.sequences import Sequences
from refgenfs.made.servers import CheckedFetcher, RefgetServers
from refgenfs.notify import ServiceManager
from refgenfs.reader.archives import Archives, ArchiveSettings
from refgenfs.reader.budget import Budget
from refgenfs.reader.flights import FlightBoard
from refgenfs.reader.leftovers import kept_memory
from refgenfs.reader.ranges import Fetchers, RangeFetcher, RangeFlights
from refgenfs.reader.reader import Reader
from refgenfs.reader.siblings import Siblings
from refgenfs.reader.spooling import Spooler
from refgenfs.regions.making import make_slices
from refgenfs.reload import Reload, Tuned
from refgenfs.settings import budget_of, index_settings, memory_of, searched, warn_of_memory
from refgenfs.sources.making import make_sources, rules_of
from refgenfs.tree import Tree
from refgenfs.xattrs import describe


@dataclass(frozen=True, slots=True)
class Given:
    """What is open before there are parts, and open for longer than they are in use."""

    loaded: LoadedConfig
    store: Store
    bridge: Bridge
    http: Http
    tickets: TicketFetcher
    servers: dict[str, tuple[str, ...]]  # of tickets, by source
    nursery: trio.Nursery
    manager: ServiceManager
    device: int | None  # a /dev/fuse that is mounted already; None: we mount


class Composition:
    """The parts, and how they call each other. `stop` has the daemon end."""

    def __init__(self, given: Given, stop: Callable[[], None]) -> None:
        self._given = given
        self._config = given.loaded.config
        self._started = time.time()
        self._board = FlightBoard()
        self._invalidation = Invalidation(given.nursery)
        self._fetchers: dict[type[Ranged], RangeFetcher[Any]] = {}
        warn_of_memory(self._config)
        self.budget = Budget(*budget_of(self._config))
        self._sources = make_sources(given.http, given.tickets, self._config.source)
        self.catalog = self._make_catalog()
        self._flights = RangeFlights(
            Fetchers(self._fetchers), self._board, self.budget, given.nursery, given.http.manners
        )
        self._archives = self._make_archives()
        self._reader = self._make_reader()
        self._records = Records(given.store.ledger)
        self._indexer = self._make_indexer()
        self._indices = Indices(self._indexer, self._records)
        self._rules = rules_of(self._config.source, os.getuid())
        self._sequences = self._make_sequences()
        lookup_deadline = self._config.limits.lookup_deadline
        self._slices = make_slices(
            self._sources, given.tickets, self._reader, given.bridge, lookup_deadline, given.nursery
        )
        self._add_fetchers()
        self._library = self._make_library()
        self._siblings = self._make_siblings()
        self._tree = self._make_tree()
        self.operations = Operations(
            self._tree,
            self._reader,
            partial(describe, self._library, given.store),
            lambda: (given.store.quota, given.store.used),
        )
        mount = self._config.mount
        self.operations.bound(self._config.limits.open_files)
        self.mount = Mount(self.operations, os.fspath(mount.point), given.device, allow_other=mount.allow_other)
        self._attach()
        self.daemon = self._make_daemon(stop)
        self.reporting = Reporting(given.manager, self.daemon, given.http.probe)
        self.reload = self._make_reload()

    # -- what there is, and bytes -------------------------------------------------------------------------

    def _make_catalog(self) -> Catalog:
        store = self._given.store
        spooler = Spooler(store, self._given.http, self.budget)
        return Catalog(self._sources, store.ledger, refresh=self._config.catalog.refresh, spooler=spooler)

    def _add_fetchers(self) -> None:
        """Say who brings the contents of each kind of extent: some are made of the bytes of others."""
        self._fetchers |= {
            ByteRange: self._given.http,
            LocalFile: LocalFiles(self._given.bridge),
            TicketBlocks: self._given.tickets,
            CheckedRange: CheckedFetcher(self._given.http),
            Generated: self._indexer,
            Sequence: self._sequences,
            Sliced: self._slices.cutter,
        }

    def _make_archives(self) -> Archives:
        limits = self._config.limits
        return Archives(
            self._given.store,
            self._given.http,
            self._board,
            self._flights,
            self._recheck,
            self._invalidation.on_damage,
            ArchiveSettings(patience=limits.read_deadline, kept=kept_memory(memory_of(self._config))),
            self._given.nursery,
        )

    async def _recheck(self, ref: ArchiveRef) -> str | None:
        return await self._library.recheck(ref)

    def _make_reader(self) -> Reader:
        return Reader(
            self._given.store,
            self._board,
            self._flights,
            self._archives,
            self._invalidation.on_stale,
            patience=self._config.limits.read_deadline,
            nursery=self._given.nursery,
            on_damage=self._invalidation.on_damage,
        )

    # -- files that are made ------------------------------------------------------------------------------

    def _make_indexer(self) -> Indexer:
        given, settings = self._given, index_settings(self._config)
        return Indexer(given.store, self._reader, self._records, given.bridge, self.budget, settings, given.nursery)

    def _make_sequences(self) -> Sequences:
        given, flights = self._given, Flights()
        flights.open(given.nursery)
        finder = Finder(self.catalog, given.store, self._records)
        servers = RefgetServers(given.http, given.store, self._reader, flights, time.time)
        sequences = Sequences(self._reader, self._indexer, finder, servers, given.bridge, frozenset(self._rules))
        sequences.renew(searched(self._config))
        return sequences

    # -- names --------------------------------------------------------------------------------------------

    def _make_library(self) -> Library:
        library = Library(
            self.catalog,
            self._archives,
            self._reader,
            self._given.store.pins,
            self._config.limits.lookup_deadline,
            derivers=(*self._slices.derivers, self._sequences),
            companions=self._indices if self._config.indices.make else None,
        )
        for part in (self._indices, self._slices, self._sequences):
            part.attach(library)
        return library

    def _make_siblings(self) -> Siblings:
        prefetch = self._config.prefetch
        return Siblings(
            self._library,
            self._reader,
            self._given.store,
            prefetch.rules(),
            budget=prefetch.siblings,
            connections=self._config.limits.connections,
            nursery=self._given.nursery,
        )

    def _make_tree(self) -> Tree:
        return Tree(self.catalog, self._library, self._started, self._siblings, self._sequences, rules=self._rules)

    def _attach(self) -> None:
        self._invalidation.attach(
            self._given.store,
            self.catalog,
            self._tree,
            self.mount,
            self._indices,
            self._slices.regions,
            self._sequences,
        )
        self.catalog.on_change(self._invalidation.on_change)

    # -- control ------------------------------------------------------------------------------------------

    def _make_daemon(self, stop: Callable[[], None]) -> Daemon:
        path = self._given.loaded.path
        return Daemon(
            os.fspath(self._config.mount.point),
            self._started,
            self.catalog,
            self._library,
            self._given.store,
            self._reader,
            self._board,
            self._given.http,
            self.operations,
            stop,
            self._invalidation.forget_pages,
            self._take_configuration,
            os.fspath(path) if path else None,
            self._indexer,
            budget=self.budget,
            archives=self._archives,
            web=self._config.web.address,
            rules=lambda: self._tree.rules,
        )

    async def _take_configuration(self) -> dict[str, Any]:
        return await self.reload.run()

    def _make_reload(self) -> Reload:
        given = self._given
        tuned = Tuned(
            self.catalog,
            given.http,
            given.tickets,
            given.servers,
            given.store,
            self.budget,
            self._archives,
            self._reader,
            self._library,
            self._slices,
            self._tree,
            self._siblings,
            self.operations,
            self._indexer,
            self._indices,
            self._sequences,
        )
        return Reload(given.loaded, self._sources, tuned, self.reporting, given.manager)
