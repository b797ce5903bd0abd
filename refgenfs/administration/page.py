"""What the status page is told: how the daemon is now, what it waits for, its catalog, its cache, one asset.

Whoever may see all (`whole`) sees what root sees. The others see what everybody on the machine may know: nothing of
users and of paths, and of sources that are guarded (`allow_users`, `allow_groups`) no more than their names.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any, NoReturn

import trio

from refgenfs.administration.assets import asset_row
from refgenfs.administration.health import Health
from refgenfs.administration.holdings import holdings, shelf_list
from refgenfs.administration.metrics import collect
from refgenfs.administration.parts import Daemon, short_key, shown_name, version_of
from refgenfs.administration.pulls import Pull
from refgenfs.core.catalog import CatalogSnapshot
from refgenfs.core.content import ContentId
from refgenfs.core.errors import CacheError
from refgenfs.core.history import FINE, NAMES, History, Sample
from refgenfs.core.metrics import Reading
from refgenfs.core.verdict import Away, Finding, Pressure, Waiting, findings
from refgenfs.reader.flights import Carrier
from refgenfs.reader.waiting import carrier_words
from refgenfs.tracing import Event
from refgenfs.users import user_name

PATIENCE = 0.25  # seconds that a request has waited before it is told of: a fetch takes as long
MOST_WAITS = 50  # that are told one by one, those that wait longest
MOST_FLIGHTS = 50  # files on their way, those with most blocks first
MOST_USERS = 50
MOST_ERRORS = 50
RECENT = 20  # samples that come along with what is now; who has missed more asks for the history
MOST_LABELS = 1024  # contents whose names are remembered


class PageData:
    """Answers for the page. Lives on the trio thread; nothing is done while nobody asks, but for `record`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._health = Health(daemon)
        self._history = History()
        self._labels: OrderedDict[ContentId, tuple[str, str]] = OrderedDict()  # key and name
        self._users: dict[int, str] = {}
        self._snapshot: CatalogSnapshot | None = None
        self._revision = 0
        self._failing: dict[str, float] = {}  # since when, in Unix seconds
        daemon.fuse.tracing.look_at(daemon.board)

    async def record(self) -> NoReturn:
        """Note the counters once a second, until cancelled. It takes some 10 µs."""
        wall, began = time.time(), trio.current_time()
        while True:
            d = self._daemon
            when = wall + trio.current_time() - began  # goes on evenly, whatever happens to the clock
            counts = d.reader.counts
            self._history.note(Sample(when, counts.served, sum(d.http.fetched.values()), counts.waits.total))
            self._note_failing()
            await trio.sleep(FINE)

    def _note_failing(self) -> None:
        """Remember since when the files of a source can't be had: of failures in a row only the last is known."""
        failing = self._daemon.http.failing
        self._failing = {name: self._failing.get(name, one.when) for name, one in list(failing.items())}

    # -- the answers --------------------------------------------------------------------------------------

    def metrics(self) -> tuple[Reading, ...]:
        """Return what Prometheus is told."""
        return collect(self._daemon)

    async def history(self) -> dict[str, Any]:
        """Return the counters over time: every second of the last minutes, every half minute of a day."""
        fine, coarse = ([sample.row() for sample in ring.since(0)] for ring in self._history.rings)
        return {"started": self._daemon.started, "names": NAMES, "fine": fine, "coarse": coarse}

    async def now(self, *, whole: bool) -> dict[str, Any]:
        """Return how the daemon is."""
        d, hidden = self._daemon, self._hidden(whole=whole)
        self._note_failing()
        status = await self._health.status({}, _no_progress)
        waiting = [event for _, event in d.fuse.waiting(PATIENCE)]
        flights, flying = await self._flights(hidden)
        sources = [self._source(row, hidden) for row in status["sources"]]
        fine = self._history.fine
        kept = ("version", "mountpoint", "started", "uptime", "served", "fetched", "requests", "saved", "hit_ratio")
        return {
            **{name: status[name] for name in (*kept, "open_files", "memory")},
            "now": time.time(),
            "host": os.uname().nodename,
            "whole": whole,
            "guarded": len(hidden),
            "catalog": self._catalog_revision(),
            "findings": [asdict(one) for one in self._findings(status, sources, waiting)],
            "cache": status["cache"] if whole else {**status["cache"], "dir": None, "error": None},
            "sources": sources,
            "waits": self._waits(waiting) if whole else [],
            "waiting": len(waiting),
            "pulls": [self._pull(pull) for pull in d.pulls if pull.source not in hidden],
            "flights": flights,
            "flying": flying,
            "blocks": len(d.board),
            "making": status["making"] if whole else [],
            "queues": {
                "memory": {"held": d.budget.held, "size": d.budget.size, "waiting": d.budget.waiting},
                "connections": {"size": d.http.connections, "waiting": d.http.queueing},
            },
            "users": await self._shares() if whole else [],
            "errors": self._errors(hidden, whole=whole),
            "history": [sample.row() for sample in fine.since(0)[-RECENT:]],
        }

    async def cache(self, *, whole: bool) -> dict[str, Any]:
        """Return what the cache holds, by asset."""
        d = self._daemon
        hidden = None if whole else self._hidden(whole=False)
        if not d.store.is_ready:
            return {"opening": True, **holdings_of_nothing()}
        held = await trio.to_thread.run_sync(holdings, d.store, d.catalog.snapshot, hidden)
        return {"opening": False, **held}

    async def catalog(self, *, whole: bool) -> dict[str, Any]:
        """Return every asset that there is."""
        revision, snapshot = self._catalog_revision(), self._daemon.catalog.snapshot
        listed = await trio.to_thread.run_sync(shelf_list, snapshot, self._hidden(whole=whole))
        return {"revision": revision, "mountpoint": self._daemon.mountpoint, **listed}

    async def asset(self, key: str, *, whole: bool) -> dict[str, Any]:
        """Return one asset with its files. Its origin is asked for a listing at most, and never for an archive."""
        return await asset_row(self._daemon, key, self._hidden(whole=whole))

    def _hidden(self, *, whole: bool) -> Collection[str]:
        return () if whole else frozenset(self._daemon.guarded())

    def _catalog_revision(self) -> str:
        if self._snapshot is not self._daemon.catalog.snapshot:
            self._snapshot = self._daemon.catalog.snapshot
            self._revision += 1
        return f"{self._daemon.started:.3f}-{self._revision}"

    # -- what there is to say -----------------------------------------------------------------------------

    def _findings(self, status: dict[str, Any], sources: list[dict[str, Any]], waiting: list[Event]) -> list[Finding]:
        d = self._daemon
        away = [Away(one["name"], one["failing_since"], one["error"]) for one in sources if not one["healthy"]]
        return findings(
            Pressure(
                waiting=[Waiting(one.cause, one.source, one.seconds) for one in waiting],
                away=away,
                connections_waiting=d.http.queueing,
                connections=d.http.connections,
                memory_waiting=d.budget.waiting,
                memory=d.budget.size,
                disk_error=d.store.errors.last or "",
                bypassed=d.store.uncached,
                opening=not d.store.is_ready,
                pinned=status["cache"]["pinned"],
                quota=status["cache"]["size"],
            )
        )

    def _source(self, row: dict[str, Any], hidden: Collection[str]) -> dict[str, Any]:
        """Return how a source is; of one that is hidden, no more than that."""
        row = {**row, "error": row["error"] or ""}
        if row["failing_since"] is None and not row["healthy"]:
            row["failing_since"] = self._failing.get(row["name"])
        return {**row, "url": "", "error": ""} if row["name"] in hidden else row

    def _waits(self, waiting: list[Event]) -> list[dict[str, Any]]:
        longest = sorted(waiting, key=lambda event: event.seconds, reverse=True)[:MOST_WAITS]
        names = ("pid", "command", "operation", "path", "source", "offset", "size", "seconds", "waits_for", "cause")
        return [{name: getattr(event, name) for name in names} for event in longest]

    async def _flights(self, hidden: Collection[str]) -> tuple[list[dict[str, Any]], int]:
        """Return the files and the archives that are on their way, and how many there are of both."""
        d = self._daemon
        under_way = list(d.board.under_way())
        under_way.sort(key=lambda one: one[1], reverse=True)
        chosen = under_way[: 2 * MOST_FLIGHTS]
        await self._learn(content for content, _, _ in chosen)
        files = [row for one in chosen if (row := self._flight(*one)) is not None and row["source"] not in hidden]
        if hidden:  # what nobody knows the source of may be of one of them
            files = [row for row in files if row["source"]]
        streams = [row for row in self._streams() if row["source"] not in hidden]
        return streams + files[:MOST_FLIGHTS], len(under_way) + len(streams)

    def _pull(self, pull: Pull) -> dict[str, Any]:
        version = version_of(self._daemon, pull.key)
        return {**asdict(pull), "file": shown_name(version, pull.file)}

    def _flight(self, content: ContentId, blocks: int, carrier: Carrier) -> dict[str, Any] | None:
        d = self._daemon
        key, name = self._labels.get(content, ("", ""))
        version = version_of(d, key)
        entry, opened = d.store.peek(content), d.store.open_content(content)
        size = opened.size if opened is not None else entry.size if entry is not None else None
        return {
            "id": content,
            "key": short_key(d.catalog.snapshot, version) if version is not None else key,
            "name": shown_name(version, name),
            "source": version.source if version is not None else "",
            "done": d.store.resident_bytes(content),
            "size": size,
            "blocks": blocks,
            "how": carrier_words(carrier),
        }

    def _streams(self) -> Iterator[dict[str, Any]]:
        for archive in self._daemon.archives.streaming():
            whole = max((member.offset + member.size for member in archive.table.members.values()), default=0)
            key = str(archive.ref.key)
            version = version_of(self._daemon, key)
            shown = short_key(self._daemon.catalog.snapshot, version) if version is not None else key
            for number, stream in enumerate(archive.streams):
                yield {
                    "id": f"{archive.ref.source}/{archive.ref.asset_digest}/{number}",
                    "key": shown,
                    "name": "the archive, unpacked as it comes",
                    "source": archive.ref.source,
                    "done": stream.position,
                    "size": whole if archive.table.complete and whole else None,
                    "blocks": 0,
                    "how": "stream",
                }

    async def _learn(self, contents: Iterator[ContentId]) -> None:
        """See that the names of these contents are known, as far as the ledger has them."""
        unknown = [content for content in contents if content not in self._labels]
        if not unknown:
            return
        try:
            notes = await trio.to_thread.run_sync(lambda: [self._daemon.store.note(one) for one in unknown])
        except CacheError:
            return
        for content, note in zip(unknown, notes, strict=True):
            if isinstance(note, dict):
                self._labels[content] = str(note.get("key")), str(note.get("name"))
        while len(self._labels) > MOST_LABELS:
            self._labels.popitem(last=False)

    async def _shares(self) -> list[dict[str, Any]]:
        shares = list(islice(self._daemon.fuse.users, MOST_USERS))
        unknown = [uid for uid, _ in shares if uid is not None and uid not in self._users]
        for uid in unknown[:5]:  # of those whose names have to be asked for, some each time
            self._users[uid] = await trio.to_thread.run_sync(user_name, uid)
        return [
            {"name": "(others)" if uid is None else self._users.get(uid, str(uid)), **asdict(usage)}
            for uid, usage in shares
        ]

    def _errors(self, hidden: Collection[str], *, whole: bool) -> list[dict[str, Any]]:
        """Return the recent errors, newest first; those that say the same are one, with a number."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        failures = [f for f in self._daemon.http.failures if f.account not in hidden]
        rows = [(f.when, f.account, f"{f.url}: {f.what}", f.attempt) for f in failures]
        if whole:
            rows += [(when, "", text, 0) for when, text in self._daemon.fuse.recent]
        for when, source, what, attempt in sorted(rows):
            row = found.setdefault((source, what), {"what": what, "source": source, "first": when, "count": 0})
            row.update(when=when, attempt=attempt, count=row["count"] + 1)
        return sorted(found.values(), key=lambda row: float(row["when"]), reverse=True)[:MOST_ERRORS]


def holdings_of_nothing() -> dict[str, Any]:
    """Return what `holdings` says of an empty cache."""
    return {"names": [], "rows": [], "more": 0, "by_source": {}, "error": None}


async def _no_progress(_: dict[str, Any]) -> None:
    return None
