"""What the catalog writes down, and finds again in its next life."""

from __future__ import annotations

import logging
from typing import Protocol

import trio

from refgenfs.core.catalog_json import JSONValue
from refgenfs.core.errors import CacheError

log = logging.getLogger(__name__)


class LedgerLike(Protocol):
    """The part of the ledger that the catalog needs. Blocks; safe in threads; raises CacheError."""

    def get(self, key: str) -> JSONValue | None:
        """Return the value of a key, or None."""
        ...

    def set(self, key: str, value: JSONValue) -> None:
        """Write a value."""
        ...


class Notebook:
    """The ledger as the catalog sees it: away from the trio thread, and never a reason to fail."""

    def __init__(self, ledger: LedgerLike) -> None:
        self.ledger = ledger
        self._failing = False

    async def read(self, key: str) -> JSONValue | None:
        """Return the value of a key; None when there is none or the ledger can't be used."""
        try:
            return await trio.to_thread.run_sync(self.ledger.get, key)
        except CacheError as exc:
            self._note(exc)
            return None

    async def write(self, key: str, value: JSONValue) -> None:
        """Keep a value if the ledger can be used; else it is asked for again in the next life."""
        try:
            await trio.to_thread.run_sync(self.ledger.set, key, value)
            self._failing = False
        except CacheError as exc:
            self._note(exc)

    def _note(self, exc: CacheError) -> None:
        log.log(logging.DEBUG if self._failing else logging.WARNING, "the catalog is not kept: %s", exc)
        self._failing = True
