"""How many come in, and how often they may ask: the page shares its loop with what is fetched for readers.

Who comes always finds room: where there is none left, the connection on which nothing was asked for longest has to go
(nginx does so, too). So whoever holds connections, on purpose or not, keeps neither the mount's descriptors nor
anybody else's page.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import NoReturn

from aiohttp import web

log = logging.getLogger(__name__)

MOST = 256  # connections at a time; a browser has up to six
SILENT = 10.0  # seconds for the first request to be there
IDLE = 120.0  # seconds from one request to the next; an answer that is not taken until then is not wanted
LOOK = 1.0  # seconds between two looks for those
# The loop works for a third of a millisecond for a connection or a request: readers keep most of it.
ACCEPT_EVERY = 0.002  # seconds
ANSWER_EVERY = 0.003  # seconds
NO_DESCRIPTOR = 1.0  # seconds until it is tried again


class Door:
    """Lets connections in. Belongs to the asyncio loop."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        # When something was last asked on a connection, or it was made, and whether anything was; the oldest first.
        self._inside: dict[asyncio.BaseTransport, tuple[float, bool]] = {}
        self._next = 0.0  # when an answer may begin

    async def accept(self, listener: socket.socket, server: web.Server) -> NoReturn:
        """Let in who comes, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as exc:  # no descriptor is left, or who came has gone
                log.debug("nobody comes in: %s", exc)
                await asyncio.sleep(NO_DESCRIPTOR)
                continue
            try:
                transport, _ = await loop.connect_accepted_socket(server, connection)
            except OSError as exc:
                log.debug("who came has gone: %s", exc)
                connection.close()
                continue
            self._inside[transport] = loop.time(), False
            self._make_room()
            await asyncio.sleep(ACCEPT_EVERY)

    def _make_room(self) -> None:
        if len(self._inside) > self._most:
            self._forget_gone()
        while len(self._inside) > self._most:
            _end(self._inside, next(iter(self._inside)))

    def _forget_gone(self) -> None:
        for transport in [one for one in self._inside if one.is_closing()]:
            del self._inside[transport]

    async def watch(self) -> NoReturn:
        """End connections on which nothing happens, until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            self._forget_gone()
            now = asyncio.get_running_loop().time()
            for transport, (since, asked) in list(self._inside.items()):
                if now - since > (IDLE if asked else SILENT):
                    _end(self._inside, transport)

    async def turn(self, request: web.Request) -> None:
        """Note a request, and wait until it may be answered: not for long, since no connection has two at a time."""
        now = asyncio.get_running_loop().time()
        transport = request.transport
        if transport is not None and self._inside.pop(transport, None) is not None:
            self._inside[transport] = now, True
        wait, self._next = self._next - now, max(self._next, now) + ANSWER_EVERY
        if wait > 0:
            await asyncio.sleep(wait)


def _end(inside: dict[asyncio.BaseTransport, tuple[float, bool]], transport: asyncio.BaseTransport) -> None:
    del inside[transport]
    assert isinstance(transport, asyncio.WriteTransport)
    transport.abort()  # what was not taken until now never will be
