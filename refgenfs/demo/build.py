"""Build the folder that the demo's origin serves: a simulated genome, its FASTA and bwa assets, reads to align."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from refgenfs.core.errors import RefgenfsError
from refgenfs.demo import genome as simulated
from refgenfs.demo.answers import CATALOG
from refgenfs.demo.genome import Genome

ALIAS = "demo"
TAG = "default"
READS = 20_000
STAMP = "demo.json"  # written last: a folder that has it is finished
FORMAT = 1  # raised whenever another layout or another simulation is built
BUILT = 1_600_000_000  # the modification time of everything archived: the same archive on every machine
BUILDER = "/build/data"  # where refgenie would have built: the index archive's symlink points into it


class DemoError(RefgenfsError):
    """The demo can't be built here; the message says what to do."""


@dataclass(frozen=True, slots=True)
class DemoRoot:
    """A finished demo folder: what the origin serves (`root`), the genome's digest, and the reads' FASTQ."""

    root: Path
    digest: str
    alias: str
    reads: Path

    def archive(self, asset: str) -> Path:
        """Return the archive of an asset's default tag."""
        return self.root / self.digest / f"{asset}__{TAG}.tgz"

    def unpacked(self, asset: str) -> Path:
        """Return the folder of an asset's unpacked copies: plain files to compare with."""
        return self.root / self.digest / f"{asset}__{TAG}"


def build_demo_root(folder: Path, *, bwa: str = "bwa", genome: Genome | None = None, reads: int = READS) -> DemoRoot:
    """Build the demo in `folder`, or return at once when it holds a finished one of the same genome and reads.

    The folder appears whole or not at all; an unfinished or outdated demo is replaced, anything else in the way is
    refused. Raises DemoError: bwa is missing or fails, or the folder holds something that is no demo.
    """
    genome = genome if genome is not None else simulated.make_genome()
    digest = simulated.genome_digest(genome)
    demo = DemoRoot(folder, digest, ALIAS, folder / "reads.fq")
    stamp = {"format": FORMAT, "digest": digest, "reads": reads}
    if _stamp_of(folder) == stamp:
        return demo
    _refuse_strangers(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        built = Path(scratch) / "root"
        _build(built, genome, digest, bwa)
        (built / "reads.fq").write_bytes(simulated.fastq(simulated.simulate_reads(genome, reads)))
        (built / STAMP).write_text(json.dumps(stamp))
        _put_in_place(built, folder, stamp)
    return demo


def size_text(size: int) -> str:
    """Return a size as refgenie rounds it: 1024-based, two decimals, as in `1.19 MB`."""
    value = float(size)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1024:
            return f"{value:.2f} {unit}"
        value /= 1024
    return f"{value:.2f} TB"


# --- the folder ---------------------------------------------------------------------------------------------


def _stamp_of(folder: Path) -> object:
    try:
        return json.loads((folder / STAMP).read_bytes())
    except (OSError, ValueError):
        return None


def _refuse_strangers(folder: Path) -> None:
    if not folder.exists() or (folder / STAMP).is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise DemoError(f"{folder} is in the way: it holds no demo; name a new or an empty folder")


def _put_in_place(built: Path, folder: Path, stamp: Mapping[str, object]) -> None:
    """Rename the finished folder to its place. Another process that was faster with the same demo is fine."""
    built.chmod(0o755)
    if folder.exists():
        shutil.rmtree(folder)
    try:
        built.rename(folder)
    except OSError as exc:
        if _stamp_of(folder) != stamp:
            raise DemoError(f"cannot put the demo into {folder}: {exc.strerror}") from exc


def _build(root: Path, genome: Genome, digest: str, bwa: str) -> None:
    home = root / digest
    fasta, index = home / f"fasta__{TAG}", home / f"bwa_index__{TAG}"
    fasta.mkdir(parents=True)
    index.mkdir()
    sequences = fasta / f"{digest}.fa"
    sequences.write_bytes(simulated.fasta(genome))
    (fasta / f"{digest}.fa.fai").write_bytes(simulated.fai(genome))
    (fasta / f"{digest}.chrom.sizes").write_bytes(simulated.chrom_sizes(genome))
    _index(bwa, sequences, index / f"{digest}.fa")
    target = f"{BUILDER}/{digest}/fasta/{TAG}/{digest}.fa"
    assets = {
        "fasta": _publish(fasta, "fasta", _FASTA, links={}),
        "bwa_index": _publish(index, "bwa_index", _BWA_INDEX, links={f"{digest}.fa": target}),
    }
    shutil.copy(sequences, index)  # the unpacked copies hold no symlink: refgenieserver follows it
    catalog = {
        digest: {"genome_description": "a genome simulated for the demo", "assets": assets, "aliases": [ALIAS]}
    }
    (root / CATALOG).write_text(json.dumps(catalog, indent=1))


def _index(bwa: str, sequences: Path, prefix: Path) -> None:
    """Build the five files of a bwa index at the prefix. Raises DemoError when bwa is missing or fails."""
    program = shutil.which(bwa)
    if program is None:
        raise DemoError(f"the demo needs {bwa}, which is not on PATH: install it (Debian, Ubuntu: apt install bwa)")
    command = [program, "index", "-p", str(prefix), str(sequences)]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if run.returncode != 0:
        lines = run.stderr.strip().splitlines() or ["it said nothing"]
        raise DemoError(f"{' '.join(command)} failed with status {run.returncode}: {lines[-1]}")


# --- an asset -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Description:
    """What the catalog says of an asset; `{}` stands for the genome's digest."""

    text: str
    seek_keys: Mapping[str, str]
    parents: tuple[str, ...] = ()
    children: tuple[str, ...] = ()


_FASTA = _Description(
    text="DNA sequences in the FASTA format, indexed FASTA and chromosome sizes file",
    seek_keys={"chrom_sizes": "{}.chrom.sizes", "dir": ".", "fai": "{}.fa.fai", "fasta": "{}.fa"},
    children=(f"{{}}/bwa_index:{TAG}",),
)
_BWA_INDEX = _Description(
    text="Genome index for Burrows-Wheeler Alignment Tool, produced with bwa index",
    seek_keys={"bwa_index": "{}.fa", "dir": "."},
    parents=(f"{{}}/fasta:{TAG}",),
)


def _publish(folder: Path, asset: str, described: _Description, links: Mapping[str, str]) -> dict[str, object]:
    """Archive an asset's folder beside it, list its names, and return its entry for the catalog."""
    home = folder.parent
    archive = home / f"{asset}__{TAG}.tgz"
    names = _archive(folder, archive, links)
    (home / f"asset_dir_contents_{asset}__{TAG}.json").write_text(json.dumps(names))
    attrs = {
        "asset_path": asset,
        "asset_digest": simulated.asset_digest(folder),
        "archive_digest": hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest(),
        "asset_size": size_text(sum(path.stat().st_size for path in folder.iterdir())),
        "archive_size": size_text(archive.stat().st_size),
        "seek_keys": {key: value.format(home.name) for key, value in described.seek_keys.items()},
        "asset_parents": [key.format(home.name) for key in described.parents],
        "asset_children": [key.format(home.name) for key in described.children],
    }
    return {"asset_description": described.text, "tags": {TAG: attrs}, "default_tag": TAG}


def _archive(folder: Path, archive: Path, links: Mapping[str, str]) -> list[str]:
    """Write the folder and the links as a .tgz under the tag's name; return the names. The same input, same bytes."""
    names = sorted([*os.listdir(folder), *links])
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        tar.addfile(_member(f"{TAG}/", tarfile.DIRTYPE, 0o755))
        for name in names:
            if name in links:
                member = _member(f"{TAG}/{name}", tarfile.SYMTYPE, 0o777)
                member.linkname = links[name]
                tar.addfile(member)
                continue
            member = _member(f"{TAG}/{name}", tarfile.REGTYPE, 0o644)
            with (folder / name).open("rb") as content:
                member.size = os.fstat(content.fileno()).st_size
                tar.addfile(member, content)
    return names


def _member(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = kind, mode, BUILT
    member.uname = member.gname = "root"
    return member
