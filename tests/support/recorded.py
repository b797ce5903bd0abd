"""Waiting until what is resident is in the ledger too: a daemon that is killed before has lost it, and may."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from tests.support.mounted import Mounted

PATIENCE = 30.0  # seconds; the ledger is written every two


def wait_until_recorded(mounted: Mounted) -> None:
    """Return once the ledger has every block that is resident, and no more come."""
    deadline = time.monotonic() + PATIENCE
    while (resident := _resident(mounted)) != (recorded := _recorded(mounted.cache)) or not resident:
        assert time.monotonic() < deadline, f"{resident} bytes are resident, {recorded} in the ledger"
        time.sleep(0.1)


def _resident(mounted: Mounted) -> int:
    return sum(row["resident"] for row in mounted.call("cache_info")["contents"])


def _recorded(cache: Path) -> int:
    with closing(sqlite3.connect(f"file:{cache}/ledger/cache.db?mode=ro", uri=True, timeout=20)) as ledger:
        rows = ledger.execute("SELECT value FROM Cache WHERE key LIKE 'content/%'").fetchall()
    return sum(json.loads(value)["resident"] for (value,) in rows)
