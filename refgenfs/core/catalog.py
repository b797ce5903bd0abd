"""What exists: immutable values that sources make and the tree reads.

A `SourceCatalog` is what one source says; `merge` makes of several the `CatalogSnapshot` that everything
else reads. A snapshot is replaced whole, never changed, so a reader of one never sees half a refresh.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from refgenfs.core.errors import NotInCatalog
from refgenfs.core.keys import AssetKey


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file that a catalog itself names. `name` is relative to the version's folder.

    `place` is where the source finds it (a URL, or what it joins to its own). `size` (bytes), `validator` (see
    `content.ByteRange`) and `mtime` (Unix seconds) are what a listing said of it; None, "" and 0.0: it said nothing.
    """

    name: str
    place: str
    size: int | None = None
    validator: str = ""
    mtime: float = 0.0


@dataclass(frozen=True, slots=True)
class AssetVersion:
    """One tag of one asset, as one source has it.

    `genome_digest` is the name that file names carry at the origin (and the genome's name where a source
    knows no digest); `alias` is the first human name of the genome. `asset_digest` identifies the bytes of
    the unpacked files and never changes with them unchanged; `archive_digest` is the MD5 (hex) of the
    packed archive. Sizes are the origin's rounded text, for people only. `files` are its files where the catalog
    names them; None: the source is asked for a listing, and the version has an archive.
    """

    source: str
    genome_digest: str
    alias: str
    asset: str
    tag: str
    asset_digest: str
    archive_digest: str = ""
    archive_size: str = ""
    asset_size: str = ""
    seek_keys: Mapping[str, str] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    files: tuple[ListedFile, ...] | None = None

    @property
    def key(self) -> AssetKey:
        """The key that names this version, under the genome's first alias."""
        return AssetKey(self.alias, self.asset, None, self.tag)

    @property
    def digest_key(self) -> AssetKey:
        """The key that names this version whatever the genome is called."""
        return AssetKey(self.genome_digest, self.asset, None, self.tag)

    def __hash__(self) -> int:
        return hash((self.source, self.genome_digest, self.asset, self.tag, self.asset_digest))


@dataclass(frozen=True, slots=True)
class Asset:
    """An asset of a genome: its tags, of which one is the default."""

    name: str
    default_tag: str
    tags: Mapping[str, AssetVersion]
    description: str = ""

    def version(self, tag: str | None) -> AssetVersion:
        """Return the version with this tag, the default one for None; raise NotInCatalog."""
        wanted = self.default_tag if tag is None else tag
        try:
            return self.tags[wanted]
        except KeyError:
            have = ", ".join(sorted(self.tags)) or "none"
            raise NotInCatalog(f"asset {self.name} has no tag {wanted!r}; it has: {have}") from None


@dataclass(frozen=True, slots=True)
class Genome:
    """A genome under all its names; `digest` is the name that its files carry at the origin."""

    digest: str
    aliases: tuple[str, ...]
    assets: Mapping[str, Asset]
    description: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, the aliases first."""
        return (*self.aliases, self.digest) if self.digest not in self.aliases else self.aliases


@dataclass(frozen=True, slots=True)
class SourceCatalog:
    """All that one source has."""

    source: str
    genomes: tuple[Genome, ...]


@dataclass(frozen=True)
class CatalogSnapshot:
    """Everything that the tree shows: genome by every name. Immutable."""

    genomes: Mapping[str, Genome] = field(default_factory=lambda: MappingProxyType({}))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all genomes, aliases and digests, sorted."""
        return tuple(sorted(self.genomes))

    def genome(self, name: str) -> Genome:
        """Return the genome with this alias or digest; raise NotInCatalog."""
        try:
            return self.genomes[name]
        except KeyError:
            raise NotInCatalog(f"no source has a genome {name!r}; `refgenfs list` shows all") from None

    def asset(self, genome: str, asset: str) -> Asset:
        """Return an asset of the genome with this name; raise NotInCatalog."""
        found = self.genome(genome)
        try:
            return found.assets[asset]
        except KeyError:
            have = ", ".join(sorted(found.assets)) or "none"
            raise NotInCatalog(f"genome {genome} has no asset {asset!r}; it has: {have}") from None

    def version(self, key: AssetKey) -> AssetVersion:
        """Return the version that a key names (its seek key is not looked at); raise NotInCatalog."""
        return self.asset(key.genome, key.asset).version(key.tag)

    def versions(self) -> Iterator[AssetVersion]:
        """Return every version once, in the order of genome, asset and tag."""
        late: set[AssetVersion] = set()  # those that another source's version stands for at their own genome
        for name in self.names:
            for asset in self.genomes[name].assets.values():
                for version in asset.tags.values():
                    if name == version.genome_digest:
                        yield version
                    elif not self._has_at_home(version) and version not in late:
                        late.add(version)
                        yield version

    def _has_at_home(self, version: AssetVersion) -> bool:
        home = self.genomes.get(version.genome_digest)
        asset = home.assets.get(version.asset) if home is not None else None
        return asset is not None and asset.tags.get(version.tag) is version

    @cached_property
    def count(self) -> int:
        """How many versions there are."""
        return sum(1 for _ in self.versions())


def merge(catalogs: Iterable[SourceCatalog]) -> CatalogSnapshot:
    """Merge catalogs in order: for each `genome/asset:tag`, the first source that has it wins.

    Genomes meet by name: two sources that call a genome alike, by alias or digest, share its directory.
    """
    genomes: dict[str, Genome] = {}
    for catalog in catalogs:
        for genome in catalog.genomes:
            for name in genome.names:
                known = genomes.get(name)
                genomes[name] = genome if known is None else _join(known, genome)
    return CatalogSnapshot(MappingProxyType(genomes))


def _join(first: Genome, second: Genome) -> Genome:
    assets = dict(first.assets)
    for name, asset in second.assets.items():
        known = assets.get(name)
        assets[name] = (
            asset
            if known is None
            else Asset(known.name, known.default_tag, {**asset.tags, **known.tags}, known.description)
        )
    aliases = tuple(dict.fromkeys((*first.aliases, *second.aliases)))
    return Genome(first.digest, aliases, assets, first.description or second.description)


def iter_versions(catalog: SourceCatalog) -> Iterator[AssetVersion]:
    """Return every version of a catalog."""
    for genome in catalog.genomes:
        for asset in genome.assets.values():
            yield from asset.tags.values()


def keep_known(known: SourceCatalog, fresh: SourceCatalog) -> SourceCatalog:
    """Return `fresh` with the very genomes of `known` in it that are the same in both; `known` if all are.

    Equal values then cost their memory once, and no time when snapshots are compared.
    """
    have = {genome.digest: genome for genome in known.genomes}
    genomes = []
    for genome in fresh.genomes:
        old = have.get(genome.digest)
        genomes.append(genome if old is None or old != genome else old)
    if fresh.source == known.source and tuple(genomes) == known.genomes:
        return known
    return SourceCatalog(fresh.source, tuple(genomes))
