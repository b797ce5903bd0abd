"""The tables of sources, one a type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from refgenfs.config.values import PUBLIC_SERVER, Duration, Name, PlainPath, Table, Url, Wait
from refgenfs.core.errors import KeyFormatError
from refgenfs.core.keys import AssetKey


class SourceTable(Table):
    """What every source has: its name, and how it is reached."""

    name: Name
    type: str
    url: Url = Field(repr=False)
    mirrors: Annotated[tuple[Url, ...], Field(repr=False)] = ()
    timeout: Wait = 20.0
    proxy: Annotated[Url | None, Field(repr=False)] = None
    token_file: PlainPath | None = None


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


Source = Annotated[RefgenieSource | HttpSource, Field(discriminator="type")]
SOURCE_MODELS: Mapping[str, type[SourceTable]] = {"refgenie": RefgenieSource, "http": HttpSource}
PUBLIC = RefgenieSource(name="refgenomes", type="refgenie", url=PUBLIC_SERVER)
