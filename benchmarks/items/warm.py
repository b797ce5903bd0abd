"""Reads of what is on this machine already."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bench import BLOB, Bench, each, fill, left_out, prepared
from benchmarks.contestants import FSSPEC, GIVE_UP, OURS, PASSTHROUGH, RCLONE_NEW, RCLONE_OLD, RCLONE_SMALL, STARTS
from benchmarks.items.reading import EXT4, random_rate, rate, seconds_of_random, through
from benchmarks.machine import FAILURES, Failed, drop_caches, drop_pages, load_pages, read_whole
from benchmarks.results import GIB, Goal, Item, Sample

PASSES = 3


def second_read(bench: Bench) -> Item:
    """Read a file that was just read: its pages are in memory, where a contestant lets the kernel keep them."""
    item = Item(
        "second-read", "second read ÷ page cache", "MB/s",
        "Mounted; before each turn all pages are dropped and the file is read once, the disk's, too, so that "
        "everybody's pages come out of the same free memory. A value of who is fast is the median of three reads in "
        "a row: they take a tenth of a second.",
        Goal("≥", 0.65), EXT4, "0.10",
    )  # fmt: skip
    asset = bench.blob()
    plain = asset.plain()
    starts = bench.select(STARTS, OURS, PASSTHROUGH, RCLONE_NEW, RCLONE_SMALL, RCLONE_OLD, FSSPEC)
    drop_caches()
    with prepared(bench, starts, bench.place(asset), BLOB) as (mounts, failed):

        def again(name: str) -> Sample:
            drop_caches(mounts[name].cached_files())
            read_whole(mounts[name].file(BLOB), timeout=GIVE_UP)
            return _typical(lambda: through(mounts[name], BLOB, asset.size))

        def native() -> Sample:
            drop_caches([plain])
            read_whole(plain)
            return _typical(lambda: Sample(rate(plain, asset.size)))

        bench.item(item, {EXT4: native} | each(mounts, again))
    item.contests += left_out(failed)
    return item


def _typical(measure: Callable[[], Sample]) -> Sample:
    """Measure three times if that is done within two seconds, and return the sample in the middle."""
    deadline = time.monotonic() + 2
    samples = [measure()]
    while len(samples) < PASSES and time.monotonic() < deadline:
        samples.append(measure())
    return sorted(samples, key=lambda sample: sample.value)[len(samples) // 2]


def remount(bench: Bench) -> Item:
    """Read a file that the cache on the disk holds, through a new daemon, with no page in memory."""
    item = Item(
        "remount", "first read after a remount, warm disk cache ÷ the disk", "MB/s",
        "The cache on the disk holds the file; the daemon is new; every page is dropped, on both sides.",
        Goal("≥", 0.80), EXT4, "0.40",
    )  # fmt: skip
    asset = bench.blob()
    place = bench.place(asset)
    starts = bench.select(STARTS, OURS, PASSTHROUGH, RCLONE_NEW, RCLONE_SMALL, RCLONE_OLD)
    folders: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for name, start in starts.items():
        folder = bench.folder(name)
        try:
            with start(place, folder) as mount:
                fill(mount, BLOB)
            folders[name] = folder
        except FAILURES as exc:
            failed[name] = str(exc)

    def anew(name: str) -> Sample:
        with starts[name](place, folders[name]) as mount:
            drop_caches([asset.plain(), *mount.cached_files()])
            return through(mount, BLOB, asset.size)

    def native() -> Sample:
        drop_caches([asset.plain()])
        return Sample(rate(asset.plain(), asset.size))

    bench.item(item, {EXT4: native} | each(folders, anew))
    item.contests += left_out(failed)
    return item


def random_disk(bench: Bench) -> Item:
    """Read 4 KiB at random places of a file in the cache on the disk, with no page in memory on either side."""
    item = Item(
        "random-disk", "random 4 KiB, warm ÷ the disk", "reads/s",
        "The cache on the disk holds the file; every page of the mount and of the disk is dropped, on both sides; "
        "distinct pages are read, so that each read reaches the daemon and the disk.",
        Goal("≥", 0.6), EXT4, "0.5",
    )  # fmt: skip
    names = (OURS, PASSTHROUGH, RCLONE_NEW, RCLONE_SMALL, RCLONE_OLD)
    return _random(bench, item, drop_caches, native=True, names=names)


def random_memory(bench: Bench) -> Item:
    """Read 4 KiB at random places that are in memory, but not in the mount's pages: the cost of the daemon alone."""
    item = Item(
        "random-memory", "random 4 KiB, warm, the cache's own file in memory", "reads/s",
        "The pages of the file in the cache are in memory, those of the mount are dropped; distinct pages are read, "
        "so that each read reaches the daemon, and none the disk. (A plain file in memory costs a system call: no "
        "file system in user space compares.)",
        None, "", "",
    )  # fmt: skip

    def only_below(paths: list[Path]) -> None:
        drop_caches(paths)
        load_pages(paths)

    return _random(bench, item, only_below, native=False, names=(OURS, PASSTHROUGH, RCLONE_NEW))


def _random(
    bench: Bench, item: Item, make_state: Callable[[list[Path]], None], *, native: bool, names: tuple[str, ...]
) -> Item:
    asset = bench.blob()
    starts = bench.select(STARTS, *names)
    seconds = seconds_of_random(bench)
    drop_caches()
    with prepared(bench, starts, bench.place(asset), BLOB) as (mounts, failed):

        def at_random(name: str) -> Sample:
            mount = mounts[name]
            files = mount.cached_files()
            make_state(files)
            with contextlib.suppress(Failed):
                drop_pages([mount.file(BLOB)])
            before = mount.usage()
            value = random_rate(mount.file(BLOB), seconds=seconds)
            after = mount.usage()
            return Sample(value, after.memory, (after.cpu - before.cpu) / max(1.0, value * seconds * 4096) * GIB)

        def plainly() -> Sample:
            make_state([asset.plain()])
            return Sample(random_rate(asset.plain(), seconds=seconds))

        turns: dict[str, Callable[[], Sample]] = {EXT4: plainly} if native else {}
        bench.item(item, turns | each(mounts, at_random))
    item.contests += left_out(failed)
    return item


ITEMS = {
    "second-read": second_read,
    "remount": remount,
    "random-disk": random_disk,
    "random-memory": random_memory,
}
