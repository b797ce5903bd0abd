"""`trace`: the kernel's requests as they are answered, and what the others wait for."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import trio

from refgenfs.administration.parts import ALL, Daemon, Sight
from refgenfs.control import Operation, Progress
from refgenfs.core.errors import ControlError
from refgenfs.tracing import Event

TICK = 0.1  # seconds between what a client is sent
LONGEST = 10**9  # seconds
BEAT = 1.0  # seconds after which it is sent something in any case: one that has gone is noticed by that
PATIENCE = 1.0  # seconds of a wait that is told of while it lasts; then at twice, four times …


class Following:
    """The operation `trace`, for who has this sight: of others' requests nothing is told."""

    def __init__(self, daemon: Daemon, sight: Sight = ALL) -> None:
        self._daemon = daemon
        self._sight = sight

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {"trace": self.trace}

    def _trouble(self, event: Event) -> str:
        """Return what last failed at the source of a request while it waited, if anything did."""
        since = time.time() - event.seconds
        for failure in reversed(self._daemon.http.failures):
            if failure.when >= since and failure.account == event.source:
                return f"{failure.url}: {failure.what} (attempt {failure.attempt})"
        return ""

    async def trace(self, arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Send requests and waits for so many `seconds`, or until the client goes."""
        seconds = arguments.get("seconds")
        if seconds is not None and not (isinstance(seconds, int | float) and 0 <= seconds <= LONGEST):
            raise ControlError(f"a request's seconds are a number, from 0 to {LONGEST:,}")
        fuse = self._daemon.fuse
        due: dict[int, float] = {}  # when a wait is told of again, in seconds of it
        sent = float("-inf")
        ends = trio.current_time() + (float("inf") if seconds is None else seconds)
        with fuse.tracing.follow(self._daemon.board, self._sight.uid) as follower:
            while True:
                over = trio.current_time() >= ends
                events, dropped = follower.take()
                waits = fuse.callers.longer(PATIENCE, fuse.tracing, self._sight.uid)
                due = {token: due.get(token, PATIENCE) for token, _ in waits}
                for token, event in waits:
                    if event.seconds >= due[token]:
                        due[token] = 2 * event.seconds
                        events.append(asdict(event) | {"trouble": self._trouble(event)})
                if events or dropped or trio.current_time() - sent >= BEAT:
                    sent = trio.current_time()
                    await progress({"events": events, "dropped": dropped})
                if over:
                    return {}
                await trio.sleep(min(TICK, max(0.0, ends - trio.current_time())))
