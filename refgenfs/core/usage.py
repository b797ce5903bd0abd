"""Who read how much: an account a user, as long as a daemon runs. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MOST_USERS = 1024  # accounts; some 100 KB


@dataclass(slots=True)
class Usage:
    """What one user's reads were given, and what they had fetched, in bytes.

    What is fetched is accounted to who first wanted it, or for whom it was read ahead; unpacked, as the file has it.
    """

    reads: int = 0
    served: int = 0
    fetched: int = 0


class Users:
    """The accounts by user id. Beyond `MOST_USERS`, who comes later shares one account."""

    def __init__(self, most: int = MOST_USERS) -> None:
        self._most = most
        self._accounts: dict[int, Usage] = {}
        self._others = Usage()

    def account(self, uid: int) -> Usage:
        """Return a user's account, which is to be added to."""
        found = self._accounts.get(uid)
        if found is None:
            if len(self._accounts) >= self._most:
                return self._others
            found = self._accounts[uid] = Usage()
        return found

    def __iter__(self) -> Iterator[tuple[int | None, Usage]]:
        """Yield user ids and accounts, who was served most first; None: those who share one."""
        rows: list[tuple[int | None, Usage]] = [*self._accounts.items()]
        if self._others.reads:
            rows.append((None, self._others))
        return iter(sorted(rows, key=lambda row: row[1].served, reverse=True))
