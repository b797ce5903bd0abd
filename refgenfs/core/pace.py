"""Whether a disk is quick enough to be waited for on the spot, as its last answers say. Pure."""

from __future__ import annotations

# How much of the running average an answer is (RFC 6298's estimator of round trips has the same).
WEIGHT = 1 / 8


class Pace:
    """A running average of how long answers take, against what is `slow`, in seconds; quick to begin with.

    An average, since one answer in many takes long for other reasons: a busy machine gives the processor to
    somebody else in the middle of it.
    """

    __slots__ = ("_average", "_slow")

    def __init__(self, slow: float) -> None:
        self._slow = slow
        self._average = 0.0

    @property
    def quick(self) -> bool:
        """Say whether to wait on the spot."""
        return self._average < self._slow

    def note(self, seconds: float) -> None:
        """Note how long an answer took."""
        self._average += (seconds - self._average) * WEIGHT
