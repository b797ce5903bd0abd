"""Which files belong together, and which URLs may stand in a ticket."""

from __future__ import annotations

import pytest

from refgenfs.core.content import ArchiveMember, ArchiveRef, ByteRange, Extent, InlineData
from refgenfs.core.errors import InvalidInput, NoPublicUrl
from refgenfs.core.htsget.location import choose_file, given_url, gzi_of, index_of, public_url

ARCHIVE = ArchiveRef("s", "k", "d", "m", ("http://h/a.tgz",))


@pytest.mark.parametrize(
    ("name", "names", "index"),
    [
        ("d/x.bam", {"d/x.bam.bai", "d/x.bam.csi"}, "d/x.bam.csi"),
        ("d/x.bam", {"d/x.bam.bai", "x.bam.csi"}, "d/x.bam.bai"),
        ("x.bam", {"x.bai"}, "x.bai"),
        ("x.cram", {"x.cram.crai", "x.crai"}, "x.cram.crai"),
        ("x.cram", {"x.crai"}, "x.crai"),
        ("x.vcf.gz", {"x.vcf.gz.tbi", "x.vcf.gz.bai"}, "x.vcf.gz.tbi"),
        ("x.vcf.bgz", {"x.vcf.bgz.csi"}, "x.vcf.bgz.csi"),
        ("x.bcf", {"x.bcf.csi", "x.bcf.tbi"}, "x.bcf.csi"),
        ("x.reads", {"x.reads.bai"}, "x.reads.bai"),
        ("x.bam", {"y.bam.bai"}, None),
    ],
)
def test_the_index_of_a_file(name: str, names: set[str], index: str | None) -> None:
    assert index_of(name, names) == index
    assert gzi_of(name, names | {f"{name}.gzi"}) == f"{name}.gzi"
    assert gzi_of(name, names) is None


def test_the_file_that_is_meant() -> None:
    names = ["d/x.bam", "d/x.bam.bai", "notes.txt", "y.cram"]
    assert choose_file(["x.bam", "x.bam.bai"], None, "k") == "x.bam"
    assert choose_file(names, "x.bam", "k") == "d/x.bam"
    assert choose_file(names, "notes.txt", "k") == "notes.txt"
    with pytest.raises(InvalidInput, match=r"--file: d/x\.bam, y\.cram"):
        choose_file(names, None, "k")
    with pytest.raises(InvalidInput, match=r"no file 'z\.bam'; there are: d/x\.bam, y\.cram"):
        choose_file(names, "z.bam", "k")
    with pytest.raises(InvalidInput, match="no BAM, CRAM, VCF or BCF"):
        choose_file(["a", "x.vcf"], None, "k")


def test_a_url_that_is_plain_is_told() -> None:
    assert public_url(ByteRange(("http://h/x%20y.bam", "http://mirror/x"), ""), "x") == "http://h/x%20y.bam"


@pytest.mark.parametrize(
    ("extent", "says"),
    [
        (ArchiveMember(ARCHIVE, "x.bam"), "out of an archive"),
        (InlineData(b""), "empty"),
        (ByteRange((), ""), "has none"),
        (ByteRange(("http://me:secret@h/x.bam",), ""), "http://h/x.bam has a password"),
        (ByteRange(("http://secret@h/x.bam",), ""), "http://h/x.bam has a password"),
        (ByteRange(("https://h/x.bam?X-Amz-Signature=secret",), ""), "https://h/x.bam has a password or a query"),
        (ByteRange(("file:///secret/x.bam",), ""), "no http URL"),
        (ByteRange(("/genomes/secret",), ""), "no http URL"),
    ],
)
def test_urls_that_are_not_told(extent: Extent, says: str) -> None:
    with pytest.raises(NoPublicUrl, match="--url") as caught:
        public_url(extent, "x.bam")
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


def test_urls_that_are_given() -> None:
    assert given_url("https://h/a/b?c=d", "x/y.bam") == "https://h/a/b?c=d"
    assert given_url("https://h/a/", "x/y z.bam") == "https://h/a/y%20z.bam"
    assert given_url("https://h", "y.bam") == "https://h"


@pytest.mark.parametrize(
    "text",
    [
        "", "/genomes/x", "file:///x", "ftp://h/x", "http://", "http://u@h/", "http://:p@h/x", "http://h/x#y",
        "http://h/?x=y", "http://[/", "http://h:x/", "http://h/a b", "http://h/\n",
    ],
)  # fmt: skip
def test_urls_that_are_none(text: str) -> None:
    with pytest.raises(InvalidInput, match="--url"):
        given_url(text, "x.bam")
