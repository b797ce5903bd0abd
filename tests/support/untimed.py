"""Time that is not a test's own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def untimed() -> Iterator[None]:
    """Stop the clock of pytest-timeout, which is the process's interval timer.

    For what is built once, perhaps by another lane while this one waits, and has a deadline of its own.
    """
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
