"""Pulls of what is pinned already, while it is let go of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from refgenfs.administration.parts import Daemon
from refgenfs.administration.pulls import Pulls
from refgenfs.administration.residency import Residency
from refgenfs.cache.opening import open_store
from refgenfs.cache.pinrows import Pin
from refgenfs.cache.store import Store
from refgenfs.core.catalog import AssetVersion
from tests.integration.test_pins import LIMITS, SIZE, fill_some
from tests.integration.test_store import name_of

VERSION = AssetVersion("source", "abc", "hg38", "fasta", "default", "one")
KEY = str(VERSION.digest_key)
FILES = {f"file-{number}": name_of(number) for number in range(3)}


class _Library:
    """Tells the facts of files; of the second only when it may."""

    def __init__(self) -> None:
        self.asked, self.may = trio.Event(), trio.Event()

    async def names(self, _: AssetVersion) -> list[str]:
        return list(FILES)

    async def recall(self, _: AssetVersion) -> None: ...

    async def companions(self, _: AssetVersion) -> list[str]:
        return []

    async def pull(self, *_: object) -> None: ...

    def known_facts(self, _: AssetVersion, name: str) -> Any:
        return SimpleNamespace(content=FILES[name], size=SIZE)

    async def facts(self, version: AssetVersion, name: str) -> Any:
        if name == "file-1":
            self.asked.set()
            await self.may.wait()
        return self.known_facts(version, name)


def operations(store: Store, library: _Library) -> Residency:
    """Return the operations of a daemon that has this one asset."""
    catalog = SimpleNamespace(snapshot=SimpleNamespace(version=lambda _: VERSION))
    http = SimpleNamespace(fetched={})
    parts = SimpleNamespace(store=store, library=library, catalog=catalog, http=http, pulls=Pulls())
    return Residency(cast(Daemon, parts))


@pytest.mark.parametrize("how", ["unpin", "expire"])
async def test_a_pull_does_not_pin_what_was_let_go_of_meanwhile(tmp_path: Path, how: str) -> None:
    library = _Library()
    told: list[dict[str, Any]] = []

    async def progress(step: dict[str, Any]) -> None: ...

    async with open_store(tmp_path, LIMITS, owner="/genomes") as store:
        await fill_some(store)
        await store.ready()
        residency = operations(store, library)
        for name, cid in FILES.items():
            store.pins.hold(cid, Pin(KEY, "hg38/fasta:default", "one", claims={"run-7": 1000.0}), name)

        async def pull() -> None:
            told.append(await residency.pull({"keys": ["hg38/fasta"]}, progress))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull)
            await library.asked.wait()
            if how == "expire":
                store.pins.expire(1000.0)
            else:
                await residency.unpin({"keys": ["hg38/fasta"], "for": "run-7"}, progress)
            library.may.set()
        assert store.pins.get(KEY) is None, "nobody asked for that"
        assert not any(store.is_pinned(cid) for cid in FILES.values())
        assert told[0]["keys"][0]["pinned"] is False
