"""CRAI: which slices of a CRAM file have which references (CRAMv3, 12). Text, gzipped: six numbers a line."""

from __future__ import annotations

from array import array
from bisect import bisect_right

from refgenfs.core.errors import IntegrityError
from refgenfs.core.htsget.bgzf import inflate

MAX_CRAI = 128 << 20  # inflated bytes; a whole genome's is 5 MB
UNMAPPED = -1  # the reference of reads that are placed nowhere
_SEVERAL = -2  # an index of old does not say which references such a slice has
_COLUMNS = 6  # reference, start, span, the container's offset, the slice's in it, and its bytes
_PIECE = 1 << 20  # bytes that become Python's integers at a time


class CraiIndex:
    """A parsed CRAI: one row a slice and reference, as columns."""

    def __init__(self, data: bytes) -> None:
        """Parse a CRAI file, gzipped or not; raise IntegrityError."""
        if data[:2] == b"\x1f\x8b":
            data = inflate(data, MAX_CRAI, "CRAI")
        if len(data) > MAX_CRAI:
            raise IntegrityError(f"the CRAI holds more than {MAX_CRAI} bytes")
        if data and not data.endswith(b"\n"):
            data += b"\n"
        numbers, at = array("q"), 0
        while at < len(data):
            end = data.find(b"\n", min(at + _PIECE, len(data) - 1)) + 1
            _append(numbers, data[at:end])
            at = end
        self._references, self._starts, self._spans, self._offsets = (numbers[i::_COLUMNS] for i in range(4))
        if any(offset < 0 for offset in self._offsets) or any(span < 0 for span in self._spans):
            raise IntegrityError("the CRAI has a container or a span of less than nothing")
        self._containers = sorted(set(self._offsets))

    @property
    def first(self) -> int | None:
        """Where the first container is; None where there is none."""
        return self._containers[0] if self._containers else None

    def containers(self, number: int, first: int, end: int | None) -> list[int]:
        """Return the offsets of the containers with slices that may have reads of a reference from `first` (0-based)
        up to, not including, `end`; UNMAPPED has no positions."""
        found = set()
        for at, reference in enumerate(self._references):
            if reference == _SEVERAL or (
                reference == number
                and (
                    number == UNMAPPED
                    or (first + 1 <= self._starts[at] + self._spans[at] and (end is None or end >= self._starts[at]))
                )
            ):
                found.add(self._offsets[at])
        return sorted(found)

    def container_after(self, offset: int) -> int | None:
        """Return the offset of the next container, which is strictly greater; None for the last one's.

        Several slices may share one container, so that is not that of the next row.
        """
        at = bisect_right(self._containers, offset)
        return self._containers[at] if at < len(self._containers) else None


def _append(numbers: array[int], lines: bytes) -> None:
    """Append the numbers of whole lines, six a line."""
    try:
        for line in lines.splitlines():
            row = line.split(b"\t")
            if len(row) != _COLUMNS:
                raise IntegrityError(f"a line of the CRAI has {len(row)} columns, not {_COLUMNS}")
            numbers.extend(map(int, row))
    except (ValueError, OverflowError) as exc:
        raise IntegrityError("the CRAI is no table of numbers") from exc
