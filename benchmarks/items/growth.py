"""How cost grows with readers, assets, contents and open files: curves, not points. refgenfs alone."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bench import BLOB, Bench
from benchmarks.contestants import GIVE_UP, Place, empty, failing, refgenfs, refgenfs_archive, setup
from benchmarks.data import ALIAS, MIB, Asset, Shop, described, noise
from benchmarks.items.reading import READER
from benchmarks.machine import Failed, at_once, drop_caches, memory_of, run, stop, timed, usage
from benchmarks.origin import serving
from benchmarks.results import GIB, Curve
from refgenfs.cache.blockmap import PAGE, BlockMap
from refgenfs.cache.ledger import Ledger
from refgenfs.core.content import BLOCK, block_count, content_id
from tests.support.mounted import Mounted, Setup

PER_GENOME = 10  # assets
START = 120.0  # seconds that a start may take


# --- readers ------------------------------------------------------------------------------------------------


def readers(bench: Bench) -> Curve:
    """1 to 64 sequential readers of cold files, with as many bytes for all of them together."""
    total = max(64 * MIB, bench.size // 2)
    sizes = [1, 4, 16] if bench.quick else [1, 2, 4, 8, 16, 32, 64]
    curve = Curve(
        "readers", f"Readers at once, {total // MIB} MiB for all of them together, cold", "readers",
        [float(size) for size in sizes], {"seconds": 0, "CPU s a GiB": 0, "peak MiB": 0},
    )  # fmt: skip
    most = max(sizes)
    names = [f"part{number:02}.bin" for number in range(most)]
    whole = bench.blob(total)
    parts = bench.plain(f"parts{total // MIB}", [noise(name, total // most, seed=i) for i, name in enumerate(names)])
    for count in sizes:
        share = most // count
        groups = [names[i * share : (i + 1) * share] for i in range(count)]
        curve.note("different files", _read_at_once(bench, parts, [["cat", *group] for group in groups], total))
        megs = total // MIB // count
        slices = [
            ["dd", "bs=1M", "status=none", f"count={megs}", f"skip={i * megs}", f"if={BLOB}"] for i in range(count)
        ]
        curve.note("one file, a part each", _read_at_once(bench, whole, slices, total))
        bench.say(f"readers: {count} done")
    return bench.curve(curve)


def _read_at_once(bench: Bench, asset: Asset, commands: Sequence[Sequence[str]], total: int) -> dict[str, float]:
    """Run commands in the asset's folder, all at once, and return what that took."""
    bench.cool(*(asset.plain(name) for name in asset.files))
    with refgenfs(bench.place(asset), bench.folder("readers")) as mount:
        before = mount.usage()
        script = 'cd "$0"; exec "$@" >/dev/null'
        seconds, _ = at_once(
            [["sh", "-c", script, str(mount.folder), *command] for command in commands], timeout=GIVE_UP
        )
        after = mount.usage()
    return {
        "seconds": seconds,
        "CPU s a GiB": (after.cpu - before.cpu) / total * GIB,
        "peak MiB": after.memory / MIB,
    }


# --- assets in the catalog ----------------------------------------------------------------------------------


def catalog(bench: Bench) -> Curve:
    """100 to 100,000 assets in the catalog."""
    sizes = [100, 1000] if bench.quick else [100, 1000, 10_000, 100_000]
    curve = Curve(
        "catalog", f"Assets in the catalog, {PER_GENOME} a genome", "assets", [float(size) for size in sizes],
        {"ready s": 1, "peak MiB": 1, "ls / ms": 1, "ls genome ms": 0, "lookup ms": 0},
    )  # fmt: skip
    for count in sizes:
        root = empty(bench.scratch / "catalog")
        shop = Shop(root)
        _write_catalog(root, count)
        asset = Asset("a0", ("file.bin",), 0, shop.home)
        with serving(root, bench.scratch / "catalog-nginx") as origin:
            made = setup(Place(origin.url, asset), bench.folder("catalog"))
            curve.note("first start", _look_around(made, count))
            curve.note("again", _look_around(made, count))
        bench.say(f"catalog: {count} done")
    empty(bench.scratch / "catalog")
    return bench.curve(curve)


def _write_catalog(root: Path, count: int) -> None:
    genomes: dict[str, Any] = {}
    for number in range(-(-count // PER_GENOME)):
        assets = {
            f"a{i}": described(f"a{i}", "file.bin", 1000 + number, "")
            for i in range(min(PER_GENOME, count - number * PER_GENOME))
        }
        genomes[f"{number:048x}"] = {"genome_description": "", "aliases": [f"g{number}"], "assets": assets}
    (root / "genomes.json").write_text(json.dumps(genomes))


def _look_around(made: Setup, count: int) -> dict[str, float]:
    """Start, and look at names that nobody looked at before; the least of several, since others use the machine."""
    began = time.monotonic()
    genomes = -(-count // PER_GENOME)
    with mounted(made) as daemon:
        _wait_for(daemon.path / f"g{genomes - 1}" / "a0")
        ready = time.monotonic() - began
        looked = _look_up(made.folder, daemon.path, random.Random(count).sample(range(genomes), min(genomes, 10)))
        listed = [timed(["ls", str(daemon.path / f"g{number}")]) for number in range(5)]
        root = min(timed(["ls", "-f", str(daemon.path)]) for _ in range(3))
        peak = usage(daemon.process.pid).memory
    return {
        "ready s": ready,
        "peak MiB": peak / MIB,
        "ls / ms": root * 1000,
        "ls genome ms": min(listed) * 1000,
        "lookup ms": looked * 1000,
    }


def _look_up(folder: Path, root: Path, genomes: Sequence[int]) -> float:
    """Return the median seconds of a first lookup: of as many names in as many folders at any size."""
    listed = folder / "stat.list"
    listed.write_text("".join(f"{root}/g{genome}/a{i}\n" for genome in genomes for i in range(PER_GENOME)))
    told: dict[str, float] = json.loads(run([sys.executable, READER, "stat", str(listed)]).stdout)
    return told["p50"]


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + START
    while run(["stat", str(path)], check=False, timeout=START).returncode:
        if time.monotonic() > deadline:
            raise Failed(f"{path} is not there after {START:g} s")
        time.sleep(0.05)


# --- contents in the cache ----------------------------------------------------------------------------------


def contents(bench: Bench) -> Curve:
    """1,000 to 100,000 contents of 1 GB to 1 TB in the cache; their files are sparse."""
    steps = [(100, MIB), (1000, MIB)] if bench.quick else [(1000, MIB), (10_000, 10 * MIB), (100_000, 10 * MIB)]
    curve = Curve(
        "contents", "Contents in the cache: 1,000 of 1 MiB to 100,000 of 10 MiB (1 TB, sparse)", "contents",
        [float(count) for count, _ in steps], {"ready s": 1, "first read ms": 0, "all known s": 1, "peak MiB": 1},
    )  # fmt: skip
    asset = bench.blob(8 * MIB)
    for count, size in steps:
        made = setup(bench.place(asset), bench.folder("contents"))
        path = Path(ALIAS) / asset.name / BLOB
        with mounted(made) as daemon:
            run(["cat", str(daemon.path / path)], stdout=Path("/dev/null"))
        fill_cache(made.folder / "cache", count, size)
        with mounted(made):  # which puts the additions in its own order
            pass
        curve.note("after a clean stop", _start_and_read(made, path))
        (made.folder / "cache" / "clean").unlink()
        curve.note("after a power cut", _start_and_read(made, path))
        bench.say(f"contents: {count} done")
        empty(made.folder)
    return bench.curve(curve)


def fill_cache(directory: Path, count: int, size: int) -> None:
    """Add contents to a closed cache: rows of the ledger, and sparse files of zeros, which their checksums fit."""
    state = directory / "ledger"
    ledger = Ledger(state)
    epoch = 0
    for _, row in ledger.items("store/state"):
        epoch = int(str(row["epoch"])) if isinstance(row, dict) else 0
    blocks = BlockMap(size)
    for index in range(block_count(size)):
        blocks.mark(index, 1, zlib.crc32(bytes(min(BLOCK, size - index * BLOCK))))
    pages = {page: blocks.encode(page, epoch) for page in range(-(-block_count(size) // PAGE))}
    rows: dict[str, Any] = {}
    for number in range(count):
        cid = content_id("filler", f"{number}", "file.bin")
        with (directory / "contents" / cid).open("wb") as file:
            file.truncate(size)
        rows[f"content/{cid}"] = {"size": size, "resident": size, "last_used": 1.6e9 + number, "pinned": False}
        rows |= {f"blocks/{cid}/{page}": row for page, row in pages.items()}
        if len(rows) > 10_000:
            ledger.set_many(rows)
            rows = {}
    ledger.set_many(rows)
    ledger.close()


def _start_and_read(made: Setup, path: Path) -> dict[str, float]:
    drop_caches()
    with mounted(made) as daemon:
        began = time.monotonic()
        run(["dd", f"if={daemon.path / path}", "of=/dev/null", "bs=4k", "count=1", "status=none"])
        read = time.monotonic() - began
        while daemon.status()["cache"]["opening"]:
            if time.monotonic() - began > START:
                raise Failed(f"what is resident is not known after {START:g} s")
            time.sleep(0.02)
        return {
            "ready s": daemon.seconds,
            "first read ms": read * 1000,
            "all known s": time.monotonic() - began,
            "peak MiB": usage(daemon.process.pid).memory / MIB,
        }


# --- open files ---------------------------------------------------------------------------------------------


def open_files(bench: Bench) -> Curve:
    """1 to 10,000 files open at once, each read once."""
    sizes = [1, 10, 100] if bench.quick else [1, 10, 100, 1000, 10_000]
    curve = Curve(
        "open-files", "Files open at once, 4 KiB each, cached", "files", [float(size) for size in sizes],
        {"open µs a file": 0, "read µs a file": 0, "close µs a file": 0, "RSS MiB": 1},
    )  # fmt: skip
    count = sum(sizes)
    names = [f"f{number:05}.bin" for number in range(count)]
    asset = bench.shop.archive(f"many{count}", [noise(name, 4096, seed=i) for i, name in enumerate(names)])
    with refgenfs_archive(bench.place(asset), bench.folder("open")) as mount:
        assert mount.daemon is not None
        with failing():
            mount.daemon.refgenfs("pull", asset.key, timeout=300)
        first = 0
        for size in sizes:  # files that nobody has opened yet
            listed = bench.scratch / "open.list"
            listed.write_text("".join(f"{mount.file(name)}\n" for name in names[first : first + size]))
            first += size
            told, resident = _open_and_hold(listed, mount.pid)
            steps = {f"{step} µs a file": told[step] / size * 1e6 for step in ("open", "read", "close")}
            curve.note("refgenfs", {**steps, "RSS MiB": resident / MIB})
            bench.say(f"open-files: {size} done")
    return bench.curve(curve)


def _open_and_hold(listed: Path, pid: int) -> tuple[Mapping[str, float], int]:
    """Open all files of a list, return the times, and the daemon's memory while they were open."""
    process = subprocess.Popen(
        ["timeout", "-s", "KILL", str(GIVE_UP), sys.executable, READER, "open", str(listed)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        if not process.stdout.readline():
            raise Failed("files can't be opened, or not in time")
        resident = memory_of(pid, "VmRSS")
        output, _ = process.communicate(b"\n", timeout=GIVE_UP)
    finally:
        stop(process)
    told: dict[str, float] = json.loads(output)
    return told, resident


@contextmanager
def mounted(made: Setup) -> Iterator[Mounted]:
    """Mount. Raises Failed."""
    with failing():
        context = made.mount()
        daemon = context.__enter__()
    try:
        yield daemon
    finally:
        context.__exit__(None, None, None)


CURVES: Mapping[str, Callable[[Bench], Curve]] = {
    "readers": readers,
    "catalog": catalog,
    "contents": contents,
    "open-files": open_files,
}
