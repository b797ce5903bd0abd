"""A catalog and a library that are fake: what there is, is the test's to say, and nothing waits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import trio

from refgenfs.catalog import Catalog
from refgenfs.core.catalog import Asset, AssetVersion, CatalogSnapshot, Genome, SourceCatalog, merge
from refgenfs.core.content import FileFacts, InlineData, content_id
from refgenfs.core.errors import NotInCatalog
from refgenfs.core.layout import Child, Layout, build_layout
from refgenfs.library import Library, Located
from refgenfs.reader.reader import OpenFile
from refgenfs.tree import Tree

SOURCE = "lab"
DIGEST = "d1d1d1"
ALIASES = ("hg38", "GRCh38")
FILES = (f"{DIGEST}.fa", f"{DIGEST}.fa.fai", f"sub/{DIGEST}.idx", "plain.txt")


def version_of(
    asset: str, tag: str, asset_digest: str = "", genome: str = DIGEST, alias: str = "hg38"
) -> AssetVersion:
    """Return a version; what it is made of is said by its digest."""
    return AssetVersion(SOURCE, genome, alias, asset, tag, asset_digest or f"{asset}-{tag}")


def genome_of(
    assets: Mapping[str, Iterable[AssetVersion]], digest: str = DIGEST, aliases: tuple[str, ...] = ALIASES
) -> Genome:
    """Return a genome; the first version of an asset is the default one."""
    made = {}
    for name, versions in assets.items():
        listed = list(versions)
        made[name] = Asset(name, listed[0].tag, {version.tag: version for version in listed})
    return Genome(digest, aliases, made)


def snapshot_of(*genomes: Genome) -> CatalogSnapshot:
    """Return a snapshot of one source."""
    return merge([SourceCatalog(SOURCE, genomes)])


class FakeCatalog:
    """Has a snapshot."""

    def __init__(self, snapshot: CatalogSnapshot) -> None:
        self.snapshot = snapshot
        self.unanswered: tuple[str, ...] = ()
        self.holds: float | None = None

    def hold(self, version: AssetVersion) -> float | None:
        return self.holds


class Opened(NamedTuple):
    """What stands for an open file."""

    facts: FileFacts
    version: AssetVersion
    name: str

    def settle(self) -> None:
        """Do nothing: it is of no archive."""


class FakeLibrary:
    """Says of each file what it is told to."""

    def __init__(self) -> None:
        self.files: dict[AssetVersion, tuple[str, ...]] = {}  # else FILES
        self.links: dict[tuple[AssetVersion, str], tuple[AssetVersion, str] | None] = {}
        self.salts: dict[tuple[AssetVersion, str], str] = {}
        self.asked: list[str] = []
        self.delay = 0.0  # seconds until it has the facts of a file that was not asked for
        self._known: set[tuple[AssetVersion, str]] = set()
        self._layouts: dict[tuple[AssetVersion, str], Layout] = {}

    def names(self, version: AssetVersion) -> tuple[str, ...]:
        return self.files.get(version, FILES)

    async def layout(self, version: AssetVersion, shown_as: str) -> Layout:
        await trio.lowlevel.checkpoint()
        self.asked.append(f"listing {version.asset}:{version.tag}")
        place = version, shown_as
        self._layouts[place] = build_layout(self.names(version), version.genome_digest, shown_as)
        return self._layouts[place]

    async def children(self, version: AssetVersion, shown_as: str, prefix: str) -> Mapping[str, Child]:
        found = (await self.layout(version, shown_as)).find(prefix)
        if found is None:
            raise NotInCatalog(f"{version.key} has no folder {prefix} any more")
        return found

    async def child(self, version: AssetVersion, shown_as: str, prefix: str, name: str) -> Child | None:
        if self.known_layout(version, shown_as) is None:
            return (await self.children(version, shown_as, prefix)).get(name)
        found = self._layouts[version, shown_as].find(prefix)
        if found is None:
            raise NotInCatalog(f"{version.key} has no folder {prefix} any more")
        return found.get(name)

    def known_layout(self, version: AssetVersion, shown_as: str) -> Layout | None:
        return self._layouts.get((version, shown_as))

    def provisional_id(self, version: AssetVersion, name: str) -> str:
        return content_id(version.source, version.asset_digest, name)

    def known(self, version: AssetVersion, name: str, *, fresh: bool = False) -> Located | None:
        del fresh  # what this library says holds for good
        return self._locate(version, name) if (version, name) in self._known else None

    def known_facts(self, version: AssetVersion, name: str) -> FileFacts | None:
        located = self.known(version, name)
        return located.facts if located is not None else None

    async def facts(self, version: AssetVersion, name: str) -> FileFacts:
        return (await self.locate(version, name)).facts

    async def locate(self, version: AssetVersion, name: str) -> Located:
        await trio.lowlevel.checkpoint()
        self.asked.append(f"facts {version.asset}:{version.tag} {name}")
        if (version, name) not in self._known:
            await trio.sleep(self.delay)
        self._known.add((version, name))
        return self._locate(version, name)

    def _locate(self, version: AssetVersion, name: str) -> Located:
        target = self.links.get((version, name), (version, name))
        if target is None:
            raise NotInCatalog(f"{name} is a link that leads nowhere")
        return Located(self._facts(*target), *target)

    def _facts(self, version: AssetVersion, name: str) -> FileFacts:
        if name not in self.names(version):
            raise NotInCatalog(f"{version.key} has no file {name}")
        cid = content_id(version.source, version.asset_digest, name, self.salts.get((version, name), ""))
        return FileFacts(cid, len(name) * 1000, 1_600_000_000.0, InlineData(b""), version.source, "archive")

    async def open(self, facts: FileFacts, version: AssetVersion, name: str) -> OpenFile:
        await trio.lowlevel.checkpoint()
        return cast(OpenFile, Opened(facts, version, name))


BORN = 1_700_000_000.0


def make_tree(snapshot: CatalogSnapshot) -> tuple[Tree, FakeCatalog, FakeLibrary]:
    """Return a tree over fakes."""
    catalog, library = FakeCatalog(snapshot), FakeLibrary()
    return Tree(cast(Catalog, catalog), cast(Library, library), BORN), catalog, library
