"""What the service manager is told: how the daemon is, in one line, and that it is alive."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

from refgenfs.administration.parts import Daemon
from refgenfs.core.units import counted, human_bytes
from refgenfs.notify import ServiceManager

log = logging.getLogger(__name__)

BEAT = 5.0  # seconds between looks; several a watchdog's time
BEATS = 3  # in a watchdog's time, at the least
SHOWN = 3  # sources that are named


class Reporting:
    """Tells a manager how the daemon is, for as long as it runs.

    The watchdog is fed only after a round of trio's loop and one (`probe`) of the thread that talks to origins: a
    daemon of which one of the two hangs serves nobody.
    """

    def __init__(self, manager: ServiceManager, daemon: Daemon, probe: Callable[[], Awaitable[None]]) -> None:
        self._manager = manager
        self._daemon = daemon
        self._probe = probe

    def sentence(self) -> str:
        """Return how the daemon is, in one line for people."""
        d = self._daemon
        genomes = len({id(genome) for genome in d.catalog.snapshot.genomes.values()})
        parts = [
            counted(genomes, "genome"),
            f"cache {human_bytes(d.store.used)} of {human_bytes(d.store.quota)}",
            f"{counted(d.fuse.open_files, 'file')} open",
        ]
        if d.store.uncached:
            parts.append("the cache's disk refuses, reads go on without it")
        return f"serving {d.mountpoint}: " + "; ".join([*parts, *self._away()])

    def _away(self) -> list[str]:
        """Return a clause for each source that is away, and one for those that are too many to name."""
        failing = self._daemon.http.failing
        away = []
        for source in self._daemon.catalog.status():
            since = source.failing_since
            if since is None and source.name in failing:
                since = failing[source.name].when
            if since is not None:
                away.append(f"{source.name} is away since {clock(since, time.time())}")
        return away if len(away) <= SHOWN else [*away[:SHOWN], f"{len(away) - SHOWN} more are away"]

    async def run(self) -> NoReturn:
        """Report until cancelled."""
        watchdog = self._manager.watchdog
        pause = BEAT if watchdog is None else min(BEAT, watchdog / BEATS)
        while self._manager.listens:
            await self._probe()
            if watchdog is not None:
                self._manager.alive()
            self._manager.status(self.sentence())
            await trio.sleep(pause)
        await trio.sleep_forever()


def clock(when: float, now: float) -> str:
    """Return a moment (Unix seconds) as people say it here: the time of today, or a date with it."""
    moment, today = time.localtime(when), time.localtime(now)
    same_day = moment[:3] == today[:3]
    return time.strftime("%H:%M" if same_day else "%d %b %H:%M", moment)
