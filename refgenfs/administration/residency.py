"""What is resident: pulled, pinned, evicted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import trio

from refgenfs.administration.parts import Daemon, names_of, parse_keys, repeating
from refgenfs.control import Operation, Progress
from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import FileFacts
from refgenfs.core.errors import CacheError
from refgenfs.core.keys import AssetKey


class Residency:
    """The operations `pull`, `pin`, `unpin` and `evict`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {"pull": self.pull, "pin": self.pin, "unpin": self.unpin, "evict": self.evict}

    async def pull(self, arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Make assets resident, and pin them if asked to, telling how it goes."""
        pin = bool(arguments.get("pin"))
        done = [await self._pull_one(key, pin, progress) for key in parse_keys(arguments)]
        return {"keys": done}

    async def _pull_one(self, key: AssetKey, pin: bool, progress: Progress) -> dict[str, Any]:
        d = self._daemon
        version = d.catalog.snapshot.version(key)
        names = await names_of(self._daemon, version, key.seek_key)
        began, before = trio.current_time(), d.http.fetched.get(version.source, 0)
        current = [""]

        async def report() -> None:
            done, total = self._held(version, names)
            fetched = d.http.fetched.get(version.source, 0) - before
            await progress({"key": str(key), "done": done, "total": total, "fetched": fetched, "file": current[0]})

        async with repeating(report):
            await d.library.pull(version, names, lambda name: current.__setitem__(0, name))
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
        for key in parse_keys(arguments):
            version = self._daemon.catalog.snapshot.version(key)
            names = await names_of(self._daemon, version, key.seek_key)
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
        await d.store.flush()  # who is told that it is pinned can rely on it
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
