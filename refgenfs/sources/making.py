"""From the tables of the configuration to sources, and to what HTTP needs to know of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from refgenfs import config
from refgenfs.fetch.http import Http
from refgenfs.fetch.settings import Account
from refgenfs.paths import home_dir
from refgenfs.sources import Source
from refgenfs.sources.http import HttpSource, Wanted
from refgenfs.sources.refgenie import RefgenieSource


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
                assets=[Wanted(one.key, one.files, one.folder, one.manifest, one.only) for one in table.asset],
                layout=table.layout,
                manifest=table.manifest,
                hold=table.revalidate,
                timeout=table.timeout,
            )


def account_of(table: config.Source) -> Account:
    """Return how requests for a source go."""
    netrc_file = table.netrc_file
    if netrc_file is None and table.netrc:
        netrc_file = Path(home_dir(os.environ, os.geteuid()), ".netrc")
    return Account(
        table.url,
        table.timeout,
        table.proxy,
        table.token_file,
        mirrors=table.mirrors,
        user=table.user,
        password_file=table.password_file,
        netrc_file=netrc_file,
        ca_file=table.ca_file,
    )
