"""The origin is away, the daemon is killed, or told to end: what is resident stays, and nobody waits for ever."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fuse.test_posix import Stalling, make_stalling, stalled_mount
from tests.support.mounted import Mounted, Setup
from tests.support.nginx import NginxProxy
from tests.support.recorded import wait_until_recorded
from tests.support.refgenieserver import RefgenieServer

pytest_plugins = ("tests.support.refgenieserver",)
pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data]

LIMITS = {"retry_for": "2s"}
BOUND = 15  # seconds in which whatever can't be had has failed
INDEX = "tinyA/bwa_index"
VERSIONS = 7  # of assets, that the server has
COLD = "tinyA/bowtie2_index/tinyA.2.bt2"  # never read before the origin goes


def source(url: str) -> str:
    return f'[[source]]\nname = "origin"\ntype = "refgenie"\nurl = "{url}"\ntimeout = "4s"\n'


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def is_mounted(path: Path) -> bool:
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def simulate_reads(fasta: str, folder: Path) -> Path:
    """Write reads from known places of a FASTA file."""
    sequences = {part.split()[0]: "".join(part.split()[1:]) for part in fasta.split(">")[1:]}
    dice, path = random.Random(5), folder / "reads.fq"
    with path.open("w") as file:
        for number in range(300):
            name = dice.choice(["chr1", "chr2"])
            at = dice.randrange(len(sequences[name]) - 100)
            file.write(f"@{name}:{at + 1}:{number}\n{sequences[name][at : at + 100]}\n+\n{'I' * 100}\n")
    return path


def align(mounted: Mounted, reads: Path) -> list[str]:
    """Return the alignments that bwa finds, with the index of the mount; each has to be where its read is from."""
    index = mounted.refgenfs("seek", INDEX).stdout.strip()
    lines = str(mounted.run("bwa", "mem", "-v", "1", index, str(reads)).stdout).splitlines()
    alignments = [line for line in lines if not line.startswith("@")]
    places = [line.split("\t") for line in alignments]
    assert sum(fields[0].split(":")[:2] == fields[2:4] for fields in places) > 290
    return alignments


def md5s(mounted: Mounted, *folders: str) -> dict[str, str]:
    done = mounted.run("find", *folders, "-type", "f", "-exec", "md5sum", "{}", "+", cwd=mounted.path)
    assert done.stderr == ""
    return {path: digest for digest, path in (line.split("  ", 1) for line in done.stdout.splitlines())}


def names(mounted: Mounted) -> list[str]:
    done = mounted.run("find", ".", cwd=mounted.path)
    assert done.stderr == ""
    return sorted(done.stdout.splitlines())


def fails(mounted: Mounted, *command: str) -> str:
    """Run what can't succeed; return what it says. It has to fail in bounded time."""
    began = time.monotonic()
    done = mounted.run(*command, check=False, timeout=BOUND + 5, cwd=mounted.path)
    assert done.returncode == 1, (done, mounted.log_text()[-2000:])
    assert time.monotonic() - began < BOUND
    return str(done.stderr)


@dataclass(frozen=True)
class Before:
    """What was seen while the origin was there."""

    names: list[str]
    md5s: dict[str, str]
    alignments: list[str]
    reads: Path


@dataclass(frozen=True)
class Site:
    """A mount with a cache that has been used, behind a proxy that can be away."""

    setup: Setup
    route: str
    server: RefgenieServer
    proxy: NginxProxy
    static: NginxProxy | None
    before: Before

    @contextmanager
    def away(self) -> Iterator[None]:
        """Have the origin away."""
        hosts = [host for host in (self.proxy, self.static) if host is not None]
        for host in hosts:
            host.stop()
        try:
            yield
        finally:
            for host in hosts:
                host.start()


@pytest.fixture(params=["archives", "remotes"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Site, Mounted]]:
    """A mount after a first run of bwa, which read tinyA's bwa_index and nothing else."""
    route: str = request.param
    server: RefgenieServer = request.getfixturevalue("archive_server" if route == "archives" else "remotes_server")
    static = NginxProxy(server.static_url) if server.static_url else None
    rewrite = {server.static_url: static.url} if static else {}
    proxy = NginxProxy(server.url, rewrite=rewrite)
    setup = Setup(tmp_path, source(proxy.url), limits=LIMITS)
    try:
        for host in (proxy, static):
            if host is not None:
                host.start()
        with setup.mount() as mounted:
            fasta = subprocess.run(["gzip", "-dc", server.fasta["tinyA"]], capture_output=True, text=True, check=True)
            reads = simulate_reads(fasta.stdout, tmp_path)
            alignments = align(mounted, reads)
            # The rest of the archive and all listings come unasked, and are there once nothing comes in any more.
            mounted.refgenfs("pull", INDEX)
            wait_until(lambda: listed(proxy) >= VERSIONS, "listings are asked for unasked")
            before = Before(names(mounted), md5s(mounted, INDEX), alignments, reads)
            yield Site(setup, route, server, proxy, static, before), mounted
    finally:
        for host in (proxy, static):
            if host is not None:
                host.close()


def listed(proxy: NginxProxy) -> int:
    """Return for how many asset versions the listing was asked for."""
    return len({entry.path for entry in proxy.log() if "/dir_contents/" in entry.path and entry.status < 400})


def test_the_origin_goes_and_comes(site: tuple[Site, Mounted]) -> None:
    here, mounted = site
    with here.away():
        assert names(mounted) == here.before.names
        assert md5s(mounted, INDEX) == here.before.md5s
        assert align(mounted, here.before.reads) == here.before.alignments
        said = fails(mounted, "cat", COLD)
        assert re.search("Input/output error|Connection timed out", said)
        log = mounted.log_text()
        assert re.search(r"WARNING .*127\.0\.0\.1.*attempt", log), log  # which URL, which attempt
        # what is resident is not forgotten for it, nor does the failure hold others up
        assert md5s(mounted, INDEX) == here.before.md5s
        errors = mounted.status()["errors"]
        assert any("127.0.0.1" in error["what"] for error in errors), errors
        (state,) = mounted.status()["sources"]  # its catalog had come, and nothing else does
        assert not state["healthy"]
        assert re.search(r"http://127\.0\.0\.1:\d+/.*: no connection: ", state["error"]), state["error"]
    unpacked = next(here.server.archives.glob("*/bowtie2_index__default/" + "?" * 48 + ".2.bt2"))
    expected = hashlib.md5(unpacked.read_bytes()).hexdigest()
    assert mounted.run("md5sum", COLD, cwd=mounted.path).stdout.split()[0] == expected
    assert mounted.status()["sources"][0]["healthy"]


def test_a_restart_without_the_origin(site: tuple[Site, Mounted]) -> None:
    here, mounted = site
    assert mounted.status()["sources"][0]["healthy"]
    assert mounted.stop() == 0
    with here.away(), here.setup.mount() as again:
        assert again.ready["problems"] == [], "the origin was waited for: it is known to be away"
        assert names(again) == here.before.names
        assert md5s(again, INDEX) == here.before.md5s
        assert align(again, here.before.reads) == here.before.alignments
        assert re.search("Input/output error|Connection timed out", fails(again, "cat", COLD))
        # `status` says which source is away, and why
        wait_until(lambda: not again.status()["sources"][0]["healthy"], "the refresh has failed")
        (state,) = again.status()["sources"]
        assert state["name"] == "origin"
        assert re.search(r"http://127\.0\.0\.1:\d+/.*: no connection: ", state["error"]), state["error"]
        text = again.refgenfs("status").stdout
        assert re.search(r"^origin +failing ", text, re.MULTILINE)
        assert state["error"] in text.replace("\n", " ")
    # here it is back, and so is what depends on it, in a third life of the daemon
    with here.setup.mount() as third:
        wait_until(lambda: bool(third.status()["sources"][0]["healthy"]), "it answers again")
        third.run("cat", COLD, cwd=third.path, text=False)


def test_a_source_heals_in_a_running_daemon(site: tuple[Site, Mounted]) -> None:
    """SIGHUP has the sources asked again."""
    here, mounted = site
    with here.away():
        mounted.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not mounted.status()["sources"][0]["healthy"], "the refresh has failed")
        assert names(mounted) == here.before.names
    mounted.process.send_signal(signal.SIGHUP)
    wait_until(lambda: bool(mounted.status()["sources"][0]["healthy"]), "it answers again")
    assert mounted.status()["sources"][0]["error"] == ""
    assert names(mounted) == here.before.names


def test_a_first_start_without_the_origin(archive_server: RefgenieServer, tmp_path: Path) -> None:
    """With nothing known the mount is empty, says why, and fills when the origin is there."""
    with NginxProxy(archive_server.url) as proxy:
        proxy.stop()
        with Setup(tmp_path, source(proxy.url), limits=LIMITS).mount() as mounted:
            assert mounted.run("ls", str(mounted.path)).stdout == ""
            (problem,) = mounted.ready["problems"]
            assert re.match(r"origin: (http://127\.0\.0\.1:\d+/.*no connection|has not answered yet)", problem)
            proxy.start()
            wait_until(lambda: "tinyA" in mounted.run("ls", str(mounted.path)).stdout, "it fills", 40)


# -- the daemon's end -------------------------------------------------------------------------------------------


def test_a_killed_daemon_is_recovered(site: tuple[Site, Mounted]) -> None:
    here, mounted = site
    left = subprocess.Popen(
        ["timeout", "-s", "KILL", "60", "tail", "-f", str(mounted.path / INDEX / "tinyA.fa.ann")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: mounted.status()["open_files"] > 0, "it is open")
        wait_until_recorded(mounted)
        mounted.kill()
        assert "Transport endpoint is not connected" in mounted.run("ls", str(mounted.path), check=False).stderr
        assert is_mounted(mounted.path)
        with here.setup.mount() as again:
            assert names(again) == here.before.names
            assert md5s(again, INDEX) == here.before.md5s
            served = [entry for entry in here.proxy.log() if "/archive/" in entry.path and "bwa_index?" in entry.path]
            assert len(served) == (1 if here.route == "archives" else 0)  # of the first life
            assert again.stop() == 0
        assert not is_mounted(mounted.path)
    finally:
        left.terminate()  # timeout hands it on; killed, it would leave its child
        left.wait()


def test_the_command_recovers_a_dead_mount(site: tuple[Site, Mounted]) -> None:
    """As a user would: `refgenfs mount` again, then `refgenfs umount`."""
    here, mounted = site
    mounted.kill()
    try:
        said = mounted.refgenfs("mount", "-c", str(mounted.config))
        assert f"{mounted.path} is mounted" in said.stdout
        assert names(mounted) == here.before.names
    finally:
        mounted.refgenfs("umount", str(mounted.path), check=False)
    assert not is_mounted(mounted.path)


def test_a_second_daemon_is_told_who_holds_the_cache(site: tuple[Site, Mounted]) -> None:
    here, mounted = site
    other = here.setup.folder / "other"
    other.mkdir()
    done = mounted.refgenfs("mount", str(other), "-c", str(mounted.config), check=False)
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert str(mounted.cache) in line
    assert str(mounted.path) in line  # who: the mount
    assert str(mounted.process.pid) in line  # and its process
    assert not is_mounted(other)
    assert names(mounted) == here.before.names  # the first goes on


@pytest.fixture(scope="module")
def stalling(archive_server: RefgenieServer, tmp_path_factory: pytest.TempPathFactory) -> Stalling:
    return make_stalling(archive_server, tmp_path_factory.mktemp("stalling"))


LATEST = 15  # seconds: they would wait for 20 at the least, and for 30 or 60 as a rule
HOLDS = "tail -f $M/tinyB/fasta/tinyB.fa.fai"
WAITS = {
    "a lookup": "stat $M/tinyA/fasta/tinyA.fa",
    "a read": "cat $M/$LARGE",
    "a direct read": "dd if=$M/$LARGE of=/dev/null bs=1M iflag=direct",
}


@pytest.mark.parametrize("remotes", [False, True], ids=["archives", "remotes"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_told_whoever_waits(
    stalling: Stalling, tmp_path: Path, remotes: bool, number: signal.Signals
) -> None:
    with stalled_mount(stalling, tmp_path, remotes=remotes) as mounted:
        environ = {**os.environ, "M": str(mounted.path), "LARGE": stalling.large}
        commands = {"an open file": HOLDS, **WAITS}
        waiting = {
            what: subprocess.Popen(
                ["timeout", "-s", "KILL", "60", "bash", "-c", f"exec {command}"],
                env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for what, command in commands.items()
        }  # fmt: skip
        try:
            wait_until(lambda: mounted.status()["open_files"] == 3, "all but the lookup have opened", 30)
            time.sleep(0.7)
            assert [what for what, process in waiting.items() if process.poll() is not None] == []
            assert mounted.stop(number, timeout=LATEST) == 0
            log = mounted.log_text()
            assert not is_mounted(mounted.path), log
            assert [what for what in WAITS if not failed(waiting[what])] == [], log
            assert "Traceback" not in log
            assert log.rstrip().endswith("ended"), log
        finally:
            for process in waiting.values():
                process.terminate()  # timeout hands it on; killed, it would leave its child
                process.wait()


def failed(process: subprocess.Popen[bytes]) -> bool:
    """Say whether a process has ended with an error, within a moment."""
    try:
        return process.wait(10) not in (0, -9)
    except subprocess.TimeoutExpired:
        return False


def test_told_twice_and_mounted_again(site: tuple[Site, Mounted]) -> None:
    """More signals change nothing; the next start finds a cache that was closed well."""
    here, mounted = site
    dice = random.Random(3)
    mounted.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 20
    while mounted.process.poll() is None and time.monotonic() < deadline:
        mounted.process.send_signal(dice.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))
        time.sleep(0.005)
    assert mounted.process.poll() == 0, mounted.log_text()[-2000:]
    assert not is_mounted(mounted.path)
    here.proxy.clear()
    with here.setup.mount() as again:
        assert md5s(again, INDEX) == here.before.md5s
        assert here.proxy.bytes_sent("/archive/") == 0
        assert again.status()["fetched"] < 20_000  # the catalog
