"""How many connections an object that streams by has, and which of its bytes each fetches. Pure.

A stream is fed in order from its first byte. Where a connection gives less than its sink could take, *legs* ahead of
what is fed are fetched by connections of their own, and held in memory until their turn comes. Nothing is asked for
twice, and no answer is cut short, so every request ends where the next one begins; the first, which is made before
anything is known of the origin, too.

`Lanes` is told what came, how long that was waited for and how long the sink took over it. While more than half of
the time is spent waiting, the number of lanes doubles. A near origin never gets so far: there the sink is what is
waited for, and one connection fetches long stretches.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024

# The first request. Far more than it takes to see how quick an origin is: other lanes have begun when it ends.
FIRST = 4 * MIB  # bytes
# What a lane fetches in one request, and holds in memory: 20 MB/s and 20 ms leave it idle for a sixth of the time.
LEG = 2 * MIB  # bytes
# One lane alone: a round trip between two requests costs little beside these.
LONG = 64 * MIB  # bytes, where one is enough
MIDDLE = 16 * MIB  # bytes, where more would help, and there is no memory or no connection for them just now
SPARE_LEGS = 2  # beyond the lanes: a leg that has come early does not keep its lane from the next
KEPT_FREE = 2  # of a host's connections, for readers who wait

LOOK = MIB // 2  # bytes between two looks at where time goes
HUNGRY = 0.5  # of the time spent waiting for the origin: more lanes
CALM = 16 * MIB  # bytes with hardly any waiting, after which there is a lane less
SATED = 0.05
ENOUGH = 100e6  # bytes a second; unpacking takes no more on one processor
# An origin that refused or broke off a leg is not asked for another for so long, longer each time, up to `LONGEST`.
PAUSE = 1.0  # seconds
LONGEST = 60.0
MOMENT = 0.25  # seconds until memory or a connection is looked for again, where there was none to spare


def share(connections: int, streams: int) -> int:
    """Return how many lanes each of `streams` streams from one host may have, of its `connections`."""
    return max(1, (connections - KEPT_FREE) // max(1, streams))


@dataclass(slots=True)
class Lanes:
    """The lanes of one stream of `size` bytes. Times are seconds of one clock."""

    size: int
    several: bool = True
    """Whether more than one may ever be used; the caller ends that for good where ranges turn out not to work."""
    lanes: int = 1
    """How many would help."""
    quiet_until: float = 0.0
    """Until when the origin asked to be left alone: no leg begins before."""
    _came: int = 0
    _waited: float = 0.0
    _took: float = 0.0
    _calm: int = 0  # bytes since it last was worth mentioning that the origin was waited for
    _refused: int = 0  # legs in a row
    _held_until: float = 0.0

    def fed(self, nbytes: int, waited: float, took: float) -> None:
        """Note bytes that were fed: how long they were waited for, and how long the sink took."""
        self._came += nbytes
        self._waited += waited
        self._took += took
        if self._came < LOOK:
            return
        total = self._waited + self._took
        if self._waited > HUNGRY * total and self._came < ENOUGH * total:
            self.lanes *= 2
        self._calm = self._calm + self._came if self._waited <= SATED * total else 0
        if self._calm >= CALM:
            self.lanes, self._calm = max(1, self.lanes - 1), 0
        self._came, self._waited, self._took = 0, 0.0, 0.0

    def limit(self, most: int) -> None:
        """Note that there can't be more than `most` for now."""
        self.lanes = min(self.lanes, most)

    def hold(self, now: float) -> None:
        """Note that there is no memory or no connection to spare just now."""
        self._held_until = max(self._held_until, now + MOMENT)

    def refused(self, now: float) -> None:
        """Note that a leg was refused, or broke off."""
        self._held_until = now + min(LONGEST, PAUSE * 2.0 ** min(self._refused, 30))
        self._refused += 1

    def _held(self, now: float) -> bool:
        return now < max(self._held_until, self.quiet_until)

    def arrived(self) -> None:
        """Note that a leg came whole."""
        self._refused = 0

    def next_leg(self, fed: int, horizon: int, flying: int, held: int, now: float) -> tuple[int, int] | None:
        """Return the bytes that one more lane should fetch now, if any: from where up to, not including, where.

        All before `fed` was fed, all before `horizon` is asked for. `flying` lanes are in use, and `held` legs are in
        memory or on their way there.
        """
        if not self.several or self._held(now) or horizon >= self.size:
            return None
        if flying >= self.lanes or held >= self.lanes + SPARE_LEGS or self.lanes == 1:
            return None
        if horizon - fed > max(FIRST, (self.lanes + SPARE_LEGS) * LEG):
            return None  # it would wait in memory for what one lane fetches meanwhile
        return horizon, min(self.size, horizon + LEG)

    def stretch(self, start: int, now: float) -> int:
        """Return where a request that begins at `start`, and is fed as it comes, should end."""
        if not self.several:
            return self.size
        length = LONG if self.lanes == 1 else MIDDLE if self._held(now) else LEG
        return min(self.size, start + length)
