"""Tickets: asked for by query, believed until a block of theirs is refused. Everything runs on the asyncio loop.

URLs and headers of blocks live here and nowhere else: no extent, no ledger, no message has them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum

import aiohttp

from refgenfs.core.errors import DeadlineExceeded, IntegrityError, InvalidInput, RefgenfsError, StaleContent
from refgenfs.core.htsget.model import Query, Ticket
from refgenfs.core.httprange import content_coding
from refgenfs.core.retry import Remedy, Retry
from refgenfs.core.ticket import (
    ACCEPT,
    MAX_ERROR,
    Place,
    TicketParser,
    TicketRequest,
    inline_data,
    joins_records_once,
    parse_error,
    place_of,
    request_of,
)
from refgenfs.core.ticketblocks import TicketBlocks
from refgenfs.fetch.answers import AttemptFailed, OriginUnusable, status_failure
from refgenfs.fetch.blocks import DIGEST
from refgenfs.fetch.http import Http
from refgenfs.fetch.pieces import read_body
from refgenfs.fetch.transfers import Line

TICKETS = 512  # in memory
TICKET_MEMORY = 32 << 20  # bytes of answers whose tickets are in memory; one at the least
SHORT = 64 * 1024  # bytes of an answer that is parsed on the spot


class Manner(Enum):
    """How a block can be had."""

    UNKNOWN = "unknown"
    PARTS = "parts"  # parts of it were given
    WHOLE = "whole"  # it was seen that only all of it is


@dataclass(slots=True)
class LiveTicket:
    """A ticket that is believed. A block is a place where it is, or its bytes."""

    account: str
    query: Query
    blocks: tuple[Place | bytes, ...]
    md5: str
    weight: int  # bytes of the answer
    manners: list[Manner]
    fitting: str = ""  # the validator of the contents that were last seen to fit

    def object(self, index: int, suffix: str) -> Place | bytes:
        """Return block `index`, or the object beside it whose URL ends with `suffix` more."""
        block = self.blocks[index]
        if suffix and isinstance(block, Place):
            return Place(f"{block.url}{suffix}", block.headers)
        return block

    @property
    def lengths(self) -> tuple[int | None, ...]:
        """The lengths that the ticket itself tells, in order."""
        return tuple(len(block) if isinstance(block, bytes) else block.length for block in self.blocks)

    def check(self, extent: TicketBlocks) -> None:
        """Raise StaleContent where these are not the blocks of that content."""
        if extent.suffix or self.fitting == extent.validator:
            return
        same = len(self.blocks) == len(extent.blocks) and all(
            length in (None, known.length) for length, known in zip(self.lengths, extent.blocks, strict=True)
        )
        if not same or (self.md5 and extent.md5 and self.md5 != extent.md5):
            raise StaleContent(
                f"{self.query.id}: the server gives a ticket for other blocks now; open the file again"
            )
        for block, known in zip(self.blocks, extent.blocks, strict=True):
            if isinstance(block, bytes) and known.validator != digest_of(block):
                raise StaleContent(f"{self.query.id}: the server gives other bytes now; open the file again")
        self.fitting = extent.validator


def digest_of(data: bytes) -> str:
    """Return the validator of a block that is known by its bytes."""
    return DIGEST + hashlib.sha256(data).hexdigest()


class Tickets:
    """The tickets in memory, and those on their way: one request for a query at a time, whoever asks."""

    def __init__(self, http: Http, servers: Callable[[str], Sequence[str]]) -> None:
        self._http = http
        self._servers = servers  # the URLs of an account's server, its mirrors behind it
        self._live: OrderedDict[tuple[str, Query], LiveTicket] = OrderedDict()
        self._weight = 0
        self._asking: dict[tuple[str, Query], asyncio.Task[LiveTicket]] = {}

    def __len__(self) -> int:
        return len(self._live)

    async def get(self, account: str, query: Query) -> LiveTicket:
        """Return the ticket in memory, else ask for it; raises the errors of the server."""
        live = self._live.get((account, query))
        if live is not None:
            self._live.move_to_end((account, query))
            return live
        return await self.ask(account, query)

    async def renew(self, old: LiveTicket) -> LiveTicket:
        """Return a ticket for the same that is newer than `old`, whose blocks are refused."""
        key = (old.account, old.query)
        live = self._live.get(key)
        if live is None or live is old:
            live = await self.ask(*key)
        if live.lengths == old.lengths:  # that only all of a block is given may have been the refusal
            parts = [then is Manner.PARTS for then in old.manners]
            live.manners[:] = [Manner.PARTS if was else now for was, now in zip(parts, live.manners, strict=True)]
        return live

    async def ask(self, account: str, query: Query, *, patience: float | None = None) -> LiveTicket:
        """Ask for a ticket now; with `patience` (seconds) once, and for no longer.

        Raises the server's errors; DeadlineExceeded.
        """
        key = (account, query)
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._ask(account, query, patience))
            task.add_done_callback(_look_at)
        limit = asyncio.timeout(patience)
        try:
            async with limit:
                return await asyncio.shield(task)
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise DeadlineExceeded(f"no ticket for {query.id} within {patience:g} s") from exc

    async def aclose(self) -> None:
        """End what is under way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)

    async def _ask(self, account: str, query: Query, patience: float | None) -> LiveTicket:
        request, line = request_of(query), self._http.line(account)
        urls = [request.url(server) for server in self._servers(account)]

        async def attempt(url: str, retry: Retry) -> LiveTicket:
            return await _read_ticket(line, url, request, query, retry)

        retry_for = None if patience is None else 0
        try:
            live = await self._http.attempts.make(urls, account, attempt, retry_for=retry_for)
            self._keep((account, query), live)  # before anybody who waits goes on
            return live
        finally:
            del self._asking[account, query]

    def _keep(self, key: tuple[str, Query], live: LiveTicket) -> None:
        old = self._live.pop(key, None)
        self._weight += live.weight - (old.weight if old is not None else 0)
        self._live[key] = live
        while len(self._live) > 1 and (len(self._live) > TICKETS or self._weight > TICKET_MEMORY):
            _, oldest = self._live.popitem(last=False)
            self._weight -= oldest.weight


async def _read_ticket(line: Line, url: str, request: TicketRequest, query: Query, retry: Retry) -> LiveTicket:
    """Ask one server; raise AttemptFailed."""
    headers = {"Accept": ACCEPT} | ({"Content-Type": "application/json"} if request.body is not None else {})
    method = "GET" if request.body is None else "POST"
    async with line.session.request(
        method, url, headers, account=line.account, waited=retry.excluded, body=request.body
    ) as answer:
        if answer.status != 200:
            raise await _refused(answer, line)
        coding = content_coding(answer.headers)
        if coding:
            what = f"the ticket is coded ({coding}), which was not asked for"
            raise AttemptFailed(IntegrityError, what, Remedy.DOUBTFUL)
        assert query.format is not None
        parser = TicketParser(query.format)
        try:
            async with aclosing(read_body(answer, None, line.received)) as chunks:
                async for chunk in chunks:
                    parser.feed(chunk)
            if parser.size < SHORT:
                return _live(line.account, query, parser.finish(), parser.size)
            return await asyncio.to_thread(lambda: _live(line.account, query, parser.finish(), parser.size))
        except RefgenfsError as exc:
            remedy = Remedy.DOUBTFUL if type(exc) is IntegrityError else Remedy.ELSEWHERE
            raise AttemptFailed(type(exc), str(exc), remedy) from None


def _look_at(task: asyncio.Task[LiveTicket]) -> None:
    """See the error of a task, which nobody may have waited for any more."""
    if not task.cancelled():
        task.exception()


def _live(account: str, query: Query, ticket: Ticket, weight: int) -> LiveTicket:
    if len(query.regions) > 1 and not joins_records_once(ticket):
        raise InvalidInput("the server gives several files, one after the other, for several regions")
    blocks: list[Place | bytes] = []
    for block in ticket.urls:
        data = inline_data(block.url)
        blocks.append(data if data is not None else place_of(block))
    return LiveTicket(account, query, tuple(blocks), ticket.md5 or "", weight, [Manner.UNKNOWN] * len(blocks))


async def _refused(answer: aiohttp.ClientResponse, line: Line) -> AttemptFailed:
    """Return what an answer that is no ticket means: by its status where asking again helps, else by its body."""
    if answer.status == 501:  # it has no such method, and won't have it in a moment
        return AttemptFailed(OriginUnusable, "HTTP 501", Remedy.ELSEWHERE, status=501)
    failure = status_failure(answer.status, answer.headers, line.wall())
    if failure is not None and failure.remedy is not Remedy.ELSEWHERE:
        return failure
    body = bytearray()
    async with aclosing(read_body(answer, None, line.received)) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > MAX_ERROR:
                break
    error = parse_error(answer.status, bytes(body))
    if error is not None:
        return AttemptFailed(type(error), str(error), Remedy.ELSEWHERE, status=answer.status)
    return failure or AttemptFailed(IntegrityError, f"HTTP {answer.status}, unasked", Remedy.DOUBTFUL)
