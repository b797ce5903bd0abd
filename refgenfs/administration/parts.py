"""What the operations share: the daemon's parts, keys out of requests, and the names of contents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from refgenfs.administration.pulls import Pulls
from refgenfs.cache.ledger import Ledger
from refgenfs.cache.store import Store
from refgenfs.catalog import Catalog
from refgenfs.core.access import Rule
from refgenfs.core.catalog import AssetVersion, CatalogSnapshot
from refgenfs.core.content import ContentId
from refgenfs.core.errors import ControlError, KeyFormatError, NotAllowed, NotInCatalog
from refgenfs.core.indices import shown_index
from refgenfs.core.keys import AssetKey
from refgenfs.core.layout import DERIVED
from refgenfs.fetch.http import Http
from refgenfs.fuse import Operations
from refgenfs.library import Library
from refgenfs.made.indexer import Indexer
from refgenfs.reader.archives import Archives
from refgenfs.reader.budget import Budget
from refgenfs.reader.flights import FlightBoard
from refgenfs.reader.reader import Reader

PROGRESS_EVERY = 0.25  # seconds


@dataclass(frozen=True, slots=True)
class Daemon:
    """The parts of a daemon that operations ask."""

    mountpoint: str
    started: float  # Unix seconds
    catalog: Catalog
    library: Library
    store: Store
    reader: Reader
    board: FlightBoard
    http: Http
    fuse: Operations
    stop: Callable[[], None]
    forget_pages: Callable[[ContentId], Awaitable[None]]  # that the kernel has of a content
    reload: Callable[[], Awaitable[dict[str, Any]]]  # take what the configuration's file says now
    config: str | None  # the configuration's file
    indexer: Indexer
    budget: Budget
    archives: Archives
    web: str | None  # where the status page is: its URL, or the path of its socket
    rules: Callable[[], Mapping[str, Rule]]  # who may read what not everybody may, by source
    pulls: Pulls = field(default_factory=Pulls)


@dataclass(frozen=True, slots=True)
class Sight:
    """What a caller may see: nothing of the sources `hidden`; of accounts and processes those of `uid` alone."""

    hidden: frozenset[str] = frozenset()
    uid: int | None = None  # None: root, or who runs the daemon

    def shows(self, source: str) -> bool:
        """Say whether a source may be seen."""
        return source not in self.hidden

    def check(self, version: AssetVersion) -> AssetVersion:
        """Return a version; raise NotAllowed for one that is not for who asks."""
        if version.source in self.hidden:
            raise NotAllowed(f"{version.key} is of a source that you may not read")
        return version


ALL = Sight()


async def names_of(daemon: Daemon, version: AssetVersion, seek_key: str | None) -> list[str]:
    """Return the origin's names of a version's files with the indices made of them, or of those of a seek key.

    Raises NotInCatalog for a seek key that the version does not have, and what the origin answers.
    """
    await daemon.store.ready()
    names = list(await daemon.library.names(version))
    await daemon.library.recall(version)  # so that sizes and residency are known in a daemon's second life, too
    if seek_key is None or version.seek_keys.get(seek_key) == ".":
        names += await daemon.library.companions(version)
    return chosen_names(version, names, seek_key)


def chosen_names(version: AssetVersion, names: Sequence[str], seek_key: str | None) -> list[str]:
    """Return those of a version's names that a seek key means; raise NotInCatalog for one that it does not have."""
    target = "." if seek_key is None else version.seek_keys.get(seek_key)
    if target is None:
        raise no_seek_key(version, seek_key or "")
    if target == ".":
        return list(names)
    chosen = [name for name in names if name == target] or [name for name in names if name.startswith(target)]
    if not chosen:
        raise NotInCatalog(f"{version.key} has no file for the seek key {seek_key!r}")
    return chosen


def no_seek_key(version: AssetVersion, seek_key: str) -> NotInCatalog:
    """Return the error for a seek key that a version does not have."""
    have = ", ".join(sorted(version.seek_keys)) or "none"
    return NotInCatalog(f"{version.key} has no seek key {seek_key!r}; it has: {have}")


async def content_labels(daemon: Daemon) -> dict[str, tuple[AssetVersion | None, str]]:
    """Return the version and the file name (the origin's) of each content in the cache that has a label."""
    return await trio.to_thread.run_sync(_read_labels, daemon.store.ledger, daemon.catalog.snapshot)


def _read_labels(ledger: Ledger, snapshot: CatalogSnapshot) -> dict[str, tuple[AssetVersion | None, str]]:
    """Return the labels. Blocks: there can be a hundred thousand."""
    labels: dict[str, tuple[AssetVersion | None, str]] = {}
    versions: dict[str, AssetVersion | None] = {}
    for row, note in ledger.items("note/"):
        if isinstance(note, dict):
            key = str(note.get("key"))
            if key not in versions:
                versions[key] = _version_in(snapshot, key)
            labels[row.removeprefix("note/")] = (versions[key], str(note.get("name")))
    return labels


def shown_name(version: AssetVersion | None, name: str) -> str:
    """Return a file's name as people see it."""
    name = shown_index(name).removeprefix(DERIVED).replace(DERIVED, "/")
    return name.replace(version.genome_digest, version.alias) if version is not None else name


def short_key(snapshot: CatalogSnapshot, version: AssetVersion) -> str:
    """Return a version's key without its tag where that is the default one: below the mountpoint it is a path."""
    key, default = version.key, ""
    with suppress(NotInCatalog):
        default = snapshot.asset(key.genome, key.asset).default_tag
    return str(replace(key, tag=None) if key.tag == default else key)


def version_of(daemon: Daemon, key: str) -> AssetVersion | None:
    """Return the version that a key names, None for one that is in no catalog."""
    return _version_in(daemon.catalog.snapshot, key)


def _version_in(snapshot: CatalogSnapshot, key: str) -> AssetVersion | None:
    try:
        return snapshot.version(AssetKey.parse(key))
    except (KeyFormatError, NotInCatalog):
        return None


def parse_key(text: object) -> AssetKey:
    if not isinstance(text, str):
        raise ControlError("a request needs a key: genome/asset[.seek_key][:tag]")
    return AssetKey.parse(text)


def parse_keys(arguments: dict[str, Any]) -> list[AssetKey]:
    keys = arguments.get("keys")
    if not isinstance(keys, list) or not keys:
        raise ControlError("a request needs keys: [genome/asset[.seek_key][:tag], …]")
    return [parse_key(key) for key in keys]


def percent(part: int, whole: int) -> int:
    """Return the share in percent; 100 only when all is there."""
    return 100 if whole == 0 or part >= whole else part * 100 // whole


@asynccontextmanager
async def repeating(report: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Call `report` every little while during the block. An error comes out as it is, not in a group."""

    async def repeat() -> None:
        while True:
            await report()
            await trio.sleep(PROGRESS_EVERY)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(repeat)
            yield
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error = next((one for one in group.exceptions if not isinstance(one, trio.Cancelled)), group.exceptions[0])
        raise error from error.__cause__
