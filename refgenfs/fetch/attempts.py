"""Attempts until one succeeds: the retry policy at work. Everything runs on the asyncio loop."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from refgenfs.core.content import BLOCK
from refgenfs.core.errors import DeadlineExceeded, OriginUnavailable, redact_url, without_frames
from refgenfs.core.manners import host_of
from refgenfs.core.retry import Ask, Health, Outages, Remedy, Retry, RetryPolicy
from refgenfs.fetch.answers import AttemptFailed, RangesIgnored
from refgenfs.fetch.proxies import DIRECT, ENVIRONMENT, going_by, present_ask, shown_way

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


class AnotherWay(Exception):
    """An attempt has done a part of its work, and is to go on by a better way (`Retry.is_better`). No failure."""


class Attempts:
    """Makes attempts, and remembers what failed: recent failures for people, hosts and ways for the order.

    `ways` tells those of an account (`proxies`), none for the environment's. A way that can't be reached is passed
    over from then on; one that answers badly only once another way has brought what it did not: else it is the origin
    that fails, and all readers would leave their cache for it.

    `failing` has the last failure of each account whose last requests all failed, at least `Outages.A_RUN` of them.
    An origin that answers "not there" or "access denied" does not fail. The counts may be copied on any thread.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        jitter: Callable[[], float],
        wall: Callable[[], float],
        ways: Callable[[str], Sequence[str]] = lambda _: (),
    ) -> None:
        self.failures: deque[FetchFailure] = deque(maxlen=50)
        self.failing: dict[str, FetchFailure] = {}
        self.failed: dict[tuple[str, str], int] = {}  # how often, by account and kind of error
        self.retried: dict[str, int] = {}  # requests made because others had failed, by account
        self._outages = Outages()
        self._policy = policy
        self._jitter = jitter
        self._wall = wall
        self._ways = ways
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
        call = self._begin(urls, account, policy, loop.time())
        retry = call.retry
        while (ask := retry.next_ask(loop.time())) is not None:
            await asyncio.sleep(ask.delay)
            if call.failed:
                self.retried[account] = self.retried.get(account, 0) + 1
            try:
                with going_by(ask):
                    result = await attempt(ask.url, retry)
            except AnotherWay:
                retry = call.begin_anew(self._begin(urls, account, policy, loop.time()).retry)
            except AttemptFailed as failure:
                if failure.kind is not RangesIgnored:
                    self._note(call.told(failure, ask), ask, account)
                call.note(failure, ask)
                retry.failed(ask.url, failure.remedy, loop.time(), failure.retry_after, way=ask.way)
                self._blame(call, failure, ask, loop.time())
            else:
                self._praise(call, ask, loop.time())
                return result
        last, asked = call.failed[authority() if authority is not None else urls[0]]
        raise last.as_error(asked.url, asked.attempt) from last.__cause__

    def _begin(self, urls: Sequence[str], account: str, policy: RetryPolicy, now: float) -> _Call:
        ways = self._health.order(self._ways(account) or (ENVIRONMENT,), now, partial(_name, account))
        urls = self._health.order(urls, now, host_of)
        patience = self._outages.patience(account, self._policy, now)
        retry = Retry(urls, policy, now, self._jitter, patience, ways)
        if len(ways) > 1:
            retry.is_better = partial(self._is_better, account)
        return _Call(account, retry, len(ways) > 1)

    def _is_better(self, account: str) -> bool:
        """Say whether the present attempt's way should be left for one before it, which failed and may be back."""
        ask, ways = present_ask(), tuple(self._ways(account))
        if ask is None or ask.way not in ways[1:]:
            return False
        now = asyncio.get_running_loop().time()
        return any(self._health.is_due(_name(account, way), now) for way in ways[: ways.index(ask.way)])

    def _blame(self, call: _Call, failure: AttemptFailed, ask: Ask, now: float) -> None:
        """Note whose failure it was, as far as that is known yet."""
        if failure.of_proxy:
            self._health.failed(_name(call.account, ask.way), now)
        elif failure.remedy is not Remedy.ELSEWHERE:
            call.suspects.add(ask.way)
            self._health.failed(host_of(ask.url), now)
        if failure.remedy is not Remedy.ELSEWHERE and not (failure.of_proxy and ask.others):
            self._count(call.account, now, worked=call.advanced())

    def _praise(self, call: _Call, ask: Ask, now: float) -> None:
        """Note that a URL brought what was asked for, and that other ways could have.

        Where this very way had failed before, it was the origin that was away, and nothing is known of the others.
        """
        self._health.worked(host_of(ask.url))
        self._health.worked(_name(call.account, ask.way))
        self._worked(call.account)
        for way in call.suspects if ask.way not in call.suspects else ():
            self._health.failed(_name(call.account, way), now)

    def is_well(self, account: str, *, way: str | None = None, server: str = "") -> bool:
        """Say whether a way, or the host of a URL, did not fail when it was asked last."""
        return self._health.well(host_of(server) if way is None else _name(account, way))

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


class _Call:
    """What one call of `make` has met: its failures by URL, and the ways that another may yet do better than."""

    def __init__(self, account: str, retry: Retry, several: bool) -> None:
        self.account = account
        self.retry = retry
        self.failed: dict[str, tuple[AttemptFailed, Ask]] = {}
        self.suspects: set[str] = set()
        self._several = several  # ways
        self._advances = 0

    def told(self, failure: AttemptFailed, ask: Ask) -> AttemptFailed:
        """Return a failure that says by which of several ways the request went."""
        if self._several and ask.way != DIRECT:
            failure.what = f"{failure.what}, by the proxy {shown_way(ask.way)}"
        return failure

    def note(self, failure: AttemptFailed, ask: Ask) -> None:
        """Keep what is to be told of a URL in the end: the last answer, else the last failure to get one."""
        known = self.failed.get(ask.url)
        if known is None or failure.remedy is Remedy.ELSEWHERE or known[0].remedy is not Remedy.ELSEWHERE:
            self.failed[ask.url] = (without_frames(failure), ask)  # its frames are the call's and the buffers' own

    def begin_anew(self, retry: Retry) -> Retry:
        """Go on with the attempts of another `Retry`, and return it."""
        self.retry, self._advances = retry, 0
        return retry

    def advanced(self) -> bool:
        """Say whether bytes came since this was asked last."""
        before, self._advances = self._advances, self.retry.advances
        return self._advances > before


def _name(account: str, way: str) -> str:
    """Return what the health of an account's way goes by; no host is called so."""
    return f"{account} {way}"


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
