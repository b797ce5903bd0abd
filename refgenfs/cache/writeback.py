"""Block maps on their way to the ledger: bytes first, then what says that they are there."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import trio

from refgenfs.cache.content import Content
from refgenfs.cache.disk import disk_use
from refgenfs.cache.ledger import JSONValue, Ledger, LedgerDamaged
from refgenfs.cache.opened import OpenContents
from refgenfs.cache.shelf import Shelf, file_cost
from refgenfs.cache.startup import rows_of, summary_of
from refgenfs.core.content import ContentId
from refgenfs.core.errors import CacheError

STRAY_AFTER = 300.0  # seconds after which a block that was written and never committed is given back
USED_STEP = 600.0  # seconds by which a content's last use may be wrong in the ledger while it is only read


@dataclass(slots=True)
class _Batch:
    """What one flush writes; a page without a value is forgotten."""

    values: dict[str, JSONValue] = field(default_factory=dict)
    forget: dict[ContentId, int] = field(default_factory=dict)  # sizes
    files: list[tuple[ContentId, int, int]] = field(default_factory=list)  # content, size, version
    pages: list[tuple[Content, set[int]]] = field(default_factory=list)
    unlisted: set[ContentId] = field(default_factory=set)
    growth: int = 0
    pins: dict[str, JSONValue] = field(default_factory=dict)


class Writeback:
    """Writes what changed, and measures what the directory takes."""

    def __init__(self, shelf: Shelf, ledger: Ledger, contents: OpenContents) -> None:
        self._shelf = shelf
        self._ledger = ledger
        self._contents = contents
        self._busy = trio.Lock()

    @property
    def pending(self) -> bool:
        """Say whether anything is not in the ledger yet."""
        shelf = self._shelf
        return bool(shelf.dirty or shelf.removed or shelf.unlisted or shelf.pin_rows)

    async def flush(self) -> bool:
        """Write all changes there are now (see `Store.flush`); False if they could not be written."""
        written = False
        async with self._busy:
            with trio.CancelScope(shield=True):  # what was gathered is written, or is a change again
                written = await self._flush()
        return written

    async def _flush(self) -> bool:
        self._settle()
        if self._shelf.errors.barred:
            return False
        generation = self._ledger.generation
        batch = self._gather()
        try:
            measured = await trio.to_thread.run_sync(self._persist, batch)
        except CacheError as exc:
            self._take_back(batch)
            if isinstance(exc, LedgerDamaged):
                await self._contents.mend(exc, generation)
            else:
                self._shelf.errors.note(str(exc))
            return False
        except BaseException:  # a defect of ours
            self._take_back(batch)
            raise
        if batch.values:
            self._shelf.errors.clear()
        self._shelf.account.growth -= batch.growth
        self.measure()
        for cid, version, nbytes in measured:
            entry = self._shelf.entries.get(cid)
            if entry is not None and entry.version == version:
                self._shelf.set_excess(cid, max(0, nbytes - file_cost(entry.resident)))
        return True

    def measure(self) -> None:
        """Measure what is not in content files."""
        account, directory = self._shelf.account, self._shelf.directory
        ledger, journal = self._ledger.size_bytes(), self._ledger.journal
        account.ledger = ledger + _tree_use(directory / "ledger.damaged")
        account.journal = journal.bound + max(journal.size, ledger)  # and once more while it is written anew
        account.log = self._ledger.wal_bytes()
        account.directory = disk_use(directory / "contents")

    def last_uses(self) -> dict[str, JSONValue]:
        """Return the rows of contents whose last use the ledger does not know."""
        return {
            f"content/{entry.cid}": summary_of(entry)
            for entry in self._shelf.entries.objects()
            if entry.last_used != entry.stored_used
        }

    def _gather(self) -> _Batch:
        shelf = self._shelf
        batch = _Batch(forget=shelf.removed, growth=shelf.account.growth, pins=shelf.pin_rows)
        batch.values.update(shelf.pin_rows)
        shelf.pin_rows = {}
        listed = (*shelf.removed, *shelf.unlisted)
        touched = {entry for cid in listed if (entry := shelf.entries.get(cid)) is not None}
        for content in self._contents.all():
            entry = content.entry
            if entry.resident and entry.last_used - entry.stored_used > USED_STEP:
                touched.add(entry)
        for cid, content in shelf.dirty.items():
            entry, blocks = content.entry, content.map
            pages, blocks.dirty = blocks.dirty, set()
            if shelf.entries.get(cid) is entry:
                for page in pages:
                    batch.values[f"blocks/{cid}/{page}"] = blocks.encode(page, self._ledger.epoch)
                batch.files.append((cid, entry.size, entry.version))
                batch.pages.append((content, pages))
                touched.add(entry)
        for entry in touched:
            batch.values[f"content/{entry.cid}"] = summary_of(entry)
            entry.stored_used = entry.last_used
            shelf.noted.pop(entry.cid, None)  # from now on it is forgotten with its content
        batch.unlisted, shelf.unlisted = shelf.unlisted, set()
        shelf.removed = {}
        shelf.dirty = {}
        return batch

    def _take_back(self, batch: _Batch) -> None:
        """Make everything of a batch that was not written a change again."""
        shelf = self._shelf
        shelf.removed.update(batch.forget)
        shelf.unlisted |= batch.unlisted
        shelf.pin_rows = {**batch.pins, **shelf.pin_rows}
        for content, pages in batch.pages:
            content.map.dirty |= pages
            shelf.dirty[content.id] = content

    def _persist(self, batch: _Batch) -> list[tuple[ContentId, int, int]]:
        """Write a batch, the bytes first; in a thread. Returns content, version and disk use of each file."""
        measured = []
        for cid, size, version in batch.files:
            try:
                with self._shelf.handles.borrow(cid, size) as fd:
                    os.fdatasync(fd)
                    measured.append((cid, version, os.fstat(fd).st_blocks * 512))
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise CacheError(f"content {cid} can't be brought to the disk: {exc.strerror}") from exc
        forget = [key for cid, size in batch.forget.items() for key in rows_of(self._ledger, cid, size)]
        gone = [cid for cid in batch.forget if f"content/{cid}" not in batch.values and cid not in self._shelf.noted]
        forget += [f"note/{cid}" for cid in gone]
        forget += [key for key, value in batch.values.items() if value is None]
        values = {key: value for key, value in batch.values.items() if value is not None}
        self._ledger.apply(values, iter(forget))
        noted = self._shelf.noted
        if back := {f"note/{cid}": noted[cid] for cid in gone if cid in noted}:  # written while they were forgotten
            self._ledger.apply(back, iter(()))
        self._ledger.settle()
        return measured

    def _settle(self) -> None:
        shelf = self._shelf
        for cid, content in list(shelf.unsettled.items()):
            if content.settle(shelf.clock() - STRAY_AFTER):
                shelf.unsettled.pop(cid, None)


def _tree_use(path: Path) -> int:
    try:
        return disk_use(path) + sum(disk_use(item.path) for item in os.scandir(path))
    except OSError:
        return 0
