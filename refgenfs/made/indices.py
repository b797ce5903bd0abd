"""Indices as files of the tree: there for who names them, listed once they were made."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from itertools import islice

from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import ContentId, FileFacts
from refgenfs.core.errors import NotInCatalog
from refgenfs.core.indices import (
    BESIDE,
    KINDS,
    Wish,
    can_have_index,
    maker_of,
    name_index,
    parse_index,
    rivals,
    spell,
    wishes,
)
from refgenfs.core.layout import Child
from refgenfs.library import Library
from refgenfs.made.indexer import Indexer, content_of, facts_of
from refgenfs.made.records import Records

LISTED = 10_000  # files of a folder that are looked at for indices of theirs when it is listed


class Indices:
    """The indices that are made of files (see `library.Companions`)."""

    def __init__(self, indexer: Indexer, records: Records) -> None:
        self._indexer = indexer
        self._records = records

    def attach(self, library: Library) -> None:
        """Have the data read as what the library says it is."""
        self._indexer.attach(lambda data: library.open(data.facts, data.version, data.name))

    async def child(
        self,
        library: Library,
        version: AssetVersion,
        shown_as: str,
        prefix: str,
        name: str,
        listed: Mapping[str, Child] | None,
    ) -> Child | None:
        """Return the index `name` of a file of the folder `prefix`, made or not; None: it can be none."""
        for wish in wishes(name):
            base = await self._data(library, version, shown_as, prefix, wish, listed)
            if base is not None:
                if any(rival in (listed or {}) for rival in rivals(wish)):
                    return None
                return Child(name, name_index(base, wish.kind, wish.spelling))
        return None

    async def _data(
        self,
        library: Library,
        version: AssetVersion,
        shown_as: str,
        prefix: str,
        wish: Wish,
        listed: Mapping[str, Child] | None,
    ) -> str | None:
        """Return the origin's name of the data that an index would be of; None: there is no such file."""
        child = (listed or {}).get(wish.base)
        # of endings that may be replaced there are many: others that make files are asked for the likely one only
        if child is None and (wish.spelling == BESIDE or len(wish.kind.data) == 1):
            with suppress(NotInCatalog):
                child = await library.child(version, shown_as, prefix, wish.base)
        return child.origin_name if child is not None else None

    async def beside(
        self, library: Library, version: AssetVersion, listed: Mapping[str, Child]
    ) -> Mapping[str, Child]:
        """Return the indices that were made of files of a folder."""
        data = [
            (child.name, child.origin_name)
            for child in islice(listed.values(), LISTED)
            if child.origin_name is not None and can_have_index(child.name)
        ]
        if not data:
            return {}
        if any(library.known(version, origin_name) is None for _, origin_name in data):
            await library.recall(version)
        located = {name: library.known(version, name) for _, name in data}
        await self._records.load([one.facts.content for one in located.values() if one is not None])
        found: dict[str, Child] = {}
        for shown, name in data:
            one = located[name]
            made = self._records.known(one.facts.content) if one is not None else None
            for ending, record in (made or {}).items():
                for spelling in sorted(record.spellings):
                    child = Child(spell(shown, KINDS[ending], spelling), name_index(name, KINDS[ending], spelling))
                    # where two files could have it, as x.fa and x.fa.gz may have x.dict, it is the first one's
                    owner = next(wish.base for wish in wishes(child.name) if wish.base in listed)
                    if child.name not in listed and owner == shown:
                        found[child.name] = child
        return found

    async def facts(self, library: Library, version: AssetVersion, name: str) -> FileFacts | None:
        """Return the facts of an index, which is made if it was not; None: it is the name of none."""
        wish = parse_index(name)
        if wish is None:
            return None
        data = await library.locate(version, wish.base)
        if not data.name.endswith(wish.kind.data):  # a link whose name says something else than its target's
            raise NotInCatalog(f"{version.key}: {wish.base} is a link to {data.name}")
        facts = await self._indexer.facts(data, wish.kind, maker_of(wish.kind, data.name))
        await self._records.note_spelling(data.facts.content, wish.kind.ending, wish.spelling)
        return facts

    def known_facts(self, library: Library, version: AssetVersion, name: str, *, fresh: bool) -> FileFacts | None:
        """Return such facts if they are in memory. No I/O, no wait."""
        wish = parse_index(name)
        data = library.known(version, wish.base, fresh=fresh) if wish is not None else None
        if wish is None or data is None or not data.name.endswith(wish.kind.data):
            return None
        record = (self._records.known(data.facts.content) or {}).get(wish.kind.ending)
        return facts_of(data, wish.kind, maker_of(wish.kind, data.name), record) if record is not None else None

    async def names(self, library: Library, version: AssetVersion) -> tuple[str, ...]:
        """Return the names of the indices that were made of a version's listed files, one for each."""
        names = [name for name in await library.names(version) if can_have_index(name)]
        located = {name: library.known(version, name) for name in names}
        await self._records.load([one.facts.content for one in located.values() if one is not None])
        return tuple(
            name_index(name, KINDS[ending], next(iter(sorted(record.spellings)), KINDS[ending].usual))
            for name, one in located.items()
            if one is not None
            for ending, record in (self._records.known(one.facts.content) or {}).items()
        )

    def of(self, data: ContentId) -> list[ContentId]:
        """Return the contents that were made of one, as far as they are known in memory."""
        return [
            content_of(data, ending, record.sha256) for ending, record in (self._records.known(data) or {}).items()
        ]

    def drop(self, data: ContentId) -> None:
        """Have made anew what was made of this data, whose bytes were wrong; `forget` has to follow. Never waits."""
        self._indexer.forget(data)
        self._records.drop(data)

    async def forget(self, data: ContentId) -> None:
        """Do as `drop` for the next life, too."""
        await self._records.forget(data)
