"""How many lines of one kind a log takes: the first few of a minute, and then their number."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

BURST = 20  # lines of a kind in one window: enough to see what files and origins have in common
WINDOW = 60.0  # seconds; the bound of a kind is BURST lines and one sum a window
MOST_KINDS = 512  # of ours there are about 100; what other libraries log may be of any number


@dataclass(slots=True)
class _Kind:
    since: float
    lines: int = 0
    last: str = ""  # the last one that was left out


@dataclass(frozen=True, slots=True)
class LeftOut:
    """So many lines of a kind were left out in a window; `last` is the last of them."""

    kind: Hashable
    count: int
    last: str


@dataclass(slots=True)
class Repeats:
    """Decides which lines are told. It is told the time, in seconds of any clock that never goes back."""

    burst: int = BURST
    window: float = WINDOW
    others: Hashable = None  # the kind of all that is too much to be told apart
    _kinds: dict[Hashable, _Kind] = field(default_factory=dict)

    def admit(self, kind: Hashable, line: str, now: float) -> bool:
        """Say whether a line is told; one that is not is counted. First take `over`, for its sums come before."""
        if kind not in self._kinds and len(self._kinds) >= MOST_KINDS:
            kind = self.others
        known = self._kinds.setdefault(kind, _Kind(now))
        known.lines += 1
        if known.lines <= self.burst:
            return True
        known.last = line
        return False

    def over(self, now: float) -> list[LeftOut]:
        """Return what was left out in windows that are over, and forget those windows."""
        return self._end([kind for kind, known in self._kinds.items() if now - known.since >= self.window])

    def all(self) -> list[LeftOut]:
        """Return what was left out until now, and forget all windows."""
        return self._end(list(self._kinds))

    def _end(self, kinds: list[Hashable]) -> list[LeftOut]:
        ended = [(kind, self._kinds.pop(kind)) for kind in kinds]
        return [LeftOut(kind, one.lines - self.burst, one.last) for kind, one in ended if one.lines > self.burst]
