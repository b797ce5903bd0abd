"""From the tables of the configuration to sources, and to what HTTP needs to know of them."""

from __future__ import annotations

from collections.abc import Sequence

from refgenfs import config
from refgenfs.core.access import Rule
from refgenfs.fetch.http import Http
from refgenfs.fetch.settings import Account
from refgenfs.sources import Source
from refgenfs.sources.htsget import HtsgetSource, TicketAsker
from refgenfs.sources.http import HttpSource
from refgenfs.sources.refgenie import RefgenieSource
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
                assets=[(asset.key, asset.files) for asset in table.asset],
                hold=table.revalidate,
                timeout=table.timeout,
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
    return Account(table.url, table.timeout, table.proxy, table.token_file)


def rules_of(tables: Sequence[config.Source], owner: int) -> dict[str, Rule]:
    """Return the rules of the sources that not everybody may read; `owner` is the daemon's user."""
    return {
        table.name: Rule(
            frozenset(map(uid_of, table.allow_users or ())), frozenset(map(gid_of, table.allow_groups or ())), owner
        )
        for table in tables
        if table.allow_users is not None or table.allow_groups is not None
    }
