"""What sources ask by: the HTTP client's part that they need, and many questions at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import trio

from refgenfs.core.errors import OriginMissing, RefgenfsError

K = TypeVar("K")
V = TypeVar("V")

AT_A_TIME = 8  # requests for a catalog in pieces; the HTTP client's own limit a host, too
CATALOG_DEADLINE = 600.0  # seconds for a whole catalog; in pieces, a large one is thousands of requests


class Headers(Protocol):
    """What an origin says of an object: bytes, validator (see ByteRange), Unix mtime or 0, and if it gives parts."""

    @property
    def size(self) -> int: ...

    @property
    def validator(self) -> str: ...

    @property
    def mtime(self) -> float: ...

    @property
    def ranges(self) -> bool: ...


class Asker(Protocol):
    """The part of `fetch.http.Http` that a source needs; deadlines in seconds from now."""

    async def get_document(
        self,
        urls: Sequence[str],
        decode: Callable[[str], V],
        *,
        account: str,
        deadline: float,
        retry_for: float | None = None,
    ) -> V: ...

    async def get_json(
        self, urls: Sequence[str], *, account: str, deadline: float, retry_for: float | None = None
    ) -> Any: ...

    async def get_text(
        self, urls: Sequence[str], *, account: str, deadline: float, retry_for: float | None = None
    ) -> str: ...

    async def head(
        self,
        urls: Sequence[str],
        *,
        account: str,
        deadline: float,
        retry_for: float | None = None,
        probe: bool = True,
    ) -> Headers: ...


async def ask_all(items: Iterable[K], ask: Callable[[K], Awaitable[V]], *, at_a_time: int = AT_A_TIME) -> dict[K, V]:
    """Ask for all items, a few at a time; those that the origin has not (404) are absent from the answer.

    Raises the first other error, once everything under way has ended.
    """
    found: dict[K, V] = {}
    failed: list[RefgenfsError] = []
    pending = iter(list(items))

    async def work() -> None:
        for item in pending:
            try:
                found[item] = await ask(item)
            except OriginMissing:
                continue
            except RefgenfsError as exc:
                failed.append(exc)
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(at_a_time):
            nursery.start_soon(work)
    if failed:
        raise failed[0]
    return found
