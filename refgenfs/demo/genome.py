"""Simulate a genome and reads from it, digest it as refgenie does, and check where its reads were aligned."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LINE = 60  # bases a FASTA line, as samtools and NCBI write them
BUILD_FOLDER = "_refgenie_build"  # refgenie's logs inside an asset: no part of its digest or its archive
TOLERANCE = 5  # bp between an alignment and its read's origin: an indel near a read's end moves it this much
GAP = 2_000  # longest run of N, where a real assembly has a centromere

_COMPLEMENT = bytes.maketrans(b"ACGTN", b"TGCAN")
_OTHERS = {base: bytes(b for b in b"ACGT" if b != base) for base in b"ACGT"} | {ord("N"): b"ACG"}


@dataclass(frozen=True, slots=True)
class Contig:
    """One sequence: `header` is its whole FASTA header line without the `>`, `bases` its upper-case letters."""

    header: str
    bases: bytes

    @property
    def name(self) -> str:
        """The reference name: the header up to the first blank, as samtools and bwa take it."""
        return self.header.split(maxsplit=1)[0]


@dataclass(frozen=True, slots=True)
class Genome:
    """The sequences of one assembly, in the order of its FASTA."""

    contigs: tuple[Contig, ...]

    @property
    def length(self) -> int:
        """Bases in all sequences together."""
        return sum(len(contig.bases) for contig in self.contigs)


@dataclass(frozen=True, slots=True)
class Read:
    """One single-end read as a sequencer would write it."""

    name: str
    bases: bytes
    qualities: bytes


@dataclass(frozen=True, slots=True)
class AlignmentCheck:
    """How many primary records a SAM has, how many are mapped, and how many lie where their read came from."""

    total: int
    mapped: int
    right_place: int


# --- simulating ---------------------------------------------------------------------------------------------


def make_genome(seed: int = 1, length: int = 2_000_000) -> Genome:
    """Return the same `length` bases on three chromosomes and a small circular one for the same seed.

    GC content varies between 36 and 52 % in stretches of 50 kb; a tenth of the large chromosomes is copies of a
    few repeat families, diverged by 5 to 20 %, with some tandem repeats and one run of N each, so that an aligner
    meets what it meets in a real genome. Raises ValueError when length is below 10,000.
    """
    if length < 10_000:
        raise ValueError(f"a genome of {length} bases is too short to be simulated: at least 10,000 are needed")
    rng = random.Random(seed)
    families = [_bases(rng, size, 0.48) for size in (300, 300, 1_500, 3_000)]
    lengths = [length * 45 // 100, length * 31 // 100, length * 23 // 100]
    lengths.append(length - sum(lengths))
    contigs = []
    for name, size in zip(("chr1", "chr2", "chr3", "chrM"), lengths, strict=True):
        bases = bytearray(_isochores(rng, size))
        if name != "chrM":
            _plant_repeats(rng, bases, families)
            gap = min(GAP, size // 50)
            bases[size // 2 : size // 2 + gap] = b"N" * gap
        contigs.append(Contig(name, bytes(bases)))
    return Genome(tuple(contigs))


def simulate_reads(genome: Genome, n: int, length: int = 100, error_rate: float = 0.01, seed: int = 7) -> list[Read]:
    """Return n reads of `length` bases from both strands of random places, each base wrong with `error_rate`.

    A read is named `chrom_start_strand_i`: its 1-based leftmost position on the forward strand, `+` or `-`, and
    its number from 1. No read covers an N. Qualities fall along the read and depend on the position only. Raises
    ValueError when no sequence is long enough or the error rate isn't in [0, 1).
    """
    contigs = [contig for contig in genome.contigs if len(contig.bases) >= length]
    if not contigs or not 0 <= error_rate < 1:
        raise ValueError(f"cannot simulate reads of {length} bases with an error rate of {error_rate}")
    rng = random.Random(seed)
    weights = [len(contig.bases) for contig in contigs]
    qualities = bytes(33 + 40 - 12 * i // length for i in range(length))
    reads = []
    for i, contig in enumerate(rng.choices(contigs, weights, k=n), start=1):
        start, bases = _sample(rng, contig.bases, length)
        strand = "+" if rng.random() < 0.5 else "-"
        if strand == "-":
            bases = bases.translate(_COMPLEMENT)[::-1]
        name = f"{contig.name}_{start + 1}_{strand}_{i}"
        reads.append(Read(name, _with_errors(rng, bases, error_rate), qualities))
    return reads


def _bases(rng: random.Random, size: int, gc: float) -> bytes:
    """Return `size` random bases of the GC content given, by mapping random bytes: fast, and the same everywhere."""
    half = round(128 * gc)
    table = b"A" * (128 - half) + b"C" * half + b"G" * half + b"T" * (128 - half)
    return rng.randbytes(size).translate(table)


def _isochores(rng: random.Random, size: int, window: int = 50_000) -> bytes:
    stretches = (_bases(rng, min(window, size - at), rng.uniform(0.36, 0.52)) for at in range(0, size, window))
    return b"".join(stretches)


def _plant_repeats(rng: random.Random, bases: bytearray, families: Sequence[bytes]) -> None:
    """Overwrite about a tenth of `bases` with diverged copies of the families, and a little with tandem repeats."""
    room = len(bases) // 10
    while room > 0:
        family = rng.choice(families)
        copy = family[rng.randrange(len(family) // 2) :]  # truncated at the 5' end, as retrotransposons are
        copy = _with_errors(rng, copy, rng.uniform(0.05, 0.20))[: len(bases) // 10]
        at = rng.randrange(len(bases) - len(copy))
        bases[at : at + len(copy)] = copy if rng.random() < 0.5 else copy.translate(_COMPLEMENT)[::-1]
        room -= len(copy)
    for _ in range(len(bases) // 50_000):
        unit = _bases(rng, rng.randrange(1, 7), 0.4)
        tandem = unit * rng.randrange(5, 20)
        at = rng.randrange(len(bases) - len(tandem))
        bases[at : at + len(tandem)] = tandem


def _sample(rng: random.Random, bases: bytes, length: int) -> tuple[int, bytes]:
    """Return a random start (0-based) and the bases there, none of them N."""
    for _ in range(1_000):
        start = rng.randrange(len(bases) - length + 1)
        piece = bases[start : start + length]
        if b"N" not in piece:
            return start, piece
    raise ValueError(f"found no {length} bases without an N")


def _with_errors(rng: random.Random, bases: bytes, rate: float) -> bytes:
    """Return the bases with each one replaced by another with probability `rate`, 0 <= rate < 1."""
    if rate == 0:
        return bases
    changed = bytearray(bases)
    scale = math.log1p(-rate)
    at = int(math.log(1.0 - rng.random()) / scale)  # the gaps between errors are geometric: no draw for every base
    while at < len(changed):
        changed[at] = rng.choice(_OTHERS[changed[at]])
        at += 1 + int(math.log(1.0 - rng.random()) / scale)
    return bytes(changed)


# --- formats ------------------------------------------------------------------------------------------------


def fasta(genome: Genome) -> bytes:
    """Return the genome as FASTA, 60 bases a line."""
    parts = []
    for contig in genome.contigs:
        lines = (contig.bases[at : at + LINE] for at in range(0, len(contig.bases), LINE))
        parts.append(b">" + contig.header.encode() + b"\n" + b"\n".join(lines) + b"\n")
    return b"".join(parts)


def fai(genome: Genome) -> bytes:
    """Return the index `samtools faidx` would write beside `fasta(genome)`: name, length, offset, bases, bytes."""
    rows = []
    offset = 0
    for contig in genome.contigs:
        size = len(contig.bases)
        offset += len(contig.header.encode()) + 2  # '>' and the newline
        width = min(LINE, size)
        rows.append(f"{contig.name}\t{size}\t{offset}\t{width}\t{width + 1}\n")
        offset += size + math.ceil(size / LINE)
    return "".join(rows).encode()


def chrom_sizes(genome: Genome) -> bytes:
    """Return refgenie's `.chrom.sizes`: a line of name and length for every sequence."""
    return "".join(f"{contig.name}\t{len(contig.bases)}\n" for contig in genome.contigs).encode()


def fastq(reads: Iterable[Read]) -> bytes:
    """Return the reads as FASTQ, four lines a read."""
    return b"".join(b"@%b\n%b\n+\n%b\n" % (read.name.encode(), read.bases, read.qualities) for read in reads)


def read_fasta(path: Path) -> Genome:
    """Return the sequences of a FASTA, gzip-compressed when its name ends in .gz; their case is kept."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    contigs = []
    for record in data.split(b">")[1:]:
        header, _, body = record.partition(b"\n")
        contigs.append(Contig(header.rstrip(b"\r").decode(), b"".join(body.split())))
    return Genome(tuple(contigs))


# --- digests ------------------------------------------------------------------------------------------------


def genome_digest(genome: Genome) -> str:
    """Return the digest refgenie 0.x names a genome by: 48 hexadecimal characters, derived from the sequences.

    The truncated SHA-512 of the comma-joined digests of `header>length>digest of the sequence`, case-sensitive,
    as refgenconf's `fasta_seqcol_digest` computes it.
    """
    items = (f"{c.header}>{len(c.bases)}>{_truncated_sha512(c.bases)}" for c in genome.contigs)
    return _truncated_sha512(",".join(_truncated_sha512(item.encode()) for item in items).encode())


def asset_digest(folder: Path) -> str:
    """Return refgenie's digest of an unpacked asset: MD5 over the MD5 lines of its regular files.

    Files are taken in the byte order of `./path`; symlinks and refgenie's build folder are left out, as
    refgenconf's `get_dir_digest` does. Raises OSError when the folder or a file can't be read.
    """
    total = hashlib.md5(usedforsecurity=False)
    for path in sorted(_regular_files(folder), key=lambda path: os.fsencode(f"./{path.relative_to(folder)}")):
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False))
        total.update(digest.hexdigest().encode() + b"\n")
    return total.hexdigest()


def _regular_files(folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        if entry.name.startswith(BUILD_FOLDER):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _regular_files_below(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def _regular_files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _truncated_sha512(data: bytes) -> str:
    return hashlib.sha512(data).digest()[:24].hex()


# --- checking -----------------------------------------------------------------------------------------------


def check_alignments(sam_lines: Iterable[str]) -> AlignmentCheck:
    """Count the primary alignments of simulated reads, and those within 5 bp of the read's origin and strand.

    Headers, secondary and supplementary records are passed over. A clipped start counts from where the whole
    read would start. Raises ValueError for a line that is no SAM record or whose read was not simulated here.
    """
    total = mapped = right = 0
    for line in sam_lines:
        if line.startswith("@"):
            continue
        fields = line.split("\t", 6)
        if len(fields) < 7:
            raise ValueError(f"no SAM record: {line[:60]!r}")
        name, flag = fields[0], int(fields[1])
        if flag & 0x900:  # secondary or supplementary
            continue
        total += 1
        if flag & 0x4:  # unmapped
            continue
        mapped += 1
        strand = "-" if flag & 0x10 else "+"
        position = int(fields[3]) - _leading_clip(fields[5])
        right += _is_origin(name, fields[2], position, strand)
    return AlignmentCheck(total, mapped, right)


def _is_origin(name: str, reference: str, position: int, strand: str) -> bool:
    try:
        chrom, start, came_from, _ = name.rsplit("_", 3)
        return (chrom, came_from) == (reference, strand) and abs(position - int(start)) <= TOLERANCE
    except ValueError:
        raise ValueError(f"{name!r} does not name a read's origin as chrom_start_strand_i") from None


def _leading_clip(cigar: str) -> int:
    """Return how many bases of the read lie before the alignment's first aligned base."""
    clipped = 0
    digits = ""
    for char in cigar:
        if char.isdigit():
            digits += char
        elif char in "SH":
            clipped += int(digits)
            digits = ""
        else:
            break
    return clipped
