"""The line to copy: what a user types to use an asset, told by the names of its files. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MOST = 4  # lines of one asset


@dataclass(frozen=True, slots=True)
class Line:
    """A command, and what it is for."""

    tool: str
    text: str


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a tool is called with the file whose name ends so; `%s` is its path without the ending, or with it."""

    tool: str
    ending: str
    text: str
    whole: bool = False  # the path with its ending


_RECIPES = (
    _Recipe("bwa", ".bwt", "bwa mem %s r1.fq r2.fq > out.sam"),
    _Recipe("bwa-mem2", ".bwt.2bit.64", "bwa-mem2 mem %s r1.fq r2.fq > out.sam"),
    _Recipe("bowtie2", ".rev.1.bt2", "bowtie2 -x %s -1 r1.fq -2 r2.fq > out.sam"),
    _Recipe("bowtie2", ".rev.1.bt2l", "bowtie2 -x %s -1 r1.fq -2 r2.fq > out.sam"),
    _Recipe("bowtie", ".rev.1.ebwt", "bowtie -x %s -1 r1.fq -2 r2.fq > out.sam"),
    _Recipe("hisat2", ".1.ht2", "hisat2 -x %s -1 r1.fq -2 r2.fq > out.sam"),
    _Recipe("minimap2", ".mmi", "minimap2 -a %s reads.fq > out.sam", whole=True),
    _Recipe("samtools", ".bam", "samtools view -h %s chr1:1-10000", whole=True),
    _Recipe("samtools", ".cram", "samtools view -h %s chr1:1-10000", whole=True),
    _Recipe("bcftools", ".vcf.gz", "bcftools view %s chr1:1-10000", whole=True),
    _Recipe("bcftools", ".bcf", "bcftools view %s chr1:1-10000", whole=True),
    _Recipe("samtools", ".fa", "samtools faidx %s chr1:1-10000", whole=True),
    _Recipe("samtools", ".fasta", "samtools faidx %s chr1:1-10000", whole=True),
    _Recipe("samtools", ".fna", "samtools faidx %s chr1:1-10000", whole=True),
    _Recipe("samtools", ".fa.gz", "samtools faidx %s chr1:1-10000", whole=True),
    _Recipe("samtools", ".fna.gz", "samtools faidx %s chr1:1-10000", whole=True),
    _Recipe("zcat", ".gtf.gz", "zcat %s | head", whole=True),
    _Recipe("zcat", ".gff3.gz", "zcat %s | head", whole=True),
)
# Indices that are a folder: told by a file in it.
_FOLDERS: tuple[tuple[str, str, str], ...] = (
    ("STAR", "SAindex", "STAR --genomeDir %s --readFilesIn r1.fq r2.fq"),
    ("salmon", "versionInfo.json", "salmon quant -i %s -l A -1 r1.fq -2 r2.fq -o quant"),
)


def command_lines(folder: str, names: Sequence[str]) -> list[Line]:
    """Return how an asset is used whose files `names` stand in a folder; `ls` where nothing better is known.

    The beginning of a multi-file index is given as its tool wants it. Paths are quoted for a shell.
    """
    lines: dict[str, Line] = {}
    for line in _lines(folder, names):
        lines.setdefault(line.tool, line)
    return list(lines.values())[:MOST] or [Line("ls", f"ls -l {shlex.quote(folder)}")]


def _lines(folder: str, names: Sequence[str]) -> Iterator[Line]:
    for recipe in _RECIPES:
        for name in names:
            if name.endswith(recipe.ending) and len(name) > len(recipe.ending):
                path = name if recipe.whole else name.removesuffix(recipe.ending)
                yield Line(recipe.tool, _fill(recipe.text, f"{folder}/{path}"))
                break
    for tool, marker, text in _FOLDERS:
        for name in names:
            above, _, last = name.rpartition("/")
            if last == marker:
                yield Line(tool, _fill(text, f"{folder}/{above}" if above else folder))
                break


def _fill(text: str, path: str) -> str:
    return text.replace("%s", shlex.quote(path))
