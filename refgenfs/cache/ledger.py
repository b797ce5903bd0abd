"""The ledger: small JSON values that survive a restart, on diskcache.

Its rows are kept twice, in the database and in the journal beside the contents: a database that is damaged, gone
or of another version is made anew from the journal. Where the disk takes no writes, the rows that are there are
read, and new ones stay in memory until it does.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import diskcache

from refgenfs.cache.disk import disk_use
from refgenfs.cache.journal import Journal, replay
from refgenfs.cache.textdisk import TRUNCATE_WAL, open_database
from refgenfs.core.errors import CacheError

JSONValue = None | bool | int | float | str | list["JSONValue"] | dict[str, "JSONValue"]

STATE = "store/state"
LAYOUT = 1  # of the rows; a ledger of another one is made anew
WAL_BOUND = 512 * 1024  # what the write-ahead log and its index are allowed for in the quota
_PAGE = 4096
_BATCH_ROWS = 32  # rows a transaction at most, and
_BATCH_CHARS = 64 * 1024  # about this many characters, so that one transaction's log stays small
_KEEP_DAMAGED = 256 * 1024  # a damaged database larger than this is removed: it counts against the quota
_KEEP_UNWRITTEN = 16 << 20  # characters of rows that are kept in memory while the disk takes none

_RANGE = "FROM Cache WHERE key >= ? AND key < ? AND key > ? AND raw = 1 AND typeof(key) = 'text'"
_KEYS = f"SELECT key, NULL {_RANGE} ORDER BY key LIMIT 4096"
_ITEMS = f"SELECT key, CASE mode WHEN 1 THEN value END {_RANGE} ORDER BY key LIMIT 4096"
# what sqlite says of a database that is not ours, or not any more
_NOT_OURS = ("malformed", "no such table", "no such column", "has no column", "not a database", "unsupported file")

log = logging.getLogger(__name__)


class Ledger:
    """JSON values by text key, safe to use from any thread.

    `admit` is called with a number of bytes before a value of the caller's is written, and raises CacheError
    when the quota has no room for it. Every method raises CacheError when the database can't be used, and
    LedgerDamaged when it is no ledger; `rebuild` then makes it anew.

    With `readonly`, the disk is not written: `reopen` ends that.
    """

    def __init__(
        self, directory: Path, *, admit: Callable[[int], None] | None = None, readonly: bool = False
    ) -> None:
        self._directory = directory
        self._path = directory / diskcache.core.DBNAME
        self.admit = admit
        self.epoch = 0  # counts the unclean ends: what was written in an earlier one is doubtful
        self.generation = 0  # counts how often it was made anew
        self.journal = Journal(directory.parent / "contents")
        self._writing = threading.RLock()
        self._view = ""  # with `readonly`: how sqlite may open what is on the disk; "" if nothing can be read
        self._unwritten: dict[str, str | None] | None = {} if readonly else None
        self._cache: Any = None
        if not readonly:
            with _explained(directory):
                self._open()

    def _open(self) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._directory.chmod(0o700)
        try:
            self._cache = open_database(str(self._directory))
        except (sqlite3.Error, diskcache.Timeout, OSError):
            raise
        except Exception as exc:  # what diskcache makes of settings that are not its own
            raise LedgerDamaged(f"the ledger in {self._directory} is damaged: {exc!r}") from exc

    @property
    def readonly(self) -> bool:
        """Whether new rows stay in memory."""
        return self._unwritten is not None

    # Rows

    def get(self, key: str) -> JSONValue | None:
        """Return the value of a key, or None. A value that is not JSON text is dropped, never interpreted."""
        try:
            with _explained(self._directory):
                text = self._cache.get(key) if self._unwritten is None else self._kept(key)
            return None if text is None else _decode(text)
        except ValueError as exc:
            log.warning("the ledger's entry %s is not JSON text (%s): dropped", key, exc)
            self.delete(key)
            return None

    def _kept(self, key: str) -> str | None:
        unwritten = self._unwritten or {}
        if key in unwritten:
            return unwritten[key]
        return next((text for found, text in self._rows(key, _ITEMS) if found == key and isinstance(text, str)), None)

    def set(self, key: str, value: JSONValue) -> None:
        """Write one value."""
        self.set_many({key: value})

    def delete(self, key: str) -> None:
        """Forget a key, if it is known."""
        self._commit({key: None})

    def set_many(self, values: Mapping[str, JSONValue]) -> None:
        """Write many values, a few rows a transaction, in the order of the mapping."""
        texts = {key: json.dumps(value, separators=(",", ":")) for key, value in values.items()}
        if self.admit is not None and self._unwritten is None:
            self.admit(sum(_growth(key, text) for key, text in texts.items()))
        self._write(texts.items())

    def apply(self, values: Mapping[str, JSONValue], forget: Iterator[str]) -> None:
        """Forget these keys, then write these values: the store's own, for which it has made room."""
        batch: dict[str, str | None] = {}
        for key in forget:
            batch[key] = None
            if len(batch) >= 256:
                self._commit(batch)
                batch = {}
        self._commit(batch)
        self._write((key, json.dumps(value, separators=(",", ":"))) for key, value in values.items())

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

    # The database

    def size_bytes(self) -> int:
        """Return the disk use of the database without its write-ahead log."""
        return disk_use(self._path)

    def wal_bytes(self) -> int:
        """Return the disk use of the write-ahead log and its index."""
        return disk_use(Path(f"{self._path}-wal")) + disk_use(Path(f"{self._path}-shm"))

    def check(self) -> None:
        """Raise LedgerDamaged if the database is damaged; reads all of it."""
        with self._connect() as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchall()
        if found != [("ok",)]:
            raise LedgerDamaged(f"the ledger in {self._directory} is damaged: {found}")

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the database, on disk, and cut it to nothing."""
        with self._writing, self._connect("rw") as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def settle(self) -> None:
        """Bring what was written to the disk, and the journal up to date."""
        with self._writing, _explained(self._directory):
            if self._unwritten is not None:
                return
            if self.journal.stale:
                try:
                    self.journal.rewrite(self._rows("", _ITEMS))
                except FileNotFoundError:
                    return  # the cache directory was taken away
                except OSError as exc:
                    log.warning("the journal of the ledger can't be written anew: %s", exc.strerror)
            self.journal.sync()
            _sync_file(Path(f"{self._path}-wal"))

    def rebuild(self, reason: Exception, generation: int) -> None:
        """Set the database aside and make it anew from the journal, unless that was done since `generation`.

        What it holds then is doubtful: it has a new epoch.
        """
        with self._writing, _explained(self._directory):
            if self.generation != generation or self._unwritten is not None:
                return
            self.abort()
            set_aside(self._directory, reason)
            self._restore()

    def restore_missing(self) -> None:
        """Fill an empty database from the journal; blocking. Nothing happens where there is none."""
        with self._writing, _explained(self._directory):
            self.abort()
            self._restore()

    def _restore(self) -> None:
        fresh = self._directory.with_name(f"{self._directory.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        made = Ledger(fresh)
        made._write(replay(self.journal.path.parent))
        state = made.get(STATE)
        known = state.get("epoch") if isinstance(state, dict) else 0
        epoch = max(self.epoch, known if isinstance(known, int) else 0, int(time.time())) + 1
        made.apply({STATE: {"epoch": epoch, "layout": LAYOUT}}, iter(()))
        made.checkpoint()
        made.abort()
        shutil.rmtree(self._directory, ignore_errors=True)
        os.replace(fresh, self._directory)
        self._open()
        self.epoch = epoch
        self.generation += 1
        self.journal.close()
        self.journal.stale = True
        count = sum(1 for _ in self.keys("content/"))
        log.warning("the ledger in %s was made anew from its journal: %d contents", self._directory, count)

    def look(self) -> None:
        """Find out how what is on the disk can be read, with `readonly`. Raises CacheError if it can't be."""
        try:
            self._look("ro")
        except CacheError:
            self._look("ro&immutable=1")  # without its log, which sqlite may not be able to open

    def _look(self, view: str) -> None:
        self._view = view
        try:
            self.check()
            self.take_state()
        except CacheError:
            self._view = ""
            raise

    def take_state(self) -> bool:
        """Take the epoch from the rows; False if there is none. Raises LedgerDamaged for another version's."""
        state = self.get(STATE)
        if not isinstance(state, dict):
            return False
        if state.get("layout") != LAYOUT or not isinstance(epoch := state.get("epoch"), int):
            raise LedgerDamaged(f"the ledger in {self._directory} is of another version: {state.get('layout')!r}")
        self.epoch = max(self.epoch, epoch)
        return True

    def reopen(self) -> None:
        """Use the disk again, whatever is there now, and write what was kept in memory."""
        with self._writing, _explained(self._directory):
            missing = not self._path.exists()
            try:
                self._open()
                self.check()
            except LedgerDamaged as exc:
                self.abort()
                set_aside(self._directory, exc)
                self._open()
                missing = True
            unwritten, self._unwritten = self._unwritten or {}, None
            try:
                if missing:
                    self._restore()
                self.take_state()
                self._write(unwritten.items())
            except BaseException:
                self._unwritten = unwritten
                self.abort()
                raise
            self.generation += 1
            self._view = ""

    def close(self) -> None:
        """Close the database; what was written is on disk when this returns."""
        if self._unwritten is None:
            self.settle()
            self.checkpoint()
        self.abort()

    def abort(self) -> None:
        """Close the database as it is, without a word."""
        with suppress(Exception):
            self.journal.close()
            self._cache.close()

    def _write(self, texts: Iterable[tuple[str, str | None]]) -> None:
        batch: dict[str, str | None] = {}
        chars = 0
        for key, text in texts:
            batch[key] = text
            chars += len(text or "")
            if len(batch) >= _BATCH_ROWS or chars >= _BATCH_CHARS:
                self._commit(batch)
                batch, chars = {}, 0
        self._commit(batch)

    def _commit(self, batch: Mapping[str, str | None]) -> None:
        if not batch:
            return
        with self._writing, _explained(self._directory):
            if self._unwritten is not None:
                self._unwritten.update(batch)
                if sum(len(text or "") for text in self._unwritten.values()) > _KEEP_UNWRITTEN:
                    self._unwritten.clear()  # all of it can be asked for again
                return
            with self._cache.transact():
                for key, text in batch.items():
                    if text is None:
                        self._cache.delete(key)
                    else:
                        self._cache.set(key, text)
            self.journal.append(batch.items())
            if disk_use(Path(f"{self._path}-wal")) > TRUNCATE_WAL:
                self.checkpoint()

    def _rows(self, prefix: str, query: str) -> Iterator[tuple[str, object]]:
        """Read rows by keyset from diskcache's table: a row at a time costs a query and a transaction."""
        stop, last = prefix + "\U0010ffff", ""
        unwritten = dict(self._unwritten or {})
        if self._unwritten is None or self._view:
            with self._connect() as connection:
                while rows := connection.execute(query, (prefix, stop, last)).fetchall():
                    yield from ((key, text) for key, text in rows if key not in unwritten)
                    last = rows[-1][0]
        yield from ((key, text) for key, text in unwritten.items() if text is not None and prefix <= key < stop)

    @contextmanager
    def _connect(self, mode: str = "ro") -> Iterator[sqlite3.Connection]:
        with _explained(self._directory):
            mode = self._view or mode
            uri = f"file:{quote(str(self._path))}?mode={mode}"
            with closing(sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None)) as connection:
                connection.execute("PRAGMA cache_size = -1024")
                connection.execute("PRAGMA synchronous = NORMAL")
                yield connection


class LedgerDamaged(CacheError):
    """The ledger's database is no database, a broken one, or of another version."""


def set_aside(directory: Path, reason: Exception) -> None:
    """Move a damaged ledger to `<name>.damaged` beside it; one is kept, and only a small one."""
    aside = directory.with_name(f"{directory.name}.damaged")
    log.warning("%s; it is set aside as %s", reason, aside)
    with _explained(directory):
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.replace(directory, aside)
        if disk_use(aside / diskcache.core.DBNAME) > _KEEP_DAMAGED:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Turn what sqlite, diskcache and the system raise into CacheError."""
    try:
        yield
    except (sqlite3.OperationalError, diskcache.Timeout, OSError) as exc:
        if any(text in str(exc) for text in _NOT_OURS):
            raise LedgerDamaged(f"the ledger in {directory} is damaged: {exc}") from exc
        raise CacheError(f"the cache's ledger in {directory} can't be used: {exc or type(exc).__name__}") from exc
    except (sqlite3.Error, TypeError) as exc:
        raise LedgerDamaged(f"the ledger in {directory} is damaged: {exc}") from exc


def _decode(text: str) -> JSONValue:
    value: JSONValue = json.loads(text)
    return value


def _growth(key: str, text: str) -> int:
    """Return a bound of what writing a value may add to the database, its log, and its journal, in bytes."""
    return 4 * len(text.encode()) + 8 * len(key) + 2 * _PAGE


def _sync_file(path: Path) -> None:
    with suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)
