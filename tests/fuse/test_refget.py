"""Sequences by MD5 on real mounts: CRAM is decoded with nothing but the tree."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.fuse.test_indices import absent, big_fasta, made, mounted_site, read, reload_with, stat, until_there
from tests.support.ecoli import ALIAS, Origin, at_once
from tests.support.mounted import Mounted, Setup
from tests.support.plain_files import plain_files
from tests.support.refget import refget_server

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data]

HTSLIB = Path("data/htsget/htslib")


def place(mounted: Mounted, md5: str) -> Path:
    return mounted.path / ".refget" / md5[:2] / md5[2:4] / md5[4:]


def sequences_of(fasta: Path) -> dict[str, bytes]:
    """Return what each sequence of a FASTA is, by MD5."""
    data = gzip.decompress(fasta.read_bytes()) if fasta.suffix == ".gz" else fasta.read_bytes()
    found = {}
    for part in data.split(b">")[1:]:
        sequence = part.partition(b"\n")[2].upper().translate(None, b"\r\n")
        found[hashlib.md5(sequence).hexdigest()] = sequence
    return found


def view(mounted: Mounted, cram: Path, *region: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Decode a CRAM with the mount's sequences, and no other place for them."""
    done: subprocess.CompletedProcess[str] = mounted.run(
        *("env", "-u", "REF_CACHE", "HOME=/nonexistent", f"REF_PATH={mounted.path}/.refget/%2s/%2s/%s"),
        *("samtools", "view", str(cram), *region),
        check=check,
    )
    return done


@pytest.fixture
def site(tmp_path: Path, data_dir: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    shutil.copy(data_dir / HTSLIB / "ce.fa", folder)
    (folder / "ce.fa").chmod(0o644)
    return folder


def test_a_cram_is_decoded_with_the_tree_s_sequences(site: Path, tmp_path: Path, data_dir: Path) -> None:
    cram = data_dir / HTSLIB / "range.cram"
    expected = subprocess.run(
        ["samtools", "view", "-T", str(data_dir / HTSLIB / "ce.fa"), str(cram)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    with mounted_site(site, tmp_path / "m") as (mounted, served):
        assert view(mounted, cram).stdout == expected.stdout
        assert expected.stdout.count("\n") > 100
        assert served.sent("/ce.fa") <= (site / "ce.fa").stat().st_size
    with mounted_site(site, tmp_path / "n", extra='[refget]\nsearch = "1kB"\n') as (mounted, _):
        assert view(mounted, cram, check=False).returncode, "the test would pass without the mount"


@pytest.mark.parametrize("packed", [False, True])
def test_every_sequence_has_its_md5(tmp_path: Path, packed: bool) -> None:
    """Whole and in stretches, in upper case, with the exact size; also out of a FASTA that bgzip compressed."""
    folder = tmp_path / "site"
    folder.mkdir()
    big_fasta(folder / "x.fa", 3_000_000)
    right = sequences_of(folder / "x.fa")
    if packed:
        subprocess.run(["bgzip", str(folder / "x.fa")], check=True)
    dice = random.Random(3)
    with mounted_site(folder, tmp_path / "m") as (mounted, _):
        assert len(right) == 8
        for md5, sequence in right.items():
            path = place(mounted, md5)
            assert stat(mounted, path, "%s %a %F") == f"{len(sequence)} 444 regular file"
            start = dice.randrange(len(sequence) - 1000)
            part = mounted.run(
                *("dd", f"if={path}", f"skip={start}", "count=1000", "bs=1000", "status=none"),
                *("iflag=skip_bytes,count_bytes",),
                text=False,
            )
            assert part.stdout == sequence[start : start + 1000]
            assert hashlib.md5(read(mounted, path)).hexdigest() == md5
        origin = ["getfattr", "--only-values", "-n", "user.refgenfs.origin", str(place(mounted, md5))]
        assert mounted.run(*origin).stdout == "sequence"


def test_a_region_reads_a_piece_of_the_sequence(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    big_fasta(folder / "x.fa", 40_000_000)
    with mounted_site(folder, tmp_path / "m", size="1GB") as (mounted, served):
        md5, sequence = list(sequences_of(folder / "x.fa").items())[4]
        path = place(mounted, md5)
        assert stat(mounted, path, "%s") == str(len(sequence))
        mounted.refgenfs("evict", "g/all")  # what reading it for its MD5s has left
        before = served.sent("/x.fa")
        script = f"dd if={path} skip=20 count=1 bs=100000 status=none | md5sum"
        assert mounted.shell(script).split()[0] == hashlib.md5(sequence[2_000_000:2_100_000]).hexdigest()
        assert served.sent("/x.fa") - before < 4_000_000


def test_names_below_refget(site: Path, tmp_path: Path) -> None:
    """Folders are where MD5s could be; they list nothing; what is no MD5 is not there, and asks nobody."""
    with mounted_site(site, tmp_path / "m") as (mounted, served):
        top = mounted.path / ".refget"
        assert stat(mounted, top, "%F %a") == "directory 555"
        assert mounted.run("ls", "-A", str(mounted.path)).stdout.split() == ["g"]
        assert mounted.run("ls", "-A", str(top), str(top / "8e"), str(top / "8e/de")).stdout.count("\n") < 8
        none = ["x", "0g", "abc", "8e/d", "8e/de/ff", "8e/de/" + "z" * 28, "8e/de/" + "0" * 29, "a" * 31]
        for name in none:
            assert absent(mounted, top / name), name
        assert served.log() == []
        (md5, *_) = sequences_of(site / "ce.fa")
        assert stat(mounted, top / md5, "%s %i") == stat(mounted, place(mounted, md5.upper()), "%s %i")
        assert "Read-only" in mounted.run("touch", str(top / "x"), check=False).stderr


def test_an_unknown_md5_reads_each_fasta_once(site: Path, tmp_path: Path) -> None:
    shutil.copy(site / "ce.fa", site / "other.fa")
    (site / "notes.txt").write_text("x")
    with plain_files(site) as served:
        setup = Setup(tmp_path, served.source({"g/all": sorted(os.listdir(site))}))
        with setup.mount() as mounted:
            for md5 in ("0" * 32, "1" * 32, "0" * 32, "2" * 32):
                assert absent(mounted, place(mounted, md5))
            assert served.sent(".fa") <= 2 * (site / "ce.fa").stat().st_size
            assert made(mounted) == 4
        with setup.mount() as mounted:  # and not again in the next life
            (md5, *_) = sequences_of(site / "ce.fa")
            assert hashlib.md5(read(mounted, place(mounted, md5))).hexdigest() == md5
            assert made(mounted) == 4
            assert served.sent(".fa") <= 2 * (site / "ce.fa").stat().st_size


def test_what_may_be_read_for_an_unknown_md5_is_bounded(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    for number in range(4):
        big_fasta(folder / f"x{number}.fa", 1_000_000 + number)
    with mounted_site(folder, tmp_path / "m", extra='[refget]\nsearch = "2500kB"\n') as (mounted, served):
        for md5 in ("0" * 32, "1" * 32):
            assert absent(mounted, place(mounted, md5))
        assert served.sent(".fa") < 2_500_000
        assert "more than refget.search" in mounted.log_text()


def test_only_the_configured_genomes_are_looked_at(site: Path, tmp_path: Path) -> None:
    (md5, *_) = sequences_of(site / "ce.fa")
    for genomes, there in (('["other"]', False), ('["g"]', True)):
        with mounted_site(site, tmp_path / genomes[2], extra=f"[refget]\ngenomes = {genomes}\n") as (mounted, served):
            assert absent(mounted, place(mounted, md5)) != there
            assert bool(served.sent("/ce.fa")) == there


def test_many_at_once(site: Path, tmp_path: Path) -> None:
    right = list(sequences_of(site / "ce.fa"))
    with mounted_site(site, tmp_path / "m") as (mounted, served):
        outputs = at_once([["md5sum", str(place(mounted, right[number % len(right)]))] for number in range(32)])
        assert [output.split()[0] for output in outputs] == [right[number % len(right)] for number in range(32)]
        assert made(mounted) == 2
        assert served.sent("/ce.fa") <= (site / "ce.fa").stat().st_size


def test_a_fasta_that_was_used_is_looked_at(origin: Origin, tmp_path: Path) -> None:
    """Of a refgenie server, whose genomes nobody named: those that somebody has read of, and no others."""
    fasta = origin.ecoli.plain("fasta") / f"{ALIAS}.fa"
    ((md5, sequence),) = sequences_of(fasta).items()
    with origin.setup(tmp_path / "m").mount() as mounted:
        assert absent(mounted, place(mounted, md5))
        mounted.run("head", "-c", "100", str(mounted.path / ALIAS / "fasta" / f"{ALIAS}.fa"))
        until_there(mounted, place(mounted, md5), 90)  # that there is none is believed for half a minute
        assert read(mounted, place(mounted, md5)) == sequence


def test_it_works_offline_once_it_is_there(site: Path, tmp_path: Path, data_dir: Path) -> None:
    cram = data_dir / HTSLIB / "range.cram"
    with plain_files(site) as served:
        setup = Setup(tmp_path, served.source({"g/all": ["ce.fa"]}))
        with setup.mount() as mounted:
            before = view(mounted, cram).stdout
        served.stop()
        with setup.mount() as mounted:
            assert view(mounted, cram).stdout == before


def test_a_fasta_that_is_replaced(tmp_path: Path) -> None:
    """A sequence that is not there any more is not; what is new is found."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "x.fa").write_text(">a\nACGTACGT\n")
    old, new = (hashlib.md5(text).hexdigest() for text in (b"ACGTACGT", b"TTTTACGTACGT"))
    with mounted_site(folder, tmp_path / "m", revalidate="1s") as (mounted, _):
        assert read(mounted, place(mounted, old)) == b"ACGTACGT"
        time.sleep(1.1)
        (folder / "x.fa").write_text(">a and more\nTTTTACGT\nACGT\n")
        until_there(mounted, place(mounted, new), 90)
        assert read(mounted, place(mounted, new)) == b"TTTTACGTACGT"


@pytest.mark.parametrize("gone", [False, True])
def test_a_sequence_that_one_fasta_has_no_more_and_another_one_has(tmp_path: Path, gone: bool) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "a.fa").write_text(">a\nACGTACGT\n")
    (folder / "b.fa").write_text(">b\nTTTT\n>c\nACGTACGT\n")
    shared, other = (hashlib.md5(text).hexdigest() for text in (b"ACGTACGT", b"TTTT"))
    with mounted_site(folder, tmp_path / "m", revalidate="1s") as (mounted, _):
        assert read(mounted, place(mounted, shared)) == b"ACGTACGT"
        assert read(mounted, place(mounted, other)) == b"TTTT"
        (folder / "a.fa").unlink()
        if not gone:
            (folder / "a.fa").write_text(">a and more\nGGGGG\nACGT\n")
        time.sleep(1.1)
        mounted.refgenfs("cache", "clear", "--yes")
        deadline = time.monotonic() + 30
        while (done := mounted.run("cat", str(place(mounted, shared)), check=False)).returncode:
            assert time.monotonic() < deadline, done.stderr
            time.sleep(1)
        assert done.stdout == "ACGTACGT"


def mounted_with(folder: Path, url: str, *, extra: str = "") -> Setup:
    folder.mkdir(exist_ok=True)
    source = (
        '[[source]]\nname = "none"\ntype = "http"\nurl = "http://127.0.0.1:9/"\n'
        '[[source.asset]]\nkey = "g/none"\nfiles = ["notes.txt"]\n'
    )
    return Setup(folder, source, extra=f'[refget]\nservers = ["{url}"]\n{extra}', limits={"retry_for": "1s"})


def test_a_refget_server_has_what_the_tree_has_not(tmp_path: Path) -> None:
    """Fetched by ranges, shown when its MD5 was right; kept; fetched again by ranges when it was evicted."""
    sequence = "".join(random.Random(5).choices("ACGTN", k=700_001)).encode()
    with refget_server() as server:
        md5 = server.add(sequence)
        setup = mounted_with(tmp_path, server.url)
        with setup.mount() as mounted:
            path = place(mounted, md5)
            assert stat(mounted, path, "%s") == str(len(sequence))
            assert read(mounted, path) == sequence
            assert absent(mounted, place(mounted, "0" * 32))
            origin = ["getfattr", "--only-values", "-n", "user.refgenfs.origin", str(path)]
            assert mounted.run(*origin).stdout == "refget"
            assert all(
                status == 206 for method, asked, _, status in server.requests if (method, asked) == ("GET", md5)
            )
            assert mounted.status()["fetched"] < len(sequence) + 100
        with setup.mount() as mounted:
            count = len(server.requests)
            assert read(mounted, place(mounted, md5)) == sequence
            assert len(server.requests) == count
            mounted.refgenfs("cache", "clear", "--yes")
            mounted.shell(f"dd if={place(mounted, md5)} iflag=nocache count=0 status=none")
            part = mounted.run("tail", "-c", "5", str(place(mounted, md5)), text=False).stdout
            assert part == sequence[-5:]
            assert len(server.requests) > count
            # what it sends now is another sequence, which is seen block by block
            server.damage = True
            mounted.refgenfs("cache", "clear", "--yes")
            mounted.shell(f"dd if={place(mounted, md5)} iflag=nocache count=0 status=none")
            done = mounted.run("tail", "-c", "5", str(place(mounted, md5)), check=False)
            assert "Input/output error" in done.stderr
            assert not done.stdout


def test_a_refget_server_that_sends_another_sequence(tmp_path: Path) -> None:
    with refget_server() as server:
        md5 = server.add(b"ACGT" * 50_000)
        server.damage = True
        with mounted_with(tmp_path, server.url).mount() as mounted:
            done = mounted.run("cat", str(place(mounted, md5)), check=False)
            assert "Input/output error" in done.stderr
            assert not done.stdout
            assert "the MD5 of what came is" in mounted.log_text()
            assert mounted.call("cache_info")["contents"] == []
            server.damage = False
            assert read(mounted, place(mounted, md5)) == b"ACGT" * 50_000


def test_a_refget_server_that_is_away(tmp_path: Path) -> None:
    """Unreachable is not absent."""
    with refget_server() as server:
        md5 = server.add(b"ACGT")
        server.status = 503
        with mounted_with(tmp_path, server.url).mount() as mounted:
            done = mounted.run("stat", str(place(mounted, md5)), check=False)
            assert "Input/output error" in done.stderr
            server.status = 0
            deadline = time.monotonic() + 30
            while mounted.run("stat", str(place(mounted, md5)), check=False).returncode:
                assert time.monotonic() < deadline
                time.sleep(0.5)
            assert read(mounted, place(mounted, md5)) == b"ACGT"


def test_nothing_of_this_machine_is_asked(site: Path, tmp_path: Path, data_dir: Path) -> None:
    """In a network of its own, with loopback alone, the mount is all that decoding takes."""
    cram = data_dir / HTSLIB / "range.cram"
    with mounted_site(site, tmp_path / "m") as (mounted, _):
        if os.geteuid() == 0 and shutil.which("unshare"):
            done = mounted.run(
                *("unshare", "-n", "env", "-u", "REF_CACHE", f"REF_PATH={mounted.path}/.refget/%2s/%2s/%s"),
                *("samtools", "view", "-c", str(cram)),
            )
            assert int(done.stdout) > 100


def test_where_sequences_are_looked_for_changes_while_mounted(site: Path, tmp_path: Path) -> None:
    """What was not found is looked for at once where the configuration says now, and nowhere else."""
    (md5, sequence), *_ = sequences_of(site / "ce.fa").items()
    folder = tmp_path / "m"
    folder.mkdir()
    with plain_files(site) as served, refget_server() as server:
        other, third = server.add(b"GATTACA"), server.add(b"GATT")
        setup = Setup(folder, served.source({"g/all": ["ce.fa"]}), extra='[refget]\ngenomes = ["other"]\n')
        with setup.mount() as mounted:
            assert absent(mounted, place(mounted, md5))
            assert absent(mounted, place(mounted, other))
            reload_with(mounted, setup, f'[refget]\ngenomes = ["g"]\nservers = ["{server.url}"]\n')
            until_there(mounted, place(mounted, md5))
            until_there(mounted, place(mounted, other))
            assert read(mounted, place(mounted, md5)) == sequence
            assert read(mounted, place(mounted, other)) == b"GATTACA"
            reload_with(mounted, setup, '[refget]\ngenomes = ["g"]\n')
            count = len(server.requests)
            assert absent(mounted, place(mounted, third))
            assert len(server.requests) == count
            assert read(mounted, place(mounted, md5)) == sequence
