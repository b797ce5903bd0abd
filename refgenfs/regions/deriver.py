"""Slices as files of the tree: their names, and what is remembered of them.

Nothing of it is for good: a name costs memory in tables that have bounds, and an origin one question a while.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import trio

from refgenfs.catalog.flights import Flights
from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import ContentId, FileFacts, Sliced
from refgenfs.core.errors import DeadlineExceeded, HtsgetError, NotInCatalog, OriginNotFound, RefgenfsError
from refgenfs.core.htsget.location import searchable
from refgenfs.core.htsget.model import Format, Query
from refgenfs.core.layout import Child, is_junk
from refgenfs.core.regions import FOLDER, HEADER, UNMAPPED, References, name_slice, parse_slice, query_of
from refgenfs.core.ticketblocks import TicketBlocks
from refgenfs.reader.reader import OpenFile, Reader

log = logging.getLogger(__name__)

KNOWN = 50_000  # slices and their blocks that are remembered, about 200 bytes each
FOLDER_CHECKS = 8  # files of an asset whose headers are asked for whether a folder can be
PATIENCE = 2.0  # seconds that an origin is waited for when something is known, and may be out of date


@dataclass(frozen=True, slots=True)
class OpenBytes:
    """A content that is read through the cache (see `htsfiles.RangeReader`)."""

    reader: Reader
    file: OpenFile

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self.file.facts.size

    async def read(self, start: int, stop: int) -> bytes | memoryview:
        """Return these bytes. What comes is to be copied before anything is awaited: it may be evicted then."""
        return await self.reader.read_checked(self.file, start, stop)


class Slicer(Protocol):
    """What makes slices of some files. Errors are those of origins, and HtsgetError for a query without an answer."""

    def takes(self, version: AssetVersion) -> bool:
        """Say whether this is for a version's files."""
        ...

    async def files(self, version: AssetVersion, shown_as: str) -> Mapping[str, str]:
        """Return the files that slices can be made of: the origin's name of each by the one that is shown."""
        ...

    def hold(self, version: AssetVersion) -> float:
        """For how long (seconds) what was said of a slice is believed."""
        ...

    def format(self, version: AssetVersion, file: str) -> tuple[str, Format]:
        """Return the id and the format of a file."""
        ...

    async def references(self, version: AssetVersion, file: str) -> References:
        """Return what a file's header names."""
        ...

    def known_references(self, version: AssetVersion, file: str) -> References | None:
        """Return that if it is in memory. No I/O, no wait."""
        ...

    async def facts(
        self, version: AssetVersion, file: str, query: Query, *, patience: float | None = None
    ) -> FileFacts:
        """Return the facts of a slice; with `patience` (seconds), nobody is waited for longer."""
        ...


@dataclass(frozen=True, slots=True)
class _Known:
    """What was said of a slice, and when (Unix seconds); None: there is none."""

    facts: FileFacts | None
    at: float

    @property
    def weight(self) -> int:
        extent = self.facts.extent if self.facts is not None else None
        if isinstance(extent, Sliced):
            return 1 + sum(1 + len(part) // 200 for part in extent.parts)
        return 1 + (len(extent.blocks) if isinstance(extent, TicketBlocks) else 0)


_Key = tuple[AssetVersion, str, Query]


class Regions:
    """The slices of files, by the first slicer that is for them (see `library.Deriver`)."""

    def __init__(
        self, slicers: Sequence[Slicer], *, lookup_deadline: float, wall: Callable[[], float] = time.time
    ) -> None:
        self._slicers = slicers
        self._deadline = lookup_deadline
        self._wall = wall
        self._flights = Flights()
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._weight = 0

    def be_patient(self, lookup_deadline: float) -> None:
        """Take so long (seconds) for a name or a size from now on."""
        self._deadline = lookup_deadline

    def open(self, nursery: trio.Nursery) -> None:
        """Let origins be asked, by tasks of this nursery."""
        self._flights.open(nursery)

    def forget(self, facts: FileFacts) -> list[ContentId]:
        """Forget a slice, and the slices of a file, whose origin has another version now; return their contents."""
        found = {
            key: known.facts.content
            for key, known in self._known.items()
            if known.facts is not None and facts.content in (known.facts.content, _base(known.facts))
        }
        for key in found:
            self._drop(key)
        return list(found.values())

    # -- names --------------------------------------------------------------------------------------------

    async def child(
        self, version: AssetVersion, shown_as: str, prefix: str, name: str, listed: Mapping[str, Child]
    ) -> Child | None:
        """Return `regions`, a folder in it, or a slice in that; None: it is none of these."""
        slicer = self._slicer(version)
        if slicer is None or (prefix and prefix.split("/")[0] != FOLDER) or (not prefix and name != FOLDER):
            return None
        with self._in_time(f"{name} of {version.key}"):
            files = await slicer.files(version, shown_as)
            if not files or is_junk(name) or "\0" in name:
                return None
            if not prefix:
                return Child(name, None) if name not in listed else None
            if prefix == FOLDER:
                return Child(name, None) if await self._is_folder(slicer, version, files, name) else None
            folder = prefix.removeprefix(f"{FOLDER}/")
            file = files.get(name)
            if "/" in folder or file is None or await self._query(slicer, version, file, folder) is None:
                return None
            return Child(name, name_slice(folder, file))

    async def children(self, version: AssetVersion, shown_as: str, prefix: str) -> Mapping[str, Child] | None:
        """Return the slices of one folder; `regions` itself lists nothing: there would be no end."""
        slicer = self._slicer(version)
        top, _, folder = prefix.partition("/")
        if slicer is None or top != FOLDER or "/" in folder:
            return None
        if not folder:
            return {}
        with self._in_time(f"the files of {prefix}"):
            files = await slicer.files(version, shown_as)
            found = {
                name: Child(name, name_slice(folder, file))
                for name, file in files.items()
                if await self._query(slicer, version, file, folder) is not None
            }
        return found or None

    async def _is_folder(self, slicer: Slicer, version: AssetVersion, files: Mapping[str, str], folder: str) -> bool:
        """Say whether a file has such a slice. Where there are many files, only some are asked."""
        if folder in (HEADER, UNMAPPED) and len(files) > FOLDER_CHECKS:
            return True
        for file in list(files.values())[:FOLDER_CHECKS]:
            if await self._query(slicer, version, file, folder) is not None:
                return True
        return len(files) > FOLDER_CHECKS

    async def _query(self, slicer: Slicer, version: AssetVersion, file: str, folder: str) -> Query | None:
        """Return what a folder means in a file; None: nothing."""
        id_, format_ = slicer.format(version, file)
        if folder in (HEADER, UNMAPPED):
            references = References({}, {})
        else:
            try:
                references = await slicer.references(version, file)
            except OriginNotFound as exc:
                log.debug("%s of %s: %s", file, version.key, exc)
                return None
        return _meant(folder, id_, format_, references)

    # -- facts --------------------------------------------------------------------------------------------

    async def facts(self, version: AssetVersion, name: str) -> FileFacts | None:
        """Return the facts of a slice, asking its origin if need be; None: it is the name of none.

        Raises NotInCatalog for one that there is not, DeadlineExceeded, and what the origin answers.
        """
        parsed, slicer = parse_slice(name), self._slicer(version)
        if parsed is None or slicer is None:
            return None
        folder, file = parsed
        with self._in_time(f"the size of {file} in {FOLDER}/{folder}"):
            query = await self._query(slicer, version, file, folder)
            facts = await self._facts(slicer, version, file, query) if query is not None else None
        if facts is None:
            raise NotInCatalog(f"{version.key} has no {FOLDER}/{folder}/{file}")
        return facts

    def known_facts(self, version: AssetVersion, name: str) -> FileFacts | None:
        """Return such facts if they are in memory. No I/O, no wait."""
        parsed, slicer = parse_slice(name), self._slicer(version)
        if parsed is None or slicer is None:
            return None
        folder, file = parsed
        references = slicer.known_references(version, file)
        if references is None and folder not in (HEADER, UNMAPPED):
            return None
        query = _meant(folder, *slicer.format(version, file), references or References({}, {}))
        known = self._known.get((version, file, query)) if query is not None else None
        return known.facts if known is not None else None

    async def _facts(self, slicer: Slicer, version: AssetVersion, file: str, query: Query) -> FileFacts | None:
        key = (version, file, query)
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            if 0 <= self._wall() - known.at < slicer.hold(version):
                return known.facts
        return await self._flights.join(key, partial(self._ask, slicer, key, known))

    async def _ask(self, slicer: Slicer, key: _Key, known: _Known | None) -> FileFacts | None:
        version, file, query = key
        facts: FileFacts | None
        try:
            facts = await slicer.facts(version, file, query, patience=PATIENCE if known is not None else None)
        except (HtsgetError, OriginNotFound) as exc:
            log.debug("%s of %s has no such slice: %s", file, version.key, exc)
            facts = None
        except RefgenfsError as exc:
            if known is None or not exc.transient:
                raise
            facts = known.facts  # an origin that is away changes nothing
        self._drop(key)
        self._known[key] = _Known(facts, self._wall())
        self._weight += self._known[key].weight
        while self._weight > KNOWN and len(self._known) > 1:
            self._drop(next(iter(self._known)))
        return facts

    def _drop(self, key: _Key) -> None:
        known = self._known.pop(key, None)
        self._weight -= known.weight if known is not None else 0

    def _slicer(self, version: AssetVersion) -> Slicer | None:
        return next((slicer for slicer in self._slicers if slicer.takes(version)), None)

    def _in_time(self, what: str) -> AbstractContextManager[None]:
        return _deadline(self._deadline, what)


@contextmanager
def _deadline(seconds: float, what: str) -> Iterator[None]:
    """Raise DeadlineExceeded naming what was waited for when the body takes longer."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise DeadlineExceeded(f"{what} did not come within {seconds:g} s") from None


def _base(facts: FileFacts) -> ContentId:
    """Return the content that a slice is cut out of, "" where it is of none that is here."""
    return facts.extent.data.content if isinstance(facts.extent, Sliced) else ""


def _meant(folder: str, id_: str, format_: Format, references: References) -> Query | None:
    try:
        return query_of(folder, id_, format_, references)
    except HtsgetError as exc:
        log.debug("no folder of regions: %s", exc)
        return None


def shown_files(names: Sequence[str], digest: str, shown_as: str) -> dict[str, str]:
    """Return the files that slices can be made of, by the last part of their names; none that is there twice."""
    found = searchable(names)
    shown = {name: (name.replace(digest, shown_as) if digest else name).rpartition("/")[2] for name in found}
    times = Counter(shown.values())
    return {base: name for name, base in shown.items() if times[base] == 1}
