"""The ledger: small JSON values that survive a restart, on diskcache.

diskcache pickles what it does not know, and unpickles what it finds: whoever can write the database could run
code. `TextDisk` has neither: keys and values are text, anything else found in the database is refused.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import diskcache

from refgenfs.core.errors import CacheError

JSONValue = None | bool | int | float | str | list["JSONValue"] | dict[str, "JSONValue"]

WAL_BOUND = 512 * 1024  # what the write-ahead log and its index are allowed for in the quota
_PAGE = 4096
_CHECKPOINT_PAGES = 32
_TRUNCATE_WAL = 256 * 1024  # a log longer than this is copied into the database and cut at once
_BATCH_ROWS = 32  # rows a transaction at most, and
_BATCH_CHARS = 64 * 1024  # about this many characters, so that one transaction's log stays small
_KEEP_DAMAGED = 256 * 1024  # a damaged database larger than this is removed: it counts against the quota
_SETTINGS: dict[str, Any] = {
    "eviction_policy": "none",
    "cull_limit": 0,
    "statistics": 0,
    "tag_index": 0,
    "sqlite_auto_vacuum": 1,  # the file shrinks when rows go: it counts against the quota
    "sqlite_cache_size": -1024,  # KiB a connection
    "sqlite_mmap_size": 0,
    "sqlite_journal_mode": "wal",
    "sqlite_journal_size_limit": _TRUNCATE_WAL,
    "sqlite_wal_autocheckpoint": _CHECKPOINT_PAGES,
    "sqlite_synchronous": 1,
}

_RANGE = "FROM Cache WHERE key >= ? AND key < ? AND key > ? AND raw = 1 AND typeof(key) = 'text'"
_KEYS = f"SELECT key, NULL {_RANGE} ORDER BY key LIMIT 4096"
_ITEMS = f"SELECT key, CASE mode WHEN 1 THEN value END {_RANGE} ORDER BY key LIMIT 4096"

log = logging.getLogger(__name__)


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


class Ledger:
    """JSON values by text key, safe to use from any thread.

    `admit` is called with a number of bytes before a value of the caller's is written, and raises CacheError
    when the quota has no room for it. Every method raises CacheError when the database can't be used.
    """

    def __init__(self, directory: Path, *, admit: Callable[[int], None] | None = None) -> None:
        self._directory = directory
        self._path = directory / diskcache.core.DBNAME
        self.admit = admit
        self._writing = threading.RLock()
        with _explained(directory):
            directory.mkdir(mode=0o700, exist_ok=True)
            directory.chmod(0o700)
            self._cache = diskcache.Cache(str(directory), timeout=30, disk=TextDisk, **_SETTINGS)

    def get(self, key: str) -> JSONValue | None:
        """Return the value of a key, or None. A value that is not JSON text is dropped, never interpreted."""
        try:
            with _explained(self._directory):
                text = self._cache.get(key)
            return None if text is None else _decode(text)
        except ValueError as exc:
            log.warning("the ledger's entry %s is not JSON text (%s): dropped", key, exc)
            self.delete(key)
            return None

    def set(self, key: str, value: JSONValue) -> None:
        """Write one value."""
        self.set_many({key: value})

    def delete(self, key: str) -> None:
        """Forget a key, if it is known."""
        with self._writing, _explained(self._directory):
            self._cache.delete(key)

    def set_many(self, values: Mapping[str, JSONValue]) -> None:
        """Write many values, a few rows a transaction, in the order of the mapping."""
        texts = {key: json.dumps(value, separators=(",", ":")) for key, value in values.items()}
        if self.admit is not None:
            self.admit(sum(_growth(key, text) for key, text in texts.items()))
        self._write(texts)

    def apply(self, values: Mapping[str, JSONValue], forget: Iterator[str]) -> None:
        """Forget these keys, then write these values: the store's own, for which it has made room."""
        batch: dict[str, str | None] = {}
        for key in forget:
            batch[key] = None
            if len(batch) >= 256:
                self._commit(batch)
                batch = {}
        self._commit(batch)
        self._write({key: json.dumps(value, separators=(",", ":")) for key, value in values.items()})

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Return the keys that begin with `prefix`, in order."""
        for key, _ in self._rows(prefix, _KEYS):
            yield key

    def items(self, prefix: str) -> Iterator[tuple[str, JSONValue]]:
        """Return the keys that begin with `prefix` and their values; what is not JSON text is passed over."""
        for key, text in self._rows(prefix, _ITEMS):
            if isinstance(text, str):
                try:
                    yield key, _decode(text)
                except ValueError:
                    log.warning("the ledger's entry %s is not JSON text: passed over", key)

    def size_bytes(self) -> int:
        """Return the disk use of the database without its write-ahead log."""
        return _disk_use(self._path)

    def wal_bytes(self) -> int:
        """Return the disk use of the write-ahead log and its index."""
        return _disk_use(Path(f"{self._path}-wal")) + _disk_use(Path(f"{self._path}-shm"))

    def check(self) -> None:
        """Raise CacheError if the database is damaged; reads all of it."""
        with self._connect() as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchall()
        if found != [("ok",)]:
            raise LedgerDamaged(f"the ledger in {self._directory} is damaged: {found}")

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the database, on disk, and cut it to nothing."""
        with self._writing, self._connect("rw") as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Close the database; what was written is on disk when this returns."""
        self.checkpoint()
        self._cache.close()

    def abort(self) -> None:
        """Close the database as it is, without a word."""
        with suppress(Exception):
            self._cache.close()

    def _write(self, texts: Mapping[str, str]) -> None:
        batch: dict[str, str | None] = {}
        chars = 0
        for key, text in texts.items():
            batch[key] = text
            chars += len(text)
            if len(batch) >= _BATCH_ROWS or chars >= _BATCH_CHARS:
                self._commit(batch)
                batch, chars = {}, 0
        self._commit(batch)

    def _commit(self, batch: Mapping[str, str | None]) -> None:
        if not batch:
            return
        with self._writing, _explained(self._directory):
            with self._cache.transact():
                for key, text in batch.items():
                    if text is None:
                        self._cache.delete(key)
                    else:
                        self._cache.set(key, text)
            if _disk_use(Path(f"{self._path}-wal")) > _TRUNCATE_WAL:
                self.checkpoint()

    def _rows(self, prefix: str, query: str) -> Iterator[tuple[str, object]]:
        """Read rows by keyset from diskcache's table: a row at a time costs a query and a transaction."""
        stop, last = prefix + "\U0010ffff", ""
        with self._connect() as connection:
            while rows := connection.execute(query, (prefix, stop, last)).fetchall():
                yield from rows
                last = rows[-1][0]

    @contextmanager
    def _connect(self, mode: str = "ro") -> Iterator[sqlite3.Connection]:
        with _explained(self._directory):
            uri = f"file:{quote(str(self._path))}?mode={mode}"
            with closing(sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None)) as connection:
                connection.execute("PRAGMA cache_size = -1024")
                connection.execute("PRAGMA synchronous = NORMAL")
                yield connection


class LedgerDamaged(CacheError):
    """The ledger's database is no database, or a broken one."""


def open_ledger(directory: Path, *, check: bool) -> Ledger:
    """Open the ledger in `directory`, or an empty one in place of a damaged one.

    With `check`, the whole database is looked through first.
    """
    try:
        ledger = Ledger(directory)
        if check:
            ledger.check()
        return ledger
    except LedgerDamaged as exc:
        set_aside(directory, exc)
        return Ledger(directory)


def set_aside(directory: Path, reason: Exception) -> None:
    """Move a damaged ledger to `<name>.damaged` beside it; one is kept, and only a small one."""
    aside = directory.with_name(f"{directory.name}.damaged")
    log.warning("%s; it is set aside as %s, and what the cache held is forgotten", reason, aside)
    with _explained(directory):
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(directory, aside)
        if _disk_use(aside / diskcache.core.DBNAME) > _KEEP_DAMAGED:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Turn what sqlite, diskcache and the system raise into CacheError."""
    try:
        yield
    except (sqlite3.OperationalError, diskcache.Timeout, OSError) as exc:
        if "malformed" in str(exc):
            raise LedgerDamaged(f"the ledger in {directory} is damaged: {exc}") from exc
        raise CacheError(f"the cache's ledger in {directory} can't be used: {exc or type(exc).__name__}") from exc
    except (sqlite3.Error, TypeError) as exc:
        raise LedgerDamaged(f"the ledger in {directory} is damaged: {exc}") from exc


def _decode(text: str) -> JSONValue:
    value: JSONValue = json.loads(text)
    return value


def _growth(key: str, text: str) -> int:
    """Return a bound of what writing a value may add to the database and to its log, in bytes."""
    return 2 * len(text.encode()) + 4 * len(key) + 2 * _PAGE


def _disk_use(path: Path) -> int:
    try:
        return os.stat(path).st_blocks * 512
    except OSError:
        return 0
