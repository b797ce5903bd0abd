"""Which proxy a request goes by: the source's own, else the environment's, as other programs read it.

The variables are HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in lower case too (which wins); a URL's scheme says
which of them counts. NO_PROXY is a list of hosts, with all hosts below them, or `*`. As `urllib` has it, HTTP_PROXY
is passed over where REQUEST_METHOD is set: in a CGI script, whoever makes a request could set it.
"""

from __future__ import annotations

from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from yarl import URL

from refgenfs.core.retry import Remedy
from refgenfs.fetch.answers import AttemptFailed, OriginUnusable

DIRECT = "none"  # in the place of a proxy: none, whatever the environment says


class Proxies:
    """The environment's proxies, as they were at the start."""

    def __init__(self) -> None:
        self._named = getproxies_environment()

    def choose(self, target: URL, configured: str | None) -> URL | None:
        """Return the proxy for a request, None for none; raise AttemptFailed for one that can't be used."""
        if configured is not None:
            return None if configured == DIRECT else URL(configured)
        found = self._named.get(target.scheme) or self._named.get("all")
        host = f"{target.host}:{target.port}"
        if not found or proxy_bypass_environment(host, self._named):
            return None
        text = found if "://" in found else f"http://{found}"
        if urlsplit(text).scheme not in ("http", "https"):
            what = f"the environment names a {urlsplit(text).scheme}:// proxy; set source.proxy to an http:// one"
            raise AttemptFailed(OriginUnusable, f"{what}, or to {DIRECT!r}", Remedy.ELSEWHERE)
        try:
            return URL(text)
        except ValueError as exc:
            what = "the environment's proxy is no URL; set source.proxy"
            raise AttemptFailed(OriginUnusable, what, Remedy.ELSEWHERE) from exc
