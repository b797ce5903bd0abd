"""Reads of members of archives."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.bench import Bench, each
from benchmarks.contestants import ARCHIVE_STARTS, GIVE_UP, OURS, RATARMOUNT, Mount, empty, failing
from benchmarks.data import Asset, fasta, noise
from benchmarks.machine import drop_caches, read_whole, run, timed
from benchmarks.origin import ROUND_TRIP
from benchmarks.results import GIB, MIB, Goal, Item, Sample

CURL_TAR = "curl | tar xz"
PULL = "curl of the whole archive"
GENOME = "genome"


def whole(bench: Bench) -> Item:
    """Read all members of a .tgz, in order."""
    item = Item(
        "tgz-whole", "cold read of a whole tgz ÷ (curl | tar xz)", "MB/s",
        "An empty cache, no page in memory but the origin's; all members are read in order. `tar` writes them to the "
        "same disk. MB/s of members.",
        Goal("≥", 0.9), CURL_TAR, "ratarmount 0.2",
    )  # fmt: skip
    asset = _genome(bench)
    place = bench.place(asset)
    hot = [asset.archive] if asset.archive else []
    starts = bench.select(ARCHIVE_STARTS)

    def curl_tar() -> Sample:
        target = bench.folder(CURL_TAR)
        bench.cool(*hot)
        bench.origin.clear()
        seconds = timed(["bash", "-c", f"set -o pipefail; curl -sSf '{place.archive_url}' | tar xz -C '{target}'"])
        empty(target)
        return Sample(asset.size / seconds / 1e6, fetched=bench.origin.sent())

    def mounted(name: str) -> Sample:
        def use(mount: Mount) -> float:
            # A peer goes over the archive while it mounts: that is a part of its read.
            began = time.perf_counter() if name == OURS else mount.began
            read_whole(*(mount.file(file) for file in asset.files), timeout=GIVE_UP)
            return asset.size / (time.perf_counter() - began) / 1e6

        return bench.cold(name, starts[name], place, use, work=asset.size, hot=hot)

    bench.item(item, {CURL_TAR: curl_tar} | each(starts, mounted))
    item.notes.append(f"ratarmount's time has its mounting in it: it goes over the archive then. {_sizes(asset)}")
    return item


def first_member(bench: Bench) -> Item:
    """Read the beginning of the first member of a large archive, over a network."""
    size = 3 * bench.size
    item = Item(
        "tgz-first", f"first 1 MiB of the first member, {size / GIB:g} GiB tgz, 20 ms", "ms",
        "An empty cache; mounted, but no name looked up. From the start of the process that opens and reads.",
        Goal("<", 3 * ROUND_TRIP * 1000 + 100, " ms"), "", "whole archive (`pull`)",
    )  # fmt: skip
    first = max(MIB, bench.size // 16)
    parts = [*fasta(GENOME, first), noise("rest.bin", max(0, size - first), seed=5)]
    asset = bench.shop.archive("first", parts, level=0 if bench.quick else 1)
    assert asset.archive is not None
    starts = bench.select(ARCHIVE_STARTS)
    requests: list[int] = []

    def mounted(name: str, url: str) -> Sample:
        def use(mount: Mount) -> float:
            path = mount.file(asset.files[0])
            if name == OURS:
                bench.origin.clear()
            began = time.perf_counter() if name == OURS else mount.began
            run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "count=1", "status=none"], timeout=GIVE_UP)
            return 1000 * (time.perf_counter() - began)

        sample = bench.cold(name, starts[name], bench.place(asset, url), use, work=MIB)
        if name == OURS:
            requests.append(len(bench.origin.served()))
        return sample

    def pulled(url: str) -> Sample:
        """Download at most a tenth, and say what the whole would take."""
        assert asset.archive is not None
        part = max(MIB, asset.archive.stat().st_size // 32)
        seconds = timed(
            ["curl", "-sSf", "-o", "/dev/null", "-r", f"0-{part - 1}", bench.place(asset, url).archive_url]
        )
        return Sample(1000 * seconds * asset.archive.stat().st_size / part)

    try:
        with bench.far() as url:
            turns: dict[str, Callable[[], Sample]] = {PULL: lambda: pulled(url)}
            bench.item(item, turns | each(starts, lambda name: mounted(name, url)))
    finally:
        bench.shop.remove(asset)
    item.notes.append(
        f"{PULL}: the whole archive, reckoned from a 32nd of it. ratarmount's time has its mounting in it. "
        f"Requests of refgenfs from its first lookup on, for anything: {', '.join(map(str, requests))}."
    )
    return item


def evicted_region(bench: Bench) -> Item:
    """Count what the origin sends for one region of a FASTA that was read once, and evicted."""
    asset = _genome(bench)
    item = Item(
        "faidx-evicted", f"one faidx region of an evicted {asset.size / 1e9:.2g} GB FASTA in a tgz", "% of archive",
        "The asset was read once and evicted (`refgenfs evict`), every page dropped; 1,000 bases in its middle are "
        "asked for. ratarmount has just made its index.",
        Goal("<", 1, " %"), "", "all of it",
    )  # fmt: skip
    assert asset.archive is not None
    size = asset.archive.stat().st_size
    starts = bench.select(ARCHIVE_STARTS)
    region = _region(bench)
    clocked: dict[str, float] = {}

    def faidx(mount: Mount, name: str) -> None:
        clocked[name] = timed(["samtools", "faidx", str(mount.file(asset.files[0])), region], timeout=GIVE_UP)

    def ours() -> Sample:
        with starts[OURS](bench.place(asset), bench.folder(OURS)) as mount:
            read_whole(*(mount.file(file) for file in asset.files))
            assert mount.daemon is not None
            with failing():
                mount.daemon.refgenfs("evict", asset.key)
            drop_caches()
            bench.origin.clear()
            faidx(mount, OURS)
            _settle(mount)
            memory = mount.usage().memory
        sent = bench.origin.sent()
        return Sample(100 * sent / size, memory, fetched=sent)

    def peer() -> Sample:
        with starts[RATARMOUNT](bench.place(asset), bench.folder(RATARMOUNT)) as mount:
            bench.origin.clear()
            faidx(mount, RATARMOUNT)
            memory = mount.usage().memory
        sent = bench.origin.sent()
        return Sample(100 * sent / size, memory, fetched=sent)

    turns: dict[str, Callable[[], Sample]] = {OURS: ours}
    if RATARMOUNT in starts:
        turns[RATARMOUNT] = peer
    bench.item(item, turns)
    item.notes.append(
        f"{_sizes(asset)} Seconds: " + "; ".join(f"{name} {value:.2f}" for name, value in clocked.items()) + "."
    )
    return item


def _settle(mount: Mount, timeout: float = 60) -> None:
    """Wait until our daemon fetches no more: what it does behind a reader's back is counted, too."""
    assert mount.daemon is not None
    still, before = 0, -1
    deadline = time.monotonic() + timeout
    while still < 5 and time.monotonic() < deadline:
        fetched = int(mount.daemon.status()["fetched"])
        still = still + 1 if fetched == before else 0
        before = fetched
        time.sleep(0.2)


def _genome(bench: Bench) -> Asset:
    """Return an archive of a FASTA of the bench's size, and its index."""
    return bench.shop.archive(f"fasta{bench.size // MIB}", fasta(GENOME, bench.size))


def _region(bench: Bench) -> str:
    """Return a region of 1,000 bases in the middle of the FASTA."""
    index = b"".join(fasta(GENOME, bench.size)[1].pieces).decode().splitlines()
    name, length = index[len(index) // 2].split("\t")[:2]
    middle = int(length) // 2
    return f"{name}:{middle + 1}-{middle + 1000}"


def _sizes(asset: Asset) -> str:
    assert asset.archive is not None
    return f"The archive has {asset.archive.stat().st_size / 1e6:,.0f} MB, its members {asset.size / 1e6:,.0f} MB."


ITEMS = {"tgz-whole": whole, "tgz-first": first_member, "faidx-evicted": evicted_region}
