"""What items have in common: reading in order and at random, through a mount or from the disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.contestants import GIVE_UP, Mount
from benchmarks.machine import read_whole, run
from benchmarks.results import GIB, Sample

EXT4 = "the disk"
CURL = "curl"
READER = str(Path(__file__).resolve().parents[1] / "reader.py")
RANDOM_SECONDS = 3.0


def rate(path: Path, size: int) -> float:
    """Read a file of `size` bytes in order and return MB/s."""
    return size / read_whole(path, size=size, timeout=GIVE_UP) / 1e6


def through(mount: Mount, name: str, size: int) -> Sample:
    """Read a file in order through a mount."""
    before = mount.usage()
    value = rate(mount.file(name), size)
    after = mount.usage()
    return Sample(value, after.memory, (after.cpu - before.cpu) / size * GIB)


def random_reads(
    path: Path, *, count: int = 1 << 30, seconds: float = RANDOM_SECONDS, seed: int = 1
) -> dict[str, float]:
    """Read 4 KiB at distinct random places, so many or for so long, and return what the reader tells."""
    command = [sys.executable, READER, "random", str(path), "--count", str(count), "--seconds", str(seconds)]
    done = run([*command, "--seed", str(seed)], timeout=seconds + GIVE_UP)
    told: dict[str, float] = json.loads(done.stdout)
    return told


def random_rate(path: Path, **options: float) -> float:
    """Return random reads a second."""
    told = random_reads(path, seconds=options.get("seconds", RANDOM_SECONDS), seed=int(options.get("seed", 1)))
    return told["reads"] / told["seconds"]


def seconds_of_random(bench: Bench) -> float:
    """Return how long to read at random."""
    return 1.0 if bench.quick else RANDOM_SECONDS
