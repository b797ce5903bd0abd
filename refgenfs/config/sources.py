"""The tables of sources, one a type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from refgenfs.config.values import PUBLIC_SERVER, Duration, Name, PlainPath, Proxies, Table, Url, Wait
from refgenfs.core.errors import KeyFormatError, redact_url
from refgenfs.core.htsget.model import Format
from refgenfs.core.keys import AssetKey
from refgenfs.core.patterns import LAYOUTS, Layout, is_file_name
from refgenfs.core.s3 import Bucket, is_bucket, is_region
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


LAYOUT = "{genome}/{asset}/{file}"


class SourceTable(Table):
    """What every source has: its name, and what it is."""

    name: Name
    type: str
    allow_users: Annotated[tuple[str, ...], AfterValidator(_check_users)] | None = None
    allow_groups: Annotated[tuple[str, ...], AfterValidator(_check_groups)] | None = None


class WebSource(SourceTable):
    """What every source has that is reached by a URL of its own."""

    url: Url = Field(repr=False)
    mirrors: Annotated[tuple[Url, ...], Field(repr=False)] = ()
    timeout: Wait = 20.0
    proxy: Annotated[Proxies | None, Field(repr=False)] = None
    token_file: PlainPath | None = None
    user: str = ""
    password_file: PlainPath | None = None
    netrc: bool = False
    netrc_file: PlainPath | None = None
    ca_file: PlainPath | None = None

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        if bool(self.user) != (self.password_file is not None):
            raise ValueError("user and password_file belong together; write both, or neither")
        if ":" in self.user:
            raise ValueError("user has a ':' in it, which no name for Basic authentication can have")
        if self.user and self.token_file is not None:
            raise ValueError("token_file and user are two ways to say who asks; write one of them")
        return self


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


def _show_file(path: str) -> str:
    """Return a file as it may be shown: a URL can hold a password, or a signature."""
    return redact_url(path) if urlsplit(path).scheme else path


def _check_folder(path: str) -> str:
    """Return a path below a source's URL without what changes nothing; raise ValueError for what is none."""
    found = "/".join(part for part in path.split("/") if part not in ("", "."))
    if "\0" in path or ".." in found.split("/") or "?" in path or "#" in path or "://" in path:
        raise ValueError(f"{path!r} is no path below url")
    return found


def _check_layout(layout: object) -> str | tuple[str, ...] | None:
    if isinstance(layout, list | tuple) and all(isinstance(rule, str) for rule in layout):
        layout = tuple(layout)
    elif layout is not None and not isinstance(layout, str):
        raise ValueError("must be text in quotes, or a list of rules, each in quotes")
    if layout is not None:
        Layout.parse(layout)
    return layout


LayoutText = Annotated[str | tuple[str, ...] | None, BeforeValidator(_check_layout)]


Folder = Annotated[str, AfterValidator(_check_folder)]
File = Annotated[str, AfterValidator(_check_file), PlainSerializer(_show_file, when_used="json")]


class HttpAsset(Table):
    """An asset of plain files: named one by one, or found in a folder's page or a list."""

    key: Annotated[str, AfterValidator(_check_key)]
    files: Annotated[tuple[File, ...], Field(repr=False)] = ()
    folder: Folder | None = None
    manifest: Folder | None = None
    only: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        ways = [self.files or None, self.folder, self.manifest]
        if sum(way is not None for way in ways) != 1:
            raise ValueError('write one of files = ["hg38.fa.gz"], folder = "hg38" and manifest = "hg38/MD5SUMS"')
        if self.only and self.files:
            raise ValueError("only is for what is found in a folder or a manifest, not for files")
        names = [urlsplit(file).path.rpartition("/")[2] for file in self.files]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two files have the name {name!r}")
        return self


class HttpSource(WebSource):
    """Plain files on a web server."""

    type: Literal["http"]
    revalidate: Duration = 60.0
    layout: LayoutText = None
    manifest: Folder | None = None
    asset: tuple[HttpAsset, ...] = ()

    @model_validator(mode="after")
    def _check_ways(self) -> Self:
        if self.manifest is not None and self.layout is None:
            raise ValueError(f'manifest needs a layout, which says what its files are: layout = "{LAYOUT}"')
        if self.layout is None and not self.asset:
            raise ValueError(f'it has nothing; write [[source.asset]] tables, or layout = "{LAYOUT}"')
        return self


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


class HtsgetSource(WebSource):
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
    proxy: Annotated[Proxies | None, Field(repr=False)] = None

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


Source = Annotated[RefgenieSource | HttpSource | S3Source | LocalSource | HtsgetSource, Field(discriminator="type")]
SOURCE_MODELS: Mapping[str, type[SourceTable]] = {
    "refgenie": RefgenieSource,
    "http": HttpSource,
    "s3": S3Source,
    "local": LocalSource,
    "htsget": HtsgetSource,
}
PUBLIC = RefgenieSource(name="refgenomes", type="refgenie", url=PUBLIC_SERVER)
