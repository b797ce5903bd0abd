"""Streams from their start to their verdict: whether what came is what the catalog means.

The rules are those of decision 6: see `Archives`, and `ArchiveStream.begun`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from refgenfs.cache.store import Store
from refgenfs.core.content import ArchiveRef
from refgenfs.core.errands import Turns, User, current
from refgenfs.core.errors import IntegrityError, OriginUnavailable, RefgenfsError, StaleContent, without_frames
from refgenfs.fetch.http import Http
from refgenfs.reader.archive import Archive
from refgenfs.reader.budget import Budget, Claim
from refgenfs.reader.indexes import Indexes
from refgenfs.reader.stream import ArchiveStream, IdleStreams, StreamIdle

log = logging.getLogger(__name__)

SAVE_EVERY = 5.0  # seconds between writings of a member table that grows: what a kill may cost
QUEUE_BEAT = 1.0  # seconds between the signs of life of a stream that waits for its turn

# Asks the origin which digest the archive has now; None when the version is gone or rebuilt.
Recheck = Callable[[ArchiveRef], Awaitable[str | None]]


class Judge:
    """Owns each stream of every archive, as many at a time as the budget has. Lives on the trio thread."""

    def __init__(
        self, store: Store, http: Http, indexes: Indexes, recheck: Recheck, budget: Budget, idle: IdleStreams
    ) -> None:
        self._store = store
        self._http = http
        self._indexes = indexes
        self._recheck = recheck
        self._budget = budget
        self._idle = idle
        self._turns: Turns[trio.Event] = Turns(budget.streams)

    def renew(self) -> None:
        """Have as many streams at a time as the budget now has."""
        self._wake(self._turns.resize(self._budget.streams, trio.current_time()))

    async def fly(self, archive: Archive, stream: ArchiveStream) -> None:
        """Own one stream from its start to its verdict. Raises only a cancellation."""
        error: RefgenfsError | None = OriginUnavailable(f"the stream of {archive.ref.key} was given up")
        claim: Claim | None = None
        user, has_turn = current().user, False
        try:
            await self._take_turn(stream)
            has_turn = True
            claim = self._budget.claim_stream()
            await claim.wait(stream.beat)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_saved, archive)
                error = await self._try(archive, stream)
                nursery.cancel_scope.cancel()
            if error is not None:
                without_frames(error)
        finally:
            if claim is not None:
                claim.release()
            if has_turn:
                self._leave(user)
            archive.streams.remove(stream)
            archive.brought += stream.progress
            archive.error = None if isinstance(error, StreamIdle) else error
            stream.end(error)
            archive.announce()
            with trio.CancelScope(shield=True):  # what went by is known for good, also to the next life
                await archive.save(self._store.ledger)

    async def _take_turn(self, stream: ArchiveStream) -> None:
        """Wait until there is room for one more stream; that is a queue, and not an origin that is silent."""
        errand, turn = current(), trio.Event()
        if self._turns.enter(errand.user, trio.current_time()):
            return
        self._wake(self._turns.queue(turn, errand, trio.current_time()))
        try:
            while not turn.is_set():
                with trio.move_on_after(QUEUE_BEAT):
                    await turn.wait()
                if not turn.is_set():
                    stream.beat()
                    self._idle.give_way()
        except trio.Cancelled:
            if not self._turns.withdraw(turn, errand.user):  # it came at the same moment
                self._leave(errand.user)
            raise

    def _leave(self, user: User) -> None:
        self._wake(self._turns.leave(user, trio.current_time()))

    def _wake(self, turns: list[trio.Event]) -> None:
        for turn in turns:
            turn.set()

    async def _keep_saved(self, archive: Archive) -> None:
        """Write the headers that went by to the ledger every few seconds: a kill must not cost a stream."""
        saved = len(archive.table.members)
        while True:
            await trio.sleep(SAVE_EVERY)
            if len(archive.table.members) != saved:
                saved = len(archive.table.members)
                await archive.save(self._store.ledger)

    async def _try(self, archive: Archive, stream: ArchiveStream) -> RefgenfsError | None:
        """Stream, and judge; return what went wrong, after taking back what must not stay."""
        try:
            await self._stream(archive, stream)
        except StreamIdle as exc:
            log.info("%s", exc)
            return exc
        except (IntegrityError, StaleContent) as exc:
            log.warning("%s: dropping what came of its archive: %s", archive.ref.key, exc)
            archive.distrusted = archive.distrusted or isinstance(exc, IntegrityError)
            await self._take_back(archive, stream)
            return exc
        except RefgenfsError as exc:
            log.info("%s: the stream of its archive ended early: %s", archive.ref.key, exc)  # who waits says it
            return exc
        except Exception as exc:
            log.exception("%s: the stream of its archive failed unexpectedly", archive.ref.key)
            await self._take_back(archive, stream)
            return OriginUnavailable(f"{archive.ref.key}: unexpected {type(exc).__name__}")
        return None

    async def _take_back(self, archive: Archive, stream: ArchiveStream) -> None:
        """Drop what a stream brought; a defect in that must not take the daemon along."""
        try:
            await stream.take_back()
        except Exception:
            archive.generation += 1  # so that nobody reads on
            log.exception("%s: what came of its archive can't be taken back", archive.ref.key)

    async def _stream(self, archive: Archive, stream: ArchiveStream) -> None:
        await stream.fly(self._http)
        await self._check(archive, stream)
        if stream.rehearsal:
            log.info("%s: another object than was confirmed, or after a wrong one: its MD5 is right", archive.ref.key)
            stream.clear()
            await stream.fly(self._http)
            await self._check(archive, stream)
        archive.distrusted = False
        table = archive.table
        table.members = dict(stream.members)
        table.complete, table.confirmed, table.validator = True, stream.validator, ""
        if archive.index is not None and archive.index.archive != stream.digest:
            await self._indexes.forget(archive, "the origin has another archive of the same files now")
        spill = stream.spill
        if spill is not None and spill.builder is not None:
            await self._indexes.keep(archive, spill.builder, spill.size, stream.all_members, stream.digest)

    async def _check(self, archive: Archive, stream: ArchiveStream) -> None:
        """Raise IntegrityError unless the archive's MD5 is the catalog's, or what the origin says it is now."""
        expected = archive.ref.archive_digest
        if expected and stream.digest != expected:
            # Archiving again changes the archive's digest and not its files: ask before judging.
            fresh = await self._recheck(archive.ref)
            if stream.digest != fresh:
                raise IntegrityError(
                    f"{archive.ref.key}: the archive's MD5 is {stream.digest}, the catalog's {expected}"
                )
