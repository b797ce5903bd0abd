"""One question to an origin at a time for each thing, whoever asks."""

from __future__ import annotations

import copy
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar, cast

import trio

from refgenfs.core.errors import OriginUnavailable, RefgenfsError

T = TypeVar("T")

log = logging.getLogger(__name__)


class _Flight:
    __slots__ = ("done", "error", "value")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.value: Any = None
        self.error: RefgenfsError = OriginUnavailable("the catalog was closed before an answer came")


class Flights:
    """Questions under way. They belong to the nursery given to `open`, so who asks may give up waiting."""

    def __init__(self) -> None:
        self._flying: dict[Hashable, _Flight] = {}
        self._nursery: trio.Nursery | None = None
        self._waiting = 0
        self._calm = trio.Event()
        self._calm.set()

    def open(self, nursery: trio.Nursery) -> None:
        """Let flights begin, in this nursery."""
        self._nursery = nursery

    def close(self) -> None:
        """Let no more flights begin."""
        self._nursery = None

    async def join(self, key: Hashable, ask: Callable[[], Awaitable[T]], *, background: bool = False) -> T:
        """Return what `ask` returns or raise what it raises, sharing one call among all who want `key`.

        `background` marks one who has time: `calm` does not wait for it.
        """
        # no await until the insert: _flying has one entry a key
        flight = self._flying.get(key)
        if flight is None:
            flight = self._flying[key] = _Flight()
            try:
                self.start(self._fly, key, flight, ask)
            except RefgenfsError:
                del self._flying[key]
                raise
        if background:
            await flight.done.wait()
        else:
            await self._wait(flight)
        if flight.value is not None:
            return cast("T", flight.value[0])
        raise copy.copy(flight.error) from flight.error

    def start(self, task: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task of the catalog's own; raise OriginUnavailable when the catalog is closed."""
        if self._nursery is None:
            raise OriginUnavailable("the catalog is not running")
        self._nursery.start_soon(_survive, task, *args)

    async def calm(self) -> None:
        """Wait until nobody waits who has no time."""
        while self._waiting:
            await self._calm.wait()

    async def _wait(self, flight: _Flight) -> None:
        if not self._waiting:
            self._calm = trio.Event()
        self._waiting += 1
        try:
            await flight.done.wait()
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._calm.set()

    async def _fly(self, key: Hashable, flight: _Flight, ask: Callable[[], Awaitable[object]]) -> None:
        try:
            flight.value = (await ask(),)
        except RefgenfsError as exc:
            flight.error = exc
        except Exception as exc:
            log.exception("asking for %s failed unexpectedly", key)
            flight.error = OriginUnavailable(f"asking failed unexpectedly ({type(exc).__name__}); see the log")
        finally:
            del self._flying[key]
            flight.done.set()


async def _survive(task: Callable[..., Awaitable[object]], *args: object) -> None:
    """Run a task of the catalog's own; a defect in it is logged, and ends nothing else."""
    try:
        await task(*args)
    except Exception:
        log.exception("a task of the catalog failed unexpectedly")
