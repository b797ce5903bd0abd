"""Opening a cache directory: what the ledger says is there, made to agree with the files that are."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from refgenfs.cache.blockmap import PAGE, BlockMap
from refgenfs.cache.disk import can_punch, punch_hole
from refgenfs.cache.ledger import JSONValue, Ledger, LedgerDamaged, open_ledger, set_aside
from refgenfs.cache.shelf import Entry, file_cost
from refgenfs.core.content import BLOCK, ContentId, block_count
from refgenfs.core.errors import CacheError

MARKER = "clean"  # its text is the epoch; it is there only while the cache is closed and in order
STATE = "store/state"
SCRATCH = "scratch"  # files of work under way; nothing in it outlives the daemon

log = logging.getLogger(__name__)

_CONTENT = re.compile(r"[0-9a-f]{40}")


@dataclass(slots=True)
class Image:
    """What a cache directory holds. `excess` is what files take above their charge, in bytes."""

    ledger: Ledger
    entries: dict[ContentId, Entry]
    epoch: int
    clean: bool
    punch: bool
    excess: dict[ContentId, int]


def load_image(directory: Path) -> Image:
    """Open the ledger of a locked cache directory and make its files agree with it; blocking.

    Only summaries are read, and no block map, but those of contents that grew after the ledger was written
    last. Raises CacheError when the directory can't be used.
    """
    try:
        contents = directory / "contents"
        contents.mkdir(mode=0o700, exist_ok=True)
        _empty(directory / SCRATCH)
        punch = can_punch(contents)
        marked = _take_marker(directory)
    except OSError as exc:
        raise CacheError(
            f"the cache directory {directory} can't be used: {exc.strerror}; "
            "set cache.dir to a directory that this user can write"
        ) from exc
    try:
        return _load(directory, marked, punch)
    except LedgerDamaged as exc:
        set_aside(directory / "ledger", exc)
        return _load(directory, marked, punch)


def leave_marker(directory: Path, epoch: int) -> None:
    """Note that the cache is in order; the ledger and the files must be on disk already. Raises OSError."""
    fd = os.open(directory / MARKER, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, str(epoch).encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    _sync(directory)


def read_map(ledger: Ledger, cid: ContentId, size: int, epoch: int) -> BlockMap:
    """Read the block map of a content; blocks of pages that can't be understood are absent. Blocking."""
    blocks = BlockMap(size)
    for key, row in ledger.items(f"blocks/{cid}/"):
        with suppress(ValueError):
            if not blocks.load(int(key.rpartition("/")[2]), row, epoch):
                log.warning("the ledger's entry %s is no page of a block map: passed over", key)
    return blocks


def rows_of(ledger: Ledger, cid: ContentId, size: int) -> Iterator[str]:
    """Return the keys of all that the ledger has of a content of `size` bytes, but for its note."""
    yield f"content/{cid}"
    if block_count(size) <= PAGE:
        yield f"blocks/{cid}/0"
    else:
        yield from list(ledger.keys(f"blocks/{cid}/"))


def summary_of(entry: Entry) -> JSONValue:
    """Return the row of a content."""
    row: dict[str, JSONValue] = {
        "size": entry.size,
        "resident": entry.resident,
        "last_used": round(entry.last_used, 3),
        "pinned": entry.pinned,
    }
    return {**row, "kept": True} if entry.kept else row


def _load(directory: Path, marked: str, punch: bool) -> Image:
    ledger = open_ledger(directory / "ledger", check=not marked)
    try:
        state = ledger.get(STATE)
        epoch = state.get("epoch") if isinstance(state, dict) else None
        epoch = epoch if isinstance(epoch, int) else 0
        clean = marked == str(epoch)
        if not clean:
            epoch += 1
            ledger.set(STATE, {"epoch": epoch, "layout": 1})
        image = Image(ledger, _entries(ledger), epoch, clean, punch, {})
        _agree(directory / "contents", image)
    except CacheError:
        ledger.abort()
        raise
    return image


def _entries(ledger: Ledger) -> dict[ContentId, Entry]:
    found: dict[ContentId, Entry] = {}
    for key, row in ledger.items("content/"):
        entry = _entry(key.rpartition("/")[2], row)
        if entry is not None:
            found[entry.cid] = entry
    return found


def _entry(cid: str, row: JSONValue) -> Entry | None:
    if not isinstance(row, dict):
        return None
    size, resident, used = row.get("size"), row.get("resident"), row.get("last_used")
    if not isinstance(size, int) or not isinstance(resident, int) or not isinstance(used, int | float):
        return None
    if not 0 <= resident <= size:
        return None
    return Entry(cid, size, resident, float(used), row.get("pinned") is True, row.get("kept") is True)


def _agree(contents: Path, image: Image) -> None:
    """Remove files that no row names and rows that have no file; look closer after an unclean stop."""
    files = set()
    with os.scandir(contents) as found:
        for item in found:
            entry = image.entries.get(item.name)
            if entry is None or not entry.resident:
                if _CONTENT.fullmatch(item.name):
                    _remove(item.path)
                else:
                    log.warning("%s is no content of this cache; it is left alone", item.path)
                continue
            if not image.clean:
                facts = item.stat(follow_symlinks=False)
                if facts.st_size != entry.size:
                    _remove(item.path)
                    continue
                _trim(item.path, facts, entry, image)
            files.add(item.name)
    lost = [cid for cid, entry in image.entries.items() if entry.resident and cid not in files]
    for cid in lost:
        entry = image.entries[cid]
        entry.resident = 0
        forget = rows_of(image.ledger, cid, entry.size)
        if entry.pinned:
            image.ledger.apply({f"content/{cid}": summary_of(entry)}, forget)
        else:
            del image.entries[cid]
            image.ledger.apply({}, chain(forget, [f"note/{cid}"]))


def _trim(path: str, facts: os.stat_result, entry: Entry, image: Image) -> None:
    """Give back blocks that were written to a content after the ledger was written last."""
    used = facts.st_blocks * 512
    if used > file_cost(entry.resident) and image.punch:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            for run in read_map(image.ledger, entry.cid, entry.size, image.epoch).absent_runs():
                punch_hole(fd, run.first * BLOCK, len(run) * BLOCK)
            used = os.fstat(fd).st_blocks * 512
        finally:
            os.close(fd)
    if used > file_cost(entry.resident):
        image.excess[entry.cid] = used - file_cost(entry.resident)


def _empty(scratch: Path) -> None:
    """Make the folder for scratch files, and remove what a daemon that was killed left in it. Raises OSError."""
    scratch.mkdir(mode=0o700, exist_ok=True)
    with os.scandir(scratch) as found:
        for item in found:
            _remove(item.path)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError as exc:
        log.warning("%s does not belong in the cache and can't be removed: %s", path, exc.strerror)


def _take_marker(directory: Path) -> str:
    """Return the text of the marker and remove it for good, so that a crash from now on is seen."""
    try:
        text = (directory / MARKER).read_text()
    except FileNotFoundError:
        return ""
    os.unlink(directory / MARKER)
    _sync(directory)
    return text


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def resident_of(blocks: BlockMap, size: int) -> int:
    """Return the resident bytes of a block map."""
    flags = blocks.flags
    count = len(flags) - flags.count(0)
    nbytes = count * BLOCK
    if flags and flags[-1]:
        nbytes -= block_count(size) * BLOCK - size
    return nbytes
