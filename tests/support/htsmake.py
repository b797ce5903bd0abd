"""Larger files with indices, made by htslib: many references, records that span bins, containers of many slices."""

from __future__ import annotations

import gzip
import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pysam

from refgenfs.core.htsget.model import Format
from tests.support.htsfiles import Files

# A name with a colon, references with nothing, one that only a CSI of another depth reaches the end of.
REFERENCES = [
    ("chr1", 250_000_000),
    ("HLA:A*01:01", 5_000),
    ("empty1", 1_000_000),
    ("chr2", 80_000_000),
    *((f"scaffold{n}", 40_000 + 1_000 * n) for n in range(40)),
    ("empty2", 10),
    ("last", 60_000_000),
]
LONG = ("long", 1_500_000_000)


@dataclass(frozen=True, slots=True)
class Sample:
    """A file that htslib made and indexed, its bytes, and what it has of a region by htslib's own search."""

    format: Format
    path: Path
    files: Files
    references: Sequence[tuple[str, int]]

    def names(self, region: tuple[str, int | None, int | None]) -> set[str]:
        """Return the names of the records of a region (0-based, half-open), by htslib."""
        contig, start, end = region
        if self.format.is_reads:
            with pysam.AlignmentFile(str(self.path), check_sq=False) as file:
                found = file.fetch("*") if contig == "*" else file.fetch(contig, start, end)
                return {str(read.query_name) for read in found}
        with pysam.VariantFile(str(self.path)) as file:
            return {str(record.id) for record in file.fetch(contig, start, end)}


def names_in(path: Path, format_: Format) -> list[str]:
    """Return the names of all records of a file, in its order."""
    if format_.is_reads:
        with pysam.AlignmentFile(str(path), check_sq=False) as reads:
            return [str(read.query_name) for read in reads.fetch(until_eof=True)]
    with pysam.VariantFile(str(path)) as variants:
        return [str(record.id) for record in variants]


def make_sam(folder: Path, references: Sequence[tuple[str, int]], count: int, seed: int) -> Path:
    """Write unsorted SAM: reads of 1 to 200 bases, some with introns of up to megabases, some placed nowhere."""
    dice, path = random.Random(seed), folder / f"{seed}.sam"
    lines = ["@HD\tVN:1.6", *(f"@SQ\tSN:{name}\tLN:{length}" for name, length in references)]
    full = [one for one in references if not one[0].startswith("empty")]
    for number in range(count):
        kind, size = dice.random(), dice.choice((1, 50, 100, 200))
        bases = "".join(dice.choices("ACGT", k=size))
        qualities = "".join(dice.choices("!+5?IJ", k=size))
        if kind < 0.05:
            lines.append(f"r{number}\t4\t*\t0\t0\t*\t*\t0\t0\t{bases}\t{qualities}")
            continue
        name, length = dice.choices(full, [one[1] ** 0.3 for one in full])[0]
        around = dice.choice((0, length // 3, length // 2, length - 200_000, dice.randrange(length)))
        position = max(0, min(length - size - 1, around + dice.randrange(100_000)))
        room = length - position - size - 1
        if kind < 0.15 and size > 1 and room > 1:
            cigar = f"1M{dice.randrange(1, min(room, dice.choice((100, 20_000, 3_000_000))) + 1)}N{size - 1}M"
        else:
            cigar = f"{size}M"
        flag, cigar = (4, "*") if kind > 0.97 else (0, cigar)
        lines.append(f"r{number}\t{flag}\t{name}\t{position + 1}\t60\t{cigar}\t*\t0\t0\t{bases}\t{qualities}")
    path.write_text("\n".join(lines) + "\n")
    return path


def make_vcf(folder: Path, references: Sequence[tuple[str, int]], count: int, seed: int) -> Path:
    """Write sorted VCF: SNVs, deletions, and symbolic variants that end far away."""
    dice, path = random.Random(seed), folder / f"{seed}.vcf"
    lines = ["##fileformat=VCFv4.3", '##INFO=<ID=END,Number=1,Type=Integer,Description="End, of it">']
    lines += ['##ALT=<ID=DEL,Description="Deletion">', '##INFO=<ID=X,Number=1,Type=String,Description="Noise">']
    lines += [f"##contig=<ID={name},length={length}>" for name, length in references]
    lines.append("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO")
    full = [one for one in references if not one[0].startswith("empty")]
    order = {name: number for number, (name, _) in enumerate(references)}
    rows = []
    for number in range(count):
        name, length = dice.choices(full, [one[1] ** 0.3 for one in full])[0]
        position = max(1, min(length - 300, dice.choice((0, length // 2)) + dice.randrange(1, 300_000)))
        end, kind = position, dice.random()
        ref, alt = "A", "C"
        if kind < 0.1:
            ref = "".join(dice.choices("ACGT", k=200))
            end = position + 199
        elif kind < 0.2:
            alt = "<DEL>"
            end = min(length, position + dice.randrange(1, 2_000_000))
        noise = "".join(dice.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef", k=60))
        rows.append(
            (order[name], position, f"{name}\t{position}\tv{number}\t{ref}\t{alt}\t.\t.\tEND={end};X={noise}")
        )
    path.write_text("\n".join([*lines, *(row for *_, row in sorted(rows))]) + "\n")
    return path


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=60)


def _bam(folder: Path, sam: Path, name: str, *index: str) -> Path:
    path = folder / f"{name}.bam"
    _run("samtools", "sort", "-o", path, sam)
    _run("samtools", "index", *index, path)
    _run("bgzip", "-r", path)
    return path


def _split_bam(folder: Path, sam: Path, name: str) -> Path:
    """Make a BAM whose records go on from block to block, as writers other than htslib make them."""
    path = folder / f"{name}.bam"
    stream = folder / f"{name}.stream"
    _run("samtools", "sort", "-o", path, sam)
    stream.write_bytes(gzip.decompress(path.read_bytes()))
    path.write_bytes(subprocess.run(["bgzip", "-c", stream], check=True, capture_output=True, timeout=60).stdout)
    _run("samtools", "index", path)
    _run("bgzip", "-r", path)
    return path


def _bgzipped(folder: Path, vcf: Path, name: str) -> Path:
    """Make a VCF whose header shares its last block with lines."""
    path = folder / f"{name}.vcf.gz"
    path.write_bytes(subprocess.run(["bgzip", "-c", vcf], check=True, capture_output=True, timeout=60).stdout)
    _run("tabix", "-p", "vcf", path)
    _run("bgzip", "-r", path)
    return path


def _cram(folder: Path, sam: Path, name: str, options: str) -> Path:
    path, bam = folder / f"{name}.cram", folder / f"{name}.sorted.bam"
    _run("samtools", "sort", "-o", bam, sam)
    _run("samtools", "view", "-C", "-o", path, "--output-fmt-option", f"no_ref=1,{options}", bam)
    _run("samtools", "index", path)
    return path


def _vcf(folder: Path, vcf: Path, name: str, suffix: str, *index: str) -> Path:
    path = folder / f"{name}{suffix}"
    _run("bcftools", "view", "-Ob" if suffix == ".bcf" else "-Oz", "-o", path, vcf)
    _run("bcftools", "index", *index, path)
    _run("bgzip", "-r", path)
    return path


def make_samples(folder: Path, *only: str) -> dict[str, Sample]:
    """Make one sample of each kind (or of some), by its name."""
    with_long = [*REFERENCES, LONG]
    sam, long_sam = make_sam(folder, REFERENCES, 9_000, 1), make_sam(folder, with_long, 9_000, 2)
    vcf, long_vcf = make_vcf(folder, REFERENCES, 10_000, 3), make_vcf(folder, with_long, 10_000, 4)
    makers: dict[str, tuple[Format, Sequence[tuple[str, int]], str, Callable[[str], Path]]] = {
        "bai": (Format.BAM, REFERENCES, ".bai", lambda name: _bam(folder, sam, name)),
        "csi14": (Format.BAM, with_long, ".csi", lambda name: _bam(folder, long_sam, name, "-c")),
        "csi9": (Format.BAM, with_long, ".csi", lambda name: _bam(folder, long_sam, name, "-m", "9")),
        "csi20": (Format.BAM, REFERENCES, ".csi", lambda name: _bam(folder, sam, name, "-m", "20")),
        "cram-slices": (Format.CRAM, REFERENCES, ".crai",
            lambda name: _cram(folder, sam, name, "seqs_per_slice=50,slices_per_container=4")),
        "cram-mixed": (Format.CRAM, with_long, ".crai",
            lambda name: _cram(
                folder, long_sam, name, "seqs_per_slice=100,slices_per_container=3,multi_seq_per_slice=1")),
        "cram-2.1": (Format.CRAM, REFERENCES, ".crai",
            lambda name: _cram(folder, sam, name, "version=2.1,seqs_per_slice=200")),
        "bam-split": (Format.BAM, REFERENCES, ".bai", lambda name: _split_bam(folder, sam, name)),
        "vcf-bgzip": (Format.VCF, REFERENCES, ".tbi", lambda name: _bgzipped(folder, vcf, name)),
        "tbi": (Format.VCF, REFERENCES, ".tbi", lambda name: _vcf(folder, vcf, name, ".vcf.gz", "-t")),
        "vcf-csi": (Format.VCF, with_long, ".csi", lambda name: _vcf(folder, long_vcf, name, ".vcf.gz", "-m", "10")),
        "bcf": (Format.BCF, REFERENCES, ".csi", lambda name: _vcf(folder, vcf, name, ".bcf")),
        "bcf-csi17": (Format.BCF, with_long, ".csi", lambda name: _vcf(folder, long_vcf, name, ".bcf", "-m", "17")),
    }  # fmt: skip
    samples = {}
    for name in only or makers:
        format_, references, suffix, make = makers[name]
        path = make(name)
        samples[name] = Sample(format_, path, Files.read(path, suffix, gzi=format_.is_bgzf), references)
    return samples
