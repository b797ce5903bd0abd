"""Catalog values, and how several sources become one tree."""

from __future__ import annotations

import pytest

from refgenfs.core.catalog import Asset, AssetVersion, Genome, SourceCatalog, keep_known, merge
from refgenfs.core.errors import NotInCatalog
from refgenfs.core.keys import AssetKey


def version(source: str, genome: str, asset: str, tag: str) -> AssetVersion:
    return AssetVersion(source, genome, f"alias of {genome}", asset, tag, f"{source}-{asset}-{tag}")


def genome(source: str, digest: str, aliases: tuple[str, ...], **assets: tuple[str, ...]) -> Genome:
    made = {
        name: Asset(name, tags[0], {tag: version(source, digest, name, tag) for tag in tags})
        for name, tags in assets.items()
    }
    return Genome(digest, aliases, made)


def test_a_genome_is_there_under_all_its_names() -> None:
    snapshot = merge([SourceCatalog("a", (genome("a", "d1", ("hg38", "human"), fasta=("default",)),))])
    assert snapshot.names == ("d1", "hg38", "human")
    assert snapshot.genome("human") is snapshot.genome("d1")


def test_the_first_source_that_has_a_key_wins() -> None:
    first = SourceCatalog("a", (genome("a", "d1", ("hg38",), fasta=("default",)),))
    second = SourceCatalog("b", (genome("b", "d1", ("hg38",), fasta=("default", "other"), bwa=("default",)),))
    snapshot = merge([first, second])
    assert snapshot.version(AssetKey.parse("hg38/fasta")).source == "a"
    assert snapshot.version(AssetKey.parse("hg38/fasta:other")).source == "b"
    assert snapshot.version(AssetKey.parse("d1/bwa")).source == "b"
    assert {v.source for v in snapshot.versions()} == {"a", "b"}
    assert len(list(snapshot.versions())) == snapshot.count == 3


def test_genomes_meet_by_any_name() -> None:
    first = SourceCatalog("a", (genome("a", "d1", ("hg38",), fasta=("default",)),))
    second = SourceCatalog("b", (genome("b", "hg38", (), reads=("default",)),))
    snapshot = merge([first, second])
    assert set(snapshot.genome("hg38").assets) == {"fasta", "reads"}
    assert set(snapshot.genome("d1").assets) == {"fasta"}


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("nope/fasta", "no source has a genome 'nope'"),
        ("hg38/nope", "has no asset 'nope'; it has: fasta"),
        ("hg38/fasta:nope", "has no tag 'nope'; it has: default"),
    ],
)
def test_says_what_there_is(key: str, said: str) -> None:
    snapshot = merge([SourceCatalog("a", (genome("a", "d1", ("hg38",), fasta=("default",)),))])
    with pytest.raises(NotInCatalog, match=said):
        snapshot.version(AssetKey.parse(key))


def test_a_version_is_equal_to_itself_read_again() -> None:
    assert version("a", "d", "fasta", "x") == version("a", "d", "fasta", "x")
    assert hash(version("a", "d", "fasta", "x")) == hash(version("a", "d", "fasta", "x"))


def test_genomes_that_are_the_same_stay_the_very_same() -> None:
    old = SourceCatalog("a", (genome("a", "d1", ("x",), fasta=("t",)), genome("a", "d2", (), fasta=("t",))))
    same = SourceCatalog("a", (genome("a", "d1", ("x",), fasta=("t",)), genome("a", "d2", (), fasta=("t",))))
    assert keep_known(old, same) is old
    fresh = SourceCatalog("a", (genome("a", "d1", ("x",), fasta=("t",)), genome("a", "d2", (), fasta=("u",))))
    kept = keep_known(old, fresh)
    assert kept == fresh
    assert kept.genomes[0] is old.genomes[0]
    fewer = SourceCatalog("a", fresh.genomes[:1])
    assert keep_known(old, fewer) == fewer


def test_every_version_is_told_once_under_whatever_name_it_is_seen() -> None:
    first = SourceCatalog("a", (genome("a", "d1", ("x",), fasta=("t",)),))
    second = SourceCatalog(
        "b", (genome("b", "x", (), fasta=("t", "u"), bwa=("t",)), genome("b", "d3", ("d1",), bwa=("t",)))
    )
    snapshot = merge([first, second])
    shown = {v for g in snapshot.genomes.values() for a in g.assets.values() for v in a.tags.values()}
    told = list(snapshot.versions())
    assert len(told) == len(set(told)) == snapshot.count
    assert set(told) == shown
