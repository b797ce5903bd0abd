"""The recipe for Slurm, as it is, in a real Slurm of one node."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import REPOSITORY
from tests.faults.world import Site, make_site
from tests.support.documents import Block, parse
from tests.support.faulty_origin import Fault
from tests.support.mounted import Mounted
from tests.support.slurm import Slurm, running_slurm

RECIPE = REPOSITORY / "mount" / "recipes" / "slurm"
PATIENCE = 3  # seconds that a prolog waits here

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]


class Cluster(NamedTuple):
    """A node with Slurm and a mount."""

    slurm: Slurm
    site: Site
    m: Mounted
    folder: Path

    def pins(self) -> dict[str, list[str]]:
        """Return for whom each key is pinned."""
        return {row["key"]: [one["name"] for one in row["for"]] for row in self.m.call("pins")["keys"]}

    def said(self) -> str:
        """Return what the scripts have logged."""
        log = self.folder / "said"
        return log.read_text() if log.exists() else ""

    def submit(self, name: str, comment: str) -> int:
        """Submit a job that runs until `finish`."""
        wait = f"touch {self.folder}/{name}.runs; until [ -e {self.folder}/{name}.may-end ]; do sleep 0.1; done"
        return self.slurm.submit(f"timeout --foreground 100 bash -c '{wait}'", f"--comment={comment}")

    def runs(self, name: str) -> bool:
        """Say whether a job has begun."""
        return (self.folder / f"{name}.runs").exists()

    def finish(self, name: str) -> None:
        """Have a job end."""
        (self.folder / f"{name}.may-end").touch()

    def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is true."""
        deadline = time.monotonic() + 45
        while not true():
            assert time.monotonic() < deadline, f"{self.pins()}\n{self.said()}\n{self.slurm.logs()}"
            time.sleep(0.1)


def wrapped(folder: Path, name: str, settings: Path) -> Path:
    """Return a script that runs one of the recipe's with other settings: Slurm hands no environment to it."""
    path = folder / name
    path.write_text(f"#!/bin/bash\nexport REFGENFS_SLURM={settings}\nexec {RECIPE / name}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    with make_site(folder, ["a", "b", "c"], remotes=True) as site:
        site.setup.limits = {}
        site.setup.sources = site.setup.sources.replace('"500ms"', '"60s"')
        with site.mount() as m:
            environ = " ".join(
                f"export {key}={m.environ[key]};" for key in ("REFGENFS_RUNTIME_DIR", "XDG_STATE_HOME")
            )
            program = folder / "refgenfs"
            program.write_text(f'#!/bin/bash\n{environ}\nexec {sys.executable} -m refgenfs "$@"\n')
            program.chmod(0o755)
            settings = folder / "settings"
            settings.write_text(
                f"mountpoint={m.path}\nrefgenfs={program}\npatience={PATIENCE}\nmarks={folder / 'marks'}\n"
                f'said={folder / "said"}\nexport said\nsay() {{ echo "$SLURM_JOB_ID: $*" >>"$said"; }}\n'
            )
            prolog, epilog = (wrapped(folder, name, settings) for name in ("prolog.sh", "epilog.sh"))
            shown = dict(line.split("=", 1) for line in recipe_lines() if not line.startswith(("Prolog=", "Epilog=")))
            with running_slurm(prolog, epilog, shown) as slurm:
                yield Cluster(slurm, site, m, folder)


def recipe_lines() -> list[str]:
    """Return the recipe's lines for slurm.conf."""
    lines = (RECIPE / "slurm.conf").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def blocks(page: str, containing: str) -> list[str]:
    """Return the commands of the page's blocks that have a text."""
    steps = parse((REPOSITORY / page).read_text(), page)
    found = [step.text for step in steps if isinstance(step, Block) and step.language == "sh"]
    return [line for text in found for line in text.splitlines() if containing in line]


def test_a_job_of_the_page(cluster: Cluster) -> None:
    (command,) = blocks("docs/recipes.md", "sbatch")
    command = command.replace("hg38/bwa_index", "tiny/a").replace("hg38/fasta", "tiny/b")
    job = cluster.folder / "job.sh"
    job.write_text(f"#!/bin/bash\nmd5sum {cluster.m.path}/tiny/a/b.small >{cluster.folder}/sum\n")
    words = shlex.split(command)
    cluster.slurm.run(*words[:-1], f"--output={cluster.folder}/%j.out", str(cluster.folder / words[-1]))
    cluster.until(lambda: (cluster.folder / "sum").exists())
    cluster.until(lambda: cluster.slurm.node() == "idle")
    assert "tiny/a tiny/b: all here and pinned" in cluster.said()
    cluster.until(lambda: cluster.pins() == {})


def test_the_scripts_are_installed_as_the_page_says(tmp_path: Path) -> None:
    for command in blocks("docs/recipes.md", "install -D"):
        words = shlex.split(command.replace("/etc/slurm", f"{tmp_path}/etc/slurm"))
        subprocess.run(words, cwd=REPOSITORY, check=True, timeout=20)
    named = [line.split("=", 1) for line in recipe_lines() if line.startswith(("Prolog=", "Epilog="))]
    assert len(named) == 2
    for key, path in named:
        installed = Path(f"{tmp_path}{path}")
        assert installed.read_bytes() == (RECIPE / f"{key.lower()}.sh").read_bytes()
        assert os.access(installed, os.X_OK)


def test_two_jobs_pin_the_same_and_the_last_lets_it_go(cluster: Cluster) -> None:
    one = cluster.submit("one", "for a lab refgenfs:tiny/a,tiny/b and more")
    cluster.until(lambda: cluster.runs("one"))
    cluster.until(lambda: cluster.pins() == {"tiny/a:default": [f"slurm-{one}"], "tiny/b:default": [f"slurm-{one}"]})
    assert cluster.m.call("info", key="tiny/a")["resident"] == 100
    two = cluster.submit("two", "refgenfs:tiny/a:default")
    cluster.until(lambda: cluster.runs("two"))
    cluster.until(lambda: cluster.pins()["tiny/a:default"] == [f"slurm-{one}", f"slurm-{two}"])
    cluster.finish("one")
    cluster.until(lambda: cluster.pins() == {"tiny/a:default": [f"slurm-{two}"]})
    cluster.slurm.run("scancel", str(two))
    cluster.until(lambda: cluster.pins() == {})
    cluster.until(lambda: cluster.slurm.node() == "idle")
    assert f"{one}: tiny/a tiny/b: all here and pinned after" in cluster.said()
    assert list((cluster.folder / "marks").iterdir()) == []


def test_an_origin_that_stalls_neither_holds_a_job_up_nor_drains_the_node(cluster: Cluster) -> None:
    cluster.site.origin.faults = [Fault("stall", "/files/*/c__*/a.big", times=None, after=1000)]
    try:
        number = cluster.submit("slow", "refgenfs:tiny/c")
        cluster.until(lambda: cluster.runs("slow"))
        assert f"{number}: starts before all of tiny/c is here" in cluster.said()
        assert cluster.slurm.node() in ("mixed", "allocated")
        assert cluster.pins() == {}
        cluster.finish("slow")
        cluster.until(lambda: cluster.slurm.job(number) == "COMPLETED")
        cluster.until(lambda: f"{number}: tiny/c: not pinned after" in cluster.said())
        assert f"slurm-{number} was let go of" in cluster.said()
        cluster.until(lambda: cluster.slurm.node() == "idle")
    finally:
        cluster.site.reset()


def test_what_is_no_key_gets_nowhere_and_what_there_is_not_is_said(cluster: Cluster) -> None:
    comment = f"refgenfs:$(touch${{IFS}}{cluster.folder}/owned),--help,../../etc,tiny/never,*/*"
    number = cluster.submit("odd", comment)
    cluster.finish("odd")
    cluster.until(lambda: cluster.slurm.job(number) == "COMPLETED")
    cluster.until(lambda: f"{number}: tiny/never: not pinned" in cluster.said())
    said = cluster.said()
    for part in ("--help", "../../etc", "*/*"):
        assert f"passed over '{part}' in its comment" in said
    assert "genome tiny has no asset 'never'" in said
    assert not (cluster.folder / "owned").exists()
    cluster.until(lambda: cluster.slurm.node() == "idle")


def test_without_a_daemon_jobs_run_all_the_same(cluster: Cluster) -> None:
    settings = cluster.folder / "settings"
    before = settings.read_text()
    settings.write_text(f"{before}mountpoint=/nowhere\n")
    try:
        number = cluster.submit("alone", "refgenfs:tiny/a")
        cluster.finish("alone")
        cluster.until(lambda: cluster.slurm.job(number) == "COMPLETED")
        cluster.until(lambda: f"{number}: pins stay until their time is over: refgenfs:" in cluster.said())
        assert f"{number}: tiny/a: not pinned after 0 s" in cluster.said() or "not pinned after 1 s" in cluster.said()
        cluster.until(lambda: cluster.slurm.node() == "idle")
    finally:
        settings.write_text(before)


def test_a_killed_prolog_and_an_epilog_that_never_runs_leave_a_pin_that_ends(cluster: Cluster) -> None:
    """As on a node that is rebooted, or that loses its slurmd."""
    settings = cluster.folder / "short"
    settings.write_text((cluster.folder / "settings").read_text() + "lease=3s\npatience=30\n")
    environ = {"SLURM_JOB_ID": "900", "SLURM_JOB_COMMENT": "refgenfs:tiny/b", "REFGENFS_SLURM": str(settings)}
    prolog = subprocess.Popen([RECIPE / "prolog.sh"], env=environ, start_new_session=True, cwd="/")
    cluster.until(lambda: (cluster.folder / "marks" / "900").exists())
    time.sleep(0.2)
    os.killpg(prolog.pid, signal.SIGKILL)
    prolog.wait(10)
    cluster.until(lambda: cluster.pins() == {"tiny/b:default": ["slurm-900"]})
    cluster.until(lambda: cluster.pins() == {})


def test_a_job_that_names_nothing_costs_nothing(cluster: Cluster) -> None:
    before = cluster.said()
    for comment in ("", "refgenie:tiny/a", "refgenfs:"):
        environ = {
            "SLURM_JOB_ID": "901",
            "SLURM_JOB_COMMENT": comment,
            "REFGENFS_SLURM": f"{cluster.folder}/settings",
        }
        for script in ("prolog.sh", "epilog.sh"):
            subprocess.run([RECIPE / script], env=environ, check=True, cwd="/", timeout=20)
    assert cluster.said() == before
    assert cluster.pins() == {}
