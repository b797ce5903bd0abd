"""Reads of what is at the origin only, by ranges of plain files."""

from __future__ import annotations

from benchmarks.bench import BLOB, Bench, each
from benchmarks.contestants import (
    FSSPEC,
    GIVE_UP,
    OURS,
    RCLONE_NEW,
    RCLONE_OLD,
    RCLONE_SMALL,
    RCLONE_STREAMS,
    STARTS,
    Mount,
    Place,
    Start,
)
from benchmarks.items.reading import CURL, random_reads, rate
from benchmarks.machine import at_once, timed
from benchmarks.results import MIB, Goal, Item, Sample

READS = 1000
READ = 4096
READERS = 8


def sequential(bench: Bench) -> Item:
    """Read a plain file in order, on loopback."""
    item = Item(
        "cold-sequential", "cold sequential, plain file ÷ curl to disk, loopback", "MB/s",
        "An empty cache, no page in memory but the origin's; curl writes the file to the same disk.",
        Goal("≥", 0.6), CURL, "0.31",
    )  # fmt: skip
    names = (OURS, RCLONE_NEW, RCLONE_SMALL, RCLONE_STREAMS, RCLONE_OLD, FSSPEC)
    return _sequential(bench, item, bench.place(bench.blob()), bench.select(STARTS, *names))


def far(bench: Bench) -> Item:
    """Read a plain file in order, over a network."""
    item = Item(
        "cold-far", "cold sequential, plain file ÷ one curl, origin of 20 MB/s a connection and 20 ms", "MB/s",
        "As before, with a proxy before the origin: 20 ms a round trip, 20 MB/s a connection, TCP's slow start.",
        Goal("≥", 4), CURL, "–",
    )  # fmt: skip
    asset = bench.blob(max(MIB, bench.size // 4))
    item.setting = f"{asset.size // MIB} MiB, {bench.runs} runs"
    names = (OURS, RCLONE_NEW, RCLONE_STREAMS, FSSPEC)
    with bench.far() as url:
        return _sequential(bench, item, bench.place(asset, url), bench.select(STARTS, *names))


def _sequential(bench: Bench, item: Item, place: Place, starts: dict[str, Start]) -> Item:
    asset = place.asset

    def curl() -> Sample:
        target = bench.scratch / "curl.out"
        bench.cool(asset.plain())
        bench.origin.clear()
        try:
            seconds = timed(["curl", "-sSf", "-o", str(target), place.folder_url + BLOB])
        finally:
            target.unlink(missing_ok=True)
        return Sample(asset.size / seconds / 1e6, fetched=bench.origin.sent())

    def mounted(name: str) -> Sample:
        def use(mount: Mount) -> float:
            return rate(mount.file(BLOB), asset.size)

        return bench.cold(name, starts[name], place, use, work=asset.size, hot=[asset.plain()])

    return bench.item(item, {CURL: curl} | each(starts, mounted))


def random_bytes(bench: Bench) -> Item:
    """Count what the origin sends for 1000 reads of 4 KiB."""
    asset = bench.blob()
    item = Item(
        "random-bytes", f"bytes fetched for {READS} random 4 KiB of a {asset.size / (1 << 30):g} GiB file", "×",
        f"An empty cache; {READS} distinct places. Bytes sent by the origin over bytes asked for.",
        Goal("≤", 30), "", "76× (default 353×)",
    )  # fmt: skip
    starts = bench.select(STARTS, OURS, RCLONE_NEW, RCLONE_SMALL, RCLONE_OLD, FSSPEC)
    told: dict[str, float] = {}

    def at_random(name: str) -> Sample:
        def use(mount: Mount) -> float:
            found = random_reads(mount.file(BLOB), count=READS, seconds=GIVE_UP)
            told[name] = found["reads"] / found["seconds"]
            return found["reads"]

        sample = bench.cold(name, starts[name], bench.place(asset), use, work=READS * READ, hot=[asset.plain()])
        return Sample((sample.fetched or 0) / (sample.value * READ), sample.memory, sample.cpu, sample.fetched)

    bench.item(item, each(starts, at_random))
    item.notes.append("Reads a second: " + "; ".join(f"{name} {value:,.0f}" for name, value in told.items()) + ".")
    return item


def eight_readers(bench: Bench) -> Item:
    """Count what the origin sends when eight processes read one file at the same time."""
    item = Item(
        "eight-readers", f"{READERS} readers of one cold file: origin bytes ÷ size", "×",
        f"An empty cache; {READERS} processes read the whole file in order, all at once.",
        Goal("≤", 1.005), "", "1.00",
    )  # fmt: skip
    asset = bench.blob(max(MIB, bench.size // 4))
    item.setting = f"{asset.size // MIB} MiB, {bench.runs} runs"
    starts = bench.select(STARTS, OURS, RCLONE_NEW, RCLONE_OLD, FSSPEC)

    def together(name: str) -> Sample:
        def use(mount: Mount) -> float:
            command = ["dd", f"if={mount.file(BLOB)}", "of=/dev/null", "bs=1M", "status=none"]
            return at_once([command] * READERS, timeout=GIVE_UP)[0]

        sample = bench.cold(
            name, starts[name], bench.place(asset), use, work=READERS * asset.size, hot=[asset.plain()]
        )
        return Sample((sample.fetched or 0) / asset.size, sample.memory, sample.cpu, sample.fetched)

    return bench.item(item, each(starts, together))


ITEMS = {
    "cold-sequential": sequential,
    "cold-far": far,
    "random-bytes": random_bytes,
    "eight-readers": eight_readers,
}
