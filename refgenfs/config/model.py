"""What can be configured: frozen tables with types, defaults and bounds (`values` has what they are made of)."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from refgenfs.config.sources import PUBLIC, LocalSource, Source
from refgenfs.config.values import (
    ByteCount,
    Duration,
    FreeSpace,
    MinFree,
    Name,
    PlainPath,
    Table,
    Url,
    Wait,
    at_least,
    at_most,
    check_listen,
    is_loopback,
    lower,
    parse_listen,
)
from refgenfs.core.siblings import BUILT_IN, SiblingRule
from refgenfs.core.units import KIB, MIB

LOG_LEVELS = ("debug", "info", "warning", "error")


class MountConfig(Table):
    """The tree: where it is, and for whom."""

    point: PlainPath = Path("/genomes")
    allow_other: bool = False
    readahead: Annotated[ByteCount, at_least(4 * KIB, "4KiB"), at_most(16 * MIB, "16MiB")] = MIB


class CacheConfig(Table):
    """The content store on disk, and its bounds."""

    dir: PlainPath = Path("/var/cache/refgenfs")
    size: Annotated[ByteCount, at_least(4 * MIB, "4MiB")] = 200 * 10**9
    min_free: FreeSpace = MinFree(percent=5.0)


class CatalogConfig(Table):
    """What sources have, and how often to ask."""

    refresh: Annotated[Duration, at_least(1, "1s")] = 3600.0


class LimitsConfig(Table):
    """Deadlines and budgets."""

    read_deadline: Wait = 60.0
    lookup_deadline: Wait = 30.0
    retry_for: Duration = 30.0
    connections: Annotated[int, at_least(1, "1"), at_most(256, "256")] = 8
    memory: Annotated[ByteCount, at_least(4 * MIB, "4MiB")] = 64 * MIB
    open_files: Annotated[int, at_least(16, "16"), at_most(65536, "65536")] = 4096


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

    name: Name
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


class IndicesConfig(Table):
    """Indices that tools look for beside files that have none."""

    make: bool = True
    largest: Annotated[ByteCount, at_least(MIB, "1MiB")] = 20 * 10**9


def _split(value: object) -> object:
    """Return the words of a text, and anything else as it is: `-o` has no lists."""
    return tuple(value.split()) if isinstance(value, str) else value


class RefgetConfig(Table):
    """Sequences by their MD5."""

    genomes: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    servers: Annotated[tuple[Url, ...], BeforeValidator(_split)] = ()
    search: ByteCount = 4 * 10**9


class LogConfig(Table):
    """What the daemon writes down."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(lower)] = "info"


class WebConfig(Table):
    """Where the status page and the metrics are, if anywhere."""

    listen: Annotated[str, AfterValidator(check_listen)] = ""
    token_file: PlainPath | None = None

    @property
    def place(self) -> tuple[str, int] | Path | None:
        """Where to listen: an address and a port, a unix socket, or nowhere."""
        return parse_listen(self.listen)

    @property
    def address(self) -> str | None:
        """The URL of the status page, the path of its socket, or nothing."""
        place = self.place
        if not isinstance(place, tuple):
            return str(place) if place is not None else None
        host, port = place
        if ip_address(host).is_unspecified:
            host = socket.gethostname()
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    @model_validator(mode="after")
    def _check_guarded(self) -> Self:
        place = self.place
        if isinstance(place, tuple) and not is_loopback(place[0]) and self.token_file is None:
            raise ValueError(
                f"listen {self.listen!r} is open to other machines: set token_file too, or listen on 127.0.0.1"
            )
        return self


class Config(Table):
    """All settings of one daemon. Sources are in the order in which they are asked."""

    mount: MountConfig = MountConfig()
    cache: CacheConfig = CacheConfig()
    catalog: CatalogConfig = CatalogConfig()
    limits: LimitsConfig = LimitsConfig()
    prefetch: PrefetchConfig = PrefetchConfig()
    indices: IndicesConfig = IndicesConfig()
    refget: RefgetConfig = RefgetConfig()
    log: LogConfig = LogConfig()
    web: WebConfig = WebConfig()
    source: tuple[Source, ...] = (PUBLIC,)

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        point, cache = self.mount.point, self.cache.dir
        if point == Path("/"):
            raise ValueError("mount.point can't be '/'; name a directory of its own, for example /genomes")
        if cache.is_relative_to(point):
            raise ValueError(f"cache.dir {str(cache)!r} can't be inside of mount.point {str(point)!r}")
        for source in self.source:
            if isinstance(source, LocalSource) and (
                source.path.is_relative_to(point) or point.is_relative_to(source.path)
            ):
                raise ValueError(
                    f"source.{source.name}.path {str(source.path)!r} and mount.point can't be in each other"
                )
        if not self.source:
            raise ValueError("source is empty; leave it out for the public server, or write a [[source]]")
        names = [source.name for source in self.source]
        for name in names:
            if name == "refget":
                raise ValueError("source.refget: the refget servers have this name; give it another one")
            if names.count(name) > 1:
                raise ValueError(f"source.{name}: two sources have this name; give each its own")
        return self
