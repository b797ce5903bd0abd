"""Who may read what of the tree: rules of sources, as owners and modes where those can say it.

The kernel goes by owner and mode; the daemon goes by the rule, since a list of users fits no mode. Root and the
daemon's own user may always.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass

ROOT = 0
EVERYBODY = 0o555  # of folders; files lack the bits for entering
_READ = 0o444


@dataclass(frozen=True, slots=True)
class Ownership:
    """What stat shows of owner, group and mode; None: the daemon's own."""

    uid: int | None = None
    gid: int | None = None
    mode: int = EVERYBODY

    def file_mode(self) -> int:
        """Return the mode of a file, where `mode` is that of a folder."""
        return self.mode & _READ


@dataclass(frozen=True, slots=True)
class Rule:
    """These users, and those in these groups, by their numbers; beside root and `owner`, who runs the daemon."""

    users: frozenset[int]
    groups: frozenset[int]
    owner: int

    async def allows(self, uid: int, gid: int, groups: Callable[[], Awaitable[Collection[int]]]) -> bool:
        """Say whether somebody may; `groups` are the other groups, asked for only where they matter."""
        if uid in (ROOT, self.owner) or uid in self.users or gid in self.groups:
            return True
        return bool(self.groups) and not self.groups.isdisjoint(await groups())

    @property
    def ownership(self) -> Ownership:
        """How the kernel can be told; for what no mode says, everybody may as far as it knows.

        An owner other than the daemon's own user has to be let in by root: nobody else passes a mode that is not
        theirs.
        """
        users = self.users - {ROOT, self.owner}
        if not users and not self.groups:
            return Ownership(mode=0o500)
        if len(self.groups) > 1 or len(users) > 1 or (users and self.owner != ROOT):
            return Ownership()
        (uid,) = users or (None,)
        (gid,) = self.groups or (None,)
        return Ownership(uid, gid, 0o500 | (0o050 if gid is not None else 0))


def union(rules: Iterable[Rule | None]) -> Rule | None:
    """Return the rule of what holds things with these rules; None: anybody may enter, as one of them is open."""
    found: set[Rule] = set()
    for rule in rules:
        if rule is None:
            return None
        found.add(rule)
    if not found:
        return None
    users = frozenset().union(*(rule.users for rule in found))
    groups = frozenset().union(*(rule.groups for rule in found))
    return Rule(users, groups, next(iter(found)).owner)
