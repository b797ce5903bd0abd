"""Putting what was asked for together, out of blocks that have just landed and blocks that are resident."""

from __future__ import annotations

import logging

from refgenfs.cache.shelf import BlockDamaged
from refgenfs.core.content import BLOCK, Run
from refgenfs.reader.uncached import AnyContent

log = logging.getLogger(__name__)


def assemble(content: AnyContent, run: Run, landed: dict[int, memoryview], offset: int, length: int) -> bytes | None:
    """Return the bytes asked for out of landed and resident blocks; None when one is neither. Never awaits."""
    parts: list[bytes | memoryview] = []
    end = offset + length
    for index in range(run.first, run.stop):
        begin, stop = max(offset, index * BLOCK), min(end, (index + 1) * BLOCK)
        block = landed.get(index)
        if block is not None:
            parts.append(block[begin - index * BLOCK : stop - index * BLOCK])
        elif content.missing(Run(index, index + 1)) < 0:
            try:
                parts.append(content.read(begin, stop - begin))
            except BlockDamaged as exc:
                log.warning("%s; fetching it again", exc)
                return None
        else:
            return None
    return b"".join(parts)
