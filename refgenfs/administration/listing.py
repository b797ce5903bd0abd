"""What there is: genomes, assets, one asset's files, paths and digests."""

from __future__ import annotations

from collections import Counter
from typing import Any

from refgenfs.administration.parts import (
    ALL,
    Daemon,
    Sight,
    content_labels,
    let_others_in,
    names_of,
    no_seek_key,
    parse_key,
    percent,
)
from refgenfs.administration.shown import file_row, folder_of, told_size
from refgenfs.control import Operation, Progress
from refgenfs.core.catalog import AssetVersion, Genome
from refgenfs.core.errors import NotAllowed
from refgenfs.core.keys import AssetKey


class Listing:
    """The operations `list`, `info`, `seek` and `id`, for who has this sight."""

    def __init__(self, daemon: Daemon, sight: Sight = ALL) -> None:
        self._daemon = daemon
        self._sight = sight

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {"list": self.assets, "info": self.info, "seek": self.seek, "id": self.digest}

    async def assets(self, arguments: dict[str, Any], __: Progress) -> dict[str, Any]:
        """Return the genomes, or a genome's assets."""
        snapshot = self._daemon.catalog.snapshot
        name, wanted = arguments.get("genome"), arguments.get("asset")
        if name is None:
            genomes = {id(genome): genome for genome in snapshot.genomes.values()}
            genomes_of_sight = []
            for number, genome in enumerate(genomes.values()):
                await let_others_in(number)
                if (shown := self._count(genome)) or not self._sight.hidden:
                    row = {
                        "name": genome.names[0],
                        "names": list(genome.names),
                        "digest": genome.digest,
                        "description": genome.description,
                        "assets": shown,
                    }
                    genomes_of_sight.append(row)
            return {"genomes": sorted(genomes_of_sight, key=lambda row: str(row["name"]))}
        genome = snapshot.genome(str(name))
        if wanted is not None:
            snapshot.asset(str(name), str(wanted))
        if not self._count(genome) and self._sight.hidden:
            raise NotAllowed(f"all of {name} is of sources that you may not read")
        held: Counter[AssetVersion] = Counter()
        for number, (content, (version, _)) in enumerate((await content_labels(self._daemon)).items()):
            await let_others_in(number)
            if version is not None:
                held[version] += self._daemon.store.resident_bytes(content)
        rows = []
        for number, asset in enumerate(sorted(genome.assets)):
            await let_others_in(number)
            if wanted in (None, asset):
                found = genome.assets[asset]
                for tag in sorted(tag for tag, one in found.tags.items() if self._sight.shows(one.source)):
                    row = self._asset_row(str(name), found.tags[tag], found.description)
                    rows.append({**row, "default": tag == found.default_tag, "resident": held[found.tags[tag]]})
        return {"assets": rows}

    def _count(self, genome: Genome) -> int:
        """Return how many assets (tags) of a genome may be seen."""
        tags = (version for asset in genome.assets.values() for version in asset.tags.values())
        return sum(self._sight.shows(version.source) for version in tags)

    def _asset_row(self, genome: str, version: AssetVersion, description: str) -> dict[str, Any]:
        return {
            "key": str(AssetKey(genome, version.asset, None, version.tag)),
            "asset": version.asset,
            "tag": version.tag,
            "description": description,
            "asset_size": told_size(version),
            "archive_size": version.archive_size,
            "source": version.source,
            "seek_keys": sorted(version.seek_keys),
        }

    async def info(self, arguments: dict[str, Any], _: Progress) -> dict[str, Any]:
        """Return all that is known of one asset; asks the origin for its listing at most."""
        key = parse_key(arguments.get("key"))
        snapshot = self._daemon.catalog.snapshot
        version = self._sight.check(snapshot.version(key))
        asset = snapshot.asset(key.genome, key.asset)
        default = version.tag == asset.default_tag
        if key.seek_key is not None and key.seek_key not in version.seek_keys:
            raise no_seek_key(version, key.seek_key)
        files = [
            file_row(self._daemon, version, name, key.genome) for name in await names_of(self._daemon, version, None)
        ]
        sizes = [row["size"] for row in files]
        size = sum(sizes) if all(one is not None for one in sizes) else None
        held = sum(row["resident_bytes"] for row in files)
        return {
            "key": str(AssetKey(key.genome, key.asset, None, version.tag)),
            "source": version.source,
            "digest": version.asset_digest,
            "genome_digest": version.genome_digest,
            "names": list(snapshot.genome(key.genome).names),
            "path": folder_of(self._daemon, key.genome, version, default=default),
            "default": default,
            "description": asset.description,
            "files": files,
            "size": size,
            "resident": percent(held, size) if size is not None else None,
            "pinned": bool(files) and all(row["pinned"] for row in files),
            "pinned_by": sorted({one for row in files for one in row["pinned_by"]}),
            "asset_size": told_size(version),
            "archive_size": version.archive_size,
            "asset_digest": version.asset_digest,
            "archive_digest": version.archive_digest,
            "parents": list(version.parents),
            "seek_keys": dict(version.seek_keys),
        }

    async def seek(self, arguments: dict[str, Any], _: Progress) -> dict[str, Any]:
        """Return the path of what a key names, below the mountpoint as refgenie prints it below its alias folder.

        That is `<alias>/<asset>/<tag>/<file>`, also for a genome's digest and for the default tag.
        """
        key = parse_key(arguments.get("key"))
        snapshot = self._daemon.catalog.snapshot
        version = self._sight.check(snapshot.version(key))
        seek_key = key.seek_key or key.asset
        target = version.seek_keys.get(seek_key)
        if target is None and key.seek_key is None:
            target = "."
        if target is None:
            raise no_seek_key(version, seek_key)
        genome = snapshot.genome(key.genome)
        name = genome.names[0] if key.genome == genome.digest else key.genome
        shown = target.replace(version.genome_digest, name)
        return {"path": f"{self._daemon.mountpoint}/{name}/{key.asset}/{version.tag}/{shown}"}

    async def digest(self, arguments: dict[str, Any], _: Progress) -> dict[str, Any]:
        """Return the asset's digest, as refgenie's id does."""
        version = self._sight.check(self._daemon.catalog.snapshot.version(parse_key(arguments.get("key"))))
        return {"digest": version.asset_digest}
