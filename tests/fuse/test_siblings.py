"""Siblings on a real mount: `bwa mem` on a cold cache, from an origin 20 ms away, with and without them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fuse.test_origin_traffic import BWA_READS
from tests.support.distant import distant
from tests.support.ecoli import (
    ALIAS,
    EcoliServer,
    Origin,
    command,
    comparable,
    genome,
    settled,
)
from tests.support.mounted import Mounted
from tests.support.nginx import NginxFactory

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data]

ROUND_TRIP = 0.02  # seconds
RATE = 20_000_000  # bytes a second and connection


class _Far(Origin):
    """An origin that a mount reaches through relays."""

    relay = ""

    @property
    def sources(self) -> str:
        return f'[[source]]\nname = "far"\ntype = "refgenie"\nurl = "{self.relay}"\n'


@contextmanager
def far_origin(server: EcoliServer, nginx: NginxFactory) -> Iterator[_Far]:
    files = nginx(server.static_url, limit_rate=RATE)
    with distant(files.url, ROUND_TRIP) as far_files:
        api = nginx(server.url, rewrite={server.static_url: far_files})
        with distant(api.url, ROUND_TRIP) as far_api:
            _Far.relay = far_api
            yield _Far(server.ecoli, "remotes", api, files)


def run_cold(origin: Origin, folder: Path, budget: str, reads: Path) -> tuple[float, str, dict[str, int]]:
    """Run `bwa mem` on a new mount; return its seconds, what it printed, and bytes at the origin by ending."""
    setup = origin.setup(folder, extra=f'[prefetch]\nsiblings = "{budget}"\n')
    with setup.mount() as mounted:
        mounted.run("ls", "-l", str(genome(mounted) / "bwa_index"))
        origin.clear()
        began = time.monotonic()
        done = mounted.run(*command("bwa mem", genome(mounted), reads))
        seconds = time.monotonic() - began
        settled(mounted)
        return seconds, comparable(done.stdout), sent(origin)


def sent(origin: Origin) -> dict[str, int]:
    return {ending: origin.bytes_sent(f".fa.{ending}") for ending in (*BWA_READS, "fa")}


def sizes(origin: Origin) -> dict[str, int]:
    folder = origin.ecoli.plain("bwa_index")
    return {ending: (folder / f"{ALIAS}.fa.{ending}").stat().st_size for ending in BWA_READS}


def test_bwa_mem_on_a_distant_origin(
    ecoli_remotes: EcoliServer, nginx: NginxFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same output, and every byte of the five files once; how much sooner is reported, not asserted."""
    with far_origin(ecoli_remotes, nginx) as origin:
        few = tmp_path / "few.fq"
        few.write_text("".join(origin.ecoli.reads.read_text().splitlines(keepends=True)[:80]))
        plain, printed, _ = run_cold(origin, tmp_path / "without", "0", few)
        ahead, again, traffic = run_cold(origin, tmp_path / "with", "16MiB", few)
        assert again == printed
        assert printed
        for ending, size in sizes(origin).items():
            assert traffic[ending] == size, f".{ending} was fetched {traffic[ending] / size:.3f} times"
        with capsys.disabled():
            print(f"\nbwa mem, cold, 20 ms away: {ahead:.2f} s with siblings, {plain:.2f} s without "
                  f"({ahead / plain:.2f})")  # fmt: skip


def test_a_glance_at_an_index_costs_little_and_a_region_no_genome(
    ecoli_remotes: EcoliServer, nginx: NginxFactory, tmp_path: Path
) -> None:
    """`.fai` brings no FASTA; opening a file that begins no index brings nothing."""
    with far_origin(ecoli_remotes, nginx) as origin:
        setup = origin.setup(tmp_path)
        with setup.mount() as mounted:
            folder = genome(mounted) / "fasta"
            mounted.run("md5sum", str(folder / f"{ALIAS}.fa.fai"))
            settled(mounted)
            assert origin.bytes_sent(".fa.fai") > 0
            assert origin.bytes_sent() == origin.bytes_sent(".fa.fai")
            mounted.run("md5sum", str(genome(mounted) / "bwa_index" / f"{ALIAS}.fa.ann"))
            settled(mounted)
            assert origin.bytes_sent() == origin.bytes_sent(".fa.fai") + origin.bytes_sent(".fa.ann")


def test_opening_one_file_makes_all_of_the_index_resident(
    ecoli_remotes: EcoliServer, nginx: NginxFactory, tmp_path: Path
) -> None:
    with far_origin(ecoli_remotes, nginx) as origin, origin.setup(tmp_path).mount() as mounted:
        folder = genome(mounted) / "bwa_index"
        mounted.run("md5sum", str(folder / f"{ALIAS}.fa.bwt"))
        settled(mounted)
        assert {e: resident(mounted, folder / f"{ALIAS}.fa.{e}") for e in BWA_READS} == dict.fromkeys(
            BWA_READS, "100"
        )
        assert sum(sent(origin).values()) == sum(sizes(origin).values()) == origin.bytes_sent()


def resident(mounted: Mounted, path: Path) -> str:
    script = "import os,sys; print(os.getxattr(sys.argv[1], 'user.refgenfs.resident').decode())"
    return str(mounted.run("python3", "-c", script, str(path)).stdout).strip()
