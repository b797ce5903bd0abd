"""Inflating one span of an archive, on its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from isal import isal_zlib

from refgenfs.core.alignment import align
from refgenfs.core.errors import ArchiveError, IntegrityError
from refgenfs.core.seekindex import Span, span_digest
from refgenfs.fetch.inflating import GZIP_ERROR, STEP

_PIECE = 128 * 1024  # packed bytes an inflater is given at once: it copies what it leaves
_TRAILER = 8  # bytes after the deflate data of a gzip member: CRC-32 and length (RFC 1952, 2.3)


def inflate_span(span: Span, window: bytes, packed: bytes | memoryview) -> Iterator[memoryview]:
    """Give exactly the `out_stop - out_start` unpacked bytes of a span, in pieces of at most `STEP`, never empty.

    `packed` is what the archive has from `packed_start` to `packed_stop`. Its digest, which covers the window too, is
    checked before the iterator is returned: IntegrityError. What passes it and can't be inflated, since the index was
    made of something else, raises ArchiveError while it is read; there are never more bytes than promised.
    """
    if len(packed) != span.packed_stop - span.packed_start:
        wanted = span.packed_stop - span.packed_start
        raise IntegrityError(f"span {span.index} has {len(packed)} packed bytes instead of {wanted}")
    digest = span_digest(window)
    digest.update(packed)
    if digest.digest() != span.digest:
        raise IntegrityError(f"span {span.index} has another digest than the seek index says")
    return _inflate(span, window, memoryview(packed))


def _inflate(span: Span, window: bytes, packed: memoryview) -> Iterator[memoryview]:
    left = span.out_stop - span.out_start
    member = isal_zlib.decompressobj(wbits=-15, zdict=window) if window else isal_zlib.decompressobj(wbits=-15)
    inflater: isal_zlib.Decompress | None = member
    skip = _TRAILER  # after the gzip member that the span begins in; others are taken with theirs
    rest = (packed[at : at + _PIECE] for at in range(1, len(packed), _PIECE))
    for piece in chain((align(span.bits, packed[0]),), rest):
        data, full = bytes(piece), False
        while (data or full) and left:
            if inflater is None:
                skipped = min(skip, len(data))
                skip, data = skip - skipped, data[skipped:]
                data = data if skip else data.lstrip(b"\0")
                if not data:
                    break
                inflater = isal_zlib.decompressobj(wbits=31)
            room = min(STEP, left)
            try:
                inflated = inflater.decompress(data, room)
            except GZIP_ERROR as exc:
                raise ArchiveError(f"span {span.index} can't be inflated: {exc}") from exc
            full, data = len(inflated) == room, inflater.unconsumed_tail
            if inflater.eof:
                full, data, inflater = False, inflater.unused_data, None
            left -= len(inflated)
            if inflated:
                yield memoryview(inflated)
    if left:
        raise ArchiveError(f"span {span.index} ends {left} bytes early")
