"""The line to copy: what tools want to be given."""

from __future__ import annotations

import pytest

from refgenfs.core.commands import command_lines


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["hg38.fa", "hg38.fa.bwt", "hg38.fa.sa"], "bwa mem /g/a/hg38.fa r1.fq r2.fq > out.sam"),
        (["hg38.1.bt2", "hg38.rev.1.bt2"], "bowtie2 -x /g/a/hg38 -1 r1.fq -2 r2.fq > out.sam"),
        (["hg38.1.ht2"], "hisat2 -x /g/a/hg38 -1 r1.fq -2 r2.fq > out.sam"),
        (["SA", "SAindex", "Genome"], "STAR --genomeDir /g/a --readFilesIn r1.fq r2.fq"),
        (["deep/SAindex"], "STAR --genomeDir /g/a/deep --readFilesIn r1.fq r2.fq"),
        (["hg38.fa", "hg38.fa.fai"], "samtools faidx /g/a/hg38.fa chr1:1-10000"),
        (["x.bam"], "samtools view -h /g/a/x.bam chr1:1-10000"),
        (["x.vcf.gz", "x.vcf.gz.tbi"], "bcftools view /g/a/x.vcf.gz chr1:1-10000"),
        (["x.gtf.gz"], "zcat /g/a/x.gtf.gz | head"),
        (["what.ever"], "ls -l /g/a"),
        ([], "ls -l /g/a"),
    ],
)
def test_the_tool_s_own_line_comes_first(names: list[str], line: str) -> None:
    assert command_lines("/g/a", names)[0].text == line


def test_a_tool_has_one_line_and_there_are_not_many() -> None:
    lines = command_lines("/g/a", ["x.bam", "y.bam", "z.cram", "hg38.fa", "hg38.fa.bwt", "h.1.ht2", "m.mmi", "v.bcf"])
    tools = [line.tool for line in lines]
    assert len(tools) == len(set(tools)) <= 4


def test_what_is_pasted_into_a_shell_is_one_word() -> None:
    (line,) = command_lines("/g/a", ["x; rm -rf ~ #.bam"])
    assert line.text == "samtools view -h '/g/a/x; rm -rf ~ #.bam' chr1:1-10000"
    (line,) = command_lines("/g/$(boom)", [])
    assert line.text == "ls -l '/g/$(boom)'"
