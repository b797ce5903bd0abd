"""Sequences from refget servers (GA4GH refget 1 and 2): taken whole once, believed when the MD5 is right.

Until its MD5 was seen to be right, nobody is shown a byte of it. Then 8 bytes of a digest of each block are kept, so
that what is evicted can be fetched again by ranges, and checked block by block.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from refgenfs.cache.ledger import JSONValue
from refgenfs.cache.store import Store
from refgenfs.catalog.flights import Flights
from refgenfs.core.content import BLOCK, ByteRange, CheckedRange, FileFacts, block_count, content_id
from refgenfs.core.errands import User, current
from refgenfs.core.errors import (
    CacheError,
    IntegrityError,
    OriginMissing,
    RefgenfsError,
    StaleContent,
    TooManyRequests,
    redact_url,
)
from refgenfs.core.newest import Newest
from refgenfs.fetch.http import Http
from refgenfs.fetch.pieces import RangeSink
from refgenfs.reader.reader import Reader

log = logging.getLogger(__name__)

SERVERS = "refget"  # the account of all of them
ASK = 30.0  # seconds for a server to say whether it has a sequence
LARGEST = 8 << 30  # bases of one; the longest chromosomes have 4 billion
DIGEST = 8  # bytes of a block's: for a wrong block to pass is one in 2^64
HOUR = 3600.0  # seconds
MISSES = 1000  # sequences in an hour that a user may have servers asked for in vain; there is no end of MD5s
USERS = 1024  # of whom that is remembered
NONE_FOR = 60.0  # seconds for which "it has none" is believed
PREFIX = "refget/"  # and the MD5, in the ledger
KEPT = 512  # of these rows: that of human chromosome 1 has 40 KB


@dataclass(frozen=True, slots=True)
class _Known:
    """A sequence that was seen whole: where, and how it can be known again."""

    url: str
    size: int
    mtime: float
    validator: str
    checks: bytes = field(repr=False)


@dataclass(slots=True)
class _Misses:
    """How often a user has asked for what no server has, since when (trio time)."""

    since: float
    count: int = 0


class RefgetServers:
    """The servers, in order; none before `renew` named some. Lives on the trio thread; `flights` must be open."""

    def __init__(
        self,
        http: Http,
        store: Store,
        reader: Reader,
        flights: Flights,
        wall: Callable[[], float],
    ) -> None:
        self._urls: tuple[str, ...] = ()
        self._http = http
        self._store = store
        self._reader = reader
        self._flights = flights
        self._wall = wall
        self._known: dict[str, _Known] = {}
        self._absent: dict[str, float] = {}  # until when, in trio time
        self._misses: Newest[User, _Misses] = Newest(USERS)

    def renew(self, urls: Sequence[str]) -> None:
        """Ask these servers from now on, in this order; what came from another is open as long as somebody has it."""
        self._urls = tuple(url.rstrip("/") for url in urls)
        self._absent.clear()
        for md5 in [md5 for md5, known in self._known.items() if not self._is_of_ours(known)]:
            del self._known[md5]

    def _is_of_ours(self, known: _Known) -> bool:
        return any(known.url.startswith(f"{url}/") for url in self._urls)

    async def facts(self, md5: str) -> FileFacts | None:
        """Return the facts of a sequence, which is fetched whole and checked the first time; None: no server has it.

        Raises IntegrityError where what came is another sequence, and what the servers answer.
        """
        if not self._urls:
            return None
        known = self._known.get(md5)
        if known is None:
            if self._absent.get(md5, 0.0) > trio.current_time():
                return None
            known = await self._flights.join((SERVERS, md5), partial(self._find, md5))
        return facts_of(md5, known) if known is not None else None

    async def _find(self, md5: str) -> _Known | None:
        known = _parse(await self._read_row(md5))
        if known is None or not self._is_of_ours(known):
            misses = self._misses_of(current().user)
            known = await self._ask(md5)
            misses.count += known is None
        if known is None:
            if len(self._absent) >= KEPT:
                self._absent.clear()
            self._absent[md5] = trio.current_time() + NONE_FOR
            return None
        if len(self._known) >= KEPT:
            self._known.clear()
        self._known[md5] = known
        return known

    def _misses_of(self, user: User) -> _Misses:
        """Return what a user has asked for in vain; raise TooManyRequests where that is too much."""
        now = trio.current_time()
        misses = self._misses.get(user)
        if misses is None or now - misses.since >= HOUR:
            misses = _Misses(now)
            self._misses.put(user, misses)
        if misses.count >= MISSES:
            raise TooManyRequests(
                f"user {user} has asked for {MISSES} sequences in an hour that no refget server has"
            )
        return misses

    async def _ask(self, md5: str) -> _Known | None:
        """Ask the servers in turn; raise the first one's error where none has it, and one did not say so."""
        errors: list[RefgenfsError] = []
        for base in self._urls:
            try:
                return await self._fetch(md5, f"{base}/sequence/{md5}")
            except OriginMissing:
                continue
            except RefgenfsError as exc:
                log.warning("refget server %s failed: %s", redact_url(base), exc)
                errors.append(exc)
        if errors:
            raise errors[0]
        return None

    async def _fetch(self, md5: str, url: str) -> _Known:
        told = await self._http.head((url,), account=SERVERS, deadline=ASK)
        if not 0 < told.size <= LARGEST:
            raise IntegrityError(f"{redact_url(url)}: a sequence of {told.size} bases")
        known = _Known(url, told.size, told.mtime or self._wall(), told.validator, b"")
        facts = facts_of(md5, known)
        try:
            checks = await self._check(md5, facts, url)
        except (IntegrityError, StaleContent):
            self._store.evict(facts.content)
            raise
        known = _Known(url, known.size, known.mtime, known.validator, checks)
        await self._write_row(md5, known)
        return known

    async def _check(self, md5: str, facts: FileFacts, url: str) -> bytes:
        """Read all of a sequence, and return the digests of its blocks; raise IntegrityError if it is another one."""
        await self._reader.vouch(facts, ".refget/sequence", md5)
        file = await self._reader.open(facts)
        whole = hashlib.md5(usedforsecurity=False)
        checks = []
        for offset in range(0, facts.size, 16 * BLOCK):
            data = memoryview(await self._reader.read(file, offset, 16 * BLOCK))
            await trio.to_thread.run_sync(whole.update, data)
            checks += [digest_of(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
        if whole.hexdigest() != md5:
            raise IntegrityError(f"{redact_url(url)}: the MD5 of what came is {whole.hexdigest()}")
        return b"".join(checks)

    async def _read_row(self, md5: str) -> Any:
        try:
            return await trio.to_thread.run_sync(self._store.ledger.get, f"{PREFIX}{md5}")
        except CacheError as exc:
            log.debug("what is known of a sequence can't be read: %s", exc)
            return None

    async def _write_row(self, md5: str, known: _Known) -> None:
        row: dict[str, JSONValue] = {
            "at": self._wall(),
            "url": known.url,
            "size": known.size,
            "mtime": known.mtime,
            "validator": known.validator,
            "checks": base64.b64encode(known.checks).decode(),
        }
        try:
            await trio.to_thread.run_sync(self._write, f"{PREFIX}{md5}", row)
        except CacheError as exc:
            log.debug("what is known of a sequence is not written down: %s", exc)

    def _write(self, key: str, row: JSONValue) -> None:
        """Write one row, and forget the oldest of too many. Blocks."""
        ledger = self._store.ledger
        ledger.set(key, row)
        if len(list(ledger.keys(PREFIX))) > KEPT:
            ages = {found: _written_at(value) for found, value in ledger.items(PREFIX)}
            ledger.delete(min(ages, key=ages.__getitem__, default=key))


class CheckedFetcher:
    """Brings ranges whose blocks are known, and none that is not what it was."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def fetch_range(
        self, extent: CheckedRange, start: int, stop: int, size: int, sink: RangeSink, *, account: str
    ) -> None:
        """Do as `Http.fetch_range`; raises IntegrityError for a block that is another one."""
        plain = ByteRange(extent.urls, extent.validator)
        checked = _Checked(sink, extent.checks)
        await self._http.fetch_range(plain, start, stop, size, checked, account=account)


class _Checked:
    """A sink that passes on what is as it was."""

    def __init__(self, sink: RangeSink, checks: bytes) -> None:
        self._sink = sink
        self._checks = checks

    async def write(self, offset: int, data: memoryview) -> None:
        """Take a piece, as `RangeSink.write`."""
        for at in range(0, len(data), BLOCK):
            number = (offset + at) // BLOCK
            if digest_of(data[at : at + BLOCK]) != self._checks[number * DIGEST : (number + 1) * DIGEST]:
                raise IntegrityError(f"block {number} of a sequence is not what it was when its MD5 was right")
        await self._sink.write(offset, data)


def digest_of(data: memoryview) -> bytes:
    """Return the digest by which a block is known again."""
    return hashlib.blake2b(data, digest_size=DIGEST).digest()


def facts_of(md5: str, known: _Known) -> FileFacts:
    """Return a sequence's facts; before it was checked, with an extent that nobody but the check reads."""
    cid = content_id(SERVERS, md5, known.url, known.validator)
    urls = (known.url,)
    extent = CheckedRange(urls, known.validator, known.checks) if known.checks else ByteRange(urls, known.validator)
    return FileFacts(cid, known.size, known.mtime, extent, SERVERS, "refget")


def _written_at(row: Any) -> float:
    at = row.get("at") if isinstance(row, Mapping) else None
    return float(at) if isinstance(at, int | float) else 0.0


def _parse(row: Any) -> _Known | None:
    """Return what a row of the ledger says; None for what is none."""
    if not isinstance(row, Mapping):
        return None
    try:
        checks = base64.b64decode(row["checks"], validate=True)
        known = _Known(str(row["url"]), int(row["size"]), float(row["mtime"]), str(row["validator"]), checks)
    except (KeyError, TypeError, ValueError):
        return None
    return known if known.size > 0 and len(checks) == DIGEST * block_count(known.size) else None
