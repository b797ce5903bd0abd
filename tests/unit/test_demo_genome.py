"""The demo's simulation: reproducible, in the formats samtools writes, digested as refgenie does."""

from __future__ import annotations

import gzip
import hashlib
from collections import Counter
from pathlib import Path

import pytest

from refgenfs.demo.genome import (
    AlignmentCheck,
    Contig,
    Genome,
    Read,
    asset_digest,
    check_alignments,
    chrom_sizes,
    fai,
    fasta,
    fastq,
    genome_digest,
    make_genome,
    read_fasta,
    simulate_reads,
)

SMALL = make_genome(seed=3, length=60_000)
HANDMADE = Genome((Contig("one first of all", b"ACGT" * 16), Contig("two", b"GGC")))
COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")


def test_a_seed_makes_the_same_genome_and_reads_everywhere() -> None:
    # Written down once: another value means that everyone's demo changes, and that its folder's FORMAT must too.
    assert genome_digest(make_genome()) == "31bf7284e3308d2800f8cf83bec3402312f814a427f8b54b"
    reads = fastq(simulate_reads(SMALL, 500))
    assert hashlib.md5(reads).hexdigest() == "7b73c4226595be708a11573876abf24d"
    assert make_genome(seed=4, length=60_000) != SMALL


def test_the_genome_has_the_length_asked_for_and_a_plausible_composition() -> None:
    genome = make_genome(length=500_000)
    assert genome.length == 500_000
    assert [contig.name for contig in genome.contigs] == ["chr1", "chr2", "chr3", "chrM"]
    bases = b"".join(contig.bases for contig in genome.contigs)
    assert set(bases) == set(b"ACGTN")
    gc = (bases.count(b"G") + bases.count(b"C")) / len(bases)
    assert 0.38 < gc < 0.50
    words = Counter(bases[at : at + 20] for at in range(len(bases) - 20))
    repeated = sum(count - 1 for count in words.values())
    assert repeated > 500  # random bases of this length have next to none


def test_too_short_a_genome_is_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        make_genome(length=9_999)


def test_fasta_fai_and_sizes_are_as_samtools_writes_them() -> None:
    assert fasta(HANDMADE) == b">one first of all\n" + b"ACGT" * 15 + b"\nACGT\n>two\nGGC\n"
    assert fai(HANDMADE) == b"one\t64\t18\t60\t61\ntwo\t3\t89\t3\t4\n"
    assert chrom_sizes(HANDMADE) == b"one\t64\ntwo\t3\n"


@pytest.mark.parametrize("name", ["genome.fa", "genome.fa.gz"])
def test_a_fasta_reads_back_as_the_genome_it_was_written_from(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = fasta(HANDMADE)
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read_fasta(path) == HANDMADE


def test_the_genome_digest_covers_headers_lengths_and_case() -> None:
    digest = genome_digest(HANDMADE)
    assert digest == "81f5b832d73023d3c2047f2a94dde3ca42676f24ac5184b9"  # what refgenconf's fasta_seqcol_digest gives
    lower = Genome((HANDMADE.contigs[0], Contig("two", b"ggc")))
    renamed = Genome((Contig("one", HANDMADE.contigs[0].bases), HANDMADE.contigs[1]))
    assert len({digest, genome_digest(lower), genome_digest(renamed)}) == 3


def test_the_asset_digest_is_that_of_regular_files_by_path(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"b")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z").write_bytes(b"z")
    (tmp_path / "a.txt").write_bytes(b"a")
    before = asset_digest(tmp_path)
    lines = "".join(hashlib.md5(data).hexdigest() + "\n" for data in (b"a", b"z", b"b"))  # ./a.txt ./a/z ./b.txt
    assert before == hashlib.md5(lines.encode()).hexdigest()
    (tmp_path / "link").symlink_to("/nowhere")
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    (tmp_path / "_refgenie_build").mkdir()
    (tmp_path / "_refgenie_build" / "log").write_bytes(b"anything")
    assert asset_digest(tmp_path) == before


def test_reads_say_where_they_came_from() -> None:
    contigs = {contig.name: contig.bases for contig in SMALL.contigs}
    strands = set()
    for i, read in enumerate(simulate_reads(SMALL, 300, length=80, error_rate=0.0), start=1):
        chrom, start, strand, number = read.name.rsplit("_", 3)
        origin = contigs[chrom][int(start) - 1 : int(start) + 79]
        assert read.bases == (origin if strand == "+" else origin.translate(COMPLEMENT)[::-1])
        assert int(number) == i
        strands.add(strand)
    assert strands == {"+", "-"}


def test_reads_have_the_errors_asked_for() -> None:
    perfect, real = (simulate_reads(SMALL, 1, length=5_000, error_rate=rate)[0] for rate in (0.0, 0.02))
    wrong = sum(a != b for a, b in zip(perfect.bases, real.bases, strict=True))
    assert 60 <= wrong <= 145  # 100 expected, standard deviation 10
    assert len(real.qualities) == 5_000


@pytest.mark.parametrize(("length", "rate"), [(100_000, 0.01), (100, 1.0), (100, -0.1)])
def test_reads_that_cannot_be_simulated_are_refused(length: int, rate: float) -> None:
    with pytest.raises(ValueError, match="cannot simulate"):
        simulate_reads(SMALL, 1, length=length, error_rate=rate)


def test_reads_are_never_taken_from_a_gap() -> None:
    gap = Genome((Contig("chr1", b"N" * 500 + b"A" * 300),))
    assert {read.bases for read in simulate_reads(gap, 5, error_rate=0.0)} <= {b"A" * 100, b"T" * 100}
    with pytest.raises(ValueError, match="without an N"):
        simulate_reads(Genome((Contig("chr1", b"N" * 500),)), 1)


def test_a_read_becomes_four_lines_of_fastq() -> None:
    assert fastq([Read("r", b"ACG", b"III")]) == b"@r\nACG\n+\nIII\n"


def _sam(name: str, flag: int, chrom: str, position: int, cigar: str = "100M") -> str:
    return f"{name}\t{flag}\t{chrom}\t{position}\t60\t{cigar}\t*\t0\t0\tACGT\tIIII\n"


@pytest.mark.parametrize(
    ("line", "mapped", "right"),
    [
        (_sam("chr1_1000_+_1", 0, "chr1", 1000), 1, 1),
        (_sam("chr1_1000_+_1", 0, "chr1", 1005), 1, 1),
        (_sam("chr1_1000_+_1", 0, "chr1", 1006), 1, 0),
        (_sam("chr1_1000_+_1", 0, "chr2", 1000), 1, 0),
        (_sam("chr1_1000_+_1", 16, "chr1", 1000), 1, 0),
        (_sam("chr1_1000_-_1", 16, "chr1", 995), 1, 1),
        (_sam("chr1_1000_+_1", 0, "chr1", 1012, "12S88M"), 1, 1),
        (_sam("chr1_1000_+_1", 0, "chr1", 1012, "2H10S88M"), 1, 1),
        (_sam("chr_un_1_1000_+_1", 0, "chr_un_1", 1000), 1, 1),
        (_sam("chr1_1000_+_1", 4, "*", 0, "*"), 0, 0),
    ],
)
def test_an_alignment_is_right_near_its_origin_on_its_strand(line: str, mapped: int, right: int) -> None:
    assert check_alignments([line]) == AlignmentCheck(1, mapped, right)


def test_headers_and_all_but_primary_records_are_passed_over() -> None:
    lines = ["@SQ\tSN:chr1\tLN:5\n"] + [_sam("chr1_1_+_1", flag, "chr1", 1) for flag in (0, 256, 2048, 272)]
    assert check_alignments(lines) == AlignmentCheck(1, 1, 1)


@pytest.mark.parametrize("line", ["nonsense\n", _sam("SRR1.1", 0, "chr1", 1), _sam("a_b_+_c", 0, "a", 1)])
def test_what_was_not_simulated_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"no SAM record|does not name"):
        check_alignments([line])
