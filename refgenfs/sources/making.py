"""From the tables of the configuration to sources, and to what HTTP needs to know of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from refgenfs import config
from refgenfs.core.access import Rule
from refgenfs.core.patterns import Layout
from refgenfs.fetch.http import Http
from refgenfs.fetch.s3 import S3Access
from refgenfs.fetch.settings import Account
from refgenfs.paths import home_dir
from refgenfs.sources import Source
from refgenfs.sources.htsget import HtsgetSource, TicketAsker
from refgenfs.sources.http import HttpSource, Wanted
from refgenfs.sources.local import LocalSource
from refgenfs.sources.refgenie import RefgenieSource
from refgenfs.sources.s3 import S3Source
from refgenfs.users import gid_of, uid_of


def make_sources(http: Http, tickets: TicketAsker, tables: Sequence[config.Source]) -> list[Source]:
    """Return the sources, in the order of the configuration."""
    return [_make(http, tickets, table) for table in tables]


def ticket_servers(tables: Sequence[config.Source]) -> dict[str, tuple[str, ...]]:
    """Return the URLs of each source that gives tickets, its mirrors behind it."""
    return {table.name: (table.url, *table.mirrors) for table in tables if isinstance(table, config.HtsgetSource)}


def _make(http: Http, tickets: TicketAsker, table: config.Source) -> Source:
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
                assets=[Wanted(one.key, one.files, one.folder, one.manifest, one.only) for one in table.asset],
                layout=None if table.layout is None else Layout.parse(table.layout),
                manifest=table.manifest,
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
        case config.HtsgetSource():
            return HtsgetSource(
                http,
                tickets,
                name=table.name,
                url=table.url,
                assets=[(asset.key, asset.files()) for asset in table.asset],
                hold=table.revalidate,
                timeout=table.timeout,
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
            return Account("", table.timeout, table.proxy or (), access=access)
        case config.LocalSource():
            return Account()
    netrc_file = table.netrc_file
    if netrc_file is None and table.netrc:
        netrc_file = Path(home_dir(os.environ, os.geteuid()), ".netrc")
    return Account(
        table.url,
        table.timeout,
        table.proxy or (),
        table.token_file,
        mirrors=table.mirrors,
        user=table.user,
        password_file=table.password_file,
        netrc_file=netrc_file,
        ca_file=table.ca_file,
    )


def _named(table: config.S3Source | config.LocalSource) -> list[tuple[str, tuple[str, ...]]]:
    return [(asset.key, asset.files) for asset in table.asset]


def rules_of(tables: Sequence[config.Source], owner: int) -> dict[str, Rule]:
    """Return the rules of the sources that not everybody may read; `owner` is the daemon's user."""
    return {
        table.name: Rule(
            frozenset(map(uid_of, table.allow_users or ())), frozenset(map(gid_of, table.allow_groups or ())), owner
        )
        for table in tables
        if table.allow_users is not None or table.allow_groups is not None
    }
