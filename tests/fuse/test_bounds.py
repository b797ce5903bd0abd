"""What the daemon may take: memory, time to start, and no network for names that are known."""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from isal import isal_zlib

from refgenfs.demo.answers import CATALOG
from tests.support.children import end
from tests.support.ecoli import ALIAS, ASSETS, SOURCE, Ecoli, Origin, at_once, genome, settled
from tests.support.mounted import Haste, Mounted, Setup

# Gigabytes go to the disk and are removed again, which takes minutes while others keep it busy.
pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data, pytest.mark.timeout(400)]

MIB = 1 << 20
MEMORY = 150 * MIB
DIGEST = "0123456789abcdef" * 3  # as long as refgenie's
READERS = 16


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for what is large; it goes with the test, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="refgenfs-bounds-") as folder:
        yield Path(folder)


@pytest.fixture
def sparse() -> Iterator[Path]:
    """A folder for a sparse file of many extents: in memory if there is room, for a disk takes long to remove it."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 512 * MIB
    with tempfile.TemporaryDirectory(prefix="refgenfs-bounds-", dir=memory if roomy else None) as folder:
        yield Path(folder)


@contextmanager
def serving(root: Path, *options: str) -> Iterator[str]:
    """Run the demo's origin in a process of its own: a gigabyte must not go through the test's."""
    process = subprocess.Popen(
        [sys.executable, "-m", "refgenfs.demo.origin", "--root", str(root), *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 20)[0], "the origin does not start"
        ready, _, url = process.stdout.readline().strip().partition(" ")
        assert ready == "READY"
        yield url
    finally:
        end(process)
        if process.stdout is not None:
            process.stdout.close()


def catalog(root: Path, asset: str, names: list[str], archive_digest: str) -> None:
    """Write what the origin says of one genome with one asset."""
    attrs = {
        "asset_path": asset, "asset_digest": hashlib.md5(asset.encode(), usedforsecurity=False).hexdigest(),
        "archive_digest": archive_digest, "asset_size": "1 GB", "archive_size": "1 GB",
        "seek_keys": {asset: names[0], "dir": "."}, "asset_parents": [], "asset_children": [],
    }  # fmt: skip
    assets = {asset: {"asset_description": "large", "default_tag": "default", "tags": {"default": attrs}}}
    genomes = {DIGEST: {"genome_description": "large", "aliases": ["big"], "assets": assets}}
    (root / CATALOG).write_text(json.dumps(genomes))
    folder = root / DIGEST
    folder.mkdir(exist_ok=True)
    (folder / f"asset_dir_contents_{asset}__default.json").write_text(json.dumps(names))


def source(url: str) -> str:
    """Return the [[source]] table of an origin."""
    return f'[[source]]\nname = "{SOURCE}"\ntype = "refgenie"\nurl = "{url}"\n'


def numbered(path: Path, size: int) -> None:
    """Write a sparse file in which every 64 KiB begin with their number: little room, and no two alike."""
    with path.open("wb") as file:
        file.truncate(size)
        for number in range(size >> 16):
            os.pwrite(file.fileno(), b"%016d" % number, number << 16)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["2GB", "200MB"], ids=["all of it is cached", "a fifth of it is cached"])
def test_memory_while_sixteen_readers_read_a_gibibyte_by_ranges(scratch: Path, sparse: Path, size: str) -> None:
    root, name = sparse / "origin", f"{DIGEST}.bin"
    folder = root / DIGEST / "blob__default"
    folder.mkdir(parents=True)
    numbered(folder / name, 1024 * MIB)
    catalog(root, "blob", [name], "")
    with serving(root, "--remotes") as url, Setup(scratch, source(url), size=size).mount() as mounted:
        before = mounted.memory()
        share = 1024 * MIB // READERS
        mine, plain = f"{mounted.path}/big/blob/big.bin", str(folder / name)
        began = time.monotonic()
        parts = [["cmp", "-i", str(share * i), "-n", str(share), plain, mine] for i in range(READERS)]
        assert at_once(parts, timeout=300) == [""] * READERS
        seconds = time.monotonic() - began
        peak, fetched = mounted.memory(), mounted.status()["fetched"]
        print(f"cache {size}: {before >> 20} MiB before, peak {peak >> 20} MiB, {1024 / seconds:.0f} MiB/s")
        assert fetched >= 1024 * MIB, "not all of it went through the daemon"
        assert peak <= MEMORY, f"{peak >> 20} MiB"


@pytest.mark.slow
def test_memory_while_a_large_archive_streams(scratch: Path) -> None:
    root = scratch / "origin"
    (root / DIGEST).mkdir(parents=True)
    names = [f"{DIGEST}.{ending}" for ending in ("zeros", "noise", "end")]
    sums = large_archive(root / DIGEST / "blob__default.tgz", names)
    digest = hashlib.md5(usedforsecurity=False)
    with (root / DIGEST / "blob__default.tgz").open("rb") as file:
        while piece := file.read(4 * MIB):
            digest.update(piece)
    catalog(root, "blob", names, digest.hexdigest())
    size = (root / DIGEST / "blob__default.tgz").stat().st_size
    assert size > 500_000_000
    with serving(root) as url, Setup(scratch, source(url), size="2GB").mount() as mounted:
        paths = {name: f"{mounted.path}/big/blob/{name.replace(DIGEST, 'big')}" for name in names}
        began = time.monotonic()
        outputs = at_once([["md5sum", path] for path in paths.values()] * 2, timeout=300)
        seconds = time.monotonic() - began
        assert [output.split()[0] for output in outputs] == [sums[name] for name in names] * 2
        peak = mounted.memory()
        print(f"{size} bytes of archive: peak {peak >> 20} MiB, {size / seconds / 1e6:.0f} MB/s")
        assert size <= mounted.status()["fetched"] < size + 100_000
        assert peak <= MEMORY, f"{peak >> 20} MiB"


def large_archive(path: Path, names: list[str]) -> dict[str, str]:
    """Write an archive of 300 MiB of zeros, which inflate from next to nothing, of noise, and of a small file."""
    noise = os.urandom(8 * MIB)  # further apart than gzip looks back: it does not compress
    contents = {names[0]: (bytes(8 * MIB), 38), names[1]: (noise, 62), names[2]: (b"the end\n", 1)}
    sums = {}
    packer = isal_zlib.compressobj(0, isal_zlib.DEFLATED, 31)  # gzip, at its quickest
    with path.open("wb") as packed:
        for name, (piece, times) in contents.items():
            info = tarfile.TarInfo(f"default/{name}")
            info.size, info.mtime = len(piece) * times, 1_600_000_000
            packed.write(packer.compress(info.tobuf(tarfile.GNU_FORMAT)))
            md5 = hashlib.md5(usedforsecurity=False)
            for _ in range(times):
                packed.write(packer.compress(piece))
                md5.update(piece)
            packed.write(packer.compress(bytes(-info.size % 512)))
            sums[name] = md5.hexdigest()
        packed.write(packer.compress(bytes(1024)) + packer.flush())
    return sums


# --- starting ------------------------------------------------------------------------------------------------


def test_a_mount_over_a_filled_cache_is_usable_at_once(origin: Origin, tmp_path: Path) -> None:
    setup = origin.setup(tmp_path)
    with setup.mount() as mounted:
        mounted.refgenfs("pull", *(f"{ALIAS}/{asset}" for asset in ASSETS))
    taken, usable = [], []
    haste, bound = Haste(), Haste.START
    for _ in range(3):
        began = time.monotonic()
        with setup.mount() as mounted:
            taken.append(mounted.seconds)
            mounted.run("head", "-c", "100", f"{genome(mounted)}/fasta/{ALIAS}.fa")
            usable.append(time.monotonic() - began)
        bound = haste.measure()
    print(f"ready after {min(taken):.2f} s, read after {min(usable):.2f} s; allowed are {bound:.2f} s")
    assert min(usable) <= bound


# --- names ---------------------------------------------------------------------------------------------------


def requests(origin: Origin) -> list[str]:
    """Return what the origin was asked, whatever it was."""
    return [f"{one.method} {one.path}" for proxy in (origin.api, origin.files) for one in proxy.log()]


def look(mounted: Mounted, ecoli: Ecoli) -> str:
    """Look every name up in every spelling, and names that do not exist; return names and sizes."""
    listing = ""
    for name in (ALIAS, ecoli.digest):
        for asset in ASSETS:
            listing += mounted.shell(f'cd "$M/{name}"; stat -c "%n %s" {asset}/* {asset}:default/* {asset}/default/*')
        for nothing in ("x", "fasta/x", "fasta:x", "bwa_index/default/x", ".Trash", "fasta/autorun.inf"):
            assert mounted.run("stat", f"{mounted.path}/{name}/{nothing}", check=False).returncode == 1
    return listing


def quiet(origin: Origin) -> None:
    """Wait until nothing is asked any more: the catalog is refreshed at the start."""
    deadline = time.monotonic() + 20
    seen = -1
    while (now := len(requests(origin))) != seen:
        assert time.monotonic() < deadline, "the origin is asked for ever"
        seen = now
        time.sleep(0.3)


def test_a_lookup_of_a_cached_name_touches_no_network(origin: Origin, tmp_path: Path) -> None:
    ecoli = origin.ecoli
    setup = origin.setup(tmp_path)
    with setup.mount() as mounted:
        before = len(requests(origin))
        first = look(mounted, ecoli)
        assert len(requests(origin)) > before, "a cold lookup asks: so this can fail"
        settled(mounted)
    sizes = {name: (ecoli.plain("fasta") / name).stat().st_size for name in ecoli.files("fasta")}
    for name, size in sizes.items():
        assert f"fasta/{name} {size}\n" in first
    with setup.mount() as mounted:  # another kernel mount: it knows no name
        quiet(origin)
        origin.clear()
        assert look(mounted, ecoli) == first
        assert requests(origin) == []
    origin.api.stop()
    origin.files.stop()
    with setup.mount() as mounted:
        assert look(mounted, ecoli) == first
