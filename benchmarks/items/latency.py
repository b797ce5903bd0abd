"""How long a single read waits while something else goes on."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.bench import BLOB, Bench, each
from benchmarks.contestants import GIVE_UP, OURS, RCLONE_NEW, RCLONE_OLD, STARTS, Mount
from benchmarks.data import noise
from benchmarks.items.reading import READER
from benchmarks.machine import Failed, drop_pages, load_pages, read_whole, run
from benchmarks.results import MIB, Goal, Item, Sample

RESIDENT = "resident.bin"


def cached_while_downloading(bench: Bench) -> Item:
    """Read what is cached at random while a cold file is downloaded as fast as it goes."""
    item = Item(
        "p99", "p99 of a cached 4 KiB read while a cold download saturates", "ms",
        "One file is in the cache (its pages there in memory, those of the mount dropped); distinct 4 KiB of it are "
        "read, one at a time, for as long as another process reads a cold file in order, on loopback.",
        Goal("≤", 10, " ms"), "", "–",
    )  # fmt: skip
    small = max(8 * MIB, bench.size // 4)
    asset = bench.plain(f"two{bench.size // MIB}", [noise(BLOB, bench.size), noise(RESIDENT, small, seed=3)])
    starts = bench.select(STARTS, OURS, RCLONE_NEW, RCLONE_OLD)
    told: dict[str, dict[str, float]] = {}

    def waiting(name: str) -> Sample:
        def use(mount: Mount) -> float:
            read_whole(mount.file(RESIDENT), timeout=GIVE_UP)
            load_pages(mount.cached_files())
            drop_pages([mount.file(RESIDENT)])
            told[name] = _read_beside_download(mount)
            return 1000 * told[name]["p99"]

        return bench.cold(
            name,
            starts[name],
            bench.place(asset),
            use,
            work=bench.size,
            hot=[asset.plain(file) for file in asset.files],
        )

    bench.item(item, each(starts, waiting))
    item.notes += [
        f"{name}, last run: {found['reads']:,.0f} reads in {found['seconds']:.1f} s, median "
        f"{1000 * found['p50']:.2f} ms, longest {1000 * found['max']:.1f} ms."
        for name, found in told.items()
    ]
    return item


def _read_beside_download(mount: Mount) -> dict[str, float]:
    """Read at random while another process reads the cold file; return what the reader tells."""
    download = subprocess.Popen(
        [
            "timeout",
            "-s",
            "KILL",
            str(GIVE_UP),
            "dd",
            f"if={mount.file(BLOB)}",
            "of=/dev/null",
            "bs=1M",
            "status=none",
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        command = [sys.executable, READER, "random", str(mount.file(RESIDENT)), "--while-running", str(download.pid)]
        done = run(command, timeout=GIVE_UP)
    finally:
        code = download.wait(GIVE_UP + 20)
    if code:
        raise Failed(f"the download beside it ended with {code}")
    told: dict[str, float] = json.loads(done.stdout)
    return told


ITEMS = {"p99": cached_while_downloading}
