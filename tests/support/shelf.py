"""A server with several genomes whose assets have the names that assets have, and bytes that mean nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refgenfs.core.units import human_bytes
from refgenfs.demo.answers import CATALOG
from tests.faults.world import LIMITS, TAG, ScriptedOrigin, Site, World, archive_of, noise, replace, source_toml
from tests.support.mounted import Setup

KB, MB = 1000, 1_000_000

GENOMES = {
    "hg38": "Homo sapiens, GRCh38 (Ensembl analysis set)",
    "mm39": "Mus musculus, GRCm39",
    "dm6": "Drosophila melanogaster, BDGP6",
}
# Files by the ending of their names, and their sizes.
ASSETS: dict[str, tuple[str, dict[str, int]]] = {
    "fasta": ("Sequences, with their index and dictionary", {".fa": 6 * MB, ".fa.fai": 19 * KB, ".dict": 3 * KB}),
    "bwa_index": (
        "Genome index for Burrows-Wheeler Aligner",
        {".fa.bwt": 12 * MB, ".fa.sa": 6 * MB, ".fa.pac": 3 * MB, ".fa.ann": 2 * KB, ".fa.amb": 1 * KB},
    ),
    "bowtie2_index": (
        "Genome index for bowtie2",
        {".1.bt2": 4 * MB, ".2.bt2": 3 * MB, ".rev.1.bt2": 4 * MB, ".rev.2.bt2": 3 * MB},
    ),
    "ensembl_gtf": ("Ensembl annotation, TSS and gene bodies", {".gtf.gz": 2 * MB, "_TSS.bed": 90 * KB}),
    "blacklist": ("Regions that are best left out", {".bed.gz": 12 * KB}),
}


def digest_of(genome: str) -> str:
    """Return the digest of a genome: 48 letters, as refgenieserver wants them."""
    return hashlib.sha256(genome.encode()).hexdigest()[:48]


@dataclass
class Shelf(World):
    """A refgenieserver's folder with genomes of `GENOMES`, or of a catalog that names what has no bytes."""

    genomes: dict[str, Any] = field(default_factory=dict)

    def stock(self, genome: str, share: float = 1.0) -> None:
        """Put a genome on the server, with files of a share of their size."""
        digest = digest_of(genome)
        assets = {}
        for asset, (about, endings) in ASSETS.items():
            files = {
                f"{digest}{end}": noise(f"{genome}{asset}{end}", int(size * share)) for end, size in endings.items()
            }
            self._place(digest, asset, files)
            size = sum(map(len, files.values()))
            assets[asset] = _asset(digest, asset, about, files, size)
        self.genomes[digest] = {"genome_description": GENOMES[genome], "aliases": [genome], "assets": assets}
        self.publish()

    def _place(self, digest: str, asset: str, files: Mapping[str, bytes]) -> None:
        home = self.root / digest
        for name, data in files.items():
            replace(home / f"{asset}__{TAG}" / name, data)
        replace(home / f"{asset}__{TAG}.tgz", archive_of(files))
        replace(home / f"asset_dir_contents_{asset}__{TAG}.json", json.dumps(list(files)).encode())

    def name_many(self, genomes: int, assets: int) -> None:
        """Have the catalog name so many genomes, each with so many assets, of which nothing can be read."""
        for number in range(genomes):
            name = f"species{number:03d}"
            digest = digest_of(name)
            rows = {
                f"{kind}_{at:03d}": _asset(digest, f"{kind}_{at:03d}", f"Asset {at} of {name}", {}, 1_000_000 + at)
                for at, kind in zip(range(assets), ("fasta", "bwa_index", "star_index", "gtf") * assets, strict=False)
            }
            self.genomes[digest] = {
                "genome_description": f"The genome of species {number}",
                "aliases": [name],
                "assets": rows,
            }
        self.publish()

    def publish(self) -> None:
        """Write the catalog."""
        self.root.mkdir(exist_ok=True)
        replace(self.root / CATALOG, json.dumps(self.genomes).encode())


def _asset(digest: str, asset: str, about: str, files: Mapping[str, bytes], size: int) -> dict[str, Any]:
    attrs = {
        "asset_path": asset,
        "asset_digest": hashlib.md5(f"{digest} {asset}".encode()).hexdigest(),
        "archive_digest": hashlib.md5(f"{digest} {asset} archive".encode()).hexdigest(),
        "asset_size": human_bytes(size),
        "archive_size": human_bytes(size),
        "seek_keys": {"dir": ".", **({asset: min(files)} if files else {})},
        "asset_parents": [],
        "asset_children": [],
    }
    return {"asset_description": about, "tags": {TAG: attrs}, "default_tag": TAG}


@contextmanager
def make_shelf(
    folder: Path, *, rate: float | None = None, latency: float = 0.0, size: str = "200MB"
) -> Iterator[tuple[Shelf, Site]]:
    """Make an empty shelf, serve it at so many bytes a second and connection, and prepare a daemon over it."""
    shelf = Shelf(folder / "root")
    shelf.publish()
    server = ScriptedOrigin(shelf.root, remotes=True, rate=rate, latency=latency)
    setup = Setup(folder, sources="", size=size, limits=LIMITS)
    site = Site(shelf, server, setup, True)
    site.start_origin()
    setup.sources = source_toml(server.url, remotes=True).replace('"origin"', '"refgenomes"')
    try:
        yield shelf, site
    finally:
        site.stop_origin()
