"""The daemon's log: levels that journald understands where it reads, stamps where it does not."""

from __future__ import annotations

import logging
import subprocess
import sys

from refgenfs.logs import JournalFormatter

SCRIPT = """
import logging, os
from refgenfs.logs import set_up_logging
environ = {}
if KNOWN:
    facts = os.fstat(2)
    environ["JOURNAL_STREAM"] = f"{facts.st_dev}:{facts.st_ino}"
set_up_logging("info", environ)
log = logging.getLogger("refgenfs.x")
log.debug("not told")
log.info("told")
log.warning("a failure")
"""


def logged(known: bool) -> list[str]:
    """Return the lines of a process whose standard error is journald's, or is not."""
    script = SCRIPT.replace("KNOWN", str(known))
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, check=True, text=True, timeout=60)
    return done.stderr.splitlines()


def test_journald_gets_levels_and_no_stamps() -> None:
    assert logged(True) == ["<6>refgenfs.x: told", "<4>refgenfs.x: a failure"]


def test_others_get_stamps_and_words() -> None:
    told, failure = logged(False)
    assert told.endswith("INFO refgenfs.x: told")
    assert failure.endswith("WARNING refgenfs.x: a failure")
    assert told[:4].isdigit()


def test_a_stream_of_somebody_else_is_not_journald() -> None:
    """JOURNAL_STREAM is inherited: what was redirected since goes to a file or a pipe."""
    script = SCRIPT.replace("if KNOWN:", "if True:").replace("{facts.st_ino}", "{facts.st_ino + 1}")
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, check=True, text=True, timeout=60)
    assert not done.stderr.startswith("<")


def test_each_line_of_a_traceback_has_the_level() -> None:
    info = (ValueError, ValueError("a defect"), None)
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed", (), info)
    lines = JournalFormatter("%(message)s").format(record).splitlines()
    assert len(lines) > 1
    assert all(line.startswith("<3>") for line in lines)
