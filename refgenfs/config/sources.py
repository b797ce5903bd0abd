"""The tables of sources, one a type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from refgenfs.config.values import PUBLIC_SERVER, Duration, Name, PlainPath, Proxy, Table, Url, Wait
from refgenfs.core.errors import KeyFormatError, redact_url
from refgenfs.core.keys import AssetKey
from refgenfs.core.patterns import Layout

LAYOUT = "{genome}/{asset}/{file}"


class SourceTable(Table):
    """What every source has: its name, and how it is reached."""

    name: Name
    type: str
    url: Url = Field(repr=False)
    mirrors: Annotated[tuple[Url, ...], Field(repr=False)] = ()
    timeout: Wait = 20.0
    proxy: Annotated[Proxy | None, Field(repr=False)] = None
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


def _show_file(path: str) -> str:
    """Return a file as it may be shown: a URL can hold a password, or a signature."""
    return redact_url(path) if urlsplit(path).scheme else path


def _check_folder(path: str) -> str:
    """Return a path below a source's URL without what changes nothing; raise ValueError for what is none."""
    found = "/".join(part for part in path.split("/") if part not in ("", "."))
    if "\0" in path or ".." in found.split("/") or "?" in path or "#" in path or "://" in path:
        raise ValueError(f"{path!r} is no path below url")
    return found


def _check_layout(rules: tuple[str, ...]) -> tuple[str, ...]:
    if rules:
        Layout.parse(rules[0] if len(rules) == 1 else rules)
    return rules


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Folder = Annotated[str, AfterValidator(_check_folder)]
LayoutRules = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_check_layout)]
File = Annotated[str, AfterValidator(_check_file), PlainSerializer(_show_file, when_used="json")]


class HttpAsset(Table):
    """An asset of plain files: named one by one, or found in a folder's page or a list."""

    key: Annotated[str, AfterValidator(_check_key)]
    files: tuple[Annotated[File, Field(repr=False)], ...] = ()
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


class HttpSource(SourceTable):
    """Plain files on a web server."""

    type: Literal["http"]
    revalidate: Duration = 60.0
    layout: LayoutRules = ()
    manifest: Folder | None = None
    asset: tuple[HttpAsset, ...] = ()

    @model_validator(mode="after")
    def _check_ways(self) -> Self:
        if self.manifest is not None and not self.layout:
            raise ValueError(f'manifest needs a layout, which says what its files are: layout = "{LAYOUT}"')
        if not self.layout and not self.asset:
            raise ValueError(f'it has nothing; write [[source.asset]] tables, or layout = "{LAYOUT}"')
        return self


Source = Annotated[RefgenieSource | HttpSource, Field(discriminator="type")]
SOURCE_MODELS: Mapping[str, type[SourceTable]] = {"refgenie": RefgenieSource, "http": HttpSource}
PUBLIC = RefgenieSource(name="refgenomes", type="refgenie", url=PUBLIC_SERVER)
