"""Which blocks of a content are resident, and their checksums: in memory, and as pages of the ledger."""

from __future__ import annotations

import re
import sys
from array import array
from base64 import b64decode, b64encode
from itertools import compress

from refgenfs.cache.ledger import JSONValue
from refgenfs.core.content import BLOCK, Run, block_count

PAGE = 1024  # blocks a page of the ledger: at most 5.7 KB of text, rewritten when one of them changes

ABSENT, RESIDENT, DOUBTFUL = 0, 1, 2  # doubtful: resident, and not checked since an unclean stop
_DIGITS = bytes([0x30, 0x31, 0x31]) + bytes(253)  # flags as binary digits
_DOUBTS = bytes([0x30, 0x30, 0x31]) + bytes(253)
_RESIDENT_RUN = re.compile(rb"[^\0]+")
_ABSENT_RUN = re.compile(rb"\0+")
_FLAGS = bytes(digit == 0x31 for digit in range(256))


class BlockMap:
    """One flag byte and one CRC32 a block. `dirty` names the pages that the ledger does not have yet."""

    __slots__ = ("crcs", "dirty", "flags")

    def __init__(self, size: int) -> None:
        count = block_count(size)
        self.flags = bytearray(count)
        self.crcs = array("I", [0]) * count  # with no copy of it meanwhile
        self.dirty: set[int] = set()

    def mark(self, index: int, flag: int, crc: int) -> None:
        """Set a block's flag and checksum."""
        self.flags[index] = flag
        self.crcs[index] = crc
        self.dirty.add(index // PAGE)

    def resident_runs(self, first: int, stop: int) -> list[Run]:
        """Return the runs of resident blocks between two indexes, in order."""
        return [Run(*found.span()) for found in _RESIDENT_RUN.finditer(self.flags, first, stop)]

    def absent_runs(self) -> list[Run]:
        """Return the runs of blocks that are not resident, in order."""
        return [Run(*found.span()) for found in _ABSENT_RUN.finditer(self.flags)]

    def encode(self, page: int, epoch: int) -> JSONValue:
        """Return a page as JSON, or None when nothing in it is resident."""
        first = page * PAGE
        flags = self.flags[first : first + PAGE]
        digits = bytes(flags).translate(_DIGITS)
        bits = int(digits, 2)
        if not bits:
            return None
        crcs = self.crcs[first : first + PAGE]
        if flags.find(ABSENT) >= 0:
            crcs = array("I", compress(crcs, flags))
        if sys.byteorder == "big":
            crcs.byteswap()
        row: dict[str, JSONValue] = {
            "epoch": epoch,
            "block": BLOCK,
            "bits": _pack(bits),
            "crc": b64encode(crcs).decode(),
        }
        if doubts := int(bytes(flags).translate(_DOUBTS), 2):
            row["doubt"] = _pack(doubts)
        return row

    def load(self, page: int, row: JSONValue, epoch: int) -> bool:
        """Take a page that `encode` made; return False, and take nothing, if it is no such page.

        Blocks of an earlier epoch are doubtful: the store was not closed cleanly since they were written.
        """
        first = page * PAGE
        count = min(PAGE, len(self.flags) - first)
        try:
            if not isinstance(row, dict) or count <= 0 or page < 0 or row["block"] != BLOCK:
                return False  # a page of blocks of another size says nothing of these
            flags = _unpack(row["bits"], count)
            doubts = _unpack(row["doubt"], count) if "doubt" in row else bytes(count)
            crcs = array("I", b64decode(str(row["crc"]), validate=True))
            kept = row["epoch"] == epoch
        except (KeyError, ValueError, TypeError):
            return False
        if sys.byteorder == "big":
            crcs.byteswap()
        if len(crcs) != sum(flags):
            return False
        if kept and len(crcs) == count and not any(doubts):
            self.flags[first : first + count] = flags
            self.crcs[first : first + count] = crcs
            return True
        found = iter(crcs)
        for offset, flag in enumerate(flags):
            if flag:
                self.flags[first + offset] = RESIDENT if kept and not doubts[offset] else DOUBTFUL
                self.crcs[first + offset] = next(found)
        return True


def _pack(bits: int) -> str:
    return b64encode(bits.to_bytes(-(-bits.bit_length() // 8), "big")).decode()


def _unpack(text: object, count: int) -> bytes:
    """Return `count` flags, 0 or 1, of a packed number; raise ValueError if there are more."""
    bits = int.from_bytes(b64decode(str(text), validate=True), "big")
    if bits >> count:
        raise ValueError("too many blocks")
    return f"{bits:0{count}b}".encode().translate(_FLAGS)
