"""Deflate data that is entered at any bit."""

from __future__ import annotations

import random
import zlib

import pytest
from isal import isal_zlib

from refgenfs.core.alignment import align

WINDOW = random.Random(3).randbytes(32768)
DATA = WINDOW[:300] + b"ACGT" * 2000 + WINDOW[-300:]  # reaches 32768 bytes back


def deflate(level: int, strategy: int) -> bytes:
    packer = zlib.compressobj(level, wbits=-15, strategy=strategy, zdict=WINDOW)
    return packer.compress(DATA) + packer.flush()


@pytest.mark.parametrize("bits", range(8))
@pytest.mark.parametrize(
    ("level", "strategy"), [(6, zlib.Z_DEFAULT_STRATEGY), (6, zlib.Z_FIXED), (1, zlib.Z_HUFFMAN_ONLY)]
)
@pytest.mark.parametrize("module", [zlib, isal_zlib])
def test_every_alignment(module: object, bits: int, level: int, strategy: int) -> None:
    before = -bits % 8  # bits of the first byte that are another block's
    body = deflate(level, strategy)
    for junk in (0, (1 << before) - 1, 0b1010101 & ((1 << before) - 1)):
        shifted = (int.from_bytes(body, "little") << before | junk).to_bytes(len(body) + 1, "little")
        inflater = module.decompressobj(wbits=-15, zdict=WINDOW)  # type: ignore[attr-defined]
        assert inflater.decompress(align(bits, shifted[0]) + shifted[1:]) == DATA
        assert inflater.eof


def test_a_stored_block_goes_on_at_its_own_byte() -> None:
    for bits in range(1, 8):
        before = 8 - bits
        # BFINAL 1, BTYPE 00, the rest of the byte (or of the next one) ignored, LEN, NLEN, data
        header = (1 << before).to_bytes(-(-(before + 3) // 8), "little")
        stored = header + b"\x03\x00\xfc\xffabc"
        inflater = zlib.decompressobj(wbits=-15)
        assert inflater.decompress(align(bits, stored[0]) + stored[1:]) == b"abc"
        assert inflater.eof
