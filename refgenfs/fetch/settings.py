"""How `Http` behaves: limits for all, and what is each account's own. Plain values; the daemon makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from refgenfs.core.retry import RetryPolicy

MAX_REDIRECTS = 5
MAX_DOCUMENT = 64 * 1024 * 1024  # bytes of JSON or text; the largest catalogs known are a few MB


@dataclass(frozen=True, slots=True)
class Account:
    """One source, as far as requests go.

    `origin` is any URL of the source's own host, `mirrors` one of each mirror: what is in the files is sent to their
    schemes, hosts and ports (never to a mirror without TLS of an origin that has it), nowhere else, and not after a
    redirect to another. `timeout` in seconds is how long a connection may take to come about, and how long an origin
    may be silent. `proxy` None is what the environment says, "none" no proxy.
    """

    origin: str = ""
    timeout: float = 20.0
    proxy: str | None = None
    token_file: Path | None = None
    mirrors: tuple[str, ...] = ()
    user: str = ""
    password_file: Path | None = None
    netrc_file: Path | None = None
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """What `Http` needs to know. An account that is not listed gets the defaults of `Account`."""

    user_agent: str = "refgenfs"
    connections: int = 8  # requests at a time to one host
    connect_timeout: float = 10.0  # seconds; at most this, and at most the account's timeout
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    accounts: Mapping[str, Account] = field(default_factory=dict)
    max_document: int = MAX_DOCUMENT

    def account(self, name: str) -> Account:
        """Return the account with this name, or the defaults."""
        return self.accounts.get(name, Account())
