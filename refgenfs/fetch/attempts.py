"""Attempts until one succeeds: the retry policy at work. Everything runs on the asyncio loop."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from refgenfs.core.content import BLOCK
from refgenfs.core.errors import DeadlineExceeded, OriginUnavailable, redact_url, without_frames
from refgenfs.core.retry import Ask, Health, Outages, Remedy, Retry, RetryPolicy
from refgenfs.fetch.answers import AttemptFailed, RangesIgnored

T = TypeVar("T")
Attempt = Callable[[str, Retry], Awaitable[T]]

# A connection that brings less than a block in this time is given up: it holds a slot that others wait for.
DRIBLET = 30.0  # seconds

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FetchFailure:
    """One failed request, for people: when (Unix seconds), whose, where (redacted), what, which attempt."""

    when: float
    account: str
    url: str
    what: str
    attempt: int


class Attempts:
    """Makes attempts, and remembers what failed: recent failures for people, hosts for the order of URLs.

    `failing` has the last failure of each account whose last requests all failed, at least `Outages.A_RUN` of them.
    An origin that answers "not there" or "access denied" does not fail. The counts may be copied on any thread.
    """

    def __init__(self, policy: RetryPolicy, jitter: Callable[[], float], wall: Callable[[], float]) -> None:
        self.failures: deque[FetchFailure] = deque(maxlen=50)
        self.failing: dict[str, FetchFailure] = {}
        self.failed: dict[tuple[str, str], int] = {}  # how often, by account and kind of error
        self.retried: dict[str, int] = {}  # requests made because others had failed, by account
        self._outages = Outages()
        self._policy = policy
        self._jitter = jitter
        self._wall = wall
        self._health = Health()

    def renew(self, policy: RetryPolicy) -> None:
        """Go by another policy from the next call on."""
        self._policy = policy

    async def make(
        self,
        urls: Sequence[str],
        account: str,
        attempt: Attempt[T],
        *,
        retry_for: float | None = None,
        authority: Callable[[], str] | None = None,
    ) -> T:
        """Make attempts until one succeeds or the policy gives up; then raise what the origin did.

        The error is that of the first URL, or of `authority()`: what a mirror lacks says nothing while the
        origin proper is only out of reach. `retry_for` replaces the policy's budget; 0 asks each URL once.
        """
        loop = asyncio.get_running_loop()
        policy = self._policy
        if retry_for is not None:
            policy = replace(policy, retry_for=retry_for, doubts=policy.doubts if retry_for else 0)
        now = loop.time()
        patience = self._outages.patience(account, self._policy, now)
        retry = Retry(self._health.order(urls, now), policy, now, self._jitter, patience)
        failed: dict[str, tuple[AttemptFailed, Ask]] = {}
        advances = 0
        while (ask := retry.next_ask(loop.time())) is not None:
            await asyncio.sleep(ask.delay)
            if failed:
                self.retried[account] = self.retried.get(account, 0) + 1
            try:
                result = await attempt(ask.url, retry)
            except AttemptFailed as failure:
                failed[ask.url] = (without_frames(failure), ask)  # its frames are this one and the buffers' own
                if failure.kind is not RangesIgnored:
                    self._note(failure, ask, account)
                retry.failed(ask.url, failure.remedy, loop.time(), failure.retry_after)
                if failure.remedy is not Remedy.ELSEWHERE:
                    self._health.failed(ask.url, loop.time())
                    self._count(account, loop.time(), worked=retry.advances > advances)
                    advances = retry.advances
            else:
                self._health.worked(ask.url)
                self._worked(account)
                return result
        last, asked = failed[authority() if authority is not None else urls[0]]
        raise last.as_error(asked.url, asked.attempt) from last.__cause__

    async def make_within(
        self, deadline: float, urls: Sequence[str], account: str, attempt: Attempt[T], retry_for: float | None
    ) -> T:
        """Do as `make`, for at most `deadline` seconds; then DeadlineExceeded."""
        limit = asyncio.timeout(deadline)
        try:
            async with limit:
                return await self.make(urls, account, attempt, retry_for=retry_for)
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise DeadlineExceeded(f"{redact_url(urls[0])}: no answer within {deadline:g} s") from exc

    def _note(self, failure: AttemptFailed, ask: Ask, account: str) -> None:
        url, kind = redact_url(ask.url), (account, failure.kind.__name__)
        self.failed[kind] = self.failed.get(kind, 0) + 1
        self.failures.append(FetchFailure(self._wall(), account, url, failure.what, ask.attempt))
        log.debug("%s: %s: %s (attempt %d)", account, url, failure.what, ask.attempt)

    def _worked(self, account: str) -> None:
        self._outages.worked(account)
        self.failing.pop(account, None)

    def _count(self, account: str, now: float, *, worked: bool) -> None:
        """Count a failure; `worked`: bytes came before it."""
        if worked:
            self._worked(account)
        if self._outages.failed(account, now) >= Outages.A_RUN:
            self.failing[account] = self.failures[-1]


class Progress:
    """How far a call has come, for the budget of its retries.

    A block more than ever before counts; less does not, or an origin that breaks off after every few bytes
    would be asked for ever. Time spent in the sink is no origin's fault.
    """

    def __init__(self, start: int) -> None:
        self._mark = start
        self._retry: Retry | None = None
        self._since = 0.0  # when the mark was set, or the present attempt began

    def report_to(self, retry: Retry) -> None:
        """Report to this retry from now on: an attempt begins."""
        self._retry = retry
        self._since = asyncio.get_running_loop().time()

    def reached(self, position: int) -> None:
        """Note that all bytes below `position` were received; raise AttemptFailed when they come in driblets."""
        now = asyncio.get_running_loop().time()
        if position >= self._mark + BLOCK and self._retry is not None:
            self._mark, self._since = position, now
            self._retry.progressed(now)
        elif now - self._since > DRIBLET:
            what = f"less than {BLOCK // 1024} KiB came in {DRIBLET:g} s"
            raise AttemptFailed(OriginUnavailable, what, Remedy.AGAIN)

    def excluded(self, seconds: float) -> None:
        """Take a wait out of the budget."""
        self._since += seconds
        if self._retry is not None:
            self._retry.excluded(seconds)

    async def exclude(self, call: Coroutine[Any, Any, None]) -> None:
        """Await `call`, taking the time out of the budget."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        await call
        self.excluded(loop.time() - began)
