"""What runs in the background of a daemon, for nobody who would hear of its failure."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


async def survive(call: Callable[[], Awaitable[object]]) -> None:
    """Run something in the background; a defect in it is logged, and ends nothing else."""
    try:
        await call()
    except Exception:
        log.exception("something in the background failed unexpectedly")
