"""How `Http` behaves: limits for all, and what is each account's own. Plain values; the daemon makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from yarl import URL

from refgenfs.core.retry import RetryPolicy

MAX_REDIRECTS = 5
MAX_DOCUMENT = 64 * 1024 * 1024  # bytes of JSON or text; the largest catalogs known are a few MB


class Access(Protocol):
    """How requests of an account are made fit for its origin, and what the origin's errors mean."""

    def place(self, target: URL) -> URL:
        """Return where a request for `target` goes."""
        ...

    def signs(self, target: URL) -> bool:
        """Say whether a request for `target` goes with what proves whose it is, without which it may be refused."""
        ...

    async def sign(self, method: str, target: URL, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return the headers of a request, with what proves whose it is. Awaited for every hop; AttemptFailed."""
        ...

    def judge(self, target: URL, status: int, headers: Mapping[str, str], body: bytes) -> bool:
        """Hear of a failed request (not 412, 416 or a redirect), with the beginning of its body.

        True: it is to be made again at once. Raises AttemptFailed where more is known than the status says.
        """
        ...


@dataclass(frozen=True, slots=True)
class Account:
    """One source, as far as requests go.

    `origin` is any URL of the source's own host, `mirrors` one of each mirror: what is in the files is sent to their
    schemes, hosts and ports (never to a mirror without TLS of an origin that has it), nowhere else, and not after a
    redirect to another. `timeout` in seconds is how long a connection may take to come about, and how long an origin
    may be silent. `proxies` are asked in order (`proxies.DIRECT`: no proxy); none is what the environment says.
    `access` is for an origin with rules of its own.
    """

    origin: str = ""
    timeout: float = 20.0
    proxies: tuple[str, ...] = ()
    token_file: Path | None = None
    mirrors: tuple[str, ...] = ()
    user: str = ""
    password_file: Path | None = None
    netrc_file: Path | None = None
    ca_file: Path | None = None
    access: Access | None = None


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
