"""Memory for what a stream has fetched ahead: asked for on the asyncio loop, lent on the trio thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import trio

from refgenfs.reader.budget import Budget, Claim


class Lease:
    """Memory that is lent, to be given back from any thread."""

    __slots__ = ("_claim", "_token")

    def __init__(self, claim: Claim, token: trio.lowlevel.TrioToken) -> None:
        self._claim = claim
        self._token = token

    def release(self) -> None:
        """Give it back. Never awaits; idempotent."""
        with suppress(trio.RunFinishedError):  # then there is nobody to give it to
            self._token.run_sync_soon(self._claim.release)


class Lending:
    """Lends one stream what there is to spare, while somebody waits for the stream (`awaited`). Made on trio.

    What is lent comes back as the stream's sink takes what it holds. That is soon, but for a stream that rests: what
    such a one has is recalled when somebody waits for memory.
    """

    def __init__(self, budget: Budget, awaited: Callable[[], bool]) -> None:
        self._budget = budget
        self._awaited = awaited
        self._token = trio.lowlevel.current_trio_token()
        self._resting = False
        self._lent: list[tuple[Claim, Callable[[], None]]] = []  # and what has it given back

    # On the asyncio loop

    async def take(self, nbytes: int, recall: Callable[[], None]) -> Lease | None:
        """Have memory; None where there is none to spare, or nobody waits for the stream."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Lease | None] = loop.create_future()

        def recalled() -> None:
            with suppress(RuntimeError):  # the loop is closed: nothing is fetched any more
                loop.call_soon_threadsafe(recall)

        def tell(lease: Lease | None) -> None:
            try:
                loop.call_soon_threadsafe(_settle, answer, lease)
            except RuntimeError:
                if lease is not None:
                    lease.release()

        try:
            self._token.run_sync_soon(self._lend, nbytes, recalled, tell)
        except trio.RunFinishedError:
            return None
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and (lease := answer.result()) is not None:
                lease.release()
            raise

    # On the trio thread

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Note that the stream rests while the block lasts: nothing of what it holds is taken until then."""
        self._resting = True
        self._somebody_waits()
        try:
            yield
        finally:
            self._resting = False

    def _lend(self, nbytes: int, recall: Callable[[], None], tell: Callable[[Lease | None], None]) -> None:
        claim = None
        if self._awaited() and not self._resting:
            claim = self._budget.take(nbytes, self._somebody_waits)
        if claim is None:
            tell(None)
            return
        self._lent = [(one, give_back) for one, give_back in self._lent if one.nbytes]
        self._lent.append((claim, recall))
        tell(Lease(claim, self._token))

    def _somebody_waits(self) -> None:
        if self._resting and self._budget.wanted:
            lent, self._lent = self._lent, []
            for _, give_back in lent:
                give_back()


def _settle(answer: asyncio.Future[Lease | None], lease: Lease | None) -> None:
    if not answer.done():
        answer.set_result(lease)
    elif lease is not None:
        lease.release()
