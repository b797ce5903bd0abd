"""diskcache without pickle.

diskcache pickles what it does not know, and unpickles what it finds: whoever can write the database could run
code. `TextDisk` has neither: keys and values are text, anything else found in the database is refused.
"""

from __future__ import annotations

from typing import Any

import diskcache

TRUNCATE_WAL = 256 * 1024  # a log longer than this is copied into the database and cut at once
_CHECKPOINT_PAGES = 32
_SETTINGS: dict[str, Any] = {
    "eviction_policy": "none",
    "cull_limit": 0,
    "statistics": 0,
    "tag_index": 0,
    "sqlite_auto_vacuum": 1,  # the file shrinks when rows go: it counts against the quota
    "sqlite_cache_size": -1024,  # KiB a connection
    "sqlite_mmap_size": 0,
    "sqlite_journal_mode": "wal",
    "sqlite_journal_size_limit": TRUNCATE_WAL,
    "sqlite_wal_autocheckpoint": _CHECKPOINT_PAGES,
    "sqlite_synchronous": 1,
}


def open_database(directory: str) -> diskcache.Cache:
    """Open the database in a directory, or make it. Raises what sqlite and diskcache raise."""
    return diskcache.Cache(directory, timeout=30, disk=TextDisk, **_SETTINGS)


class RefusedValue(ValueError):
    """A key or a value in the database is not text."""


class TextDisk(diskcache.Disk):  # type: ignore[misc]
    """Text keys and text values inside the database: no files, no bytes, no pickle."""

    def put(self, key: object) -> tuple[str, bool]:
        """Return the row key of `key`; raise RefusedValue unless it is a str."""
        if type(key) is not str:
            raise RefusedValue(f"the ledger's keys are text, not {type(key).__name__}")
        return key, True

    def get(self, key: object, raw: object) -> str:
        """Return the key of a row; raise RefusedValue unless it is text."""
        if not raw or type(key) is not str:
            raise RefusedValue("a key in the ledger is not text")
        return key

    def store(self, value: object, read: bool, key: object = None) -> tuple[int, int, None, str]:
        """Return the columns of a row for `value`; raise RefusedValue unless it is a str."""
        if read or type(value) is not str:
            raise RefusedValue(f"the ledger's values are text, not {type(value).__name__}")
        return 0, diskcache.core.MODE_RAW, None, value

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> str:
        """Return the text of a row; raise RefusedValue for anything else."""
        if read or mode != diskcache.core.MODE_RAW or filename or type(value) is not str:
            raise RefusedValue("a value in the ledger is not text")
        return value

    def remove(self, file_path: object) -> None:
        """Remove no file: a value has none, whatever a row says."""
