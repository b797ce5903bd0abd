"""What is resident: pulled, pinned, evicted."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import trio

from refgenfs.administration.claims import Claims, claim_in, name_in
from refgenfs.administration.parts import Daemon, content_labels, names_of, no_seek_key, parse_keys, repeating
from refgenfs.administration.pulls import Pull
from refgenfs.cache.pinrows import BY_HAND, UNKNOWN, Pin
from refgenfs.control import Operation, Progress
from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import ContentId, FileFacts
from refgenfs.core.errands import current, on_behalf_of
from refgenfs.core.errors import CacheError, NotInCatalog
from refgenfs.core.keys import AssetKey
from refgenfs.core.layout import DERIVED


class Residency:
    """The operations `pull`, `pin`, `unpin`, `pins` and `evict`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._claims = Claims()

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {"pull": self.pull, "pin": self.pin, "unpin": self.unpin, "pins": self.pins, "evict": self.evict}

    async def pull(self, arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Make assets resident, and pin them if asked to, telling how it goes."""
        claims = claim_in(arguments, time.time()) if arguments.get("pin") else {}
        with self._claims.under_way(name_in(arguments)):
            return {"keys": [await self._pull_one(key, claims, progress) for key in self._wanted(arguments)]}

    async def _pull_one(self, key: AssetKey, claims: dict[str, float | None], progress: Progress) -> dict[str, Any]:
        d = self._daemon
        version = d.catalog.snapshot.version(key)
        names = await names_of(self._daemon, version, key.seek_key)
        began, before = trio.current_time(), d.http.fetched.get(version.source, 0)
        with d.pulls.running(Pull(str(key), version.source, time.time())) as pull:

            async def report() -> None:
                pull.done, pull.total = self._held(version, names)
                pull.fetched = d.http.fetched.get(version.source, 0) - before
                row = {name: getattr(pull, name) for name in ("key", "done", "total", "fetched", "file")}
                await progress(row)

            # whoever reads meanwhile comes first
            async with repeating(report):
                with on_behalf_of(current().user, urgent=False):
                    await d.library.pull(version, names, lambda name: setattr(pull, "file", name))
            await report()
        pin = bool(claims) or d.store.pins.get(_full_key(version, key)) is not None  # what is new of it is, too
        if pin:
            await self._pin(claims, version, key, names)
            pin = bool(claims) or d.store.pins.get(_full_key(version, key)) is not None
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
        """Keep what is resident, and what will be, of these keys: for a name, or for good, or until a time."""
        claims = claim_in(arguments, time.time())
        with self._claims.under_way(name_in(arguments)):
            return await self._for_each(arguments, partial(self._pin, claims))

    async def unpin(self, arguments: dict[str, Any], _: Progress) -> dict[str, Any]:
        """Let these keys be evicted again, but for what another key that is pinned holds, too.

        With a name, what was pinned for it only, and without keys all of that; what is being pulled for it ends.
        """
        await self._daemon.store.ready()
        name = name_in(arguments)
        keys = parse_keys(arguments) if arguments.get("keys") or name == BY_HAND else None
        if name != BY_HAND:
            await self._claims.end(name)
        if keys is not None:
            return {"keys": [await self._unpin(key, name) for key in keys]}
        return {"keys": await self._unpin_all(name)}

    async def pins(self, _arguments: dict[str, Any], _: Progress) -> dict[str, Any]:
        """Return what is pinned, for whom, and until when (Unix seconds)."""
        store = self._daemon.store
        await store.ready()
        return {
            "keys": [
                {
                    "key": pin.shown or pin.key,
                    "bytes": sum(store.resident_bytes(cid) for cid in set(pin.files.values())),
                    "for": [{"name": name or None, "until": until} for name, until in sorted(pin.claims.items())],
                }
                for pin in store.pins.all()
            ]
        }

    async def evict(self, arguments: dict[str, Any], _: Progress) -> dict[str, Any]:
        """Drop what is resident of these keys; if one of them is pinned, that is refused for all."""
        for key in self._wanted(arguments):
            version = self._daemon.catalog.snapshot.version(key)
            self._refuse_pinned(version, await names_of(self._daemon, version, key.seek_key))
        labels = await content_labels(self._daemon)
        return await self._for_each(arguments, partial(self._evict, labels))

    def _wanted(self, arguments: dict[str, Any]) -> list[AssetKey]:
        """Return the keys of a request; NotInCatalog for the first that there is not, before anything is done."""
        keys = parse_keys(arguments)
        for key in keys:
            version = self._daemon.catalog.snapshot.version(key)
            if key.seek_key is not None and key.seek_key not in version.seek_keys:
                raise no_seek_key(version, key.seek_key)
        return keys

    async def _for_each(
        self, arguments: dict[str, Any], act: Callable[[AssetVersion, AssetKey, list[str]], Awaitable[int]]
    ) -> dict[str, Any]:
        done = []
        for key in self._wanted(arguments):
            version = self._daemon.catalog.snapshot.version(key)
            names = await names_of(self._daemon, version, key.seek_key)
            done.append({"key": str(key), "bytes": await act(version, key, names)})
        return {"keys": done}

    async def _pin(
        self, claims: dict[str, float | None], version: AssetVersion, key: AssetKey, names: list[str]
    ) -> int:
        d = self._daemon
        pin = Pin(_full_key(version, key), _shown_key(version, key), version.asset_digest, claims=claims)
        size = 0
        for name in names:
            facts = await d.library.facts(version, name)
            content = await d.store.content(facts.content, facts.size)
            # no await between the two: a pull pins nothing that was let go of while it waited
            if not claims and d.store.pins.get(pin.key) is None:
                return size
            d.store.pins.hold(content.id, pin, name)
            size += d.store.resident_bytes(facts.content)
        d.store.pins.retain(pin.key, names)
        await d.store.flush()  # who is told that it is pinned can rely on it
        return size

    async def _unpin(self, key: AssetKey, name: str) -> dict[str, Any]:
        """Let go of a key; one whose asset is in no catalog any more, too."""
        store, text = self._daemon.store, str(key)
        pin, version = store.pins.get(text), None
        with suppress(NotInCatalog):
            version = self._daemon.catalog.snapshot.version(key)
            pin = store.pins.get(_full_key(version, key))
            if pin is None and key.seek_key and store.pins.get(str(version.digest_key)):
                raise CacheError(f"{key} is pinned with all of {version.key}; `refgenfs unpin {version.key}` first")
        if pin is None and version is None:
            raise NotInCatalog(f"{key} is in no catalog, and not pinned")
        held = store.pins.disclaim(pin.key, name) if pin is not None else []
        if version is not None and name == BY_HAND:
            held += await self._release_unknown(version, key)
        await store.flush()
        row = self._unpinned(text, pin, held)
        if version is not None and key.seek_key is None and not row["held_for"]:
            row["held_by"] = sorted({*row["held_by"], *store.pins.of_asset(str(version.digest_key))})
        return row

    async def _unpin_all(self, name: str) -> list[dict[str, Any]]:
        """Let go of all that is pinned for a name."""
        store = self._daemon.store
        held = [(pin, store.pins.disclaim(pin.key, name)) for pin in store.pins.all() if name in pin.claims]
        await store.flush()
        return [self._unpinned(pin.shown or pin.key, pin, cids) for pin, cids in held]

    def _unpinned(self, key: str, pin: Pin | None, held: list[ContentId]) -> dict[str, Any]:
        """Say what came of letting go of a key: the bytes that may be evicted now, and who keeps what of it."""
        store = self._daemon.store
        freed = sum(store.resident_bytes(cid) for cid in held if not store.is_pinned(cid))
        others = {one for cid in held for one in store.pins.holders(cid)}
        left = sorted(pin.claims) if pin is not None else []
        return {"key": key, "bytes": freed, "held_by": sorted(others), "held_for": [one or None for one in left]}

    async def _release_unknown(self, version: AssetVersion, key: AssetKey) -> list[ContentId]:
        """Let go of what an earlier layout of the cache has pinned of these files."""
        d = self._daemon
        if d.store.pins.get(UNKNOWN) is None:
            return []
        names = await names_of(d, version, key.seek_key)
        return d.store.pins.release_unknown(self._contents(version, names))

    def _contents(self, version: AssetVersion, names: Iterable[str]) -> list[ContentId]:
        d = self._daemon
        known = ((name, d.library.known_facts(version, name)) for name in names)
        return [facts.content if facts else d.library.provisional_id(version, name) for name, facts in known]

    async def _evict(
        self,
        labels: Mapping[ContentId, tuple[AssetVersion | None, str]],
        version: AssetVersion,
        key: AssetKey,
        names: list[str],
    ) -> int:
        self._refuse_pinned(version, names)  # once more: the origin may have been waited for since
        contents = self._contents(version, names)
        if _full_key(version, key) == str(version.digest_key):  # and what was cut out of its files
            contents += [one for one, (of, name) in labels.items() if of == version and name.startswith(DERIVED)]
        return sum(self._daemon.store.evict(content) for content in contents)

    def _refuse_pinned(self, version: AssetVersion, names: list[str]) -> None:
        pins = self._daemon.store.pins
        contents = self._contents(version, names)
        holders = sorted({one or str(version.key) for cid in contents for one in pins.holders(cid)})
        if holders:
            raise CacheError(f"{version.key} is pinned; `refgenfs unpin {' '.join(holders)}` first")


def _full_key(version: AssetVersion, key: AssetKey) -> str:
    """Return the key that means the same under all names of the genome; `.dir` is the whole asset."""
    whole = key.seek_key is None or version.seek_keys.get(key.seek_key) == "."
    return str(replace(version.digest_key, seek_key=None if whole else key.seek_key))


def _shown_key(version: AssetVersion, key: AssetKey) -> str:
    return str(replace(version.key, seek_key=AssetKey.parse(_full_key(version, key)).seek_key))
