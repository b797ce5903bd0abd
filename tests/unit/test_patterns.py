"""Layouts by pattern: which file of a bucket, a folder or a page belongs where."""

from __future__ import annotations

import time

import pytest

from refgenfs.core.patterns import EXAMPLES, LAYOUTS, Arranged, Arrangement, Layout

IG = "Homo_sapiens/{}/GRCh37/{}"


def placed(layout: str | list[str], path: str) -> str | None:
    """Return "genome/asset:tag name" for a path, None for one that is left out."""
    place = Layout.parse(layout).place(path)
    return None if place is None else f"{place.key} {place.name}"


def arranged(layout: str | list[str], *paths: str) -> Arranged:
    arrangement = Arrangement(Layout.parse(layout))
    for path in paths:
        arrangement.add(path, path)
    return arrangement.arranged()


def shown(found: Arranged) -> list[str]:
    return [f"{key} {' '.join(file.name for file in files)}" for key, files in found.assets]


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (IG.format("NCBI", "Sequence/BWAIndex/genome.fa.bwt"), "GRCh37/bwa_index:NCBI genome.fa.bwt"),
        (
            IG.format("UCSC", "Sequence/BWAIndex/version0.6.0/genome.fa"),
            "GRCh37/bwa_index:UCSC version0.6.0/genome.fa",
        ),
        (IG.format("Ensembl", "Sequence/Bowtie2Index/genome.1.bt2"), "GRCh37/bowtie2_index:Ensembl genome.1.bt2"),
        (IG.format("Ensembl", "Sequence/WholeGenomeFasta/genome.fa"), "GRCh37/fasta:Ensembl genome.fa"),
        (IG.format("Ensembl", "Sequence/STARIndex/SAindex"), "GRCh37/star_index:Ensembl SAindex"),
        (IG.format("Ensembl", "Annotation/Genes/genes.gtf"), "GRCh37/genes:Ensembl genes.gtf"),
        (IG.format("Ensembl", "Annotation/README.txt"), None),
        (IG.format("Ensembl", "Sequence/BWAIndex"), None),
        (IG.format("Ensembl", "Sequence/BWAIndex/"), None),
        ("igenomes/" + IG.format("Ensembl", "Sequence/BWAIndex/genome.fa"), None),
        ("Homo sapiens/NCBI/GRCh 37/Sequence/BWAIndex/genome.fa", None),
    ],
)
def test_igenomes(path: str, place: str | None) -> None:
    assert placed("igenomes", path) == place


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("GCF_000001635.27_GRCm39_genomic.fna.gz", "GRCm39/fasta:GCF_000001635.27"),
        ("GCF_000001635.27_GRCm39_genomic.gff.gz", "GRCm39/gff:GCF_000001635.27"),
        ("GCF_000001635.27_GRCm39_rna.fna.gz", "GRCm39/rna:GCF_000001635.27"),
        ("GCF_000001405.40_GRCh38.p14_genomic.fna.gz", "GRCh38.p14/fasta:GCF_000001405.40"),
        ("GCA_000001215.4_Release_6_plus_ISO1_MT_genomic.fna.gz", "Release_6_plus_ISO1_MT/fasta:GCA_000001215.4"),
        ("GCF_000001635.27_GRCm39_cds_from_genomic.fna.gz", "GRCm39/cds:GCF_000001635.27"),
        ("GCF_000001635.27_GRCm39_rna_from_genomic.fna.gz", "GRCm39/rna_from_genomic:GCF_000001635.27"),
        ("GCA_000001635.9_GRCm39_cds_from_genomic.fna.gz", "GRCm39/cds:GCA_000001635.9"),
        ("GCF_000001635.27_GRCm39/GCF_000001635.27_GRCm39_genomic.fna.gz", "GRCm39/fasta:GCF_000001635.27"),
        ("GCF_000001635.27_GRCm39/GCF_000001635.26_GRCm38_genomic.fna.gz", None),
        ("GCF_000001635_GRCm39_genomic.fna.gz", None),
        ("GCF_000001635.27_GRCm39_genomic.fna.gz.md5", None),
        ("GCF_000001635.27__genomic.fna.gz", None),
        ("md5checksums.txt", None),
    ],
)
def test_ncbi(path: str, place: str | None) -> None:
    expected = None if place is None else f"{place} {path.rpartition('/')[2]}"
    assert placed("ncbi", path) == expected


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("hg38/fasta/hg38.fa", "hg38/fasta hg38.fa"),
        ("hg38/star_index/deep/er/SA index+1 ü", "hg38/star_index deep/er/SA index+1 ü"),
        ("hg38/fasta/new\nline", "hg38/fasta new\nline"),
        ("hg38/fasta", None),
        ("hg38.fa", None),
        ("/hg38/fasta/hg38.fa", None),
        ("hg38/fasta//hg38.fa", None),
        ("hg38/fasta/../hg38.fa", None),
        ("../fasta/hg38.fa", None),
        (".hidden/fasta/hg38.fa", None),
        ("hg38/fa.sta/hg38.fa", None),  # the dot of a key begins its seek key
        ("hg38/fasta/.DS_Store", None),
        ("hg38/fasta/\0", None),
        (f"hg38/fasta/{'x' * 256}", None),
        (f"hg38/fasta/{'ü' * 128}", None),
        (f"hg38/fasta/{'ü' * 127}", f"hg38/fasta {'ü' * 127}"),
    ],
)
def test_plain(path: str, place: str | None) -> None:
    assert placed("plain", path) == place


@pytest.mark.parametrize(
    ("rule", "path", "place"),
    [
        ("{genome}/{asset}/{tag}/{file}", "hg38/fasta/v2/a.fa", "hg38/fasta:v2 a.fa"),
        ("refs/{file} -> hg38/fasta", "refs/a/b.fa", "hg38/fasta a/b.fa"),
        ("{genome}/bigZips/{genome}.fa.gz -> {genome}/fasta", "hg38/bigZips/hg38.fa.gz", "hg38/fasta hg38.fa.gz"),
        ("{genome}/bigZips/{genome}.fa.gz -> {genome}/fasta", "hg38/bigZips/hg19.fa.gz", None),
        ("a.b/{file} -> hg38/fasta", "aXb/c", None),
        ("one.fa -> hg38/fasta", "one.fa", "hg38/fasta one.fa"),
        ("{genome}.{kind}.fa -> {genome}/{kind}_fasta:v-{kind}", "hg38.dna.fa", "hg38/dna_fasta:v-dna hg38.dna.fa"),
        ("{genome}/{file} -> {genome}/fasta:default", "hg38/x", "hg38/fasta x"),
    ],
)
def test_rules_of_ones_own(rule: str, path: str, place: str | None) -> None:
    assert placed(rule, path) == place


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("igenome", 'write "igenomes", "ncbi", "plain", or a pattern'),
        ("", 'write "igenomes"'),
        ("{genome}/{file}", "its pattern has no {asset}; write it there, or a key"),
        ("{genome}/{file} -> {genome}/{asset}", "its pattern has no {asset}"),
        ("{genome}/{file} -> {genome}", "no key"),
        ("{genome}/{file} ->", "no key"),
        ("{genome}/{file} -> {genome}/fa.sta", "no key"),
        ("{genome}/{file} -> {genome}/fasta:", "no key"),
        ("{genome}/{file} -> ../fasta", "no key"),
        ("{genome}/{file} -> {genome}/{file}", "no part of its key"),
        ("{genome}/{file} -> {genome!r}/fasta", "has no {genome!r}"),
        ("{file}/{genome} -> {genome}/fasta", "{file} stands alone"),
        ("{genome}/{file}.fa -> {genome}/fasta", "{file} stands alone"),
        ("{genome}{build}/{file} -> {genome}/fasta", "nothing between two fields"),
        ("{genome/{file} -> hg38/fasta", "too many"),
        ("{Genome}/{file} -> hg38/fasta", "is no field"),
        ("{}/{file} -> hg38/fasta", "is no field"),
        ("/{genome}/{file} -> {genome}/fasta", "one '/' between"),
        ("{genome}//{file} -> {genome}/fasta", "one '/' between"),
        ("{genome}/../{file} -> {genome}/fasta", "one '/' between"),
        ("-> hg38/fasta", "one '/' between"),
    ],
)
def test_a_rule_that_is_none_is_refused(rule: str, why: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Layout.parse(rule)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_rule_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="without a rule"):
        Layout.parse([])


def test_every_layout_that_has_a_name_is_one() -> None:
    for name in LAYOUTS:
        assert Layout.parse(name) is not None


def test_several_sources_of_a_build_are_a_tag_each() -> None:
    found = arranged(
        "igenomes",
        IG.format("NCBI", "Sequence/BWAIndex/genome.fa.sa"),
        IG.format("Ensembl", "Sequence/BWAIndex/genome.fa.sa"),
        IG.format("Ensembl", "Sequence/BWAIndex/genome.fa.bwt"),
    )
    assert shown(found) == [
        "GRCh37/bwa_index:Ensembl genome.fa.bwt genome.fa.sa",
        "GRCh37/bwa_index:NCBI genome.fa.sa",
    ]


def test_two_genomes_of_one_name_are_not_mixed() -> None:
    found = arranged(
        "igenomes",
        "Homo_sapiens/NCBI/build37.2/Sequence/WholeGenomeFasta/genome.fa",
        "Mus_musculus/NCBI/build37.2/Annotation/Genes/genes.gtf",
        "Mus_musculus/NCBI/GRCm38/Annotation/Genes/genes.gtf",
    )
    assert shown(found) == [
        "GRCm38/genes:NCBI genes.gtf",
        "Homo_sapiens.build37.2/fasta:NCBI genome.fa",
        "Mus_musculus.build37.2/genes:NCBI genes.gtf",
    ]
    assert found.left_out == 0


def test_names_that_would_meet_again_are_left_out() -> None:
    rule = "{a}/{b}/{genome}/{file} -> {genome}/fasta"
    found = arranged(rule, "x.y/z/g/1", "x/y.z/g/2", "p/q/g/3", "o/o/x.y.z.g/4", "r s/t/g/5")
    assert shown(found) == ["p.q.g/fasta 3", "x.y.z.g/fasta 4"]
    assert found.left_out == 3
    assert set(found.examples) == {"x.y/z/g/1", "x/y.z/g/2", "r s/t/g/5"}


def test_the_default_tag_is_of_the_earliest_rule() -> None:
    found = arranged("ncbi", "GCA_000001635.9_GRCm39_genomic.fna.gz", "GCF_000001635.27_GRCm39_genomic.fna.gz")
    assert [str(key) for key, _ in found.assets] == ["GRCm39/fasta:GCF_000001635.27", "GRCm39/fasta:GCA_000001635.9"]


def test_of_two_files_for_one_place_the_earlier_rules_stays() -> None:
    rules = ["good/{genome}/{file} -> {genome}/fasta", "bad/{genome}/{file} -> {genome}/fasta"]
    for paths in (["bad/hg38/x", "good/hg38/x"], ["good/hg38/x", "bad/hg38/x"]):
        found = arranged(rules, *paths)
        assert [file.place for _, files in found.assets for file in files] == ["good/hg38/x"]
        assert (found.left_out, found.examples) == (1, ("bad/hg38/x",))


def test_what_does_not_fit_is_counted_and_some_of_it_named() -> None:
    found = arranged("plain", "hg38/fasta/a", *(f"stray{number}" for number in range(10)))
    assert (shown(found), found.left_out) == (["hg38/fasta a"], 10)
    assert found.examples == tuple(f"stray{number}" for number in range(EXAMPLES))


def test_an_odd_path_costs_no_more_time_than_others() -> None:
    """With plain backtracking this takes the 4th power of the path's length: for ever."""
    layout = Layout.parse("{a}_{b}_{c}_{d}_{genome}.fa/{file} -> {genome}/fasta")
    began = time.process_time()
    assert layout.place("_" * 20_000) is None
    assert layout.place("a_" * 500 + ".fb/x") is None
    assert time.process_time() - began < 60  # it is some milliseconds
