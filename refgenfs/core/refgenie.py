"""What a refgenieserver answers (API v3 and its one-call dictionary), turned into values.

Answers come from outside and are not trusted. A shape that is not the protocol's raises IntegrityError,
which names the URL's path: then the last good catalog stays. What has the right shape and a name that the
tree can't show is left out, with a warning. Both routes, the one call and the set of v3 answers, give equal
values for one server: the v3 answers are brought into the one call's form and parsed by the same code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from refgenfs.core.catalog import Asset, AssetVersion, Genome, SourceCatalog
from refgenfs.core.errors import IntegrityError
from refgenfs.core.jsontext import decode_at, iter_members
from refgenfs.core.keys import is_name
from refgenfs.core.shapes import as_list, as_object, as_text, or_else, show

PRIVATE = "/_private_api/genomes/dict"
MAX_WARNINGS = 50  # told one by one; a server that is all wrong must not fill the log
_UNITS = {unit: 1024**power for power, unit in enumerate(("B", "KB", "MB", "GB", "TB"))}
_TEXT = 500  # characters of a description that are kept
_PATH_BYTES = 1024  # of a relative file name
_COMPONENT_BYTES = 255  # NAME_MAX


@dataclass(frozen=True, slots=True)
class Parsed:
    """A catalog, and what had to be left out of it, one line each."""

    catalog: SourceCatalog
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PublicAnswers:
    """The v3 answers that make a catalog, as they came; mappings by what was asked for.

    `default_tags` and `recipes` are by (genome, asset), `attrs` by (genome, asset, tag). What the server
    answered 404 is absent.
    """

    genomes: object
    aliases: object
    assets: object
    genome_attrs: Mapping[str, object] = field(default_factory=dict)
    default_tags: Mapping[tuple[str, str], str] = field(default_factory=dict)
    recipes: Mapping[tuple[str, str], object] = field(default_factory=dict)
    attrs: Mapping[tuple[str, str, str], object] = field(default_factory=dict)


def is_asset_name(text: str) -> bool:
    """Say whether `text` can name an asset: a name with no dot, since a dot begins the seek key of a key."""
    return is_name(text) and "." not in text


def is_file_path(text: str) -> bool:
    """Say whether `text` can be a file's path in an asset's folder: relative, and never out of it."""
    try:
        parts = [part.encode() for part in text.split("/")]
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return False
    if "\0" in text or sum(map(len, parts)) + len(parts) > _PATH_BYTES:
        return False
    return all(part not in (b"", b".", b"..") and len(part) <= _COMPONENT_BYTES for part in parts)


# -- URLs --------------------------------------------------------------------------------------------------


def private_url(base: str) -> str:
    """Return the URL of the one call that answers the whole catalog."""
    return base.rstrip("/") + PRIVATE


def v3_path(*segments: str) -> str:
    """Return the path of a v3 endpoint below a server's base URL, percent-encoded."""
    return "/v3/" + "/".join(quote(segment, safe="") for segment in segments)


def v3_url(base: str, *segments: str, tag: str | None = None) -> str:
    """Return the URL of a v3 endpoint; `base` may have a path of its own."""
    query = "" if tag is None else f"?tag={quote(tag, safe='')}"
    return base.rstrip("/") + v3_path(*segments) + query


def parse_archive_size(text: str) -> int | None:
    """Return about how many bytes refgenieserver's text for a size says ("288.88 KB", of 1024); None for none."""
    number, _, unit = text.strip().partition(" ")
    try:
        return int(float(number) * _UNITS[unit.strip().upper()])
    except (KeyError, ValueError, OverflowError):
        return None


def unpacked_url(prefix: str, version: AssetVersion) -> str:
    """Return the URL, with a `/` at its end, of the folder that holds a version's unpacked files."""
    folder = f"{version.asset}__{version.tag}"
    return f"{prefix.rstrip('/')}/{quote(version.genome_digest, safe='')}/{quote(folder, safe='')}/"


# -- small answers -----------------------------------------------------------------------------------------


def parse_listing(answer: object, where: str) -> tuple[str, ...]:
    """Return the file names that `dir_contents` answers, sorted, but those that can't or needn't be shown."""
    names = set()
    for item in as_list(answer, where, "the answer"):
        name = as_text(item, where, "a file name").removeprefix("./")
        if is_file_path(name) and not name.startswith("_refgenie_build"):
            names.add(name)
    return tuple(sorted(names))


def parse_remotes(answer: object, where: str) -> str | None:
    """Return the URL prefix of the unpacked copies that can be had by HTTP, None where there are none.

    Raises IntegrityError for a prefix that is not an absolute http(s) URL of nothing but host and path.
    """
    remote = as_object(answer, where, "the answer").get("http")
    if remote is None:
        return None
    prefix = as_text(as_object(remote, where, "'http'").get("prefix"), where, "the prefix of 'http'")
    try:
        parts = urlsplit(prefix)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise IntegrityError(f"{where}: the prefix of 'http' is no URL") from None
    plain = not (parts.query or parts.fragment or parts.username or parts.password)
    clean = prefix.isascii() and prefix.isprintable() and not any(mark in prefix for mark in " \\<>\"'")
    if not (usable and plain and clean) or ".." in parts.path.split("/"):
        raise IntegrityError(f"{where}: the prefix of 'http' is not a plain absolute http(s) URL")
    return prefix.rstrip("/") + "/"


def parse_fresh(answer: object, version: AssetVersion, where: str) -> AssetVersion:
    """Return `version` as an answer of `assets/attrs` has it now."""
    builder = _Builder(version.source, where)
    return builder.version(version.genome_digest, version.alias, version.asset, version.tag, answer)


# -- the catalog -------------------------------------------------------------------------------------------


def parse_private(answer: object, source: str, where: str = PRIVATE) -> Parsed:
    """Parse the answer of the one call; raise IntegrityError."""
    builder = _Builder(source, where)
    return builder.parsed(as_object(answer, where, "the answer"))


def parse_private_text(text: str, source: str, where: str = PRIVATE, *, known: SourceCatalog | None = None) -> Parsed:
    """Do as `parse_private` with the JSON text of the answer, of which one genome at a time is decoded.

    As values, all of a large answer takes several times the memory of its text. Genomes that are the same in `known`
    are its very own. Raises ValueError for what is no JSON.
    """
    builder = _Builder(source, where, known)
    places: dict[str, int] = {}
    aliases: dict[str, object] = {}
    try:
        for digest, place, genome in iter_members(text):
            places[digest] = place
            aliases[digest] = builder.aliases_of(digest, genome)
    except TypeError:
        return parse_private(decode_at(text, 0), source, where)  # which says what it is
    return builder.catalog(aliases, lambda digest: decode_at(text, places[digest]))


def parse_public(answers: PublicAnswers, source: str) -> Parsed:
    """Parse the set of v3 answers; raise IntegrityError."""
    return _Builder(source, "/v3").parsed(_as_private(answers))


def parse_genome_list(answer: object) -> tuple[str, ...]:
    """Return the digests that `genomes/list` answers, without those that no URL should be made of."""
    where = v3_path("genomes", "list")
    names = [as_text(item, where, "a genome") for item in as_list(answer, where, "the answer")]
    return tuple(name for name in dict.fromkeys(names) if is_name(name))


def parse_tags(answer: object) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the tags of each (genome, asset) that `assets/list?includeSeekKeys=true` answers.

    An asset without tags (a server that knows no such parameter) has none here: it has its default one.
    """
    where = v3_path("assets", "list")
    found: dict[tuple[str, str], dict[str, None]] = {}
    for genome, items in as_object(answer, where, "the answer").items():
        for item in as_list(items, where, f"genome {show(genome)}"):
            body, _, tag = as_text(item, where, f"an asset of {show(genome)}").partition(":")
            asset = body.partition(".")[0]
            if is_name(genome) and is_asset_name(asset):
                tags = found.setdefault((genome, asset), {})
                if is_name(tag):
                    tags[tag] = None
    return {place: tuple(tags) for place, tags in found.items()}


def _as_private(answers: PublicAnswers) -> dict[str, object]:
    aliases = as_object(answers.aliases, v3_path("genomes", "alias_dict"), "the answer")
    assets: dict[str, dict[str, object]] = {}
    tags: dict[tuple[str, str], dict[str, object]] = {}
    for (genome, asset, tag), attrs in answers.attrs.items():
        tags.setdefault((genome, asset), {})[tag] = attrs
    for (genome, asset), versions in tags.items():
        recipe = answers.recipes.get((genome, asset))
        assets.setdefault(genome, {})[asset] = {
            "asset_description": recipe.get("description") if isinstance(recipe, dict) else None,
            "default_tag": answers.default_tags.get((genome, asset)),
            "tags": versions,
        }
    return {
        genome: {
            **as_object(answers.genome_attrs.get(genome, {}), v3_path("genomes", "attrs", genome), "the answer"),
            "aliases": aliases.get(genome),
            "assets": assets.get(genome, {}),
        }
        for genome in parse_genome_list(answers.genomes)
    }


class _Builder:
    """Makes the values of one catalog; equal texts become one object, as large catalogs repeat themselves."""

    def __init__(self, source: str, where: str, known: SourceCatalog | None = None) -> None:
        self.warnings = _Warnings(where)
        self._source = source
        self._known = {genome.digest: genome for genome in known.genomes} if known is not None else {}
        self._where = where
        self._shared: dict[str, str] = {}
        self._shared_keys: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}

    def parsed(self, genomes: Mapping[str, object]) -> Parsed:
        """Return the catalog of genomes that are all there."""
        aliases = {digest: self.aliases_of(digest, genome) for digest, genome in genomes.items()}
        return self.catalog(aliases, genomes.__getitem__)

    def catalog(self, aliases: Mapping[str, object], read: Callable[[str], object]) -> Parsed:
        """Return the catalog of the genomes that have these aliases, as they came; `read` gives one by its digest."""
        named = {}
        for digest in sorted(aliases):
            if is_name(digest):
                named[digest] = aliases[digest]
            else:
                self.warnings.add(f"genome {show(digest)} is left out: its name can't be shown")
        genomes = tuple(
            self._genome(digest, own, as_object(read(digest), self._where, f"genome {digest}"))
            for digest, own in self._aliases(named).items()
        )
        return Parsed(SourceCatalog(self._source, genomes), self.warnings.lines())

    def aliases_of(self, digest: str, genome: object) -> object:
        """Return what a genome says of its aliases."""
        return as_object(genome, self._where, f"genome {digest}").get("aliases") if is_name(digest) else None

    def _aliases(self, genomes: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
        """Return each genome's own aliases; of two genomes that claim one alias, the first has it."""
        owner = {digest: digest for digest in genomes}
        found: dict[str, tuple[str, ...]] = {}
        for digest, items in genomes.items():
            mine: dict[str, None] = {}
            for item in as_list(or_else(items, []), self._where, f"the aliases of {digest}"):
                alias = self._share(as_text(item, self._where, f"an alias of {digest}"))
                if not is_name(alias):
                    self.warnings.add(f"alias {show(alias)} of {digest} is left out: it can't be shown")
                elif owner.setdefault(alias, digest) != digest:
                    self.warnings.add(f"alias {alias} of {digest} is left out: it is {owner[alias]}'s")
                elif alias != digest:
                    mine[alias] = None
            found[digest] = tuple(mine)
        return found

    def _genome(self, digest: str, aliases: tuple[str, ...], genome: Mapping[str, object]) -> Genome:
        digest = self._share(digest)
        alias = aliases[0] if aliases else digest
        assets: dict[str, Asset] = {}
        items = as_object(or_else(genome.get("assets"), {}), self._where, f"the assets of {digest}")
        for name in sorted(items):
            if not is_asset_name(name):
                self.warnings.add(f"asset {show(name)} of {digest} is left out: its name can't be shown")
                continue
            item = as_object(items[name], self._where, f"asset {digest}/{name}")
            asset = self._asset(digest, alias, self._share(name), item)
            if asset.tags:
                assets[asset.name] = asset
        fresh = Genome(digest, aliases, assets, self._line(genome.get("genome_description")))
        known = self._known.get(digest)
        return known if known is not None and known == fresh else fresh

    def _asset(self, digest: str, alias: str, name: str, asset: Mapping[str, object]) -> Asset:
        tags: dict[str, AssetVersion] = {}
        items = as_object(or_else(asset.get("tags"), {}), self._where, f"the tags of {digest}/{name}")
        for tag in sorted(items):
            if is_name(tag):
                tags[self._share(tag)] = self.version(digest, alias, name, self._share(tag), items[tag])
            else:
                self.warnings.add(f"tag {show(tag)} of {digest}/{name} is left out: it can't be shown")
        default = self._default_tag(asset.get("default_tag"), tags)
        return Asset(name, default, tags, self._line(asset.get("asset_description")))

    def _default_tag(self, named: object, tags: Mapping[str, AssetVersion]) -> str:
        if isinstance(named, str) and named in tags:
            return self._share(named)
        return "default" if "default" in tags or not tags else min(tags)

    def version(self, digest: str, alias: str, asset: str, tag: str, answer: object) -> AssetVersion:
        """Return one version from the attributes that the server gives for it."""
        what = f"{digest}/{asset}:{tag}"
        attrs = as_object(answer, self._where, what)
        archive_size = self._line(attrs.get("archive_size"))
        archive_digest = self._digest(attrs.get("archive_digest"), what, "archive_digest")
        asset_digest = self._digest(attrs.get("asset_digest"), what, "asset_digest") or archive_digest
        if not asset_digest:
            asset_digest = _stand_in(digest, asset, tag, archive_size)
            self.warnings.add(f"{what} has no digest: a rebuilt one of the same size would not be noticed")
        return AssetVersion(
            source=self._source,
            genome_digest=digest,
            alias=alias,
            asset=asset,
            tag=tag,
            asset_digest=asset_digest,
            archive_digest=archive_digest.lower() if _is_md5(archive_digest) else "",
            archive_size=archive_size,
            asset_size=self._line(attrs.get("asset_size")),
            seek_keys=self._seek_keys(attrs.get("seek_keys"), what),
            parents=self._parents(attrs.get("asset_parents"), what),
        )

    def _digest(self, value: object, what: str, name: str) -> str:
        if value is None or value == "":
            return ""
        text = as_text(value, self._where, f"the {name} of {what}")
        if not is_name(text):
            self.warnings.add(f"the {name} of {what} is no digest")
            return ""
        return text

    def _seek_keys(self, value: object, what: str) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for key, item in as_object(or_else(value, {}), self._where, f"the seek keys of {what}").items():
            path = as_text(item, self._where, f"seek key {show(key)} of {what}")
            if is_asset_name(key) and (path == "." or is_file_path(path)):
                found[self._share(key)] = self._share(path)
            else:
                self.warnings.add(f"seek key {show(key)} of {what} is left out: it leads nowhere")
        return self._shared_keys.setdefault(tuple(found.items()), found)

    def _parents(self, value: object, what: str) -> tuple[str, ...]:
        items = as_list(or_else(value, []), self._where, f"the parents of {what}")
        return tuple(self._line(as_text(item, self._where, f"a parent of {what}")) for item in items)

    def _line(self, value: object) -> str:
        """Return text for people as one line that no terminal takes for commands; "" for anything else."""
        if not isinstance(value, str):
            return ""
        line = value[:_TEXT]
        if not line.isprintable():
            line = "".join(mark if mark.isprintable() else " " for mark in line)
        return self._share(" ".join(line.split()))

    def _share(self, text: str) -> str:
        return self._shared.setdefault(text, text)


class _Warnings:
    def __init__(self, where: str) -> None:
        self._where = where
        self._lines: list[str] = []
        self._more = 0

    def add(self, line: str) -> None:
        if len(self._lines) < MAX_WARNINGS:
            self._lines.append(f"{self._where}: {line}")
        else:
            self._more += 1

    def lines(self) -> tuple[str, ...]:
        more = (f"{self._where}: and {self._more} more like these",) if self._more else ()
        return (*self._lines, *more)


def _stand_in(digest: str, asset: str, tag: str, archive_size: str) -> str:
    """Return a stable identity for a version that the server gives no digest for.

    It can't notice that a version was rebuilt with the same archive size, the most that can be had; the
    validators of byte ranges still keep bytes of two versions apart.
    """
    text = "\0".join(("undigested", digest, asset, tag, archive_size))
    return f"undigested-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _is_md5(text: str) -> bool:
    return len(text) == 32 and all(mark in "0123456789abcdefABCDEF" for mark in text)
