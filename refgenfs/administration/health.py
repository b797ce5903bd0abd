"""How the daemon and its cache are."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

from refgenfs import __version__
from refgenfs.administration.healing import Healing, Loss, losses_of
from refgenfs.administration.metrics import collect
from refgenfs.administration.parts import (
    ALL,
    Daemon,
    Sight,
    content_labels,
    let_others_in,
    repeating,
    shown_name,
    version_of,
)
from refgenfs.cache.store import Store
from refgenfs.catalog import SourceStatus
from refgenfs.control import Operation, Progress
from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import BLOCK
from refgenfs.core.metrics import Reading, exposition
from refgenfs.core.usage import Usage
from refgenfs.fetch.attempts import FetchFailure
from refgenfs.made.jobs import Job
from refgenfs.memory import resident_memory
from refgenfs.reader.indexes import INDEX_LABEL

SHOWN_USERS = 100  # those that were served most


class Health:
    """The operations `status`, `metrics`, `cache_*`, `reload` and `stop`, for who has this sight."""

    def __init__(self, daemon: Daemon, sight: Sight = ALL) -> None:
        self._daemon = daemon
        self._sight = sight

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {
            "status": self.status,
            "metrics": self.metrics,
            "cache_info": self.cache_info,
            "cache_verify": self.cache_verify,
            "cache_clear": self.cache_clear,
            "reload": self.reload,
            "stop": self.stop,
        }

    async def status(self, _: dict[str, Any], __: Progress) -> dict[str, Any]:
        """Return how the daemon is."""
        d = self._daemon
        store, counts = d.store, d.reader.counts
        fetched = sum(d.http.fetched.values())
        failures = [(f.when, f"{f.url}: {f.what}") for f in d.http.failures if self._sight.shows(f.account)]
        if self._sight.uid is None:  # of which file what failed, and so what others read
            failures += d.fuse.recent
        warm = counts.reads - counts.awaited
        return {
            "version": __version__,
            "pid": os.getpid(),
            "mountpoint": d.mountpoint,
            "config": d.config,
            "started": d.started,
            "uptime": time.time() - d.started,
            "state": "mounted",
            "cache": _cache_status(store),
            "sources": [
                self._source_status(source) for source in d.catalog.status() if self._sight.shows(source.name)
            ],
            "served": counts.served,
            "fetched": fetched,
            "requests": sum(d.http.requests.values()),
            "saved": max(0, counts.served - fetched),
            "hit_ratio": warm / counts.reads if counts.reads else None,
            "open_files": d.fuse.open_files,
            "flights": len(d.board),
            "making": [_job_row(job) for job in d.indexer.jobs if self._sight.shows(job.data.version.source)],
            "errors": [{"when": when, "what": what} for when, what in sorted(failures)[-20:]],
            "memory": resident_memory(),
            "web": d.web,
            "users": [{"uid": uid, **asdict(usage)} for uid, usage in islice(self._users(), SHOWN_USERS)],
        }

    def _users(self) -> Iterator[tuple[int | None, Usage]]:
        """Yield the accounts that may be seen."""
        only = self._sight.uid
        return (row for row in self._daemon.fuse.users if only is None or row[0] == only)

    def _source_status(self, source: SourceStatus) -> dict[str, Any]:
        http = self._daemon.http
        served = self._daemon.reader.counts.by_source.get(source.name, 0)
        fetched = http.fetched.get(source.name, 0)
        return {
            **_source_status(source, http.failing.get(source.name)),
            "served": served,
            "fetched": fetched,
            "requests": http.requests.get(source.name, 0),
            "saved": max(0, served - fetched),
            "routes": [asdict(route) for route in http.routes(source.name)],
        }

    async def metrics(self, _: dict[str, Any], __: Progress) -> dict[str, Any]:
        """Return the metrics as Prometheus reads them."""
        return {"text": exposition(_shown(reading, self._sight) for reading in collect(self._daemon))}

    async def cache_info(self, _: dict[str, Any], __: Progress) -> dict[str, Any]:
        """Return what the cache holds."""
        store = self._daemon.store
        await store.ready()
        labels = await content_labels(self._daemon)
        rows = []
        for number, summary in enumerate(store.summary()):
            await let_others_in(number)
            version = labels.get(summary.cid, (None, ""))[0]
            if self._sight.hidden and (version is None or not self._sight.shows(version.source)):
                continue  # what is in no catalog any more may have been of any source
            key, name = self._name(*labels.get(summary.cid, (None, summary.cid)))
            rows.append(
                {
                    "key": key,
                    "name": name,
                    "size": summary.size,
                    "resident": summary.resident,
                    "pinned": summary.pinned,
                    "pinned_by": store.pins.holders(summary.cid),
                    "last_used": summary.last_used,
                }
            )
        return {**_cache_status(store), "contents": rows}

    async def cache_verify(self, _: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Check every resident block against its checksum; what is damaged is dropped, and fetched again."""
        steps: dict[str, Any] = {"done": 0, "total": 0}

        def note(done: int, total: int) -> None:
            steps.update(done=done, total=total)

        store = self._daemon.store
        await store.ready()
        labels = await content_labels(self._daemon)
        sizes = {row.cid: row.size for row in store.summary()}
        async with repeating(lambda: progress(dict(steps))):
            report = await store.verify(note)
        losses = losses_of(report.damaged, sizes, labels)
        if losses:
            healing = Healing(self._daemon, losses)
            async with repeating(lambda: progress({"key": "fetch", "done": healing.done, "total": healing.total})):
                await healing.run()
        damaged = [self._damage_row(loss, index) for loss in losses for index in sorted(loss.blocks)]
        healed = sum(row["healed"] for row in damaged)
        return {"checked": report.blocks, "bytes": report.nbytes, "damaged": damaged, "healed": healed}

    def _name(self, version: AssetVersion | None, name: str) -> tuple[str | None, str]:
        """Return the key and the name that people know a content by; a seek index goes by its archive's key."""
        if version is None and name.startswith(INDEX_LABEL):
            version = version_of(self._daemon.catalog.snapshot, name.removeprefix(INDEX_LABEL))
            name = name if version is None else f"{INDEX_LABEL}the archive"
        return str(version.key) if version else None, shown_name(version, name)

    def _damage_row(self, loss: Loss, index: int) -> dict[str, Any]:
        key, name = self._name(loss.version, loss.name)
        return {
            "key": key,
            "name": name,
            "offset": index * BLOCK,
            "block": index,
            "path": str(self._daemon.store.directory / "contents" / loss.content),
            "healed": not loss.error,
            "error": loss.error or None,
        }

    async def cache_clear(self, _: dict[str, Any], __: Progress) -> dict[str, Any]:
        """Drop everything that is resident but what is pinned."""
        await self._daemon.store.ready()
        return {"freed": self._daemon.store.clear()}

    async def reload(self, _: dict[str, Any], __: Progress) -> dict[str, Any]:
        """Take what the configuration's file says now, and ask all sources for their catalogs."""
        return await self._daemon.reload()

    async def stop(self, _: dict[str, Any], __: Progress) -> dict[str, Any]:
        """Unmount and end."""
        self._daemon.stop()
        return {}


def _shown(reading: Reading, sight: Sight) -> Reading:
    """Return a metric's values but for those of sources that are hidden."""
    if "source" not in reading.metric.labels:
        return reading
    at = reading.metric.labels.index("source")
    return Reading(reading.metric, tuple(row for row in reading.values if sight.shows(row[0][at])))


def _source_status(source: SourceStatus, failure: FetchFailure | None) -> dict[str, Any]:
    """Return how a source is; one whose catalog came but whose files do not is failing, too."""
    age = None if source.last_refresh is None else max(0.0, time.time() - source.last_refresh)
    error = source.error
    if failure is not None and not error:
        error = f"{failure.url}: {failure.what}"
    return {**asdict(source), "healthy": source.healthy and failure is None, "error": error, "age": age}


def _job_row(job: Job) -> dict[str, Any]:
    return {
        "key": str(job.data.version.key),
        "files": [shown_name(job.data.version, name) for name in job.names],
        "done": job.done,
        "total": job.total,
        "seconds": job.age,
    }


def _cache_status(store: Store) -> dict[str, Any]:
    return {
        "dir": str(store.directory),
        "size": store.quota,
        "used": store.used,
        "free": store.free,
        "min_free": store.min_free,
        "contents": store.contents,
        "evictions": store.evictions,
        "pinned": store.pinned,
        "uncached": store.uncached,
        "opening": not store.is_ready,
        "error": store.errors.last or None,
    }
