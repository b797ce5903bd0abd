"""A changed configuration taken by a daemon that runs: the mount stays, and so do files that are open.

The file is read and checked as a whole before anything changes: a wrong one changes nothing. What can't change under
a mount stays as it was, and is named.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from refgenfs import logs
from refgenfs.administration import Reporting
from refgenfs.cache.store import Store
from refgenfs.catalog import Catalog
from refgenfs.config import Config, LoadedConfig, file_problems, load_config
from refgenfs.core.access import Rule
from refgenfs.core.errors import ConfigError
from refgenfs.fetch.http import Http
from refgenfs.fetch.settings import Account
from refgenfs.fetch.ticketed import TicketFetcher
from refgenfs.fuse import Operations
from refgenfs.library import Library
from refgenfs.made.indexer import Indexer
from refgenfs.made.indices import Indices
from refgenfs.made.sequences import Sequences
from refgenfs.notify import ServiceManager
from refgenfs.reader.archives import Archives
from refgenfs.reader.budget import Budget
from refgenfs.reader.leftovers import kept_memory
from refgenfs.reader.reader import Reader
from refgenfs.reader.siblings import Siblings
from refgenfs.regions.making import Slices
from refgenfs.settings import (
    budget_of,
    cache_limits,
    http_settings,
    index_settings,
    memory_of,
    searched,
    warn_of_memory,
)
from refgenfs.sources import Source
from refgenfs.sources.making import make_sources, rules_of, ticket_servers
from refgenfs.tree import Tree

log = logging.getLogger(__name__)

ANSWERS = 10.0  # seconds that sources are waited for

LIVE = frozenset(
    {"cache.size", "cache.min_free", "catalog.refresh", "log.level", "prefetch.siblings"}
    | {"limits.connections", "limits.memory", "limits.read_deadline", "limits.lookup_deadline", "limits.retry_for"}
    | {"limits.open_files"}
    | {"indices.make", "indices.largest", "refget.genomes", "refget.servers", "refget.search"}
)
# What stays as it is until the next mount.
FIXED = frozenset(
    {"mount.point", "mount.allow_other", "mount.readahead", "cache.dir", "web.listen", "web.token_file"}
)


@dataclass(frozen=True, slots=True)
class Tuned:
    """The parts that take other settings while they work."""

    catalog: Catalog
    http: Http
    tickets: TicketFetcher
    servers: dict[str, tuple[str, ...]]  # of tickets, by source
    store: Store
    budget: Budget
    archives: Archives
    reader: Reader
    library: Library
    slices: Slices
    tree: Tree
    siblings: Siblings
    operations: Operations
    indexer: Indexer
    indices: Indices
    sequences: Sequences


class Reload:
    """Takes what the configuration's file says now. `sources` are those of the catalog, in the file's order."""

    def __init__(
        self,
        loaded: LoadedConfig,
        sources: list[Source],
        parts: Tuned,
        reporting: Reporting,
        manager: ServiceManager,
    ) -> None:
        self._loaded = loaded
        self._at_start = dict(_values(loaded))
        self._sources = {source.name: source for source in sources}
        self._seen = set(self._sources)  # all names since the mount, also of sources that are gone
        self._rules = rules_of(loaded.config.source, os.getuid())
        self._parts = parts
        self._reporting = reporting
        self._manager = manager
        self._lock = trio.Lock()

    async def run(self) -> dict[str, Any]:
        """Read the file, take what is in it, ask all sources, and return what came of it.

        Raises ConfigError, with a line for each thing that is wrong; nothing is changed then.
        """
        async with self._lock:
            self._manager.reloading()
            try:
                return await self._run()
            except ConfigError as exc:
                for line in str(exc).splitlines():
                    log.error("nothing is reloaded: %s", line)  # noqa: TRY400  # said for people
                raise
            finally:
                self._manager.ready(self._reporting.sentence())

    async def _run(self) -> dict[str, Any]:
        loaded = await trio.to_thread.run_sync(self._read)
        report = self._compare(loaded)
        rules = self._rules_for(loaded.config)
        sources = self._make_sources(loaded.config)
        # from here on nothing fails
        changed = report["sources"]
        known = {name: account for name, account in self._parts.http.accounts.items() if name not in changed}
        self._loaded = loaded
        self._tune(loaded.config, known)
        self._parts.servers.update(ticket_servers(loaded.config.source))
        self._parts.slices.renew(sources.values(), loaded.config.limits.lookup_deadline)
        self._parts.tree.guard(rules)
        await self._parts.catalog.renew(list(sources.values()), refresh=loaded.config.catalog.refresh)
        self._sources = sources
        report["fits"] = await self._parts.store.renew(cache_limits(loaded.config))
        _log(report)
        with trio.move_on_after(ANSWERS):
            await self._parts.catalog.refresh()
        report["sources"] = self._sources_now(report.pop("sources"))
        return report

    def _read(self) -> LoadedConfig:
        """Read the file again, or look for one where there was none; blocks."""
        loaded = load_config(self._loaded.path, self._loaded.overrides, os.environ)
        if problems := file_problems(loaded.config):
            raise ConfigError("\n".join(problems))
        return loaded

    def _make_sources(self, config: Config) -> dict[str, Source]:
        """Return the sources by name; one whose table is what it was is the very object that it was."""
        before = {table.name: table for table in self._loaded.config.source}
        fresh = [table for table in config.source if before.get(table.name) != table]
        made = {source.name: source for source in make_sources(self._parts.http, self._parts.tickets, fresh)}
        return {table.name: made.get(table.name) or self._sources[table.name] for table in config.source}

    def _rules_for(self, config: Config) -> dict[str, Rule]:
        """Return who may read what, with the rules of sources that are gone: their files may be open.

        Raises ConfigError where a rule is another than it was: the kernel believes what it was told.
        """
        try:
            rules = rules_of(config.source, os.getuid())
        except ValueError as exc:
            raise ConfigError(f"{self._loaded.path}: {exc}") from exc
        for table in config.source:
            if table.name in self._seen and self._rules.get(table.name) != rules.get(table.name):
                raise ConfigError(
                    f"{self._loaded.path}: source.{table.name}: allow_users and allow_groups can't change while "
                    "mounted; umount and mount, or give the source another name"
                )
        self._seen |= {table.name for table in config.source}
        self._rules |= rules
        return self._rules

    def _tune(self, config: Config, known: Mapping[str, Account]) -> None:
        parts, limits = self._parts, config.limits
        logs.set_level(config.log.level)
        parts.http.renew(http_settings(config, known))
        parts.budget.resize(*budget_of(config))
        warn_of_memory(config)
        parts.archives.renew(limits.read_deadline, kept_memory(memory_of(config)))
        parts.reader.be_patient(limits.read_deadline)
        parts.operations.bound(limits.open_files)
        parts.indexer.renew(index_settings(config))
        parts.sequences.renew(searched(config))
        parts.library.renew(limits.lookup_deadline, parts.indices if config.indices.make else None)
        prefetch = config.prefetch
        parts.siblings.renew(prefetch.rules(), budget=prefetch.siblings, connections=limits.connections)

    # -- what came of it ----------------------------------------------------------------------------------

    def _compare(self, loaded: LoadedConfig) -> dict[str, Any]:
        """Return what is another now, and what stays although the file says something else."""
        was, now = dict(_values(self._loaded)), dict(_values(loaded))
        keys = sorted(was.keys() | now.keys())
        return {
            "config": str(loaded.path) if loaded.path else None,
            "changed": [
                {"key": key, "was": was.get(key), "now": now.get(key)}
                for key in keys
                if is_live(key) and was.get(key) != now.get(key)
            ],
            "kept": [
                {"key": key, "value": self._at_start.get(key), "wanted": now.get(key)}
                for key in keys
                if not is_live(key) and self._at_start.get(key) != now.get(key)
            ],
            "sources": _compare_sources(self._loaded.config, loaded.config),
        }

    def _sources_now(self, changes: Mapping[str, str]) -> list[dict[str, Any]]:
        status = {source.name: source for source in self._parts.catalog.status()}
        rows = [
            {"name": name, "what": changes.get(name, "same"), "genomes": one.genomes, "assets": one.assets}
            | {"error": one.error or ("" if one.last_refresh is not None else "has not answered yet")}
            for name, one in status.items()
        ]
        gone = [name for name, what in changes.items() if what == "removed"]
        return [*rows, *({"name": name, "what": "removed", "genomes": 0, "assets": 0, "error": ""} for name in gone)]


def is_live(key: str) -> bool:
    """Say whether a setting (a dotted key, not of a source) can change while mounted."""
    return key in LIVE or key.startswith("prefetch.rule.")


def _values(loaded: LoadedConfig) -> Iterator[tuple[str, str]]:
    return ((key, value) for key, value, _ in loaded.settings() if not key.startswith("source."))


def _compare_sources(was: Config, now: Config) -> dict[str, str]:
    """Return how each source that is not the same changed, by its name."""
    old, new = ({table.name: table for table in config.source} for config in (was, now))
    changes = {name: "changed" if name in old else "added" for name, table in new.items() if old.get(name) != table}
    return changes | {name: "removed" for name in old if name not in new}


def _log(report: Mapping[str, Any]) -> None:
    changes = [f"{one['key']} = {one['now']} (was {one['was']})" for one in report["changed"]]
    changes += [f"source {name} {what}" for name, what in report["sources"].items()]
    log.info("reloaded %s: %s", report["config"] or "the defaults", "; ".join(changes) or "nothing is another")
    for one in report["kept"]:
        log.warning("%s stays %s until the next mount (the file says %s)", one["key"], one["value"], one["wanted"])
