"""What the command line asks of a running daemon: the operations of the control socket.

Each takes the arguments of a request and gives JSON values. Nothing here changes what the tree shows; pins,
pulls and evictions change only what is resident.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import trio

from refgenfs import __version__
from refgenfs.cache.store import Store
from refgenfs.catalog import Catalog, SourceStatus
from refgenfs.control import Operation, Progress
from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import FileFacts
from refgenfs.core.errors import CacheError, ControlError, NotInCatalog, RefgenfsError
from refgenfs.core.keys import AssetKey
from refgenfs.fetch.http import Http
from refgenfs.fuse import Operations
from refgenfs.library import Library
from refgenfs.processes import resident_memory
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


class Administration:
    """The operations, by name."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def operations(self) -> Mapping[str, Operation]:
        """Return what the control socket serves."""
        return {
            "status": self.status,
            "list": self.assets,
            "info": self.info,
            "seek": self.seek,
            "id": self.digest,
            "pull": self.pull,
            "pin": self.pin,
            "unpin": self.unpin,
            "evict": self.evict,
            "cache_info": self.cache_info,
            "cache_verify": self.cache_verify,
            "cache_clear": self.cache_clear,
            "reload": self.reload,
            "stop": self.stop,
        }

    # -- what there is ------------------------------------------------------------------------------------

    async def status(self, _: dict[str, Any], __: Progress) -> dict[str, Any]:
        """Return how the daemon is."""
        d = self._daemon
        store, counts = d.store, d.reader.counts
        fetched = sum(d.http.fetched.values())
        failures = [(f.when, f.what) for f in d.http.failures] + d.fuse.recent
        warm = counts.reads - counts.cold_reads
        return {
            "version": __version__,
            "pid": os.getpid(),
            "mountpoint": d.mountpoint,
            "started": d.started,
            "uptime": time.time() - d.started,
            "state": "mounted",
            "cache": _cache_status(store),
            "sources": [_source_status(source) for source in d.catalog.status()],
            "served": counts.served,
            "fetched": fetched,
            "requests": sum(d.http.requests.values()),
            "saved": max(0, counts.served - fetched),
            "hit_ratio": warm / counts.reads if counts.reads else None,
            "open_files": d.fuse.open_files,
            "flights": len(d.board),
            "errors": [{"when": when, "what": what} for when, what in sorted(failures)[-20:]],
            "memory": resident_memory(),
        }

    async def assets(self, arguments: dict[str, Any], _: Progress) -> dict[str, Any]:
        """Return the genomes, or a genome's assets."""
        snapshot = self._daemon.catalog.snapshot
        name, wanted = arguments.get("genome"), arguments.get("asset")
        if name is None:
            genomes = {id(genome): genome for genome in snapshot.genomes.values()}
            rows = [
                {
                    "name": genome.names[0],
                    "names": list(genome.names),
                    "digest": genome.digest,
                    "description": genome.description,
                    "assets": len(genome.assets),
                }
                for genome in genomes.values()
            ]
            return {"genomes": sorted(rows, key=lambda row: str(row["name"]))}
        genome = snapshot.genome(str(name))
        if wanted is not None:
            snapshot.asset(str(name), str(wanted))
        rows = []
        for asset in sorted(genome.assets):
            if wanted in (None, asset):
                found = genome.assets[asset]
                for tag in sorted(found.tags):
                    row = self._asset_row(str(name), found.tags[tag], found.description)
                    rows.append({**row, "default": tag == found.default_tag})
        return {"assets": rows}

    def _asset_row(self, genome: str, version: AssetVersion, description: str) -> dict[str, Any]:
        return {
            "key": str(AssetKey(genome, version.asset, None, version.tag)),
            "asset": version.asset,
            "tag": version.tag,
            "description": description,
            "asset_size": version.asset_size,
            "archive_size": version.archive_size,
            "source": version.source,
            "seek_keys": sorted(version.seek_keys),
            "resident": None,
        }

    async def info(self, arguments: dict[str, Any], _: Progress) -> dict[str, Any]:
        """Return all that is known of one asset; asks the origin for its listing at most."""
        key = _key(arguments.get("key"))
        snapshot = self._daemon.catalog.snapshot
        version = snapshot.version(key)
        asset = snapshot.asset(key.genome, key.asset)
        files = [self._file_row(version, name, key.genome) for name in await self._names(version, None)]
        sizes = [row["size"] for row in files]
        size = sum(sizes) if all(one is not None for one in sizes) else None
        held = sum(row["resident_bytes"] for row in files)
        return {
            "key": str(AssetKey(key.genome, key.asset, None, version.tag)),
            "source": version.source,
            "digest": version.asset_digest,
            "genome_digest": version.genome_digest,
            "names": list(snapshot.genome(key.genome).names),
            "path": self._folder(key, version),
            "default": version.tag == asset.default_tag,
            "description": asset.description,
            "files": files,
            "size": size,
            "resident": _percent(held, size) if size is not None else None,
            "pinned": bool(files) and all(row["pinned"] for row in files),
            "asset_size": version.asset_size,
            "archive_size": version.archive_size,
            "asset_digest": version.asset_digest,
            "archive_digest": version.archive_digest,
            "parents": list(version.parents),
            "seek_keys": dict(version.seek_keys),
        }

    def _file_row(self, version: AssetVersion, name: str, genome: str) -> dict[str, Any]:
        d = self._daemon
        facts = d.library.known_facts(version, name)
        content = facts.content if facts else d.library.provisional_id(version, name)
        held = d.store.resident_bytes(content)
        return {
            "name": name.replace(version.genome_digest, genome),
            "size": facts.size if facts else None,
            "resident": _percent(held, facts.size) if facts else None,
            "resident_bytes": held,
            "pinned": d.store.is_pinned(content),
            "origin": facts.origin if facts else None,
        }

    async def seek(self, arguments: dict[str, Any], _: Progress) -> dict[str, Any]:
        """Return the path of what a key names, below the mountpoint as refgenie prints it below its alias folder.

        That is `<alias>/<asset>/<tag>/<file>`, also for a genome's digest and for the default tag.
        """
        key = _key(arguments.get("key"))
        snapshot = self._daemon.catalog.snapshot
        version = snapshot.version(key)
        seek_key = key.seek_key or key.asset
        target = version.seek_keys.get(seek_key)
        if target is None and key.seek_key is None:
            target = "."
        if target is None:
            have = ", ".join(sorted(version.seek_keys)) or "none"
            raise NotInCatalog(f"{version.key} has no seek key {seek_key!r}; it has: {have}")
        genome = snapshot.genome(key.genome)
        name = genome.names[0] if key.genome == genome.digest else key.genome
        shown = target.replace(version.genome_digest, name)
        return {"path": f"{self._daemon.mountpoint}/{name}/{key.asset}/{version.tag}/{shown}"}

    def _folder(self, key: AssetKey, version: AssetVersion) -> str:
        default = self._daemon.catalog.snapshot.asset(key.genome, key.asset).default_tag
        name = key.asset if version.tag == default else f"{key.asset}:{version.tag}"
        return f"{self._daemon.mountpoint}/{key.genome}/{name}"

    async def digest(self, arguments: dict[str, Any], _: Progress) -> dict[str, Any]:
        """Return the asset's digest, as refgenie's id does."""
        version = self._daemon.catalog.snapshot.version(_key(arguments.get("key")))
        return {"digest": version.asset_digest}

    # -- what is resident ---------------------------------------------------------------------------------

    async def pull(self, arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Make assets resident, and pin them if asked to, telling how it goes."""
        pin = bool(arguments.get("pin"))
        done = [await self._pull_one(key, pin, progress) for key in _keys(arguments)]
        return {"keys": done}

    async def _pull_one(self, key: AssetKey, pin: bool, progress: Progress) -> dict[str, Any]:
        d = self._daemon
        version = d.catalog.snapshot.version(key)
        names = await self._names(version, key.seek_key)
        began, before = trio.current_time(), d.http.fetched.get(version.source, 0)
        current = [""]

        async def report() -> None:
            done, total = self._held(version, names)
            fetched = d.http.fetched.get(version.source, 0) - before
            await progress({"key": str(key), "done": done, "total": total, "fetched": fetched, "file": current[0]})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_every, PROGRESS_EVERY, report)
            await d.library.pull(version, names, lambda name: current.__setitem__(0, name))
            nursery.cancel_scope.cancel()
        await report()
        if pin:
            await self._set_pins(version, names, pinned=True)
        total = self._held(version, names)[0]
        fetched = d.http.fetched.get(version.source, 0) - before
        seconds = trio.current_time() - began
        return {"key": str(key), "bytes": total, "fetched": fetched, "seconds": seconds, "pinned": pin}

    def _held(self, version: AssetVersion, names: Iterable[str]) -> tuple[int, int | None]:
        """Return how many bytes of these files are resident, and how many there are if that is known."""
        d = self._daemon
        done, total, known = 0, 0, True
        for facts in {f.content: f for f in self._known(version, names) if f is not None}.values():
            done += d.store.resident_bytes(facts.content)
            total += facts.size
        known = all(facts is not None for facts in self._known(version, names))
        return done, total if known else None

    def _known(self, version: AssetVersion, names: Iterable[str]) -> Iterable[FileFacts | None]:
        return (self._daemon.library.known_facts(version, name) for name in names)

    async def pin(self, arguments: dict[str, Any], _: Progress) -> dict[str, Any]:
        """Keep what is resident, and what will be, of these keys."""
        return await self._for_each(arguments, lambda v, names: self._set_pins(v, names, pinned=True))

    async def unpin(self, arguments: dict[str, Any], _: Progress) -> dict[str, Any]:
        """Let these keys be evicted again."""
        return await self._for_each(arguments, lambda v, names: self._set_pins(v, names, pinned=False))

    async def evict(self, arguments: dict[str, Any], _: Progress) -> dict[str, Any]:
        """Drop what is resident of these keys; pinned ones are refused."""
        return await self._for_each(arguments, self._evict)

    async def _for_each(
        self, arguments: dict[str, Any], act: Callable[[AssetVersion, list[str]], Awaitable[int]]
    ) -> dict[str, Any]:
        done = []
        for key in _keys(arguments):
            version = self._daemon.catalog.snapshot.version(key)
            names = await self._names(version, key.seek_key)
            done.append({"key": str(key), "bytes": await act(version, names)})
        return {"keys": done}

    async def _set_pins(self, version: AssetVersion, names: Iterable[str], *, pinned: bool) -> int:
        d = self._daemon
        size = 0
        for name in names:
            facts = await d.library.facts(version, name)
            if pinned:
                content = await d.store.content(facts.content, facts.size)
                d.store.pin(content.id)
            else:
                d.store.unpin(facts.content)
            size += d.store.resident_bytes(facts.content)
        return size

    async def _evict(self, version: AssetVersion, names: Iterable[str]) -> int:
        d = self._daemon
        contents = []
        for name in names:
            facts = d.library.known_facts(version, name)
            contents.append(facts.content if facts else d.library.provisional_id(version, name))
        if any(d.store.is_pinned(content) for content in contents):
            raise CacheError(f"{version.key} is pinned; `refgenfs unpin {version.key}` first")
        return sum(d.store.evict(content) for content in contents)

    async def _names(self, version: AssetVersion, seek_key: str | None) -> list[str]:
        """Return the origin's names of a version's files, or of those that a seek key means."""
        names = list(await self._daemon.library.names(version))
        if seek_key is None:
            return names
        target = version.seek_keys.get(seek_key)
        if target is None:
            have = ", ".join(sorted(version.seek_keys)) or "none"
            raise NotInCatalog(f"{version.key} has no seek key {seek_key!r}; it has: {have}")
        if target == ".":
            return names
        chosen = [name for name in names if name == target] or [n for n in names if n.startswith(target)]
        if not chosen:
            raise NotInCatalog(f"{version.key} has no file for the seek key {seek_key!r}")
        return chosen

    # -- the cache ----------------------------------------------------------------------------------------

    async def cache_info(self, _: dict[str, Any], __: Progress) -> dict[str, Any]:
        """Return what the cache holds."""
        store = self._daemon.store
        names = await self._content_names()
        rows = []
        for summary in store.summary():
            key, name = names.get(summary.cid, (None, summary.cid))
            rows.append(
                {
                    "key": key,
                    "name": name,
                    "size": summary.size,
                    "resident": summary.resident,
                    "pinned": summary.pinned,
                    "last_used": summary.last_used,
                }
            )
        return {**_cache_status(store), "contents": rows}

    async def _content_names(self) -> dict[str, tuple[str | None, str]]:
        """Return the key and the name of each content that the cache knows by more than its identity."""
        rows = await trio.to_thread.run_sync(lambda: dict(self._daemon.store.ledger.items("note/")))
        names: dict[str, tuple[str | None, str]] = {}
        for row, note in rows.items():
            if isinstance(note, dict):
                names[row.removeprefix("note/")] = (str(note.get("key")), str(note.get("name")))
        return names

    async def cache_verify(self, _: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Check every resident block against its checksum; damaged ones are dropped, and fetched anew."""
        steps = {"done": 0, "total": 0}

        def note(done: int, total: int) -> None:
            steps.update(done=done, total=total)

        names = await self._content_names()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_every, PROGRESS_EVERY, lambda: progress(dict(steps)))
            report = await self._daemon.store.verify(note)
            nursery.cancel_scope.cancel()
        damaged = []
        for block in report.damaged:
            key, name = names.get(block.content, (None, block.content))
            damaged.append({"key": key, "name": name, "offset": block.offset})
        return {"checked": report.blocks, "bytes": report.nbytes, "damaged": damaged}

    async def cache_clear(self, _: dict[str, Any], __: Progress) -> dict[str, Any]:
        """Drop everything that is resident but what is pinned."""
        return {"freed": self._daemon.store.clear()}

    # -- the daemon ---------------------------------------------------------------------------------------

    async def reload(self, _: dict[str, Any], __: Progress) -> dict[str, Any]:
        """Ask all sources for their catalogs now."""
        await self._daemon.catalog.refresh()
        return {}

    async def stop(self, _: dict[str, Any], __: Progress) -> dict[str, Any]:
        """Unmount and end."""
        self._daemon.stop()
        return {}


def _key(text: object) -> AssetKey:
    if not isinstance(text, str):
        raise ControlError("a request needs a key: genome/asset[.seek_key][:tag]")
    return AssetKey.parse(text)


def _keys(arguments: dict[str, Any]) -> list[AssetKey]:
    keys = arguments.get("keys")
    if not isinstance(keys, list) or not keys:
        raise ControlError("a request needs keys: [genome/asset[.seek_key][:tag], …]")
    return [_key(key) for key in keys]


def _source_status(source: SourceStatus) -> dict[str, Any]:
    age = None if source.last_refresh is None else max(0.0, time.time() - source.last_refresh)
    return {**asdict(source), "age": age}


def _cache_status(store: Store) -> dict[str, Any]:
    contents = store.summary()
    return {
        "dir": str(store.directory),
        "size": store.quota,
        "used": store.used,
        "free": store.free,
        "min_free": store.min_free,
        "contents": len(contents),
        "evictions": store.evictions,
        "pinned": sum(content.resident for content in contents if content.pinned),
        "uncached": store.uncached,
        "error": store.errors.last or None,
    }


def _percent(part: int, whole: int) -> int:
    """Return the share in percent; 100 only when all is there."""
    return 100 if whole == 0 or part >= whole else part * 100 // whole


async def _every(seconds: float, call: Callable[[], Awaitable[None]]) -> None:
    while True:
        await call()
        await trio.sleep(seconds)


__all__ = ["Administration", "Daemon", "RefgenfsError"]
