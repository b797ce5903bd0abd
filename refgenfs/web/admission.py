"""Who may see the page, and how much of it.

With a token: who has it sees all; nobody else sees anything. Without one the page is on loopback or on a unix socket.
There the name that a browser asked for has to be this machine's (or a web site could ask in its visitor's place, by
pointing its own name here), and on a port, which every user of the machine can reach, each sees what the control
socket would tell them (`administration.visitors`).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import socket
import sys
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

from aiohttp import web

from refgenfs.core.errors import ControlError
from refgenfs.users import NOBODY

log = logging.getLogger(__name__)

LONGEST_TOKEN = 4096  # bytes
SESSION = 7 * 86400  # seconds that a browser need not be given the token again
WRONG = 0.5  # seconds that a wrong token costs
TRIES = 4  # wrong tokens that are being waited for; more are refused at once


class Admission:
    """Looks at requests. Belongs to the asyncio loop."""

    def __init__(self, token_file: Path | None, place: tuple[str, int] | Path) -> None:
        self._file = token_file
        self._port = not isinstance(place, Path)
        # Browsers keep cookies by host and not by port: two daemons must not take each other's.
        self.cookie = f"refgenfs_{place[1] if isinstance(place, tuple) else 'socket'}"
        self._peers: WeakKeyDictionary[asyncio.BaseTransport, int] = WeakKeyDictionary()
        self._looking = asyncio.Lock()
        self._tries = 0

    @property
    def needs_token(self) -> bool:
        """Whether a token is needed."""
        return self._file is not None

    async def admit(self, request: web.Request, *, checks_host: bool = True) -> int | None:
        """Return who looks: None for who may see all, else a user's number, `NOBODY` where that is not known.

        Raises HTTPForbidden or HTTPUnauthorized for who may see nothing.
        """
        if request.headers.get("Sec-Fetch-Site") == "cross-site" and request.path != "/":
            raise web.HTTPForbidden(text="another web site asks for this\n")
        if self._file is not None:
            self._check_token(request)
            return None
        if checks_host and not is_here(request.headers.get("Host", "")):
            raise web.HTTPForbidden(
                text="without a token the page goes by localhost and by loopback addresses only\n"
            )
        return await self._viewer(request) if self._port else None

    # -- tokens -------------------------------------------------------------------------------------------

    def _check_token(self, request: web.Request) -> None:
        wanted = self._token()
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(secret.strip(), wanted):
            return
        if not self._is_session(request.cookies.get(self.cookie, ""), wanted):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"}, text="a bearer token is needed\n")

    def _token(self) -> str:
        assert self._file is not None
        try:
            return read_token(self._file)
        except ControlError as exc:
            log.warning("the status page: %s", exc)
            raise web.HTTPServiceUnavailable(text="the token file can't be used; the log says why\n") from exc

    async def log_in(self, given: str) -> str | None:
        """Return what the cookie of a browser that gave the token is to hold; None, later, for a wrong one."""
        wanted = self._token()
        if _same(given.strip(), wanted):
            until = int(time.time()) + SESSION
            return f"{until}.{_seal(wanted, until)}"
        if self._tries >= TRIES:
            raise web.HTTPTooManyRequests(text="too many wrong tokens at a time; wait a second\n")
        self._tries += 1
        try:
            await asyncio.sleep(WRONG)
        finally:
            self._tries -= 1
        return None

    def _is_session(self, cookie: str, token: str) -> bool:
        """Say whether a cookie is one of ours; it ends with its time, and with the token that it was given for."""
        until, _, seal = cookie.partition(".")
        if not (until.isascii() and until.isdigit() and len(until) < 12) or int(until) < time.time():
            return False
        return _same(seal, _seal(token, int(until)))

    # -- who is at the other end --------------------------------------------------------------------------

    async def _viewer(self, request: web.Request) -> int | None:
        """Return whose process is at the other end; None for root's and the daemon's own user's."""
        transport = request.transport
        if transport is None:
            return NOBODY
        known = self._peers.get(transport)
        if known is None:
            peer, here = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
            async with self._looking:  # one thread at a time: names of hosts are looked up by the same ones
                uid = await asyncio.to_thread(uid_of_peer, peer, here)
            known = self._peers[transport] = NOBODY if uid is None else uid
        return None if known in (0, os.getuid()) else known


def is_here(host: str) -> bool:
    """Say whether a Host header names this machine by its loopback: `localhost`, or an address of it."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    name = name.removeprefix("[").removesuffix("]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def uid_of_peer(peer: object, here: object) -> int | None:
    """Return the user whose socket is at the other end of a connection of this machine; None if nobody's is. Blocks.

    The kernel has them all in /proc/net/tcp: an end's address, the other's, and whose the socket is.
    """
    if not isinstance(peer, tuple) or not isinstance(here, tuple):
        return None
    wanted = f": {_kernel_name(peer)} {_kernel_name(here)} ".encode()
    try:
        # Searched as a whole: whoever leaves many connections behind makes it megabytes long.
        table = Path("/proc/net/tcp6" if ":" in str(peer[0]) else "/proc/net/tcp").read_bytes()
        at = table.find(wanted)
        if at >= 0:
            cells = table[at : table.find(b"\n", at)].split()
            uid, inode = int(cells[7]), int(cells[9])
            return uid if inode else None  # one that was closed is shown as root's
    except (OSError, ValueError, IndexError):
        log.debug("who asks for the status page is not known", exc_info=True)
    return None


def _kernel_name(address: tuple[object, ...]) -> str:
    """Return an address as /proc/net/tcp writes it: words of the machine's byte order, and the port."""
    host, port = str(address[0]).partition("%")[0], int(str(address[1]))
    packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return f"{''.join(f'{int.from_bytes(word, _ORDER):08X}' for word in words)}:{port:04X}"


_ORDER: Literal["little", "big"] = sys.byteorder


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), wanted.encode())


def _seal(token: str, until: int) -> str:
    """Return what only who knows the token can make; the token can't be got from it."""
    return hmac.new(token.encode(), f"refgenfs status page {until}".encode(), "sha256").hexdigest()


def read_token(path: Path) -> str:
    """Return the token in a file; raise ControlError, which names the file and not its text."""
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_TOKEN).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ControlError(f"the token file {path} can't be read: {why(exc)}") from exc
    if not text or " " in text or not text.isprintable():
        raise ControlError(f"the token file {path} holds no single token")
    return text


def why(exc: Exception) -> str:
    """Return an error's text, without the number."""
    return str(getattr(exc, "strerror", None) or exc)
