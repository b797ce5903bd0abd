"""Values kept in memory, within a bound."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """Values by key, the least recently used dropped when their weights exceed `limit`."""

    def __init__(self, limit: int, weigh: Callable[[V], int], busy: Callable[[V], bool]) -> None:
        self._limit = limit
        self._weigh = weigh
        self._busy = busy
        self._values: OrderedDict[str, V] = OrderedDict()
        self._total = 0

    def get(self, key: str) -> V | None:
        """Return the value of a key, which counts as used; None for none."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: str, value: V) -> None:
        """Keep a value."""
        old = self._values.pop(key, None)
        self._total += self._weigh(value) - (0 if old is None else self._weigh(old))
        self._values[key] = value
        self.trim()

    def grow(self, weight: int) -> None:
        """Note that a value that is kept became heavier."""
        self._total += weight
        self.trim()

    def trim(self) -> None:
        """Drop what was used longest ago and is not busy, as far as it is too much."""
        if self._total <= self._limit:
            return
        for key, value in list(self._values.items())[:-1]:
            if self._total <= self._limit:
                break
            if not self._busy(value):
                del self._values[key]
                self._total -= self._weigh(value)
