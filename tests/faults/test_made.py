"""What is made of bytes that turn out to be wrong goes with them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.world import ALIAS, World, archive_of, make_site, noise

pytestmark = pytest.mark.needs_fuse


def fasta(name: str, base: str) -> bytes:
    return f">{name}\n".encode() + b"".join(base.encode() * 60 + b"\n" for _ in range(20_000))


def test_an_index_of_an_archive_that_was_wrong(tmp_path: Path) -> None:
    """An archive whose MD5 is wrong is noticed when it has gone by: until then its bytes are read, and indexed."""
    world, right, wrong = World(tmp_path / "root"), fasta("right", "A"), fasta("wrong", "C")
    rest = {"z.bin": noise("the rest", 40_000_000)}  # so that the index is there before the archive has gone by
    good, bad = archive_of({"x.fa": right, **rest}), archive_of({"x.fa": wrong, **rest})
    world.add("fasta", {"x.fa": right, **rest}, archive=bad, archive_digest=hashlib.md5(good).hexdigest())
    with make_site(tmp_path, world=world) as site, site.mount() as m:
        path = f"{m.path}/{ALIAS}/fasta/x.fa"
        for ending in (".fai", ".dict"):  # mostly there, and wrong; on a busy machine it is noticed before
            m.run("cat", f"{path}{ending}", check=False)
        m.run("cat", f"{m.path}/{ALIAS}/fasta/z.bin", check=False, text=False)
        assert "dropping what came" in m.log_text()
        site.world.place("fasta", {"x.fa": right, **rest}, archive=good)
        deadline = time.monotonic() + 40
        while (done := m.run("cat", f"{path}.fai", check=False)).returncode or not done.stdout.startswith("right"):
            assert time.monotonic() < deadline, (done, site.tail())
            time.sleep(0.5)
        site.read_right("fasta")
        expected = subprocess.run(["samtools", "dict", "-"], input=right, capture_output=True, check=True).stdout
        assert m.run("cat", f"{path}.dict").stdout == expected.decode()
    with site.mount() as m:
        assert m.run("cat", f"{path}.fai").stdout.startswith("right\t1200000\t")
        assert m.run("cat", f"{path}.dict").stdout == expected.decode()


def test_a_sequence_of_an_archive_that_was_wrong(tmp_path: Path) -> None:
    """Who has one open never reads, by the MD5 of what was there, what is there instead."""
    world, right, wrong = World(tmp_path / "root"), fasta("x", "A"), fasta("x", "C")
    rest = {"z.bin": noise("the rest", 40_000_000)}
    good, bad = archive_of({"x.fa": right, **rest}), archive_of({"x.fa": wrong, **rest})
    world.add("fasta", {"x.fa": right, **rest}, archive=bad, archive_digest=hashlib.md5(good).hexdigest())
    bases = b"C" * 1_200_000
    md5 = hashlib.md5(bases).hexdigest()
    with make_site(tmp_path, world=world, rate=2e6) as site, site.mount() as m:
        path = m.path / ".refget" / md5[:2] / md5[2:4] / md5[4:]
        m.run("head", "-c", "1000", f"{m.path}/{ALIAS}/fasta/x.fa", check=False, text=False)
        # a reader that begins with the sequence while it is there, and goes on with it when it is not any more
        script = f"""
import os, time
deadline = time.monotonic() + 40
while True:
    try:
        fd = os.open({str(path)!r}, os.O_RDONLY)
        print(os.pread(fd, 10, 0).decode(), flush=True)
        break
    except OSError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.05)
input()
try:
    print(set(os.pread(fd, 100_000, 1_000_000).decode()))
except OSError as exc:
    print(exc.strerror)
"""
        command = ["timeout", "-s", "KILL", "100", sys.executable, "-c", script]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "C" * 10 + "\n"
            m.run("cat", f"{m.path}/{ALIAS}/fasta/z.bin", check=False, text=False)
            assert "dropping what came" in m.log_text()
            site.world.place("fasta", {"x.fa": right, **rest}, archive=good)
            site.read_right("fasta")
            m.call("cache_clear")
            assert reader.communicate("\n")[0] in ("{'C'}\n", "Stale file handle\n")
        assert "No such file" in m.run("stat", str(path), check=False).stderr
