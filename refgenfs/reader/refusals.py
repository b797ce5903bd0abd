"""What the cache refuses to note: said once, until it takes something again."""

from __future__ import annotations

import logging


class Refusals:
    """Says that something can't be written down or read back, as a warning once, and then for who debugs only.

    Bytes that can't be stored are not for this: the store counts those, and `status` has them.
    """

    __slots__ = ("_failing", "_log")

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._failing = False

    def warning(self, message: str, *values: object) -> None:
        """Say that the cache refused something, and what that means, as `Logger.warning` has it."""
        self._log.log(logging.DEBUG if self._failing else logging.WARNING, message, *values)
        self._failing = True

    def clear(self) -> None:
        """Note that it takes things again."""
        self._failing = False
