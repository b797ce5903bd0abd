"""Entering deflate data in the middle of a byte, with an inflater that can begin at whole bytes only.

Deflate packs its elements from the lowest bit of a byte on (RFC 1951, 3.1.1), and a block may begin at any bit. The
bits before it in its byte are replaced by the end of a row of empty blocks, which inflate to nothing and leave the
window alone. The block's own bits keep their places: stored blocks go on at the next whole byte (3.2.4).

An empty block with fixed codes has 10 bits (3.2.6), so a row of them ends at every even bit. One with codes of its
own can have 91 (3.2.7), which makes the odd ones.
"""

from __future__ import annotations

# The order in which code lengths of the code-length code are given (RFC 1951, 3.2.7).
_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)


def align(bits: int, first: int) -> bytes:
    """Return what begins deflate data whose first bits are the `bits` highest of the byte `first`; 0: all of it.

    What follows `first` follows what is returned.
    """
    if not bits:
        return bytes((first,))
    prefix = _PREFIXES[8 - bits]
    return prefix[:-1] + bytes((prefix[-1] | first >> (8 - bits) << (8 - bits),))


def _fixed() -> list[tuple[int, int]]:
    """Return the fields (value, bits) of an empty block with fixed codes: not the last one, and its end."""
    return [(0, 1), (1, 2), (0, 7)]


def _dynamic() -> list[tuple[int, int]]:
    """Return the fields of an empty block with codes of its own, 91 bits in all.

    Lengths are coded by two symbols of one bit: 0 is "length 1", 1 is "zeros" (18, with 7 more bits for 11 to 138).
    They say: 255 literals without a code, codes of one bit for literal 255 and for the end, one for a distance.
    """
    fields = [(0, 1), (2, 2), (0, 5), (0, 5), (len(_ORDER) - 1 - 4, 4)]
    fields += [(int(symbol in (1, 18)), 3) for symbol in _ORDER[:-1]]
    fields += [(1, 1), (138 - 11, 7), (1, 1), (255 - 138 - 11, 7)]
    fields += [(0, 1), (0, 1), (0, 1)]
    return [*fields, (1, 1)]


def _prefix(bits: int) -> bytes:
    """Return the shortest row of empty blocks that ends after `bits` bits of its last byte, 1 to 7."""
    fields = _dynamic() if bits % 2 else []
    while sum(width for _, width in fields) % 8 != bits:
        fields += _fixed()
    value = length = 0
    for field, width in fields:
        value |= field << length
        length += width
    return value.to_bytes((length + 7) // 8, "little")


_PREFIXES = (b"", *(_prefix(bits) for bits in range(1, 8)))
