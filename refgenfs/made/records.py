"""What was made of which data: in memory, and in the ledger for the next life."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import trio

from refgenfs.cache.ledger import JSONValue, Ledger
from refgenfs.core.content import ContentId
from refgenfs.core.errors import CacheError
from refgenfs.core.indices import BESIDE, INSTEAD, KINDS
from refgenfs.core.newest import Newest
from refgenfs.reader.refusals import Refusals

log = logging.getLogger(__name__)

PREFIX = "made/"  # and the identity of the data, in the ledger
KEPT = 4096  # records in the ledger and in memory; those of the data whose indices were made longest ago go
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Record:
    """An index that was made: the SHA-256 (hex) of its bytes, their number, the spellings it was asked by."""

    sha256: str
    size: int
    spellings: frozenset[str] = frozenset()


Made = dict[str, Record]  # by the ending of the index


class Records:
    """The records of all data. Lives on the trio thread."""

    def __init__(self, ledger: Ledger, wall: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._wall = wall
        self._known: Newest[ContentId, Made] = Newest(KEPT)
        self._refusals = Refusals(log)

    def known(self, data: ContentId) -> Made | None:
        """Return what was made of this data; None: it isn't in memory. No I/O."""
        return self._known.get(data)

    async def load(self, wanted: Iterable[ContentId]) -> None:
        """Bring what the ledger has of these to memory."""
        missing = [data for data in wanted if data not in self._known]
        if missing:
            found = await trio.to_thread.run_sync(self._read, missing)
            for data, made in found.items():
                if data not in self._known:  # it may have been made meanwhile
                    self._known.put(data, made)

    async def get(self, data: ContentId) -> Made:
        """Return what was made of this data."""
        await self.load([data])
        return self._known.get(data, {})

    async def add(self, data: ContentId, made: Made) -> None:
        """Note what was made of this data, beside what else was."""
        before = self._known.get(data, {})
        for ending in before.keys() & made.keys():
            made = {
                **made,
                ending: replace(made[ending], spellings=made[ending].spellings | before[ending].spellings),
            }
        self._known.put(data, {**before, **made})
        await self._save(data)

    async def note_spelling(self, data: ContentId, ending: str, spelling: str) -> None:
        """Note that an index is asked for by this spelling: from now on it is listed so."""
        made = self._known.get(data, {})
        record = made.get(ending)
        if record is not None and spelling not in record.spellings:
            record = replace(record, spellings=record.spellings | {spelling})
            self._known[data] = {**made, ending: record}
            await self._save(data)

    def drop(self, data: ContentId) -> None:
        """Know of nothing that was made of this data; `forget` has to follow. Never waits."""
        self._known.put(data, {})

    async def forget(self, data: ContentId) -> None:
        """Forget for good what was made of this data: its bytes were wrong, and others will have its identity."""
        try:
            await trio.to_thread.run_sync(self._ledger.delete, f"{PREFIX}{data}")
        except CacheError as exc:
            self._refusals.warning("indices of data that was wrong can't be forgotten: %s", exc)

    async def _save(self, data: ContentId) -> None:
        row: dict[str, JSONValue] = {"at": self._wall()}
        for ending, record in self._known[data].items():
            row[ending] = [record.sha256, record.size, *sorted(record.spellings)]
        try:
            await trio.to_thread.run_sync(partial(self._write, f"{PREFIX}{data}", row))
        except CacheError as exc:
            self._refusals.warning("which indices were made is not written down: %s", exc)
        else:
            self._refusals.clear()

    def _write(self, key: str, row: JSONValue) -> None:
        """Write one row, and forget the oldest of too many. Blocks."""
        self._ledger.set(key, row)
        rows = list(self._ledger.keys(PREFIX))
        if len(rows) > KEPT:
            ages = {key: _made_at(value) for key, value in self._ledger.items(PREFIX)}
            for old in sorted(ages, key=ages.__getitem__)[: len(rows) - KEPT]:
                self._ledger.delete(old)

    def _read(self, wanted: Iterable[ContentId]) -> dict[ContentId, Made]:
        """Return what the ledger has. Blocks; what can't be read is as good as not made."""
        try:
            return {data: parse_row(self._ledger.get(f"{PREFIX}{data}")) for data in wanted}
        except CacheError as exc:
            log.warning("which indices were made can't be read: %s", exc)
            return {}


def parse_row(row: Any) -> Made:
    """Return the records of a row of the ledger; what is none is passed over."""
    made: Made = {}
    for ending, value in row.items() if isinstance(row, dict) else ():
        if ending not in KINDS or not isinstance(value, list) or len(value) < 2:
            continue
        sha256, size, *spellings = value
        if isinstance(sha256, str) and _SHA256.fullmatch(sha256) and isinstance(size, int) and size > 0:
            known = frozenset(one for one in spellings if one in (BESIDE, INSTEAD))
            made[ending] = Record(sha256, size, known)
    return made


def _made_at(row: Any) -> float:
    at = row.get("at") if isinstance(row, dict) else None
    return float(at) if isinstance(at, int | float) else 0.0
