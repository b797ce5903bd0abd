"""When to ask an origin again, where, and when to give up. Pure: it is told the time and given its dice.

`Retry` is the state of one call. The caller asks `next_ask`, waits as long as that says, makes the
request, and reports `failed`, or `progressed` while bytes come in:

    retry = Retry(urls, policy, now, random)
    while (ask := retry.next_ask(now)) is not None: ...

A URL can be asked by several **ways**: proxies, in order, and none. Each is a candidate of its own: what one way
doesn't bring another may. `Health` and `Outages` remember across calls which hosts and ways failed of late, and whose
requests all do, so that not every call has to find it out anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import ClassVar


class Remedy(Enum):
    """What can help after a failure."""

    AGAIN = "again"
    """Asking the same URL again, for as long as the budget lasts: it may be starting up."""
    DOUBTFUL = "doubtful"
    """Asking the same URL again, a few times: the answer was wrong in a way that rarely mends itself."""
    ELSEWHERE = "elsewhere"
    """Another URL only: this one has answered, and will answer the same again."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient a call is. Times in seconds.

    The pauses are exponential backoff with full jitter (M. Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015): evenly distributed between 0 and `min(longest, first * 2**n)`.
    """

    retry_for: float = 30.0  # since the last progress; 0: every URL is asked once
    first: float = 0.25
    longest: float = 4.0
    doubts: int = 3  # how often a URL is asked again after DOUBTFUL failures, without progress in between

    def pause(self, failures: int, random: Callable[[], float]) -> float:
        """Return the pause after the `failures`-th failure in a row (from 1); `random` gives 0 to 1."""
        return random() * min(self.longest, self.first * 2.0 ** min(failures - 1, 30))


@dataclass(frozen=True, slots=True)
class Ask:
    """The request to make next: wait `delay` seconds, then ask `url` by `way`; `attempt` counts from 1.

    `others`: another URL or way is left that was not asked yet, so this one need not be waited for as long.
    """

    url: str
    delay: float
    attempt: int
    way: str = ""
    others: bool = False


@dataclass(slots=True)
class _Candidate:
    url: str
    way: str
    tries: int = 0
    failures: int = 0  # in a row, without progress
    doubts: int = 0
    not_before: float = float("-inf")


class Retry:
    """The attempts of one call: the order of its URLs, the pauses, the budget. `ways` are those of each URL."""

    def __init__(
        self,
        urls: Iterable[str],
        policy: RetryPolicy,
        now: float,
        random: Callable[[], float],
        patience: float | None = None,
        ways: Sequence[str] = ("",),
    ) -> None:
        self._policy = policy
        self._random = random
        self._queue = [_Candidate(url, way) for url in dict.fromkeys(urls) for way in ways]
        # seconds until something has come; from then on the policy's own
        self._deadline = now + (policy.retry_for if patience is None else min(patience, policy.retry_for))
        self._attempts = 0
        self.advances = 0  # how often the call got further
        self.is_better: Callable[[], bool] = lambda: False
        """Whether an earlier way than that of the present attempt is to be tried again by now."""

    def next_ask(self, now: float) -> Ask | None:
        """Return what to ask next, or None to give up.

        A URL that was never asked comes before those that failed, and is asked even when the budget is
        used up; of those that failed, the one whose pause ends first. The last pause is cut to end with
        the budget, so an origin that comes back just then is still met.
        """
        if not self._queue:
            return None
        # min() keeps the order given among equals
        candidate = min(self._queue, key=lambda each: each.not_before)
        if candidate.tries and candidate.not_before > self._deadline:
            return None
        candidate.tries += 1
        self._attempts += 1
        others = any(not each.tries for each in self._queue)
        return Ask(candidate.url, max(0.0, candidate.not_before - now), self._attempts, candidate.way, others)

    def failed(
        self, url: str, remedy: Remedy, now: float, retry_after: float | None = None, *, way: str = ""
    ) -> None:
        """Note that a request to `url` failed; `retry_after` is what the origin asked for, in seconds."""
        candidate = next(each for each in self._queue if (each.url, each.way) == (url, way))
        candidate.failures += 1
        candidate.doubts += remedy is Remedy.DOUBTFUL
        if remedy is Remedy.ELSEWHERE or candidate.doubts > self._policy.doubts:
            self._queue.remove(candidate)
            return
        if now >= self._deadline:
            candidate.not_before = float("inf")
            return
        pause = self._policy.pause(candidate.failures, self._random)
        candidate.not_before = min(now + pause, self._deadline)
        if retry_after is not None:
            candidate.not_before = max(candidate.not_before, now + retry_after)

    def progressed(self, now: float) -> None:
        """Note that the call got further: the budget and the pauses begin anew."""
        self.advances += 1
        self._deadline = now + self._policy.retry_for
        for candidate in self._queue:
            candidate.failures = candidate.doubts = 0
            if candidate.not_before == float("inf"):
                candidate.not_before = now

    def excluded(self, seconds: float) -> None:
        """Take a wait that was not the origin's fault out of the budget."""
        self._deadline += seconds


@dataclass(slots=True)
class _Outage:
    first: float
    last: float
    failures: int = 1


@dataclass(slots=True)
class Outages:
    """Whose requests have all failed for so long that the next is not worth the whole budget again.

    A restart is ridden out once. Where an origin is away for longer, each file of a folder would have whoever
    lists it wait the same `retry_for` anew. So while the last failure is at most `memory` seconds old, there are
    `A_RUN` of them at least, and they go back for as long as the budget (nearly: the first comes a little after
    the call began), a call gets `SHORT` seconds: it asks at once, and a few times more.
    """

    A_RUN: ClassVar[int] = 3
    SHORT: ClassVar[float] = 2.0
    memory: float = 60.0
    _outages: dict[str, _Outage] = field(default_factory=dict)

    def failed(self, account: str, now: float) -> int:
        """Note that a request failed; return how many have in a row."""
        outage = self._outages.get(account)
        if outage is None:
            self._outages[account] = _Outage(now, now)
            return 1
        outage.failures, outage.last = outage.failures + 1, now
        return outage.failures

    def worked(self, account: str) -> None:
        """Note that a request brought something."""
        self._outages.pop(account, None)

    def patience(self, account: str, policy: RetryPolicy, now: float) -> float | None:
        """Return the seconds that a call has until something comes; None: as the policy says."""
        outage = self._outages.get(account)
        if outage is None or outage.failures < self.A_RUN or now - outage.last > self.memory:
            return None
        return self.SHORT if outage.last - outage.first >= 0.9 * policy.retry_for else None


@dataclass(slots=True)
class _Mark:
    """That something failed: until when it is passed over, for how long that was, and whether one tries it now."""

    until: float
    pause: float
    tried: bool = False


@dataclass(slots=True)
class Health:
    """What failed of late, by name, and so is asked after the others: hosts (`host_of`), ways.

    It is passed over for `first` seconds, then one call tries it, while the others go on without; each time that
    fails it is passed over twice as long, `longest` seconds at the most. So one that is back is found soon, and one
    that is not costs a single call a little, now and then.
    """

    TRIAL: ClassVar[float] = 30.0  # seconds until a trial that nobody heard of again is followed by another
    KNOWN: ClassVar[int] = 1024  # names that are remembered
    first: float = 2.0
    longest: float = 60.0
    _marks: dict[str, _Mark] = field(default_factory=dict)

    def failed(self, name: str, now: float) -> None:
        """Note that it did not answer, or not usably. Calls that fail side by side count once."""
        mark = self._marks.get(name)
        if mark is None:
            if len(self._marks) >= self.KNOWN:
                self._marks.clear()
            self._marks[name] = _Mark(now + self.first, self.first)
        elif mark.tried or now >= mark.until:
            mark.pause = min(self.longest, 2 * mark.pause)
            mark.until, mark.tried = now + mark.pause, False

    def worked(self, name: str) -> None:
        """Note that it answered as it should."""
        self._marks.pop(name, None)

    def well(self, name: str) -> bool:
        """Say whether it did not fail when it was asked last."""
        return name not in self._marks

    def is_due(self, name: str, now: float) -> bool:
        """Say whether it may be asked: it did not fail of late, or may be tried again."""
        return not self._passed_over(name, now)

    def order(self, names: Sequence[str], now: float, of: Callable[[str], str] = str) -> list[str]:
        """Return `names`, those that failed of late last, else as given; `of` names what they fail with.

        The first is taken for asked: where it had failed, this is its trial.
        """
        ordered = sorted(names, key=lambda name: self._passed_over(of(name), now))
        if len(ordered) > 1 and (mark := self._marks.get(of(ordered[0]))) is not None and now >= mark.until:
            mark.until, mark.tried = now + self.TRIAL, True
        return ordered

    def _passed_over(self, name: str, now: float) -> bool:
        mark = self._marks.get(name)
        return mark is not None and now < mark.until


def parse_retry_after(text: str | None, wall: float) -> float | None:
    """Return the seconds that a `Retry-After` header asks for (RFC 9110, 10.2.3), None where unreadable.

    `wall` is the present time in Unix seconds; the header may hold a date.
    """
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.fromtimestamp(wall, UTC)).total_seconds())
