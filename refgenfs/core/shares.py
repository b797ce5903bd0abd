"""Who holds how many of something that there is a number of: nobody may take what others need. Pure.

The rule is that of dynamic thresholds (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet
switches", 1998): a user may hold no more than are left. One alone gets a half, two get a third each, and for whoever
comes next there is always something.
"""

from __future__ import annotations

from collections.abc import Iterable

Holder = int | None  # a user's number; None: nobody knows whose


class Shares:
    """`total` things; a user holds `each` at the most, and never more than are left.

    Those in `exempt` (root, and who runs the daemon) are bound by what is left alone.
    """

    def __init__(self, total: int, each: int, exempt: Iterable[Holder] = ()) -> None:
        self.total = total
        self.each = each
        self._exempt = frozenset(exempt)
        self._held: dict[Holder, int] = {}
        self._left = total

    @property
    def left(self) -> int:
        """How many nobody holds."""
        return self._left

    def held(self, holder: Holder) -> int:
        """Return how many a user holds."""
        return self._held.get(holder, 0)

    def full(self, holder: Holder, number: int = 1) -> bool:
        """Say whether it is a user's own bound that so many more would break; else it is the others' need."""
        return holder not in self._exempt and self.held(holder) + number > self.each

    def take(self, holder: Holder, number: int = 1) -> bool:
        """Have so many more; False where that is too many."""
        if self.full(holder, number):
            return False
        held = self.held(holder) + number
        if number > self._left or (holder not in self._exempt and held > self._left - number + 1):
            return False
        self._held[holder] = held
        self._left -= number
        return True

    def give_back(self, holder: Holder, number: int = 1) -> None:
        """Have so many fewer."""
        held = self._held[holder] - number
        self._left += number
        if held:
            self._held[holder] = held
        else:  # who holds nothing costs nothing
            del self._held[holder]
