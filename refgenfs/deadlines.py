"""Deadlines of what is waited for, with the error of ours that says what did not come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from refgenfs.core.errors import DeadlineExceeded


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """Raise DeadlineExceeded naming what was waited for when the body takes longer."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise DeadlineExceeded(f"{what} did not come within {seconds:g} s") from None
