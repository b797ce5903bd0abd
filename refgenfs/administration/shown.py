"""Assets and their files as they are shown, by the command line and by the status page alike."""

from __future__ import annotations

from typing import Any

from refgenfs.administration.parts import Daemon, percent
from refgenfs.core.catalog import AssetVersion
from refgenfs.core.indices import shown_index
from refgenfs.core.units import human_bytes
from refgenfs.sources.listed import find_file


def told_size(version: AssetVersion) -> str:
    """Return how large an asset is as its origin says, for people; "" where it says nothing."""
    sizes = [file.size for file in version.files or ()]
    known = [size for size in sizes if size is not None]
    return version.asset_size or (human_bytes(sum(known)) if sizes and len(known) == len(sizes) else "")


def folder_of(daemon: Daemon, genome: str, version: AssetVersion, *, default: bool) -> str:
    """Return the path of a version's folder below one of its genome's names; the `default` tag needs no tag."""
    name = version.asset if default else f"{version.asset}:{version.tag}"
    return f"{daemon.mountpoint}/{genome}/{name}"


def file_row(daemon: Daemon, version: AssetVersion, name: str, genome: str) -> dict[str, Any]:
    """Return what is known of a file, without asking anybody; its size may be what a listing said of it.

    `resident` is in percent, None while the size is not known; `origin` by which route it comes.
    """
    facts = daemon.library.known_facts(version, name)
    size = facts.size if facts else _listed_size(version, name)
    content = facts.content if facts else daemon.library.provisional_id(version, name)
    held = daemon.store.resident_bytes(content)
    return {
        "name": shown_index(name).replace(version.genome_digest, genome),
        "size": size,
        "resident": percent(held, size) if size is not None else None,
        "resident_bytes": held,
        "pinned": daemon.store.is_pinned(content),
        "pinned_by": daemon.store.pins.holders(content),
        "origin": facts.origin if facts else None,
    }


def _listed_size(version: AssetVersion, name: str) -> int | None:
    """Return what a listing said of a file's size, in bytes; None: nothing."""
    file = find_file(version, name)
    return file.size if file is not None else None
