"""A folder of this machine as a source, through a real mount: read where it is, or through the cache."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mounted import Setup

pytestmark = pytest.mark.needs_fuse

DATA = random.Random(5).randbytes(5_000_000)
READER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
os.pread(fd, 4096, 0)
print("read", flush=True)
sys.stdin.readline()
try:
    sys.stdout.write(os.pread(fd, 16, 4_000_000).hex())
except OSError as exc:
    print(exc.errno)
"""


def folder(tmp_path: Path) -> Path:
    """Make a folder with an asset and things that are none."""
    root = tmp_path / "data"
    (root / "hg38" / "fasta" / "deep").mkdir(parents=True)
    (root / "hg38" / "fasta" / "hg38.fa").write_bytes(DATA)
    (root / "hg38" / "fasta" / "deep" / "odd +%ü name").write_bytes(b"odd")
    (root / "hg38" / "fasta" / "empty").touch()
    (root / "README").write_bytes(b"no place")
    return root


def setup(tmp_path: Path, root: Path, more: str = "") -> Setup:
    source = f'[[source]]\nname = "disk"\ntype = "local"\npath = "{root}"\nlayout = "plain"\n{more}\n'
    return Setup(tmp_path, source, limits={"retry_for": "1s"})


@pytest.mark.parametrize("cached", [False, True])
def test_a_folder_shows_what_it_has(tmp_path: Path, cached: bool) -> None:
    root = folder(tmp_path)
    with setup(tmp_path, root, f"cached = {str(cached).lower()}").mount() as mounted:
        mounted.run("diff", "-r", f"{root}/hg38/fasta", f"{mounted.path}/hg38/fasta")
        for at in (0, 65_535, 1_000_003, len(DATA) - 5):
            cut = f"iflag=skip_bytes,count_bytes skip={at} count=100 status=none | cksum"
            shown = mounted.shell(f'dd if="$M"/hg38/fasta/hg38.fa {cut}')
            assert shown == mounted.shell(f"dd if={root}/hg38/fasta/hg38.fa {cut}")
        mtime = (root / "hg38" / "fasta" / "hg38.fa").stat().st_mtime
        assert float(mounted.shell('stat -c %.Y "$M"/hg38/fasta/hg38.fa')) == pytest.approx(mtime, abs=0.01)
        mounted.refgenfs("pull", "hg38/fasta")
        kept = mounted.status()["cache"]["used"]
        assert (kept > len(DATA)) == cached, "what is read straight needs no copy"
        (source,) = mounted.status()["sources"]
        assert (source["healthy"], source["url"], source["assets"]) == (True, str(root), 1)
        assert "ERROR" not in mounted.log_text()


def test_sizes_and_paths_are_known_before_anything_is_looked_up(tmp_path: Path) -> None:
    root = folder(tmp_path)
    for name, size in (("x.bam", 1000), ("x.cram", 500)):
        (root / name).write_bytes(bytes(size))
    named = '[[source.asset]]\nkey = "hg38/reads"\nfiles = ["x.bam", "x.cram"]'
    with setup(tmp_path, root, named).mount() as mounted:
        rows = {row["key"]: row for row in mounted.call("list", genome="hg38")["assets"]}
        assert rows["hg38/fasta:default"]["asset_size"] == "5.00 MB"
        assert rows["hg38/reads:default"]["asset_size"] == "1.50 kB"
        info = mounted.call("info", key="hg38/reads")
        assert (info["size"], {row["name"]: row["size"] for row in info["files"]}) == (
            1500, {"x.bam": 1000, "x.cram": 500}
        )  # fmt: skip
        assert "1.50 kB (1,500 bytes)" in mounted.refgenfs("info", "hg38/reads").stdout
        for key in ("hg38/reads", "hg38/reads.bam", "hg38/reads.cram", "hg38/fasta"):
            assert os.path.exists(mounted.refgenfs("seek", key).stdout.strip()), key


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("how", ["replaced", "changed in place"])
def test_another_version_is_never_mixed_with_the_one_that_is_open(tmp_path: Path, cached: bool, how: str) -> None:
    root = folder(tmp_path)
    path = root / "hg38" / "fasta" / "hg38.fa"
    new = DATA[::-1]
    with setup(tmp_path, root, f"cached = {str(cached).lower()}\nrevalidate = '0s'").mount() as mounted:
        shown = f"{mounted.path}/hg38/fasta/hg38.fa"
        with subprocess.Popen(
            ["timeout", "-s", "KILL", "60", sys.executable, "-c", READER, shown],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as reader:  # fmt: skip
            assert reader.stdout is not None
            assert reader.stdout.readline() == "read\n"
            if how == "replaced":
                (tmp_path / "new").write_bytes(new)
                os.rename(tmp_path / "new", path)
            else:
                path.write_bytes(new)
            said = reader.communicate("go\n", timeout=60)[0].strip()
        straight = how == "replaced" and not cached  # the old file is held open, and read to its end
        assert said == (DATA[4_000_000:4_000_016].hex() if straight else "116")
        mounted.run("cmp", shown, str(path))


def test_links_that_lead_out_of_the_folder_are_not_there(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"secret")
    asset = root / "hg38" / "fasta"
    (asset / "inside").symlink_to("hg38.fa")
    (asset / "out").symlink_to(tmp_path / "secret")
    (asset / "outdir").symlink_to(tmp_path / "outside")
    (asset / "loop").symlink_to(root / "hg38")
    (asset / "dangling").symlink_to("nothing")
    os.mkfifo(asset / "fifo")
    with setup(tmp_path, root).mount() as mounted:
        listed = mounted.shell('cd "$M"/hg38/fasta && find . | sort').split("\n")
        assert "./inside" in listed
        for gone in ("./out", "./outdir", "./dangling", "./fifo"):
            assert gone not in listed
        mounted.run("cmp", f"{mounted.path}/hg38/fasta/inside", str(asset / "hg38.fa"))
        # one that is made to lead out after it was listed
        (asset / "inside").unlink()
        (asset / "inside").symlink_to(tmp_path / "secret")
        assert "secret" not in str(mounted.run("cat", f"{mounted.path}/hg38/fasta/inside", check=False).stdout)


def test_a_folder_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    root = folder(tmp_path)
    with setup(tmp_path, root, "cached = true").mount() as mounted:
        mounted.run("cmp", f"{mounted.path}/hg38/fasta/hg38.fa", str(root / "hg38" / "fasta" / "hg38.fa"))
        root.rename(tmp_path / "elsewhere")
        mounted.process.send_signal(signal.SIGHUP)  # look anew
        mounted.shell('for i in $(seq 30); do sleep 0.1; ls "$M"/hg38/fasta/hg38.fa; done')
        (source,) = mounted.status()["sources"]
        assert "can't be read: No such file or directory" in source["error"]
        root.mkdir()  # as a mountpoint is whose file system is away
        assert mounted.refgenfs("doctor", check=False).stdout.count("is empty") == 1
        mounted.run("ls", "-l", f"{mounted.path}/hg38/fasta/hg38.fa")
        root.rmdir()
        (tmp_path / "elsewhere").rename(root)
        mounted.run("cmp", f"{mounted.path}/hg38/fasta/hg38.fa", str(root / "hg38" / "fasta" / "hg38.fa"))


def test_assets_named_one_by_one(tmp_path: Path) -> None:
    root = folder(tmp_path)
    source = (
        f'[[source]]\nname = "disk"\ntype = "local"\npath = "{root}"\n'
        '[[source.asset]]\nkey = "GRCh38/fasta:v1"\nfiles = ["hg38/fasta/hg38.fa"]\n'
    )
    with Setup(tmp_path, source).mount() as mounted:
        assert mounted.shell('ls "$M"/GRCh38/fasta') == "hg38.fa\n"
        mounted.run("cmp", f"{mounted.path}/GRCh38/fasta:v1/hg38.fa", f"{root}/hg38/fasta/hg38.fa")
        assert mounted.refgenfs("seek", "GRCh38/fasta").stdout.strip().endswith("hg38.fa")
        assert "can be read" in mounted.refgenfs("doctor", check=False).stdout


@pytest.mark.slow
def test_a_file_system_that_hangs_holds_up_nobody_else(tmp_path: Path) -> None:
    """The folder is another daemon's mount, which is stopped: as a network's file system whose server is gone."""
    root = folder(tmp_path)
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.mkdir()
    outer.mkdir()
    with setup(inner, root).mount() as far:
        sources = "".join(
            f'[[source]]\nname = "{name}"\ntype = "local"\npath = "{path}"\nrevalidate = "0s"\n'
            f'layout = "hg38/fasta/{{file}} -> hg38/{name}"\n'
            for name, path in (("far", far.path), ("near", root))
        )
        limits = {"lookup_deadline": "2s", "read_deadline": "2s", "retry_for": "1s"}
        with Setup(outer, sources, limits=limits).mount() as mounted:
            mounted.run("cmp", f"{mounted.path}/hg38/far/hg38.fa", f"{root}/hg38/fasta/hg38.fa")
            with open(f"{mounted.path}/hg38/far/hg38.fa", "rb") as held:
                os.posix_fadvise(held.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                far.process.send_signal(signal.SIGSTOP)
                try:
                    failed = mounted.run("dd", f"if={mounted.path}/hg38/far/deep/odd +%ü name", check=False)
                    assert failed.returncode == 1
                    for _ in range(10):  # more than there are threads
                        mounted.run("cat", f"{mounted.path}/hg38/far/hg38.fa", check=False, timeout=20, text=False)
                        mounted.run("cmp", f"{mounted.path}/hg38/near/hg38.fa", f"{root}/hg38/fasta/hg38.fa")
                    assert mounted.status()["uptime"] > 0
                finally:
                    far.process.send_signal(signal.SIGCONT)
            mounted.run("cmp", f"{mounted.path}/hg38/far/hg38.fa", f"{root}/hg38/fasta/hg38.fa")
