"""bwa mem: on plain files, through a mount, and after a download."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.bench import ROOT, Bench, each
from benchmarks.contestants import ARCHIVE_STARTS, OURS, PASSTHROUGH, RCLONE_NEW, STARTS, Mount, empty
from benchmarks.data import file_of
from benchmarks.items.reading import EXT4
from benchmarks.machine import Failed, drop_caches, read_whole, run, timed
from benchmarks.results import Goal, Item, Sample
from refgenfs.demo.genome import fasta, fastq, make_genome, read_fasta, simulate_reads

PULL = "curl | tar xz, then run"
ECOLI = Path("data/genomes/GCF_000005845.2_ASM584v2_genomic.fna.gz")
LARGE = 100_000_000  # bases
READS = 50_000
FILES = (
    "index.fa.bwt",
    "index.fa.sa",
    "index.fa.pac",
    "index.fa.ann",
    "index.fa.amb",
)  # largest first, as tar has them
THREADS = str(len(os.sched_getaffinity(0)))
BUILD_TIMEOUT = 900


def warm_ecoli(bench: Bench) -> Item:
    """Align against E. coli through a warm mount."""
    return _warm(bench, "ecoli", "E. coli")


def warm_large(bench: Bench) -> Item:
    """Align against a simulated genome through a warm mount."""
    return _warm(bench, "large", _large_title(bench))


def cold_ecoli(bench: Bench) -> Item:
    """Align against E. coli, nothing of which is here."""
    return _cold(bench, "ecoli", "E. coli", far=True)


def cold_large(bench: Bench) -> Item:
    """Align against a simulated genome, nothing of which is here."""
    return _cold(bench, "large", _large_title(bench), far=True)


def cold_large_near(bench: Bench) -> Item:
    """Align against a simulated genome, nothing of which is here, with the origin on loopback."""
    return _cold(bench, "large", _large_title(bench), far=False)


def cold_large_indexed(bench: Bench) -> Item:
    """Align through a mount with an empty cache, over a network, to an archive that has a seek index beside it."""
    return _cold(bench, "large", "a 100 Mb genome", far=True, indexed=True)


def _large_title(bench: Bench) -> str:
    return f"a {_length(bench) // 1_000_000} Mb genome"


def _warm(bench: Bench, genome: str, title: str) -> Item:
    item = Item(
        f"bwa-warm-{genome}", f"bwa mem, {title}: through a warm mount ÷ plain files", "s",
        f"The index was read once before, through the mount and on the disk; {READS:,} reads, {THREADS} threads.",
        Goal("≤", 1.05), EXT4, "–",
    )  # fmt: skip
    index, reads = _index(bench, genome)
    asset = bench.plain(f"bwa-{genome}", [file_of(index.parent / name) for name in FILES])
    item.setting = f"index of {asset.size / 1e6:,.0f} MB, {bench.runs} runs"
    starts = bench.select(STARTS, OURS, PASSTHROUGH, RCLONE_NEW)
    drop_caches()

    def mounted(name: str) -> Sample:
        with starts[name](bench.place(asset), bench.folder(name)) as mount:
            read_whole(*(mount.file(file) for file in FILES))
            value = _align(bench, mount.file("index.fa"), reads)
            return Sample(value, mount.usage().memory)

    def plainly() -> Sample:
        read_whole(*(asset.plain(file) for file in FILES))
        return Sample(_align(bench, asset.plain("index.fa"), reads))

    return bench.item(item, {EXT4: plainly} | each(starts, mounted))


def _cold(bench: Bench, genome: str, title: str, *, far: bool, indexed: bool = False) -> Item:
    place_name = "20 ms, 20 MB/s a connection" if far else "loopback"
    if indexed:
        place_name += ", a seek index beside the archive"
    item = Item(
        f"bwa-cold-{genome}" + ("" if far else "-near") + ("-indexed" if indexed else ""),
        f"bwa mem, {title}, cold, {place_name}: through the mount ÷ (pull, then run)", "s",
        f"An empty cache, no page in memory but the origin's; the asset is an archive; {READS:,} reads, {THREADS} "
        "threads. `refgenie pull` stands as what it does at the least: `curl | tar xz`.",
        Goal("≤", 0.9), PULL, "1",
    )  # fmt: skip
    index, reads = _index(bench, genome)
    # an archive of its own, or the index would be found by the items that are to do without
    stem = "bwaidx" if indexed else "bwatgz"
    asset = bench.shop.archive(f"{stem}-{genome}", [file_of(index.parent / name) for name in FILES])
    assert asset.archive is not None
    if indexed:
        run([str(Path(sys.executable).with_name("refgenfs")), "index", str(asset.archive)])
    hot = [asset.archive, reads]
    item.setting = f"archive of {asset.archive.stat().st_size / 1e6:,.0f} MB, {bench.runs} runs"
    starts = bench.select(ARCHIVE_STARTS, OURS)

    def measure(url: str) -> Item:
        place = bench.place(asset, url)

        def pulled() -> Sample:
            target = bench.folder("pull")
            bench.cool(*hot)
            command = f"set -o pipefail; curl -sSf '{place.archive_url}' | tar xz -C '{target}'"
            seconds = timed(["bash", "-c", command]) + _align(bench, target / "default" / "index.fa", reads)
            empty(target)
            return Sample(seconds)

        def mounted(name: str) -> Sample:
            def use(mount: Mount) -> float:
                return _align(bench, mount.file("index.fa"), reads)

            return bench.cold(name, starts[name], place, use, work=asset.size, hot=hot)

        turns: dict[str, Callable[[], Sample]] = {PULL: pulled}
        return bench.item(item, turns | each(starts, mounted))

    if not far:
        return measure("")
    with bench.far() as url:
        return measure(url)


def _align(bench: Bench, prefix: Path, reads: Path) -> float:
    """Run bwa mem and return its seconds. Raises Failed, also where it aligned nothing."""
    output = bench.scratch / "aligned.sam"
    try:
        seconds = timed(["bwa", "mem", "-v", "1", "-t", THREADS, str(prefix), str(reads)], timeout=300, stdout=output)
        if output.stat().st_size < 1000:
            raise Failed("bwa wrote no alignments")
    finally:
        output.unlink(missing_ok=True)
    return seconds


# --- genomes, indexed once ----------------------------------------------------------------------------------


def _length(bench: Bench) -> int:
    return 5_000_000 if bench.quick else LARGE


def _index(bench: Bench, genome: str) -> tuple[Path, Path]:
    """Return the prefix of a bwa index and reads to align, made once. Raises Failed."""
    kind = genome if genome == "ecoli" else f"{genome}{_length(bench) // 1_000_000}"
    folder = bench.scratch / "bwa" / kind
    reads = folder / "reads.fq"
    if not reads.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        bench.say(f"bwa index of {kind}: once")
        sequences = folder / "index.fa"
        source = read_fasta(_ecoli()) if genome == "ecoli" else make_genome(length=_length(bench))
        sequences.write_bytes(fasta(source))
        run(["bwa", "index", str(sequences)], timeout=BUILD_TIMEOUT)
        unfinished = reads.with_suffix(".part")
        unfinished.write_bytes(fastq(simulate_reads(source, READS)))
        unfinished.rename(reads)
    return folder / "index.fa", reads


def _ecoli() -> Path:
    shared = Path(os.environ.get("REFGENFS_TEST_DATA") or ROOT / ".." / "shared")
    if not (shared / ECOLI).exists():
        raise Failed(f"no test data at {shared}: REFGENFS_TEST_DATA names it")
    return shared / ECOLI


ITEMS = {
    "bwa-warm-ecoli": warm_ecoli,
    "bwa-warm-large": warm_large,
    "bwa-cold-ecoli": cold_ecoli,
    "bwa-cold-large": cold_large,
    "bwa-cold-large-near": cold_large_near,
    "bwa-cold-large-indexed": cold_large_indexed,
}
