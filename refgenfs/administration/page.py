"""What the status page is told: how the daemon is now, what it waits for, its catalog, its cache, one asset.

Each question is of a `viewer`: None for who may see all, else a user's number, who sees what the control socket would
tell them (`visitors`): nothing of sources that they may not read, nor of others' requests and accounts.
"""

from __future__ import annotations

import math
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NoReturn

import trio

from refgenfs.administration.assets import asset_row
from refgenfs.administration.health import Health
from refgenfs.administration.holdings import holdings, shelf_list
from refgenfs.administration.metrics import collect
from refgenfs.administration.parts import ALL, Daemon, Sight, short_key, shown_name, version_of
from refgenfs.administration.pulls import Pull
from refgenfs.administration.visitors import sight_of
from refgenfs.control import Caller
from refgenfs.core.catalog import CatalogSnapshot
from refgenfs.core.content import ContentId
from refgenfs.core.errors import CacheError
from refgenfs.core.history import FINE, NAMES, History, Sample
from refgenfs.core.metrics import Reading
from refgenfs.core.verdict import Away, Finding, Pressure, Waiting, findings
from refgenfs.reader.flights import Carrier
from refgenfs.reader.waiting import carrier_words
from refgenfs.tracing import Event
from refgenfs.users import NOBODY, groups_of_user, user_name

PATIENCE = 0.25  # seconds that a request has waited before it is told of: a fetch takes as long
MOST_WAITS = 50  # that are told one by one, those that wait longest
MOST_FLIGHTS = 50  # files on their way, those with most blocks first
MOST_USERS = 50
MOST_VIEWERS = 256
KEEP_GROUPS = 60.0  # seconds that the groups of a viewer are believed
MOST_ERRORS = 50
RECENT = 20  # samples that come along with what is now; who has missed more asks for the history
MOST_LABELS = 1024  # contents whose names are remembered


class PageData:
    """Answers for the page. Lives on the trio thread; nothing is done while nobody asks, but for `record`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._history = History()
        self._labels: OrderedDict[ContentId, tuple[str, str]] = OrderedDict()  # key and name
        self._users: dict[int, str] = {}
        self._groups: dict[int, tuple[float, frozenset[int]]] = {}  # of viewers, and when that was asked
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

    async def now(self, *, viewer: int | None) -> dict[str, Any]:
        """Return how the daemon is."""
        d, sight = self._daemon, await self._sight(viewer)
        self._note_failing()
        status = await Health(d, sight).status({}, _no_progress)
        waiting = [event for _, event in d.fuse.callers.longer(PATIENCE, d.fuse.tracing, sight.uid)]
        flights, flying = await self._flights(sight)
        sources = [self._source(row) for row in status["sources"]]
        kept = ("version", "mountpoint", "started", "uptime", "served", "fetched", "requests", "saved", "hit_ratio")
        return {
            **{name: status[name] for name in (*kept, "open_files", "memory", "cache", "making")},
            "now": time.time(),
            "host": os.uname().nodename,
            "whole": sight.uid is None,
            "catalog": self._catalog_revision(),
            "findings": [asdict(one) for one in self._findings(status, sources, waiting)],
            "sources": sources,
            "waits": self._waits(waiting),
            "waiting": len(waiting),
            "pulls": [self._pull(pull) for pull in d.pulls if sight.shows(pull.source)],
            "flights": flights,
            "flying": flying,
            "blocks": len(d.board),
            "queues": {
                "memory": {"held": d.budget.held, "size": d.budget.size, "waiting": d.budget.waiting},
                "connections": {"size": d.http.connections, "waiting": d.http.queueing},
            },
            "users": await self._shares(status["users"]),
            "errors": self._errors(sight),
            "history": [sample.row() for sample in self._history.fine.since(0)[-RECENT:]],
        }

    async def cache(self, *, viewer: int | None) -> dict[str, Any]:
        """Return what the cache holds, by asset."""
        d, sight = self._daemon, await self._sight(viewer)
        if not d.store.is_ready:
            return {"opening": True, "names": [], "rows": [], "more": 0, "by_source": {}, "error": None}
        held = await trio.to_thread.run_sync(holdings, d.store, d.catalog.snapshot, sight)
        return {"opening": False, **held}

    async def catalog(self, *, viewer: int | None) -> dict[str, Any]:
        """Return every asset that there is."""
        sight = await self._sight(viewer)
        revision, snapshot = self._catalog_revision(), self._daemon.catalog.snapshot
        listed = await trio.to_thread.run_sync(shelf_list, snapshot, sight)
        return {"revision": revision, "mountpoint": self._daemon.mountpoint, **listed}

    async def asset(self, key: str, *, viewer: int | None) -> dict[str, Any]:
        """Return one asset with its files. Its origin is asked for a listing and sizes at most."""
        return await asset_row(self._daemon, key, await self._sight(viewer))

    async def _sight(self, viewer: int | None) -> Sight:
        """Return what a viewer may see now, by the groups that the machine says they have."""
        if viewer is None:
            return ALL
        at, groups = self._groups.get(viewer, (-math.inf, frozenset()))
        if trio.current_time() - at > KEEP_GROUPS:
            groups = await trio.to_thread.run_sync(groups_of_user, viewer)  # which may ask a directory server
            if len(self._groups) >= MOST_VIEWERS:
                self._groups.clear()
            self._groups[viewer] = trio.current_time(), groups
        return await sight_of(self._daemon, Caller(viewer, NOBODY, groups))

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

    def _source(self, row: dict[str, Any]) -> dict[str, Any]:
        row = {**row, "error": row["error"] or ""}
        if row["failing_since"] is None and not row["healthy"]:
            row["failing_since"] = self._failing.get(row["name"])
        return row

    def _waits(self, waiting: list[Event]) -> list[dict[str, Any]]:
        longest = sorted(waiting, key=lambda event: event.seconds, reverse=True)[:MOST_WAITS]
        names = ("pid", "command", "operation", "path", "source", "offset", "size", "seconds", "waits_for", "cause")
        return [{name: getattr(event, name) for name in names} for event in longest]

    async def _flights(self, sight: Sight) -> tuple[list[dict[str, Any]], int]:
        """Return the files and the archives that are on their way, and how many there are of both."""
        d = self._daemon
        under_way = list(d.board.under_way())
        under_way.sort(key=lambda one: one[1], reverse=True)
        chosen = under_way[: 2 * MOST_FLIGHTS]
        await self._learn(content for content, _, _ in chosen)
        files = [row for one in chosen if (row := self._flight(*one)) is not None and sight.shows(row["source"])]
        if sight.hidden:  # what nobody knows the source of may be of one of them
            files = [row for row in files if row["source"]]
        streams = [row for row in self._streams() if sight.shows(row["source"])]
        return streams + files[:MOST_FLIGHTS], len(under_way) + len(streams)

    def _pull(self, pull: Pull) -> dict[str, Any]:
        version = version_of(self._daemon.catalog.snapshot, pull.key)
        return {**asdict(pull), "file": shown_name(version, pull.file)}

    def _flight(self, content: ContentId, blocks: int, carrier: Carrier) -> dict[str, Any] | None:
        d = self._daemon
        key, name = self._labels.get(content, ("", ""))
        version = version_of(d.catalog.snapshot, key)
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
            version = version_of(self._daemon.catalog.snapshot, key)
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

    async def _shares(self, accounts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the accounts of users by their names."""
        shown = accounts[:MOST_USERS]
        unknown = [one["uid"] for one in shown if one["uid"] is not None and one["uid"] not in self._users]
        for uid in unknown[:5]:  # of those whose names have to be asked for, some each time
            self._users[uid] = await trio.to_thread.run_sync(user_name, uid)
        return [{**one, "name": self._name(one["uid"])} for one in shown]

    def _name(self, uid: int | None) -> str:
        return "(others)" if uid is None else self._users.get(uid, str(uid))

    def _errors(self, sight: Sight) -> list[dict[str, Any]]:
        """Return the recent errors, newest first; those that say the same are one, with a number."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        failures = [f for f in self._daemon.http.failures if sight.shows(f.account)]
        rows = [(f.when, f.account, f"{f.url}: {f.what}", f.attempt) for f in failures]
        if sight.uid is None:  # of which file what failed, and so what others read
            rows += [(when, "", text, 0) for when, text in self._daemon.fuse.recent]
        for when, source, what, attempt in sorted(rows):
            row = found.setdefault((source, what), {"what": what, "source": source, "first": when, "count": 0})
            row.update(when=when, attempt=attempt, count=row["count"] + 1)
        return sorted(found.values(), key=lambda row: float(row["when"]), reverse=True)[:MOST_ERRORS]


async def _no_progress(_: dict[str, Any]) -> None:
    return None
