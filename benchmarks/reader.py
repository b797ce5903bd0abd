"""Readers with a clock, in a process of their own. Prints one line of JSON; needs the standard library only.

python reader.py random PATH [--count N] [--seconds S] [--seed N] [--while-running PID]
python reader.py open LIST              LIST: a file with one path a line
python reader.py stat LIST
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SIZE = 4096


def read_random(path: str, count: int, seconds: float, seed: int, pid: int) -> dict[str, float]:
    """Read distinct pages at random: so many, for so long at most, and while a process lives."""
    fd = os.open(path, os.O_RDONLY)
    pages = os.fstat(fd).st_size // SIZE
    chosen = random.Random(seed).sample(range(pages), min(count, pages))
    taken = []
    clock = time.perf_counter
    began = now = clock()
    for page in chosen:
        if now - began > seconds or (pid and not is_running(pid)):
            break
        before = clock()
        data = os.pread(fd, SIZE, page * SIZE)
        now = clock()
        taken.append(now - before)
        if len(data) != SIZE:
            sys.exit(f"{path}: {len(data)} bytes at {page * SIZE}")
    os.close(fd)
    return {"reads": len(taken), "seconds": now - began, **spread(taken)}


def is_running(pid: int) -> bool:
    """Say whether a process is there, and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def open_all(listed: Path) -> dict[str, float]:
    """Open all files, keep them open, read the first 4 KiB of each, close them; tell the time of each step."""
    paths = listed.read_text().splitlines()
    clock = time.perf_counter
    times = [clock()]
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    times.append(clock())
    for fd in fds:
        os.pread(fd, SIZE, 0)
    times.append(clock())
    print(json.dumps({"open": len(fds)}), flush=True)  # whoever measures memory does it now
    sys.stdin.readline()
    before = clock()
    for fd in fds:
        os.close(fd)
    return {"open": times[1] - times[0], "read": times[2] - times[1], "close": clock() - before}


def stat_all(listed: Path) -> dict[str, float]:
    """Look every path up, one after the other."""
    taken = []
    for path in listed.read_text().splitlines():
        before = time.perf_counter()
        os.stat(path)
        taken.append(time.perf_counter() - before)
    return {"seconds": sum(taken), **spread(taken)}


def spread(taken: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile (nearest rank) and longest; zeros of nothing."""
    if not taken:
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    ordered = sorted(taken)
    rank = min(len(ordered) - 1, -(-99 * len(ordered) // 100) - 1)
    return {"p50": ordered[len(ordered) // 2], "p99": ordered[rank], "max": ordered[-1]}


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("random", "open", "stat"))
    parser.add_argument("path")
    parser.add_argument("--count", type=int, default=1 << 30)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--while-running", type=int, default=0)
    options = parser.parse_args()
    if options.what == "random":
        told = read_random(options.path, options.count, options.seconds, options.seed, options.while_running)
    elif options.what == "open":
        told = open_all(Path(options.path))
    else:
        told = stat_all(Path(options.path))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
