"""The real command line against a real daemon, as a user types it: in a pipe, and on a terminal of 80 columns."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from refgenfs.demo.build import DemoRoot, build_demo_root
from refgenfs.demo.origin import Origin, serve
from refgenfs.mount_table import mount_at

pytestmark = [pytest.mark.needs_fuse, pytest.mark.timeout(180)]

COLUMNS = 80
SLOW = 1_500_000  # bytes a second: the index's archive takes two seconds
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BWA_INDEX = ["demo.fa", "demo.fa.amb", "demo.fa.ann", "demo.fa.bwt", "demo.fa.pac", "demo.fa.sa"]
KEYS = [
    *("demo/bwa_index", "demo/bwa_index.bwa_index", "demo/bwa_index.dir"),
    *("demo/fasta", "demo/fasta.chrom_sizes", "demo/fasta.dir", "demo/fasta.fai", "demo/fasta.fasta"),
]
CONFIG = """
[cache]
dir = "{folder}/cache"
size = "1GB"
min_free = "0%"
[mount]
point = "{folder}/genomes"
[limits]
retry_for = "1s"
[[source]]
name = "demo"
type = "refgenie"
url = "{url}"
"""


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit status."""

    code: int
    out: str
    err: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Shell:
    """Types commands in a folder, with an environment of its own."""

    folder: Path
    environ: dict[str, str]
    points: list[Path] = field(default_factory=list)

    @property
    def genomes(self) -> Path:
        return self.folder / "genomes"

    def __call__(self, *arguments: str | Path, code: int | None = 0, **more: str) -> Done:
        """Run a command of ours in a pipe."""
        command = ["timeout", "-s", "KILL", "60", sys.executable, "-m", "refgenfs", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=self.folder, env={**self.environ, **more},
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        told = f"refgenfs {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert code is None or done.returncode == code, told
        assert "Traceback" not in done.stderr, told
        return Done(done.returncode, done.stdout, done.stderr)

    def refused(self, *arguments: str | Path, code: int = 1) -> str:
        """Run a command that has to fail with one line on standard error; return that line."""
        done = self(*arguments, code=code)
        assert done.out == ""
        assert done.err.startswith("refgenfs: ")
        assert done.err.count("\n") == 1, done.err
        return done.err.removeprefix("refgenfs: ").rstrip("\n")

    def on_terminal(self, *arguments: str | Path, code: int | None = 0, answer: str = "") -> str:
        """Run a command on a terminal of 80 columns, and return all that it wrote there."""
        main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        command = [
            "timeout",
            "--foreground",
            "-s",
            "KILL",
            "60",
            sys.executable,
            "-m",
            "refgenfs",
            *map(str, arguments),
        ]
        environ = {**self.environ, "TERM": "xterm-256color"}
        process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, cwd=self.folder, env=environ)
        os.close(other)
        if answer:
            os.write(main, answer.encode())
        written = bytearray()
        with contextlib.suppress(OSError):  # EIO: the last one who had the terminal open has left
            while piece := os.read(main, 65536):
                written += piece
        os.close(main)
        assert code is None or process.wait(60) == code, written.decode()
        return written.decode().replace("\r\n", "\n")

    def screen(self, *arguments: str | Path, code: int | None = 0) -> list[str]:
        """Run a command on a terminal; return its lines without colours, none of them wider than the terminal."""
        lines = ESCAPES.sub("", self.on_terminal(*arguments, code=code)).splitlines()
        assert [line for line in lines if len(line) > COLUMNS] == []
        return [line.rstrip() for line in lines]

    def indexed(self, *keys: str) -> list[Any]:
        """Wait for the seek indexes of these archives: each is kept a moment after its last byte was read."""
        deadline = time.monotonic() + 20
        while True:
            rows = self("cache", "info", "--json").json["contents"]
            found = [row for row in rows if row["name"] == "seek index of the archive" and row["key"] in keys]
            if len(found) == len(keys):
                return found
            assert time.monotonic() < deadline, rows
            time.sleep(0.05)

    def read(self, path: str) -> bytes:
        """Read a file of the mount, in bounded time."""
        command = ["timeout", "-s", "KILL", "30", "cat", str(self.genomes / path)]
        return subprocess.run(command, capture_output=True, check=True).stdout

    def mount(self, *arguments: str | Path, at: Path | None = None) -> int:
        """Mount, and return the daemon's pid."""
        self.points.append(at or self.genomes)
        return int(self("mount", "--json", *arguments, *([at] if at else [])).json["pid"])

    def clean_up(self) -> None:
        """End all daemons that were started here, and take their mounts down."""
        for point in {self.genomes, *self.points}:
            if mount_at(point):
                subprocess.run(["fusermount3", "-uz", point], check=False, capture_output=True, timeout=20)
        deadline = time.monotonic() + 10
        while (pids := self.daemons()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def daemons(self) -> list[int]:
        """Return the daemons that run with this shell's environment."""
        mark = f"REFGENFS_RUNTIME_DIR={self.environ['REFGENFS_RUNTIME_DIR']}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                ours = entry.name.isdigit() and b"refgenfs" in (entry / "cmdline").read_bytes()
                if ours and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRoot:
    return build_demo_root(tmp_path_factory.mktemp("demo") / "root")


@pytest.fixture
def origin(demo: DemoRoot) -> Iterator[Origin]:
    with serve(demo.root) as origin:
        yield origin


@pytest.fixture
def empty_shell() -> Iterator[Shell]:
    """A shell with no configuration, in a folder with a short name: a socket's path has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="rgfs-", dir="/tmp") as name:
        folder = Path(name)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("REFGENFS", "XDG"))}
        folders = {f"XDG_{what}_HOME": str(folder / what.lower()) for what in ("STATE", "CACHE", "CONFIG")}
        environ = {**kept, **folders, "HOME": name, "REFGENFS_RUNTIME_DIR": str(folder / "run")}
        shell = Shell(folder, environ)
        try:
            yield shell
        finally:
            shell.clean_up()


def configured(shell: Shell, url: str) -> Shell:
    config = shell.folder / "config.toml"
    config.write_text(CONFIG.format(folder=shell.folder, url=url))
    shell.environ["REFGENFS_CONFIG"] = str(config)
    return shell


@pytest.fixture
def shell(empty_shell: Shell, origin: Origin) -> Shell:
    """A shell with a configuration that has the demo's origin as its source."""
    return configured(empty_shell, origin.url)


def wait_until_gone(pid: int, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.05)


# --- mount and umount ----------------------------------------------------------------------------------------


def test_mount_returns_when_the_tree_answers(shell: Shell, demo: DemoRoot) -> None:
    told = shell("mount")
    assert told.out == f"{shell.genomes} is mounted: 1 genome, 2 assets\nTry: refgenfs list\n"
    assert told.err == ""
    assert sorted(os.listdir(shell.genomes)) == sorted([demo.digest, "demo"])
    (pid,) = shell.daemons()
    assert os.getsid(pid) == pid, "it has a session of its own"
    assert os.readlink(f"/proc/{pid}/cwd") == "/"

    assert shell.refused("mount") == (
        f"{shell.genomes} is mounted already; `refgenfs umount {shell.genomes}` first, or just use it"
    )
    assert shell.daemons() == [pid]

    assert shell("umount").out == f"{shell.genomes} is unmounted\n"
    assert (mount_at(shell.genomes), shell.daemons()) == (None, [])
    assert list((shell.folder / "run").iterdir()) == []
    assert shell.refused("umount").startswith(f"no genomes are mounted at {shell.genomes}; ")


def test_mount_says_as_json_what_it_did(shell: Shell) -> None:
    told = shell("mount", "--json").json
    assert {**told, "pid": 0, "log": ""} == {
        "mountpoint": str(shell.genomes), "pid": 0, "genomes": 1, "assets": 2, "problems": [], "log": "",
    }  # fmt: skip
    assert "mounted on" in Path(told["log"]).read_text()
    assert shell("status", "--json").json["pid"] == told["pid"]


@pytest.mark.parametrize("name", ["with a blank", "ünïcode", "-dash", "a,comma", "x" * 80])
def test_a_mountpoint_may_have_any_name(shell: Shell, name: str) -> None:
    point = shell.folder / name
    shell.mount(at=point)
    assert sorted(os.listdir(point))[1] == "demo"
    assert shell("seek", "-m", point, "demo/fasta").out.startswith(f"{point}/demo/fasta/")
    assert shell("umount", point).out == f"{point} is unmounted\n"


def test_a_mountpoint_may_be_relative_or_behind_a_link(shell: Shell) -> None:
    (shell.folder / "real").mkdir()
    (shell.folder / "link").symlink_to("real")
    shell.mount(at=Path("link/g"))
    point = shell.folder / "real" / "g"
    shell.points.append(point)
    assert mount_at(point) is not None
    assert shell("umount", "link/g").out == f"{point} is unmounted\n"


def test_a_busy_mount_is_not_unmounted_unless_lazily(shell: Shell) -> None:
    pid = shell.mount()
    with subprocess.Popen(["sleep", "120"], cwd=shell.genomes / "demo") as user:
        try:
            assert shell.refused("umount") == (
                f"{shell.genomes} is busy: used by sleep (pid {user.pid}); "
                f"end them, or `refgenfs umount --lazy {shell.genomes}`"
            )
            assert mount_at(shell.genomes) is not None
            told = shell("umount", "--lazy").out
            assert told == f"{shell.genomes} is detached; the daemon ends when nobody uses its files any more\n"
            assert mount_at(shell.genomes) is None
            time.sleep(0.5)
            assert shell.daemons() == [pid]
        finally:
            user.kill()
    wait_until_gone(pid)


def test_an_open_file_keeps_a_mount_busy_and_can_be_read_after_a_lazy_unmount(shell: Shell, demo: DemoRoot) -> None:
    pid = shell.mount()
    script = 'exec 3<"$0"; read -r; md5sum <&3'
    path = str(shell.genomes / "demo" / "bwa_index" / "demo.fa.bwt")
    command = ["timeout", "-s", "KILL", "60", "bash", "-c", script, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        deadline = time.monotonic() + 30
        while not shell("status", "--json").json["open_files"]:
            assert time.monotonic() < deadline
        assert "is busy: used by bash (pid" in shell.refused("umount")
        shell("umount", "-l")
        printed = reader.communicate("\n", timeout=60)[0]
    wanted = (demo.unpacked("bwa_index") / f"{demo.digest}.fa.bwt").read_bytes()
    assert printed.split()[0] == hashlib.md5(wanted).hexdigest()
    wait_until_gone(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_it_stays_until_a_signal(shell: Shell, number: int) -> None:
    command = [sys.executable, "-m", "refgenfs", "mount", "-f"]
    with subprocess.Popen(command, env=shell.environ, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 30
            while mount_at(shell.genomes) is None or not shell.daemons():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert b"31" in subprocess.run(["timeout", "-s", "KILL", "20", "ls", shell.genomes], stdout=-1).stdout
            process.send_signal(number)
            errors = process.communicate(timeout=20)[1]
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert "mounted on" in errors
    assert mount_at(shell.genomes) is None


def test_a_cache_has_one_daemon(shell: Shell) -> None:
    pid = shell.mount()
    said = shell.refused("mount", shell.folder / "other")
    assert f"{shell.folder}/cache is in use by process {pid} ({shell.genomes})" in said
    assert mount_at(shell.folder / "other") is None


def test_with_several_daemons_a_command_must_say_which(shell: Shell) -> None:
    other = shell.folder / "other"
    shell.mount("-o", f"cache_dir={shell.folder}/cache2", at=other)
    said = shell.refused("seek", "demo/fasta")
    assert said.startswith(f"no daemon is running for {shell.genomes} ("), "the configuration names another"
    assert said.endswith(f"running: -m {other}")
    shell.mount()
    assert shell("seek", "demo/fasta").out.startswith(str(shell.genomes)), "the configuration's"
    assert shell("seek", "-m", other, "demo/fasta").out.startswith(str(other))
    third = shell.folder / "third"
    shell("umount")
    shell.mount("-o", f"cache_dir={shell.folder}/cache3", at=third)
    config = Path(shell.environ["REFGENFS_CONFIG"])
    config.write_text(config.read_text().replace("[mount]\npoint", "[catalog]\n# point"))
    assert shell.refused("status") == f"several daemons are running: say which with -m: {other}, {third}"
    shell("umount", third)
    assert shell("status", other).out.startswith(str(other))
    assert shell("seek", "demo/fasta").out.startswith(str(other)), "the only one, where nothing names any"
    assert shell("umount", other).out == f"{other} is unmounted\n"


# --- what there is -------------------------------------------------------------------------------------------


def test_list_info_seek_and_id(shell: Shell, demo: DemoRoot) -> None:
    shell.mount()
    (genome,) = shell("list", "--json").json["genomes"]
    assert (genome["name"], genome["digest"], genome["assets"]) == ("demo", demo.digest, 2)
    assert set(genome["names"]) == {"demo", demo.digest}
    assert [row["key"] for row in shell("list", "demo", "--json").json["assets"]] == [
        "demo/bwa_index:default", "demo/fasta:default",
    ]  # fmt: skip
    assert shell("list").out.splitlines()[1].split()[0] == "demo"
    assert [line.split()[0] for line in shell("list", "demo/fasta").out.splitlines()] == ["KEY", "demo/fasta:default"]

    info = shell("info", "demo/bwa_index", "--json").json
    assert [file["name"] for file in info["files"]] == BWA_INDEX
    assert info["key"] == "demo/bwa_index:default"
    assert shell("id", "demo/fasta").out == f"{shell('info', 'demo/fasta', '--json').json['asset_digest']}\n"

    for key, name in (("demo/fasta", "demo.fa"), ("demo/fasta.fai", "demo.fa.fai"), ("demo/bwa_index", "demo.fa")):
        printed = shell("seek", key).out
        path = Path(printed.rstrip("\n"))
        assert path.name == name
        plain = demo.unpacked(key.partition("/")[2].partition(".")[0]) / name.replace("demo", demo.digest, 1)
        assert shell.read(os.path.relpath(path, shell.genomes)) == plain.read_bytes()
    assert Path(shell("seek", "demo/fasta.dir").out.strip()).is_dir()

    shell.read("demo/bwa_index/demo.fa.sa")
    deadline = time.monotonic() + 20
    while (info := shell("info", "demo/bwa_index", "--json").json)["resident"] != 100:
        assert time.monotonic() < deadline, info
    sizes = {file["name"]: file["size"] for file in info["files"]}
    assert sizes == {
        name: (demo.unpacked("bwa_index") / name.replace("demo", demo.digest, 1)).stat().st_size for name in BWA_INDEX
    }
    assert info["size"] == sum(sizes.values())
    assert f"{sizes['demo.fa.bwt']:,}" in shell("info", "demo/bwa_index").out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["seek", ""], ["{digest}/", "demo/"]),
        (["seek", "d"], KEYS),
        (["seek", "{digest:.9}"], [key.replace("demo", "{digest}") for key in KEYS]),
        (["info", "demo/b"], ["demo/bwa_index", "demo/bwa_index.bwa_index", "demo/bwa_index.dir"]),
        (["pull", "demo/bwa_index", "demo/fasta.f"], ["demo/fasta.fai", "demo/fasta.fasta"]),
        (["list", "demo/f"], ["demo/fasta"]),
        (["seek", "nothing"], []),
    ],
)
def test_a_shell_completes_keys(shell: Shell, demo: DemoRoot, words: list[str], wanted: list[str]) -> None:
    typed = " ".join(["refgenfs", *words]).format(digest=demo.digest)
    completed = {"_REFGENFS_COMPLETE": "complete_bash", "COMP_WORDS": typed}
    completed["COMP_CWORD"] = str(len(words))
    assert shell(code=None, **completed).out.split() == [], "without a daemon: nothing, and no error"
    shell.mount()
    assert shell(code=None, **completed).out.split() == [key.format(digest=demo.digest) for key in wanted]


# --- what is resident ----------------------------------------------------------------------------------------


def test_pull_in_a_pipe_shows_what_it_did(shell: Shell, demo: DemoRoot) -> None:
    shell.mount()
    done = shell("pull", "demo/bwa_index", "demo/fasta.fai")
    assert done.err == ""
    assert [line.split()[0] for line in done.out.splitlines()] == ["KEY", "demo/bwa_index", "demo/fasta.fai"]
    assert "\x1b" not in done.out
    again = shell("pull", "--json", "demo/bwa_index").json["keys"][0]
    assert (again["fetched"], again["pinned"]) == (0, False)
    assert again["bytes"] == shell("info", "demo/bwa_index", "--json").json["size"]


def test_pull_on_a_terminal_shows_a_bar(empty_shell: Shell, demo: DemoRoot) -> None:
    with serve(demo.root, rate=SLOW) as origin:
        shell = configured(empty_shell, origin.url)
        shell.mount()
        written = shell.on_terminal("pull", "demo/bwa_index")
    frames = [ESCAPES.sub("", frame) for frame in re.split(r"[\r\n]+", written)]
    bars = [frame for frame in frames if frame.startswith("demo/bwa_index") and "━" in frame]
    assert len(bars) > 5, "it moves"
    assert all(len(frame) <= COLUMNS for frame in bars)
    amounts = [match[1] for frame in bars if (match := re.search(r"━\s+([\d.]+ [kM]?B)", frame))]
    assert len(set(amounts)) > 3, amounts
    assert any(re.search(r"[\d.]+ [kM]B/s", frame) for frame in bars)
    table = [frame for frame in frames if frame][-2:]
    assert table[0].split() == ["KEY", "RESIDENT", "FETCHED", "TIME", "RATE"]
    assert table[1].split()[0] == "demo/bwa_index"


def test_an_interrupted_pull_keeps_what_it_has(empty_shell: Shell, demo: DemoRoot) -> None:
    with serve(demo.root, rate=SLOW / 2) as origin:
        shell = configured(empty_shell, origin.url)
        shell.mount()
        command = [sys.executable, "-m", "refgenfs", "pull", "demo/bwa_index"]
        with subprocess.Popen(command, env=shell.environ, stderr=subprocess.PIPE, text=True) as process:
            try:
                deadline = time.monotonic() + 20
                while shell("status", "--json").json["fetched"] < 500_000:
                    assert time.monotonic() < deadline
                process.send_signal(signal.SIGINT)
                errors = process.communicate(timeout=20)[1]
            finally:
                process.kill()
        assert (process.returncode, errors) == (130, "refgenfs: interrupted; what was fetched stays\n")
        assert shell("pull", "demo/bwa_index").out


def test_pins_and_evictions(shell: Shell) -> None:
    shell.mount()
    pulled = shell("pull", "--pin", "demo/fasta", "--json").json["keys"][0]
    assert pulled["pinned"] is True
    assert shell("info", "demo/fasta", "--json").json["pinned"] is True
    assert "is pinned; `refgenfs unpin demo/fasta" in shell.refused("evict", "demo/fasta")
    (made,) = shell.indexed("demo/fasta:default")
    cleared = shell("cache", "clear", "--yes", "--json").json
    assert cleared == {"freed": made["resident"]}, "the archive's seek index, which no pin keeps"
    assert shell("unpin", "demo/fasta", "--json").json["keys"][0]["bytes"] == pulled["bytes"]
    assert shell("info", "demo/fasta", "--json").json["pinned"] is False
    freed = shell("evict", "demo/fasta", "--json").json["keys"][0]
    assert freed == {"key": "demo/fasta", "bytes": pulled["bytes"]}
    assert shell("cache", "info", "--json").json["contents"] == []

    shell("pin", "demo/fasta.fai")  # before it is here: it stays once it comes
    shell.read("demo/fasta/demo.fa.fai")
    assert shell("evict", "demo/bwa_index").out.split()[:4] == ["KEY", "FREED", "MOUNT", "demo/bwa_index"]
    shell("cache", "clear", "--yes")
    kept = shell("cache", "info", "--json").json["contents"]
    assert len(kept) == 1
    assert [(item["pinned"], item["resident"]) for item in kept] == [(True, item["size"]) for item in kept]
    assert shell("umount").code == 0
    shell.mount()
    assert shell("info", "demo/fasta.fai", "--json").json["files"], "the pin survives a restart"
    assert "is pinned" in shell.refused("evict", "demo/fasta.fai")


def test_clear_asks_first(shell: Shell) -> None:
    shell.mount()
    shell("pull", "demo/bwa_index")
    shell.indexed("demo/bwa_index:default")
    held = shell("cache", "info", "--json").json["contents"]  # not "used": books are estimated until they are written
    assert "nobody is there to answer: add --yes" in shell.refused("cache", "clear")
    assert "nothing removed" in shell.on_terminal("cache", "clear", answer="n\n", code=1)
    assert shell("cache", "info", "--json").json["contents"] == held
    asked = shell.on_terminal("cache", "clear", answer="y\n")
    assert re.search(r"/genomes: remove up to [\d.]+ MB from /\S+/cache\? \[y/N\]", asked)
    assert re.search(r"[\d.]+ MB freed", asked)
    assert shell("cache", "info", "--json").json["contents"] == []


def test_verify_finds_damage_and_heals_it(shell: Shell, demo: DemoRoot) -> None:
    pid = shell.mount()
    shell("pull", "demo/bwa_index")
    assert shell("cache", "verify").out.endswith(" blocks checked, 0 damaged\n")
    assert shell("cache", "verify", "--json").json["damaged"] == []
    plain = demo.unpacked("bwa_index") / f"{demo.digest}.fa.bwt"
    (content,) = [
        path for path in (shell.folder / "cache" / "contents").rglob("*") if path.is_file()
        and path.stat().st_size == plain.stat().st_size
    ]  # fmt: skip
    with content.open("r+b") as file:
        file.seek(1_500_000)
        file.write(bytes([plain.read_bytes()[1_500_000] ^ 1]))
    done = shell("cache", "verify")
    assert re.search(r"^\d+ blocks checked, 1 damaged, 1 healed\n  \S+/bwa_index:default \S+\.fa\.bwt", done.out)
    assert "was fetched again" in done.err
    assert done.err.count("\n") == 1
    assert content.read_bytes() == plain.read_bytes()
    assert shell("cache", "verify").out.endswith(" blocks checked, 0 damaged\n")
    assert shell.read("demo/bwa_index/demo.fa.bwt") == plain.read_bytes()
    assert shell.daemons() == [pid]


def test_cache_info_names_every_file(shell: Shell) -> None:
    shell.mount()
    shell("pull", "demo/bwa_index", "demo/fasta")
    indexes = shell.indexed("demo/bwa_index:default", "demo/fasta:default")
    told = shell("cache", "info", "--json").json
    files = [item for item in told["contents"] if item["key"] and item not in indexes]
    assert len(files) == len(told["contents"]) - 2 == 8  # the FASTA is the same content in both
    assert all(item["resident"] == item["size"] for item in told["contents"])
    assert told["used"] <= told["size"]
    text = shell("cache", "info").out
    screen = " ".join(shell.screen("cache", "info"))
    for name in (".fa.bwt", ".fa.pac", ".fa.sa", ".fa.fai", ".chrom.sizes"):
        assert name in text
        assert name in screen.replace(" ", "")
    for title in ("KEY", "FILE", "SIZE", "HERE", "PINNED", "LAST READ"):
        assert title in screen


# --- state ---------------------------------------------------------------------------------------------------


def test_status_counts_what_was_read_and_fetched(shell: Shell, demo: DemoRoot) -> None:
    pid = shell.mount()
    shell.read("demo/bwa_index/demo.fa.bwt")
    status = shell("status", "--json").json
    assert (status["pid"], status["state"], status["mountpoint"]) == (pid, "mounted", str(shell.genomes))
    assert status["served"] >= 2_000_072
    assert 0 < status["fetched"] < 4_000_000
    assert status["sources"][0]["healthy"] is True
    assert status["errors"] == []
    text = shell("status").out
    for part in (str(shell.genomes), f"pid {pid}", "Sources", "Cache", "Traffic", "served", "fetched"):
        assert part in text
    assert "Recent errors" not in text


def test_no_command_overflows_a_terminal(shell: Shell) -> None:
    shell.mount()
    shell("pull", "demo/bwa_index", "demo/fasta")
    commands = (
        "status", "list", "list demo", "list demo/fasta", "info demo/bwa_index", "seek demo/fasta", "id demo/fasta",
        "pull demo/fasta", "pin demo/fasta", "unpin demo/fasta", "cache info", "cache verify", "evict demo/fasta",
        "config show", "config check", "doctor", "cache clear --yes", "--help", "mount --help", "pull --help",
    )  # fmt: skip
    for command in commands:
        screen = shell.screen(*command.split())
        print(f"$ refgenfs {command}", *screen, sep="\n")
        assert any(screen), command
    head = shell.screen("status")[:2]
    assert head[0].startswith(str(shell.genomes))
    assert head[1].endswith("of memory")


def test_a_reader_that_leaves_is_no_error(shell: Shell) -> None:
    shell.mount()
    script = f"set -o pipefail; {sys.executable} -m refgenfs list --json | head -c 1"
    done = subprocess.run(["bash", "-c", script], env=shell.environ, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{", "")


# --- configuration, and a machine that isn't ready -----------------------------------------------------------


def test_config_show_and_check(shell: Shell) -> None:
    config = shell.environ["REFGENFS_CONFIG"]
    values = shell("config", "show", "--json").json
    assert values["path"] == config
    assert values["values"]["cache.size"] == {"value": "1GB", "from": f"file {config}"}
    assert values["values"]["log.level"] == {"value": "info", "from": "default"}
    assert f'"{shell.genomes}"' in shell("config", "show").out
    assert shell("config", "check").out == f"{config}: right\n"
    assert shell("config", "check", "--json").json == {"ok": True, "path": config, "problems": []}


def test_a_wrong_configuration_is_named_by_every_command(shell: Shell) -> None:
    config = Path(shell.environ["REFGENFS_CONFIG"])
    config.write_text(config.read_text().replace("min_free", "min_fre"))
    for command in (["mount"], ["config", "check"], ["config", "show"], ["doctor"]):
        said = shell.refused(*command)
        assert str(config) in said
        assert "min_fre" in said
        assert "min_free" in said.replace("min_fre:", "")
    told = shell("config", "check", "--json", code=1)
    assert told.json["ok"] is False
    assert len(told.json["problems"]) == 1
    assert mount_at(shell.genomes) is None


def test_doctor_finds_the_machine_ready(shell: Shell) -> None:
    for mounted in (False, True):
        told = shell("doctor", "--json").json
        assert told["ok"] is True
        assert "fail" not in [check["state"] for check in told["checks"]]
        if not mounted:
            shell.mount()
    lines = shell("doctor").out.splitlines()
    assert f"ok    mountpoint: {shell.genomes} is mounted" in lines
    assert [line for line in lines if line.startswith("ok    source: demo: ")]


@pytest.mark.needs_root
def test_readahead_is_raised_for_root(shell: Shell) -> None:
    shell.mount()
    (check,) = [check for check in shell("doctor", "--json").json["checks"] if check["name"] == "readahead"]
    assert (check["state"], check["found"]) == ("ok", "1MiB")


def test_a_source_that_refuses_is_told_and_does_not_stop_the_mount(empty_shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        shell = configured(empty_shell, f"http://127.0.0.1:{taken.getsockname()[1]}")
        began = time.monotonic()
        done = shell("mount")
        shell.points.append(shell.genomes)
        assert time.monotonic() - began < 30
        assert done.out == f"{shell.genomes} is mounted: 0 genomes, 0 assets\nTry: refgenfs status\n"
        assert done.err.startswith("refgenfs: source demo: ")
        assert done.err.count("\n") == 1
        assert shell("list").err == "refgenfs: no source has a genome yet: see `refgenfs status`\n"
        assert "failing" in shell("status").out
        assert shell("status", "--json").json["sources"][0]["healthy"] is False
        doctor = shell("doctor", code=1)
        assert "fail  source: demo: " in doctor.out
        assert doctor.err == "refgenfs: 1 of 12 checks failed: do what stands behind each\n"


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("lst", 2, "no such command 'lst'"),
        ("list --jsn", 2, "no such option: --jsn"),
        ("pull", 2, "missing argument 'KEY…'"),
        ("list nothing", 1, "no source has a genome 'nothing'; `refgenfs list` shows all"),
        ("info demo/bwa", 1, "genome demo has no asset 'bwa'; it has: bwa_index, fasta"),
        ("info demo", 1, "demo names a genome: write demo/ASSET; `refgenfs list demo` shows them"),
        ("seek demo/fasta.gzi", 1, "has no seek key 'gzi'; it has: chrom_sizes, dir, fai, fasta"),
        ("info demo/fasta.gzi", 1, "has no seek key 'gzi'; it has: chrom_sizes, dir, fai, fasta"),
        ("id demo/fasta:other", 1, "has no tag 'other'; it has: default"),
        ("pull demo/fasta nothing/fasta", 1, "no source has a genome 'nothing'"),
        ("evict demo/../x", 1, ".."),
        ("mount -o alow_other x", 1, "-o alow_other: unknown; did you mean 'allow_other'?"),
        ("mount -o cache_size=20Q x", 1, "cache.size"),
        ("mount -c no.toml", 1, "no.toml: no such file"),
        ("mount /proc", 1, "/proc is a mountpoint of proc already: name another directory"),
        ("mount config.toml", 1, "is no directory"),
        ("status -m elsewhere", 1, "/elsewhere ("),
        ("umount elsewhere", 1, "/elsewhere"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(shell: Shell, command: str, code: int, says: str) -> None:
    shell.mount()
    assert says in shell.refused(*command.split(), code=code)


def test_without_a_daemon_commands_say_how_to_start_one(shell: Shell) -> None:
    for command in ("status", "list", "info a/b", "seek a/b", "id a/b", "pull a/b", "cache info", "cache verify"):
        said = shell.refused(*command.split())
        assert said.startswith(f"no daemon is running for {shell.genomes} (")
        assert said.endswith("start it with `refgenfs mount`")


def test_what_is_here_is_known_after_a_restart(shell: Shell) -> None:
    shell.mount()
    shell("pull", "demo/fasta", "demo/bwa_index")
    shell("umount")
    shell.mount()
    for key in ("demo/fasta", "demo/bwa_index"):
        facts = json.loads(shell("info", key, "--json").out)
        assert facts["resident"] == 100
        assert all(row["size"] for row in facts["files"])
