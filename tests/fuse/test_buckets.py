"""Buckets through a real mount: what users do with iGenomes and with a flat folder of NCBI's, on a real S3 API."""

from __future__ import annotations

import gzip
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from refgenfs.demo.genome import fastq, read_fasta, simulate_reads
from tests.support.ecoli import FASTA, comparable
from tests.support.mounted import Mounted, Setup
from tests.support.s3 import ACCESS, SECRET, Gate, Moto, open_gate

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data]

BUILD = "igenomes/Escherichia_coli_K_12_MG1655/NCBI/2001-10-15"
INDEX = f"{BUILD}/Sequence/BWAIndex/version0.6.0"
ASSEMBLY = "GCF_000005845.2_ASM584v2"
SHOWN = "2001-10-15/bwa_index/version0.6.0"


@dataclass(frozen=True)
class Plain:
    """The files that the buckets have, on a disk, and reads to align."""

    folder: Path
    reads: Path
    expected: str  # what bwa mem prints on the plain files


@pytest.fixture(scope="module")
def plain(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    folder = tmp_path_factory.mktemp("index")
    fasta = folder / "genome.fa"
    fasta.write_bytes(gzip.decompress((data_dir / FASTA).read_bytes()))
    subprocess.run(["bwa", "index", str(fasta)], check=True, capture_output=True, timeout=110)
    reads = folder / "reads.fq"
    reads.write_bytes(fastq(simulate_reads(read_fasta(fasta), 500)))
    done = subprocess.run(
        ["bwa", "mem", "-v", "1", str(fasta), str(reads)], check=True, capture_output=True, text=True, timeout=110
    )
    return Plain(folder, reads, comparable(done.stdout))


@pytest.fixture(scope="module")
def filled(moto: Moto, plain: Plain, data_dir: Path) -> Moto:
    """A bucket like iGenomes', private, and one like a flat folder of NCBI's, public."""
    put = moto.bucket("igenomes-like", public=False)
    for path in plain.folder.glob("genome.fa*"):
        put(f"{INDEX}/{path.name}", path.read_bytes())
    put(f"{BUILD}/Annotation/Genes/genes.gtf", b"NC_000913.3\tx\n")
    put(f"{BUILD.replace('NCBI', 'Ensembl')}/Annotation/Genes/genes.gtf", b"Chromosome\tx\n")
    put("igenomes/README.txt", b"hello")
    flat = moto.bucket("ncbi-like")
    for ending in ("genomic.fna.gz", "genomic.gff.gz"):
        flat(f"{ASSEMBLY}_{ending}", (data_dir / FASTA).with_name(f"{ASSEMBLY}_{ending}").read_bytes())
    flat("md5checksums.txt", b"")
    return moto


@pytest.fixture
def gate(filled: Moto) -> Iterator[Gate]:
    with open_gate(filled) as made:
        yield made


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


def igenomes(gate: Gate, tmp_path: Path, **limits: str) -> Setup:
    sources = f"""[[source]]
name = "igenomes"
type = "s3"
bucket = "igenomes-like"
prefix = "igenomes"
layout = "igenomes"
endpoint = "{gate.url}"
"""
    return Setup(tmp_path, sources, extra='[log]\nlevel = "debug"', limits=limits)


def public(gate: Gate, tmp_path: Path, bucket: str, layout: str, more: str = "") -> Setup:
    sources = f"""[[source]]
name = "public"
type = "s3"
bucket = "{bucket}"
layout = "{layout}"
endpoint = "{gate.url}"
anonymous = true
{more}
"""
    return Setup(tmp_path, sources, limits={"retry_for": "2s"})


def test_bwa_mem_on_a_signed_bucket_prints_what_it_prints_on_plain_files(
    gate: Gate, plain: Plain, tmp_path: Path
) -> None:
    gate.rules.signed = True
    index = sum(path.stat().st_size for path in plain.folder.glob("genome.fa*"))
    with igenomes(gate, tmp_path).mount() as mounted:
        assert gate.sent(INDEX) == 0
        where = f"{mounted.path}/{SHOWN}/genome.fa"
        done = mounted.run("bwa", "mem", "-v", "1", where, str(plain.reads))
        assert comparable(done.stdout) == plain.expected
        sent = gate.sent(INDEX)
        assert 0 < sent <= index, "no byte was fetched twice"
        mounted.run("diff", "-r", "-x", "reads.fq", str(plain.folder), os.path.dirname(where))
        assert gate.sent(INDEX) == index
        assert mounted.status()["fetched"] >= index
        gate.rules.away = True  # everything is resident
        mounted.run("diff", "-r", "-x", "reads.fq", str(plain.folder), os.path.dirname(where))
        _shows_no_secret(mounted, where)
    assert len(plain.expected) > 50_000, "an empty output proves nothing"
    assert {one.status for one in gate.asked} <= {200, 206}


def _shows_no_secret(mounted: Mounted, file: str) -> None:
    told = mounted.run("getfattr", "-d", "-m", "-", file).stdout + str(mounted.status()) + mounted.log_text()
    told += mounted.refgenfs("status").stdout + mounted.refgenfs("config", "show").stdout
    for hidden in (ACCESS, SECRET, "Signature", "AWS4-HMAC"):
        assert hidden not in told
    assert "s3://igenomes-like/igenomes" in mounted.refgenfs("status", "--json").stdout


def test_what_the_commands_say_of_a_bucket(gate: Gate, tmp_path: Path) -> None:
    with igenomes(gate, tmp_path).mount() as mounted:
        listed = mounted.refgenfs("list").stdout
        assert "2001-10-15" in listed
        # two sources of one build are a tag each; the first by name is the default
        assert mounted.shell('cat "$M"/2001-10-15/genes/genes.gtf') == "Chromosome\tx\n"
        assert mounted.shell('cat "$M"/2001-10-15/genes:NCBI/genes.gtf') == "NC_000913.3\tx\n"
        sought = mounted.refgenfs("seek", "2001-10-15/bwa_index").stdout.strip()
        mounted.run("ls", f"{sought}.bwt")  # what `bwa mem` takes
        told = mounted.refgenfs("info", "2001-10-15/bwa_index", "--json").stdout
        assert "version0.6.0/genome.fa.bwt" in told
        pulled = mounted.refgenfs("pull", "2001-10-15/bwa_index", "--pin")
        assert pulled.returncode == 0
        index = gate.sent(INDEX)
        mounted.shell(f'cat "$M"/{SHOWN}/* | cksum')
        assert gate.sent(INDEX) == index, "all of it was pulled"
        assert "no place in the layout" in mounted.log_text()
        assert "ERROR" not in mounted.log_text()


def test_a_flat_folder_of_ncbi(gate: Gate, data_dir: Path, tmp_path: Path) -> None:
    with public(gate, tmp_path, "ncbi-like", "ncbi").mount() as mounted:
        assert sorted(mounted.shell('ls "$M"/ASM584v2').split()) == [
            "fasta", "fasta:GCF_000005845.2", "gff", "gff:GCF_000005845.2",
        ]  # fmt: skip
        shown = f"{mounted.path}/ASM584v2/fasta/{ASSEMBLY}_genomic.fna.gz"
        mounted.run("cmp", shown, str(data_dir / FASTA))
        assert not any("authorization" in one.headers for one in gate.asked)


def test_a_small_file_of_a_large_bucket_costs_its_own_bytes(gate: Gate, tmp_path: Path) -> None:
    with public(gate, tmp_path, "ncbi-like", "ncbi").mount() as mounted:
        before = gate.count()
        mounted.shell(f'head -c 100 "$M"/ASM584v2/fasta/{ASSEMBLY}_genomic.fna.gz | cksum; ls -l "$M"/ASM584v2/*')
        assert gate.sent(ASSEMBLY) <= 1 << 20
        assert gate.count("HEAD") == 0, "a listing has the sizes"
        assert gate.count() - before <= 3


def test_an_object_that_is_replaced_while_it_is_read(gate: Gate, filled: Moto, tmp_path: Path) -> None:
    old, new = (random.Random(seed).randbytes(6 << 20) for seed in (1, 2))
    put = filled.bucket("replaced-while-read")
    put("hg38/fasta/hg38.fa", old)
    setup = public(gate, tmp_path, "replaced-while-read", "plain", 'revalidate = "0s"')
    script = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
first = os.pread(fd, 4096, 0)
print("read", flush=True)
sys.stdin.readline()
try:
    last = os.pread(fd, 4096, (6 << 20) - 4096)
    print("mixed" if last != open(sys.argv[2], "rb").read()[-4096:] else "old")
except OSError as exc:
    print(exc.errno)
"""
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(new)
    with setup.mount() as mounted:
        path = f"{mounted.path}/hg38/fasta/hg38.fa"
        with subprocess.Popen(
            ["timeout", "-s", "KILL", "60", sys.executable, "-c", script, path, str(tmp_path / "old")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as reader:  # fmt: skip
            assert reader.stdout is not None
            assert reader.stdout.readline() == "read\n"
            put("hg38/fasta/hg38.fa", new)
            assert reader.communicate("go\n", timeout=60)[0] == "116\n"  # ESTALE
        mounted.run("cmp", path, str(tmp_path / "new"))


def test_an_object_that_is_deleted_is_gone_after_the_next_listing(gate: Gate, filled: Moto, tmp_path: Path) -> None:
    put = filled.bucket("deleted-while-mounted")
    put("hg38/fasta/a", b"a" * 1000)
    put("hg38/fasta/b", b"b" * 1000)
    with public(gate, tmp_path, "deleted-while-mounted", "plain").mount() as mounted:
        assert mounted.shell('cat "$M"/hg38/fasta/a') == "a" * 1000
        filled.client.delete_object(Bucket="deleted-while-mounted", Key="hg38/fasta/b")
        mounted.run("cat", f"{mounted.path}/hg38/fasta/b", check=False)
        mounted.process.send_signal(signal.SIGHUP)  # list anew
        mounted.shell('for i in $(seq 100); do [ -e "$M"/hg38/fasta/b ] || exit 0; sleep 0.1; done; exit 1')
        assert mounted.shell('ls "$M"/hg38/fasta') == "a\n"


def test_an_endpoint_that_is_away_at_the_start_and_comes_back(gate: Gate, tmp_path: Path) -> None:
    setup = public(gate, tmp_path, "ncbi-like", "ncbi")
    with setup.mount() as mounted:
        mounted.shell('cat "$M"/ASM584v2/gff/* | cksum')
    gate.rules.away = True
    with setup.mount() as mounted:
        mounted.shell('cat "$M"/ASM584v2/gff/* | cksum')  # resident, and the catalog was kept
        failed = mounted.run("cat", f"{mounted.path}/ASM584v2/fasta/{ASSEMBLY}_genomic.fna.gz", check=False)
        assert b"Input/output error" in failed.stderr.encode()
        gate.rules.away = False
        mounted.shell('cat "$M"/ASM584v2/fasta/* | cksum')


def test_what_is_wrong_is_one_line_of_status(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nottherightone")
    with igenomes(gate, tmp_path, retry_for="1s").mount() as mounted:
        (source,) = mounted.status()["sources"]
        assert source["error"].endswith(
            "HTTP 403 (SignatureDoesNotMatch): check the secret key, it doesn't fit (attempt 1)"
        )
        assert source["url"] == f"s3://igenomes-like/igenomes ({gate.url})"
        assert "?" not in source["error"]
        doctor = mounted.refgenfs("doctor", check=False).stdout
        assert "SignatureDoesNotMatch" in doctor
        assert "nottherightone" not in doctor + mounted.log_text()


def test_a_daemon_without_a_bucket_loads_nothing_for_one() -> None:
    loaded = "import sys, refgenfs.daemon; print([m for m in sys.modules if m.startswith('botocore')])"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
