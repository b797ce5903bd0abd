"""The benchmarks run: a small file, refgenfs and curl alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results import OURS, Results

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
