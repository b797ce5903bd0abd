"""Labels: what people know a content by, kept beside it in the cache."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import trio

from refgenfs.cache.store import Store
from refgenfs.core.content import ContentId
from refgenfs.core.errors import CacheError


async def label(store: Store, content: ContentId, key: str, name: str) -> None:
    """Note the key and the name of a content that nothing is resident of yet; later it has its label.

    A label that can't be written is missed in a table for people, and nowhere else.
    """
    if not store.resident_bytes(content):
        with suppress(CacheError):
            await trio.to_thread.run_sync(partial(store.set_note, content, {"key": key, "name": name}))


async def labelled(store: Store, belongs: Callable[[str, ContentId], bool]) -> dict[ContentId, int]:
    """Return the sizes of the contents in the cache whose name belongs where `belongs(name, content)` says.

    None of them when the labels can't be read.
    """
    await store.ready()
    try:
        rows = await trio.to_thread.run_sync(lambda: dict(store.ledger.items("note/")))
    except CacheError:
        return {}
    names = {row.removeprefix("note/"): note.get("name") for row, note in rows.items() if isinstance(note, dict)}
    return {held.cid: held.size for held in store.summary() if belongs(str(names.get(held.cid)), held.cid)}
