"""URLs as they go over the wire."""

from __future__ import annotations

import aiohttp
from yarl import URL

from refgenfs.core.retry import Remedy
from refgenfs.fetch.answers import AttemptFailed, OriginUnusable, connection_failure

Origin = tuple[str, str, int]  # scheme, host, port


def host_of(url: URL) -> Origin:
    """Return whom a request goes to: what has so many connections, and may have a token."""
    return (url.scheme, (url.host or "").lower(), url.port or 0)


def parse_url(text: str) -> URL:
    """Return a URL as it was written, so that a signature in it stays right; raise AttemptFailed."""
    # Only what could not go over the wire is quoted.
    clean = text.isascii() and text.isprintable() and " " not in text
    try:
        url = URL(text, encoded=clean)
        usable = url.scheme in ("http", "https") and bool(url.host)  # these are parsed as they are asked for
    except ValueError as exc:
        raise connection_failure(aiohttp.InvalidURL("")) from exc
    if not usable:
        raise connection_failure(aiohttp.InvalidURL(""))
    return url.with_fragment(None)


def follow(target: URL, location: str) -> URL:
    """Return where a redirect from `target` leads; raise AttemptFailed."""
    try:
        clean = location.isascii() and location.isprintable() and " " not in location
        return parse_url(str(target.join(URL(location, encoded=clean))))
    except ValueError as exc:
        raise AttemptFailed(OriginUnusable, "a redirect to what is no URL", Remedy.ELSEWHERE) from exc
