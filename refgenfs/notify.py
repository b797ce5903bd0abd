"""What a daemon and the service manager that started it tell each other: sd_notify(3) and sd_listen_fds(3).

A datagram of lines to the socket that `$NOTIFY_SOCKET` names, and file descriptors that begin at 3. Where no manager
listens, nothing is sent; one that does not take a message is no reason to fail.
"""

from __future__ import annotations

import array
import logging
import os
import select
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

log = logging.getLogger(__name__)

FIRST_FD = 3  # SD_LISTEN_FDS_START
SEND_TIMEOUT = 0.5  # seconds; the manager's queue is full only while the manager itself is stuck
TAKEN_TIMEOUT = 20.0  # seconds; a machine that installs packages is a busy one, and its manager reloads


class ServiceManager:
    """The manager that started this process, if there is one.

    `watchdog` is how long (seconds) it waits for a sign of life (`alive`) before it kills us; None: it does not.
    """

    def __init__(self, address: str = "", watchdog: float | None = None) -> None:
        self.watchdog = watchdog
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._status = ""

    @classmethod
    def of(cls, environ: Mapping[str, str], pid: int) -> ServiceManager:
        """Return the manager that an environment names; what is meant for another process is passed over."""
        address = environ.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls()
        watchdog = None
        if environ.get("WATCHDOG_PID", str(pid)) == str(pid):
            with suppress(ValueError):
                watchdog = int(environ.get("WATCHDOG_USEC", "0")) / 1e6 or None
        return cls(address, watchdog)

    @property
    def listens(self) -> bool:
        """Whether there is a manager that listens."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Say that what was started, or reloaded, is in service."""
        self._tell("READY=1", _status(status))
        self._status = status

    def reloading(self) -> None:
        """Say that a reload has begun; `ready` must follow."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """Say that the end has begun."""
        self._tell("STOPPING=1", _status(status))

    def status(self, text: str) -> None:
        """Say in one line how we are; said again only when it changes."""
        if text != self._status:
            self._status = text
            self._tell(_status(text))

    def alive(self) -> None:
        """Feed the watchdog."""
        self._tell("WATCHDOG=1")

    def extend(self, seconds: float, status: str) -> None:
        """Ask for patience: the start, or the end, takes that much longer from now on."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", _status(status))

    def keep(self, name: str, fd: int) -> bool:
        """Give the manager a descriptor, for the process that it starts next; return whether it has it."""
        return self._tell("FDSTORE=1", f"FDNAME={name}", fds=[fd]) and self._is_taken()

    def drop(self, name: str) -> None:
        """Have the manager close the descriptors that it keeps under a name."""
        self._tell("FDSTOREREMOVE=1", f"FDNAME={name}")

    def _is_taken(self) -> bool:
        """Wait until the manager has done what it was told (sd_notify_barrier(3)); return whether it has."""
        ours, theirs = os.pipe()
        try:
            try:
                sent = self._tell("BARRIER=1", fds=[theirs])
            finally:
                os.close(theirs)
            poll = select.poll()
            poll.register(ours, 0)  # its other end is closed: POLLHUP
            return sent and bool(poll.poll(TAKEN_TIMEOUT * 1000))
        finally:
            os.close(ours)

    def _tell(self, *lines: str, fds: Sequence[int] = ()) -> bool:
        if not self._address:
            return False
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(SEND_TIMEOUT)
                channel.connect(self._address)
                channel.sendmsg(["\n".join(lines).encode()], rights)
        except OSError as exc:
            log.warning("the service manager isn't told %s: %s", lines[0], exc.strerror or exc)
            return False
        return True


def handed_over(environ: Mapping[str, str], pid: int, name: str) -> int | None:
    """Return the newest descriptor that the service manager hands over under a name, None if it hands over none.

    Older ones of that name are closed: they belong to an earlier life.
    """
    if environ.get("LISTEN_PID") != str(pid):
        return None
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found = [FIRST_FD + position for position, one in enumerate(names) if one == name]
    for fd in found[:-1]:
        with suppress(OSError):
            os.close(fd)
    if not found:
        return None
    os.set_inheritable(found[-1], False)
    return found[-1]


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}"
