"""What a check of the cache found damaged, fetched again."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import trio

from refgenfs.administration.parts import Daemon
from refgenfs.cache.verify import Damage
from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import ContentId, Run, block_length
from refgenfs.core.errors import KeyFormatError, NotInCatalog, RefgenfsError
from refgenfs.core.keys import AssetKey
from refgenfs.reader.indexes import INDEX_LABEL
from refgenfs.reader.rangeruns import not_kept

AT_A_TIME = 8  # contents, so that those of one archive wait for one stream of it
RUN = 16  # blocks that are fetched at a time of each
FORGET_PAGES = 10.0  # seconds that the kernel is waited for

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Loss:
    """The blocks that one content has lost. `error` says why they are not back, and is "" when they are."""

    content: ContentId
    version: AssetVersion | None
    name: str  # at the origin
    blocks: list[int]
    size: int  # of the content, in bytes
    error: str = ""


class Healing:
    """Fetches again what was lost: each content by its own route, as a reader would have it come.

    `done` and `total` are bytes.
    """

    def __init__(self, daemon: Daemon, losses: Iterable[Loss]) -> None:
        self._daemon = daemon
        self._losses = sorted(losses, key=lambda loss: (loss.version is None, loss.name))
        self._away: dict[str, str] = {}  # sources that did not answer, and what was wrong
        self.done = 0
        self.total = sum(_bytes(loss.size, loss.blocks) for loss in self._losses)

    async def run(self) -> None:
        """Fetch everything, and note in each loss how that went. Raises nothing of the origin's or the disk's."""
        with trio.move_on_after(FORGET_PAGES):  # they may be of what was damaged
            for loss in self._losses:
                await self._daemon.forget_pages(loss.content)
        indexes = [loss for loss in self._losses if loss.name.startswith(INDEX_LABEL)]
        for loss in indexes:  # first: what they are for may need them
            await self._heal(loss)
        turns = trio.CapacityLimiter(AT_A_TIME)
        async with trio.open_nursery() as nursery:
            for loss in self._losses:
                if loss not in indexes:
                    await turns.acquire_on_behalf_of(loss.content)
                    nursery.start_soon(self._in_turn, loss, turns)

    async def _in_turn(self, loss: Loss, turns: trio.CapacityLimiter) -> None:
        try:
            await self._heal(loss)
        finally:
            turns.release_on_behalf_of(loss.content)

    async def _heal(self, loss: Loss) -> None:
        source = loss.version.source if loss.version is not None else ""
        try:
            if source in self._away:
                loss.error = self._away[source]
            elif loss.name.startswith(INDEX_LABEL):
                await self._fetch_index(loss)
            elif loss.version is None:
                loss.error = "no source has it any more"
            else:
                await self._fetch(loss, loss.version)
        except RefgenfsError as exc:
            loss.error = str(exc)
            if exc.transient:
                self._away[source] = loss.error
        except Exception as exc:
            log.exception("%s of %s: what was damaged could not be fetched again", loss.name, source or "no source")
            loss.error = f"unexpected: {exc!r}"
        self.done += _bytes(loss.size, loss.blocks)

    async def _fetch(self, loss: Loss, version: AssetVersion) -> None:
        library, reader = self._daemon.library, self._daemon.reader
        facts = await library.facts(version, loss.name)
        if facts.content != loss.content:
            loss.error = "the origin has another version now"
            return
        file = await library.open(facts, version, loss.name)
        for run in _runs(loss.blocks):
            if not await reader.restore(file, run):
                raise not_kept(self._daemon.store, "it")
        await self._confirm(loss)

    async def _confirm(self, loss: Loss) -> None:
        """See that the disk has kept what was fetched: one that fails may not."""
        store = self._daemon.store
        content = store.open_content(loss.content)
        if content is not None and not await store.keeps(content, loss.blocks):
            loss.error = "the disk has not kept what was fetched again"

    async def _fetch_index(self, loss: Loss) -> None:
        try:
            key = AssetKey.parse(loss.name.removeprefix(INDEX_LABEL))
            loss.version = self._daemon.catalog.snapshot.version(key)
        except (KeyFormatError, NotInCatalog) as exc:
            loss.error = str(exc)
            return
        if not await self._daemon.library.restore_index(loss.version, loss.content, loss.blocks):
            loss.error = "its archive has no seek index that could be made"
            return
        content = self._daemon.store.open_content(loss.content)
        if content is not None and content.size == loss.size:  # else it was made anew, as another one
            await self._confirm(loss)


def losses_of(
    damaged: Iterable[Damage], sizes: dict[ContentId, int], labels: dict[str, tuple[AssetVersion | None, str]]
) -> list[Loss]:
    """Return what was damaged, content by content."""
    found: dict[ContentId, Loss] = {}
    for damage in damaged:
        version, name = labels.get(damage.content, (None, damage.content))
        size = sizes.get(damage.content, 0)
        found.setdefault(damage.content, Loss(damage.content, version, name, [], size)).blocks.append(damage.index)
    return list(found.values())


def _runs(blocks: Iterable[int]) -> list[Run]:
    """Return these blocks, in order, as runs of neighbours, none longer than `RUN`."""
    order = sorted(set(blocks))
    first = order[0]
    runs = []
    for one, following in pairwise([*order, -1]):
        if following != one + 1 or one + 1 - first == RUN:
            runs.append(Run(first, one + 1))
            first = following
    return runs


def _bytes(size: int, blocks: Iterable[int]) -> int:
    return sum(max(0, block_length(size, index)) for index in blocks)
