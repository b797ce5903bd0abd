"""refgenfs and its peers, each mounted over the same files of one origin, each with an empty folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data import ALIAS, DIGEST, Asset
from benchmarks.machine import (
    Failed,
    Usage,
    is_mounted,
    raise_readahead,
    stop,
    unmount,
    usage,
    version,
    wait_for_mount,
)
from benchmarks.results import OURS as OURS
from tests.support.mounted import Mounted, Setup

PEERS = Path(__file__).resolve().parents[1] / ".venv" / "peers" / "bin"
START_TIMEOUT = 60.0
GIVE_UP = 100.0  # seconds for one read of a peer

RCLONE_NEW = "rclone (newest)"
RCLONE_SMALL = "rclone (newest), small chunks"
RCLONE_STREAMS = "rclone (newest), 16 streams"
RCLONE_OLD = "rclone (Debian)"
FSSPEC = "fsspec.fuse"
RATARMOUNT = "ratarmount"
PASSTHROUGH = "bare pyfuse3"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an asset's files are: the base URL of the origin, or of what stands before it."""

    url: str
    asset: Asset

    @property
    def folder_url(self) -> str:
        """The plain files, as a web server lists them."""
        return f"{self.url}/files/{DIGEST}/{self.asset.name}__default/"

    @property
    def archive_url(self) -> str:
        return f"{self.url}/files/{DIGEST}/{self.asset.name}__default.tgz"


@dataclass(slots=True)
class Mount:
    """A contestant that runs: the asset's files are in `folder`; `cache` is where it keeps what it has fetched."""

    folder: Path
    pid: int
    cache: Path
    daemon: Mounted | None = None  # of refgenfs only
    began: float = 0.0  # when its start began, by time.perf_counter

    def file(self, name: str) -> Path:
        """Return the path of a file."""
        return self.folder / name

    def usage(self) -> Usage:
        """Return what it took so far."""
        return usage(self.pid)

    def cached_files(self) -> list[Path]:
        """Return the files on the disk that hold what it has fetched."""
        return [path for path in self.cache.rglob("*") if path.is_file()] if self.cache.is_dir() else []


Start = Callable[[Place, Path], AbstractContextManager[Mount]]


# --- refgenfs -----------------------------------------------------------------------------------------------


def setup(place: Place, folder: Path, *, remotes: bool = True, size: str = "2TB") -> Setup:
    """Return how refgenfs is set up: as it comes, but for its folders and its one source."""
    folder.mkdir(parents=True, exist_ok=True)
    source = f'[[source]]\nname = "bench"\ntype = "refgenie"\nurl = "{place.url}"\nremotes = {str(remotes).lower()}\n'
    return Setup(folder, source, size=size)


@contextmanager
def refgenfs(place: Place, folder: Path, *, remotes: bool = True, size: str = "2TB") -> Iterator[Mount]:
    """Mount refgenfs. Raises Failed."""
    with failing():
        context = setup(place, folder, remotes=remotes, size=size).mount()
        daemon = context.__enter__()
    try:
        yield Mount(daemon.path / ALIAS / place.asset.name, daemon.process.pid, daemon.cache, daemon)
    finally:
        context.__exit__(None, None, None)


@contextmanager
def refgenfs_archive(place: Place, folder: Path) -> Iterator[Mount]:
    """Mount refgenfs so that it has archives only."""
    with refgenfs(place, folder, remotes=False) as mount:
        yield mount


@contextmanager
def failing() -> Iterator[None]:
    """Turn what the tests' harness raises into Failed."""
    try:
        yield
    except (AssertionError, OSError, subprocess.SubprocessError) as exc:
        raise Failed(f"{type(exc).__name__}: {str(exc)[-300:]}") from exc


# --- peers --------------------------------------------------------------------------------------------------


def rclone(program: str | Path, *options: str) -> Start:
    """Return how an rclone is mounted: with a full cache on the disk, as its manual advises for reading."""

    @contextmanager
    def start(place: Place, folder: Path) -> Iterator[Mount]:
        cache = folder / "cache"
        command = [
            str(program), "mount", ":http:", str(folder / "mnt"), "--http-url", place.folder_url, "--read-only",
            "--config", "/dev/null", "--cache-dir", str(cache), "--vfs-cache-mode", "full", "--max-read-ahead", "1Mi",
            "--dir-cache-time", "24h", "--attr-timeout", "1h", "--poll-interval", "0", *options,
        ]  # fmt: skip
        if program == "rclone":  # 1.60 does not know the newer spelling
            command[command.index("1Mi")] = "1M"
        with _mounted(command, folder) as process:
            yield Mount(folder / "mnt", process.pid, cache)

    return start


@contextmanager
def fsspec(place: Place, folder: Path) -> Iterator[Mount]:
    """Mount fsspec's HTTP file system; it has no cache on the disk that FUSE could use."""
    script = (
        "import sys, fsspec.fuse; from fsspec.implementations.http import HTTPFileSystem; "
        "fsspec.fuse.run(HTTPFileSystem(), sys.argv[1], sys.argv[2], foreground=True, threads=True)"
    )
    command = [str(PEERS / "python"), "-c", script, place.folder_url, str(folder / "mnt")]
    with _mounted(command, folder) as process:
        yield Mount(folder / "mnt", process.pid, folder / "cache")


@contextmanager
def ratarmount(place: Place, folder: Path) -> Iterator[Mount]:
    """Mount an archive over HTTP with ratarmount; its index goes into the folder."""
    index = folder / "index"
    index.mkdir(parents=True, exist_ok=True)
    command = [
        str(PEERS / "ratarmount"), "-f", "--index-folders", str(index), place.archive_url, str(folder / "mnt"),
    ]  # fmt: skip
    with _mounted(command, folder, timeout=GIVE_UP) as process:
        yield Mount(folder / "mnt" / "default", process.pid, index)


@contextmanager
def passthrough(place: Place, folder: Path) -> Iterator[Mount]:
    """Mount the plain files on the disk through the least that pyfuse3 takes."""
    command = [sys.executable, "-m", "benchmarks.passthrough", str(place.asset.folder), str(folder / "mnt")]
    with _mounted(command, folder) as process:
        raise_readahead(folder / "mnt")
        yield Mount(folder / "mnt", process.pid, place.asset.folder)


@contextmanager
def _mounted(
    command: Sequence[str], folder: Path, timeout: float = START_TIMEOUT
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that mounts at `folder`/mnt in the foreground, and take both down. Raises Failed."""
    point = folder / "mnt"
    point.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    environ = {**os.environ, "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "xdg")}
    try:
        with log.open("ab") as sink:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environ)
    except OSError as exc:
        raise Failed(f"not installed: {exc.strerror}") from exc
    try:
        wait_for_mount(process, point, log, timeout)
        yield process
    finally:
        if is_mounted(point):
            unmount(point)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        stop(process)
        if is_mounted(point):
            unmount(point)


NEWEST = PEERS / "rclone"
STARTS: dict[str, Start] = {
    OURS: refgenfs,
    PASSTHROUGH: passthrough,
    RCLONE_NEW: rclone(NEWEST),
    RCLONE_SMALL: rclone(
        NEWEST, "--vfs-read-chunk-size", "128Ki", "--vfs-read-chunk-size-limit", "128Ki", "--buffer-size", "0",
        "--vfs-read-ahead", "0",
    ),
    RCLONE_STREAMS: rclone(NEWEST, "--vfs-read-chunk-streams", "16", "--vfs-read-chunk-size", "4Mi"),
    RCLONE_OLD: rclone("rclone"),
    FSSPEC: fsspec,
}  # fmt: skip
ARCHIVE_STARTS: dict[str, Start] = {OURS: refgenfs_archive, RATARMOUNT: ratarmount}


def versions() -> dict[str, str]:
    """Return the version of each peer."""
    script = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    found = {RCLONE_NEW: version(str(NEWEST), "version"), RCLONE_OLD: version("rclone", "version")}
    for name, package in ((FSSPEC, "fsspec"), (RATARMOUNT, "ratarmount")):
        python = PEERS / "python"
        done = (
            subprocess.run(
                [str(python), "-c", script, package], capture_output=True, text=True, check=False, timeout=60
            )
            if python.exists()
            else None
        )
        found[name] = done.stdout.strip() if done is not None and done.returncode == 0 else "not installed"
    return found


def empty(folder: Path) -> Path:
    """Return the folder with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
