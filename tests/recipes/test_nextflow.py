"""The recipe for Nextflow. Nextflow itself is not run: no package index has it.

What is run is what Nextflow would run: the script of the process, in a container with the options of the profile.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.faults.world import ALIAS, Site, make_site
from tests.recipes.small_genome import READS, add_genome, write_reads
from tests.support.mounted import Mounted
from tests.support.podman import THIS_MACHINE, Podman, podman, this_machine

RECIPE = REPOSITORY / "mount" / "recipes" / "nextflow"
PYTHON = REPOSITORY / ".venv" / "recipes" / "bin" / "python"
FOLDER = "/srv/refgenfs"

PARSE = """
import sys
from groovy_parser.parser import parse_groovy_content
for path in sys.argv[1:]:
    with open(path) as file:
        text = file.read()
    parse_groovy_content(text)
try:
    parse_groovy_content(text.replace("{", "(", 1))
except Exception:
    sys.exit(0)
sys.exit("a wrong bracket goes unnoticed")
"""


def test_its_files_are_groovy() -> None:
    """By Groovy's own grammar; Nextflow's is Groovy's with words of its own."""
    paths = [str(RECIPE / name) for name in ("nextflow.config", "main.nf")]
    done = subprocess.run([PYTHON, "-c", PARSE, *paths], capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]


def container_options(profile: str) -> list[str]:
    """Return what a profile hands to the engine."""
    text = (RECIPE / "nextflow.config").read_text()
    found = re.search(rf"\n    {profile} {{\n.*?containerOptions = '([^']*)'", text, re.DOTALL)
    assert found is not None
    return found[1].split()


def script(**values: str) -> str:
    """Return the script of the process, as a task has it."""
    found = re.search(r'script:\n    """\n(.*?)\n    """', (RECIPE / "main.nf").read_text(), re.DOTALL)
    assert found is not None
    text = re.sub(r"\$\{([\w.]+)\}", lambda name: values[name[1]], found[1])
    assert "$" not in text
    return text.strip()


def parameter(name: str) -> str:
    """Return a parameter's default."""
    found = re.search(rf"\n    {name} = '([^']*)'", (RECIPE / "nextflow.config").read_text())
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def engine() -> Iterator[Podman]:
    with podman() as made:
        yield made


@pytest.fixture(scope="module")
def mounted() -> Iterator[tuple[Site, Mounted]]:
    top = Path(tempfile.mkdtemp(prefix="rgfs-flow-"))
    top.chmod(0o755)
    try:
        with make_site(top, remotes=True) as site:
            (top / "refgenfs").mkdir()
            site.setup.mountpoint = top / "refgenfs" / "genomes"
            site.setup.extra = "allow_other = true"
            write_reads(add_genome(site), top / "work" / "reads.fq")
            (top / "work").chmod(0o777)
            with site.mount() as m:
                yield site, m
    finally:
        shutil.rmtree(top, ignore_errors=True)


@pytest.mark.needs_root
@pytest.mark.needs_fuse
@pytest.mark.parametrize("profile", ["docker", "podman"])
def test_the_script_runs_in_a_container_of_the_profile(
    engine: Podman, mounted: tuple[Site, Mounted], profile: str
) -> None:
    _, m = mounted
    work = m.path.parents[1] / "work"
    binds = [part.replace(f"{FOLDER}:", f"{m.path.parent}:", 1) for part in container_options(profile)]
    binds = [part.replace(f"src={FOLDER}", f"src={m.path.parent}") for part in binds]
    index = f"{parameter('genomes')}/{ALIAS}/bwa_index/{ALIAS}.fa"
    command = script(**{"task.cpus": "1", "index": index, "reads": "reads.fq", "sample": profile})
    options = [*this_machine(REPOSITORY), *binds, f"--volume={work}:/work", "--workdir=/work", "--user=1000:1000"]
    engine.run(options, "bash", "-ceuo", "pipefail", command, image=THIS_MACHINE)
    assert int(m.shell(f"samtools view -c -F 4 {work}/{profile}.bam")) > READS * 0.95


def test_the_options_of_apptainer_bind_the_folder_above_the_mountpoint() -> None:
    assert container_options("apptainer") == ["--bind", FOLDER]
    assert Path(parameter("genomes")).parent == Path(FOLDER)
