"""Sources whose files the catalog names one by one; assets made of keys and files in any order."""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from refgenfs.core.catalog import Asset, AssetVersion, Genome, ListedFile, SourceCatalog
from refgenfs.core.catalog_json import JSONValue
from refgenfs.core.content import ArchiveRef
from refgenfs.core.errors import redact_url
from refgenfs.core.indices import can_have_index
from refgenfs.core.keys import DEFAULT_TAG, AssetKey, is_seek_key
from refgenfs.core.patterns import Arranged, Arrangement
from refgenfs.core.shapes import show
from refgenfs.sources.asking import Asker

log = logging.getLogger(__name__)


class ListedFiles:
    """What the sources have in common whose files are in the catalog one by one (see `Source` for the contracts)."""

    async def listing(self, version: AssetVersion) -> tuple[str, ...] | None:
        """Return the names of a version's files."""
        return tuple(file.name for file in version.files or ())

    def archive(self, version: AssetVersion) -> ArchiveRef | None:
        """Return None: there are no archives."""
        return None

    async def fresh_version(self, version: AssetVersion) -> AssetVersion | None:
        """Return the version as it is: its digest says where it is, and nothing of its bytes."""
        return version

    def state(self) -> JSONValue:
        """Return nothing: all is in the catalog, or in the configuration."""
        return None

    def restore(self, state: object) -> None:
        """Take nothing."""


class AskedFiles(ListedFiles):
    """What those have in common that are asked over HTTP.

    `hold` and `timeout` are in seconds: see `Source.hold`, and `RefgenieSource`; `wall` gives Unix seconds.
    """

    def __init__(
        self, http: Asker, name: str, url: str, hold: float, timeout: float, wall: Callable[[], float]
    ) -> None:
        self.name = name
        self.url = url
        self.hold = hold
        self._http = http
        self._deadline = 2 * timeout
        self._wall = wall

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {redact_url(self.url)!r})"


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
            files=tuple(sorted(files, key=lambda file: file.name)),
        )
        found.setdefault(key.genome, {}).setdefault(key.asset, {})[tag] = version
    return SourceCatalog(source, tuple(_genome(name, tags) for name, tags in found.items()))


def arrange_catalog(
    source: str,
    identity: str,
    arrangement: Arrangement | None,
    assets: Iterable[tuple[str, Sequence[str]]],
    size_of: Callable[[str], int | None] = lambda _: None,
) -> tuple[SourceCatalog, Arranged]:
    """Return the catalog of what a layout arranged and of `assets`, which are keys and paths and win over it.

    Also what was arranged, for who says what was left out. `size_of` says how many bytes a path has, if it is known.
    """
    arranged = Arranged((), 0, ()) if arrangement is None else arrangement.arranged()
    named = [
        (AssetKey.parse(key), [ListedFile(path.rpartition("/")[2], path, size_of(path)) for path in paths])
        for key, paths in assets
    ]
    return listed_catalog(source, identity, (*arranged.assets, *named)), arranged


class LeftOut:
    """Says what has no place in a layout, once as long as it is the same."""

    def __init__(self) -> None:
        self._said = ""

    def say(self, source: str, arranged: Arranged) -> None:
        """Log a line on the files of a source that have no place, a warning where none has."""
        text = _describe_left_out(arranged)
        if text and text != self._said:
            level = logging.INFO if arranged.assets else logging.WARNING
            log.log(level, "source %s: not all is shown: %s", source, text)
        self._said = text


def _describe_left_out(arranged: Arranged) -> str:
    """Return a line on the files that have no place, '' for none."""
    if not arranged.left_out:
        return ""
    examples = ", ".join(map(show, arranged.examples))
    what = "1 file has" if arranged.left_out == 1 else f"{arranged.left_out:,} files have"
    return (
        f"{what} no place in the layout, and {'none has' if not arranged.assets else 'the others have'}: {examples}"
    )


def find_file(version: AssetVersion, name: str) -> ListedFile | None:
    """Return the file of a version with this name; None: it has none."""
    files = version.files or ()
    at = bisect_left(files, name, key=lambda file: file.name)
    return files[at] if at < len(files) and files[at].name == name else None


def _genome(name: str, assets: dict[str, dict[str, AssetVersion]]) -> Genome:
    made = {asset: Asset(asset, next(iter(tags)), tags) for asset, tags in assets.items()}
    return Genome(name, (name,), made)


def _seek_keys(asset: str, files: Sequence[ListedFile]) -> dict[str, str]:
    """Return what refgenie would call the files: `dir`, the asset's own name for the main one, endings for others.

    The main file is the only one, or the one whose name most others go on from (`g.fa` of `g.fa.fai`); an index whose
    files have only their beginning in common goes by that, which is what its tools take. Of several files of data,
    such as `x.bam` and `x.cram`, none is the main one.
    """
    keys = {"dir": "."}
    names = [file.name for file in files]
    main = _main_of(names)
    if main:
        keys[asset] = main
    for name in names:
        ending = name[len(main) + 1 :] if main and name.startswith(f"{main}.") else _last_ending(name)
        key = ending.replace(".", "_")
        if name != main and is_seek_key(key):
            keys.setdefault(key, name)
    return keys


def _main_of(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    followers = dict.fromkeys(names, 0)
    for name in names:
        parts = name.split(".")
        for count in range(1, len(parts)):
            beginning = ".".join(parts[:count])
            if beginning in followers:
                followers[beginning] += 1
    best = max(names, key=lambda name: followers[name], default="")
    if best and followers[best]:
        return best
    if sum(map(can_have_index, names)) > 1:
        return ""
    low, high = min(names, default=""), max(names, default="")  # what these have in common all have
    same = next((at for at, pair in enumerate(zip(low, high, strict=False)) if len(set(pair)) > 1), len(low))
    return low[:same].rpartition(".")[0]


def _last_ending(name: str) -> str:
    base, dot, ending = name.rpartition("/")[2].rpartition(".")
    if dot and ending in ("gz", "bgz"):
        base, dot, ending = base.rpartition(".")
    return ending if dot and base else ""


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
