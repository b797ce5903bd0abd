"""What the cache holds, by asset. Made on a thread: of a million contents, the trio thread hears nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refgenfs.administration.parts import Sight, short_key, version_of
from refgenfs.administration.shown import told_size
from refgenfs.cache.store import Store
from refgenfs.core.catalog import CatalogSnapshot
from refgenfs.core.errors import CacheError
from refgenfs.reader.indexes import INDEX_LABEL

MOST_ASSETS = 20_000  # that are told of, those that hold most
NAMES = ("key", "source", "resident", "pinned", "size", "files", "last_used")


@dataclass(slots=True)
class Holding:
    """What is resident of one asset, in bytes; `size` is that of the files of which something is."""

    key: str
    source: str | None  # None: it is in no catalog any more
    resident: int = 0
    pinned: int = 0
    size: int = 0
    files: int = 0
    last_used: float = 0.0  # Unix seconds

    def row(self) -> list[Any]:
        """Return it as JSON has it."""
        return [getattr(self, name) for name in NAMES]


def holdings(store: Store, snapshot: CatalogSnapshot, sight: Sight) -> dict[str, Any]:
    """Return the assets of which something is resident, those that hold most first. Blocks.

    Where anything is hidden, so is what is in no catalog any more: it may have been of any source.
    """
    found: dict[str, Holding] = {}
    by_source: dict[str, int] = {}
    try:
        for row, note in store.ledger.items("note/"):
            entry = store.peek(row.removeprefix("note/"))
            if entry is None or not entry.resident or not isinstance(note, dict):
                continue
            key = _key(note)
            holding = found.get(key)
            if holding is None:
                version = version_of(snapshot, key)
                shown, source = (short_key(snapshot, version), version.source) if version is not None else (key, None)
                holding = found[key] = Holding(shown, source)
            holding.resident += entry.resident
            holding.pinned += entry.resident if entry.pinned else 0
            holding.size += entry.size
            holding.files += 1
            holding.last_used = max(holding.last_used, round(entry.last_used, 1))
            if holding.source is not None:
                by_source[holding.source] = by_source.get(holding.source, 0) + entry.resident
    except CacheError as exc:
        return {"names": NAMES, "rows": [], "more": 0, "by_source": {}, "error": str(exc)}
    told = [one for one in found.values() if _is_shown(one, sight)]
    by_source = {name: size for name, size in by_source.items() if sight.shows(name)}
    told.sort(key=lambda one: one.resident, reverse=True)
    rows = [one.row() for one in told[:MOST_ASSETS]]
    more = max(0, len(told) - MOST_ASSETS)
    return {"names": NAMES, "rows": rows, "more": more, "by_source": by_source, "error": None}


def _is_shown(holding: Holding, sight: Sight) -> bool:
    return not sight.hidden or (holding.source is not None and sight.shows(holding.source))


def _key(note: dict[str, Any]) -> str:
    """Return the key that a label has; a seek index belongs to its archive's."""
    name = str(note.get("name"))
    return name.removeprefix(INDEX_LABEL) if name.startswith(INDEX_LABEL) else str(note.get("key"))


def shelf_list(snapshot: CatalogSnapshot, sight: Sight) -> dict[str, Any]:
    """Return every asset of the catalog that may be seen, as the page lists them. Blocks."""
    genomes: dict[str, int] = {}
    names: list[dict[str, Any]] = []
    sources: dict[str, int] = {}
    rows: list[list[Any]] = []
    for version in snapshot.versions():
        if not sight.shows(version.source):
            continue
        genome = snapshot.genomes.get(version.alias) or snapshot.genomes[version.genome_digest]
        at = genomes.get(genome.digest)
        if at is None:
            at = genomes[genome.digest] = len(names)
            names.append(
                {"names": list(genome.names), "digest": genome.digest, "description": genome.description[:200]}
            )
        asset = genome.assets.get(version.asset)
        default = asset is not None and asset.default_tag == version.tag
        about = asset.description[:200] if asset is not None else ""
        source = sources.setdefault(version.source, len(sources))
        rows.append([at, version.asset, version.tag, int(default), source, told_size(version), about])
    return {
        "genomes": names,
        "sources": list(sources),
        "columns": ["genome", "asset", "tag", "default", "source", "size", "description"],
        "rows": rows,
    }
