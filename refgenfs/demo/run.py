"""`refgenfs demo`: the main job from end to end, on an embedded origin, with unmodified bwa."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from refgenfs.config import load_config
from refgenfs.control_client import ControlClient
from refgenfs.core.errors import ControlError
from refgenfs.core.units import human_bytes
from refgenfs.demo.build import STAMP, DemoError, DemoRoot, build_demo_root
from refgenfs.demo.genome import AlignmentCheck, check_alignments
from refgenfs.demo.origin import Origin, serve
from refgenfs.launch import start
from refgenfs.mount_table import mount_at
from refgenfs.mountpoint import unmount_dead
from refgenfs.paths import socket_path

RUN_TIMEOUT = 120  # seconds for one alignment of 20,000 reads, which takes about two
STOP_TIMEOUT = 20.0  # seconds
PARALLEL = 5
MARKER = ".refgenfs-demo"  # a folder that has it is the demo's to write in


@dataclass
class Report:
    """What the demo measured. Bytes as the origin counted them; times in seconds."""

    archive_bytes: int = 0
    first_byte_seconds: float = 0.0
    cold_seconds: float = 0.0
    cold_bytes: int = 0
    warm_seconds: float = 0.0
    warm_bytes: int = 0
    parallel: int = PARALLEL
    parallel_bytes: int = 0
    reads: int = 0
    mapped: int = 0
    right_place: int = 0
    same_as_plain_files: bool = False
    problems: list[str] = field(default_factory=list)


def run_demo(*, workdir: Path | None = None, keep: bool = False, json_output: bool = False) -> int:
    """Run the demo; return 0 when everything was as it should be, else 1.

    Everything happens in `workdir`, which stays, or in a temporary folder, which is removed unless `keep`.
    Raises DemoError for a `workdir` that holds something else.
    """
    console = Console(stderr=json_output, highlight=False, soft_wrap=True)
    if workdir is not None:
        _refuse_strangers(workdir)
    _check_tools()
    folder = workdir if workdir is not None else Path(tempfile.mkdtemp(prefix="refgenfs-demo-"))
    try:
        _mark(folder)
        report = _Demo(folder.resolve(), console).run()
    finally:
        if not keep and workdir is None:
            shutil.rmtree(folder, ignore_errors=True)
    if json_output:
        sys.stdout.write(json.dumps(asdict(report), indent=2) + "\n")
    return 1 if report.problems else 0


def _refuse_strangers(folder: Path) -> None:
    if any((folder / mark).is_file() for mark in (MARKER, f"origin/{STAMP}")):
        return
    try:
        if any(folder.iterdir()):
            raise DemoError(f"{folder} is in the way: it holds no demo; name a new or an empty folder")
    except FileNotFoundError:
        return
    except OSError as exc:
        raise DemoError(f"{folder} can't be used: {exc.strerror}; name a new or an empty folder") from exc


def _mark(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).touch()
    except OSError as exc:
        raise DemoError(f"{folder} can't be used: {exc.strerror}; name a folder of your own") from exc


def _check_tools() -> None:
    for tool, package in (("bwa", "bwa"), ("fusermount3", "fuse3")):
        if shutil.which(tool) is None:
            raise DemoError(f"{tool} is missing: `apt-get install {package}` (or `make demo`, which does it)")
    if not os.path.exists("/dev/fuse"):
        raise DemoError("there is no /dev/fuse: `modprobe fuse`, or give the container the device")


class _Demo:
    """One run of the demo in a folder of its own."""

    def __init__(self, folder: Path, console: Console) -> None:
        self._folder = folder
        self._console = console
        self._mountpoint = folder / "genomes"
        self._report = Report()
        self._sam: dict[str, bytes] = {}

    def run(self) -> Report:
        say = self._console.print
        say("[bold]1. An origin[/]: a 2 Mb genome is simulated and indexed by bwa, 20,000 reads are drawn from it")
        demo = build_demo_root(self._folder / "origin")
        archive = demo.archive("bwa_index").stat().st_size
        self._report.archive_bytes = archive
        with serve(demo.root) as origin:
            say(f"   {origin.url} serves it as a refgenieserver would; bwa_index is an archive of {_size(archive)}")
            with self._mounted(origin, "first") as client:
                self._cold(demo, origin)
                self._warm(demo, origin)
                self._status(client)
            self._parallel(demo, origin)
        for problem in self._report.problems:
            say(f"[bold red]not as it should be:[/] {problem}")
        if not self._report.problems:
            say("[bold green]All as it should be.[/] Try it with a server of yours: refgenfs mount --help")
        return self._report

    def _index(self) -> Path:
        return self._mountpoint / "demo" / "bwa_index" / "demo.fa"

    def _cold(self, demo: DemoRoot, origin: Origin) -> None:
        say, report = self._console.print, self._report
        say(f"[bold]2. A mount[/] with an empty cache: {self._mountpoint}")
        self._show(["ls", str(self._mountpoint / "demo")])
        say("[bold]3. bwa, unchanged[/], reads the index from the mount; nothing was downloaded before")
        origin.reset_stats()
        began = time.monotonic()
        _guarded(["head", "-c", "1", f"{self._index()}.bwt"])
        report.first_byte_seconds = time.monotonic() - began
        began = time.monotonic()
        self._sam["cold"] = self._align("bwa mem $GENOMES/demo/bwa_index/demo.fa reads.fq", self._index(), demo)
        report.cold_seconds = time.monotonic() - began
        report.cold_bytes = _archive_bytes(origin)
        say(f"   first byte of the index after {report.first_byte_seconds * 1000:.0f} ms")
        self._count("fetched", report.cold_bytes, 1.0)
        self._judge(demo)

    def _warm(self, demo: DemoRoot, origin: Origin) -> None:
        say, report = self._console.print, self._report
        say("[bold]4. Again[/]: all of it is in the cache now")
        origin.reset_stats()
        began = time.monotonic()
        self._sam["warm"] = self._align("bwa mem $GENOMES/demo/bwa_index/demo.fa reads.fq", self._index(), demo)
        report.warm_seconds = time.monotonic() - began
        report.warm_bytes = origin.stats().total.bytes
        self._count("fetched", report.warm_bytes, 0.0)

    def _parallel(self, demo: DemoRoot, origin: Origin) -> None:
        say, report = self._console.print, self._report
        say(f"[bold]5. {PARALLEL} tasks at once[/] on an empty cache, as a cluster node would run them")
        origin.reset_stats()
        with self._mounted(origin, "second"):
            command = _bwa(self._index(), demo)
            running = [
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
                for _ in range(PARALLEL)
            ]
            outputs = [process.communicate(timeout=2 * RUN_TIMEOUT)[0] for process in running]
        report.parallel_bytes = _archive_bytes(origin)
        self._count(f"fetched by all {PARALLEL}", report.parallel_bytes, 1.0)
        if {_alignments(output) for output in outputs} != {_alignments(self._sam["cold"])}:
            report.problems.append("the parallel runs do not agree with the first one")

    def _align(self, shown: str, index: Path, demo: DemoRoot) -> bytes:
        self._console.print(f"   [dim]$[/] {shown}")
        return _guarded(_bwa(index, demo))

    def _judge(self, demo: DemoRoot) -> None:
        """Compare with where the reads came from, and with bwa on plain files."""
        say, report = self._console.print, self._report
        check: AlignmentCheck = check_alignments(self._sam["cold"].decode().splitlines())
        report.reads, report.mapped, report.right_place = check.total, check.mapped, check.right_place
        plain = _guarded(_bwa(demo.unpacked("bwa_index") / f"{demo.digest}.fa", demo))
        report.same_as_plain_files = _alignments(plain) == _alignments(self._sam["cold"])
        same = "the same as on plain files" if report.same_as_plain_files else "NOT the same as on plain files"
        say(
            f"   {check.total:,} reads, {check.mapped:,} aligned, {check.right_place:,} where they came from; "
            f"the output is {same}"
        )
        if not report.same_as_plain_files:
            report.problems.append("bwa's output differs from that on plain files")
        if check.right_place < 0.9 * check.total:
            report.problems.append("too few reads were aligned where they came from")

    def _count(self, what: str, fetched: int, expected: float) -> None:
        ratio = fetched / self._report.archive_bytes
        self._console.print(
            f"   {what}: {_size(fetched)} = {ratio:.2f} of the archive's {_size(self._report.archive_bytes)}"
        )
        if abs(ratio - expected) >= 0.005:
            self._report.problems.append(f"{what}: {ratio:.2f} of the archive and not {expected:.2f}")

    def _status(self, client: ControlClient) -> None:
        status = client.call("status")
        self._console.print(
            f"   the daemon: served {_size(status['served'])}, fetched {_size(status['fetched'])}, "
            f"memory {_size(status['memory'])}"
        )

    def _show(self, command: list[str]) -> None:
        self._console.print(f"   [dim]$[/] {' '.join(command).replace(str(self._mountpoint), '$GENOMES')}")
        for line in _guarded(command).decode().splitlines():
            self._console.print(f"   {line}")

    @contextmanager
    def _mounted(self, origin: Origin, name: str) -> Iterator[ControlClient]:
        """Run a daemon with an empty cache; it ends with the context, and so does its mount."""
        settings = {
            "mount.point": str(self._mountpoint),
            "cache.dir": str(self._folder / f"cache-{name}"),
            "cache.size": "1GB",
            "cache.min_free": "0%",
        }
        config = self._folder / "refgenfs.toml"
        # its origin offers no seek indexes, and the answers that say so would be counted
        config.write_text(f'[[source]]\nname = "demo"\ntype = "refgenie"\nurl = "{origin.url}"\nseek_index = false\n')
        shutil.rmtree(settings["cache.dir"], ignore_errors=True)
        loaded = load_config(config, settings, os.environ)
        begun = start(loaded, self._folder / f"daemon-{name}.log")
        client = ControlClient(socket_path(self._mountpoint, os.environ, os.geteuid()), mountpoint=self._mountpoint)
        try:
            yield client
        finally:
            with suppress(ControlError):  # it may have died, and that is not what went wrong
                client.call("stop")
            _wait_until(lambda: mount_at(self._mountpoint) is None and not Path(f"/proc/{begun.pid}").exists())
            if mount_at(self._mountpoint) is not None:
                unmount_dead(self._mountpoint)


def _bwa(index: Path, demo: DemoRoot) -> list[str]:
    return ["timeout", "-s", "KILL", str(RUN_TIMEOUT), "bwa", "mem", "-v", "1", str(index), str(demo.reads)]


def _guarded(command: list[str]) -> bytes:
    """Run a command that reads from the mount; a read that is never answered must not hang the demo."""
    guarded = command if command[0] == "timeout" else ["timeout", "-s", "KILL", str(RUN_TIMEOUT), *command]
    done = subprocess.run(guarded, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise DemoError(f"{' '.join(command)} ended with {done.returncode}: {said[-1] if said else 'no word'}")
    return done.stdout


def _alignments(sam: bytes) -> bytes:
    """Return what bwa found, without the header line that has its command."""
    return b"\n".join(line for line in sam.splitlines() if not line.startswith(b"@PG"))


def _archive_bytes(origin: Origin) -> int:
    return origin.stats().matching("*/bwa_index*").bytes


def _size(nbytes: int) -> str:
    return human_bytes(nbytes)


def _wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
