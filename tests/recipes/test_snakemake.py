"""The recipe for Snakemake, run by Snakemake on a mount: what it does, and what it does not do again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from refgenfs.demo import genome as simulated
from tests.conftest import REPOSITORY
from tests.faults.world import ALIAS, Site, make_site
from tests.recipes.small_genome import LENGTH, READS, add_genome, bwa_index, write_reads
from tests.support.mounted import Mounted

RECIPE = REPOSITORY / "mount" / "recipes" / "snakemake"
SNAKEMAKE = REPOSITORY / ".venv" / "recipes" / "bin" / "snakemake"

pytestmark = pytest.mark.needs_fuse


@dataclass
class Workflow:
    """A working folder with the recipe's Snakefile, and reads; the genomes are on a mount."""

    folder: Path
    site: Site
    region: str

    def run(self, m: Mounted, *options: str) -> str:
        """Run Snakemake, and return what it said."""
        config = [f"genomes={m.path}", f"genome={ALIAS}", f"region={self.region}"]
        profile = ["--profile", str(RECIPE / "profile")]
        command = [str(SNAKEMAKE), *profile, *options, "--config", *config]
        environ = {**os.environ, "HOME": str(self.folder), "XDG_CACHE_HOME": str(self.folder / "cache")}
        done = subprocess.run(
            ["timeout", "-s", "KILL", "90", *command],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            env=environ,
        )
        assert done.returncode == 0, (done.stdout, done.stderr, m.log_text()[-2000:])
        return done.stdout + done.stderr


@pytest.fixture(params=[False, True], ids=["archive", "ranges"])
def workflow(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Workflow]:
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copy(RECIPE / "Snakefile", folder)
    with make_site(tmp_path, remotes=request.param) as site:
        genome = add_genome(site)
        write_reads(genome, folder / "reads" / "a.fq")
        (tmp_path / "truth.fa").write_bytes(simulated.fasta(genome))
        yield Workflow(folder, site, f"{genome.contigs[0].name}:101-160")


def test_it_runs_once_and_again_only_for_what_is_new(workflow: Workflow, tmp_path: Path) -> None:
    site = workflow.site
    with site.mount() as m:
        said = workflow.run(m)
        assert "rule align" in said
        flagstat = m.shell(f"samtools view -c -F 4 {workflow.folder}/aligned/a.bam")
        assert int(flagstat) > READS * 0.95
        region = (workflow.folder / "region.fa").read_text()
        assert region == m.shell(f"samtools faidx {tmp_path}/truth.fa {workflow.region}")
    # Another daemon, an empty cache, nothing that the kernel remembers: times of files are the origin's.
    shutil.rmtree(m.cache)
    with site.mount() as m:
        assert "Nothing to be done" in workflow.run(m)
        if not site.remotes:  # times of members are those of the build, which is as old as all of them here
            return
        other = simulated.make_genome(seed=2, length=LENGTH)  # Snakemake passes over small files of the same bytes
        site.world.add("bwa_index", bwa_index(other), version="2")
        m.call("reload")
        planned = workflow.run(m, "--dry-run")
        assert "rule align" in planned
        assert "Updated input files" in planned
        assert "rule region" not in planned


@pytest.mark.parametrize("workflow", [True], indirect=True, ids=["ranges"])  # an archive has to arrive for its times
def test_looking_at_inputs_fetches_none_of_them(workflow: Workflow) -> None:
    site = workflow.site
    with site.mount() as m:
        m.shell(f"ls $M/{ALIAS}/fasta/{ALIAS}.fa.fai")  # which is made, of all of the FASTA
        site.origin.reset_stats()
        assert "rule align" in workflow.run(m, "--dry-run")
        assert site.origin.stats().total.bytes == 0
