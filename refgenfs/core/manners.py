"""Which hosts give parts of their objects, and which send everything whatever is asked. Pure: it is told the time.

What is known of a host is what it did last: it answered a range with that range (206), or with all of the object
(200). One URL can differ from others of its host, so this is believed for a while only; what a host said of the very
object (`ByteRange.whole`) counts where nothing was seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

MEMORY = 600.0  # seconds; asking in vain costs a connection and what the host has sent until it is closed
HOSTS = 1024  # that are remembered


class Manners:
    """What was seen of hosts, by account: a source's proxy can change what comes of a host.

    One thread notes, and any thread may ask.
    """

    def __init__(self, memory: float = MEMORY) -> None:
        self._memory = memory
        self._seen: dict[tuple[str, str], tuple[bool, float]] = {}

    def note(self, account: str, url: str, now: float, *, ranges: bool) -> None:
        """Note that the host of `url` gave a part of an object, or sent all of it instead."""
        if len(self._seen) >= HOSTS:
            self._seen.clear()
        self._seen[account, host_of(url)] = (ranges, now)

    def ranges(self, account: str, url: str, now: float) -> bool | None:
        """Return whether the host of `url` gives parts; None: that was not seen of late."""
        found = self._seen.get((account, host_of(url)))
        if found is None or now - found[1] > self._memory:
            return None
        return found[0]

    def order(self, account: str, urls: Sequence[str], now: float) -> list[str]:
        """Return `urls`, those whose hosts send everything last."""
        return sorted(urls, key=lambda url: self.ranges(account, url, now) is False)

    def whole(self, account: str, urls: Sequence[str], now: float, *, said: bool) -> bool:
        """Say whether an object is to be had whole only: none of its hosts is thought to give parts of it.

        `said`: its own host did not say that it gives parts.
        """
        seen = [self.ranges(account, url, now) for url in urls]
        return True not in seen and (said or (bool(seen) and seen[0] is False))


def host_of(url: str) -> str:
    """Return scheme, host and port of a URL, without user and password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # no URL: it fails where it is asked
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}"
