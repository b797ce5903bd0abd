"""Assets of files that a catalog names one by one, made of keys and files in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from refgenfs.core.catalog import Asset, AssetVersion, Genome, ListedFile, SourceCatalog
from refgenfs.core.keys import AssetKey

DEFAULT_TAG = "default"


def listed_catalog(
    source: str, identity: str, assets: Iterable[tuple[AssetKey, Sequence[ListedFile]]]
) -> SourceCatalog:
    """Return the catalog of a source that has these assets; the first tag of an asset is its default.

    `identity` tells the source's objects from those of another place under the same name of a source. An asset's
    digest is made of that and its key alone: when a file is replaced, the others stay what they are.
    """
    found: dict[str, dict[str, dict[str, AssetVersion]]] = {}
    for key, files in assets:
        tag = key.tag or DEFAULT_TAG
        version = AssetVersion(
            source=source,
            genome_digest=key.genome,
            alias=key.genome,
            asset=key.asset,
            tag=tag,
            asset_digest=_digest(identity, key.genome, key.asset, tag),
            seek_keys=_seek_keys(key.asset, files),
            files=tuple(files),
        )
        found.setdefault(key.genome, {}).setdefault(key.asset, {})[tag] = version
    return SourceCatalog(source, tuple(_genome(name, tags) for name, tags in found.items()))


def _genome(name: str, assets: dict[str, dict[str, AssetVersion]]) -> Genome:
    made = {asset: Asset(asset, next(iter(tags)), tags) for asset, tags in assets.items()}
    return Genome(name, (name,), made)


def _seek_keys(asset: str, files: Sequence[ListedFile]) -> dict[str, str]:
    """Return refgenie's `dir`, and the asset's own name for the only file of an asset that has but one."""
    keys = {"dir": "."}
    if len(files) == 1:
        keys[asset] = files[0].name
    return keys


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
