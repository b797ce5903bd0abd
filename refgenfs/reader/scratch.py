"""Room in the cache for what the asyncio thread spools."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from refgenfs.cache.shelf import Reservation
from refgenfs.cache.store import Store
from refgenfs.fetch.http import Http
from refgenfs.fetch.ticketed import TicketFetcher

SHARE = 4  # spools take at most the quota by this
READY_PATIENCE = 60.0  # seconds until it is known what is resident
_LOOK_AGAIN = 0.05
GRACE = 2.0  # seconds until what is under way at the end is left behind


@asynccontextmanager
async def open_tickets(
    http: Http, store: Store, servers: Mapping[str, Sequence[str]]
) -> AsyncIterator[TicketFetcher]:
    """Open a fetcher of blocks of tickets that spools to the store's scratch folder, for servers by account."""
    fetcher = TicketFetcher(http, StoreScratch(store), lambda account: servers[account])
    try:
        yield fetcher
    finally:
        with trio.move_on_after(GRACE) as scope:
            scope.shield = True
            await fetcher.aclose()


class StoreScratch:
    """The scratch folder of a store, and room in its quota (see `fetch.spools.Scratch`). Made on the trio thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._token = trio.lowlevel.current_trio_token()

    @property
    def folder(self) -> Path:
        """Where the files go."""
        return self._store.scratch

    @property
    def limit(self) -> int:
        """How many bytes they may take, all together."""
        return self._store.quota // SHARE

    async def reserve(self, nbytes: int) -> Callable[[], None] | None:
        """Make room, at the expense of what was used longest ago; awaited on the asyncio loop."""
        deadline = asyncio.get_running_loop().time() + READY_PATIENCE
        while not self._store.is_ready and asyncio.get_running_loop().time() < deadline:
            self._token.run_sync_soon(self._store.look)
            await asyncio.sleep(_LOOK_AGAIN)
        answer: asyncio.Future[Reservation | None] = asyncio.get_running_loop().create_future()
        try:
            self._token.run_sync_soon(self._answer, answer, nbytes)
            reservation = await asyncio.shield(answer)
        except trio.RunFinishedError:
            return None
        except asyncio.CancelledError:
            answer.add_done_callback(lambda late: self._release(late.result()))
            raise
        return None if reservation is None else lambda: self._release(reservation)

    def _answer(self, answer: asyncio.Future[Reservation | None], nbytes: int) -> None:
        """Reserve on the trio thread, and say so on the other."""
        reservation = self._store.reserve(nbytes) if self._store.is_ready else None
        answer.get_loop().call_soon_threadsafe(answer.set_result, reservation)

    def _release(self, reservation: Reservation | None) -> None:
        if reservation is not None:
            try:
                self._token.run_sync_soon(reservation.release)
            except trio.RunFinishedError:
                return  # the store is closed
