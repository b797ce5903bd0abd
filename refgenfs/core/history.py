"""Counters over time, within a bound: every second of the last minutes, every half minute of the last day. Pure.

What is kept are the counters themselves, which only grow. A rate is the difference of two samples by their times, so
that one which came late, or not at all, makes no rate wrong, and the coarse samples are as true as the fine ones.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FINE, FINE_SPAN = 1.0, 600.0  # seconds: one sample a second, for ten minutes
COARSE, COARSE_SPAN = 30.0, 86_400.0  # and one in half a minute, for a day
# Samples may come a little early: a task that sleeps for a second wakes when its clock says so.
SLACK = 0.25  # seconds


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters at one moment: bytes, bytes, and seconds that reads which had to wait have waited in all."""

    when: float  # Unix seconds, by a clock that never goes back
    served: int
    fetched: int
    waited: float

    def row(self) -> list[float]:
        """Return it as JSON has it."""
        return [round(self.when, 2), self.served, self.fetched, round(self.waited, 3)]


_WIDTH = 4
NAMES = ("when", "served", "fetched", "waited")


class Ring:
    """The last samples, at least a step apart; the oldest is written over."""

    def __init__(self, step: float, span: float) -> None:
        self.step = step  # seconds
        self._most = int(span / step) + 1  # one more than there are differences
        self._cells = array("d")
        self._next = 0  # where the oldest is, once it is full
        self._last = float("-inf")

    def __len__(self) -> int:
        return len(self._cells) // _WIDTH

    def note(self, sample: Sample) -> None:
        """Keep a sample, unless the last one is not a step ago."""
        if sample.when - self._last < self.step - SLACK:
            return
        self._last = sample.when
        cells = array("d", (sample.when, sample.served, sample.fetched, sample.waited))
        if len(self) < self._most:
            self._cells += cells
            return
        at = self._next * _WIDTH
        self._cells[at : at + _WIDTH] = cells
        self._next = (self._next + 1) % self._most

    def since(self, after: float) -> list[Sample]:
        """Return the samples later than `after`, the oldest first."""
        found = []
        for sample in self._backwards():
            if sample.when <= after:
                break
            found.append(sample)
        return found[::-1]

    def _backwards(self) -> Iterator[Sample]:
        count = len(self)
        for back in range(1, count + 1):
            at = (self._next - back) % count * _WIDTH
            when, served, fetched, waited = self._cells[at : at + _WIDTH]
            yield Sample(when, int(served), int(fetched), waited)


class History:
    """Two rings: `fine` and `coarse`. 140 kB when both are full."""

    def __init__(self) -> None:
        self.fine = Ring(FINE, FINE_SPAN)
        self.coarse = Ring(COARSE, COARSE_SPAN)

    @property
    def rings(self) -> Sequence[Ring]:
        """Both."""
        return self.fine, self.coarse

    def note(self, sample: Sample) -> None:
        """Keep a sample, in each ring where it is due."""
        for ring in self.rings:
            ring.note(sample)
