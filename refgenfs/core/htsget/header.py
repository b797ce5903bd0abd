"""The headers of BAM, VCF and BCF: where they end, and the references that they name.

Each is read from the first inflated bytes of its file. `parse` raises NotWhole while there are too few of them, and
IntegrityError for what is no header.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from refgenfs.core.errors import IntegrityError
from refgenfs.core.htsget.model import Format

MAX_HEADER = 64 << 20  # inflated bytes: a million references are 30 MB
_LONGEST_NAME = 1 << 16  # bytes


class NotWhole(Exception):
    """The header goes on behind the bytes that are there; `least` is how many it has at the least."""

    def __init__(self, least: int) -> None:
        super().__init__(least)
        self.least = least


@dataclass(frozen=True, slots=True)
class Header:
    """Where a header ends, in inflated bytes, and the number and the length (None: not told) of each reference."""

    end: int
    references: Mapping[str, int]
    lengths: Mapping[str, int]


def parse(format_: Format, data: bytes | bytearray) -> Header:
    """Parse the header of a BAM, VCF or BCF from the first inflated bytes of its file."""
    match format_:
        case Format.BAM:
            return _parse_bam(data)
        case Format.BCF:
            return _parse_bcf(data)
        case _:
            return _parse_vcf(data)


def detect(data: bytes | bytearray) -> Format | None:
    """Return the format that begins with these inflated bytes."""
    if data[:4] == b"BAM\x01":
        return Format.BAM
    if data[:4] == b"BCF\x02":
        return Format.BCF
    return Format.VCF if data[:12] == b"##fileformat" else None


def _parse_bam(data: bytes | bytearray) -> Header:
    """Read magic, text and references (SAMv1, 4.2)."""
    at = 8 + _length(data, 4, "text")
    count = _length(data, at, "references")
    at += 4
    references: dict[str, int] = {}
    lengths: dict[str, int] = {}
    for number in range(count):
        size = _length(data, at, "name")
        if not 0 < size <= _LONGEST_NAME:
            raise IntegrityError(f"the BAM header has a reference's name of {size} bytes")
        if len(data) < at + size + 8:
            raise NotWhole(at + size + 8 + 9 * (count - number - 1))
        name = data[at + 4 : at + 3 + size].decode(errors="surrogateescape")
        references.setdefault(name, number)
        lengths.setdefault(name, _length(data, at + 4 + size, "reference"))
        at += 8 + size
    return Header(at, references, lengths)


def _length(data: bytes | bytearray, at: int, what: str) -> int:
    """Return the 32 bit number at `at`, which must not be negative."""
    if len(data) < at + 4:
        raise NotWhole(at + 4)
    (value,) = struct.unpack_from("<i", data, at)
    if value < 0:
        raise IntegrityError(f"the header has a length of {value} ({what})")
    return int(value)


def _parse_bcf(data: bytes | bytearray) -> Header:
    """Read magic and text (VCFv4.3, 6.2): a contig's number is that of its line, or what its IDX says."""
    end = 9 + _length(data, 5, "text")
    if len(data) < end:
        raise NotWhole(end)
    references, lengths = _contigs(data[9:end])
    return Header(end, references, lengths)


def _parse_vcf(data: bytes | bytearray) -> Header:
    """Read the lines that begin with `#`; the one with the columns' names is the last."""
    at = 0 if data.startswith(b"#CHROM") else data.find(b"\n#CHROM") + 1
    if not at and not data.startswith(b"#CHROM"):
        body = re.search(rb"\n[^#]", data)
        if body:
            raise IntegrityError("the VCF header has no line with the names of the columns")
        raise NotWhole(len(data) + 1)
    end = data.find(b"\n", at) + 1
    if not end:
        raise NotWhole(len(data) + 1)
    references, lengths = _contigs(data[:end])
    return Header(end, references, lengths)


_CONTIG = re.compile(rb"^##contig=<(.*)>\s*$", re.MULTILINE)
_FIELD = re.compile(rb'([^=,]+)=("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')


def _contigs(text: bytes | bytearray) -> tuple[dict[str, int], dict[str, int]]:
    """Return the number and the length of each contig that the header of a VCF or BCF names."""
    references: dict[str, int] = {}
    lengths: dict[str, int] = {}
    for line in _CONTIG.finditer(text):
        fields = dict(_FIELD.findall(line[1]))
        name = fields.get(b"ID", b"").decode(errors="surrogateescape")
        if name and name not in references:
            references[name] = _number(fields.get(b"IDX"), len(references))
            if b"length" in fields:
                lengths[name] = _number(fields[b"length"], 0)
    return references, lengths


def _number(text: bytes | None, default: int) -> int:
    return int(text) if text is not None and text.isdigit() and len(text) < 11 else default


def sam_references(text: bytes) -> tuple[dict[str, int], dict[str, int]]:
    """Return the number and the length of each reference of a SAM header, by its @SQ lines."""
    references: dict[str, int] = {}
    lengths: dict[str, int] = {}
    for line in text.splitlines():
        if line.startswith(b"@SQ\t"):
            fields = dict(field.partition(b":")[::2] for field in line.split(b"\t")[1:])
            name = fields.get(b"SN", b"").decode(errors="surrogateescape")
            if not name:
                raise IntegrityError("the SAM header has a reference without a name")
            references.setdefault(name, len(references))
            lengths.setdefault(name, _number(fields.get(b"LN"), 0))
    return references, lengths
