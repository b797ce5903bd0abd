"""Which names are indices, of which data, and what data says of itself."""

from __future__ import annotations

import gzip
import struct
import subprocess
from pathlib import Path

import pytest

from refgenfs.core.errors import IntegrityError
from refgenfs.core.indices import (
    BESIDE,
    INSTEAD,
    KINDS,
    can_have_index,
    check_index,
    hindrance,
    is_bgzf,
    kinds_of,
    maker_of,
    name_index,
    parse_index,
    rivals,
    shown_index,
    spell,
    wants_csi,
    wishes,
)
from refgenfs.made.records import Record, parse_row


@pytest.mark.parametrize(
    ("name", "bases"),
    [
        ("x.fa.fai", ["x.fa"]),
        ("x.fa.gz.fai", ["x.fa.gz"]),
        ("x.fa.gz.gzi", ["x.fa.gz"]),
        ("x.fa.gzi", []),
        ("x.fa.dict", ["x.fa"]),
        ("x.bam.bai", ["x.bam"]),
        ("x.bai", ["x.bam"]),
        ("x.cram.crai", ["x.cram"]),
        ("x.crai", ["x.cram"]),
        ("x.bcf.csi", ["x.bcf"]),
        ("x.bam.csi", ["x.bam"]),
        ("x.csi", []),
        ("x.vcf.gz.tbi", ["x.vcf.gz"]),
        ("x.gff3.gz.tbi", ["x.gff3.gz"]),
        ("x.bed.gz.csi", []),
        ("x.vcf.tbi", []),
        ("x.txt.bai", ["x.txt.bam"]),
        ("x.txt.fai", []),
        (".bai", []),
        ("x", []),
        ("x.fa", []),
    ],
)
def test_what_a_name_may_be_the_index_of(name: str, bases: list[str]) -> None:
    found = list(wishes(name))
    assert [wish.base for wish in found] == bases
    assert all(spell(wish.base, wish.kind, wish.spelling) == name for wish in found)
    assert all(can_have_index(base) for base in bases)


def test_a_dictionary_replaces_the_ending_of_its_fasta() -> None:
    found = list(wishes("x.dict"))
    assert found[0].base == "x.fa"
    assert "x.fasta.gz" in [wish.base for wish in found]
    assert spell("x.fasta.gz", KINDS[".dict"], INSTEAD) == "x.dict"


@pytest.mark.parametrize("base", ["a/x.fa", "\0regions/1/x.bam"])
@pytest.mark.parametrize("spelling", [BESIDE, INSTEAD])
def test_names_of_indices_are_taken_apart_again(base: str, spelling: str) -> None:
    kind = KINDS[".dict"] if base.endswith(".fa") else KINDS[".bai"]
    name = name_index(base, kind, spelling)
    wish = parse_index(name)
    assert wish is not None
    assert (wish.base, wish.kind, wish.spelling) == (base, kind, spelling)
    assert name.endswith(kind.ending)  # rules that go by endings take it for what it is


@pytest.mark.parametrize("name", ["x.fa.fai", "\0other", "\0a\0beside.txt", "\0\0beside.bai", "\0a\0over.bai", ""])
def test_other_names_are_none(name: str) -> None:
    assert parse_index(name) is None
    assert shown_index(name) == name


def test_people_see_plain_names() -> None:
    assert shown_index(name_index("a/x.bam", KINDS[".bai"], INSTEAD)) == "a/x.bai"
    assert shown_index(name_index("a/x.bam", KINDS[".bai"], BESIDE)) == "a/x.bam.bai"


def test_what_is_listed_already_stands_in_the_way() -> None:
    (beside,) = wishes("x.bam.bai")
    assert rivals(beside) == ("x.bai",)
    (csi,) = wishes("x.bam.csi")
    assert set(rivals(csi)) == {"x.bam.bai", "x.bai"}
    (of_vcf,) = wishes("x.vcf.gz.csi")
    assert rivals(of_vcf) == ("x.vcf.gz.tbi",)


def test_who_makes_what() -> None:
    assert maker_of(KINDS[".gzi"], "x.fa.gz") == "faidx"
    assert [kind.ending for kind in kinds_of("faidx", "x.fa.gz")] == [".fai", ".gzi"]
    assert [kind.ending for kind in kinds_of("faidx", "x.fa")] == [".fai"]
    assert maker_of(KINDS[".csi"], "x.bam") == "bam.csi"
    assert maker_of(KINDS[".csi"], "x.vcf.bgz") == "vcf.csi"
    assert maker_of(KINDS[".tbi"], "x.gtf.gz") == "gff.tbi"
    assert [kind.ending for kind in kinds_of("bai", "x.bam")] == [".bai"]


def bgzip(data: bytes) -> bytes:
    return subprocess.run(["bgzip"], input=data, capture_output=True, check=True).stdout


def bam_head(*lengths: int, text: bytes = b"") -> bytes:
    names = b"".join(struct.pack("<I3sI", 3, b"ab\0", length) for length in lengths)
    return b"BAM\1" + struct.pack("<I", len(text)) + text + struct.pack("<I", len(lengths)) + names


def test_bgzip_and_gzip_are_told_apart() -> None:
    assert is_bgzf(bgzip(b">a\nACGT\n"))
    assert not is_bgzf(gzip.compress(b">a\nACGT\n"))
    assert not is_bgzf(b"")


@pytest.mark.parametrize(
    ("ending", "base", "first", "why"),
    [
        (".fai", "x.fa.gz", gzip.compress(b">a\nA\n"), "not compressed by bgzip"),
        (".fai", "x.fa.gz", b">a\nA\n", "not compressed"),
        (".fai", "x.fa", b"\n>a\nA\n", ""),
        (".fai", "x.fa", b"<html>", "no FASTA"),
        (".dict", "x.fa.gz", gzip.compress(b">a\nA\n"), ""),
        (".dict", "x.fa", b"<html>", "no FASTA"),
        (".bai", "x.bam", b"CRAM", "not compressed"),
        (".crai", "x.cram", b"BAM\1", "no CRAM"),
        (".crai", "x.cram", b"CRAM\3", ""),
    ],
)
def test_why_there_is_none(ending: str, base: str, first: bytes, why: str) -> None:
    found = hindrance(KINDS[ending], base, first)
    assert why in found
    assert bool(found) == bool(why)


def test_packed_data_says_what_it_is() -> None:
    assert not hindrance(KINDS[".bai"], "x.bam", bgzip(bam_head(5)))
    assert "no BAM" in hindrance(KINDS[".bai"], "x.bam", bgzip(b"BCF\2"))
    assert "no BCF" in hindrance(KINDS[".csi"], "x.bcf", bgzip(bam_head(5)))
    assert not hindrance(KINDS[".tbi"], "x.bed.gz", bgzip(b"a\t1\t2\n"))


def test_the_longest_reference_decides() -> None:
    limit = 1 << 29
    assert wants_csi("x.bam", bgzip(bam_head(5, limit))) is False
    assert wants_csi("x.bam", bgzip(bam_head(limit + 1, 5))) is True
    text = bytes(range(256)) * 1024
    whole = bgzip(bam_head(limit + 1, text=text))
    assert wants_csi("x.bam", whole) is True
    assert wants_csi("x.bam", whole[:400]) is None
    head = b"##fileformat=VCFv4.2\n##contig=<ID=a,length=%d>\n##contig=<ID=b,assembly=x,length=7>\n"
    assert wants_csi("x.vcf.gz", bgzip(head % (limit + 1) + b"#CHROM\na\t1\n")) is True
    assert wants_csi("x.vcf.gz", bgzip(head % limit + b"#CHROM\na\t1\n")) is False
    assert wants_csi("x.vcf.gz", bgzip(head % limit + b"#CHROM\n")) is None


@pytest.mark.parametrize(
    ("ending", "good"),
    [
        (".fai", b"a\t4\t3\t4\t5\n"),
        (".dict", b"@HD\tVN:1.0\n"),
        (".gzi", bytes(8)),
        (".bai", b"BAI\1"),
        (".crai", gzip.compress(b"")),
        (".csi", gzip.compress(b"CSI\1")),
        (".tbi", gzip.compress(b"TBI\1")),
    ],
)
def test_what_was_made_is_looked_at(ending: str, good: bytes) -> None:
    check_index(KINDS[ending], good)
    with pytest.raises(IntegrityError):
        check_index(KINDS[ending], b"something else")


def test_rows_of_the_ledger_that_are_none_are_passed_over() -> None:
    sha256 = "a" * 64
    row = {
        "at": 1.0,
        ".fai": [sha256, 5, BESIDE, "odd"],
        ".bai": ["short", 5],
        ".tbi": [sha256, 0],
        ".x": [sha256, 1],
    }
    assert parse_row(row) == {".fai": Record(sha256, 5, frozenset({BESIDE}))}
    assert parse_row(None) == parse_row([1]) == parse_row({".fai": "x"}) == {}


def test_the_worker_imports_nothing_of_ours() -> None:
    text = Path("refgenfs/made/worker.py").read_text() if Path("refgenfs").exists() else ""
    assert "import refgenfs" not in text
    assert "from refgenfs" not in text
