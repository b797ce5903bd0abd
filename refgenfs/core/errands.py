"""For whom something is fetched, and who of those that wait comes next. Pure.

Many users share a few connections, some memory and a few streams. In the order of asking, one who copies everything
would be served first for minutes, and whoever asks for one block waits behind all of it. So what somebody waits for
comes before what is read ahead, then whoever holds least comes first (max-min fairness, as by Demers, Keshav and
Shenker, "Analysis and simulation of a fair queueing algorithm", 1989), and the order of asking is within one user.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, TypeVar

User = int | None  # a user's number; None: the daemon itself
T = TypeVar("T")

# Another user is thought to come back for so long: until then something is kept for whoever has nothing.
AROUND = 60.0  # seconds
KEPT = 4  # one of so many places


@dataclass(slots=True, eq=False)
class Errand:
    """One fetch: for whom, and whether somebody waits for it, which may come to be so later."""

    user: User = None
    urgent: bool = True


# Whose request is being answered. A parameter of everything between a request and a connection, in which nothing but
# the two ends has any use for it: tasks and calls over the bridge inherit it from who begins them.
_CURRENT: ContextVar[Errand] = ContextVar("errand")
_OWN = Errand()


def current() -> Errand:
    """Return what is being done now; the daemon's own doing where nobody asked for it."""
    return _CURRENT.get(_OWN)


def go_on(errand: Errand) -> None:
    """Have the present task do this errand from now on."""
    _CURRENT.set(errand)


class on_behalf_of:  # noqa: N801  # a verb of the field, that is written as `with on_behalf_of(user):`
    """Do the body, and whatever it begins, for a user; nobody waits for its bytes unless it is `urgent`.

    A class, as every read goes through it: a generator would cost twice as much.
    """

    __slots__ = ("_errand", "_token")

    def __init__(self, user: User, *, urgent: bool = True) -> None:
        self._errand = Errand(user, urgent)

    def __enter__(self) -> None:
        self._token = _CURRENT.set(self._errand)

    def __exit__(self, *_: object) -> None:
        _CURRENT.reset(self._token)


class Line(Generic[T]):
    """Those who wait, in a fair order; and how much each user holds of what they wait for."""

    def __init__(self) -> None:
        self._waiting: dict[User, deque[tuple[int, Errand, T]]] = {}
        self._held: Counter[User] = Counter()
        self._next = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[T]:
        return (item for row in self._waiting.values() for _, _, item in row)

    def held(self, user: User) -> int:
        """Return how much a user holds."""
        return self._held[user]

    def hold(self, user: User, amount: int = 1) -> None:
        """Note that a user holds so much more."""
        self._held[user] += amount

    def drop(self, user: User, amount: int = 1) -> None:
        """Note that a user holds so much less."""
        self._held[user] -= amount
        if not self._held[user]:
            del self._held[user]

    def join(self, item: T, errand: Errand) -> None:
        """Wait from now on."""
        self._waiting.setdefault(errand.user, deque()).append((self._next, errand, item))
        self._next += 1

    def leave(self, item: T, user: User) -> bool:
        """Wait no more, and say whether one did: nothing happens for who does not."""
        row = self._waiting.get(user, deque())
        found = next((one for one in row if one[2] is item), None)
        if found is None:
            return False
        row.remove(found)
        if not row:
            del self._waiting[user]
        return True

    def first(self, may: Callable[[User], bool] = lambda _: True) -> tuple[T, User] | None:
        """Return who comes next, and whose it is; None where nobody is there who `may`."""
        best: tuple[tuple[bool, int, int], T, User] | None = None
        for user, row in self._waiting.items():
            if not may(user):
                continue
            number, errand, item = next((one for one in row if one[1].urgent), row[0])
            rank = (not errand.urgent, self._held[user], number)
            if best is None or rank < best[0]:
                best = rank, item, user
        return None if best is None else (best[1], best[2])


class Around:
    """Which users are around: who asked for something of late. The daemon itself is nobody."""

    def __init__(self) -> None:
        self._seen: dict[User, float] = {}

    def note(self, user: User, now: float) -> None:
        """Note that a user asks; `now` is in seconds, of any clock."""
        if user is not None:
            self._seen[user] = now

    def others(self, user: User, now: float) -> bool:
        """Say whether anybody else is around."""
        self._seen = {one: at for one, at in self._seen.items() if now - at < AROUND}
        return bool(self._seen.keys() - {user})


class Turns(Generic[T]):
    """A number of places, and those who wait for one.

    While several users are around, one in `KEPT` of the places is for those who have none: who comes for one small
    thing need not wait until one of another's long ones ends. `now` is in seconds, of any clock.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._taken = 0
        self._line: Line[T] = Line()
        self._around = Around()

    @property
    def free(self) -> int:
        """How many places nobody has."""
        return self._places - self._taken

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._line)

    def resize(self, places: int, now: float) -> list[T]:
        """Have so many places from now on; return who has one of them by that."""
        self._places = places
        return self._admit(now)

    def enter(self, user: User, now: float) -> bool:
        """Take a place; False where one has to wait (`queue`)."""
        self._around.note(user, now)
        if len(self._line) or not self._may(user, now):
            return False
        self._taken += 1
        self._line.hold(user)
        return True

    def queue(self, item: T, errand: Errand, now: float) -> list[T]:
        """Wait for a place; return who has one by now: others may have to wait where this one need not."""
        self._line.join(item, errand)
        return self._admit(now)

    def withdraw(self, item: T, user: User) -> bool:
        """Wait no more; False for who has a place by now, and is to give it back."""
        return self._line.leave(item, user)

    def leave(self, user: User, now: float) -> list[T]:
        """Give a place back; return who has one by that."""
        self._taken -= 1
        self._line.drop(user)
        return self._admit(now)

    def _admit(self, now: float) -> list[T]:
        admitted = []
        while self.free > 0 and (found := self._line.first(lambda user: self._may(user, now))) is not None:
            item, user = found
            self._line.leave(item, user)
            self._taken += 1
            self._line.hold(user)
            admitted.append(item)
        return admitted

    def _may(self, user: User, now: float) -> bool:
        if self.free <= 0:
            return False
        if self.free > self._places // KEPT or not self._line.held(user):
            return True
        return not self._around.others(user, now)
