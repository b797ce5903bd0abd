"""Assets of named files: the seek keys that they get."""

from __future__ import annotations

import pytest

from refgenfs.core.catalog import ListedFile
from refgenfs.core.keys import AssetKey
from refgenfs.sources.listed import listed_catalog


@pytest.mark.parametrize(
    ("asset", "names", "wanted"),
    [
        ("fasta", ["g.fa"], {"fasta": "g.fa"}),
        ("fasta", ["g.fa", "g.fa.fai", "g.chrom.sizes", "g.dict"],
         {"fasta": "g.fa", "fai": "g.fa.fai", "sizes": "g.chrom.sizes", "dict": "g.dict"}),
        ("fasta", ["g.fna.gz", "g.fna.gz.fai", "g.fna.gz.gzi"],
         {"fasta": "g.fna.gz", "fai": "g.fna.gz.fai", "gzi": "g.fna.gz.gzi"}),
        ("bwa_index", ["g.fa.amb", "g.fa.ann", "g.fa.bwt"],
         {"bwa_index": "g.fa", "amb": "g.fa.amb", "ann": "g.fa.ann", "bwt": "g.fa.bwt"}),
        ("bowtie2_index", ["g.1.bt2", "g.rev.1.bt2"],
         {"bowtie2_index": "g", "1_bt2": "g.1.bt2", "rev_1_bt2": "g.rev.1.bt2"}),
        ("gff", ["x.gff.gz", "y.gtf.gz"], {"gff": "x.gff.gz", "gtf": "y.gtf.gz"}),
        ("reads", ["x.bam", "x.cram"], {"bam": "x.bam", "cram": "x.cram"}),
        ("reads", ["x.bam", "x.bam.bai", "x.cram"], {"reads": "x.bam", "bai": "x.bam.bai", "cram": "x.cram"}),
        ("bowtie2_index", ["g.1.bt2", "g.2.bt2", "g.fa"],
         {"bowtie2_index": "g", "1_bt2": "g.1.bt2", "2_bt2": "g.2.bt2", "fa": "g.fa"}),
        ("star", ["SA", "SAindex", "Genome"], {}),
        ("odd", ["a.b c", "a.b c.fai"], {"odd": "a.b c", "fai": "a.b c.fai"}),
    ],
)  # fmt: skip
def test_seek_keys(asset: str, names: list[str], wanted: dict[str, str]) -> None:
    files = [ListedFile(name, name) for name in names]
    (genome,) = listed_catalog("lab", "x", [(AssetKey("g", asset), files)]).genomes
    (version,) = genome.assets[asset].tags.values()
    assert version.seek_keys == {"dir": ".", **wanted}
