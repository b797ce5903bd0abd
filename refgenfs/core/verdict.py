"""Why reads are slow, in words: what they wait for, whose fault that is, and what can be done. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from refgenfs.core.units import counted, human_bytes

Cause = Literal["origin", "memory", "disk", "made", "name"]
Level = Literal["good", "note", "warn", "bad"]

PATIENCE = 1.0  # seconds: a wait that is longer is worth a look
_FULL = 0.9  # of the cache that is pinned: the rest is little room for anything else


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits: for what, from which source ("" where that is not known), and how long so far."""

    cause: Cause
    source: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Away:
    """A source that fails: since when, in Unix seconds, and why."""

    name: str
    since: float | None
    why: str


@dataclass(frozen=True, slots=True)
class Pressure:
    """What the daemon knows of its queues, its disk and its sources at one moment."""

    waiting: Sequence[Waiting] = ()
    away: Sequence[Away] = ()
    connections_waiting: int = 0  # requests that wait for a connection to their host
    connections: int = 0  # limits.connections
    memory_waiting: int = 0  # fetches that wait for memory
    memory: int = 0  # limits.memory
    disk_error: str = ""
    bypassed: bool = False  # the cache's disk refuses
    opening: bool = False  # the cache is still being looked through
    pinned: int = 0
    quota: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know, and what it means or what can be done about it.

    `about` is the same for what is said again of the same thing; `since` is in Unix seconds.
    """

    level: Level
    about: str
    text: str
    hint: str = ""
    since: float | None = None


def findings(pressure: Pressure) -> list[Finding]:
    """Return what there is to say, the gravest first; one that all is well where nothing is."""
    order: dict[str, int] = {"bad": 0, "warn": 1, "note": 2}
    found = sorted(_all(pressure), key=lambda one: order[one.level])
    return found or [Finding("good", "all", "Nothing waits. All sources answer.")]


def _all(p: Pressure) -> Iterator[Finding]:
    for away in p.away:
        why = f": {away.why}" if away.why else ""
        yield Finding(
            "bad",
            f"source {away.name}",
            f"Source {away.name} does not answer{why}",
            "What is resident of it is read as ever, and its names stay listed; other reads wait and then fail.",
            away.since,
        )
    if p.bypassed:
        why = f": {p.disk_error}" if p.disk_error else ""
        yield Finding(
            "bad", "disk", f"The cache's disk refuses{why}", "Reads go on without the cache. Look at the disk."
        )
    yield from _waits(p)
    if p.opening:
        yield Finding(
            "note",
            "opening",
            "The cache is still being looked through",
            "What is in it reads as ever; nothing is stored until that is done.",
        )
    if p.quota and p.pinned > _FULL * p.quota:
        yield Finding(
            "warn",
            "pinned",
            f"{human_bytes(p.pinned)} of the cache's {human_bytes(p.quota)} are pinned",
            "What else is read finds little room: unpin something (refgenfs unpin), or raise cache.size.",
        )


def _waits(p: Pressure) -> Iterator[Finding]:
    longest: dict[tuple[Cause, str], float] = {}
    for one in p.waiting:
        longest[one.cause, one.source] = max(one.seconds, longest.get((one.cause, one.source), 0.0))
    for (cause, source), number in Counter((one.cause, one.source) for one in p.waiting).most_common():
        seconds = longest[cause, source]
        yield Finding(
            "warn" if seconds >= PATIENCE else "note",
            f"waits {cause} {source}",
            f"{counted(number, 'request')} {'waits' if number == 1 else 'wait'} for {_what(cause, source)}, "
            f"{seconds:.1f} s so far",
            _hint(cause, source, p),
        )
    if p.connections_waiting:
        yield Finding(
            "note",
            "connections",
            f"{_fetches(p.connections_waiting)} for a connection to an origin",
            f"limits.connections is {p.connections}; more help where the origin is far and the network is not full.",
        )
    if p.memory_waiting and not any(one.cause == "memory" for one in p.waiting):
        yield Finding("note", "memory", f"{_fetches(p.memory_waiting)} for memory", _memory_hint(p))


def _fetches(number: int) -> str:
    return "1 fetch queues" if number == 1 else f"{number:,} fetches queue"


def _what(cause: Cause, source: str) -> str:
    match cause:
        case "origin":
            return f"bytes from {source or 'an origin'}"
        case "made":
            return "what is made of other files"
        case "disk":
            return "the cache's disk"
        case "name":
            return "a name, a size or a listing"
        case "memory":
            return "memory"


def _hint(cause: Cause, source: str, p: Pressure) -> str:
    match cause:
        case "memory":
            return _memory_hint(p)
        case "disk":
            return "The disk of cache.dir is slow: it is busy, or it is no local disk."
        case "made":
            return "It is made by reading those, which may have to come first."
        case "name":
            return "An origin is asked for it, or its archive has not come so far."
        case "origin":
            if source in {away.name for away in p.away}:
                return "That source does not answer at present."
            if p.connections_waiting:
                return "The origin, or the network to it, is what is waited for; some wait for a connection first."
            return "They are on their way: the origin, or the network to it, is what is waited for."


def _memory_hint(p: Pressure) -> str:
    return f"limits.memory is {human_bytes(p.memory)}: all of it holds bytes that are on their way."
