"""E. coli K-12 as refgenie builds it, served by the real refgenieserver behind nginx that counts bytes.

The real refgenie builds `fasta`, `bwa_index` and `bowtie2_index`, the real `refgenieserver archive` archives them:
about fifteen seconds, once; what comes of it is kept where the other servers' genomes are.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from refgenfs.demo.answers import CATALOG
from refgenfs.demo.genome import fastq, read_fasta, simulate_reads
from tests.support.children import end
from tests.support.mounted import Mounted, Setup
from tests.support.nginx import NginxFactory, NginxProxy, Served
from tests.support.refgenieserver import RefgenieServer, test_cache
from tests.support.untimed import untimed

ALIAS = "ecoli_k12"
ASSETS = ("fasta", "bwa_index", "bowtie2_index")
FASTA = Path("data/genomes/GCF_000005845.2_ASM584v2_genomic.fna.gz")
SOURCE = "ecoli"  # what the mounts call the server
READS = 1_500
REGIONS = (
    "NC_000913.3:1-80",
    "NC_000913.3:1000000-1000500",
    "NC_000913.3:4641600-4641652",
    "NC_000913.3:2500000-2600000",
)
BUILD_TIMEOUT = 300  # seconds for one step
START_TIMEOUT = 30.0

Mode = Literal["archive", "remotes"]
MODES: tuple[Mode, ...] = ("archive", "remotes")


@dataclass(frozen=True)
class Ecoli:
    """What was built: plain files as `refgenie build` lays them out, archives, and reads to align."""

    folder: Path
    digest: str
    outputs: dict[tuple[str, ...], str] = field(default_factory=dict, compare=False)

    @property
    def archives(self) -> Path:
        """What the server serves."""
        return self.folder / "archives"

    @property
    def reads(self) -> Path:
        """Simulated reads, FASTQ."""
        return self.folder / "reads.fq"

    def plain(self, asset: str) -> Path:
        """Return the folder of an asset's plain files, named by the alias."""
        return self.folder / "genomes" / "alias" / ALIAS / asset / "default"

    def archive(self, asset: str) -> Path:
        """Return the archive of an asset."""
        return self.archives / self.digest / f"{asset}__default.tgz"

    def files(self, asset: str) -> list[str]:
        """Return the names of an asset's files, by the alias."""
        return sorted(path.name for path in self.plain(asset).iterdir() if path.is_file())

    def md5(self, asset: str) -> dict[str, str]:
        """Return the MD5 of every file of an asset."""
        return {
            name: hashlib.md5((self.plain(asset) / name).read_bytes(), usedforsecurity=False).hexdigest()
            for name in self.files(asset)
        }

    def size(self, asset: str) -> int:
        """Return the bytes of an asset's files, a link counted as what it leads to."""
        return sum((self.plain(asset) / name).stat().st_size for name in self.files(asset))

    def output(self, tool: str) -> str:
        """Return what a tool prints on the plain files; see `command`."""
        words = command(tool, self.folder / "genomes" / "alias" / ALIAS, self.reads, plain=True)
        if (key := tuple(words)) not in self.outputs:
            done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
            self.outputs[key] = comparable(done.stdout)
        return self.outputs[key]


def command(tool: str, genome: Path, reads: Path, *, plain: bool = False) -> list[str]:
    """Return a command on the files of a genome's folder: of refgenie's own layout if `plain`."""
    tag = "/default" if plain else ""
    bowtie2 = ["bowtie2", "--no-unal", "-x", f"{genome}/bowtie2_index{tag}/{ALIAS}", "-U", str(reads)]
    return {
        "bwa mem": ["bwa", "mem", "-v", "1", f"{genome}/bwa_index{tag}/{ALIAS}.fa", str(reads)],
        "bowtie2": bowtie2,
        "bowtie2 --mm": [*bowtie2, "--mm"],
        "samtools faidx": ["samtools", "faidx", f"{genome}/fasta{tag}/{ALIAS}.fa", *REGIONS],
    }[tool]


def comparable(output: str) -> str:
    """Return an output without the header lines that quote the command line."""
    return "".join(line for line in output.splitlines(keepends=True) if not line.startswith("@PG\t"))


# --- building -----------------------------------------------------------------------------------------------


def build_ecoli(folder: Path, data_dir: Path, programs: Path) -> Ecoli:
    """Build everything in `folder`, or return what was built there; one process at a time. `programs`: refgenie's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with untimed(), (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "built.json"  # written last
        built = json.loads(stamp.read_text()) if stamp.exists() else {}
        if built.get("reads") != READS:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            built = {"digest": _build(folder, data_dir / FASTA, programs), "reads": READS}
            stamp.write_text(json.dumps(built))
        return Ecoli(folder, str(built["digest"]))


def _build(folder: Path, fasta: Path, programs: Path) -> str:
    config, genomes, archives = folder / "genomes" / "genome_config.yaml", folder / "genomes", folder / "archives"
    genomes.mkdir()
    archives.mkdir()
    environ = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "REFGENIE": str(config)}
    environ.pop("PYTHONPATH", None)

    def run(*words: str) -> str:
        log = folder / "build.log"
        with log.open("ab") as sink:
            done = subprocess.run(
                words, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sink,
                timeout=BUILD_TIMEOUT, check=False, text=True,
            )  # fmt: skip
        with log.open("a") as sink:
            sink.write(done.stdout)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: exit {done.returncode}\n{log.read_text()[-3000:]}")
        return done.stdout

    run("refgenie", "init", "-c", str(config), "-f", str(genomes), "-a", str(archives), "-s", "http://127.0.0.1:9")
    run("refgenie", "build", f"{ALIAS}/fasta", "--files", f"fasta={fasta}", "--genome-description", "E. coli K-12")
    run("refgenie", "build", f"{ALIAS}/bwa_index")
    run("refgenie", "build", f"{ALIAS}/bowtie2_index")
    digest = run("refgenie", "alias", "get", "-a", ALIAS).strip()
    run("refgenieserver", "archive", "-c", str(config), "-f")
    for asset in ASSETS:
        if not (archives / digest / f"{asset}__default.tgz").is_file():
            raise RuntimeError(f"{asset} was not archived:\n{(folder / 'build.log').read_text()[-3000:]}")
    catalog = yaml.safe_load((archives / "genome_config.yaml").read_text())["genomes"]
    (archives / CATALOG).write_text(json.dumps(catalog))  # so that the demo's origin can serve the same folder
    (folder / "reads.fq").write_bytes(fastq(simulate_reads(read_fasta(fasta), READS)))
    return digest


# --- serving ------------------------------------------------------------------------------------------------

# `refgenieserver serve` reads archives from /genomes only; create_app is its own factory, with the folder settable.
# The host of the unpacked copies is another path here. The socket is inherited: it listens before this runs.
_SERVE = """
import socket, sys, uvicorn
from refgenieserver.app_factory import create_app
from starlette.staticfiles import StaticFiles
config, archives, *fds = sys.argv[1:]
app = create_app(config, archive_base_dir=archives)
app.mount("/unpacked", StaticFiles(directory=archives))
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[socket.socket(fileno=int(fd)) for fd in fds])
"""


@dataclass(frozen=True)
class EcoliServer:
    """A running refgenieserver; `static_url` is where its unpacked copies are, also without remotes.

    It listens at `unix` too, which is reached from any network namespace.
    """

    url: str
    static_url: str
    unix: Path
    remotes: bool
    ecoli: Ecoli


@contextmanager
def run_server(ecoli: Ecoli, programs: Path, folder: Path, *, remotes: bool) -> Iterator[EcoliServer]:
    """Run a real refgenieserver on a free port; its log is in `folder`."""
    with socket.socket() as listener, socket.socket(socket.AF_UNIX) as local:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        unix = folder / "serve.sock"
        local.bind(str(unix))
        local.listen(64)
        fds = listener.fileno(), local.fileno()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = folder / "serve.yaml"
        text = (ecoli.archives / "genome_config.yaml").read_text()
        if remotes:
            text += f"remotes:\n  http:\n    prefix: {url}/unpacked/\n    description: unpacked copies\n"
        config.write_text(text)
        (folder / "serve.py").write_text(_SERVE)
        environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "REFGENIE")}
        with (folder / "serve.log").open("ab") as log:
            process = subprocess.Popen(
                [str(programs / "python"), "serve.py", str(config), str(ecoli.archives), *map(str, fds)],
                cwd=folder, env=environ, pass_fds=fds,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
    try:
        try:
            with urllib.request.urlopen(f"{url}/v3/genomes/list", timeout=START_TIMEOUT) as answer:
                assert ecoli.digest in json.load(answer)
        except OSError as exc:
            raise RuntimeError(f"refgenieserver does not answer:\n{(folder / 'serve.log').read_text()}") from exc
        yield EcoliServer(url, f"{url}/unpacked", unix, remotes, ecoli)
    finally:
        end(process)


@dataclass(frozen=True)
class Origin:
    """The server behind nginx, as a mount sees it: `api`, and `files` for what it redirects to."""

    ecoli: Ecoli
    mode: Mode
    api: NginxProxy
    files: NginxProxy

    @property
    def sources(self) -> str:
        """The [[source]] tables of a configuration."""
        return f'[[source]]\nname = "{SOURCE}"\ntype = "refgenie"\nurl = "{self.api.url}"\n'

    def setup(self, folder: Path, *, size: str = "1GB", extra: str = "") -> Setup:
        """Return what a mount of this origin runs with."""
        folder.mkdir(parents=True, exist_ok=True)
        return Setup(folder, self.sources, size=size, extra=extra, limits={"read_deadline": "30s"})

    def clear(self) -> None:
        """Begin both logs anew."""
        self.api.clear()
        self.files.clear()

    def served(self) -> list[Served]:
        """Return the requests for bytes of archives or of files: all but the API's small answers and HEADs."""
        whole = [one for one in self.api.log() if "/assets/archive/" in one.path] + self.files.log()
        listing = "/asset_dir_contents_"
        return [one for one in whole if one.method == "GET" and listing not in one.path and one.status in (200, 206)]

    def bytes_sent(self, containing: str = "") -> int:
        """Return the bytes of archives or of files that were sent for paths that contain this text."""
        return sum(one.bytes for one in self.served() if containing in one.path)


def genome(mounted: Mounted) -> Path:
    """Return the folder of the genome under a mount, by its alias."""
    return mounted.path / ALIAS


def at_once(commands: Sequence[Sequence[str]], *, timeout: int = 60) -> list[str]:
    """Run commands at one time; return what each printed, or how it failed."""
    processes = [
        subprocess.Popen(
            ["timeout", "-s", "KILL", str(timeout), *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for words in commands
    ]  # fmt: skip

    def collect(process: subprocess.Popen[str]) -> str:
        output, errors = process.communicate()
        return output if process.returncode == 0 else f"exit {process.returncode}: {errors}"

    with ThreadPoolExecutor(len(processes)) as threads:
        return list(threads.map(collect, processes))


def drop_pages(mounted: Mounted, *files: Path) -> None:
    """Have the kernel forget what it has of these files, so that reads reach the daemon. Reads nothing."""
    mounted.shell("; ".join(f"dd if='{file}' iflag=nocache count=0 status=none" for file in files))


def settled(mounted: Mounted, timeout: float = 30) -> None:
    """Wait until nothing is fetched any more: an archive goes on to its end after its readers have left."""
    still, before = 0, -1
    deadline = time.monotonic() + timeout
    while still < 4:
        assert time.monotonic() < deadline, "the daemon never stops fetching"
        fetched = mounted.status()["fetched"]
        still = still + 1 if fetched == before else 0
        before = fetched
        time.sleep(0.1)


# --- fixtures -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def ecoli(pytestconfig: pytest.Config, data_dir: Path, archive_server: RefgenieServer) -> Ecoli:
    """E. coli built, archived, and reads simulated. The other server is asked for its programs alone."""
    return build_ecoli(test_cache(pytestconfig).parent / "ecoli", data_dir, archive_server.bin)


def _serve(ecoli: Ecoli, programs: Path, factory: pytest.TempPathFactory, *, remotes: bool) -> Iterator[EcoliServer]:
    with run_server(ecoli, programs, factory.mktemp("ecoli-server"), remotes=remotes) as server:
        yield server


@pytest.fixture(scope="session")
def ecoli_archives(
    ecoli: Ecoli, archive_server: RefgenieServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EcoliServer]:
    """A refgenieserver with archives only."""
    yield from _serve(ecoli, archive_server.bin, tmp_path_factory, remotes=False)


@pytest.fixture(scope="session")
def ecoli_remotes(
    ecoli: Ecoli, archive_server: RefgenieServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EcoliServer]:
    """A refgenieserver that redirects to a host with unpacked copies."""
    yield from _serve(ecoli, archive_server.bin, tmp_path_factory, remotes=True)


@dataclass(frozen=True)
class Origins:
    """Makes origins that end with the test: `origins("archive")`; `limit_rate` in bytes a second and request."""

    request: pytest.FixtureRequest
    nginx: NginxFactory

    def __call__(self, mode: Mode, *, limit_rate: int = 0, indexes: Path | None = None) -> Origin:
        name = "ecoli_remotes" if mode == "remotes" else "ecoli_archives"
        server: EcoliServer = self.request.getfixturevalue(name)
        files = self.nginx(server.static_url, limit_rate=limit_rate)
        rewrite = {server.static_url: files.url}
        api = self.nginx(server.url, rewrite=rewrite, limit_rate=limit_rate, indexes=indexes)
        return Origin(server.ecoli, mode, api, files)


@pytest.fixture
def origins(request: pytest.FixtureRequest, nginx: NginxFactory) -> Origins:
    """A maker of origins in either mode."""
    return Origins(request, nginx)


@pytest.fixture(params=MODES)
def origin(request: pytest.FixtureRequest, origins: Origins) -> Origin:
    """The server in each of its two modes."""
    mode: Mode = request.param
    return origins(mode)
