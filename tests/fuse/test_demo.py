"""`refgenfs demo`, as `make demo` runs it: it ends with 0, says what it did, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from refgenfs.mount_table import parse_mountinfo

pytestmark = [pytest.mark.needs_fuse, pytest.mark.timeout(300)]

READS = 20_000


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment whose temporary folder is the test's own, short enough for a control socket's path."""
    with TemporaryDirectory(prefix="rgfs-", dir="/tmp") as runtime:
        yield {**os.environ, "TMPDIR": str(tmp_path), "REFGENFS_RUNTIME_DIR": runtime, "COLUMNS": "80"}
    for point in mounted_below(tmp_path):  # of one that was killed
        subprocess.run(["fusermount3", "-uz", point], check=False, capture_output=True, timeout=20)


def demo(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["timeout", "-s", "KILL", "200", sys.executable, "-m", "refgenfs", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ, stdin=subprocess.DEVNULL)


def mounted_below(folder: Path) -> list[Path]:
    mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_text())
    return [mount.point for mount in mounts if folder in mount.point.parents]


def test_the_figures_are_right(environ: dict[str, str], tmp_path: Path) -> None:
    done = demo(environ, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert report["archive_bytes"] > 2_000_000
    assert report["cold_bytes"] == report["archive_bytes"]
    assert 0 < report["first_byte_seconds"] < 60
    assert report["warm_bytes"] == 0
    assert report["parallel"] == 5
    # the names of the files are asked for too, beside the archive
    assert 0 <= report["parallel_bytes"] - report["archive_bytes"] < 0.005 * report["archive_bytes"]
    assert (report["reads"], report["mapped"]) == (READS, READS)
    assert report["right_place"] > 0.99 * READS
    assert report["same_as_plain_files"] is True

    assert mounted_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert list(Path(environ["REFGENFS_RUNTIME_DIR"]).iterdir()) == []


def test_a_person_is_told_what_happens(environ: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "a demo"
    done = demo(environ, "--workdir", str(folder), "--keep")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line[0] for line in lines if line[:1].isdigit()] == list("12345")
    assert "   $ bwa mem $GENOMES/demo/bwa_index/demo.fa reads.fq" in lines
    for part in (
        "= 1.00 of the archive's",
        "the output is the same as on plain files",
        "fetched: 0 B = 0.00 of the archive's",
        "fetched by all 5: ",
        "All as it should be.",
    ):
        assert part in done.stdout, part
    assert "Traceback" not in done.stdout
    assert mounted_below(tmp_path) == []
    assert (folder / "origin" / "reads.fq").is_file()
    for name in ("first", "second"):
        log = (folder / f"daemon-{name}.log").read_text()
        assert "mounted on" in log
        assert "WARNING" not in log
        assert "ERROR" not in log


def test_what_is_missing_is_named(environ: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "refgenfs", "demo"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**environ, "PATH": str(tmp_path)}, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == "refgenfs: bwa is missing: `apt-get install bwa` (or `make demo`, which does it)\n"
    assert list(tmp_path.iterdir()) == []
