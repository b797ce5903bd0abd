"""Indices of a whole genome's reads and variants, made from a seed: as large as real ones, with offsets that fit."""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import Iterator, Sequence
from functools import cache

from refgenfs.core.htsget.bgzf import EOF_MARKER, deflate

# GRCh38's chromosomes, 1 to 22, X, Y.
LENGTHS = (
    248_956_422, 242_193_529, 198_295_559, 190_214_555, 181_538_259, 170_805_979, 159_345_973, 145_138_636,
    138_394_717, 133_797_422, 135_086_622, 133_275_309, 114_364_328, 107_043_718, 101_991_189, 90_338_345, 83_257_441,
    80_373_285, 58_617_616, 64_444_167, 46_709_983, 50_818_468, 156_040_895, 57_227_415,
)  # fmt: skip
NAMES = (*(f"chr{number}" for number in range(1, 23)), "chrX", "chrY")
WINDOW = 14  # bits of a position in a bin of the lowest level
LOWEST = 4681  # the first of these bins
METADATA = 37450
_ABOVE = ((585, 3), (73, 6), (9, 9), (1, 12), (0, 15))  # first bin of each level above, and bits more


@cache
def make_bai(seed: int = 1) -> tuple[bytes, int]:
    """Return a BAI of about 10 MB, and the size that its BAM would have."""
    references, size = _references(seed)
    return b"BAI\x01" + struct.pack("<i", len(LENGTHS)) + references + struct.pack("<Q", 0), size


@cache
def make_tbi(seed: int = 2) -> tuple[bytes, int]:
    """Return a TBI of a whole genome's variants, packed, and the size that its VCF would have."""
    references, size = _references(seed)
    names = b"".join(name.encode() + b"\0" for name in NAMES)
    head = struct.pack("<8i", len(LENGTHS), 2, 1, 2, 0, ord("#"), 0, len(names))
    return deflate(b"TBI\x01" + head + names + references) + EOF_MARKER, size


def bam_header() -> bytes:
    """Return the blocks of a BAM's header."""
    text = b"BAM\x01" + struct.pack("<ii", 0, len(NAMES))
    for name, length in zip(NAMES, LENGTHS, strict=True):
        text += struct.pack("<i", len(name) + 1) + name.encode() + b"\0" + struct.pack("<i", length)
    return deflate(text)


def vcf_header() -> bytes:
    """Return the blocks of a VCF's header."""
    lines = [f"##contig=<ID={name},length={length}>\n" for name, length in zip(NAMES, LENGTHS, strict=True)]
    return deflate(
        "".join(["##fileformat=VCFv4.3\n", *lines, "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"]).encode()
    )


def regions(count: int, length: int, seed: int = 3) -> Iterator[tuple[str, int, int]]:
    """Return random intervals (0-based, half-open) of this length."""
    dice = random.Random(seed)
    for _ in range(count):
        number = dice.randrange(len(NAMES))
        start = dice.randrange(LENGTHS[number] - length)
        yield NAMES[number], start, start + length


def _references(seed: int) -> tuple[bytes, int]:
    dice, out, offset = random.Random(seed), [], 1 << 16
    for length in LENGTHS:
        bins: dict[int, list[int]] = {}
        linear = array("Q")
        for window in range((length >> WINDOW) + 1):
            linear.append(offset << 16)
            for _ in range(dice.choice((1, 1, 2))):
                start, offset = offset, offset + dice.randrange(10_000, 200_000)
                bins.setdefault(LOWEST + window, []).extend((start << 16, offset << 16 | dice.randrange(60_000)))
            for first, bits in _ABOVE:
                if dice.random() < 0.6 / (1 << bits // 3):
                    bins.setdefault(first + (window >> bits), []).extend((offset << 16 | 5, offset << 16 | 90))
        out.append(_packed(bins, linear, dice))
    return b"".join(out), offset + (1 << 16)


def _packed(bins: dict[int, list[int]], linear: array[int], dice: random.Random) -> bytes:
    """Return one reference, its bins in no order, as htslib writes them."""
    rows: list[tuple[int, Sequence[int]]] = list(bins.items())
    dice.shuffle(rows)
    span = min(chunks[0] for _, chunks in rows), max(chunks[-1] for _, chunks in rows)
    rows.append((METADATA, (*span, 1000, 0)))
    packed = [struct.pack("<i", len(rows))]
    packed += [struct.pack(f"<Ii{len(chunks)}Q", bin_, len(chunks) // 2, *chunks) for bin_, chunks in rows]
    return b"".join([*packed, struct.pack("<i", len(linear)), struct.pack(f"<{len(linear)}Q", *linear)])
