"""Processes that tests start, and their end."""

from __future__ import annotations

import subprocess
from typing import Any

PATIENCE = 10.0  # seconds


def end(process: subprocess.Popen[Any]) -> None:
    """Have a process end, by SIGKILL where it takes long; it is gone when this returns."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
