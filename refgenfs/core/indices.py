"""Indices that tools look for beside their data: their names, and of which data there can be one.

Pure: names and first bytes in, decisions out. The names are those that htslib, samtools and GATK try; the rules of
which index is made of what are theirs too: `samtools faidx`, `dict` and `index`, `tabix`, `bcftools index`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from refgenfs.core.errors import IntegrityError
from refgenfs.core.layout import DERIVED
from refgenfs.core.regions import shown_slice

_PACKED = (".gz", ".bgz")
_PLAIN_FASTA = (".fa", ".fasta", ".fna", ".ffn", ".faa", ".fas")
_PACKED_FASTA = tuple(f"{ending}{packed}" for ending in _PLAIN_FASTA for packed in _PACKED)
_FASTA = (*_PLAIN_FASTA, *_PACKED_FASTA)
# What tabix calls a preset, by the endings that files of that kind have.
_TABIX = {
    "vcf": tuple(f".vcf{packed}" for packed in _PACKED),
    "gff": tuple(f".{ending}{packed}" for ending in ("gff", "gff3", "gtf") for packed in _PACKED),
    "bed": tuple(f".bed{packed}" for packed in _PACKED),
}
BIN_LIMIT = 1 << 29  # bases: what BAI and TBI can index (SAM specification, section 5.1.3)
LARGEST_HEAD = 64 << 20  # bytes, unpacked, of a header that is read for the lengths of its references

BESIDE = "beside"  # x.bam.bai
INSTEAD = "instead"  # x.bai


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of index: `ending` is that of its name, `data` are the endings of files that can have one.

    With `replaces`, an index may have the data's name with its ending replaced, too; `usual` is what its tools write.
    """

    ending: str
    data: tuple[str, ...]
    replaces: bool = False
    usual: str = BESIDE


KINDS = {
    kind.ending: kind
    for kind in (
        Kind(".fai", _FASTA),
        Kind(".gzi", _PACKED_FASTA),
        Kind(".dict", _FASTA, replaces=True, usual=INSTEAD),
        Kind(".bai", (".bam",), replaces=True),
        Kind(".crai", (".cram",), replaces=True),
        Kind(".csi", (".bam", ".bcf", *_TABIX["vcf"])),
        Kind(".tbi", (*_TABIX["vcf"], *_TABIX["gff"], *_TABIX["bed"])),
    )
}
_DATA = tuple({ending for kind in KINDS.values() for ending in kind.data})


@dataclass(frozen=True, slots=True)
class Wish:
    """What a name may mean: an index of this kind, of the data called `base`; `spelling` is BESIDE or INSTEAD."""

    kind: Kind
    base: str
    spelling: str


def wishes(name: str) -> Iterator[Wish]:
    """Return what a name may be the index of, in the order in which that is to be looked for."""
    stem, dot, ending = name.rpartition(".")
    kind = KINDS.get(dot + ending)
    if kind is None or not stem:
        return
    if stem.endswith(kind.data):
        yield Wish(kind, stem, BESIDE)
    elif kind.replaces:
        for data in kind.data:
            yield Wish(kind, stem + data, INSTEAD)


def can_have_index(name: str) -> bool:
    """Say whether a file with this name may have an index of any kind."""
    return name.endswith(_DATA)


def is_fasta(name: str) -> bool:
    """Say whether a file has a name of a FASTA."""
    return name.endswith(_FASTA)


def is_packed(name: str) -> bool:
    """Say whether a file has the name of one that is compressed."""
    return name.endswith(_PACKED)


def spell(base: str, kind: Kind, spelling: str) -> str:
    """Return the name of an index of the data called `base`."""
    if spelling == INSTEAD:
        ending = max((one for one in kind.data if base.endswith(one)), key=len, default="")
        return base.removesuffix(ending) + kind.ending
    return base + kind.ending


def rivals(wish: Wish) -> tuple[str, ...]:
    """Return the names of files that are listed where an index is there already, and tools will find it."""
    kinds = [wish.kind]
    if wish.kind.ending == ".csi":  # is looked for before the others
        kinds += [kind for kind in (KINDS[".bai"], KINDS[".tbi"]) if wish.base.endswith(kind.data)]
    names = [
        spell(wish.base, kind, how) for kind in kinds for how in (BESIDE, INSTEAD) if how == BESIDE or kind.replaces
    ]
    return tuple(name for name in names if name != spell(wish.base, wish.kind, wish.spelling))


def name_index(base: str, kind: Kind, spelling: str) -> str:
    """Return the origin's name, as the tree uses it, of the index of the file with the origin's name `base`."""
    return f"{DERIVED}{base}{DERIVED}{spelling}{kind.ending}"


def parse_index(name: str) -> Wish | None:
    """Return what `name_index` named, with the data's name at the origin as its base; None: it has named no such."""
    if not name.startswith(DERIVED):
        return None
    base, _, rest = name[len(DERIVED) :].rpartition(DERIVED)
    spelling, dot, ending = rest.partition(".")
    kind = KINDS.get(dot + ending)
    return Wish(kind, base, spelling) if kind is not None and base and spelling in (BESIDE, INSTEAD) else None


def shown_index(name: str) -> str:
    """Return the name of a file as people see it, be it an index's or any other's."""
    wish = parse_index(name)
    return shown_slice(name) if wish is None else spell(shown_index(wish.base), wish.kind, wish.spelling)


def maker_of(kind: Kind, base: str) -> str:
    """Return what makes this index of this data; indices with one maker are made in one go."""
    if kind.ending in (".fai", ".gzi"):
        return "faidx"
    if kind.ending in (".tbi", ".csi"):
        found = (f"{preset}{kind.ending}" for preset, endings in _TABIX.items() if base.endswith(endings))
        return next(found, f"{base.rpartition('.')[2]}{kind.ending}")
    return kind.ending[1:]


def kinds_of(maker: str, base: str) -> tuple[Kind, ...]:
    """Return the kinds of index that a maker makes of this data."""
    return tuple(kind for kind in KINDS.values() if base.endswith(kind.data) and maker_of(kind, base) == maker)


def is_bgzf(first: bytes) -> bool:
    """Say whether a file begins as one that is compressed in blocks (SAM specification, section 4.1)."""
    return first[:4] == b"\x1f\x8b\x08\x04" and first[10:16] == b"\x06\0BC\x02\0"


def hindrance(kind: Kind, base: str, first: bytes) -> str:
    """Return why there can be no such index of data that begins so (64 KiB, or all of it); "": nothing is seen."""
    if kind.ending == ".crai":
        return "" if first[:4] == b"CRAM" else "it is no CRAM"
    if kind.ending == ".dict":
        return "" if first[:2] == b"\x1f\x8b" or first.lstrip()[:1] in (b">", b"@") else "it is no FASTA"
    if kind.ending == ".fai" and base.endswith(_PLAIN_FASTA):
        return "" if first.lstrip()[:1] in (b">", b"@") else "it is no FASTA"
    if not is_bgzf(first):
        return "it is not compressed by bgzip" if first[:2] == b"\x1f\x8b" else "it is not compressed"
    magic = {".bam": b"BAM\1", ".bcf": b"BCF\2"}.get(base[-4:])
    if magic is not None and _inflate(first, 4) != magic:
        return f"it is no {base[-3:].upper()}"
    return ""


def tells_lengths(base: str) -> bool:
    """Say whether the header of data tells how long its references are, and so which index it needs."""
    return base.endswith((".bam", *_TABIX["vcf"]))


def wants_csi(base: str, first: bytes) -> bool | None:
    """Say whether data has a reference that is too long for BAI and TBI; None: more of its beginning is needed.

    `first` is the beginning of a BAM or a bgzipped VCF.
    """
    text = _inflate(first, LARGEST_HEAD)
    longest = _longest_in_bam(text) if base.endswith(".bam") else _longest_in_vcf(text)
    if longest is None:
        return False if len(text) >= LARGEST_HEAD else None
    return longest > BIN_LIMIT


def _inflate(data: bytes, limit: int) -> bytes:
    """Return at most `limit` bytes of what gzip's members hold, as far as they are there and sound."""
    parts: list[bytes] = []
    while data and limit > 0:
        member = zlib.decompressobj(31)
        try:
            part = member.decompress(data, limit)
        except zlib.error:
            break
        parts.append(part)
        limit -= len(part)
        data = member.unused_data
    return b"".join(parts)


def _longest_in_bam(text: bytes) -> int | None:
    """Return the length of the longest reference of a BAM (SAM specification, section 4.2); None: there is more."""
    try:
        (length,) = struct.unpack_from("<I", text, 4)
        (count,) = struct.unpack_from("<I", text, 8 + length)
        at, longest = 12 + length, 0
        for _ in range(count):
            (name,) = struct.unpack_from("<I", text, at)
            (bases,) = struct.unpack_from("<I", text, at + 4 + name)
            longest = max(longest, bases)
            at += 8 + name
    except struct.error:
        return None
    return longest


_CONTIG = re.compile(rb"^##contig=<(?:.*,)?length=(\d+)", re.MULTILINE)


def _longest_in_vcf(text: bytes) -> int | None:
    """Return the length of the longest contig that the header of a VCF tells; None: the header goes on."""
    end = re.search(rb"^[^#]", text, re.MULTILINE)
    if end is None:
        return None
    return max((int(found[1]) for found in _CONTIG.finditer(text, 0, end.start())), default=0)


_MAGIC = {".bai": b"BAI\1", ".tbi": b"TBI\1", ".csi": b"CSI\1"}


def check_index(kind: Kind, data: bytes) -> None:
    """Raise IntegrityError unless a made index begins as one of its kind does."""
    if kind.ending == ".fai":
        good = re.match(rb"[^\t\n]+\t\d+\t\d+\t\d+\t\d+(\t\d+)?\n", data) is not None
    elif kind.ending == ".dict":
        good = data.startswith(b"@HD\t")
    elif kind.ending == ".gzi":
        good = len(data) >= 8 and (len(data) - 8) % 16 == 0
    elif kind.ending == ".crai":
        good = data[:2] == b"\x1f\x8b"
    else:
        good = (data if kind.ending == ".bai" else _inflate(data, 4))[:4] == _MAGIC[kind.ending]
    if not good:
        raise IntegrityError(f"what was made is no {kind.ending[1:]} index")
