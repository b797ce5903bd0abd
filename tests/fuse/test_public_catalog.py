"""The public server's catalog, 24 genomes and 164 assets, served by the real refgenieserver.

Mounted and listed in under a second once it is on the disk, with the server there, away, or silent.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from tests.support.mounted import Haste, Mounted, Setup
from tests.support.refgenieserver import RefgenieServer

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data, pytest.mark.slow, pytest.mark.timeout(900)]

MEMORY = 80 << 20  # bytes
TRIES = 12  # a machine that does other things as well gives one good run among these
SERVER_SECONDS = 30.0
HG38 = "2230c535660fb4774114bfa966a62f823fdb6d21acf138d4"


@dataclass
class Public:
    """A refgenieserver with the public catalog and no archives, and what it is to say."""

    url: str
    genomes: dict[str, Any]  # as the public server's configuration has them, by digest
    process: subprocess.Popen[bytes]
    log: Path

    def names(self) -> set[str]:
        """Return the names of all genomes, aliases and digests."""
        return {name for digest, genome in self.genomes.items() for name in (digest, *genome["aliases"])}

    def folders(self, digest: str) -> set[str]:
        """Return what is to be in a genome's folder."""
        assets = self.genomes[digest]["assets"]
        return {name for asset, about in assets.items() for name in (asset, *(f"{asset}:{t}" for t in about["tags"]))}

    def everything(self) -> set[str]:
        """Return what `find -maxdepth 2` is to print below the mountpoint."""
        paths = set(self.names())
        for digest, genome in self.genomes.items():
            for name in (digest, *genome["aliases"]):
                paths |= {f"{name}/{folder}" for folder in self.folders(digest)}
        return paths

    def asked(self) -> list[str]:
        """Return the paths that were asked for since the start."""
        return re.findall(r'"[A-Z]+ (\S+) HTTP', self.log.read_text(errors="replace"))


@pytest.fixture
def public(archive_server: RefgenieServer, data_dir: Path, tmp_path: Path) -> Iterator[Public]:
    folder = tmp_path / "public"
    folder.mkdir()
    served = yaml.safe_load((data_dir / "data/refgenie/refgenomes.databio.org.yaml").read_text())
    served["genome_folder"] = str(folder)
    config = folder / "genome_config.yaml"
    config.write_text(yaml.safe_dump(served, sort_keys=False))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    program = [archive_server.bin / "python", archive_server.work / "serve.py"]
    command = [*map(str, (*program, config, folder, port))]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/v3/genomes/list", process, log)
        yield Public(url, served["genomes"], process, log)
    finally:
        process.kill()
        process.wait(10)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SERVER_SECONDS
    while True:
        try:
            with urlopen(url, timeout=5) as answer:
                answer.read()
                return
        except OSError:
            gone = process.poll() is not None or time.monotonic() > deadline
            assert not gone, log.read_text()[-2000:]
            time.sleep(0.1)


@pytest.fixture
def setup(public: Public, tmp_path: Path) -> Setup:
    return Setup(tmp_path, f'[[source]]\nname = "refgenomes"\ntype = "refgenie"\nurl = "{public.url}"\n')


def listed(mounted: Mounted) -> set[str]:
    """Return what `find -maxdepth 2` prints, relative to the mountpoint."""
    printed = mounted.run("find", str(mounted.path), "-mindepth", "1", "-maxdepth", "2").stdout
    return {line.removeprefix(f"{mounted.path}/") for line in printed.splitlines()}


def refreshed(mounted: Mounted) -> dict[str, Any]:
    """Wait until the source was asked since the start; return its state."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = mounted.status()
        source: dict[str, Any] = status["sources"][0]
        if source["last_refresh"] and source["last_refresh"] >= status["started"]:
            return source
        time.sleep(0.1)
    raise AssertionError("the source was not asked in a minute")


def processor_seconds(pid: int) -> float:
    """Return what a process has used of the processor, as it says itself."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Start:
    """Seconds: from exec to readiness, of `ls` and `find` after it, and of processor time for all."""

    ready: float
    listing: float
    processor: float

    @property
    def total(self) -> float:
        return self.ready + self.listing


def measure_start(setup: Setup, everything: set[str]) -> Start:
    with setup.mount() as mounted:
        began = time.monotonic()
        mounted.run("ls", str(mounted.path))
        found = listed(mounted)
        listing = time.monotonic() - began
        used = processor_seconds(mounted.process.pid)
        assert found == everything
        return Start(mounted.seconds, listing, used)


def assert_quick(setup: Setup, public: Public, what: str) -> None:
    """Start until one start took less than a second, three times at least; fail when none of them did."""
    starts: list[Start] = []
    haste, bound = Haste(), Haste.START
    while len(starts) < 3 or (min(s.total for s in starts) >= bound and len(starts) < TRIES):
        starts.append(measure_start(setup, public.everything()))
        bound = haste.measure()
    best = min(starts, key=lambda start: start.total)
    all_of_them = ", ".join(f"{start.total:.2f}" for start in starts)
    print(
        f"{what}: ready {best.ready:.3f} s, ls and find {best.listing:.3f} s, processor {best.processor:.2f} s "
        f"(starts: {all_of_them} s; allowed are {bound:.2f} s)"
    )
    assert best.total < bound
    assert min(start.processor for start in starts) < bound


# -------------------------------------------------------------------------------------------------------------


def test_every_alias_and_digest_and_asset_is_there(setup: Setup, public: Public) -> None:
    assert len(public.genomes) == 24
    assert sum(len(about["tags"]) for g in public.genomes.values() for about in g["assets"].values()) == 164
    with setup.mount() as mounted:
        assert (mounted.ready["genomes"], mounted.ready["assets"], mounted.ready["problems"]) == (24, 164, [])
        assert set(mounted.run("ls", "-A", str(mounted.path)).stdout.split()) == public.names()
        assert listed(mounted) == public.everything()
        for digest, genome in public.genomes.items():
            for alias in genome["aliases"]:
                assert os.path.basename(mounted.path / alias) == alias
                shown = mounted.run("ls", "-A", str(mounted.path / alias)).stdout.split()
                assert set(shown) == public.folders(digest)
        missing = mounted.run("stat", str(mounted.path / "hg38" / "no_such_asset"), check=False)
        assert "No such file" in missing.stderr
        refreshed(mounted)
    # names are listed ahead, in the background, but never an archive for the sake of a listing
    assert not [path for path in public.asked() if "/archive/" in path]


def test_list_hg38_is_right(setup: Setup, public: Public) -> None:
    assets = public.genomes[HG38]["assets"]
    with setup.mount() as mounted:
        told = json.loads(mounted.refgenfs("list", "-m", str(mounted.path), "--json", "hg38").stdout)["assets"]
        assert {row["key"] for row in told} == {
            f"hg38/{a}:{tag}" for a, about in assets.items() for tag in about["tags"]
        }
        for row in told:
            about = assets[row["asset"]]
            tag = about["tags"][row["tag"]]
            assert row["description"] == about["asset_description"]
            assert (row["asset_size"], row["archive_size"]) == (tag["asset_size"], tag["archive_size"])
            assert row["seek_keys"] == sorted({*tag["seek_keys"]})
            assert row["default"] == (row["tag"] == about["default_tag"])
        text = mounted.refgenfs("list", "-m", str(mounted.path), "hg38").stdout
        lines = text.splitlines()
        assert len(lines) == 1 + len(told)
        fasta = next(line for line in lines if line.startswith("hg38/fasta:default "))
        assert fasta.split()[1:3] == ["2.9GB", "833.4MB"]
        by_digest = json.loads(mounted.refgenfs("list", "-m", str(mounted.path), "--json", HG38).stdout)["assets"]
        assert [row["key"] for row in by_digest] == [row["key"].replace("hg38/", f"{HG38}/") for row in told]
        genomes = json.loads(mounted.refgenfs("list", "-m", str(mounted.path), "--json").stdout)["genomes"]
        assert {row["digest"]: (set(row["names"]) - {row["digest"]}, row["assets"]) for row in genomes} == {
            digest: (set(genome["aliases"]), sum(len(asset["tags"]) for asset in genome["assets"].values()))
            for digest, genome in public.genomes.items()
        }


def test_mounted_and_listed_in_under_a_second_once_cached(setup: Setup, public: Public) -> None:
    first = measure_start(setup, public.everything())
    print(f"empty cache: ready {first.ready:.3f} s, ls and find {first.listing:.3f} s")
    assert_quick(setup, public, "cached, server there")


def test_mounted_and_listed_in_under_a_second_with_the_server_away(setup: Setup, public: Public) -> None:
    with setup.mount() as mounted:
        refreshed(mounted)
    public.process.kill()
    public.process.wait(10)
    assert_quick(setup, public, "cached, server away")
    with setup.mount() as mounted:
        assert listed(mounted) == public.everything()
        assert json.loads(mounted.refgenfs("list", "-m", str(mounted.path), "--json", "hg38").stdout)["assets"]
        source = mounted.status()["sources"][0]
        assert (source["genomes"], source["assets"]) == (24, 164)


def test_mounted_and_listed_in_under_a_second_with_a_server_that_is_silent(setup: Setup, public: Public) -> None:
    with setup.mount() as mounted:
        refreshed(mounted)
    public.process.send_signal(signal.SIGSTOP)  # connections are taken, and never answered
    try:
        assert_quick(setup, public, "cached, server silent")
    finally:
        public.process.send_signal(signal.SIGCONT)


@pytest.fixture
def runtime() -> Iterator[str]:
    """A folder for control sockets with a short name: a socket's path has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="rgfs-", dir="/tmp") as folder:
        yield folder


def test_the_mount_command_takes_under_a_second_once_cached(setup: Setup, public: Public, runtime: str) -> None:
    """The same as a user sees it: `refgenfs mount`, with the start of the command itself, and `ls`."""
    with setup.mount() as mounted:
        refreshed(mounted)
    environ = {**setup.environ(), "REFGENFS_RUNTIME_DIR": runtime}
    command = ["timeout", "-s", "KILL", "60", sys.executable, "-m", "refgenfs"]
    point = setup.folder / "mnt"
    taken: list[float] = []
    haste, bound = Haste(), Haste.START
    while len(taken) < 3 or (min(taken) >= bound and len(taken) < TRIES):
        try:
            began = time.monotonic()
            mount = [*command, "mount", "-c", str(setup.write())]
            done = subprocess.run(mount, env=environ, check=False, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            names = subprocess.run(["timeout", "-s", "KILL", "20", "ls", point], check=True, capture_output=True)
            taken.append(time.monotonic() - began)
            assert set(names.stdout.decode().split()) == public.names()
            subprocess.run([*command, "umount", str(point)], env=environ, check=True, capture_output=True)
        finally:
            subprocess.run(["fusermount3", "-uz", point], check=False, capture_output=True, timeout=20)
        bound = haste.measure()
    print(f"refgenfs mount and ls: {min(taken):.3f} s (of {', '.join(f'{one:.2f}' for one in taken)}; {bound:.2f})")
    assert min(taken) < bound


def test_memory_stays_small_after_a_full_find(setup: Setup, public: Public) -> None:
    for what in ("empty cache", "cached"):
        with setup.mount() as mounted:
            assert listed(mounted) == public.everything()
            refreshed(mounted)
            for genome in sorted(public.names()):
                mounted.call("list", genome=genome)
            for _ in range(3):
                mounted.call("reload")
            assert listed(mounted) == public.everything()
            now, peak = mounted.memory("VmRSS"), mounted.memory("VmHWM")
            print(f"{what}: VmRSS {now / 2**20:.1f} MiB, VmHWM {peak / 2**20:.1f} MiB")
            assert now < MEMORY
            assert peak < MEMORY
