"""GZI: where each block of a BGZF file begins (`bgzip -r`). Little-endian: a count, then that many pairs of offsets,
of a block in the file and of what it holds, without the first block's, which are zero."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Sequence

from refgenfs.core.errors import IntegrityError

_ROW = 16  # bytes


class Gzi:
    """The offsets at which blocks begin, ascending."""

    def __init__(self, data: bytes) -> None:
        """Parse a GZI file; raise IntegrityError."""
        count = int.from_bytes(data[:8], "little")
        if len(data) < 8 or len(data) != 8 + count * _ROW:
            raise IntegrityError(f"the GZI says that it has {count} blocks, and that does not fit its size")
        self._offsets: Sequence[int] = memoryview(data)[8:].cast("Q")[::2]
        if sys.byteorder == "big":
            numbers = array("Q", data[8:])
            numbers.byteswap()
            self._offsets = numbers[::2]

    def __len__(self) -> int:
        return len(self._offsets)

    def boundary_after(self, offset: int) -> int | None:
        """Return the smallest offset of a block that is behind `offset`; None for the last block's.

        In a GZI that is not in order, it is one that is behind `offset`, if not the smallest.
        """
        at = bisect_right(self._offsets, offset)
        return self._offsets[at] if at < len(self._offsets) else None
