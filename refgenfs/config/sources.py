"""The tables of sources, one a type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from refgenfs.config.values import PUBLIC_SERVER, Duration, Name, PlainPath, Table, Url, Wait
from refgenfs.core.errors import KeyFormatError
from refgenfs.core.keys import AssetKey
from refgenfs.core.patterns import LAYOUTS, Layout, is_file_name
from refgenfs.core.s3 import Bucket, is_bucket, is_region


class SourceTable(Table):
    """What every source has: its name, and what it is."""

    name: Name
    type: str


class WebSource(SourceTable):
    """What every source has that is reached by a URL of its own."""

    url: Url = Field(repr=False)
    mirrors: Annotated[tuple[Url, ...], Field(repr=False)] = ()
    timeout: Wait = 20.0
    proxy: Annotated[Url | None, Field(repr=False)] = None
    token_file: PlainPath | None = None


class RefgenieSource(WebSource):
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


class HttpSource(WebSource):
    """Plain files on a web server."""

    type: Literal["http"]
    revalidate: Duration = 60.0
    asset: tuple[HttpAsset, ...] = ()


def _check_path(path: str) -> str:
    """Return a path of a file below a folder or a bucket's prefix; raise ValueError for what can't be one."""
    if not is_file_name(path):
        raise ValueError(f"{path!r} names no file: write its path below the source's own, without '..' or '//'")
    return path


class FileAsset(Table):
    """An asset of files below a folder, or a bucket's prefix."""

    key: Annotated[str, AfterValidator(_check_key)]
    files: tuple[Annotated[str, AfterValidator(_check_path)], ...]

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [file.rpartition("/")[2] for file in self.files]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two files have the name {name!r}")
        return self


def _check_layout(layout: object) -> str | tuple[str, ...] | None:
    if isinstance(layout, list | tuple) and all(isinstance(rule, str) for rule in layout):
        layout = tuple(layout)
    elif layout is not None and not isinstance(layout, str):
        raise ValueError("must be text in quotes, or a list of rules, each in quotes")
    if layout is not None:
        Layout.parse(layout)
    return layout


LayoutText = Annotated[str | tuple[str, ...] | None, BeforeValidator(_check_layout)]


class LaidOutSource(SourceTable):
    """What sources have whose files are arranged by a layout, or named one by one."""

    layout: LayoutText = None
    revalidate: Duration = 60.0
    asset: tuple[FileAsset, ...] = ()

    @model_validator(mode="after")
    def _check_contents(self) -> Self:
        if self.layout is None and not self.asset:
            known = " or ".join(f'layout = "{name}"' for name in LAYOUTS)
            raise ValueError(f"has no files; write {known}, a pattern, or a [[source.asset]]")
        return self


def _check_bucket(name: str) -> str:
    if not is_bucket(name):
        raise ValueError(f"{name!r} is no name of a bucket; write it without s3:// and without a prefix")
    return name


def _check_prefix(prefix: str) -> str:
    if "\0" in prefix or prefix.startswith("s3://"):
        raise ValueError(f'{prefix!r} is no prefix; write what keys begin with, like "igenomes/"')
    return prefix if not prefix or prefix.endswith("/") else f"{prefix}/"


def _check_region(region: str) -> str:
    if not is_region(region):
        raise ValueError(f'{region!r} is no region; write one like "eu-west-1"')
    return region


class S3Source(LaidOutSource):
    """A bucket of Amazon S3, or of a server that speaks its protocol."""

    type: Literal["s3"]
    bucket: Annotated[str, AfterValidator(_check_bucket)]
    prefix: Annotated[str, AfterValidator(_check_prefix)] = ""
    region: Annotated[str, AfterValidator(_check_region)] | None = None
    endpoint: Annotated[Url | None, Field(repr=False)] = None
    path_style: bool | None = None
    anonymous: bool = False
    profile: str | None = None
    request_payer: bool = False
    timeout: Wait = 20.0
    proxy: Annotated[Url | None, Field(repr=False)] = None

    @model_validator(mode="after")
    def _check_whose(self) -> Self:
        if self.anonymous and (self.profile is not None or self.request_payer):
            raise ValueError("anonymous requests have no profile and no request_payer; leave anonymous out, or these")
        return self

    def place(self) -> Bucket:
        """Return it as `core.s3` has it."""
        return Bucket(self.bucket, self.prefix, self.region or "", self.endpoint or "", self.path_style)


class LocalSource(LaidOutSource):
    """A folder of this machine: of its own disk, or of a network's."""

    type: Literal["local"]
    path: PlainPath
    cached: bool = False
    revalidate: Duration = 1.0


Source = Annotated[RefgenieSource | HttpSource | S3Source | LocalSource, Field(discriminator="type")]
SOURCE_MODELS: Mapping[str, type[SourceTable]] = {
    "refgenie": RefgenieSource,
    "http": HttpSource,
    "s3": S3Source,
    "local": LocalSource,
}
PUBLIC = RefgenieSource(name="refgenomes", type="refgenie", url=PUBLIC_SERVER)
