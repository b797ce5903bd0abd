"""Legs: ranges ahead of what a stream is fed, each fetched by a connection of its own into memory.

They are a help and no more. A leg waits for nothing: neither for memory nor for a connection. What goes wrong with
one ends it, and is nobody's error: the stream, when it comes there, asks for what is missing itself, and retries.

Everything runs on the asyncio loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Protocol

from refgenfs.core.errors import IntegrityError, OriginUnavailable, redact_url, without_frames
from refgenfs.core.httprange import RangeRequest, Verdict, range_headers
from refgenfs.core.lanes import KEPT_FREE, share
from refgenfs.core.retry import Remedy
from refgenfs.fetch.answers import AttemptFailed, RangesIgnored, check_range
from refgenfs.fetch.pieces import read_body
from refgenfs.fetch.session import NoneToSpare
from refgenfs.fetch.transfers import Line
from refgenfs.fetch.urls import host_of, parse_url

log = logging.getLogger(__name__)


class Lease(Protocol):
    """Memory that a leg has."""

    def release(self) -> None:
        """Give it back. Never awaits; idempotent; for any thread."""
        ...


class Lender(Protocol):
    """What has memory for legs. Awaited on the asyncio loop."""

    async def take(self, nbytes: int, recall: Callable[[], None]) -> Lease | None:
        """Have memory, or None where there is none to spare, or nobody waits for the stream.

        `recall` is called, on the asyncio loop, when what the leg has is wanted for something better.
        """
        ...


class Leg:
    """The bytes `start` up to `stop` of an object, on their way into memory. `drop` or `aclose` must follow."""

    def __init__(
        self, line: Line, url: str, wanted: RangeRequest, lender: Lender, ended: Callable[[Leg], None]
    ) -> None:
        self.url = url
        self.start = wanted.start
        self.stop = wanted.stop
        self.failure: AttemptFailed | None = None  # why it ended early
        self.flying = True
        self._line = line
        self._wanted = wanted
        self._lender = lender
        self._lease: Lease | None = None
        self._received = 0
        self._chunks: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: ended(self))

    @property
    def empty(self) -> bool:
        """Whether it has ended with nothing to be fed."""
        return not self.flying and not self._chunks

    @property
    def whole(self) -> bool:
        """Whether all of it came."""
        return self._received == self.stop - self.start

    async def next(self) -> bytes | None:
        """Return the next bytes, waiting for them; None when there are no more."""
        while not self._chunks:
            if not self.flying:
                return None
            self._news.clear()
            await self._news.wait()
        return self._chunks.popleft()

    def drop(self) -> None:
        """Forget what came, end what is under way, and give back the memory. Never awaits; idempotent."""
        self._task.cancel()
        self.flying = False
        self._chunks.clear()
        if self._lease is not None:
            self._lease.release()
        self._news.set()

    async def aclose(self) -> None:
        """Do as `drop`, and wait until nothing of it is under way."""
        self.drop()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            await self._fetch()
        except AttemptFailed as failure:
            log.debug("%s: a leg ended early: %s", redact_url(self.url), failure.what)
            self.failure = without_frames(failure)
            if failure.kind is IntegrityError:
                self._chunks.clear()
        except Exception as exc:
            log.exception("a fetch of a part of %s failed unexpectedly", redact_url(self.url))
            self.failure = AttemptFailed(OriginUnavailable, f"unexpected {type(exc).__name__}", Remedy.AGAIN)
        finally:
            self.flying = False
            self._news.set()

    async def _fetch(self) -> None:
        wanted, line = self._wanted, self._line
        self._lease = await self._lender.take(wanted.stop - wanted.start, self.drop)
        if self._lease is None:
            raise NoneToSpare
        async with line.session.request(
            "GET", self.url, range_headers(wanted), account=line.account, waited=lambda _: None, leave=KEPT_FREE
        ) as answer:
            verdict = check_range(wanted, answer.status, answer.headers, line.wall())
            if verdict is Verdict.IGNORE_RANGE:
                raise AttemptFailed(RangesIgnored, "it knows no ranges", Remedy.ELSEWHERE)
            async with aclosing(read_body(answer, wanted.stop - wanted.start, line.received)) as chunks:
                async for chunk in chunks:
                    self._chunks.append(chunk)
                    self._received += len(chunk)
                    self._news.set()


class Streaming:
    """Which hosts feed how many streams: these share their connections."""

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._streams: Counter[tuple[str, str, int]] = Counter()

    @contextmanager
    def counted(self, url: str) -> Iterator[Callable[[], int]]:
        """Count a stream while the block lasts; yield what says how many connections it may have."""
        host = ("", "", 0)
        with suppress(AttemptFailed):  # no URL: it fails where it is asked
            host = host_of(parse_url(url))
        self._streams[host] += 1
        try:
            yield lambda: share(self._connections, self._streams[host])
        finally:
            self._streams[host] -= 1
            self._streams += Counter()  # those that are none go
