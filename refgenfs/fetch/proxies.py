"""Which proxy a request goes by: the source's own, in order, else the environment's, as other programs read it.

A source's proxies are **ways** (`core/retry.py`): `Attempts` says which one an attempt goes by (`going_by`), and that
holds for all that the attempt starts.

The variables are HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in lower case too (which wins); a URL's scheme says
which of them counts. NO_PROXY is a list of hosts, with all hosts below them, or `*`. As `urllib` has it, HTTP_PROXY
is passed over where REQUEST_METHOD is set: in a CGI script, whoever makes a request could set it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from yarl import URL

from refgenfs.core.errors import redact_url
from refgenfs.core.retry import Ask, Remedy
from refgenfs.fetch.answers import AttemptFailed, OriginUnusable

DIRECT = "direct"  # in the place of a proxy: none, whatever the environment says
ENVIRONMENT = ""  # what the environment says

# The attempt that a task belongs to. How a request travels concerns neither those who ask nor those who take the
# bytes, so it does not pass through their hands; a task that an attempt starts has a copy.
_asked: ContextVar[Ask | None] = ContextVar("asked", default=None)


@contextmanager
def going_by(ask: Ask) -> Iterator[None]:
    """Have the requests of this task, and of those that it starts, go as `ask` says while the block lasts."""
    token = _asked.set(ask)
    try:
        yield
    finally:
        _asked.reset(token)


def present_ask() -> Ask | None:
    """Return the attempt that this task belongs to."""
    return _asked.get()


def shown_way(way: str) -> str:
    """Return a way as people may see it: a proxy's URL can hold a password."""
    return way if way in (DIRECT, ENVIRONMENT) else redact_url(way)


class Proxies:
    """The environment's proxies, as they were at the start."""

    def __init__(self) -> None:
        self._named = getproxies_environment()

    def way(self, configured: Sequence[str]) -> str:
        """Return the way of a request: that of its attempt, else the first of those that are configured."""
        ask = present_ask()
        if ask is not None and ask.way:
            return ask.way
        return configured[0] if configured else ENVIRONMENT

    def choose(self, target: URL, way: str) -> URL | None:
        """Return the proxy for a request, None for none; raise AttemptFailed for one that can't be used."""
        if way != ENVIRONMENT:
            return None if way == DIRECT else URL(way)
        found = self._named.get(target.scheme) or self._named.get("all")
        host = f"{target.host}:{target.port}"
        if not found or proxy_bypass_environment(host, self._named):
            return None
        text = found if "://" in found else f"http://{found}"
        if urlsplit(text).scheme not in ("http", "https"):
            what = f"the environment names a {urlsplit(text).scheme}:// proxy; set source.proxy to an http:// one"
            raise AttemptFailed(OriginUnusable, f'{what}, or to "{DIRECT}"', Remedy.ELSEWHERE)
        try:
            return URL(text)
        except ValueError as exc:
            what = "the environment's proxy is no URL; set source.proxy"
            raise AttemptFailed(OriginUnusable, what, Remedy.ELSEWHERE) from exc
