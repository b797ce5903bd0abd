"""What is known of an archive's members, kept for good in the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from refgenfs.core.content import ArchiveRef
from refgenfs.core.tar import Member

Canonical = Callable[[str], str]


@dataclass(slots=True)
class MemberTable:
    """The members whose headers have gone by, by their name at the origin.

    complete: what is not here does not exist: a whole archive has gone by and its digest was right, or the origin
        has a seek index of the archive that the catalog means, which says what is in it.
    confirmed: the validator of the archive that has gone by and was right ("" as long as none was).
    validator: that of the archive that blocks came from which are not confirmed yet ("" when all are).
    """

    members: dict[str, Member] = field(default_factory=dict)
    complete: bool = False
    confirmed: str = ""
    validator: str = ""

    @property
    def judged(self) -> bool:
        """Say whether a whole archive has gone by and its digest was right."""
        return self.complete and bool(self.confirmed)

    def note(self, member: Member) -> None:
        """Remember a member; of two with one name the later counts, as when tar unpacks."""
        self.members[member.name] = member

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        rows = [[m.name, m.kind, m.size, m.mtime, m.target, m.offset] for m in self.members.values()]
        return {
            "complete": self.complete,
            "confirmed": self.confirmed,
            "validator": self.validator,
            "members": rows,
        }

    @classmethod
    def from_json(cls, value: Any) -> MemberTable:
        """Return the table that `to_json` gave; an unreadable value is an empty table."""
        table = cls()
        try:
            for name, kind, size, mtime, target, offset in value["members"]:
                table.note(Member(name, kind, int(size), float(mtime), target, int(offset)))
            table.complete = bool(value["complete"])
            table.confirmed = str(value["confirmed"])
            table.validator = str(value["validator"])
        except (KeyError, TypeError, ValueError):
            return cls()
        return table


def canonical_names(listing: Iterable[str] | None, digest: str, aliases: Iterable[str]) -> Canonical:
    """Return the function that gives a member the name that the listing has for it.

    Old archives name files by an alias while the listing has the digest. With no listing, names stay.
    """
    known = frozenset(listing or ())
    spellings = tuple(aliases)

    def canonical(name: str) -> str:
        if name in known:
            return name
        for alias in spellings:
            by_digest = name.replace(alias, digest)
            if by_digest in known:
                return by_digest
        return name

    return canonical


def renamed(member: Member, canonical: Callable[[str], str]) -> Member:
    """Return a member with its name at the origin."""
    target = canonical(member.target) if member.kind == "hardlink" and member.target else member.target
    return replace(member, name=canonical(member.name), target=target)


def table_key(ref: ArchiveRef) -> str:
    """Return the ledger's key of an archive's member table."""
    return f"members/{ref.source}/{ref.asset_digest}"
