"""Pulls that run: who looks at the daemon sees them beside what readers have fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Pull:
    """An asset that is made resident: bytes that are, of how many (None: not known yet), and fetched for it."""

    key: str
    source: str
    began: float  # Unix seconds
    done: int = 0
    total: int | None = None
    fetched: int = 0
    file: str = ""


class Pulls:
    """The pulls that run, the oldest first."""

    def __init__(self) -> None:
        self._running: dict[Pull, None] = {}

    @contextmanager
    def running(self, pull: Pull) -> Iterator[Pull]:
        """Let a pull be seen during the block."""
        self._running[pull] = None
        try:
            yield pull
        finally:
            del self._running[pull]

    def __iter__(self) -> Iterator[Pull]:
        """Yield them."""
        return iter(list(self._running))
