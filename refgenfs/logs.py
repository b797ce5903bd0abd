"""The daemon's log: lines on standard error, with levels that journald understands where it reads them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

# The levels of syslog(3): journald takes "<3>" at the beginning of a line for one (sd-daemon(3)).
_SYSLOG = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class JournalFormatter(logging.Formatter):
    """Lines for journald, which stamps them itself; each line of a traceback has the record's level."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        level = _SYSLOG.get(record.levelno, 6)
        return "\n".join(f"<{level}>{line}" for line in super().format(record).splitlines() or [""])


def set_up_logging(level: str, environ: Mapping[str, str]) -> None:
    """Log to standard error from `level` (a word of the configuration) on."""
    handler = logging.StreamHandler(sys.stderr)
    if _is_journal(environ.get("JOURNAL_STREAM", "")):
        handler.setFormatter(JournalFormatter("%(name)s: %(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], force=True)
    set_level(level)
    logging.getLogger("pyfuse3").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


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
