"""From the tables of the configuration to sources, and to what HTTP needs to know of them."""

from __future__ import annotations

from collections.abc import Sequence

from refgenfs import config
from refgenfs.core.patterns import Layout
from refgenfs.fetch.http import Http
from refgenfs.fetch.s3 import S3Access
from refgenfs.fetch.settings import Account
from refgenfs.sources import Source
from refgenfs.sources.http import HttpSource
from refgenfs.sources.local import LocalSource
from refgenfs.sources.refgenie import RefgenieSource
from refgenfs.sources.s3 import S3Source


def make_sources(http: Http, tables: Sequence[config.Source]) -> list[Source]:
    """Return the sources, in the order of the configuration."""
    return [_make(http, table) for table in tables]


def _make(http: Http, table: config.Source) -> Source:
    match table:
        case config.RefgenieSource():
            return RefgenieSource(
                http,
                name=table.name,
                url=table.url,
                mirrors=table.mirrors,
                remotes=table.remotes,
                seek_index=table.seek_index,
                timeout=table.timeout,
            )
        case config.HttpSource():
            return HttpSource(
                http,
                name=table.name,
                url=table.url,
                mirrors=table.mirrors,
                assets=[(asset.key, asset.files) for asset in table.asset],
                hold=table.revalidate,
                timeout=table.timeout,
            )
        case config.S3Source():
            return S3Source(
                http,
                table.place(),
                name=table.name,
                layout=None if table.layout is None else Layout.parse(table.layout),
                assets=_named(table),
                hold=table.revalidate,
                timeout=table.timeout,
            )
        case config.LocalSource():
            return LocalSource(
                table.path,
                name=table.name,
                layout=None if table.layout is None else Layout.parse(table.layout),
                assets=_named(table),
                hold=table.revalidate,
                cached=table.cached,
            )


def account_of(table: config.Source) -> Account:
    """Return how requests for a source go."""
    match table:
        case config.S3Source():
            access = S3Access(
                table.place(),
                anonymous=table.anonymous,
                profile=table.profile,
                request_payer=table.request_payer,
            )
            return Account("", table.timeout, table.proxy, access=access)
        case config.LocalSource():
            return Account()
    return Account(table.url, table.timeout, table.proxy, table.token_file)


def _named(table: config.S3Source | config.LocalSource) -> list[tuple[str, tuple[str, ...]]]:
    return [(asset.key, asset.files) for asset in table.asset]
