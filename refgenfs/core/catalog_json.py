"""A catalog, listings and facts of files, as JSON values: how they outlive the daemon.

Fields that are not known are passed over, so an older daemon reads what a newer one wrote as long as
`VERSION` is the same. What can't be understood is as good as not kept: it is asked for anew.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, Union

from refgenfs.core.catalog import Asset, AssetVersion, Genome, ListedFile, SourceCatalog
from refgenfs.core.content import ByteRange, Extent, FileFacts, InlineData, LocalFile
from refgenfs.core.errors import HtsgetError, IntegrityError
from refgenfs.core.ticketblocks import TicketBlocks, dump_blocks, load_blocks

JSONValue: TypeAlias = Union[bool, int, float, str, "list[JSONValue]", "dict[str, JSONValue]", None]

VERSION = 2  # raised when an older reader would misunderstand
_CHUNK = 256 * 1024  # characters of JSON that are there at a time, about: a large catalog is much more than that


def dump_catalog(catalog: SourceCatalog) -> JSONValue:
    """Return a catalog as a JSON value: its genomes are packed, some at a time, to base64 text of deflated JSON."""
    chunks: list[JSONValue] = []
    texts: list[str] = []
    size = 0
    for genome in catalog.genomes:
        texts.append(json.dumps(_dump_genome(genome), separators=(",", ":")))
        size += len(texts[-1])
        if size >= _CHUNK:
            chunks.append(_pack(texts))
            texts, size = [], 0
    if texts:
        chunks.append(_pack(texts))
    return {"version": VERSION, "source": catalog.source, "packed": chunks}


def load_catalog(value: object) -> SourceCatalog:
    """Return the catalog that `dump_catalog` made, of version 1 too; raise IntegrityError for anything else."""
    try:
        fields: Any = value
        if fields["version"] not in (1, VERSION):
            raise IntegrityError(f"a kept catalog has version {fields['version']!r}, not {VERSION}")
        source = _text(fields["source"])
        found = fields["genomes"] if fields["version"] == 1 else _unpack(fields["packed"])
        shared: dict[Any, Any] = {}
        return SourceCatalog(source, tuple(_load_genome(source, genome, shared) for genome in found))
    except (KeyError, TypeError, AttributeError, ValueError, zlib.error) as exc:
        raise IntegrityError(f"a kept catalog can't be read: {type(exc).__name__} {exc}") from exc


def _pack(texts: list[str]) -> str:
    return base64.b64encode(zlib.compress(f"[{','.join(texts)}]".encode(), 1)).decode()


def _unpack(chunks: Any) -> Iterator[Any]:
    for chunk in chunks:
        yield from json.loads(zlib.decompress(base64.b64decode(chunk, validate=True)))


def _dump_genome(genome: Genome) -> JSONValue:
    return {
        "digest": genome.digest,
        "aliases": list(genome.aliases),
        "description": genome.description,
        "assets": [
            {
                "name": asset.name,
                "default_tag": asset.default_tag,
                "description": asset.description,
                "tags": [_dump_version(version) for version in asset.tags.values()],
            }
            for asset in genome.assets.values()
        ],
    }


def _dump_version(version: AssetVersion) -> JSONValue:
    fields: dict[str, JSONValue] = {
        "tag": version.tag,
        "asset_digest": version.asset_digest,
        "archive_digest": version.archive_digest,
        "archive_size": version.archive_size,
        "asset_size": version.asset_size,
        "seek_keys": dict(version.seek_keys),
        "parents": list(version.parents),
    }
    if version.files is not None:
        fields["files"] = [[f.name, f.place, f.size, f.validator, f.mtime] for f in version.files]
    return fields


def _load_genome(source: str, fields: Any, shared: dict[Any, Any]) -> Genome:
    def share(value: Any) -> str:
        text: str = shared.setdefault(_text(value), value)
        return text

    def share_keys(items: Any) -> Mapping[str, str]:
        found = {share(key): share(path) for key, path in items.items()}
        keys: Mapping[str, str] = shared.setdefault(tuple(found.items()), found)
        return keys

    digest = share(fields["digest"])
    aliases = tuple(share(alias) for alias in fields.get("aliases", ()))
    alias = aliases[0] if aliases else digest
    assets = {}
    for item in fields["assets"]:
        name = share(item["name"])
        tags = {}
        for entry in item["tags"]:
            tags[share(entry["tag"])] = AssetVersion(
                source=shared.setdefault(source, source),
                genome_digest=digest,
                alias=alias,
                asset=name,
                tag=share(entry["tag"]),
                asset_digest=share(entry["asset_digest"]),
                archive_digest=share(entry.get("archive_digest", "")),
                archive_size=share(entry.get("archive_size", "")),
                asset_size=share(entry.get("asset_size", "")),
                seek_keys=share_keys(entry.get("seek_keys", {})),
                parents=tuple(share(parent) for parent in entry.get("parents", ())),
                files=_load_files(entry.get("files")),
            )
        assets[name] = Asset(name, share(item["default_tag"]), tags, share(item.get("description", "")))
    return Genome(digest, aliases, assets, share(fields.get("description", "")))


def _load_files(rows: Any) -> tuple[ListedFile, ...] | None:
    if rows is None:
        return None
    return tuple(
        ListedFile(_text(name), _text(place), None if size is None else int(size), _text(validator), float(mtime))
        for name, place, size, validator, mtime in rows
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where text should be")
    return value


@dataclass(frozen=True, slots=True)
class KeptListing:
    """The names of a version's files, or None for a version that the origin has no listing of.

    `at` (Unix seconds) is when the origin said so: names hold for good, None only for a while.
    """

    names: tuple[str, ...] | None
    at: float


def dump_listing(listing: KeptListing) -> JSONValue:
    """Return a listing as a JSON value."""
    return {"names": None if listing.names is None else list(listing.names), "at": listing.at}


def load_listing(value: object) -> KeptListing | None:
    """Return the listing that `dump_listing` made, None for anything else."""
    try:
        fields: Any = value
        names = fields["names"]
        return KeptListing(None if names is None else tuple(map(_text, names)), float(fields["at"]))
    except (KeyError, TypeError, ValueError):
        return None


@dataclass(slots=True)
class FactsRow:
    """What is known of the files of one version at the host of its unpacked copies.

    `folder` is the URL they were asked at. `absent` are files that it has no copy of, with the time (Unix
    seconds) it said so. `replaced` are files that once were found changed in place: their identities carry
    the validator from then on, even after everything else in the row is forgotten.
    """

    folder: str
    facts: dict[str, FileFacts] = field(default_factory=dict)
    absent: dict[str, float] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)
    asked: dict[str, float] = field(default_factory=dict)  # when, in Unix seconds; not kept

    def move(self, folder: str) -> None:
        """Forget what another folder's host said."""
        if folder != self.folder:
            self.folder = folder
            self.facts.clear()
            self.absent.clear()


def dump_facts(row: FactsRow) -> JSONValue:
    """Return a row of facts as a JSON value."""
    files: dict[str, JSONValue] = {}
    for name, facts in row.facts.items():
        if isinstance(facts.extent, LocalFile):
            continue  # asked anew at no cost
        ranges = facts.extent if isinstance(facts.extent, ByteRange) else ByteRange((), "")
        urls: list[JSONValue] = list(ranges.urls)
        told: list[JSONValue] = [facts.content, facts.size, facts.mtime, ranges.validator, urls, ranges.whole]
        if isinstance(facts.extent, TicketBlocks):
            told.append(dump_blocks(facts.extent))
        files[name] = told
    absent: dict[str, JSONValue] = dict(row.absent)
    replaced: list[JSONValue] = [*sorted(row.replaced)]
    return {"folder": row.folder, "files": files, "absent": absent, "replaced": replaced}


def load_facts(value: object, source: str) -> FactsRow | None:
    """Return the row that `dump_facts` made, None for anything else."""
    try:
        fields: Any = value
        row = FactsRow(_text(fields["folder"]))
        for name, (content, size, mtime, validator, urls, *more) in fields["files"].items():
            ranges = ByteRange(tuple(map(_text, urls)), _text(validator), whole=more == [True])
            extent: Extent = ranges if size else InlineData(b"")
            origin = "range" if size else "inline"
            if more and isinstance(more[-1], dict):
                extent, origin = load_blocks(more[-1]), "htsget"
            row.facts[name] = FileFacts(_text(content), int(size), float(mtime), extent, source, origin)
        row.absent.update((name, float(at)) for name, at in fields["absent"].items())
        row.replaced.update(map(_text, fields["replaced"]))
    except (KeyError, TypeError, ValueError, AttributeError, HtsgetError):
        return None
    return row
