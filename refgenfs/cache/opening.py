"""The life of a cache directory: locked, opened, looked after, closed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from refgenfs.cache.lock import DirectoryLock
from refgenfs.cache.startup import open_directory
from refgenfs.cache.store import CacheLimits, Store


@asynccontextmanager
async def open_store(
    directory: Path,
    limits: CacheLimits,
    *,
    owner: str,
    wait: bool = True,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
) -> AsyncIterator[Store]:
    """Open the cache in `directory`, which is made if it is not there, and keep it in order while it is open.

    `owner` is who holds it, for people (the mountpoint). Without `wait`, what is resident is read while the block
    runs already (see `Store.ready`). A disk that is full, read-only or broken for now is no error: what is there is
    read, nothing is stored, and it is tried again every little while. Raises CacheBusy when another process holds
    the directory, and CacheError when it can't be used at all.
    """
    lock = await trio.to_thread.run_sync(DirectoryLock.acquire, directory, owner)
    failure: BaseException | None = None
    try:
        opened = await trio.to_thread.run_sync(open_directory, directory, lock.refused)
        store = Store(directory, limits, opened, lock, clock=clock, now=now)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.look_after)
                try:
                    if wait:
                        await store.ready()
                    yield store
                except BaseException as exc:  # noqa: BLE001 - raised below: a nursery wraps it in a group
                    failure = exc
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await store.aclose()
        if failure is not None:
            raise failure
    finally:
        lock.release()
