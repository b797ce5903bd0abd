"""Many readers, a small cache, an origin that fails at random: every byte that comes is compared."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.world import LIMITS, PROBE, ScriptedOrigin, assert_log_is_clean, make_site, noise
from tests.support.faulty_origin import Fault

pytestmark = [pytest.mark.needs_fuse, pytest.mark.slow]

READERS = 16
# Ten seconds tell what a change broke at once; `make stress` goes on for minutes.
SECONDS = float(os.environ.get("REFGENFS_STRESS_SECONDS", "10"))
MIB = 1 << 20
KINDS = ("status", "reset", "truncate", "status", "reset", "truncate", "silent", "shift_range")


class MoodyOrigin(ScriptedOrigin):
    """Every few requests for bytes, one goes wrong."""

    def __init__(self, root: Path, **options: Any) -> None:
        super().__init__(root, **options)
        self.dice = random.Random(7)
        self.calm = False
        self.struck = 0

    def _next_fault(self, path: str) -> Fault | None:
        if self.calm or not ("/archive/" in path or "/files/" in path) or self.dice.random() > 0.12:
            return None
        self.struck += 1
        kind = self.dice.choice(KINDS)
        after = self.dice.choice((0, 100, 200_000, 900_000))
        return Fault(kind, after=after, value=503 if kind == "status" else 128 * 1024)  # type: ignore[arg-type]


@pytest.mark.timeout(SECONDS + 90)
@pytest.mark.parametrize("remotes", [False, True], ids=["archive", "ranges"])
def test_stress(tmp_path: Path, remotes: bool) -> None:
    with make_site(tmp_path, remotes=remotes, size="7MB", origin=MoodyOrigin) as site:
        origin = site.origin
        assert isinstance(origin, MoodyOrigin)
        for asset in ("x", "y"):
            files = {f"f{n}": noise(f"{asset}{n}", 700_000 * n + 11) for n in range(1, 6)}
            site.world.add(asset, files)
        with site.mount() as m:
            kill = ["timeout", "-s", "KILL", str(SECONDS + 60), sys.executable, str(PROBE), "random"]
            pairs = site.pairs("x", "y")
            readers = [
                subprocess.Popen([*kill, str(seed), str(SECONDS), *pairs], stdout=subprocess.PIPE)
                for seed in range(READERS)
            ]
            results = [json.loads(reader.communicate(timeout=SECONDS + 75)[0]) for reader in readers]
            print(results, origin.struck, m.status()["cache"])
            assert [wrong for found in results for wrong in found["wrong"]] == []
            assert all(set(found["errors"]) <= {"EIO", "ETIMEDOUT", "ESTALE"} for found in results), results
            assert all(found["reads"] for found in results), results
            assert sum(found["reads"] for found in results) > 10 * READERS, results
            assert max(found["longest"] for found in results) < 30, results
            assert origin.struck > 10
            assert m.status()["cache"]["evictions"] > 10
            assert m.memory() < 150 * MIB
            used = int(m.run("du", "-sB1", str(m.cache)).stdout.split()[0])
            assert used <= 7_000_000
            origin.calm = True
            site.read_right("x", "y")
            assert m.call("cache_verify")["damaged"] == []
            assert_log_is_clean(m)
        with site.mount():
            site.read_right("x", "y")


@pytest.mark.parametrize(("memory", "count"), [("64MiB", 12), ("24MiB", 5), ("4MiB", 4)])
def test_streams_that_nobody_waits_for_give_way(tmp_path: Path, memory: str, count: int) -> None:
    """With no fault at all: more archives begun than there are streams at a time, and a cache that is full."""
    names = [f"a{number:02}" for number in range(count)]
    with make_site(tmp_path, size="4MiB") as site:
        site.setup.limits = {**LIMITS, "memory": memory}
        for name in names:
            site.world.add(name, {"f": noise(name, 5 * MIB)})
        with site.mount() as m:
            for name in names:
                found = m.run("head", "-c", "1000", f"{m.path}/tiny/{name}/f", timeout=20, check=False, text=False)
                assert found.stdout == noise(name, 5 * MIB)[:1000], (name, found.stderr, site.tail())
            site.world.add("late")
            m.call("reload")
            site.read_right("late")  # asks for its listing and its archive
            assert_log_is_clean(m)
