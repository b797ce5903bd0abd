"""The proxies that an account's requests go by, and the servers that they go to: how each of them is, for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from refgenfs.core.errors import redact_url
from refgenfs.fetch.attempts import Attempts
from refgenfs.fetch.proxies import shown_way
from refgenfs.fetch.session import Session
from refgenfs.fetch.settings import Account


@dataclass(frozen=True, slots=True)
class RouteStatus:
    """A proxy or a server that an account's requests go by or to: its URL as people may see it, and how it is.

    `up`: it did not fail when it was asked last. `requests` since the start.
    """

    kind: Literal["proxy", "server"]
    url: str
    up: bool
    requests: int


def routes_of(name: str, account: Account, session: Session, attempts: Attempts) -> list[RouteStatus]:
    """Return the proxies of the account called `name`, and then its own server and the mirrors, in order."""
    ways = [(way, attempts.is_well(name, way=way), session.by_way.get((name, way), 0)) for way in account.proxies]
    urls = (account.origin, *account.mirrors) if account.origin else ()
    servers = [(url, attempts.is_well(name, server=url), session.by_server.get((name, url), 0)) for url in urls]
    return [RouteStatus("proxy", shown_way(way), up, requests) for way, up, requests in ways] + [
        RouteStatus("server", redact_url(url), up, requests) for url, up, requests in servers
    ]
