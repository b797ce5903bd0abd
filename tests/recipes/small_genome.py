"""A genome of 40 kb on a server, with bwa's index and reads: what the workflows of the recipes need."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from refgenfs.demo import genome as simulated
from tests.faults.world import DIGEST, Site

LENGTH = 40_000  # bases
READS = 200


def add_genome(site: Site) -> simulated.Genome:
    """Have a site serve the genome's FASTA, with no index of it, and bwa's index; return the genome."""
    site.setup.limits = {}
    site.setup.sources = site.setup.sources.replace('"500ms"', '"20s"')
    genome = simulated.make_genome(length=LENGTH)
    site.world.add("fasta", {f"{DIGEST}.fa": simulated.fasta(genome)})
    site.world.add("bwa_index", bwa_index(genome))
    return genome


def bwa_index(genome: simulated.Genome) -> dict[str, bytes]:
    """Return the files of bwa's index, as a refgenieserver names them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / f"{DIGEST}.fa").write_bytes(simulated.fasta(genome))
        subprocess.run(["bwa", "index", f"{DIGEST}.fa"], cwd=folder, check=True, capture_output=True, timeout=60)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_reads(genome: simulated.Genome, path: Path) -> None:
    """Write reads of the genome."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(simulated.fastq(simulated.simulate_reads(genome, READS)))
