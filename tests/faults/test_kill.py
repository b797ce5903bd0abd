"""kill -9 in the middle of things: whatever moment it is, after the restart every byte is right."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.world import PROBE, Site, assert_log_is_clean, make_site, noise

pytestmark = [pytest.mark.needs_fuse, pytest.mark.slow]

ROUNDS = 6
READERS = 4
RATE = 1.5e6  # bytes a second a connection: a cold read takes about as long as the ledger is behind


def _files(asset: str) -> dict[str, bytes]:
    return {f"f{number}": noise(f"{asset} {number}", 700_000 + 1_000 * number) for number in range(5)}


@pytest.mark.parametrize("remotes", [False, True], ids=["archive", "ranges"])
def test_kill_in_a_cold_parallel_read(tmp_path: Path, remotes: bool) -> None:
    """Round after round over one cache directory and one mountpoint, which the dead daemon leaves mounted."""
    dice = random.Random(20_261)
    assets = [f"r{number}" for number in range(ROUNDS)]
    with make_site(tmp_path, remotes=remotes) as site, ExitStack() as stack:
        for asset in assets:
            site.world.add(asset, _files(asset))
        kept = 0
        for number, asset in enumerate(assets):
            m = stack.enter_context(site.mount())  # on the dead mountpoint of the round before
            if number:
                before = sum(row["resident"] for row in m.call("cache_info")["contents"])
                kept += before
                site.read_right(*assets[max(0, number - 2) : number])
            site.origin._rate = RATE
            readers = _start_readers(site, asset, dice)
            time.sleep(dice.uniform(0.0, 2.4))
            m.kill()
            site.origin._rate = None
            for reader in readers:
                reader.wait(40)
        assert kept > 0, "no daemon had anything left from the one before"
        m = stack.enter_context(site.mount())
        site.read_right(*assets)
        assert m.call("cache_verify")["damaged"] == []
        assert_log_is_clean(m)


def _start_readers(site: Site, asset: str, dice: random.Random) -> list[subprocess.Popen[bytes]]:
    pairs = [site.pairs(asset, only=name) for name in site.world.files(asset)]
    readers = []
    for _ in range(READERS):
        dice.shuffle(pairs)
        arguments = [part for pair in pairs for part in pair]
        command = ["timeout", "-s", "KILL", "20", sys.executable, str(PROBE), "compare", *arguments]
        readers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    return readers
