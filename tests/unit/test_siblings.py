"""Which files an opened one brings: by the names that real tools give to their indexes."""

from __future__ import annotations

import pytest

from refgenfs.core.siblings import BUILT_IN, SMALL_INDEX, SiblingRule, recognise, siblings

HG38 = "2230c535660fb4774114bfa966a62f823fdb6d21acf138d4"

BWA = [f"{HG38}.fa{ending}" for ending in ("", ".amb", ".ann", ".bwt", ".pac", ".sa")]
BOWTIE2 = [f"{HG38}.{part}.bt2" for part in ("1", "2", "3", "4", "rev.1", "rev.2")]
HISAT2 = [f"{HG38}.{part}.ht2" for part in range(1, 9)]
FASTA = [f"{HG38}.chrom.sizes", f"{HG38}.fa", f"{HG38}.fa.fai"]
STAR = [
    *("Genome", "Log.out", "SA", "SAindex", "chrLength.txt", "chrName.txt", "chrNameLength.txt", "chrStart.txt"),
    *("exonGeTrInfo.tab", "exonInfo.tab", "geneInfo.tab", "genomeParameters.txt", "sjdbInfo.txt"),
    *("sjdbList.fromGTF.out.tab", "sjdbList.out.tab", "transcriptInfo.tab"),
]
SALMON = [
    *("complete_ref_lens.bin", "ctable.bin", "ctg_offsets.bin", "duplicate_clusters.tsv", "info.json", "mphf.bin"),
    *("pos.bin", "pre_indexing.log", "rank.bin", "refAccumLengths.bin", "ref_indexing.log", "reflengths.bin"),
    *("refseq.bin", "seq.bin", "versionInfo.json"),
]


def brought(asset: str, name: str, names: list[str], rules: tuple[SiblingRule, ...] = BUILT_IN) -> list[str]:
    """Return what opening a file brings, by the endings after the digest where there is one."""
    opening = recognise(rules, asset, name)
    return [] if opening is None else [found.removeprefix(HG38) for found in siblings(opening, names)]


@pytest.mark.parametrize(
    ("asset", "opened", "names", "comes"),
    [
        ("bwa_index", f"{HG38}.fa.bwt", BWA, [".fa.sa", ".fa.ann", ".fa.amb", ".fa.pac"]),
        ("bwa_index", f"{HG38}.fa.sa", BWA, [".fa.bwt", ".fa.ann", ".fa.amb", ".fa.pac"]),
        ("bwa_index", f"{HG38}.fa.pac", BWA, []),
        ("bwa_index", f"{HG38}.fa", BWA, []),
        ("bowtie2_index", f"{HG38}.1.bt2", BOWTIE2, [".2.bt2", ".rev.1.bt2", ".3.bt2", ".4.bt2"]),
        ("bowtie2_index", f"{HG38}.rev.1.bt2", BOWTIE2, [".1.bt2", ".2.bt2", ".3.bt2", ".4.bt2"]),
        ("hisat2_index", f"{HG38}.1.ht2", HISAT2, [f".{part}.ht2" for part in (2, 5, 6, 3, 4, 7, 8)]),
        ("fasta", f"{HG38}.fa", FASTA, [".fa.fai"]),
        ("fasta", f"{HG38}.fa.fai", FASTA, []),
        ("fasta", f"{HG38}.chrom.sizes", FASTA, []),
        ("gencode_gtf", f"{HG38}.gtf.gz", [f"{HG38}.gtf.gz"], []),
        ("kallisto_index", f"{HG38}_kallisto_index.idx", [f"{HG38}_kallisto_index.idx"], []),
        ("NA12878", "NA12878.bam", ["NA12878.bam", "NA12878.bam.bai"], ["NA12878.bam.bai"]),
        ("NA12878", "NA12878.bam", ["NA12878.bam", "NA12878.bai"], ["NA12878.bai"]),
        ("NA12878", "NA12878.bam.bai", ["NA12878.bam", "NA12878.bam.bai"], []),
        ("NA12878", "NA12878.cram", ["NA12878.cram", "NA12878.cram.crai"], ["NA12878.cram.crai"]),
        ("dbsnp", f"{HG38}.vcf.gz", [f"{HG38}.vcf.gz", f"{HG38}.vcf.gz.tbi"], [".vcf.gz.tbi"]),
        ("dbsnp", f"{HG38}.vcf.gz.tbi", [f"{HG38}.vcf.gz", f"{HG38}.vcf.gz.tbi"], []),
        ("fasta", "x.fa.gz", ["x.fa.gz", "x.fa.gz.fai", "x.fa.gz.gzi"], ["x.fa.gz.fai", "x.fa.gz.gzi"]),
    ],
)
def test_what_real_indexes_bring(asset: str, opened: str, names: list[str], comes: list[str]) -> None:
    assert brought(asset, opened, names) == comes


def test_bwa_mem2_and_bwa_in_one_folder_are_two_indexes() -> None:
    names = [*BWA, f"{HG38}.fa.0123", f"{HG38}.fa.bwt.2bit.64"]
    assert brought("bwa_index", f"{HG38}.fa.bwt", names) == [".fa.sa", ".fa.ann", ".fa.amb", ".fa.pac"]
    assert brought("bwa_index", f"{HG38}.fa.bwt.2bit.64", names) == [".fa.ann", ".fa.amb", ".fa.pac", ".fa.0123"]


def test_star_and_salmon_go_by_whole_names() -> None:
    comes = brought("star_index", "genomeParameters.txt", STAR)
    assert comes[:6] == ["chrName.txt", "chrLength.txt", "chrStart.txt", "SAindex", "Genome", "SA"]
    assert "Log.out" not in comes
    assert "sjdbList.fromGTF.out.tab" not in comes
    assert brought("star_index", "Genome", STAR)[0] == "genomeParameters.txt"
    assert brought("cellranger_reference", "star/Genome", [f"star/{name}" for name in STAR])[3:6] == [
        "star/chrStart.txt",
        "star/SAindex",
        "star/SA",
    ]
    comes = brought("salmon_sa_index", "versionInfo.json", SALMON)
    assert comes[0] == "info.json"
    assert set(comes) == {name for name in SALMON if name.endswith(".bin")} | {"info.json"}
    assert brought("something", "versionInfo.json", SALMON) == []


def test_siblings_stand_in_one_folder_and_have_one_stem() -> None:
    names = ["a.bwt", "a.sa", "b.sa", "x/a.sa", "x/a.bwt", "x/y/a.sa", "A.sa", "a.sa.old"]
    assert brought("any", "a.bwt", names) == ["a.sa"]
    assert brought("any", "x/a.bwt", names) == ["x/a.sa"]
    assert brought("any", "x/a.bwt", ["x/a.bwt"]) == []


def test_letters_of_a_stem_are_no_pattern() -> None:
    assert brought("any", "[ab]*.bwt", ["[ab]*.bwt", "a.sa", "b.sa", "[ab]*.sa"]) == ["[ab]*.sa"]
    assert brought("any", ".bwt", [".bwt", ".sa"]) == []


def test_a_configured_rule_comes_first_and_may_forbid() -> None:
    blast = SiblingRule("blast", (".nin",), (".nhr", ".nsq"), assets="blast_*")
    names = ["db.nhr", "db.nin", "db.nsq"]
    assert brought("blast_db", "db.nin", names, (blast, *BUILT_IN)) == ["db.nhr", "db.nsq"]
    assert brought("other", "db.nin", names, (blast, *BUILT_IN)) == []
    assert brought("bwa_index", BWA[3], BWA, (SiblingRule("none", (".bwt",), ()), *BUILT_IN)) == []


def test_only_small_indexes_are_bounded() -> None:
    bounded = {rule.name for rule in BUILT_IN if rule.largest == SMALL_INDEX}
    assert bounded == {"fasta", "alignments", "tabix"}
    assert {rule.largest for rule in BUILT_IN} == {SMALL_INDEX, None}
