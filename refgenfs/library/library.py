"""From a name to a content: which file of which version, by which route, how large.

Two routes lead to a file's bytes: the origin's unpacked copy (byte ranges, sizes by HEAD) where there is one,
else the asset's archive (sizes from the members' headers, once and for good).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from refgenfs.cache.pins import Pins
from refgenfs.catalog import Catalog
from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import (
    ArchiveMember,
    ArchiveRef,
    ContentId,
    FileFacts,
    InlineData,
    Sequence,
    content_id,
)
from refgenfs.core.errors import NotInCatalog, OriginMissing, RefgenfsError, StaleContent
from refgenfs.core.keys import AssetKey
from refgenfs.core.layout import DERIVED, Child, Layout, build_layout
from refgenfs.core.newest import Newest
from refgenfs.core.tar import Member, resolve_link
from refgenfs.deadlines import deadline
from refgenfs.library.derived import Companions, DerivedFiles, Deriver, Located
from refgenfs.reader.archives import Archives
from refgenfs.reader.openarchives import Naming
from refgenfs.reader.reader import OpenFile, Reader
from refgenfs.reader.stream import Archive

log = logging.getLogger(__name__)

LAYOUTS = 512  # kept laid out in memory; one costs about 200 bytes a file
LINKS = 8  # a link may lead to a link, but not for ever


class Library:
    """Resolves names of files to facts, and opens them. Lives on the trio thread."""

    def __init__(
        self,
        catalog: Catalog,
        archives: Archives,
        reader: Reader,
        pins: Pins,
        lookup_deadline: float,
        derivers: tuple[Deriver, ...] = (),
        companions: Companions | None = None,
    ) -> None:
        self._catalog = catalog
        self._archives = archives
        self._reader = reader
        self._pins = pins
        self._deadline = lookup_deadline
        self._derived = DerivedFiles(derivers, companions)
        self._layouts: Newest[tuple[AssetVersion, str, bool], Layout] = Newest(LAYOUTS)

    def renew(self, lookup_deadline: float, companions: Companions | None) -> None:
        """Take so long (seconds) for a name or a size from now on, and have these companions, or none."""
        self._deadline = lookup_deadline
        self._derived.accompany(companions)

    # -- names --------------------------------------------------------------------------------------------

    async def names(self, version: AssetVersion) -> tuple[str, ...]:
        """Return the origin's names of a version's files; from memory or the disk where they are known.

        Raises what the origin answers, and DeadlineExceeded after the lookup deadline.
        """
        listing = await self._listing(version)
        if listing is None:
            archive = await self._open_archive(version)
            members = await self._archives.members(archive)
            listing = tuple(sorted(name for name, m in members.items() if m.kind in {"file", "link", "hardlink"}))
        dead = self._dead_links(version)
        return tuple(name for name in listing if name not in dead) if dead else listing

    async def companions(self, version: AssetVersion) -> tuple[str, ...]:
        """Return the names of what was made of a version's files, beside them."""
        return await self._derived.names(version)

    async def layout(self, version: AssetVersion, shown_as: str) -> Layout:
        """Return a version's folders and files as they show under one name of its genome."""
        place = self._place(version, shown_as)
        layout = self._layouts.get(place)
        if layout is None:
            names = await self.names(version)
            layout = build_layout(names, version.genome_digest, shown_as)
            self._layouts.put(place, layout)
        return layout

    async def child(self, version: AssetVersion, shown_as: str, prefix: str, name: str) -> Child | None:
        """Return an entry of a version's folder, also one that is not listed; None where there is none.

        Raises NotInCatalog for a folder that there is not.
        """
        listed = (await self.layout(version, shown_as)).find(prefix)
        child = listed.get(name) if listed is not None else None
        if child is not None:
            return child
        child = await self._derived.child(version, shown_as, prefix, name, listed)
        if child is None and listed is None:
            raise NotInCatalog(f"{version.key} has no folder {prefix!r} any more")
        return child

    async def children(self, version: AssetVersion, shown_as: str, prefix: str) -> Mapping[str, Child]:
        """Return what is listed in a version's folder; raise NotInCatalog for one that there is not."""
        listed: Mapping[str, Child] | None = (await self.layout(version, shown_as)).find(prefix)
        if listed is None:
            listed = await self._derived.children(version, shown_as, prefix)
        if listed is None:
            raise NotInCatalog(f"{version.key} has no folder {prefix!r} any more")
        beside = await self._derived.beside(version, listed)
        return {**listed, **beside} if beside else listed

    def known_layout(self, version: AssetVersion, shown_as: str) -> Layout | None:
        """Return the layout if it is in memory."""
        return self._layouts.get(self._place(version, shown_as))

    def _place(self, version: AssetVersion, shown_as: str) -> tuple[AssetVersion, str, bool]:
        archive = self._known_archive(version)
        return version, shown_as, archive is not None and archive.table.complete  # links that are dead are known then

    async def listing(self, version: AssetVersion) -> tuple[str, ...]:
        """Return the names of a version's files as far as no archive has to be streamed for them."""
        return await self._listing(version) or ()

    async def _listing(self, version: AssetVersion) -> tuple[str, ...] | None:
        with deadline(self._deadline, f"the listing of {version.key}"):
            return await self._catalog.listing(version)

    def _dead_links(self, version: AssetVersion) -> frozenset[str]:
        """Return the names that are known to be links that point nowhere in the tree."""
        archive = self._known_archive(version)
        if archive is None or not archive.table.complete:
            return frozenset()
        return frozenset(
            name
            for name, member in archive.table.members.items()
            if member.kind != "file" and self._meant(version, member) is None
        )

    # -- facts --------------------------------------------------------------------------------------------

    def provisional_id(self, version: AssetVersion, name: str) -> ContentId:
        """Return the identity that a file has unless it turns out to be a link or to have been replaced."""
        return content_id(version.source, version.asset_digest, name)

    def known(self, version: AssetVersion, name: str, *, fresh: bool = False) -> Located | None:
        """Return where a name leads if that is in memory, and with `fresh` need not be asked for. No I/O, no wait."""
        if name.startswith(DERIVED):
            return self._derived.known(version, name, fresh=fresh)
        for _ in range(LINKS):
            facts = self._catalog.known_facts(version, name, fresh=fresh)
            if facts is not None:
                return Located(facts, version, name)
            archive = self._known_archive(version)
            member = archive.table.members.get(name) if archive is not None else None
            if archive is None or member is None:
                return None
            if member.kind == "file":
                return Located(_member_facts(archive.ref, member), version, name)
            sibling = self._meant(version, member)
            if sibling is None:
                return None
            version, name = sibling
        return None

    def known_facts(self, version: AssetVersion, name: str) -> FileFacts | None:
        """Return a file's facts if they are in memory. No I/O, no wait."""
        located = self.known(version, name)
        return located.facts if located is not None else None

    async def recall(self, version: AssetVersion) -> None:
        """Bring what the disk has of a version, and of the siblings that its links mean, to memory.

        Asks an origin for a listing at most; what can't be had stays unknown.
        """
        with suppress(RefgenfsError):
            await self._catalog.recall(version)
            archive = await self._open_archive(version)
            meant = [self._meant(version, member) for member in archive.table.members.values() if member.target]
            for sibling in {place[0] for place in meant if place is not None} - {version}:
                await self._catalog.recall(sibling)
                await self._open_archive(sibling)

    async def facts(self, version: AssetVersion, name: str) -> FileFacts:
        """Return a file's facts, waiting for the origin if need be; raises as `locate` does."""
        return (await self.locate(version, name)).facts

    async def ready_facts(self, version: AssetVersion, name: str) -> FileFacts | None:
        """Return a file's facts as `facts` does; None where an archive would have to be streamed for them."""
        with deadline(self._deadline, f"the size of {name}"):
            facts = await self._catalog.facts(version, name)
        return facts or self.known_facts(version, name)

    async def locate(self, version: AssetVersion, name: str) -> Located:
        """Return where a name leads, waiting for the origin if need be.

        Raises NotInCatalog for what is no file of the tree (a link that leads nowhere, a device), and what the
        origin answers.
        """
        if name.startswith(DERIVED):
            return await self._derived.locate(version, name)
        for _ in range(LINKS):
            with deadline(self._deadline, f"the size of {name}"):
                facts = await self._catalog.facts(version, name)
            if facts is not None:
                return Located(facts, version, name)
            if self._catalog.archive(version) is None:
                raise OriginMissing(f"{version.key}: source {version.source} names {name}, and doesn't have it")
            archive = await self._open_archive(version)
            member = await self._archives.member(archive, name)
            if member.kind == "file":
                return Located(_member_facts(archive.ref, member), version, name)
            sibling = self._meant(version, member)
            if sibling is None:
                raise NotInCatalog(f"{name} of {version.key} is no file, or a link that leads out of the tree")
            version, name = sibling
        raise NotInCatalog(f"{name} of {version.key} is a link to a link to a link …")

    def _meant(self, version: AssetVersion, member: Member) -> tuple[AssetVersion, str] | None:
        """Return the file that a link of an archive means: of this asset or, by the catalog, of a sibling."""
        if not member.target:
            return None
        if member.kind == "hardlink":
            return version, member.target
        target = resolve_link(member.name, member.target, version.genome_digest)
        if member.kind != "link" or target is None:
            return None
        if target.asset is None:
            return version, target.name
        try:
            key = AssetKey(version.genome_digest, target.asset, None, target.tag)
            return self._catalog.snapshot.version(key), target.name
        except NotInCatalog:
            return None

    def _known_archive(self, version: AssetVersion) -> Archive | None:
        ref = self._catalog.archive(version)
        return None if ref is None else self._archives.known(ref)

    async def _open_archive(self, version: AssetVersion) -> Archive:
        """Open a version's archive; raise OriginMissing where it has none, so that its host must have its files."""
        ref = self._catalog.archive(version)
        if ref is None:
            raise OriginMissing(f"{version.key}: source {version.source} has no archive of it")
        archive = self._archives.known(ref)
        if archive is not None and (archive.ref == ref or archive.streams):
            return archive
        listing = await self._listing(version)
        genome = self._catalog.snapshot.genomes.get(version.genome_digest)
        aliases = genome.aliases if genome is not None else (version.alias,)
        return await self._archives.open(ref, Naming(listing, version.genome_digest, aliases))

    # -- bytes --------------------------------------------------------------------------------------------

    async def open(self, facts: FileFacts, version: AssetVersion, name: str) -> OpenFile:
        """Open a content for reading, by one of its names.

        Raises StaleContent when its object is known to have been replaced: the name means another content now.
        """
        if self._catalog.outdated(facts, version, name):
            raise StaleContent(f"{name} of {version.key} was replaced at its origin; open it again")
        archive = None
        await self._reader.vouch(facts, str(version.key), name)
        if isinstance(facts.extent, ArchiveMember):
            archive = self._archives.known(facts.extent.archive)
            if archive is None:
                archive = await self._open_archive(self._catalog.version_of(facts.extent.archive))
        opened = await self._reader.open(facts, archive)
        if not isinstance(facts.extent, Sequence):  # of these only what they are cut out of is pinned
            self._pins.follow(str(version.digest_key), version.asset_digest, name, facts.content)
        return opened

    async def pull(self, version: AssetVersion, names: Iterable[str], on_step: Callable[[str], None]) -> None:
        """Make these files of a version resident; `on_step` is told each file's name as its turn comes.

        Raises the origin's errors, and CacheError when the cache has no room.
        """
        members: dict[ArchiveRef, list[str]] = {}
        for name in names:
            on_step(name)
            facts = await self.facts(version, name)
            if isinstance(facts.extent, ArchiveMember):
                members.setdefault(facts.extent.archive, []).append(facts.extent.name)
            elif not isinstance(facts.extent, InlineData):
                opened = await self.open(facts, version, name)
                if opened.content is not None:
                    await self._reader.fill(facts, opened.content)
        for ref, wanted in members.items():
            archive = self._archives.known(ref) or await self._open_archive(self._catalog.version_of(ref))
            await self._archives.pull(archive, wanted)

    async def restore_index(self, version: AssetVersion, content: ContentId, blocks: Iterable[int]) -> bool:
        """Have the seek index of a version's archive, which lost these blocks, whole again; False: it has none.

        Raises StaleContent when it is of another archive by now, and the origin's errors.
        """
        archive = await self._open_archive(version)
        if archive.index is not None and archive.index.content != content:
            raise StaleContent(f"{version.key} has another seek index by now")
        return await self._archives.restore_index(archive, blocks)

    async def recheck(self, ref: ArchiveRef) -> str | None:
        """Ask the origin which digest an archive has now; None when its version is gone or rebuilt."""
        try:
            version = self._catalog.version_of(ref)
            with deadline(self._deadline, f"the digest of {ref.key}"):
                fresh = await self._catalog.fresh_version(version)
        except RefgenfsError as exc:
            log.warning("%s: can't ask for the archive's digest: %s", ref.key, exc)
            return None
        if fresh is None or fresh.asset_digest != ref.asset_digest:
            return None
        return fresh.archive_digest


def _member_facts(ref: ArchiveRef, member: Member) -> FileFacts:
    cid = content_id(ref.source, ref.asset_digest, member.name)
    extent = ArchiveMember(ref, member.name) if member.size else InlineData(b"")
    return FileFacts(cid, member.size, member.mtime, extent, ref.source, "archive")
