"""The status page and the metrics over HTTP, on the asyncio loop of the fetch thread. It changes nothing."""

from __future__ import annotations

from refgenfs.web.places import Place, bind
from refgenfs.web.site import StatusPage, Told

__all__ = ["Place", "StatusPage", "Told", "bind"]
