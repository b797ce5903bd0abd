"""Inflating gzip (RFC 1952) as it arrives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from isal import isal_zlib

from refgenfs.core.errors import ArchiveError
from refgenfs.core.seekindex import LARGEST_PIECE

STEP = LARGEST_PIECE  # bytes inflated at once: bounds what a bomb can take, and is large enough to cost no overhead

GZIP_ERROR = cast(type[Exception], isal_zlib.error)  # which isal's stub calls an instance


class GzipInflater:
    """Inflates gzip (RFC 1952) fed in pieces: one or more gzip members, and zero bytes after the last.

    Raises ArchiveError for data that is no gzip, or that differs from the length or CRC that gzip has of it.
    """

    def __init__(self) -> None:
        self._member: isal_zlib.Decompress | None = None
        self._seen = 0  # members that ended well

    @property
    def ended(self) -> bool:
        """Say whether the last member that began has ended, with the right checksum."""
        return self._seen > 0 and self._member is None

    def inflate(self, data: bytes) -> Iterator[bytes]:
        """Give what the data inflates to, at most `STEP` bytes at once, never empty."""
        full = False
        while data or full:
            if self._member is None:
                if self._seen:
                    data = data.lstrip(b"\0")  # tapes pad; gzip(1) ignores it too
                if not data:
                    return
                self._member = isal_zlib.decompressobj(wbits=31)
            try:
                inflated = self._member.decompress(data, STEP)
            except GZIP_ERROR as exc:
                what = "followed by something else" if self._seen else "damaged"
                raise ArchiveError(f"the archive's gzip data is {what}: {exc}") from exc
            full = len(inflated) == STEP
            data = self._member.unconsumed_tail
            if self._member.eof:
                full, data, self._member = False, self._member.unused_data, None
                self._seen += 1
            if inflated:
                yield inflated
