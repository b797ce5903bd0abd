"""The tables of sources, one a type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from refgenfs.config.values import PUBLIC_SERVER, Duration, Name, PlainPath, Table, Url, Wait
from refgenfs.core.errors import KeyFormatError
from refgenfs.core.htsget.model import Format
from refgenfs.core.keys import AssetKey
from refgenfs.core.ticket import file_name
from refgenfs.users import gid_of, uid_of


def _check_users(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        uid_of(name)
    return names


def _check_groups(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        gid_of(name)
    return names


class SourceTable(Table):
    """What every source has: its name, and how it is reached."""

    name: Name
    type: str
    url: Url = Field(repr=False)
    mirrors: Annotated[tuple[Url, ...], Field(repr=False)] = ()
    timeout: Wait = 20.0
    proxy: Annotated[Url | None, Field(repr=False)] = None
    token_file: PlainPath | None = None
    allow_users: Annotated[tuple[str, ...], AfterValidator(_check_users)] | None = None
    allow_groups: Annotated[tuple[str, ...], AfterValidator(_check_groups)] | None = None


class RefgenieSource(SourceTable):
    """A refgenieserver."""

    type: Literal["refgenie"]
    remotes: bool = True
    seek_index: bool = True


def _check_key(text: str) -> str:
    try:
        key = AssetKey.parse(text)
    except KeyFormatError as exc:
        raise ValueError(str(exc)) from None
    if key.seek_key is not None:
        raise ValueError(f'{text!r} has a seek key; write "genome/asset" or "genome/asset:tag"')
    return text


def _check_file(path: str) -> str:
    """Return a file below a source's URL, or a URL; raise ValueError for what can't be one."""
    parts = urlsplit(path)
    name = parts.path.rpartition("/")[2]
    if not name or name in (".", "..") or "\0" in path or len(name.encode()) > 255:
        raise ValueError(f"{path!r} names no file")
    if parts.scheme and parts.scheme not in ("http", "https"):
        raise ValueError(f"{path!r} is no path below url, and no http:// or https:// URL")
    return path


class HttpAsset(Table):
    """An asset of plain files."""

    key: Annotated[str, AfterValidator(_check_key)]
    files: tuple[Annotated[str, AfterValidator(_check_file)], ...]

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [urlsplit(file).path.rpartition("/")[2] for file in self.files]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two files have the name {name!r}")
        return self


class HttpSource(SourceTable):
    """Plain files on a web server."""

    type: Literal["http"]
    revalidate: Duration = 60.0
    asset: tuple[HttpAsset, ...] = ()


def _check_id(id_: str) -> str:
    parts = id_.split("/")
    if not id_ or any(part in ("", ".", "..") for part in parts) or "\0" in id_ or len(parts[-1].encode()) > 240:
        raise ValueError(f'{id_!r} is no id; write one as its server knows it, like "1000g/NA12878"')
    if id_ == "service-info":
        raise ValueError("'service-info' is no id: servers answer it with what they are")
    return id_


_Id = Annotated[str, AfterValidator(_check_id)]


class HtsgetAsset(Table):
    """Ids of a htsget server that are an asset's files."""

    key: Annotated[str, AfterValidator(_check_key)]
    reads: tuple[_Id, ...] = ()
    variants: tuple[_Id, ...] = ()
    format: Literal["BAM", "CRAM", "VCF", "BCF"] | None = None

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        if bool(self.reads) == bool(self.variants):
            raise ValueError("write reads = [...] or variants = [...], one of them; an asset may have several tables")
        right = ("BAM", "CRAM") if self.reads else ("VCF", "BCF")
        if self.format is not None and self.format not in right:
            raise ValueError(f"{self.format} is no format of {'reads' if self.reads else 'variants'}")
        return self

    def files(self) -> tuple[tuple[str, Format, str], ...]:
        """Return name, format and id of each file."""
        format_ = Format(self.format or ("BAM" if self.reads else "VCF"))
        return tuple((file_name(id_, format_), format_, id_) for id_ in (*self.reads, *self.variants))


class HtsgetSource(SourceTable):
    """A htsget server: the tickets of its ids name the blocks that make files."""

    type: Literal["htsget"]
    revalidate: Duration = 600.0
    asset: tuple[HtsgetAsset, ...] = ()

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        seen: dict[tuple[str, str], str] = {}
        for asset in self.asset:
            for name, _, id_ in asset.files():
                if (asset.key, name) in seen:
                    both = f"{seen[asset.key, name]!r} and {id_!r} of {asset.key}"
                    raise ValueError(f"{both} would both be {name!r}; give them two keys")
                seen[asset.key, name] = id_
        return self


Source = Annotated[RefgenieSource | HttpSource | HtsgetSource, Field(discriminator="type")]
SOURCE_MODELS: Mapping[str, type[SourceTable]] = {
    "refgenie": RefgenieSource,
    "http": HttpSource,
    "htsget": HtsgetSource,
}
PUBLIC = RefgenieSource(name="refgenomes", type="refgenie", url=PUBLIC_SERVER)
