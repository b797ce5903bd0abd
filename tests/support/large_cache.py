"""A cache of very many contents, made without fetching a byte: `python -m tests.support.large_cache DIR COUNT`."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from refgenfs.cache.blockmap import RESIDENT, BlockMap
from refgenfs.cache.content import checksum
from refgenfs.cache.ledger import LAYOUT, STATE, Ledger
from refgenfs.cache.startup import leave_marker
from refgenfs.core.content import BLOCK, block_length, content_id

SIZE = 80 * BLOCK  # of a content: 100,000 of them are 1 TB


def content_of(number: int) -> str:
    """Return the identity of a content of such a cache."""
    return content_id("large", "digest", f"file-{number}")


def make_large_cache(directory: Path, count: int, *, size: int = SIZE, clean: bool = True) -> None:
    """Make a closed cache of `count` contents of `size` zero bytes each, all resident, in files that are all hole."""
    contents = directory / "contents"
    contents.mkdir(mode=0o700, parents=True)
    directory.chmod(0o700)
    for number in range(count):
        fd = os.open(contents / content_of(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(fd, size)
        os.close(fd)
    ledger = Ledger(directory / "ledger")
    ledger.set(STATE, {"epoch": 1, "layout": LAYOUT})
    with sqlite3.connect(directory / "ledger" / "cache.db") as connection:
        connection.executemany(
            "INSERT INTO Cache (key, raw, store_time, access_time, access_count, size, mode, value)"
            " VALUES (?, 1, 0, 0, 0, 0, 1, ?)",
            _rows(count, size),
        )
    connection.close()
    ledger.epoch = 1
    ledger.settle()
    mark = ledger.journal.mark
    ledger.close()
    if clean:
        leave_marker(directory, 1, mark)


def _rows(count: int, size: int) -> Iterator[tuple[str, str]]:
    blocks = BlockMap(size)
    for index in range(len(blocks.flags)):
        blocks.mark(index, RESIDENT, checksum(bytes(block_length(size, index))))
    pages = {page: json.dumps(blocks.encode(page, 1)) for page in blocks.dirty}
    now = time.time()
    for number in range(count):
        cid = content_of(number)
        row = {"size": size, "resident": size, "last_used": round(now - count + number, 3), "pinned": False}
        yield f"content/{cid}", json.dumps(row)
        yield f"note/{cid}", json.dumps({"key": f"g{number // 20}/asset:default", "name": f"file-{number}"})
        for page, text in pages.items():
            yield f"blocks/{cid}/{page}", text


if __name__ == "__main__":
    make_large_cache(Path(sys.argv[1]), int(sys.argv[2]))
