"""Users and groups: their numbers, and which groups a process or a user has."""

from __future__ import annotations

import grp
import math
import os
import pwd
from typing import ClassVar

import trio

from refgenfs.core.access import Rule

NOBODY = 2**32 - 1


def uid_of(name: str) -> int:
    """Return the number of a user, who may be named by it; raise ValueError for one that nobody knows here."""
    if _is_number(name):
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        raise ValueError(f"this machine has no user {name!r}; write a name that `id` knows, or a number") from None


def gid_of(name: str) -> int:
    """Return the number of a group, as `uid_of` does."""
    if _is_number(name):
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise ValueError(
            f"this machine has no group {name!r}; `getent group` shows them, or write a number"
        ) from None


def user_name(uid: int) -> str:
    """Return a user's name, the number of one that has none. May ask a directory server, and wait for it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _is_number(name: str) -> bool:
    """Say whether a text is the number of a user or group: the last one of 32 bits stands for nobody."""
    return name.isascii() and name.isdigit() and len(name) < 11 and int(name) < NOBODY


def groups_of_process(pid: int) -> frozenset[int] | None:
    """Return the supplementary groups of a process (or thread); None where /proc doesn't tell.

    A pid of 0 is a process of a container that we can't see.
    """
    if pid <= 0:
        return None
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("Groups:"):
                    return frozenset(map(int, line.split()[1:]))
    except (OSError, ValueError):
        return None
    return None


def groups_of_user(uid: int) -> frozenset[int]:
    """Return the groups that a user has by the machine's database; none for one that it doesn't know."""
    try:
        user = pwd.getpwuid(uid)
        return frozenset(os.getgrouplist(user.pw_name, user.pw_gid))
    except (KeyError, OSError):
        return frozenset()


class Guard:
    """Who asks, and whether they may. A process's groups are those it has now, a container's those of its user."""

    KEEP: ClassVar[float] = 60.0  # seconds that the groups of a user are believed
    MOST: ClassVar[int] = 256  # users whose groups are remembered

    def __init__(self) -> None:
        self._groups: dict[int, tuple[float, frozenset[int]]] = {}

    async def allows(self, rule: Rule, uid: int, gid: int, pid: int) -> bool:
        """Say whether a user may, by whose process (or thread) `pid` it is asked for."""
        return await rule.allows(uid, gid, lambda: self._groups_of(pid, uid))

    async def _groups_of(self, pid: int, uid: int) -> frozenset[int]:
        groups = groups_of_process(pid)
        if groups is not None:
            return groups
        at, known = self._groups.get(uid, (-math.inf, frozenset()))
        if trio.current_time() - at > self.KEEP:
            known = await trio.to_thread.run_sync(groups_of_user, uid)  # which may ask a directory server
            if len(self._groups) >= self.MOST:
                self._groups.clear()
            self._groups[uid] = trio.current_time(), known
        return known
