"""Opening a cache directory: what the ledger says is there, made to agree with the files that are."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from refgenfs.cache import journal
from refgenfs.cache.blockmap import PAGE, BlockMap
from refgenfs.cache.disk import can_punch, punch_hole
from refgenfs.cache.ledger import LAYOUT, STATE, JSONValue, Ledger, LedgerDamaged, open_ledger
from refgenfs.cache.lock import PASSING
from refgenfs.cache.shelf import Entry, file_cost
from refgenfs.core.content import BLOCK, ContentId, block_count
from refgenfs.core.errors import CacheError

MARKER = "clean"  # its text is the epoch, and the journal's mark; it is there only while the cache is in order

log = logging.getLogger(__name__)

_CONTENT = re.compile(r"[0-9a-f]{40}")
_OURS = frozenset({journal.NAME, f"{journal.NAME}.new"})


@dataclass(slots=True)
class Opened:
    """A cache directory whose ledger is open.

    `refused` says why the disk is not written, and is "" if it is; `full`: because there is no room on it.
    """

    directory: Path
    ledger: Ledger
    clean: bool
    punch: bool
    refused: str = ""
    full: bool = False


@dataclass(slots=True)
class Image:
    """What a cache directory holds. `excess` is what files take above their charge, in bytes."""

    entries: dict[ContentId, Entry]
    excess: dict[ContentId, int] = field(default_factory=dict)


def is_passing(error: BaseException) -> bool:
    """Say whether an error, or what caused it, is of a disk that can't be written for now."""
    texts = ("disk I/O error", "readonly database", "database or disk is full")
    return any(
        (isinstance(cause, OSError) and cause.errno in PASSING) or any(text in str(cause) for text in texts)
        for cause in _causes(error)
    )


def _is_full(error: BaseException) -> bool:
    return any(
        (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)) or "is full" in str(cause)
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def open_directory(directory: Path, refused: CacheError | None = None) -> Opened:
    """Open the ledger of a locked cache directory; blocking. `refused` says why it is not locked for good.

    Where the disk takes no writes for now, what is there is read. Raises CacheError when the directory can't be
    used at all.
    """
    if refused is not None:
        return _open_for_reading(directory, refused)
    try:
        return open_for_writing(directory)
    except CacheError as exc:
        if not is_passing(exc):
            raise
        return _open_for_reading(directory, exc)


def open_for_writing(directory: Path, ledger: Ledger | None = None) -> Opened:
    """Open the ledger, and bump its epoch after an unclean stop; with `ledger`, that one goes on with the disk."""
    try:
        contents = directory / "contents"
        contents.mkdir(mode=0o700, exist_ok=True)
        marked = _take_marker(directory)  # first: a full disk takes that, and nothing may change before it is gone
        punch = can_punch(contents)
    except OSError as exc:
        raise CacheError(
            f"the cache directory {directory} can't be used: {exc.strerror}; "
            "set cache.dir to a directory that this user can write"
        ) from exc
    if ledger is None:
        opened = open_ledger(directory / "ledger", check=not marked)
    else:
        ledger.reopen()
        opened, marked = ledger, ""
    try:
        epoch, _, mark = marked.partition(" ")
        clean = bool(marked) and epoch == str(opened.epoch) and not opened.generation
        if not clean:
            opened.epoch += 1
            opened.apply({STATE: {"epoch": opened.epoch, "layout": LAYOUT}}, iter(()))
        elif mark:
            opened.journal.attach(mark)
    except CacheError:
        if ledger is None:
            opened.abort()
        raise
    return Opened(directory, opened, clean, punch)


def _open_for_reading(directory: Path, reason: CacheError) -> Opened:
    ledger = Ledger(directory / "ledger", readonly=True)
    marked = ""
    with suppress(OSError):
        marked = (directory / MARKER).read_text()
    try:
        ledger.look()
    except CacheError as exc:
        log.warning("nothing of the cache in %s can be read: %s", directory, exc)
    clean = bool(marked) and marked.partition(" ")[0] == str(ledger.epoch)
    if not clean:
        ledger.epoch += 1
    return Opened(directory, ledger, clean, False, str(reason), _is_full(reason))


def read_image(opened: Opened) -> Image:
    """Read what the ledger knows and make the files agree with it; blocking, a second for 100,000 contents.

    Only summaries are read, and no block map, but those of contents that grew after the ledger was written
    last. Raises CacheError.
    """
    generation = opened.ledger.generation
    try:
        return _read_image(opened)
    except LedgerDamaged as exc:
        if opened.refused:
            return Image({})
        opened.ledger.rebuild(exc, generation)
        opened.clean = False
        return _read_image(opened)


def _read_image(opened: Opened) -> Image:
    image = Image(_entries(opened.ledger))
    if not opened.refused:
        _agree(opened, image)
    return image


def leave_marker(directory: Path, epoch: int, mark: str) -> None:
    """Note that the cache is in order; the ledger and the files must be on disk already. Raises OSError."""
    fd = os.open(directory / MARKER, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, f"{epoch} {mark}".encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    _sync(directory)


def read_map(ledger: Ledger, cid: ContentId, size: int) -> BlockMap:
    """Read the block map of a content; blocks of pages that can't be understood are absent. Blocking."""
    blocks = BlockMap(size)
    for key, row in ledger.items(f"blocks/{cid}/"):
        with suppress(ValueError):
            if not blocks.load(int(key.rpartition("/")[2]), row, ledger.epoch):
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
    return {
        "size": entry.size,
        "resident": entry.resident,
        "last_used": round(entry.last_used, 3),
        "pinned": entry.pinned,
    }


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
    return Entry(cid, size, resident, float(used), row.get("pinned") is True)


def _agree(opened: Opened, image: Image) -> None:
    """Remove files that no row names and rows that have no file; look closer after an unclean stop."""
    contents, ledger = opened.directory / "contents", opened.ledger
    files = set()
    with os.scandir(contents) as found:
        for item in found:
            entry = image.entries.get(item.name)
            if entry is None or not entry.resident:
                if _CONTENT.fullmatch(item.name):
                    _remove(item.path)
                elif item.name not in _OURS:
                    log.warning("%s is no content of this cache; it is left alone", item.path)
                continue
            if not opened.clean:
                facts = item.stat(follow_symlinks=False)
                if facts.st_size != entry.size:
                    _remove(item.path)
                    continue
                _trim(item.path, facts, entry, opened, image)
            files.add(item.name)
    lost = [cid for cid, entry in image.entries.items() if entry.resident and cid not in files]
    for cid in lost:
        entry = image.entries[cid]
        entry.resident = 0
        forget = rows_of(ledger, cid, entry.size)
        if entry.pinned:
            ledger.apply({f"content/{cid}": summary_of(entry)}, forget)
        else:
            del image.entries[cid]
            ledger.apply({}, chain(forget, [f"note/{cid}"]))


def _trim(path: str, facts: os.stat_result, entry: Entry, opened: Opened, image: Image) -> None:
    """Give back blocks that were written to a content after the ledger was written last."""
    used = facts.st_blocks * 512
    if used > file_cost(entry.resident) and opened.punch:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            for run in read_map(opened.ledger, entry.cid, entry.size).absent_runs():
                punch_hole(fd, run.first * BLOCK, len(run) * BLOCK)
            used = os.fstat(fd).st_blocks * 512
        finally:
            os.close(fd)
    if used > file_cost(entry.resident):
        image.excess[entry.cid] = used - file_cost(entry.resident)


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
