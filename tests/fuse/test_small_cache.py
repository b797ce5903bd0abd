"""A cache that is smaller than what is read: everything reads right, and the bound holds at every moment."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.ecoli import (
    ALIAS,
    ASSETS,
    Ecoli,
    Origin,
    Origins,
    at_once,
    command,
    comparable,
    drop_pages,
    genome,
    settled,
)
from tests.support.mounted import Mounted, Setup

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data]

SAMPLE_EVERY = 0.02  # seconds
TOOL = {"bwa_index": "bwa mem", "bowtie2_index": "bowtie2"}
ALONE = '[prefetch]\nsiblings = "0"\n'  # what is read, and nothing that a tool would read next


@dataclass
class Samples:
    """What a directory took on the disk, in bytes, at many moments."""

    taken: list[int] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """The most of them."""
        return max(self.taken)


@contextmanager
def sampled(folder: Path) -> Iterator[Samples]:
    """Ask `du` again and again what a directory takes, for as long as the block lasts."""
    samples, ended = Samples(), threading.Event()

    def sample() -> None:
        while not ended.is_set():
            # it complains about files that go while it looks; what it counted stands
            done = subprocess.run(
                ["du", "-s", "--block-size=1", str(folder)], capture_output=True, text=True, check=False
            )
            if done.stdout:
                samples.taken.append(int(done.stdout.split()[0]))
            ended.wait(SAMPLE_EVERY)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def third(ecoli: Ecoli, asset: str) -> int:
    """Return a third of an asset's unpacked size."""
    size = ecoli.size(asset) // 3
    assert size >= 4 << 20, "less than a cache may have"
    return size


def files(mounted: Mounted, ecoli: Ecoli, asset: str) -> list[Path]:
    """Return an asset's files on the mount."""
    return [genome(mounted) / asset / name for name in ecoli.files(asset)]


def sums(output: str) -> dict[str, str]:
    """Return MD5 by name of what `md5sum` printed."""
    return {path.rpartition("/")[2]: md5 for md5, path in (line.split() for line in output.splitlines())}


@pytest.mark.parametrize("asset", ["bwa_index", "bowtie2_index"])
def test_everything_reads_right_from_a_third_of_its_size(origin: Origin, tmp_path: Path, asset: str) -> None:
    ecoli = origin.ecoli
    size = third(ecoli, asset)
    began = time.monotonic()
    with origin.setup(tmp_path, size=str(size)).mount() as mounted:
        paths = files(mounted, ecoli, asset)
        assert max(path.stat().st_size for path in paths) > size, "no file is larger than the cache"
        with sampled(mounted.cache) as samples:
            for seed in range(2):
                orders = [list(map(str, random.Random(3 * seed + i).sample(paths, len(paths)))) for i in range(3)]
                for output in at_once([["md5sum", *order] for order in orders]):
                    assert sums(output) == ecoli.md5(asset)
                drop_pages(mounted, *paths)
            output = mounted.run(*command(TOOL[asset], genome(mounted), ecoli.reads)).stdout
            assert comparable(output) == ecoli.output(TOOL[asset])
        cache = mounted.status()["cache"]
        settled(mounted)
    assert len(samples.taken) > 20
    assert samples.peak <= size, f"the cache took {samples.peak} of {size} bytes"
    assert samples.peak > size // 2, "the cache was hardly used"
    assert samples.peak <= cache["size"] == size
    assert cache["evictions"] > 0
    assert cache["error"] is None
    whole = ecoli.archive(asset).stat().st_size if origin.mode == "archive" else ecoli.size(asset)
    ratio = origin.bytes_sent(asset) / whole
    seconds = time.monotonic() - began
    print(
        f"{origin.mode} {asset}: cache {size}, peak {samples.peak} of {len(samples.taken)} samples, "
        f"{ratio:.1f} × {whole} bytes in {len(origin.served())} requests, {seconds:.1f} s"
    )
    # Seven times all of it is read, and no two of the seven in the same order: twice that much may be fetched. Who
    # comes back to a stream that has gone on too far fetches many times that, or waits for ever.
    assert ratio <= 14
    assert seconds < 100


def test_the_samples_would_show_a_cache_that_passes_its_bound(origins: Origins, tmp_path: Path) -> None:
    """With room for all of it, the same measurement is above a third: so it can fail."""
    origin = origins("remotes")
    with origin.setup(tmp_path, size="1GB").mount() as mounted, sampled(mounted.cache) as samples:
        mounted.refgenfs("pull", f"{ALIAS}/bwa_index")
    assert samples.peak > 2 * third(origin.ecoli, "bwa_index")


@pytest.mark.parametrize("tool", ["bowtie2", "bowtie2 --mm"])
def test_files_larger_than_the_whole_cache(origin: Origin, tmp_path: Path, tool: str) -> None:
    ecoli, size = origin.ecoli, 4 << 20
    name = f"{ALIAS}.rev.1.bt2"
    plain = ecoli.plain("bowtie2_index") / name
    with origin.setup(tmp_path, size="4MiB").mount() as mounted:
        with sampled(mounted.cache) as samples:
            mounted.run("cmp", str(plain), f"{genome(mounted)}/bowtie2_index/{name}")
            rng = random.Random(11)
            for _ in range(12):
                offset, length = rng.randrange(plain.stat().st_size), rng.randrange(1, 70_000)
                drop_pages(mounted, genome(mounted) / "bowtie2_index" / name)
                part = f"iflag=skip_bytes,count_bytes skip={offset} count={length} bs=64K status=none | md5sum"
                mine = f"dd if='{genome(mounted)}/bowtie2_index/{name}' {part}"
                assert mounted.shell(mine) == mounted.shell(f"dd if='{plain}' {part}")
            output = mounted.run(*command(tool, genome(mounted), ecoli.reads)).stdout
        assert comparable(output) == ecoli.output(tool)
    assert samples.peak <= size


def test_what_is_pinned_stays_and_the_rest_is_evicted_around_it(origin: Origin, tmp_path: Path) -> None:
    ecoli, size = origin.ecoli, 19_000_000
    with origin.setup(tmp_path, size=str(size), extra=ALONE).mount() as mounted, sampled(mounted.cache) as samples:
        mounted.refgenfs("pull", f"{ALIAS}/bwa_index", "--pin")
        for _ in range(2):
            paths = files(mounted, ecoli, "bowtie2_index")
            assert sums(mounted.run("md5sum", *map(str, paths)).stdout) == ecoli.md5("bowtie2_index")
            drop_pages(mounted, *paths)
        assert mounted.status()["cache"]["evictions"] > 0
        info = json.loads(mounted.refgenfs("info", f"{ALIAS}/bwa_index", "--json").stdout)
        assert info["pinned"] is True
        assert info["resident"] == 100
        settled(mounted)
        origin.clear()
        paths = files(mounted, ecoli, "bwa_index")
        assert sums(mounted.run("md5sum", *map(str, paths)).stdout) == ecoli.md5("bwa_index")
        assert origin.served() == []
    assert samples.peak <= size


def test_a_pull_of_more_than_the_cache_holds_says_so(origin: Origin, tmp_path: Path) -> None:
    ecoli = origin.ecoli
    size = third(ecoli, "bowtie2_index")
    with origin.setup(tmp_path, size=str(size)).mount() as mounted, sampled(mounted.cache) as samples:
        refused = mounted.refgenfs("pull", f"{ALIAS}/bowtie2_index", "--pin", check=False, timeout=50)
        assert refused.returncode != 0
        assert "cache.size" in refused.stderr
        paths = files(mounted, ecoli, "fasta")
        assert sums(mounted.run("md5sum", *map(str, paths)).stdout) == ecoli.md5("fasta")
    assert samples.peak <= size


# --- min_free ------------------------------------------------------------------------------------------------


@dataclass
class TightSetup(Setup):
    """A daemon that leaves this much of the cache's file system free."""

    min_free: str = "0%"

    def write(self) -> Path:
        """Write the configuration file and return its path."""
        config = super().write()
        text = config.read_text()
        assert 'min_free = "0%"' in text
        config.write_text(text.replace('min_free = "0%"', f'min_free = "{self.min_free}"'))
        return config


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a tmpfs of `size` bytes on a folder."""
    folder.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "refgenfs-test", str(folder)], check=True, timeout=20
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=20)


def free(folder: Path) -> int:
    """Return the bytes that are free on a folder's file system."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


@contextmanager
def least_free(folder: Path) -> Iterator[list[int]]:
    """Ask for the free space again and again; the least of it is at [0] of the list."""
    least, ended = [free(folder)], threading.Event()

    def sample() -> None:
        while not ended.is_set():
            least[0] = min(least[0], free(folder))
            ended.wait(0.005)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield least
    finally:
        ended.set()
        thread.join()


def read_all(mounted: Mounted, ecoli: Ecoli, assets: Sequence[str] = ASSETS) -> None:
    """Compare the MD5 of every file."""
    for asset in assets:
        paths = files(mounted, ecoli, asset)
        assert sums(mounted.run("md5sum", *map(str, paths)).stdout) == ecoli.md5(asset)
        drop_pages(mounted, *paths)


@pytest.mark.needs_root
def test_min_free_is_kept_free(origin: Origin, tmp_path: Path) -> None:
    disk, kept = 24 << 20, 12 << 20  # what is read takes 32 MB
    with small_disk(tmp_path / "cache", disk) as folder:
        setup = TightSetup(tmp_path, origin.sources, min_free="50%")
        with setup.mount() as mounted:
            with least_free(folder) as least:
                read_all(mounted, origin.ecoli)
            assert least[0] >= kept, f"{kept - least[0]} bytes less than min_free were free"
            assert least[0] < kept + (4 << 20), "the cache was hardly used"

            # somebody else fills the disk: the cache makes room, and reads go on
            (folder / "filler").write_bytes(bytes(9 << 20))
            deadline = time.monotonic() + 15
            while free(folder) < kept and time.monotonic() < deadline:
                time.sleep(0.1)
            assert free(folder) >= kept
            read_all(mounted, origin.ecoli, ["bwa_index"])


@pytest.mark.needs_root
def test_reads_go_on_when_the_disk_is_full(origin: Origin, tmp_path: Path) -> None:
    setup = TightSetup(tmp_path, origin.sources, min_free="1MB")
    with small_disk(tmp_path / "cache", 12 << 20) as folder, setup.mount() as mounted:
        read_all(mounted, origin.ecoli, ["fasta"])
        filler = folder / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(bytes(16 << 20))
        read_all(mounted, origin.ecoli)
        filler.unlink()
        read_all(mounted, origin.ecoli, ["bwa_index"])
        assert "Traceback" not in mounted.log_text()
