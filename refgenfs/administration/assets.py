"""One asset for the status page: its files and sizes, what is resident, and the line to copy."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import trio

from refgenfs.administration.parts import Daemon, Sight, parse_key
from refgenfs.administration.shown import file_row, folder_of, told_size
from refgenfs.core.catalog import AssetVersion, CatalogSnapshot
from refgenfs.core.commands import command_lines
from refgenfs.core.errors import NotInCatalog, RefgenfsError
from refgenfs.core.keys import AssetKey
from refgenfs.core.layout import DERIVED

MOST_FILES = 2000  # that are told of
MOST_ASKED = 64  # files whose sizes an origin is asked for, this many at a time, and so long in all
ASKED_AT_A_TIME = 4
ASKING = 4.0  # seconds


async def asset_row(daemon: Daemon, text: str, sight: Sight) -> dict[str, Any]:
    """Return what is known of the asset with this key, as far as it may be seen.

    The origin is asked for its listing at most: where only the archive has the names, it is not streamed for them.
    Raises NotInCatalog and KeyFormatError.
    """
    key = parse_key(text)
    snapshot = daemon.catalog.snapshot
    version = _find(snapshot, key, sight)
    genome, asset = snapshot.genome(key.genome), snapshot.asset(key.genome, key.asset)
    default = version.tag == asset.default_tag
    folder = folder_of(daemon, key.genome, version, default=default)
    names, error = await _names(daemon, version)
    await _ask_sizes(daemon, version, names)
    files = [_file_row(daemon, version, name, key.genome) for name in names[:MOST_FILES]]
    sizes = [row["size"] for row in files]
    whole = sum(sizes) if files and all(one is not None for one in sizes) else None
    return {
        "key": str(AssetKey(key.genome, version.asset, None, None if default else version.tag)),
        "asset": version.asset,
        "genome": key.genome,
        "names": list(genome.names),
        "genome_digest": version.genome_digest,
        "genome_description": genome.description,
        "description": asset.description,
        "digest": version.asset_digest,
        "archive_digest": version.archive_digest,
        "source": version.source,
        "tag": version.tag,
        "default": default,
        "tags": sorted(tag for tag, one in asset.tags.items() if sight.shows(one.source)),
        "path": folder,
        "asset_size": told_size(version),
        "archive_size": version.archive_size,
        "size": whole,
        "resident": sum(row["resident"] for row in files),
        "pinned_by": sorted({holder for row in files for holder in row["pinned_by"]}),
        "lines": [asdict(line) for line in command_lines(folder, [row["name"] for row in files])],
        "files": files,
        "more": max(0, len(names) - MOST_FILES),
        "error": error,
    }


def _find(snapshot: CatalogSnapshot, key: AssetKey, sight: Sight) -> AssetVersion:
    """Return a version; one of a hidden source is not there, and what else there is is not told either."""
    if not sight.hidden:
        return snapshot.version(key)
    with suppress(NotInCatalog):
        version = snapshot.version(key)
        if sight.shows(version.source):
            return version
    raise NotInCatalog(f"there is no {key} that you may read")


async def _names(daemon: Daemon, version: AssetVersion) -> tuple[list[str], str]:
    """Return the origin's names of a version's files as far as they are known, and why not all of them are."""
    library = daemon.library
    try:
        names = list(await library.listing(version))
        await library.recall(version)
        names += await library.companions(version)
    except RefgenfsError as exc:
        return [], str(exc)
    if not names:
        return [], f"its server has no listing: its files are known once its archive has been read ({version.key})"
    return names, ""


async def _ask_sizes(daemon: Daemon, version: AssetVersion, names: Sequence[str]) -> None:
    """Have the sizes of the first files known, as far as that takes no archive and no long wait."""
    library = daemon.library
    wanted = [one for one in names if not one.startswith(DERIVED) and library.known_facts(version, one) is None]
    limit = trio.CapacityLimiter(ASKED_AT_A_TIME)

    async def ask(name: str) -> None:
        async with limit:
            with suppress(RefgenfsError):
                await library.ready_facts(version, name)

    with trio.move_on_after(ASKING):
        async with trio.open_nursery() as nursery:
            for name in wanted[:MOST_ASKED]:
                nursery.start_soon(ask, name)


def _file_row(daemon: Daemon, version: AssetVersion, name: str, genome: str) -> dict[str, Any]:
    row = file_row(daemon, version, name, genome)
    return {
        "name": row["name"],
        "size": row["size"],
        "resident": row["resident_bytes"],
        "percent": row["resident"],
        "pinned_by": row["pinned_by"],
        "route": row["origin"],
    }
