"""The benchmarks run: a small file, refgenfs and curl alone."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results import OURS, Results
from tests.support.documents import Block, commands, parse

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.needs_fuse]


def test_a_benchmark_measures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    stored = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "cold-sequential", "--quick", "--size", "8MiB", "--only", "nobody"]
    environ = {**os.environ, "REFGENFS_BENCH_DIR": str(tmp_path / "scratch")}
    done = subprocess.run(
        [*command, "--json", str(stored)],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    item = Results.from_json(stored.read_text()).items["cold-sequential"]
    assert [contest.name for contest in item.contests] == ["curl", OURS]
    assert [contest.failed for contest in item.contests] == ["", ""]
    assert [sample.fetched for contest in item.contests for sample in contest.samples] == [8 << 20, 8 << 20]
    assert item.score(OURS) is not None
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert not (tmp_path / "scratch" / "run").exists()


def test_the_page_s_commands_are_taken() -> None:
    """Each takes minutes; what they would run is asked of make, and has its items and options looked at."""
    (block,) = (
        step
        for step in parse((ROOT / "docs/performance.md").read_text(), "docs/performance.md")
        if isinstance(step, Block) and step.test
    )
    for command in commands(block):
        make, target, *variables = shlex.split(command.text, comments=True)
        assert (make, target) == ("make", "bench")
        told = subprocess.run(
            [make, "--dry-run", "--no-print-directory", target, *variables],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        measure = shlex.split(told.splitlines()[-1])
        assert measure[1:3] == ["-m", "benchmarks"], told
        listed = subprocess.run(
            [sys.executable, *measure[1:], "--list"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (listed.returncode, listed.stderr) == (0, ""), command.text
        assert listed.stdout
