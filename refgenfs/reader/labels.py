"""Labels: what people know a content by, and which version its bytes are of, kept beside it in the cache."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import trio

from refgenfs.cache.ledger import JSONValue
from refgenfs.cache.store import Store
from refgenfs.core.content import ContentId
from refgenfs.core.errors import CacheError, StaleContent
from refgenfs.reader.refusals import Refusals

log = logging.getLogger(__name__)


async def label(store: Store, content: ContentId, key: str, name: str) -> None:
    """Note the key and the name of a content that nothing is resident of yet; later it has its label.

    A label that can't be written is missed in a table for people, and nowhere else.
    """
    if not store.resident_bytes(content):
        try:
            await trio.to_thread.run_sync(partial(store.set_note, content, {"key": key, "name": name}))
        except CacheError as exc:
            log.debug("%s %s: it has no label: %s", key, name, exc)


VERSIONS = 4096  # contents whose version is kept in memory
# Labels of contents of which nothing is resident; more, and the oldest are taken back. Of slices there is no end, and
# who opens one need not read it.
BARE = 4096


class Versions:
    """Which version of an object the bytes of each content are of, by its validator.

    A content's identity has the validator only once the object was seen to be replaced. Should that, or what was
    known of the object, be lost (a ledger that refuses, a kill at the wrong moment, another host of the unpacked
    copies), the blocks that are kept still say which version they are of.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[ContentId, str] = {}
        self._refusals = Refusals(log)
        self._bare: OrderedDict[ContentId, None] = OrderedDict()  # that were labelled before they had anything

    async def vouch(self, content: ContentId, validator: str, key: str, name: str) -> None:
        """See that what is kept of a content is of this version, and label it; to be awaited before it is read.

        Raises StaleContent when it is of another.
        """
        store = self._store
        kept = self._known.get(content)
        held = await store.holds(content)
        if not held:  # then this is written down, and what comes of it is stored: both are for when all is known
            await store.ready()
        if held and kept is None:
            kept = self._known.get(content, await trio.to_thread.run_sync(self._read, content))
        # no await from here on to the note of it: two could note two versions
        if kept not in (None, validator) and (held or store.open_content(content) is not None):
            raise StaleContent(f"{content}: what the cache has of {name} is of another version")
        if len(self._known) >= VERSIONS:
            self._known.clear()
        self._known[content] = validator
        if kept is None or not held:
            note: JSONValue = {"key": key, "name": name, "validator": validator}
            try:
                await trio.to_thread.run_sync(partial(store.set_note, content, note))
            except CacheError as exc:
                self._refusals.warning(
                    "%s %s: which version its blocks are of is not written down: %s", key, name, exc
                )
            else:
                self._refusals.clear()
            self._bare[content] = None
            if len(self._bare) > BARE:
                await self._take_back()

    async def _take_back(self) -> None:
        """Forget the older half of the labels of contents that came to nothing, and that nobody has open."""
        store, gone = self._store, []
        for content in [content for content, _ in zip(self._bare, range(BARE // 2), strict=False)]:
            del self._bare[content]
            if store.resident_bytes(content):
                continue  # its label goes with it
            if store.open_content(content) is not None:
                self._bare[content] = None
                continue
            self._known.pop(content, None)
            gone.append(content)
        try:
            await trio.to_thread.run_sync(store.forget_notes(gone))
        except CacheError as exc:
            log.debug("labels that are of no use stay: %s", exc)

    def _read(self, content: ContentId) -> str | None:
        """Return the validator that is noted, None without one. Blocks."""
        try:
            note = self._store.note(content)
        except CacheError as exc:
            self._refusals.warning("which version the blocks of %s are of can't be read: %s", content, exc)
            return None
        validator = note.get("validator") if isinstance(note, dict) else None
        return validator if isinstance(validator, str) else None


async def labelled(store: Store, belongs: Callable[[str, ContentId], bool]) -> dict[ContentId, int]:
    """Return the sizes of the contents in the cache whose name belongs where `belongs(name, content)` says.

    None of them when the labels can't be read.
    """
    await store.ready()
    try:
        rows = await trio.to_thread.run_sync(lambda: dict(store.ledger.items("note/")))
    except CacheError as exc:
        log.warning("the labels of what is in the cache can't be read: %s", exc)
        return {}
    names = {row.removeprefix("note/"): note.get("name") for row, note in rows.items() if isinstance(note, dict)}
    return {held.cid: held.size for held in store.summary() if belongs(str(names.get(held.cid)), held.cid)}
