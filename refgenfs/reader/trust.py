"""Taking back what came of an archive that turned out to be wrong, or another one."""

from __future__ import annotations

import logging

from refgenfs.cache.store import Store
from refgenfs.core.content import Run, block_count
from refgenfs.core.errors import CacheError
from refgenfs.reader.archive import Archive
from refgenfs.reader.flights import Carrier
from refgenfs.reader.labels import labelled
from refgenfs.reader.member_table import MemberTable

log = logging.getLogger(__name__)


async def drop_all(archive: Archive, store: Store, *, besides: Carrier | None = None) -> bool:
    """Drop every block of the archive's members, pinned or not, and the member table.

    `besides` is the stream that asks for it. One that runs on goes on storing: what it brings stays tied to its
    object. False when the disk has not taken it: then the ledger goes on to say what the blocks are of.
    """
    # By their labels: a daemon that ended in the middle of a stream did not keep that stream's headers.
    sizes = await labelled(store, lambda name, cid: archive.content_id(name) == cid)
    sizes |= {archive.content_id(name): member.size for name, member in archive.table.members.items()}
    for cid, size in sizes.items():
        try:
            content = await store.content(cid, size)
        except CacheError as exc:
            log.warning("%s: %s can't be opened, so it can't be served either: %s", archive.ref.key, cid, exc)
        else:
            content.drop(Run(0, block_count(size)))
    archive.generation += 1
    archive.dropped(list(sizes))
    running = {stream.validator for stream in archive.streams if stream is not besides} - {""}
    archive.table = MemberTable(validator=next(iter(running), ""))
    # The blocks first: after a power cut they must not be there under the name of what comes now.
    return await store.flush() and await archive.save(store.ledger)  # or its sizes would be believed
