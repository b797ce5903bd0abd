"""Indices that no origin has, on real mounts: what tools find there is what they would have made themselves."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pysam
import pytest

from refgenfs.cache.ledger import Ledger
from tests.support.ecoli import ALIAS, Origin, at_once
from tests.support.mounted import Mounted, Setup
from tests.support.plain_files import PlainFiles, plain_files

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data]

HTSGET = Path("data/htsget")
BAM = HTSGET / "htsget-rs/bam/htsnexus_test_NA12878.bam"
CRAM = HTSGET / "htsget-rs/cram/htsnexus_test_NA12878.cram"
VCF = HTSGET / "htsget-rs/vcf/sample1-bcbio-cancer.vcf.gz"
BCF = HTSGET / "htsget-rs/bcf/sample1-bcbio-cancer.bcf"
FASTA = HTSGET / "htslib/ce.fa"
BED = "".join(f"chr{1 + i // 500}\t{i * 40}\t{i * 40 + 30}\tx{i}\n" for i in range(1000))
GFF = "##gff-version 3\n" + "".join(
    f"chr1\tx\tgene\t{i * 9 + 1}\t{i * 9 + 5}\t.\t+\t.\tID=g{i}\n" for i in range(900)
)
PACKED = (".csi", ".tbi", ".crai")  # compressed, by another zlib perhaps: equal when unpacked


def compress(text: str, path: Path) -> None:
    plain = path.with_suffix("")
    plain.write_text(text)
    subprocess.run(["bgzip", "-f", str(plain)], check=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """Data of every kind, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    for path in (BAM, CRAM, VCF, BCF, FASTA):
        shutil.copy(data_dir / path, folder / path.name.replace("htsnexus_test_NA12878", "na"))
    subprocess.run(["bgzip", "-k", str(folder / "ce.fa")], check=True)
    (folder / "ce.fa.gz").rename(folder / "packed.fna.gz")
    compress(BED, folder / "a.bed.gz")
    compress(GFF, folder / "a.gff3.gz")
    for path in folder.iterdir():
        path.chmod(0o644)
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return folder


@pytest.fixture(scope="module")
def local(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with the indices that the tools make."""
    folder = tmp_path_factory.mktemp("local")
    for path in site.iterdir():
        shutil.copy2(path, folder)
    script = """
        samtools faidx ce.fa; samtools faidx packed.fna.gz; samtools index na.bam; samtools index na.cram
        samtools dict - < ce.fa > ce.dict; samtools dict - < packed.fna.gz > packed.dict
        tabix -p vcf sample1-bcbio-cancer.vcf.gz; bcftools index sample1-bcbio-cancer.bcf
        tabix -p bed a.bed.gz; tabix -p gff a.gff3.gz
    """
    subprocess.run(["bash", "-euc", script], check=True, cwd=folder, capture_output=True)
    return folder


@contextlib.contextmanager
def mounted_site(
    site: Path, folder: Path, *, rate: int = 0, size: str = "1GB", extra: str = "", revalidate: str = "60s"
) -> Iterator[tuple[Mounted, PlainFiles]]:
    """Mount a folder's files as the asset `g/all`."""
    folder.mkdir(exist_ok=True)
    with plain_files(site, rate=rate) as served:
        source = served.source({"g/all": sorted(os.listdir(site))}, revalidate=revalidate)
        with Setup(folder, source, size=size, extra=extra).mount() as mounted:
            yield mounted, served


def made(mounted: Mounted, what: str = "") -> int:
    """Return how many makings of something the log tells of."""
    return sum(": made, in " in line and what in line for line in mounted.log_text().splitlines())


def not_made(mounted: Mounted, name: str) -> list[str]:
    return [line for line in mounted.log_text().splitlines() if f" {name} " in line and ": not made: " in line]


def unpack(path: Path, data: bytes) -> bytes:
    return gzip.decompress(data) if path.suffix in PACKED else data


def read(mounted: Mounted, path: Path) -> bytes:
    done = mounted.run("cat", str(path), text=False)
    output: bytes = done.stdout
    return output


def stat(mounted: Mounted, path: Path, form: str) -> str:
    return str(mounted.run("stat", "-c", form, str(path)).stdout).strip()


def absent(mounted: Mounted, path: Path) -> bool:
    done = mounted.run("stat", str(path), check=False)
    return done.returncode != 0 and "No such file" in done.stderr


def big_fasta(path: Path, size: int) -> None:
    """Write a FASTA of some sequences, about so many bytes."""
    dice = random.Random(7)
    with path.open("w") as file:
        for number in range(8):
            line = "".join(dice.choices("ACGTacgtN", k=60))
            file.write(f">chr{number} about it\n" + f"{line}\n" * (size // 8 // 61) + "ACG\n")


def worker_of(mounted: Mounted) -> int:
    """Return the process that makes something, when there is one."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        children = Path(f"/proc/{mounted.process.pid}/task/{mounted.process.pid}/children").read_text().split()
        tasks = Path(f"/proc/{mounted.process.pid}/task").iterdir()
        children += [one for task in tasks for one in (task / "children").read_text().split()]
        for child in children:
            with contextlib.suppress(OSError):
                if b"worker.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        time.sleep(0.02)
    raise AssertionError("nothing is being made")


def waiting_stat(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["timeout", "-s", "KILL", "60", "stat", "-c", "%s", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_they_are_what_the_tools_make(site: Path, local: Path, tmp_path: Path) -> None:
    """Byte for byte; listed once they are there; as old as their data; which is fetched once."""
    indices = sorted(path.name for path in local.iterdir() if not (site / path.name).exists())
    assert len(indices) == 11
    with mounted_site(site, tmp_path) as (mounted, served):
        folder = mounted.path / "g/all"
        names = mounted.run("ls", "-A", str(folder)).stdout.split()
        assert names == sorted(path.name for path in site.iterdir())
        for name in indices:
            found, expected = read(mounted, folder / name), (local / name).read_bytes()
            assert unpack(folder / name, found) == unpack(local / name, expected), name
            assert stat(mounted, folder / name, "%s %Y") == f"{len(found)} 1600000000"
        assert mounted.run("ls", "-A", str(folder)).stdout.split() == sorted([*names, *indices])
        origin = mounted.run("getfattr", "--only-values", "-n", "user.refgenfs.origin", str(folder / "na.bam.bai"))
        assert origin.stdout == "generated"
        for name in names:
            assert served.sent(f"/{name}") <= (site / name).stat().st_size
        rows = {row["name"]: row for row in mounted.call("info", key="g/all")["files"]}
        assert set(rows) == {*names, *indices}
        assert rows["ce.dict"]["origin"] == "generated"
        assert rows["ce.dict"]["size"] == (local / "ce.dict").stat().st_size
        assert made(mounted) == 10  # a .fai and its .gzi are made in one go


def test_tools_use_them(site: Path, local: Path, tmp_path: Path) -> None:
    commands = [
        ("samtools", "view", "{}/na.bam", "11:5015000-5050000"),
        ("samtools", "view", "-c", "{}/na.cram", "11:5000000-5050000"),
        ("samtools", "faidx", "{}/ce.fa", "CHROMOSOME_I:100000-100200"),
        ("samtools", "faidx", "{}/packed.fna.gz", "CHROMOSOME_III:10-90"),
        ("tabix", "{}/a.bed.gz", "chr2:20000-20200"),
        ("tabix", "{}/a.gff3.gz", "chr1:100-200"),
        ("bcftools", "view", "-H", "{}/sample1-bcbio-cancer.bcf", "chrM:1-500"),
        ("bcftools", "view", "-H", "{}/sample1-bcbio-cancer.vcf.gz", "chrM:1-500"),
    ]
    with mounted_site(site, tmp_path) as (mounted, _):
        folder = mounted.path / "g/all"
        for command in commands:
            expected = subprocess.run(
                [word.format(local) for word in command], capture_output=True, text=True, check=True, timeout=60
            )
            done = mounted.run(*(word.format(folder) for word in command))
            assert done.stdout == expected.stdout
            assert done.stdout
            assert done.stderr == expected.stderr, "a warning about the index"
        script = f"import pysam; f = pysam.AlignmentFile('{folder}/na.bam'); print(f.count('20'), f.has_index())"
        count = pysam.AlignmentFile(str(local / "na.bam")).count("20")
        assert mounted.run(sys.executable, "-c", script).stdout.split() == [str(count), "True"]


def test_every_spelling_and_every_name_of_the_genome(origin: Origin, tmp_path: Path) -> None:
    """`x.dict` and `x.fa.dict`, under an alias and under the digest, are one file; the alias is in no byte of it."""
    plain = origin.ecoli.plain("fasta") / f"{ALIAS}.fa"
    with plain.open("rb") as file:
        expected = subprocess.run(["samtools", "dict", "-"], stdin=file, capture_output=True, check=True, timeout=60)
    with origin.setup(tmp_path / "m").mount() as mounted:
        digest = origin.ecoli.digest
        paths = [
            mounted.path / genome / "fasta" / f"{genome}{ending}"
            for genome in (ALIAS, digest)
            for ending in (".dict", ".fa.dict")
        ]
        assert len({stat(mounted, path, "%i %s %Y") for path in paths}) == 1
        assert read(mounted, paths[0]) == read(mounted, paths[-1]) == expected.stdout
        for genome in (ALIAS, digest):
            names = mounted.run("ls", str(mounted.path / genome / "fasta")).stdout.split()
            assert {f"{genome}.dict", f"{genome}.fa.dict"} <= set(names)
        assert made(mounted) == 1
        ages = [stat(mounted, path, "%Y") for path in (paths[0], mounted.path / ALIAS / "fasta" / f"{ALIAS}.fa")]
        assert int(ages[0]) >= int(ages[1])


def test_sixty_four_at_once_have_one_made(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    big_fasta(site / "big.fa", 6_000_000)
    with mounted_site(site, tmp_path / "m", rate=4_000_000) as (mounted, served):
        path = mounted.path / "g/all/big.fa.fai"
        outputs = at_once([["md5sum", str(path)]] * 64)
        subprocess.run(["samtools", "faidx", str(site / "big.fa")], check=True, timeout=60)
        right = subprocess.run(["md5sum", str(site / "big.fa.fai")], capture_output=True, text=True, check=True)
        assert {output.split()[0] for output in outputs} == {right.stdout.split()[0]}
        assert made(mounted) == 1
        assert served.sent("/big.fa") == (site / "big.fa").stat().st_size


def test_what_is_being_made_is_in_status(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    big_fasta(site / "big.fa", 6_000_000)
    with mounted_site(site, tmp_path / "m", rate=500_000) as (mounted, _):
        waiting = waiting_stat(mounted.path / "g/all/big.fa.fai")
        worker_of(mounted)
        (job,) = mounted.status()["making"]
        assert job["files"] == ["big.fa.fai"]
        assert job["total"] == (site / "big.fa").stat().st_size
        assert "big.fa.fai of g/all" in mounted.refgenfs("status").stdout
        waiting.communicate(timeout=60)
        assert waiting.returncode == 0
        assert mounted.status()["making"] == []


def test_pull_pin_verify_and_evict_know_it(site: Path, local: Path, tmp_path: Path) -> None:
    with mounted_site(site, tmp_path) as (mounted, _):
        path = mounted.path / "g/all/na.bam.bai"
        right = (local / "na.bam.bai").read_bytes()
        assert read(mounted, path) == right
        mounted.refgenfs("evict", "g/all")
        mounted.refgenfs("pull", "--pin", "g/all")
        rows = {row["name"]: row for row in mounted.call("info", key="g/all")["files"]}
        assert (rows["na.bam.bai"]["resident"], rows["na.bam.bai"]["pinned"]) == (100, True)
        assert read(mounted, mounted.path / "g/all/ce.dict")  # what is made from now on of a pinned asset is pinned
        assert mounted.run("getfattr", "--only-values", "-n", "user.refgenfs.pinned", f"{path}").stdout == "1"
        held = {row["name"]: row for row in mounted.call("cache_info")["contents"]}
        assert held["ce.dict"]["pinned"]
        assert held["na.bam.bai"]["key"] == "g/all:default"
        (file,) = (one for one in (mounted.cache / "contents").iterdir() if one.is_file() and begins(one, right[:64]))
        with file.open("r+b") as damaged:
            damaged.seek(1000)
            damaged.write(b"damage")
        done = mounted.call("cache_verify")
        assert [(row["name"], row["healed"]) for row in done["damaged"]] == [("na.bam.bai", True)]
        assert read(mounted, path) == right
        mounted.refgenfs("unpin", "g/all")
        mounted.refgenfs("evict", "g/all")
        assert mounted.call("cache_info")["contents"] == []


def begins(path: Path, data: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(data)) == data


def test_others_are_not_held_up(tmp_path: Path) -> None:
    """While an index is made, its folder is listed, its data read, and other names of it are looked up."""
    site = tmp_path / "site"
    site.mkdir()
    big_fasta(site / "big.fa", 4_000_000)
    (site / "a.fa").write_text(">a\nACGT\n")
    with mounted_site(site, tmp_path / "m", rate=50_000) as (mounted, _):
        waiting = waiting_stat(mounted.path / "g/all/big.fa.fai")
        worker_of(mounted)
        folder = mounted.path / "g/all"
        assert mounted.run("ls", str(folder), timeout=5).stdout.split() == ["a.fa", "big.fa"]
        assert mounted.run("head", "-c", "5", str(folder / "big.fa"), timeout=5).stdout == ">chr0"
        assert absent(mounted, folder / "big.fa.bai")
        assert mounted.run("cat", str(folder / "a.fa.fai"), timeout=10).stdout.startswith("a\t4\t")
        assert waiting.poll() is None, "it was made already: nothing was tried"
        waiting.communicate(timeout=60)


def test_a_worker_that_is_killed(tmp_path: Path) -> None:
    """Who waits gets EIO, with a log line; nothing of it is left, and a while later it is made."""
    site = tmp_path / "site"
    site.mkdir()
    big_fasta(site / "big.fa", 4_000_000)
    with mounted_site(site, tmp_path / "m", rate=500_000) as (mounted, _):
        path = mounted.path / "g/all/big.fa.fai"
        waiting = waiting_stat(path)
        os.kill(worker_of(mounted), signal.SIGKILL)
        assert "Input/output error" in waiting.communicate(timeout=60)[1]
        assert "its process was ended by SIGKILL" in not_made(mounted, "big.fa.fai")[0]
        assert "big.fa.fai" not in mounted.run("ls", str(path.parent)).stdout
        deadline = time.monotonic() + 60
        while mounted.run("stat", str(path), check=False).returncode:
            assert time.monotonic() < deadline
            time.sleep(1)
        subprocess.run(["samtools", "faidx", str(site / "big.fa")], check=True, timeout=60)
        assert read(mounted, path) == (site / "big.fa.fai").read_bytes()


def test_a_daemon_that_is_killed(tmp_path: Path) -> None:
    """The worker ends with it, and the next daemon makes it anew."""
    site = tmp_path / "site"
    site.mkdir()
    big_fasta(site / "big.fa", 4_000_000)
    with plain_files(site, rate=500_000) as served:
        setup = Setup(tmp_path, served.source({"g/all": ["big.fa"]}))
        with setup.mount() as mounted:
            waiting = waiting_stat(mounted.path / "g/all/big.fa.fai")
            worker = worker_of(mounted)
            mounted.kill()
            waiting.communicate(timeout=60)
            deadline = time.monotonic() + 20
            while Path(f"/proc/{worker}").exists():
                assert time.monotonic() < deadline, "the worker lives on"
                time.sleep(0.05)
        with setup.mount() as mounted:
            path = mounted.path / "g/all/big.fa.fai"
            found = read(mounted, path)
            subprocess.run(["samtools", "faidx", str(site / "big.fa")], check=True, timeout=60)
            assert found == (site / "big.fa.fai").read_bytes()
            assert not list((mounted.cache / "scratch").iterdir())


def test_nobody_waits_and_it_can_be_killed(tmp_path: Path) -> None:
    """Who waits for an index can be killed at once, though the origin is slow."""
    site = tmp_path / "site"
    site.mkdir()
    big_fasta(site / "big.fa", 4_000_000)
    with mounted_site(site, tmp_path / "m", rate=100_000) as (mounted, _):
        waiting = subprocess.Popen(["stat", str(mounted.path / "g/all/big.fa.fai")])
        worker_of(mounted)
        waiting.kill()
        waiting.wait(10)
        assert mounted.run("ls", str(mounted.path / "g/all")).stdout.split() == ["big.fa"]


def test_evicted_it_is_made_again(site: Path, local: Path, tmp_path: Path) -> None:
    with mounted_site(site, tmp_path) as (mounted, served):
        path = mounted.path / "g/all/na.bam.bai"
        before = stat(mounted, path, "%s %Y")
        mounted.refgenfs("evict", "g/all")
        mounted.shell(f"dd if={path} iflag=nocache count=0 status=none")
        resident = ["getfattr", "--only-values", "-n", "user.refgenfs.resident", str(path)]
        assert mounted.run(*resident).stdout == "0"
        assert "na.bam.bai" in mounted.run("ls", str(path.parent)).stdout
        assert read(mounted, path) == (local / "na.bam.bai").read_bytes()
        assert stat(mounted, path, "%s %Y") == before
        assert made(mounted) == 2
        assert served.sent("/na.bam") == 2 * (site / "na.bam").stat().st_size


def test_it_is_there_after_a_restart_without_the_origin(site: Path, local: Path, tmp_path: Path) -> None:
    with plain_files(site) as served:
        setup = Setup(tmp_path, served.source({"g/all": sorted(os.listdir(site))}))
        with setup.mount() as mounted:
            for name in ("na.bam.bai", "ce.dict"):
                read(mounted, mounted.path / "g/all" / name)
        served.stop()
        with setup.mount() as mounted:
            folder = mounted.path / "g/all"
            names = mounted.run("ls", str(folder)).stdout.split()
            assert {"na.bam.bai", "ce.dict"} <= set(names)
            assert read(mounted, folder / "na.bam.bai") == (local / "na.bam.bai").read_bytes()
            assert read(mounted, folder / "ce.dict") == (local / "ce.dict").read_bytes()
            # unreachable is not absent: it is not known whether there can be one
            done = mounted.run("stat", str(folder / "na.cram.crai"), check=False, timeout=100)
            assert "No such file" not in done.stderr
            assert done.returncode


def test_a_cache_that_is_smaller_than_the_data(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    big_fasta(site / "big.fa", 16_000_000)
    with mounted_site(site, tmp_path / "m", size="8MB") as (mounted, _):
        found = read(mounted, mounted.path / "g/all/big.fa.fai")
        subprocess.run(["samtools", "faidx", str(site / "big.fa")], check=True, timeout=60)
        assert found == (site / "big.fa.fai").read_bytes()
        assert int(mounted.shell(f"du -s --block-size=1 {mounted.cache} | cut -f1")) <= 8_000_000


def test_what_can_t_be_indexed_has_none(site: Path, tmp_path: Path, data_dir: Path) -> None:
    """An unsorted, a broken and a truncated file: ENOENT, one line in the log, and no second try."""
    folder = tmp_path / "site"
    folder.mkdir()
    whole = (data_dir / BAM).read_bytes()
    subprocess.run(
        ["samtools", "collate", "-o", str(folder / "unsorted.bam"), str(data_dir / BAM)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (folder / "short.bam").write_bytes(whole[:1_000_000])
    (folder / "broken.bam").write_bytes(whole[:900_000] + bytes(1000) + whole[901_000:])
    compress("chr2\t3\t4\nchr1\t10\t20\nchr2\t3\t4\n", folder / "unsorted.bed.gz")
    (folder / "bad.fa").write_text(">a\nACGT\nAC\nACGT\n")
    with mounted_site(folder, tmp_path / "m") as (mounted, served):
        names = ["unsorted.bam.bai", "short.bam.bai", "broken.bam.bai", "unsorted.bed.gz.tbi", "bad.fa.fai"]
        for name in names:
            assert absent(mounted, mounted.path / "g/all" / name), name
        asked = len(served.log())
        for name in names:
            assert absent(mounted, mounted.path / "g/all" / name), name
            (line,) = not_made(mounted, name)
            assert "[E::" in line
        assert len(served.log()) == asked
        assert mounted.run("ls", str(mounted.path / "g/all")).stdout.split() == sorted(os.listdir(folder))


def test_probes_cost_nothing(tmp_path: Path, site: Path) -> None:
    """Names that can be no index ask nobody; data that can have none is looked at once, a block of it."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "notes.txt").write_text("notes\n" * 50_000)
    (folder / "notes.bam").write_text("notes\n" * 50_000)
    (folder / "plain.fa.gz").write_bytes(gzip.compress(b">a\n" + os.urandom(300_000).hex().encode()))
    shutil.copy(site / "na.bam", folder / "na.bam")
    (folder / "na.bai").write_bytes(b"the origin's own")
    with mounted_site(folder, tmp_path / "m") as (mounted, served):
        all_of_it = mounted.path / "g/all"
        mounted.run("ls", "-l", str(all_of_it))
        asked = len(served.log())
        none = ["notes.txt.bai", "notes.txt.fai", "notes.bai.bai", "x.fai", "x.bam.bai", "na.bam.fai", "na.dict"]
        # what the origin has stands: tools find that
        for name in [*none, "na.csi", "na.bam.csi", "na.bam.bai", ".bai", "x.bai"]:
            assert absent(mounted, all_of_it / name), name
        assert len(served.log()) == asked
        for name in ["notes.bam.bai", "notes.bam.csi", "notes.bai", "plain.fa.gz.fai", "plain.fa.gz.gzi"] * 2:
            assert absent(mounted, all_of_it / name), name
        sent = {name: served.sent(f"/{name}") for name in ("notes.bam", "plain.fa.gz")}
        assert all(nbytes < 200_000 for nbytes in sent.values()), sent
        assert made(mounted) == 0
        assert "not made" not in mounted.log_text()


def test_a_reference_too_long_for_bai(tmp_path: Path) -> None:
    """`.csi` is there where BAI can't reach, and nowhere else; a VCF's header tells it, too."""
    folder = tmp_path / "site"
    folder.mkdir()
    header = {"HD": {"VN": "1.6", "SO": "coordinate"}, "SQ": [{"SN": "long", "LN": 600_000_000}]}
    with pysam.AlignmentFile(str(folder / "long.bam"), "wb", header=header) as file:
        read_ = pysam.AlignedSegment(file.header)
        read_.query_name, read_.query_sequence, read_.cigarstring = "r", "ACGT", "4M"
        read_.reference_id, read_.reference_start, read_.flag = 0, 590_000_000, 0
        file.write(read_)
    head = (
        "##fileformat=VCFv4.2\n##contig=<ID=long,length=600000000>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    )
    compress(f"{head}long\t590000001\t.\tA\tC\t.\t.\t.\n", folder / "long.vcf.gz")
    with mounted_site(folder, tmp_path / "m") as (mounted, _):
        all_of_it = mounted.path / "g/all"
        for name in ("long.bam.bai", "long.bai", "long.vcf.gz.tbi"):
            assert absent(mounted, all_of_it / name), name
        found = mounted.run("samtools", "view", "-c", str(all_of_it / "long.bam"), "long:590000001-590000002")
        assert found.stdout.strip() == "1"
        assert mounted.run("tabix", str(all_of_it / "long.vcf.gz"), "long:590000000-").stdout.startswith("long\t")
        assert made(mounted) == 2


def test_data_that_is_replaced_has_another_index(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "a.fa").write_text(">one\nACGT\n")
    with mounted_site(site, tmp_path / "m", revalidate="1s") as (mounted, _):
        path = mounted.path / "g/all/a.fa.fai"
        assert read(mounted, path).startswith(b"one\t4\t")
        time.sleep(1.1)
        (site / "a.fa").write_text(">other and longer\nACGTACGT\n")
        deadline = time.monotonic() + 30
        while not read(mounted, path).startswith(b"other\t8\t"):
            assert time.monotonic() < deadline
            time.sleep(0.3)
        ages = [int(stat(mounted, one, "%Y")) for one in (path, path.with_suffix(""))]
        assert ages[0] >= ages[1]


def test_too_large_data_has_none(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    big_fasta(site / "big.fa", 3_000_000)
    with mounted_site(site, tmp_path / "m", extra='[indices]\nlargest = "2MB"\n') as (mounted, served):
        assert absent(mounted, mounted.path / "g/all/big.fa.fai")
        assert "more than indices.largest" in not_made(mounted, "big.fa.fai")[0]
        assert served.sent("/big.fa") < 1_000_000


def test_one_that_comes_out_otherwise_is_another_file(tmp_path: Path) -> None:
    """Of what is remembered and what is made anew, no reader ever gets a mixture."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "a.fa").write_text(">one\nACGT\n")
    with plain_files(site) as served:
        setup = Setup(tmp_path, served.source({"g/all": ["a.fa"]}))
        with setup.mount() as mounted:
            right = read(mounted, mounted.path / "g/all/a.fa.fai")
            mounted.stop()
        ledger = Ledger(tmp_path / "cache" / "ledger")
        ((key, row),) = ledger.items("made/")
        assert isinstance(row, dict)
        ledger.set(key, {**row, ".fai": ["0" * 64, len(right) + 1, "beside"]})
        ledger.close()
        with setup.mount() as mounted:
            path = mounted.path / "g/all/a.fa.fai"
            assert stat(mounted, path, "%s") == str(len(right) + 1)
            done = mounted.run("cat", str(path), check=False)
            assert "Stale file handle" in done.stderr
            assert not done.stdout
            assert read(mounted, path) == right


def test_it_can_be_turned_off(site: Path, tmp_path: Path) -> None:
    with mounted_site(site, tmp_path, extra="[indices]\nmake = false\n") as (mounted, _):
        assert absent(mounted, mounted.path / "g/all/ce.fa.fai")


def reload_with(mounted: Mounted, setup: Setup, extra: str) -> str:
    """Have the daemon take another table; return what the command says."""
    setup.extra = extra
    setup.write()
    return mounted.refgenfs("reload").stdout


def until_there(mounted: Mounted, path: Path, seconds: float = 60) -> None:
    """Wait until a file is found: what is being looked for may take longer than one who asks waits."""
    deadline = time.monotonic() + seconds
    while (done := mounted.run("stat", str(path), check=False)).returncode:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.2)


def until_absent(mounted: Mounted, path: Path) -> None:
    """Wait until a file is found no more: the kernel believes the name of what was made for a second."""
    deadline = time.monotonic() + 60
    while not absent(mounted, path):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_is_made_changes_while_mounted(tmp_path: Path) -> None:
    """Made or not, and of which size; who has an index open goes on."""
    folder = tmp_path / "site"
    folder.mkdir()
    big_fasta(folder / "big.fa", 3_000_000)
    with plain_files(folder) as served:
        setup = Setup(tmp_path / "m", served.source({"g/all": ["big.fa"]}), extra="[indices]\nmake = false\n")
        setup.folder.mkdir()
        with setup.mount() as mounted:
            index = mounted.path / "g/all/big.fa.fai"
            assert absent(mounted, index)
            assert "indices.make = true" in reload_with(mounted, setup, '[indices]\nlargest = "2MB"\n')
            until_absent(mounted, index)
            assert "more than indices.largest" in mounted.log_text()
            assert 'indices.largest = "20GB" (was "2MB")' in reload_with(mounted, setup, "")
            until_there(mounted, index)
            expected = read(mounted, index)
            assert expected.count(b"\n") == 8
            with index.open("rb") as file:
                reload_with(mounted, setup, "[indices]\nmake = false\n")
                until_absent(mounted, index)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert mounted.run("cat", f"/proc/{os.getpid()}/fd/{file.fileno()}", text=False).stdout == expected
            assert "big.fa.fai" not in mounted.run("ls", str(index.parent)).stdout
