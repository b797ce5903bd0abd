"""What can be configured: frozen tables with types, defaults and bounds.

In Python values are bytes, seconds and paths; `model_dump(mode="json")` gives the text that people write,
with no secret in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from refgenfs.core.errors import redact_url
from refgenfs.core.keys import is_name
from refgenfs.core.siblings import BUILT_IN, SiblingRule
from refgenfs.core.units import KIB, MIB, format_duration, format_size, parse_duration, parse_size

PUBLIC_SERVER = "http://refgenomes.databio.org"
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class MinFree:
    """Space that stays free on the cache's file system: a number of bytes, or a share of it in percent."""

    size: int | None = None
    percent: float | None = None

    @classmethod
    def parse(cls, value: object) -> MinFree:
        """Parse "5%" or a size; raise ValueError with what would be right."""
        if isinstance(value, MinFree):
            return value
        if not isinstance(value, str) or not value.strip().endswith("%"):
            return cls(size=parse_size(value))
        number = value.strip()[:-1].strip()
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", number, re.ASCII) is None or float(number) >= 100:
            raise ValueError(f'{value!r} is no share; write "5%", from 0% to below 100%, or a size like "10GB"')
        return cls(percent=float(number))

    def bytes_of(self, total: int) -> int:
        """Return how many bytes stay free on a file system of `total` bytes."""
        return self.size if self.size is not None else -int(-total * (self.percent or 0.0) // 100)

    def __str__(self) -> str:
        return format_size(self.size) if self.size is not None else f"{self.percent:g}%"


def _at_least(low: float, shown: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if value < low:
            raise ValueError(f"must be at least {shown}")
        return value

    return AfterValidator(check)


def _at_most(high: float, shown: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if value > high:
            raise ValueError(f"must be at most {shown}")
        return value

    return AfterValidator(check)


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"is no URL; write one like {PUBLIC_SERVER!r}") from None
    if parts.scheme not in ("http", "https") or not host or re.search(r"[\s\x00-\x1f]", url):
        shown = redact_url(url) if parts.scheme and host else url.rpartition("@")[2].partition("?")[0]
        raise ValueError(f"{shown!r} is no http:// or https:// URL; write one like {PUBLIC_SERVER!r}")
    if parts.query or parts.fragment:
        raise ValueError(f"{redact_url(url)!r} must have nothing after its path: leave out '?' and '#'")
    return url


def _check_source_name(name: str) -> str:
    if not is_name(name):
        raise ValueError(f"{name!r} is no name: letters, digits, '_', '-', '+' and '.' only")
    return name


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


ByteCount = Annotated[int, BeforeValidator(parse_size), PlainSerializer(format_size, when_used="json")]
Duration = Annotated[float, BeforeValidator(parse_duration), PlainSerializer(format_duration, when_used="json")]
Url = Annotated[str, AfterValidator(_check_url), PlainSerializer(redact_url, when_used="json")]
FreeSpace = Annotated[MinFree, BeforeValidator(MinFree.parse), PlainSerializer(str, when_used="json")]
_Wait = Annotated[Duration, _at_least(0.1, "100ms")]


def _check_path(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("must be a path; no path has a NUL character in it")
    return path


PlainPath = Annotated[Path, AfterValidator(_check_path)]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class MountConfig(Table):
    """The tree: where it is, and for whom."""

    point: PlainPath = Path("/genomes")
    allow_other: bool = False
    readahead: Annotated[ByteCount, _at_least(4 * KIB, "4KiB"), _at_most(16 * MIB, "16MiB")] = MIB


class CacheConfig(Table):
    """The content store on disk, and its bounds."""

    dir: PlainPath = Path("/var/cache/refgenfs")
    size: Annotated[ByteCount, _at_least(4 * MIB, "4MiB")] = 200 * 10**9
    min_free: FreeSpace = MinFree(percent=5.0)


class CatalogConfig(Table):
    """What sources have, and how often to ask."""

    refresh: Annotated[Duration, _at_least(1, "1s")] = 3600.0


class LimitsConfig(Table):
    """Deadlines and budgets."""

    read_deadline: _Wait = 60.0
    lookup_deadline: _Wait = 30.0
    retry_for: Duration = 30.0
    connections: Annotated[int, _at_least(1, "1"), _at_most(256, "256")] = 8
    memory: Annotated[ByteCount, _at_least(4 * MIB, "4MiB")] = 64 * MIB


def _check_ending(ending: str) -> str:
    if not ending or "/" in ending or ending in (".", ".."):
        raise ValueError(f'{ending!r} is no ending of a file\'s name; write one like ".bwt", or a whole name')
    return ending


def _check_not_empty(endings: tuple[str, ...]) -> tuple[str, ...]:
    if not endings:
        raise ValueError("must not be empty")
    return endings


_Ending = Annotated[str, AfterValidator(_check_ending)]


class PrefetchRule(Table):
    """What opening a file of an asset brings besides."""

    name: Annotated[str, AfterValidator(_check_source_name)]
    assets: str = "*"
    opens: Annotated[tuple[_Ending, ...], AfterValidator(_check_not_empty)]
    brings: tuple[_Ending, ...]
    largest: ByteCount | None = None

    def rule(self) -> SiblingRule:
        """Return it as `core.siblings` has it."""
        return SiblingRule(self.name, self.opens, self.brings, self.assets, self.largest)


class PrefetchConfig(Table):
    """What is fetched before anybody waits for it."""

    siblings: ByteCount = 16 * MIB
    rule: tuple[PrefetchRule, ...] = ()

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [rule.name for rule in self.rule]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two rules have the name {name!r}; give each its own")
        return self

    def rules(self) -> tuple[SiblingRule, ...]:
        """Return the configured rules, and after them those that every daemon has."""
        return (*(rule.rule() for rule in self.rule), *BUILT_IN)


class LogConfig(Table):
    """What the daemon writes down."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = "info"


class RefgenieSource(Table):
    """A refgenieserver."""

    name: Annotated[str, AfterValidator(_check_source_name)]
    type: Literal["refgenie"]
    url: Url = Field(repr=False)
    mirrors: Annotated[tuple[Url, ...], Field(repr=False)] = ()
    remotes: bool = True
    seek_index: bool = True
    timeout: _Wait = 20.0
    proxy: Annotated[Url | None, Field(repr=False)] = None
    token_file: PlainPath | None = None


Source = RefgenieSource
SOURCE_MODELS: Mapping[str, type[Table]] = {"refgenie": RefgenieSource}
_PUBLIC = RefgenieSource(name="refgenomes", type="refgenie", url=PUBLIC_SERVER)


class Config(Table):
    """All settings of one daemon. Sources are in the order in which they are asked."""

    mount: MountConfig = MountConfig()
    cache: CacheConfig = CacheConfig()
    catalog: CatalogConfig = CatalogConfig()
    limits: LimitsConfig = LimitsConfig()
    prefetch: PrefetchConfig = PrefetchConfig()
    log: LogConfig = LogConfig()
    source: tuple[Source, ...] = (_PUBLIC,)

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        point, cache = self.mount.point, self.cache.dir
        if point == Path("/"):
            raise ValueError("mount.point can't be '/'; name a directory of its own, for example /genomes")
        if cache.is_relative_to(point):
            raise ValueError(f"cache.dir {str(cache)!r} can't be inside of mount.point {str(point)!r}")
        if not self.source:
            raise ValueError("source is empty; leave it out for the public server, or write a [[source]]")
        names = [source.name for source in self.source]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"source.{name}: two sources have this name; give each its own")
        return self
