"""What Prometheus is told: every metric with where its values come from. `docs/metrics.md` is made of this list.

Nothing is counted here: each metric reads a counter that its part of the daemon keeps anyway.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from refgenfs import __version__
from refgenfs.administration.parts import Daemon
from refgenfs.core.metrics import Durations, Metric, Reading, Spread, Value
from refgenfs.fetch.routes import RouteStatus
from refgenfs.memory import resident_memory

Values = Iterable[tuple[tuple[str, ...], Value]]
Read = Callable[[Daemon], Values]


@dataclass(frozen=True, slots=True)
class Group:
    """Metrics of one part, for people; each with how it is read."""

    title: str
    metrics: tuple[tuple[Metric, Read], ...]


def collect(daemon: Daemon) -> tuple[Reading, ...]:
    """Return all metrics as they are now. On the trio thread; never awaits."""
    return tuple(
        Reading(metric, tuple(sorted(read(daemon), key=lambda row: row[0])))
        for group in GROUPS
        for metric, read in group.metrics
    )


# -- how values are read ----------------------------------------------------------------------------------


def _one(read: Callable[[Daemon], Value]) -> Read:
    """Return what reads a metric without labels."""
    return lambda daemon: [((), read(daemon))]


def _by_source(read: Callable[[Daemon], Mapping[str, int]]) -> Read:
    """Return what reads a count of each source: all that are configured, and what else has been counted."""

    def values(daemon: Daemon) -> Values:
        counts = dict(read(daemon))
        names = {status.name for status in daemon.catalog.status()} | counts.keys()
        return [((name,), counts.get(name, 0)) for name in names]

    return values


def _spread(read: Callable[[Daemon], Durations]) -> Read:
    return lambda daemon: [((), Spread.of(read(daemon)))]


def _spreads(read: Callable[[Daemon], Mapping[str, Durations]]) -> Read:
    return lambda daemon: [((name,), Spread.of(durations)) for name, durations in list(read(daemon).items())]


def _reads(daemon: Daemon) -> Values:
    counts = daemon.reader.counts
    yield ("resident",), counts.reads - counts.awaited
    yield ("waited",), counts.awaited


def _queues(daemon: Daemon) -> Values:
    yield ("connection",), Spread.of(daemon.http.queued)
    yield ("memory",), Spread.of(daemon.budget.queued)


def _health(daemon: Daemon) -> Values:
    for status in daemon.catalog.status():
        yield (status.name,), int(status.healthy and status.name not in daemon.http.failing)


def _routes(read: Callable[[RouteStatus], int]) -> Read:
    """Return what reads a number of each proxy and server of each source."""

    def values(daemon: Daemon) -> Values:
        for status in daemon.catalog.status():
            for route in daemon.http.routes(status.name):
                yield (status.name, route.kind, route.url), read(route)

    return values


def _refreshed(daemon: Daemon) -> Values:
    for status in daemon.catalog.status():
        if status.last_refresh is not None:
            yield (status.name,), float(status.last_refresh)


def _assets(daemon: Daemon) -> Values:
    for status in daemon.catalog.status():
        yield (status.name,), status.assets


def _genomes(daemon: Daemon) -> int:
    return len({id(genome) for genome in daemon.catalog.snapshot.genomes.values()})


def _processor(_: Daemon) -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _open_descriptors(_: Daemon) -> Values:
    try:
        yield (), len(os.listdir("/proc/self/fd")) - 1  # less the folder itself
    except OSError:
        return


def _max_descriptors(_: Daemon) -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


# -- the metrics ------------------------------------------------------------------------------------------

Row = tuple[Metric, Read]


def _counter(name: str, read: Read, text: str, *labels: str) -> Row:
    return Metric(name, "counter", text, labels), read


def _gauge(name: str, read: Read, text: str, *labels: str) -> Row:
    return Metric(name, "gauge", text, labels), read


def _histogram(name: str, read: Read, text: str, *labels: str) -> Row:
    return Metric(name, "histogram", text, labels), read


_REQUESTS = Group(
    "Requests of the kernel",
    (
        _histogram(
            "refgenfs_request_duration_seconds",
            _spreads(lambda d: d.fuse.timings),
            "Requests of the kernel and how long their answers took, by operation. What the kernel answers out of "
            "its own pages never gets here.",
            "operation",
        ),
        _counter(
            "refgenfs_request_errors_total",
            lambda d: list(d.fuse.errors.items()),
            "Requests of the kernel that were answered with an error, by operation and by the error's class. "
            "NotInCatalog (no such file) is a user's every day; Unexpected is a defect.",
            "operation",
            "kind",
        ),
        _gauge(
            "refgenfs_requests_waiting", _one(lambda d: d.fuse.callers.count), "Requests of the kernel that wait now."
        ),
        _gauge("refgenfs_open_files", _one(lambda d: d.fuse.open_files), "Files that are open."),
    ),
)
_READS = Group(
    "Reads",
    (
        _counter(
            "refgenfs_reads_total",
            _reads,
            "Reads of files that were answered: at once, out of what was resident, or after a wait for bytes. The "
            "share of the former is the hit ratio.",
            "result",
        ),
        _histogram(
            "refgenfs_read_wait_seconds",
            _spread(lambda d: d.reader.counts.waits),
            "How long reads waited for bytes that were not resident, failed ones too.",
        ),
        _counter(
            "refgenfs_served_bytes_total",
            _by_source(lambda d: d.reader.counts.by_source),
            "Bytes given to readers, by source.",
            "source",
        ),
        _counter(
            "refgenfs_uncached_bytes_total",
            _one(lambda d: d.reader.counts.uncached),
            "Bytes that were asked for and could not be stored, for want of room or of a disk.",
        ),
    ),
)
_ORIGINS = Group(
    "Origins",
    (
        _counter(
            "refgenfs_fetched_bytes_total",
            _by_source(lambda d: d.http.fetched),
            "Bytes of bodies that origins sent, as they came over the wire, by source.",
            "source",
        ),
        _counter(
            "refgenfs_origin_requests_total",
            _by_source(lambda d: d.http.requests),
            "Requests to origins, by source.",
            "source",
        ),
        _histogram(
            "refgenfs_origin_answer_seconds",
            _spreads(lambda d: d.http.answered),
            "From a request to the head of its answer, with connecting, by source; requests that got one.",
            "source",
        ),
        _counter(
            "refgenfs_origin_failures_total",
            lambda d: list(d.http.failed.items()),
            "Requests to origins that failed, by source and by the error's class.",
            "source",
            "kind",
        ),
        _counter(
            "refgenfs_origin_retries_total",
            _by_source(lambda d: d.http.retried),
            "Requests that were made because others of the same call had failed, by source.",
            "source",
        ),
        _gauge(
            "refgenfs_origin_up",
            _health,
            "1 where a source answers, 0 where its catalog or its files can't be had at present.",
            "source",
        ),
        _counter(
            "refgenfs_route_requests_total",
            _routes(lambda route: route.requests),
            "Requests by each proxy and to each server (url and mirrors) of a source; proxies that the environment "
            "names are not told apart.",
            "source",
            "kind",
            "route",
        ),
        _gauge(
            "refgenfs_route_up",
            _routes(lambda route: int(route.up)),
            "1 where a proxy or a server of a source did not fail when it was asked last, 0 where it did, and is "
            "asked after the others.",
            "source",
            "kind",
            "route",
        ),
    ),
)
_FLIGHTS = Group(
    "On its way",
    (
        _gauge("refgenfs_flights", _one(lambda d: len(d.board)), "Blocks (64 KiB) that are on their way."),
        _histogram(
            "refgenfs_queue_seconds",
            _queues,
            "How long fetches queued that had to: for a connection or for memory (limits.memory).",
            "queue",
        ),
        _gauge("refgenfs_memory_waiting", _one(lambda d: d.budget.waiting), "Fetches that wait for memory now."),
        _gauge("refgenfs_memory_held_bytes", _one(lambda d: d.budget.held), "Memory that bytes on their way hold."),
        _gauge(
            "refgenfs_memory_limit_bytes",
            _one(lambda d: d.budget.size),
            "The most memory that bytes on their way may hold.",
        ),
    ),
)
_CACHE = Group(
    "Cache",
    (
        _gauge("refgenfs_cache_bytes", _one(lambda d: d.store.used), "Bytes that the cache takes, with its books."),
        _gauge(
            "refgenfs_cache_quota_bytes",
            _one(lambda d: d.store.quota),
            "The most that the cache may take (cache.size).",
        ),
        _gauge("refgenfs_cache_pinned_bytes", _one(lambda d: d.store.pinned), "Resident bytes that are pinned."),
        _gauge("refgenfs_cache_files", _one(lambda d: d.store.contents), "Files of which something is resident."),
        _counter(
            "refgenfs_cache_evictions_total",
            _one(lambda d: d.store.evictions),
            "Segments of files that made room for others.",
        ),
        _gauge(
            "refgenfs_cache_disk_free_bytes",
            _one(lambda d: d.store.free),
            "Free space on the file system of the cache.",
        ),
        _gauge(
            "refgenfs_cache_min_free_bytes",
            _one(lambda d: d.store.min_free),
            "Space that is left free there (cache.min_free).",
        ),
        _counter(
            "refgenfs_cache_disk_errors_total",
            _one(lambda d: d.store.errors.count),
            "What the disk of the cache refused.",
        ),
        _gauge(
            "refgenfs_cache_bypassed",
            _one(lambda d: int(d.store.uncached)),
            "1 while the disk refuses, and reads go on without it.",
        ),
    ),
)
_CATALOG = Group(
    "Catalog",
    (
        _gauge("refgenfs_genomes", _one(_genomes), "Genomes in the tree."),
        _gauge("refgenfs_assets", _assets, "Assets (tags) that a source has.", "source"),
        _gauge(
            "refgenfs_catalog_refresh_timestamp_seconds",
            _refreshed,
            "When a source last told what it has, in Unix seconds.",
            "source",
        ),
    ),
)
_PROCESS = Group(
    "The process",
    (
        _gauge("refgenfs_build_info", lambda _: [((__version__,), 1)], "1; its label is the version.", "version"),
        _gauge("process_start_time_seconds", _one(lambda d: d.started), "When the daemon started, in Unix seconds."),
        _counter("process_cpu_seconds_total", _one(_processor), "Processor time, user and system."),
        _gauge("process_resident_memory_bytes", _one(lambda _: resident_memory()), "Resident memory."),
        _gauge("process_open_fds", _open_descriptors, "Open file descriptors."),
        _gauge("process_max_fds", _one(_max_descriptors), "The most file descriptors that it may have open."),
    ),
)
GROUPS = (_REQUESTS, _READS, _ORIGINS, _FLIGHTS, _CACHE, _CATALOG, _PROCESS)


def metrics() -> Iterator[Metric]:
    """Yield every metric."""
    return (metric for group in GROUPS for metric, _ in group.metrics)
