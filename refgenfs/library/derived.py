"""Files that no origin lists: made of what a version has, and found by names that begin with `DERIVED`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import FileFacts
from refgenfs.core.errors import NotInCatalog
from refgenfs.core.layout import DERIVED, Child


@dataclass(frozen=True, slots=True)
class Located:
    """Where a name led: the file's facts, and the version and the origin's name by which it was reached."""

    facts: FileFacts
    version: AssetVersion
    name: str


class Deriver(Protocol):
    """Files that no origin lists, and that appear when they are named: made of what a version has.

    Their names begin with `DERIVED`. Calls may wait for an origin, each no longer than its own deadlines.
    """

    async def child(
        self, version: AssetVersion, shown_as: str, prefix: str, name: str, listed: Mapping[str, Child]
    ) -> Child | None:
        """Return the entry `name` of the folder `prefix`, which has `listed` besides; None: it is none of these.

        Raises NotInCatalog for one that is not to be there, whoever else could make it.
        """
        ...

    async def children(self, version: AssetVersion, shown_as: str, prefix: str) -> Mapping[str, Child] | None:
        """Return what a folder shows that `child` gave; None: it is none of these."""
        ...

    async def facts(self, version: AssetVersion, name: str) -> FileFacts | None:
        """Return the facts of a file that `child` gave; None: it is none of these. Raises what hinders it."""
        ...

    def known_facts(self, version: AssetVersion, name: str) -> FileFacts | None:
        """Return such facts if they are in memory. No I/O, no wait."""
        ...


class Companions(Protocol):
    """Files that are made of files which are there, a listed or a derived one, and that stand beside them.

    Their names begin with `DERIVED`. Each is listed when it was made, and not before. Calls may wait for an origin.
    """

    async def child(
        self, version: AssetVersion, shown_as: str, prefix: str, name: str, listed: Mapping[str, Child] | None
    ) -> Child | None:
        """Return the entry `name` of the folder `prefix` (in which `listed` are); None: it is none of these."""
        ...

    async def beside(self, version: AssetVersion, listed: Mapping[str, Child]) -> Mapping[str, Child]:
        """Return what was made of the files of a folder, in which `listed` are."""
        ...

    async def facts(self, version: AssetVersion, name: str) -> FileFacts | None:
        """Return the facts of a file that `child` gave, making it; None: it is none of these. Raises what hinders."""
        ...

    def known_facts(self, version: AssetVersion, name: str, *, fresh: bool) -> FileFacts | None:
        """Return such facts if they are in memory, with `fresh` only if they still hold. No I/O, no wait."""
        ...

    async def names(self, version: AssetVersion) -> tuple[str, ...]:
        """Return the names of all that was made of a version's files."""
        ...


class DerivedFiles:
    """All that is derived: by the first deriver that has a name, and else as a companion of other files."""

    def __init__(self, derivers: tuple[Deriver, ...], companions: Companions | None) -> None:
        self._derivers = derivers
        self._companions = companions

    def accompany(self, companions: Companions | None) -> None:
        """Have these companions from now on, or none; what of them is open stays so."""
        self._companions = companions

    async def child(
        self, version: AssetVersion, shown_as: str, prefix: str, name: str, listed: Mapping[str, Child] | None
    ) -> Child | None:
        """Return the entry `name` of a folder in which `listed` are (None: it is no folder of the origin's).

        None: there is none. Raises what hinders to find out.
        """
        for deriver in self._derivers:
            child = await deriver.child(version, shown_as, prefix, name, listed or {})
            if child is not None:
                return child
        if self._companions is None:
            return None
        return await self._companions.child(version, shown_as, prefix, name, listed)

    async def children(self, version: AssetVersion, shown_as: str, prefix: str) -> Mapping[str, Child] | None:
        """Return what is listed in a folder that is derived itself; None: it isn't."""
        for deriver in self._derivers:
            listed = await deriver.children(version, shown_as, prefix)
            if listed is not None:
                return listed
        return None

    async def beside(self, version: AssetVersion, listed: Mapping[str, Child]) -> Mapping[str, Child]:
        """Return the companions of the files of a folder that were made."""
        return await self._companions.beside(version, listed) if self._companions is not None else {}

    async def names(self, version: AssetVersion) -> tuple[str, ...]:
        """Return the names of the companions of a version's files that were made."""
        return await self._companions.names(version) if self._companions is not None else ()

    def known(self, version: AssetVersion, name: str, *, fresh: bool) -> Located | None:
        """Return where a name leads if that is in memory, with `fresh` only if it still holds. No I/O, no wait."""
        for deriver in self._derivers:
            facts = deriver.known_facts(version, name)
            if facts is not None:
                return Located(facts, version, name)
        facts = self._companions.known_facts(version, name, fresh=fresh) if self._companions is not None else None
        return Located(facts, version, name) if facts is not None else None

    async def locate(self, version: AssetVersion, name: str) -> Located:
        """Return where a name leads, making the file if need be.

        Raises NotInCatalog for a name that nothing derives, and what hinders.
        """
        for deriver in self._derivers:
            facts = await deriver.facts(version, name)
            if facts is not None:
                return Located(facts, version, name)
        facts = await self._companions.facts(version, name) if self._companions is not None else None
        if facts is not None:
            return Located(facts, version, name)
        raise NotInCatalog(f"{version.key} has no {name.removeprefix(DERIVED)}")
