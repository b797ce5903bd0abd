"""The daemon's log: lines on standard error, with levels that journald understands where it reads them.

A record is one line, whatever a name or an origin's answer holds; only a traceback has more. What is said again and
again is summed up: an origin that fails ten thousand reads a minute must not fill the disk of the log, nor hide what
else happens.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TextIO

import trio

from refgenfs.core.repeats import LeftOut, Repeats

# The levels of syslog(3): journald takes "<3>" at the beginning of a line for one (sd-daemon(3)).
_SYSLOG = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
SUM_UP_EVERY = 5.0  # seconds; how late a sum may come where nothing else is logged
SUMMED_UP = "(and %d more like it in the last minute; the last: %s)"


class LineFormatter(logging.Formatter):
    """One line a record: what can't be printed, as a line's end in a name, becomes a question mark."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        """Return the line of a record, without its traceback."""
        return "".join(char if char.isprintable() else "?" for char in super().formatMessage(record))


class JournalFormatter(LineFormatter):
    """Lines for journald, which stamps them itself; each line of a traceback has the record's level."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        level = _SYSLOG.get(record.levelno, 6)
        return "\n".join(f"<{level}>{line}" for line in super().format(record).splitlines() or [""])


class _Kind(NamedTuple):
    name: str
    level: int
    message: str
    kind: str


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Writes the first lines of each kind and minute, and then how many there were (see `Repeats`).

    Of one kind are lines of one message, whatever is filled in, and of one `kind` where the record has that. Who
    debugs wants all of it: lines of that level are not counted.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._repeats = Repeats(others=_Kind("refgenfs", logging.WARNING, "", ""))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it. Called with the handler's lock held, on any thread; never raises."""
        try:
            now = self._clock()
            self._tell(self._repeats.over(now))
            kind = _Kind(record.name, record.levelno, str(record.msg), str(getattr(record, "kind", "")))
            told = record.levelno <= logging.DEBUG or self._repeats.admit(kind, record.getMessage(), now)
        except Exception:  # noqa: BLE001  # as logging has it: a record that can't be told hinders nobody
            self.handleError(record)
        else:
            if told:
                super().emit(record)

    def sum_up(self) -> None:
        """Say what was left out in the minutes that are over."""
        self.acquire()
        try:
            self._tell(self._repeats.over(self._clock()))
        finally:
            self.release()

    def close(self) -> None:
        """Say what was left out until now: nothing is written any more."""
        self.acquire()
        try:
            self._tell(self._repeats.all())
        finally:
            self.release()
        super().close()

    def _tell(self, sums: list[LeftOut]) -> None:
        for one in sums:
            assert isinstance(one.kind, _Kind)
            told = one.count, one.last
            super().emit(logging.LogRecord(one.kind.name, one.kind.level, __file__, 0, SUMMED_UP, told, None))


def set_up_logging(level: str, environ: Mapping[str, str]) -> BoundedHandler:
    """Log to standard error from `level` (a word of the configuration) on; return what writes there."""
    handler = BoundedHandler(sys.stderr)
    if _is_journal(environ.get("JOURNAL_STREAM", "")):
        handler.setFormatter(JournalFormatter("%(name)s: %(message)s"))
    else:
        handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], force=True)
    set_level(level)
    logging.getLogger("pyfuse3").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    return handler


async def keep_summing_up(handler: BoundedHandler) -> None:
    """Have sums told also while nothing else is logged. Runs until cancelled."""
    while True:
        await trio.sleep(SUM_UP_EVERY)
        handler.sum_up()


def set_level(level: str) -> None:
    """Log from `level` on."""
    logging.getLogger().setLevel(level.upper())


def _is_journal(stream: str) -> bool:
    """Say whether standard error is the stream "device:inode" that journald reads (systemd.exec(5))."""
    try:
        facts = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return stream == f"{facts.st_dev}:{facts.st_ino}"
