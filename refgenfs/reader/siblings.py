"""Siblings: the files that a tool will read next start to arrive when it opens the first (`core/siblings.py`).

All of this lives on the trio thread. Nobody waits for a sibling yet, so it never costs anybody who does: it
flies only while requests are to spare, within a budget of bytes, and into room that nobody uses.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from refgenfs.cache.store import Store
from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import BLOCK, ContentId, FileFacts, Run, block_count
from refgenfs.core.errors import RefgenfsError
from refgenfs.core.siblings import Opening, SiblingRule, recognise, siblings
from refgenfs.reader.ranges import LONGEST_RUN
from refgenfs.reader.reader import OpenFile, Reader

log = logging.getLogger(__name__)

# Who opens a file and closes it at once (`file *`, a check that it is there) has this much of each sibling
# fetched in vain; the rest waits until the file has been open for DWELL.
HEAD = 4 * 1024 * 1024 // BLOCK  # blocks
DWELL = 0.5  # seconds
# Tools close one file before they open the next.
GRACE = 3.0  # seconds
# Requests to a host at a time that are left to readers.
FOR_READERS = 2


class Places(Protocol):
    """What is known of an asset's files (the library)."""

    async def listing(self, version: AssetVersion) -> tuple[str, ...]:
        """Return the names of a version's files as far as no archive has to be streamed for them."""
        ...

    async def ready_facts(self, version: AssetVersion, name: str) -> FileFacts | None:
        """Return a file's facts; None where an archive would have to be streamed for them."""
        ...

    async def open(self, facts: FileFacts, version: AssetVersion, name: str) -> OpenFile:
        """Open a content by one of its names."""
        ...


@dataclass(slots=True)
class _Party:
    """The siblings of one opened file, on their way for as long as one of them is open."""

    stamp: int  # of the store when it began: what was used since is not evicted for it
    members: set[ContentId]
    holders: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def leave(self) -> None:
        """Give up one hold; with none left, it ends after the grace."""
        self.holders -= 1
        if not self.holders:
            self.scope.deadline = trio.current_time() + GRACE

    def join(self) -> None:
        """Hold it: a file of it is open."""
        self.holders += 1
        self.scope.deadline = math.inf


@dataclass(frozen=True, slots=True)
class _Held:
    """A file that is open: the store's stamp when that was, and the parties that it is of."""

    stamp: int
    parties: tuple[_Party, ...]


class Siblings:
    """Has the siblings of opened files fetched. `budget` bounds what is on its way at a time, in bytes."""

    def __init__(
        self,
        places: Places,
        reader: Reader,
        store: Store,
        rules: Sequence[SiblingRule],
        *,
        budget: int,
        connections: int,
        nursery: trio.Nursery,
    ) -> None:
        self.brought = 0  # bytes that were found or fetched
        self._places = places
        self._reader = reader
        self._store = store
        self._nursery = nursery
        self._slots = trio.CapacityLimiter(1)
        self.renew(rules, budget=budget, connections=connections)
        self._open: dict[int, _Held] = {}  # by the file's id(), the oldest first
        self._parties: dict[tuple[AssetVersion, str, str, str], _Party] = {}

    def renew(self, rules: Sequence[SiblingRule], *, budget: int, connections: int) -> None:
        """Go by other rules and bounds from now on; who is under way goes on."""
        self._rules = rules
        self._run = min(LONGEST_RUN, budget // BLOCK)  # blocks of one request; 0: nothing is fetched
        self._slots.total_tokens = max(1, min(budget // (max(1, self._run) * BLOCK), connections // 2))
        self._limit = max(1, connections - FOR_READERS)

    def opened(self, file: OpenFile, version: AssetVersion, name: str) -> None:
        """Note that a file was opened, by this name of this version; `closed` must follow. Never waits."""
        if not self._run:
            return
        cid = file.facts.content
        opening = recognise(self._rules, version.asset, name) if self._reader.can_bring(file.facts) else None
        if opening is not None:
            self._begin(opening, version, cid)
        parties = tuple(party for party in self._parties.values() if cid in party.members)
        for party in parties:
            party.join()
        self._open[id(file)] = _Held(self._store.stamp, parties)

    def closed(self, file: OpenFile) -> None:
        """Note that a file was closed. Never waits."""
        held = self._open.pop(id(file), None)
        for party in held.parties if held is not None else ():
            party.leave()

    def _begin(self, opening: Opening, version: AssetVersion, cid: ContentId) -> None:
        key = (version, opening.rule.name, opening.folder, opening.stem)
        if key not in self._parties:
            party = self._parties[key] = _Party(self._store.stamp, {cid})
            self._nursery.start_soon(self._serve, key, party, opening)

    async def _serve(self, key: tuple[AssetVersion, str, str, str], party: _Party, opening: Opening) -> None:
        try:
            with party.scope:
                await self._bring(party, await self._find(party, opening, key[0]))
        except RefgenfsError as exc:  # whoever reads them meets it again, and is told
            log.debug("the siblings of %s did not come: %s", opening.name, exc)
        except Exception:
            log.exception("the siblings of %s could not be fetched", opening.name)
        finally:
            del self._parties[key]

    async def _find(self, party: _Party, opening: Opening, version: AssetVersion) -> list[OpenFile]:
        """Open the siblings that are not all there; none of them when the cache is too small for them."""
        await self._store.ready()
        wanted: dict[str, FileFacts] = {}
        for name in siblings(opening, await self._places.listing(version)):
            facts = await self._places.ready_facts(version, name)
            if facts is not None and facts.size <= (opening.rule.largest or facts.size):
                wanted[name] = facts
        party.members.update(facts.content for facts in wanted.values())
        short = {
            name: facts for name, facts in wanted.items() if self._lacks(facts) and self._reader.can_bring(facts)
        }
        if not short:
            return []
        if sum(map(self._lacks, short.values())) > self._store.room // 2:
            log.debug("the siblings of %s are too large for this cache", opening.name)
            return []
        for content in party.members:  # what is there of them is as good as used: it must not make room for the rest
            self._store.touch(content)
        return [await self._places.open(facts, version, name) for name, facts in short.items()]

    def _lacks(self, facts: FileFacts) -> int:
        return facts.size - self._store.resident_bytes(facts.content)

    async def _bring(self, party: _Party, files: Sequence[OpenFile]) -> None:
        """Have the beginnings fetched, and then the rest if the opener is still there."""
        await self._fetch(party, ((file, run) for file in files for run in self._cut(file, 0, HEAD)))
        rest = [file for file in files if block_count(file.facts.size) > HEAD]
        if rest:
            await trio.sleep(DWELL)
            if party.holders:
                await self._fetch(party, ((file, run) for file in rest for run in self._cut(file, HEAD)))

    def _cut(self, file: OpenFile, first: int, stop: int | None = None) -> Iterator[Run]:
        end = block_count(file.facts.size)
        end = end if stop is None else min(stop, end)
        return (Run(at, min(at + self._run, end)) for at in range(first, end, self._run))

    async def _fetch(self, party: _Party, runs: Iterator[tuple[OpenFile, Run]]) -> None:
        """Have these runs fetched, several at a time; ends the party when one of them can't be had."""
        failed: list[RefgenfsError] = []  # raised as it is: a nursery would wrap it in a group

        async def work() -> None:
            try:
                for file, run in runs:
                    async with self._slots:
                        await self._reader.turn(self._limit)
                        if not await self._reader.bring(file, run, self._older_than(party)):
                            party.scope.cancel()
                            return
                        self.brought += min(run.stop * BLOCK, file.facts.size) - run.first * BLOCK
            except RefgenfsError as exc:
                failed.append(exc)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(int(self._slots.total_tokens)):
                nursery.start_soon(work)
        if failed:
            raise failed[0]

    def _older_than(self, party: _Party) -> int:
        """Return the stamp of the store below which things may go: nothing that a file was opened for."""
        oldest = next(iter(self._open.values()), None)
        return party.stamp if oldest is None else min(oldest.stamp, party.stamp)
