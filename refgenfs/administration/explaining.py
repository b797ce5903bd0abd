"""`explain`: where a file's bytes come from, what of it is here, and what a read of it would fetch.

It asks an origin for a listing and a size at most, each within the lookup deadline, and never for the file's bytes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import trio

from refgenfs.administration.parts import ALL, Daemon, Sight, chosen_names, parse_key, percent, shown_name
from refgenfs.control import Operation, Progress
from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import (
    BLOCK,
    ArchiveMember,
    ByteRange,
    CheckedRange,
    Derived,
    FileFacts,
    Generated,
    InlineData,
    LocalFile,
    Run,
    block_count,
)
from refgenfs.core.errors import ControlError, NotInCatalog, RefgenfsError, redact_url
from refgenfs.core.layout import DERIVED
from refgenfs.core.ticketblocks import TicketBlocks
from refgenfs.core.units import human_age, human_bytes
from refgenfs.reader.ranges import LONGEST_RUN
from refgenfs.reader.stream import Archive
from refgenfs.tree import REFGET

MOST_FILES = 1000  # of an answer
ASKING = 20.0  # seconds for which origins are asked for the sizes of many files
MOST_RANGES = 1000  # resident stretches that are told of one file


@dataclass(frozen=True, slots=True)
class Target:
    """A file that is to be explained, by its version and its origin's name."""

    version: AssetVersion
    name: str
    shown: str  # below the mountpoint


@dataclass(frozen=True, slots=True)
class Wanted:
    """The bytes of an imagined read."""

    offset: int
    length: int | None  # None: to the end

    def run(self, size: int) -> Run:
        """Return the blocks of a file of `size` bytes that the read touches."""
        stop = size if self.length is None else min(size, self.offset + self.length)
        return Run(min(self.offset, stop) // BLOCK, -(-stop // BLOCK)) if stop > self.offset else Run(0, 0)


class Explaining:
    """The operation `explain`, for who has this sight."""

    def __init__(self, daemon: Daemon, sight: Sight = ALL) -> None:
        self._daemon = daemon
        self._sight = sight

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {"explain": self.explain}

    async def explain(self, arguments: dict[str, Any], _: Progress) -> dict[str, Any]:
        """Return what is known of each file that a path below the mountpoint, or a key, means."""
        await self._daemon.store.ready()
        wanted = _parse_wanted(arguments)
        targets = await self._targets(arguments)
        files: list[dict[str, Any]] = []
        asking, until = True, trio.current_time() + ASKING
        for target in targets[:MOST_FILES]:
            files.append(await self._explain(target, wanted, asking=asking))
            # an origin that is away is not asked for each of a thousand files
            asking = asking and files[-1]["error"] is None and trio.current_time() < until
        return {"files": files, "more": max(0, len(targets) - MOST_FILES)}

    # -- which files --------------------------------------------------------------------------------------

    async def _targets(self, arguments: dict[str, Any]) -> list[Target]:
        path = arguments.get("path")
        if path is None:
            key = parse_key(arguments.get("key"))
            version = self._sight.check(self._daemon.catalog.snapshot.version(key))
            listing = await self._listing(version)
            folder = self._folder(key.genome, version)
            return [
                Target(version, name, f"{folder}/{_shown(version, name, key.genome)}")
                for name in chosen_names(version, listing, key.seek_key)
            ]
        if not isinstance(path, str):
            raise ControlError("a request's path is a text")
        return await self._below([part for part in path.split("/") if part not in ("", ".")])

    def _folder(self, genome: str, version: AssetVersion) -> str:
        default = self._daemon.catalog.snapshot.asset(genome, version.asset).default_tag
        return f"{genome}/{version.asset}" + ("" if version.tag == default else f":{version.tag}")

    async def _listing(self, version: AssetVersion) -> Sequence[str]:
        """Return a version's names, unless all of its archive would have to be read for them."""
        library = self._daemon.library
        names = list(await library.listing(version))
        await library.recall(version)
        if not names:
            raise NotInCatalog(
                f"{version.key}: its server has no listing, so its files are known once its archive has been read "
                f"(`refgenfs pull {version.key}`)"
            )
        return [*names, *await library.companions(version)]

    async def _below(self, parts: list[str]) -> list[Target]:
        """Return the file at a path below the mountpoint, or all files of the folder there."""
        if len(parts) < 2:
            raise NotInCatalog("name a file or an asset's folder below the mountpoint: genome/asset/file")
        if parts[0] == REFGET:
            raise NotInCatalog("a sequence by MD5 is a part of a FASTA: that can be explained")
        genome, spelling, *rest = parts
        asset, colon, tag = spelling.partition(":")
        found = self._daemon.catalog.snapshot.asset(genome, asset)
        version = self._sight.check(found.version(tag if colon else None))
        prefix = ""
        for number, part in enumerate(rest):
            await self._listing(version)
            child = None
            try:
                child = await self._daemon.library.child(version, genome, prefix, part)
            except NotInCatalog:
                if number:
                    raise
            if child is None:
                if number or colon or part not in found.tags:  # refgenie's own asset/tag
                    raise NotInCatalog(f"{version.key} has no file {'/'.join(rest)!r}")
                version = self._sight.check(found.tags[part])
            elif child.origin_name is not None:
                if number + 1 < len(rest):
                    raise NotInCatalog(f"{part} of {version.key} is a file, and no folder")
                return [Target(version, child.origin_name, "/".join(parts))]
            else:
                prefix = f"{prefix}/{part}" if prefix else part
        base = "/".join([genome, spelling, *rest])
        if rest and not prefix:  # asset/tag
            base = "/".join([genome, spelling, rest[0]])
        names = [(name, _shown(version, name, genome)) for name in await self._listing(version)]
        inside = [(name, shown) for name, shown in names if shown.startswith(f"{prefix}/" if prefix else "")]
        return [Target(version, name, f"{base}/{shown[len(prefix) :].lstrip('/')}") for name, shown in inside]

    # -- one file -----------------------------------------------------------------------------------------

    async def _explain(self, target: Target, wanted: Wanted, *, asking: bool) -> dict[str, Any]:
        d, version, name = self._daemon, target.version, target.name
        row: dict[str, Any] = {
            "path": f"{d.mountpoint}/{target.shown}",
            "key": str(version.key),
            "file": shown_name(version, name),
            "source": version.source,
            "error": None,
        }
        if name.startswith(DERIVED):  # to ask for it would make it
            facts = d.library.known_facts(version, name)
            if facts is None:
                return {**row, **self._unmade(version, name)}
            return {**row, **await self._known(facts, wanted)}
        try:
            facts = await d.library.ready_facts(version, name) if asking else d.library.known_facts(version, name)
        except RefgenfsError as exc:
            facts, row["error"] = d.library.known_facts(version, name), str(exc)
        if facts is None:
            return {**row, **self._unknown(version, name, asked=asking and row["error"] is None)}
        return {**row, **await self._known(facts, wanted)}

    async def _known(self, facts: FileFacts, wanted: Wanted) -> dict[str, Any]:
        """Return what there is to say of a file whose facts are known."""
        d, content = self._daemon, facts.content
        held = d.store.resident_bytes(content)
        resident = await self._resident(facts)
        return {
            "source": facts.source,
            "route": self._route(facts),
            "origin": facts.origin,
            "from": _places(facts),
            "content": content,
            "size": facts.size,
            "resident_bytes": held,
            "resident": percent(held, facts.size),
            "resident_ranges": [
                [run.first * BLOCK, min(run.stop * BLOCK, facts.size)] for run in resident[:MOST_RANGES]
            ],
            "more_ranges": max(0, len(resident) - MOST_RANGES),
            "pinned_by": d.store.pins.holders(content),
            "on_its_way": d.board.nbytes(content, facts.size),
            "read": await self._read(facts, resident, wanted),
            "slow": self._slow(facts),
        }

    def _unknown(self, version: AssetVersion, name: str, *, asked: bool) -> dict[str, Any]:
        """Return what there is to say of a file whose size is not known."""
        ref = self._daemon.catalog.archive(version)
        slow = self._trouble(version.source)
        if ref is None or not asked:
            return self._bare(version, name, "unknown", None, (), "its size is not known", slow)
        slow += self._streams(self._daemon.archives.known(ref))
        how = "what has the size is the archive: the first `stat` streams it up to there"
        return self._bare(version, name, "stream", "archive", ref.urls, how, slow)

    def _unmade(self, version: AssetVersion, name: str) -> dict[str, Any]:
        """Return what there is to say of a file that is made when it is asked for."""
        how = "it is made when it is first asked for, and what it is made of is read for that"
        return self._bare(version, name, "made", None, (), how, self._trouble(version.source))

    def _bare(
        self,
        version: AssetVersion,
        name: str,
        route: str,
        origin: str | None,
        urls: Sequence[str],
        how: str,
        slow: list[str],
    ) -> dict[str, Any]:
        content = self._daemon.library.provisional_id(version, name)
        return {
            "route": route,
            "origin": origin,
            "from": [redact_url(url) for url in urls],
            "content": content,
            "size": None,
            "resident_bytes": self._daemon.store.resident_bytes(content),
            "resident": None,
            "resident_ranges": [],
            "more_ranges": 0,
            "pinned_by": self._daemon.store.pins.holders(content),
            "on_its_way": 0,
            "read": _cost(None, None, None, how),
            "slow": slow,
        }

    def _route(self, facts: FileFacts) -> str:
        extent = facts.extent
        if isinstance(extent, ArchiveMember):
            return "spans" if self._daemon.archives.can_bring(extent.archive) else "stream"
        if isinstance(extent, LocalFile) and not extent.cached:
            return "straight"
        if isinstance(extent, ByteRange) and not self._daemon.reader.can_bring(facts):
            return "whole"
        return "inline" if isinstance(extent, InlineData) else facts.origin

    async def _resident(self, facts: FileFacts) -> list[Run]:
        store = self._daemon.store
        if not store.resident_bytes(facts.content):
            return []
        content = await store.content(facts.content, facts.size)
        return content.map.resident_runs(0, block_count(facts.size))

    async def _read(self, facts: FileFacts, resident: Sequence[Run], wanted: Wanted) -> dict[str, Any]:
        """Return what a read would fetch now: requests and bytes, as far as that can be said beforehand."""
        run, extent = wanted.run(facts.size), facts.extent
        missing = _gaps(run, resident)
        lacking = sum(min(gap.stop * BLOCK, facts.size) - gap.first * BLOCK for gap in missing)
        if isinstance(extent, LocalFile) and not extent.cached:
            return _cost(0, 0, 0, "it is read where it is, and never copied")
        if isinstance(extent, InlineData) or not missing:
            return _cost(0, 0, 0, "nothing: all of it is here")
        if isinstance(extent, ArchiveMember):
            return await self._read_member(extent, missing, lacking)
        if isinstance(extent, Derived):
            data = f"{shown_name(extent.version, extent.name)} of {extent.version.key}"
            how = f"it is made again of {data}" if isinstance(extent, Generated) else f"it is cut out of {data}"
            return _cost(lacking, None, None, f"{how}, which is read for it")
        if self._route(facts) == "whole":
            return _cost(lacking, 1, facts.size, "all of it from its beginning, for its host gives no parts")
        requests = sum(-(-len(gap) // LONGEST_RUN) for gap in missing)
        return _cost(lacking, requests, lacking, "byte ranges; who reads in order has more fetched ahead")

    async def _read_member(self, extent: ArchiveMember, missing: Sequence[Run], lacking: int) -> dict[str, Any]:
        archives, ref = self._daemon.archives, extent.archive
        archive = archives.known(ref)
        if archive is not None:
            if archive.stream_to(extent.name, missing[0].first) is not None:
                return _cost(lacking, 0, 0, "the stream that is under way brings it")
            cost = await archives.cost(archive, extent.name, missing)
            if cost is not None:
                return _cost(
                    lacking, *cost, "spans of the archive, as its seek index has them; bytes are packed ones"
                )
            if archives.can_bring(ref):
                return _cost(lacking, None, None, "spans of the archive; its seek index has to be read first")
        size = "all of it" if ref.archive_size is None else f"about {human_bytes(ref.archive_size)} packed"
        return _cost(lacking, 1, ref.archive_size, f"the archive from its beginning to this file, at the most {size}")

    # -- what makes it slow -------------------------------------------------------------------------------

    def _slow(self, facts: FileFacts) -> list[str]:
        d = self._daemon
        reasons = self._trouble(facts.source)
        if isinstance(facts.extent, ArchiveMember):
            reasons += self._streams(d.archives.known(facts.extent.archive))
        if d.board.nbytes(facts.content, facts.size) and d.budget.waiting:
            reasons.append(f"{d.budget.waiting} fetches wait for memory (limits.memory)")
        if d.store.uncached:
            reasons.append(f"nothing is kept: the disk of the cache refuses ({d.store.errors.last})")
        return reasons

    def _trouble(self, source: str) -> list[str]:
        """Return why a source does not answer, if so."""
        failing = self._daemon.http.failing.get(source)
        if failing is not None:
            age = human_age(max(0.0, time.time() - failing.when))
            return [f"{source} fails: {failing.url}: {failing.what} (attempt {failing.attempt}, {age})"]
        return [f"{source}: {one.error}" for one in self._daemon.catalog.status() if one.name == source and one.error]

    def _streams(self, archive: Archive | None) -> list[str]:
        if archive is None:
            return []
        whole = max((member.offset + member.size for member in archive.table.members.values()), default=0)
        of = f" of {human_bytes(whole)}" if archive.table.complete and whole else ""
        return [
            f"the archive of {archive.ref.key} streams: {human_bytes(stream.position)}{of} unpacked so far"
            for stream in archive.streams
        ]


def _cost(lacking: int | None, requests: int | None, nbytes: int | None, how: str) -> dict[str, Any]:
    return {"missing": lacking, "requests": requests, "bytes": nbytes, "how": how}


def _places(facts: FileFacts) -> list[str]:
    """Return where a file's bytes are, fit for people."""
    extent = facts.extent
    if isinstance(extent, ArchiveMember):
        return [redact_url(url) for url in extent.archive.urls]
    if isinstance(extent, LocalFile):
        return [f"{extent.root}/{extent.path}"]
    if isinstance(extent, Derived):
        return [f"{shown_name(extent.version, extent.name)} of {extent.version.key}"]
    if isinstance(extent, TicketBlocks):
        return [f"the ticket of {extent.query.id}"]
    return [redact_url(url) for url in extent.urls] if isinstance(extent, ByteRange | CheckedRange) else []


def _shown(version: AssetVersion, name: str, genome: str) -> str:
    """Return a file's name below a genome's alias."""
    return shown_name(None, name).replace(version.genome_digest, genome)


def _gaps(run: Run, resident: Sequence[Run]) -> list[Run]:
    """Return the parts of a run that no resident run has; those are in order."""
    gaps, at = [], run.first
    for one in resident:
        if one.stop <= at or one.first >= run.stop:
            continue
        if one.first > at:
            gaps.append(Run(at, one.first))
        at = one.stop
    return [*gaps, Run(at, run.stop)] if at < run.stop else gaps


def _parse_wanted(arguments: dict[str, Any]) -> Wanted:
    offset, length = arguments.get("offset", 0), arguments.get("length")
    numbers = [offset] if length is None else [offset, length]
    if not all(isinstance(one, int) and one >= 0 for one in numbers):
        raise ControlError("a request's offset and length are numbers of bytes, at least 0")
    return Wanted(offset, length)
