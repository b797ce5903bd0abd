"""A bounded hand-over of bytes from the asyncio loop to a thread."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import suppress

# Compressed bytes that wait while earlier ones are inflated: enough that neither side idles between two pieces.
AHEAD = 512 * 1024


class IntakeClosed(Exception):
    """The reading side is gone."""


class Intake:
    """Pieces of bytes on their way to one thread; at most `AHEAD` bytes and one piece wait in it.

    One coroutine puts, one thread takes. Any thread may `end` it (no more will come; what waits is taken
    first) or `close` it (nobody takes any more).
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._ended = False
        self._closed = False
        self._blocked: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    @property
    def empty(self) -> bool:
        """Say whether nothing waits to be taken."""
        return not self._pieces

    async def put(self, piece: bytes) -> None:
        """Hand over a piece; waits while more than `AHEAD` bytes wait. Raises IntakeClosed. On the asyncio loop."""
        with self._changed:
            if self._closed or self._ended:
                raise IntakeClosed
            self._pieces.append(piece)
            self._held += len(piece)
            self._changed.notify()
            if self._held <= AHEAD:
                return
            loop = asyncio.get_running_loop()
            room: asyncio.Future[None] = loop.create_future()
            self._blocked = (loop, room)
        await room

    def take(self) -> bytes | None:
        """Return the next piece, waiting for it; None when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._ended or self._closed)
            if self._closed or not self._pieces:
                return None
            piece = self._pieces.popleft()
            self._held -= len(piece)
            if self._held <= AHEAD:
                self._unblock()
            return piece

    def end(self) -> None:
        """Let `take` return None after what waits."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def close(self) -> None:
        """Drop what waits; `take` returns None, `put` raises IntakeClosed if called again."""
        with self._changed:
            self._closed = True
            self._pieces.clear()
            self._held = 0
            self._changed.notify()
            self._unblock()

    def _unblock(self) -> None:
        if self._blocked is not None:
            (loop, room), self._blocked = self._blocked, None
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_settle, room)


def _settle(room: asyncio.Future[None]) -> None:
    if not room.done():
        room.set_result(None)
