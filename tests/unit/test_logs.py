"""The daemon's log: levels that journald understands where it reads, stamps where it does not."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest
import trio
import trio.testing

from refgenfs.core.repeats import BURST
from refgenfs.logs import SUM_UP_EVERY, BoundedHandler, JournalFormatter, LineFormatter, keep_summing_up

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


class Written:
    """A handler on a clock of the test's own, and the lines that it wrote."""

    def __init__(self) -> None:
        self.now = 0.0
        self._stream = io.StringIO()
        self.handler = BoundedHandler(self._stream, lambda: self.now)
        self.handler.setFormatter(LineFormatter("%(levelname)s %(name)s: %(message)s"))
        self.log = logging.Logger("refgenfs.x")  # noqa: LOG001  # of this test alone
        self.log.addHandler(self.handler)

    @property
    def lines(self) -> list[str]:
        return self._stream.getvalue().splitlines()


def test_ten_thousand_failures_a_minute_are_some_lines_and_a_number() -> None:
    written = Written()
    for number in range(10_000):
        written.now = number * 0.006
        written.log.warning("read of %s failed", f"file {number}")
    assert written.lines == [f"WARNING refgenfs.x: read of file {number} failed" for number in range(BURST)]
    written.now = 60.0
    written.handler.sum_up()
    left_out = 10_000 - BURST
    last = "read of file 9999 failed"
    assert written.lines[BURST:] == [
        f"WARNING refgenfs.x: (and {left_out} more like it in the last minute; the last: {last})"
    ]


def test_a_sum_comes_before_what_comes_later() -> None:
    written = Written()
    for _ in range(BURST + 2):
        written.log.warning("again")
    written.now = 61.0
    written.log.error("another")
    assert written.lines[BURST:] == [
        "WARNING refgenfs.x: (and 2 more like it in the last minute; the last: again)",
        "ERROR refgenfs.x: another",
    ]


def test_what_is_left_out_at_the_end_is_told() -> None:
    written = Written()
    for _ in range(BURST + 1):
        written.log.warning("again")
    written.handler.close()
    assert len(written.lines) == BURST + 1


def test_one_kind_of_error_does_not_hide_another() -> None:
    written = Written()
    for _ in range(100):
        written.log.warning("failed: %s", "unavailable", extra={"kind": "OriginUnavailable"})
    written.log.warning("failed: %s", "damaged", extra={"kind": "IntegrityError"})
    assert written.lines[BURST:] == ["WARNING refgenfs.x: failed: damaged"]


def test_who_debugs_gets_every_line() -> None:
    written = Written()
    for number in range(3 * BURST):
        written.log.debug("attempt %d", number)
    assert len(written.lines) == 3 * BURST


def test_a_record_is_one_line_whatever_a_name_holds() -> None:
    written = Written()
    written.log.warning("no file %s", "a\n2026-01-01 CRITICAL refgenfs: forged\x1b[2J\udcff")
    assert written.lines == ["WARNING refgenfs.x: no file a?2026-01-01 CRITICAL refgenfs: forged?[2J?"]


async def test_sums_are_told_while_nothing_else_is_logged(autojump_clock: trio.testing.MockClock) -> None:
    written = Written()
    for _ in range(BURST + 1):
        written.log.warning("again")
    written.now = 60.0
    with trio.move_on_after(2 * SUM_UP_EVERY):
        await keep_summing_up(written.handler)
    assert len(written.lines) == BURST + 1


def test_a_record_that_does_not_fit_its_message_hinders_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    written = Written()
    written.log.warning("%d", "no number")
    written.log.warning("fine")
    assert written.lines == ["WARNING refgenfs.x: fine"]
    assert "no number" in capsys.readouterr().err
