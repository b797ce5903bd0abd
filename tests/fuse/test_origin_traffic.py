"""What the origin sends: every byte once, whoever asks, and never again. Counted by nginx, in front of the server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from refgenfs.core.lanes import FIRST, LEG
from refgenfs.demo.origin import running
from tests.support.ecoli import (
    ALIAS,
    ASSETS,
    SOURCE,
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
from tests.support.faulty_origin import Fault, FaultyOrigin, Kind
from tests.support.mounted import Mounted, Setup
from tests.support.nginx import NginxFactory

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data]

BWA_READS = ("amb", "ann", "bwt", "pac", "sa")  # of its index: all but the FASTA


def align(mounted: Mounted, ecoli: Ecoli, number: int) -> None:
    """Run `bwa mem` so many times at once, and check what each printed."""
    outputs = at_once([command("bwa mem", genome(mounted), ecoli.reads)] * number)
    for output in outputs:
        assert comparable(output) == ecoli.output("bwa mem"), output[:500]


def drop_index_pages(mounted: Mounted) -> None:
    """Drop the kernel's pages of what `bwa` reads: asking for more would have more fetched."""
    drop_pages(mounted, *(genome(mounted) / "bwa_index" / f"{ALIAS}.fa.{ending}" for ending in BWA_READS))


# --- one archive, once ---------------------------------------------------------------------------------------


def test_eight_alignments_on_a_cold_cache_fetch_the_archive_once(origins: Origins, tmp_path: Path) -> None:
    origin = origins("archive")
    setup = origin.setup(tmp_path)
    with setup.mount() as mounted:
        align(mounted, origin.ecoli, 8)
        settled(mounted)
        size = origin.ecoli.archive("bwa_index").stat().st_size
        assert round(origin.bytes_sent() / size, 2) == 1.00
        # the beginning, and what follows: in legs if that came slowly, of which some may have been cut in two
        assert 1 < len(origin.served()) <= 2 + 2 * -(-(size - FIRST) // LEG)
        sent, fetched = origin.bytes_sent(), mounted.status()["fetched"]
        assert 0 <= fetched - sent < 100_000, "the daemon counts what nginx does, and the API's answers"

        origin.clear()
        drop_index_pages(mounted)
        align(mounted, origin.ecoli, 1)
        assert origin.served() == []
    with setup.mount() as again:
        align(again, origin.ecoli, 2)
        settled(again)
        assert origin.served() == []


def test_an_archive_that_comes_slowly_comes_over_several_connections_once(origins: Origins, tmp_path: Path) -> None:
    origin = origins("archive", limit_rate=1_000_000)
    with origin.setup(tmp_path).mount() as mounted:
        align(mounted, origin.ecoli, 2)
        settled(mounted)
        size = origin.ecoli.archive("bwa_index").stat().st_size
        assert origin.bytes_sent() == size
        assert {one.status for one in origin.served()} == {206}
        assert len(origin.served()) > 1
        assert origin.served()[-1].bytes == FIRST, "nginx logs at the end: what is ahead was there before"


def test_eight_alignments_on_a_cold_cache_fetch_each_file_once(origins: Origins, tmp_path: Path) -> None:
    origin = origins("remotes")
    setup = origin.setup(tmp_path)
    with setup.mount() as mounted:
        align(mounted, origin.ecoli, 8)
        settled(mounted)
        read = {name: origin.ecoli.plain("bwa_index") / f"{ALIAS}.fa.{name}" for name in BWA_READS}
        for ending, path in read.items():
            ratio = origin.bytes_sent(f".fa.{ending}") / path.stat().st_size
            assert 0 < ratio <= 1, f"{path.name} was fetched {ratio:.3f} times"
        assert origin.bytes_sent() == sum(origin.bytes_sent(f".fa.{ending}") for ending in read)
        assert not [one for one in origin.served() if one.path.endswith(".tgz")]

        origin.clear()
        drop_index_pages(mounted)
        align(mounted, origin.ecoli, 1)
        assert origin.served() == []
    with setup.mount() as again:
        align(again, origin.ecoli, 2)
        settled(again)
        assert origin.served() == []


def test_the_count_sees_an_archive_that_is_fetched_twice(origins: Origins, tmp_path: Path) -> None:
    """The ratio above can be 2: with an emptied cache the archive comes again, and is counted again."""
    origin = origins("archive")
    with origin.setup(tmp_path).mount() as mounted:
        for _ in range(2):
            align(mounted, origin.ecoli, 1)
            settled(mounted)
            mounted.refgenfs("cache", "clear", "--yes")
            drop_index_pages(mounted)
        size = origin.ecoli.archive("bwa_index").stat().st_size
        assert round(origin.bytes_sent() / size, 2) == 2.00


def test_sixteen_readers_of_one_cold_file(origin: Origin, tmp_path: Path) -> None:
    name = f"{ALIAS}.1.bt2"
    with origin.setup(tmp_path).mount() as mounted:
        path = f"{genome(mounted)}/bowtie2_index/{name}"
        outputs = at_once([["md5sum", path]] * 16)
        assert {line.split()[0] for line in outputs} == {origin.ecoli.md5("bowtie2_index")[name]}
        settled(mounted)
        plain = origin.ecoli.plain("bowtie2_index") / name
        whole = origin.ecoli.archive("bowtie2_index") if origin.mode == "archive" else plain
        asked = [one for one in origin.served() if one.path.endswith(".1.bt2") and ".rev." not in one.path]
        sent = (
            origin.bytes_sent() if origin.mode == "archive" else sum(one.bytes for one in asked)
        )  # siblings come too
        assert round(sent / whole.stat().st_size, 2) == 1.00


# --- pull, pin, evict ----------------------------------------------------------------------------------------


def test_what_was_pulled_is_never_asked_for_again(origin: Origin, tmp_path: Path) -> None:
    keys = [f"{ALIAS}/{asset}" for asset in ASSETS]
    setup = origin.setup(tmp_path)
    with setup.mount() as mounted:
        mounted.refgenfs("pull", *keys)
        sizes = {asset: origin.ecoli.archive(asset).stat().st_size for asset in ASSETS}
        if origin.mode == "remotes":
            sizes = {asset: origin.ecoli.size(asset) for asset in ASSETS}
        assert round(origin.bytes_sent() / sum(sizes.values()), 2) == 1.00
        origin.clear()
        check_every_file(mounted, origin.ecoli)
        mounted.refgenfs("pull", *keys)
        assert origin.served() == []
    with setup.mount() as again:
        check_every_file(again, origin.ecoli)
        again.refgenfs("pull", *keys)
        assert origin.served() == []


def check_every_file(mounted: Mounted, ecoli: Ecoli) -> None:
    """Compare the MD5 of every file with the plain one's."""
    for asset in ASSETS:
        folder = genome(mounted) / asset
        lines = mounted.run("md5sum", *(str(folder / name) for name in ecoli.files(asset))).stdout.splitlines()
        assert {line.split()[1].rpartition("/")[2]: line.split()[0] for line in lines} == ecoli.md5(asset)


def test_a_pinned_asset_is_not_evicted(origin: Origin, tmp_path: Path) -> None:
    key = f"{ALIAS}/bwa_index"
    setup = origin.setup(tmp_path)
    with setup.mount() as mounted:
        mounted.refgenfs("pull", key, "--pin")
        info = json.loads(mounted.refgenfs("info", key, "--json").stdout)
        assert info["pinned"] is True
        assert info["resident"] == 100
    with setup.mount() as again:  # pins outlive a restart
        refused = again.refgenfs("evict", key, check=False)
        assert refused.returncode != 0
        assert "pinned" in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
        again.refgenfs("cache", "clear", "--yes")
        origin.clear()
        align(again, origin.ecoli, 1)
        assert origin.served() == []
        again.refgenfs("unpin", key)
        again.refgenfs("evict", key)
        assert json.loads(again.refgenfs("info", key, "--json").stdout)["resident"] == 0
        drop_index_pages(again)
        align(again, origin.ecoli, 1)
        assert origin.bytes_sent() > 0


# --- interrupted ---------------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.02)


def test_an_archive_is_taken_up_again_after_the_host_was_away(origins: Origins, tmp_path: Path) -> None:
    origin = origins("archive", limit_rate=3_000_000)  # the archive takes about two seconds
    size = origin.ecoli.archive("bwa_index").stat().st_size
    with origin.setup(tmp_path).mount() as mounted:
        before = mounted.status()["fetched"]
        with reading(mounted, origin.ecoli) as outputs:
            wait_until(lambda: mounted.status()["fetched"] - before > size // 3, "a third of the archive")
            origin.api.stop()
            at_stop = mounted.status()["fetched"] - before
            assert at_stop < 0.9 * size, "the archive was there before nginx was stopped"
            time.sleep(0.5)
            origin.api.start()
        assert [comparable(output) for output in outputs] == [origin.ecoli.output("bwa mem")]
        settled(mounted)
        assert mounted.status()["fetched"] - before <= 1.3 * size
        # nginx does not log what it was sending when it was stopped, so this is the second part
        assert origin.bytes_sent() <= 1.3 * size - at_stop
        assert {one.status for one in origin.served()} == {206}


@contextmanager
def reading(mounted: Mounted, ecoli: Ecoli) -> Iterator[list[str]]:
    """Run `bwa mem` meanwhile; at the end of the block its output is in the list."""
    outputs: list[str] = []
    words = command("bwa mem", genome(mounted), ecoli.reads)
    thread = threading.Thread(target=lambda: outputs.extend(at_once([words])))
    thread.start()
    try:
        yield outputs
    finally:
        thread.join()


@pytest.mark.parametrize("kind", ["truncate", "reset"])
def test_an_archive_that_breaks_off_is_taken_up_again(
    ecoli: Ecoli, nginx: NginxFactory, tmp_path: Path, kind: Kind
) -> None:
    size = ecoli.archive("bwa_index").stat().st_size
    server = FaultyOrigin(ecoli.archives, rate=5_000_000)  # slow, so that little is lost on the way
    server.faults = [Fault(kind, "*/assets/archive/*/bwa_index", after=size * part // 10) for part in (4, 1)]
    with running(server) as broken:
        proxy = nginx(broken.url)
        source = f'[[source]]\nname = "{SOURCE}"\ntype = "refgenie"\nurl = "{proxy.url}"\n'
        with Setup(tmp_path, source).mount() as mounted:
            align(mounted, ecoli, 4)
            settled(mounted)
            drop_index_pages(mounted)
            align(mounted, ecoli, 1)
    asked = [one for one in proxy.log() if "/assets/archive/" in one.path and ".seekidx" not in one.path]
    sent = [(one.status, one.bytes) for one in asked]
    assert len(sent) >= 3, "twice broken off, so asked for again"
    assert {status for status, _ in sent} == {206}
    assert size <= sum(number for _, number in sent) <= 1.3 * size
