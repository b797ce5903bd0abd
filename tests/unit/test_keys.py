"""Keys: `genome/asset[.seek_key][:tag]`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.errors import KeyFormatError
from refgenfs.core.keys import AssetKey, is_name

NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_+-]{0,20}", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("hg38/fasta", AssetKey("hg38", "fasta")),
        ("hg38/fasta.fai", AssetKey("hg38", "fasta", "fai")),
        ("hg38/fasta:default", AssetKey("hg38", "fasta", None, "default")),
        ("hg38/fasta.fai:0.7.17", AssetKey("hg38", "fasta", "fai", "0.7.17")),
        (" hg38/fasta/ ", AssetKey("hg38", "fasta")),
        ("GRCm38.p6/bwa_index", AssetKey("GRCm38.p6", "bwa_index")),
    ],
)
def test_parses(text: str, key: AssetKey) -> None:
    assert AssetKey.parse(text) == key


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty key"),
        ("hg38", "hg38 names a genome: write hg38/ASSET; `refgenfs list hg38`"),
        ("/fasta", "fasta names a genome"),
        ("hg38/", "hg38 names a genome"),
        ("hg:38", "has no asset"),
        ("hg38/fasta/default", "more than one '/'"),
        ("hg38/fasta:", "empty tag"),
        ("hg38/.fai", "empty asset"),
        ("hg38/fasta.:x", "no seek key"),
        ("../fasta", "'..' in '../fasta' is no genome"),
        ("hg38/fa sta", "no asset"),
        ("hg38/fasta:a/b", "more than one '/'"),
        ("hg38/fasta:a:b", "'a:b'"),
        ("hg38/fasta\0", "no asset"),
    ],
)
def test_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(KeyFormatError, match=r"genome/asset|names a genome") as caught:
        AssetKey.parse(text)
    assert said in str(caught.value)


@given(NAMES, NAMES, st.none() | NAMES, st.none() | NAMES)
def test_a_key_survives_its_text(genome: str, asset: str, seek: str | None, tag: str | None) -> None:
    key = AssetKey(genome, asset, seek, tag)
    assert AssetKey.parse(str(key)) == key


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a:b", "a b", "a\n", "a.", "x" * 300, "é"])
def test_no_name(name: str) -> None:
    assert not is_name(name)
