"""Labels of contents: what was read keeps its own, and what was only opened does not pile up in the ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from refgenfs.cache import opened
from refgenfs.cache.content import checksum
from refgenfs.cache.opening import open_store
from refgenfs.cache.store import CacheLimits, Store
from refgenfs.core.content import BLOCK, Run, content_id
from refgenfs.core.errors import StaleContent
from refgenfs.reader import labels
from refgenfs.reader.labels import Versions

MIB = 1 << 20
KEPT = 8


def name_of(number: int) -> str:
    return content_id("source", "digest", f"slice-{number}")


def notes(store: Store) -> set[str]:
    return {row.removeprefix("note/") for row, _ in store.ledger.items("note/")}


async def fill(store: Store, cid: str) -> None:
    content = await store.content(cid, BLOCK)
    room = content.reserve(Run(0, 1))
    assert room is not None
    with room:
        data = bytes(BLOCK)
        content.write(0, data)
        assert content.commit(0, checksum(data), room)


async def test_what_is_opened_and_never_read_leaves_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "BARE", KEPT)
    monkeypatch.setattr(opened, "KEEP_OPEN", 2)
    async with open_store(tmp_path, CacheLimits(64 * MIB), owner="test") as store:
        versions = Versions(store)
        for number in (0, 1):
            await versions.vouch(name_of(number), '"v1"', "hg38/x", f"slice-{number}")
        await fill(store, name_of(0))
        held = await store.content(name_of(1), BLOCK)
        for number in range(2, 200):
            await versions.vouch(name_of(number), '"v1"', "hg38/x", f"slice-{number}")
            await store.content(name_of(number), BLOCK)
        left = notes(store)
        assert len(left) <= KEPT + 4
        assert {name_of(0), name_of(1), name_of(199)} <= left, "what has bytes, or is open, keeps its label"
        assert held.id == name_of(1)
        with pytest.raises(StaleContent):
            await versions.vouch(name_of(0), '"v2"', "hg38/x", "slice-0")
        await versions.vouch(name_of(5), '"v2"', "hg38/x", "slice-5")  # of which there was never a byte
        assert name_of(5) in notes(store)
