"""For whom keys are pinned: the names and times of requests, and the requests under way for a name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from refgenfs.cache.pinrows import BY_HAND
from refgenfs.core.errors import CacheError, ControlError

LONGEST_LEASE = 30 * 366 * 86400  # seconds, as for durations in general
END_DEADLINE = 10.0  # seconds for a request that was cancelled to end
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,99}")


def name_in(arguments: dict[str, Any]) -> str:
    """Return the name that a request pins or unpins for, BY_HAND if it gives none. Raises ControlError."""
    name = arguments.get("for")
    if name is None:
        return BY_HAND
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise ControlError(f"{name!r} is no name to pin for: letters, digits and . _ : @ + -, 100 at most")
    return name


def claim_in(arguments: dict[str, Any], now: float) -> dict[str, float | None]:
    """Return what a request to pin claims: its name, and until when in Unix seconds. Raises ControlError."""
    name, lease = name_in(arguments), arguments.get("lease")
    if lease is None:
        return {name: None}
    if isinstance(lease, bool) or not isinstance(lease, int | float) or not 0 < lease <= LONGEST_LEASE:
        raise ControlError("a lease is a number of seconds, more than 0, and thirty years at most")
    return {name: now + float(lease)}


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)


class Claims:
    """Requests under way that pin for a name. Letting go of the name ends them, or they would pin after it."""

    def __init__(self) -> None:
        self._requests: dict[str, set[_Request]] = {}

    @contextmanager
    def under_way(self, name: str) -> Iterator[None]:
        """Have the block end early, with CacheError, when `end` is called for its name."""
        request = _Request()
        self._requests.setdefault(name, set()).add(request)
        try:
            with request.scope:
                yield
        finally:
            request.ended.set()
            self._requests[name].discard(request)
            if not self._requests[name]:
                del self._requests[name]
        if request.scope.cancelled_caught:
            raise CacheError(f"{name} was let go of by `refgenfs unpin --for {name}` before all was here")

    async def end(self, name: str) -> None:
        """End the requests under way for a name."""
        requests = list(self._requests.get(name, ()))
        for request in requests:
            request.scope.cancel()
        with trio.move_on_after(END_DEADLINE):
            for request in requests:
                await request.ended.wait()
