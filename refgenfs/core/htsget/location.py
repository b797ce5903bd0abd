"""Which files of an asset belong together for a search, and the URL that a ticket's reader can fetch one from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from urllib.parse import quote, urlsplit

from refgenfs.core.content import ArchiveMember, ByteRange, Extent, InlineData
from refgenfs.core.errors import InvalidInput, NoPublicUrl, redact_url

_ENDINGS = (".bam", ".cram", ".vcf.gz", ".vcf.bgz", ".bcf")
# As htslib looks for them: of two, the first. An ending in brackets stands in the place of the file's own.
_INDICES = {".bam": (".csi", ".bai", "(.bai)"), ".cram": (".crai", "(.crai)"), ".bcf": (".csi",)}
_TABIX = (".csi", ".tbi")


def searchable(names: Collection[str]) -> list[str]:
    """Return those of an asset's files that a search can be made of, by their names."""
    return sorted(name for name in names if name.endswith(_ENDINGS))


def choose_file(names: Sequence[str], wanted: str | None, what: str) -> str:
    """Return the one file that is meant: `wanted` (a name, or its last part) or the only one that can be searched.

    Raises InvalidInput that lists them where there are several, or none. `what` is the asset, for people.
    """
    found = searchable(names)
    if wanted is not None:
        exact = [name for name in names if name == wanted] or [n for n in names if n.rpartition("/")[2] == wanted]
        if len(exact) == 1:
            return exact[0]
        raise InvalidInput(f"{what} has no file {wanted!r}; there are: {', '.join(found or sorted(names)[:20])}")
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidInput(f"{what} has several files: say which with --file: {', '.join(found)}")
    raise InvalidInput(f"{what} has no BAM, CRAM, VCF or BCF ({', '.join(_ENDINGS)})")


def index_of(name: str, names: Collection[str]) -> str | None:
    """Return the name of a file's index among its asset's names, None where there is none."""
    for ending in _ENDINGS:
        if name.endswith(ending):
            for index in _INDICES.get(ending, _TABIX):
                stem = name.removesuffix(ending) if index.startswith("(") else name
                if stem + index.strip("()") in names:
                    return stem + index.strip("()")
    return next((name + index for index in (".csi", ".bai", ".crai", ".tbi") if name + index in names), None)


def gzi_of(name: str, names: Collection[str]) -> str | None:
    """Return the name of a file's GZI among its asset's names, None where there is none."""
    return f"{name}.gzi" if f"{name}.gzi" in names else None


def public_url(extent: Extent, name: str) -> str:
    """Return the URL that anybody can read a file from by byte ranges; raise NoPublicUrl, which says why not.

    A URL with a user, a password or a query is not told to others: it may be a key.
    """
    match extent:
        case ByteRange(urls=(url, *_)):
            return _checked(url, name)
        case ArchiveMember():
            why = "it comes out of an archive, and a path of the mount is no URL"
        case InlineData():
            why = "it is empty"
        case _:
            why = "its origin has none"
    raise NoPublicUrl(f"{name} has no URL of its own: {why}; say with --url where you serve it")


def _checked(url: str, name: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise NoPublicUrl(f"{name} has no http URL; say with --url where you serve it")
    if parts.username is not None or parts.password is not None or parts.query:
        raise NoPublicUrl(
            f"the URL of {name} at {redact_url(url)} has a password or a query, which may be a key, so it is not "
            "written into a ticket; say with --url where others get the file"
        )
    return url


def given_url(text: str, name: str) -> str:
    """Return the URL of a file by what the user gave: its own, or that of a folder (it ends in '/') that has it.

    Raises InvalidInput for what is no such URL.
    """
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise InvalidInput("--url is no URL") from exc
    if parts.scheme not in {"http", "https"} or not host or not text.isprintable() or " " in text:
        raise InvalidInput("--url has to be a URL with http:// or https:// and a host")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise InvalidInput("--url must not have a user, a password or a fragment: a ticket is no place for secrets")
    if not parts.path.endswith("/"):
        return text
    if parts.query:
        raise InvalidInput("--url ends in '/', so the file's name is added, and must not have a query")
    return text + quote(name.rpartition("/")[2], errors="surrogateescape")
