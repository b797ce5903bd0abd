"""Opening a cache directory: what the ledger says is there, made to agree with the files that are."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import stat
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from refgenfs.cache import journal
from refgenfs.cache.blockmap import PAGE, BlockMap
from refgenfs.cache.disk import can_punch, punch_hole, remove_file, sync_directory
from refgenfs.cache.entries import Entry, EntryRow, Table
from refgenfs.cache.ledger import LAYOUT, STATE, JSONValue, Ledger, LedgerDamaged, set_aside
from refgenfs.cache.lock import PASSING
from refgenfs.cache.pinrows import Pin, read_pins
from refgenfs.cache.shelf import LARGEST, file_cost
from refgenfs.core.content import BLOCK, ContentId, block_count
from refgenfs.core.errors import CacheError

MARKER = "clean"  # its text is the epoch, and the journal's mark; it is there only while the cache is in order
SCRATCH = "scratch"  # files of work under way; nothing in it outlives the daemon

log = logging.getLogger(__name__)

_END_OF_TIME = 1e11  # Unix seconds; what was used after it was not
_CONTENT = re.compile(r"[0-9a-f]{40}")
_OURS = frozenset({journal.NAME, f"{journal.NAME}.new"})


@dataclass(slots=True)
class Opened:
    """A cache directory whose ledger is open.

    `refused` says why the disk is not written, and is "" if it is; `full`: because there is no room on it.
    `clean`: it was closed in order, and no file came or went since.
    """

    directory: Path
    ledger: Ledger
    clean: bool
    punch: bool
    refused: str = ""
    full: bool = False


@dataclass(slots=True)
class Image:
    """What a cache directory holds. `excess` is what files take above their charge, in bytes; `charged`: in all.

    `agreed`: the files were looked at, and those that no row names removed.
    """

    table: Table
    charged: int = 0
    agreed: bool = False
    excess: dict[ContentId, int] = field(default_factory=dict)
    pins: list[Pin] = field(default_factory=list)


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


def open_ledger(directory: Path, *, check: bool) -> Ledger:
    """Open the ledger in `directory`; one that is damaged, gone, or of another version is made from its journal.

    With `check`, the whole database is looked through first.
    """
    try:
        ledger = _open_checked(directory, check)
        missing = ledger.get(STATE) is None
    except LedgerDamaged as exc:
        set_aside(directory, exc)
        ledger, missing = Ledger(directory), True
    if missing and journal.has_rows(directory.parent / "contents"):
        ledger.restore_missing()
    return ledger


def _open_checked(directory: Path, check: bool) -> Ledger:
    ledger = Ledger(directory)
    try:
        if check:
            ledger.check()
        ledger.take_state()
    except BaseException:
        ledger.abort()
        raise
    return ledger


def open_for_writing(directory: Path, ledger: Ledger | None = None) -> Opened:
    """Open the ledger, and bump its epoch after an unclean stop; with `ledger`, that one goes on with the disk."""
    try:
        contents = directory / "contents"
        contents.mkdir(mode=0o700, exist_ok=True)
        changed = os.stat(contents).st_mtime_ns
        marked = _take_marker(directory)  # first: a full disk takes that, and nothing may change before it is gone
        _empty(directory / SCRATCH)
        punch = can_punch(contents)
        shutil.rmtree(directory / "ledger.new", ignore_errors=True)  # of a kill while it was made anew
    except OSError as exc:
        raise CacheError(
            f"the cache directory {directory} can't be used: {exc.strerror}; "
            "set cache.dir to a directory that this user can write; a unit needs ReadWritePaths= for it"
        ) from exc
    if ledger is None:
        opened = open_ledger(directory / "ledger", check=not marked)
    else:
        ledger.reopen()
        opened, marked = ledger, ""
    try:
        epoch, mark, left = [*marked.split(" "), "", "", ""][:3]
        # a directory that changed since holds files of somebody else's, perhaps: all of it is checked when it is read
        clean = bool(marked) and epoch == str(opened.epoch) and not opened.generation and left == str(changed)
        if not clean:
            opened.epoch += 1
            opened.apply({STATE: {"epoch": opened.epoch, "layout": LAYOUT}}, iter(()))
        else:
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


def read_image(opened: Opened, now: float, early: Container[ContentId] = ()) -> Image:
    """Read what the ledger knows and make the files agree with it; blocking, a second for 100,000 contents.

    What was used later than `now` (the clock was ahead then) counts as used just before it. Contents that are in
    `early`, by the time that it comes to them, are in use already: their files and rows are left alone.

    Only summaries are read, and no block map, but those of contents that grew after the ledger was written
    last. Raises CacheError.
    """
    generation = opened.ledger.generation
    try:
        return _read_image(opened, now, early)
    except LedgerDamaged as exc:
        if opened.refused:
            return Image(Table())
        opened.ledger.rebuild(exc, generation)
        opened.clean = False
        return _read_image(opened, now, early)


def _read_image(opened: Opened, now: float, early: Container[ContentId]) -> Image:
    image = Image(_table(opened.ledger))
    image.pins = read_pins(opened.ledger, image.table.flagged())
    image.table.set_pinned(cid for pin in image.pins for cid in pin.files.values())
    if not opened.refused and not opened.clean:
        _agree(opened, image, early)
        image.agreed = True
    image.table.sort()
    if later := image.table.bound_uses(now):
        opened.ledger.apply({f"content/{row.cid}": summary_of(row) for row in later}, iter(()))
    image.charged = sum(file_cost(image.table.residents[position]) for position in image.table.positions())
    return image


def leave_marker(directory: Path, epoch: int, mark: str) -> None:
    """Note that the cache is in order; the ledger and the files must be on disk already. Raises OSError."""
    changed = os.stat(directory / "contents").st_mtime_ns
    fd = os.open(directory / MARKER, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, f"{epoch} {mark} {changed}".encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_directory(directory)


def read_map(ledger: Ledger, cid: ContentId, size: int) -> BlockMap:
    """Read the block map of a content; blocks of pages that can't be understood are absent. Blocking."""
    blocks = BlockMap(size)
    for key, row in ledger.items(f"blocks/{cid}/"):
        with suppress(ValueError):
            if not blocks.load(int(key.rpartition("/")[2]), row, ledger.epoch):
                log.warning("the ledger's entry %s is no page of a block map: passed over", key)
    return blocks


def read_early(ledger: Ledger, contents: Path, cid: ContentId, size: int) -> tuple[EntryRow, BlockMap] | None:
    """Read a content's row and map alone; blocking. None where all has to be read to know what it is.

    That is: nothing is resident of it, or under another size, or its file is not what was left there. Raises
    CacheError.
    """
    row = read_row(ledger, cid)
    if row is None or not row.resident or row.size != size:
        return None
    try:
        facts = os.lstat(contents / cid)
    except OSError:
        return None
    if not stat.S_ISREG(facts.st_mode) or facts.st_size != size:
        return None
    blocks = read_map(ledger, cid, size)
    return (row, blocks) if any(blocks.flags) else None


def read_row(ledger: Ledger, cid: ContentId) -> EntryRow | None:
    """Read the row of one content; None where there is none that can be understood. Blocking. Raises CacheError."""
    table = Table()
    for _, row in ledger.items(f"content/{cid}"):
        _add(table, cid, row)
    return table.row(0) if len(table) else None


def rows_of(ledger: Ledger, cid: ContentId, size: int) -> Iterator[str]:
    """Return the keys of all that the ledger has of a content of `size` bytes, but for its note."""
    yield f"content/{cid}"
    if block_count(size) <= PAGE:
        yield f"blocks/{cid}/0"
    else:
        yield from list(ledger.keys(f"blocks/{cid}/"))


def summary_of(entry: Entry | EntryRow) -> JSONValue:
    """Return the row of a content."""
    row: dict[str, JSONValue] = {
        "size": entry.size,
        "resident": entry.resident,
        "last_used": round(entry.last_used, 3),
        "pinned": entry.pinned,
    }
    return {**row, "kept": True} if entry.kept else row


def _table(ledger: Ledger) -> Table:
    table = Table()
    for key, row in ledger.items("content/"):
        if not _add(table, key.rpartition("/")[2], row):
            log.warning("the ledger's entry %s is no content: passed over", key)
    return table


def _add(table: Table, cid: str, row: JSONValue) -> bool:
    if not isinstance(row, dict):
        return False
    size, resident, used = row.get("size"), row.get("resident"), row.get("last_used")
    if not isinstance(size, int) or not isinstance(resident, int) or not isinstance(used, int | float):
        return False
    if not 0 <= resident <= size <= LARGEST or not 0 <= used <= _END_OF_TIME:  # neither is true of NaN
        return False
    pinned, kept = row.get("pinned") is True, row.get("kept") is True
    return table.add(cid, size, resident, float(used), pinned, kept)


def _agree(opened: Opened, image: Image, early: Container[ContentId]) -> None:
    """Remove files that no row names, or that are of another size, and rows that have no file."""
    table, seen = image.table, bytearray(len(image.table))
    with os.scandir(opened.directory / "contents") as found:
        for item in found:
            position = table.find(item.name)
            if item.name in early:  # whoever reads it finds out what is wrong with it
                continue
            if position < 0 or not table.residents[position]:
                if _CONTENT.fullmatch(item.name):
                    _remove(item.path)
                elif item.name not in _OURS:
                    log.warning("%s is no content of this cache; it is left alone", item.path)
                continue
            if not item.is_file(follow_symlinks=False):
                _remove(item.path)
                continue
            facts = item.stat(follow_symlinks=False)
            if facts.st_size != table.sizes[position]:
                _remove(item.path)
                continue
            if facts.st_blocks * 512 > file_cost(table.residents[position]):
                _trim(item.path, table.row(position), opened, image)
            seen[position] = 1
    for position in list(table.positions()):
        if table.residents[position] and not seen[position] and table.row(position).cid not in early:
            _forget_lost(opened.ledger, table, position)


def _forget_lost(ledger: Ledger, table: Table, position: int) -> None:
    """Write down that nothing of a content is resident any more."""
    table.residents[position] = 0
    lost = table.row(position)
    forget = rows_of(ledger, lost.cid, lost.size)
    if lost.pinned:
        ledger.apply({f"content/{lost.cid}": summary_of(lost)}, forget)
    else:
        table.take(position)
        ledger.apply({}, chain(forget, [f"note/{lost.cid}"]))


def _trim(path: str, row: EntryRow, opened: Opened, image: Image) -> None:
    """Give back blocks that were written to a content after the ledger was written last."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        if opened.punch:
            for run in read_map(opened.ledger, row.cid, row.size).absent_runs():
                punch_hole(fd, run.first * BLOCK, len(run) * BLOCK)
        used = os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)
    if used > file_cost(row.resident):
        image.excess[row.cid] = used - file_cost(row.resident)


def _empty(scratch: Path) -> None:
    """Make the folder for scratch files, and remove what a daemon that was killed left in it. Raises OSError."""
    scratch.mkdir(mode=0o700, exist_ok=True)
    with os.scandir(scratch) as found:
        for item in found:
            _remove(item.path)


def _remove(path: str) -> None:
    try:
        remove_file(path)
    except OSError as exc:
        log.warning("%s does not belong in the cache and can't be removed: %s", path, exc.strerror)


def _take_marker(directory: Path) -> str:
    """Return the text of the marker and remove it for good, so that a crash from now on is seen."""
    try:
        text = (directory / MARKER).read_text()
    except FileNotFoundError:
        return ""
    os.unlink(directory / MARKER)
    sync_directory(directory)
    return text


def resident_of(blocks: BlockMap, size: int) -> int:
    """Return the resident bytes of a block map."""
    flags = blocks.flags
    count = len(flags) - flags.count(0)
    nbytes = count * BLOCK
    if flags and flags[-1]:
        nbytes -= block_count(size) * BLOCK - size
    return nbytes
