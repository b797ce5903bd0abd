"""Registry paths: `genome/asset[.seek_key][:tag]`, refgenie's name for a thing that can be had."""

from __future__ import annotations

import re
from dataclasses import dataclass

from refgenfs.core.errors import KeyFormatError

DEFAULT_TAG = "default"  # where nothing names one
_FORM = "genome/asset[.seek_key][:tag]"
# One path component: what refgenie allows (word characters, '-', '.', '+') and no more, so that a name can
# never be '.', '..', hidden, or hold a '/', a ':' or white space.
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.+-]{0,253}[A-Za-z0-9_+-])?")
_SEEK_KEY = re.compile(r"[A-Za-z0-9_+-]{1,255}")


def is_name(text: str) -> bool:
    """Say whether `text` can name a genome, an asset or a tag."""
    return _NAME.fullmatch(text) is not None


def is_seek_key(text: str) -> bool:
    """Say whether `text` can be a seek key."""
    return _SEEK_KEY.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class AssetKey:
    """One asset of one genome; without a tag, the default tag's.

    `genome` is an alias or a digest. `seek_key` names one file (or the folder) of the asset.
    """

    genome: str
    asset: str
    seek_key: str | None = None
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> AssetKey:
        """Parse `genome/asset[.seek_key][:tag]`; raise KeyFormatError with what is wrong.

        As in refgenie, the first dot of the asset part begins the seek key, so an asset's name has no dot.
        """
        stripped = text.strip().strip("/")
        if not stripped:
            raise KeyFormatError(f"an empty key; write {_FORM}, for example hg38/fasta.fai:default")
        genome, slash, rest = stripped.partition("/")
        if not slash and is_name(genome):
            raise KeyFormatError(
                f"{genome} names a genome: write {genome}/ASSET; `refgenfs list {genome}` shows them"
            )
        if not slash:
            raise KeyFormatError(f"{text!r} has no asset; write {_FORM}, for example {genome}/fasta")
        if "/" in rest:
            raise KeyFormatError(f"{text!r} has more than one '/'; write {_FORM}")
        body, colon, tag = rest.partition(":")
        asset, dot, seek_key = body.partition(".")
        _check_name("genome", genome, text)
        _check_name("asset", asset, text)
        if colon:
            _check_name("tag", tag, text)
        if dot and _SEEK_KEY.fullmatch(seek_key) is None:
            raise KeyFormatError(f"{seek_key!r} in {text!r} is no seek key; write {_FORM}")
        return cls(genome, asset, seek_key if dot else None, tag if colon else None)

    def __str__(self) -> str:
        seek = f".{self.seek_key}" if self.seek_key else ""
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.genome}/{self.asset}{seek}{tag}"


def _check_name(what: str, name: str, text: str) -> None:
    if not name:
        raise KeyFormatError(f"{text!r} has an empty {what}; write {_FORM}")
    if not is_name(name):
        raise KeyFormatError(
            f"{name!r} in {text!r} is no {what}: letters, digits, '_', '-', '+' and '.' only; write {_FORM}"
        )
