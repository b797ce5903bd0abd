"""Requests that wait, and for whom: given up when that process is being killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import trio

from refgenfs.core.errands import on_behalf_of
from refgenfs.core.errors import TooManyRequests
from refgenfs.core.shares import Shares
from refgenfs.fuse.errnos import Interrupted
from refgenfs.processes import is_alive, wants_to_die
from refgenfs.tracing import Event, Handle, Tracing

IMPATIENCE = 0.5  # seconds after which a waiting caller is asked whether it is being killed


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request that may have to wait, and for whom; `surely`: that process itself waits."""

    pid: int
    uid: int
    since: float  # trio's time
    scope: trio.CancelScope
    surely: bool
    reading: tuple[Handle, int, int] | None  # a file, an offset and a size


class Callers:
    """The requests that wait, and that may: each has one of `TASKS`, and nobody has all. Lives on the trio thread."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._waiting: dict[int, _Waiting] = {}
        self._next = 1

    @property
    def count(self) -> int:
        """How many requests wait, those included that need not wait for long."""
        return len(self._waiting)

    @contextmanager
    def waiting(
        self, pid: int, uid: int, *, surely: bool = True, reading: tuple[Handle, int, int] | None = None
    ) -> Iterator[None]:
        """Give up the body with EINTR once its caller is being killed (the kernel would wait for ever).

        Who reads may not be who opened the file (not `surely`): that one's end then says nothing. Raises
        TooManyRequests for a user of whom so many wait that others would have to.
        """
        if not self._shares.take(uid):
            raise TooManyRequests(f"as many requests of user {uid} wait as one user's may")
        token, self._next = self._next, self._next + 1
        scope = trio.CancelScope()
        self._waiting[token] = _Waiting(pid, uid, trio.current_time(), scope, surely, reading)
        try:
            with scope, on_behalf_of(uid):
                yield
        finally:
            del self._waiting[token]
            self._shares.give_back(uid)
        if scope.cancelled_caught:
            raise Interrupted(f"process {pid} is being killed")

    async def watch(self) -> NoReturn:
        """Look after callers that wait for long. Runs until cancelled."""
        while True:
            await trio.sleep(IMPATIENCE)
            now = trio.current_time()
            long = [one for one in self._waiting.values() if now - one.since >= IMPATIENCE]
            # Each process is asked about once, however many of its requests wait: thousands of questions, twice a
            # second, would hold up everybody.
            dying = {pid: is_alive(pid) for pid in {one.pid for one in long} if wants_to_die(pid)}
            for one in long:
                if one.pid in dying and (one.surely or dying[one.pid]):
                    one.scope.cancel()

    def longer(self, than: float, tracing: Tracing, uid: int | None = None) -> list[tuple[int, Event]]:
        """Return the requests that have waited for longer than so many seconds, each with a number of its own.

        With `uid`, those of one user.
        """
        now = trio.current_time()
        return [
            (token, tracing.under_way(one.reading, one.pid, one.uid, now - one.since))
            for token, one in self._waiting.items()
            if now - one.since > than and uid in (None, one.uid)
        ]
