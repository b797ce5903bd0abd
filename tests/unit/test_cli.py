"""The command line, against a daemon that answers from a script."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from refgenfs.cli import run
from refgenfs.cli.connection import canonical, is_ambiguous
from refgenfs.cli.mount_options import parse_mount_options
from refgenfs.cli.options import complete_genome_or_asset, complete_key
from refgenfs.cli.output import clean, shortened
from refgenfs.cli.residency import amount
from refgenfs.control_client import ControlClient, DaemonRefused, NoDaemon, Progress, ReplyTimeout, Result
from refgenfs.core.errors import ConfigError, ControlError
from refgenfs.mount_table import holder_of, mount_at, parse_mountinfo, users_of
from refgenfs.paths import runtime_dir, socket_path

DIGEST = "2230c535660fb4774114bfa966a62f823fdb6d21acf138d4"
OTHER = "0f10d83b1050c08dd53189986f60970b92a315aa7a16a6f1"
Answers = dict[str, Callable[[dict[str, Any]], list[Any]]]

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "pid": os.getpid(),
    "mountpoint": "/genomes",
    "uptime": 8062.0,
    "started": 0.0,
    "state": "mounted",
    "cache": {
        "dir": "/var/cache/refgenfs",
        "size": 200 * 10**9,
        "used": 34_100_000_000,
        "min_free": 25 * 10**9,
        "free": 400 * 10**9,
        "contents": 31,
        "evictions": 2048,
        "pinned": 2_940_000_000,
        "uncached": False,
        "error": "",
    },
    "sources": [
        {
            "name": "refgenomes",
            "type": "refgenie",
            "url": "http://refgenomes.databio.org",
            "healthy": True,
            "last_refresh": 0.0,
            "age": 240.0,
            "error": "",
            "genomes": 24,
            "assets": 164,
        },
        {
            "name": "lab",
            "type": "refgenie",
            "url": "https://genomes.lab.example.org:8443/refgenie/production",
            "healthy": False,
            "last_refresh": None,
            "age": None,
            "error": "https://genomes.lab.example.org:8443/refgenie/production doesn't answer: connection refused",
            "genomes": 0,
            "assets": 0,
        },
    ],
    "served": 5_210_000_000_000,
    "fetched": 34_150_000_000,
    "requests": 12_034,
    "saved": 5_175_850_000_000,
    "hit_ratio": 0.9935,
    "open_files": 0,
    "flights": 3,
    "errors": [{"when": 1_700_000_000.0, "what": "http://refgenomes.databio.org/v3/x: 503, attempt 2"}],
    "memory": 61_000_000,
    "users": [
        {"uid": 0, "reads": 31_000, "served": 5_200_000_000_000, "fetched": 34_000_000_000},
        {"uid": 4_000_000_000, "reads": 3, "served": 10_000_000_000, "fetched": 0},
        {"uid": None, "reads": 1, "served": 65_536, "fetched": 65_536},
    ],
}
GENOMES = [
    {"name": "hg38", "names": ["hg38", "GRCh38", DIGEST], "digest": DIGEST, "description": "human", "assets": 14},
    {"name": "mm10", "names": ["mm10", OTHER], "digest": OTHER, "description": "", "assets": 9},
]
ASSETS = [
    {
        "key": f"hg38/{asset}:{tag}",
        "asset": asset,
        "tag": tag,
        "default": default,
        "description": description,
        "asset_size": size,
        "archive_size": archive,
        "source": "refgenomes",
        "seek_keys": keys,
        "resident": resident,
    }
    for asset, tag, default, description, size, archive, keys, resident in (
        ("bowtie2_index", "default", True, "Genome index for bowtie, produced with bowtie-build", "3.9GB", "3.5GB",
         ["bowtie2_index", "dir"], None),
        ("bowtie2_index", "second", False, "Genome index for bowtie, produced with bowtie-build", "3.9GB", "3.5GB",
         ["bowtie2_index", "dir"], 0),
        ("fasta", "default", True, "DNA sequences in the FASTA format, indexed FASTA and chromosome sizes file",
         "2.9GB", "833.4MB", ["chrom_sizes", "dir", "fai", "fasta"], 100),
    )
]  # fmt: skip
INFO: dict[str, Any] = {
    "key": "hg38/fasta:default",
    "source": "refgenomes",
    "digest": "4eb430296bc02ed7e4006624f1d5ac53",
    "genome_digest": DIGEST,
    "names": ["hg38", "GRCh38", DIGEST],
    "path": "/genomes/hg38/fasta",
    "default": True,
    "description": "DNA sequences in the FASTA format\x1b[31m, indexed FASTA",
    "files": [
        {"name": "hg38.chrom.sizes", "size": 11672, "resident": 100, "pinned": True, "origin": "archive"},
        {"name": "hg38.fa", "size": 3151425857, "resident": 12, "pinned": False, "origin": "archive"},
        {"name": "hg38.fa.fai", "size": None, "resident": None, "pinned": False, "origin": None},
    ],
    "size": None,
    "resident": None,
    "pinned": False,
    "archive_size": "833.4MB",
    "asset_digest": "4eb430296bc02ed7e4006624f1d5ac53",
    "archive_digest": "e4f4ab7d7e8d5b0a5b0b1d0e0e2c8c8a",
    "parents": [],
    "seek_keys": {"fasta": f"{DIGEST}.fa", "fai": f"{DIGEST}.fa.fai"},
}
CACHE_INFO = {
    **STATUS["cache"],
    "contents": [
        {"key": None, "name": "4f" * 20, "size": 1000, "resident": 1000, "pinned": False, "last_used": None},
        {"key": "hg38/fasta:default", "name": "hg38.fa", "size": 3151425857, "resident": 390_000_000,
         "pinned": True, "last_used": 1_700_000_000.0},
    ],
}  # fmt: skip


def ok(value: Any, *progress: dict[str, Any]) -> list[Any]:
    """Return the lines of an answer."""
    return [*({"progress": step} for step in progress), {"ok": value}]


def _list(args: dict[str, Any]) -> list[Any]:
    if "genome" not in args:
        return ok({"genomes": GENOMES})
    if args["genome"] not in ("hg38", "GRCh38", DIGEST):
        return [{"error": {"kind": "NotInCatalog", "message": f"no source has a genome {args['genome']!r}"}}]
    return ok({"assets": [row for row in ASSETS if args.get("asset") in (None, row["asset"])]})


def _pull(args: dict[str, Any]) -> list[Any]:
    steps = [
        {"key": key, "done": done, "total": total, "fetched": done, "file": "hg38.fa"}
        for key in args["keys"]
        for done, total in ((0, None), (10**8, None), (10**9, 3 * 10**9), (3 * 10**9, 3 * 10**9))
    ]
    done = [{"key": key, "bytes": 3 * 10**9, "fetched": 833_400_000, "seconds": 41.2} for key in args["keys"]]
    return ok({"keys": done}, *steps)


ANSWERS: Answers = {
    "status": lambda args: ok(STATUS),
    "list": _list,
    "info": lambda args: ok(INFO),
    "seek": lambda args: ok({"path": "/genomes/hg38/fasta/hg38.fa"}),
    "id": lambda args: ok({"digest": "4eb430296bc02ed7e4006624f1d5ac53"}),
    "pull": _pull,
    "pin": lambda args: ok({"keys": [{"key": key, "bytes": 7} for key in args["keys"]]}),
    "unpin": lambda args: ok({"keys": [{"key": key, "bytes": 7} for key in args["keys"]]}),
    "evict": lambda args: ok({"keys": [{"key": key, "bytes": 2_940_000_000} for key in args["keys"]]}),
    "cache_info": lambda args: ok(CACHE_INFO),
    "cache_verify": lambda args: ok({"checked": 24_000, "damaged": []}, {"done": 10, "total": 24_000}),
    "cache_clear": lambda args: ok({"freed": 34_100_000_000}),
    "stop": lambda args: ok({}),
}


class FakeDaemon:
    """Answers requests on a control socket from a table; `asked` holds what came in."""

    def __init__(self, path: Path, answers: Answers) -> None:
        self.asked: list[dict[str, Any]] = []
        self._answers = answers
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; the socket's file stays, as a killed daemon leaves it."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection, connection.makefile("rwb") as stream:
                if not (line := stream.readline()):
                    continue
                request = json.loads(line)
                self.asked.append(request)
                for reply in self._answers[request["op"]](request["args"]):
                    stream.write(reply if isinstance(reply, bytes) else json.dumps(reply).encode() + b"\n")
                    stream.flush()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of one's own, with no configuration and no daemon."""
    for name in [name for name in os.environ if name.startswith(("XDG_", "REFGENFS"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with tempfile.TemporaryDirectory() as short:  # a socket's path can't be as long as tmp_path
        monkeypatch.setenv("REFGENFS_RUNTIME_DIR", short)
        yield tmp_path


Start = Callable[..., FakeDaemon]


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Start daemons at mountpoints."""
    started = []

    def begin(mountpoint: str = "/genomes", **answers: Callable[[dict[str, Any]], list[Any]]) -> FakeDaemon:
        path = socket_path(Path(mountpoint), os.environ, os.geteuid())
        started.append(FakeDaemon(path, {**ANSWERS, **answers}))
        return started[-1]

    yield begin
    for daemon in started:
        daemon.close()


# -- what commands print and how they end -----------------------------------------------------------------------


def out(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that succeeds; return its standard output."""
    status = run(arguments)
    captured = capsys.readouterr()
    assert (status, captured.err) == (0, "")
    return captured.out


def err(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 1) -> str:
    """Run a command that fails; return its standard error, of which every line is marked as ours."""
    assert run(arguments) == status
    text = capsys.readouterr().err
    assert text
    assert all(line.startswith("refgenfs: ") for line in text.splitlines())
    return text


def test_seek_and_id_print_one_line(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    daemon = start()
    assert out(capsys, "seek", "hg38/fasta") == "/genomes/hg38/fasta/hg38.fa\n"
    assert out(capsys, "id", "/hg38/fasta:default/") == "4eb430296bc02ed7e4006624f1d5ac53\n"
    assert daemon.asked[-2:] == [
        {"op": "seek", "args": {"key": "hg38/fasta"}},
        {"op": "id", "args": {"key": "hg38/fasta:default"}},
    ]


def test_seek_with_options_prints_the_same(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start()
    assert out(capsys, "seek", "-m", "/genomes", "hg38/fasta") == out(capsys, "seek", "hg38/fasta")


def test_a_wrong_key_asks_nobody(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    daemon = start()
    assert "hg38 names a genome" in err(capsys, "seek", "hg38")
    assert "has more than one" in err(capsys, "pull", "hg38/fasta", "a/b/c")
    assert "is no genome" in err(capsys, "list", "..")
    assert daemon.asked == []


def test_list_shows_genomes_then_assets_then_tags(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start()
    assert out(capsys, "list").splitlines() == [
        "GENOME  ALSO    ASSETS  DIGEST                                            DESCRIPTION",
        f"hg38    GRCh38      14  {DIGEST}  human",
        f"mm10    –            9  {OTHER}  –",
    ]
    assert [line.split()[0] for line in out(capsys, "list", "hg38").splitlines()] == [
        "KEY", "hg38/bowtie2_index:default", "hg38/bowtie2_index:second", "hg38/fasta:default",
    ]  # fmt: skip
    assert len(out(capsys, "list", "hg38/bowtie2_index").splitlines()) == 3


def test_json_is_what_the_daemon_said(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start()
    for command, wanted in (
        (["list"], {"genomes": GENOMES}),
        (["list", "hg38"], {"assets": ASSETS}),
        (["status"], STATUS),
        (["info", "hg38/fasta"], INFO),
        (["cache", "info"], CACHE_INFO),
        (["cache", "clear", "--yes"], {"freed": 34_100_000_000}),
        (["evict", "hg38/fasta"], {"keys": [{"key": "hg38/fasta", "bytes": 2_940_000_000}]}),
    ):
        assert json.loads(out(capsys, *command, "--json")) == wanted


def test_pull_ends_with_a_line_for_each_key(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    daemon = start()
    text = out(capsys, "pull", "--pin", "hg38/fasta", "hg38/fasta", "hg38/bwa_index")
    assert [line.split() for line in text.splitlines()] == [
        ["KEY", "RESIDENT", "FETCHED", "TIME", "RATE"],
        ["hg38/fasta", "3.00", "GB", "833", "MB", "41", "s", "20.2", "MB/s"],
        ["hg38/bwa_index", "3.00", "GB", "833", "MB", "41", "s", "20.2", "MB/s"],
    ]
    assert daemon.asked[-1]["args"] == {"keys": ["hg38/fasta", "hg38/bwa_index"], "pin": True}


def test_info_shows_no_control_characters(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start()
    text = out(capsys, "info", "hg38/fasta")
    assert "\x1b" not in text
    assert f"genome          hg38, GRCh38, {DIGEST}" in text
    assert "hg38.fa           3,151,425,857   12 %  no      archive" in text
    assert "size            not known yet: `ls -l` asks for it" in text


def test_status_tells_of_health_cache_and_traffic(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start()
    text = out(capsys, "status")
    for wanted in ("up 2 h 14 min", "failing", "connection refused", "34.1 GB of 200 GB, 17 %", "5.18 TB saved",
                   "99.35 % of reads from the cache", "503, attempt 2"):  # fmt: skip
        assert wanted in text


def test_status_says_that_the_disk_is_what_bounds_the_cache(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    cache = STATUS["cache"]
    shown = {**STATUS, "cache": {**cache, "used": 3_600_000, "min_free": 0, "free": 300_000}}
    start(status=lambda args: ok(shown))
    assert "the disk bounds it, not cache.size: it has room for 3.90 MB" in out(capsys, "status")
    start("/other", status=lambda args: ok(STATUS))
    assert "the disk bounds it" not in out(capsys, "status", "-m", "/other")


def test_status_has_a_line_for_each_user(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start()
    lines = [line.split() for line in out(capsys, "status").partition("Users\n")[2].splitlines()]
    assert lines[1:4] == [
        ["root", "31,000", "5.20", "TB", "34.0", "GB"],
        ["4000000000", "3", "10.0", "GB", "0", "B"],
        ["(others)", "1", "65.5", "kB", "65.5", "kB"],
    ]


def test_errors_that_say_the_same_are_one_line(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    same = [{"when": 1_700_000_000.0 + n, "what": "http://x/y: no connection"} for n in range(5)]
    start(status=lambda args: ok({**STATUS, "errors": [*same, {"when": 1_700_000_009.0, "what": "HTTP 503"}]}))
    errors = out(capsys, "status").partition("Recent errors\n")[2].splitlines()
    assert [line.partition(" ago  ")[2] for line in errors] == ["http://x/y: no connection (5 times)", "HTTP 503"]


def test_damage_that_can_not_be_healed_is_a_failure(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    block = {
        "key": "hg38/fasta:default",
        "name": "hg38.fa",
        "offset": 131072,
        "block": 1,
        "path": "/cache/contents/0f",
    }
    healed, lost = {**block, "healed": True, "error": None}, {**block, "healed": False, "error": "nobody answers"}
    start(cache_verify=lambda args: ok({"checked": 9, "damaged": [healed, lost], "healed": 1}))
    assert run(["cache", "verify"]) == 1
    captured = capsys.readouterr()
    assert "9 blocks checked, 2 damaged, 1 healed" in captured.out
    assert "hg38/fasta:default hg38.fa: byte 131072, block 1 of /cache/contents/0f: healed\n" in captured.out
    assert "block 1 of /cache/contents/0f: not healed: nobody answers\n" in captured.out
    assert "refgenfs: 1 of 2 damaged blocks could not be fetched again" in captured.err


def test_damage_that_was_healed_is_told_and_no_failure(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    block = {"key": None, "name": "hg38.fa", "offset": 0, "block": 0, "path": "/c/0f", "healed": True, "error": None}
    start(cache_verify=lambda args: ok({"checked": 9, "damaged": [block], "healed": 1}))
    assert run(["cache", "verify"]) == 0
    captured = capsys.readouterr()
    assert "9 blocks checked, 1 damaged, 1 healed" in captured.out
    assert "fetched again" in captured.err


def test_clear_asks_first(start: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = start()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert "--yes" in err(capsys, "cache", "clear")
    assert [request["op"] for request in daemon.asked] == ["cache_info"]


def test_an_error_of_the_daemon_is_one_line(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start()
    assert err(capsys, "list", "hg19") == "refgenfs: no source has a genome 'hg19'\n"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["lst"], "did you mean 'list'"),
        (["list", "--frobnicate"], "--frobnicate"),
        (["seek"], "missing argument 'KEY'"),
        (["mount", "--wait", "soon"], "--wait"),
    ],
)
def test_a_wrong_command_line_ends_with_2(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], wanted: str
) -> None:
    text = err(capsys, *arguments, status=2)
    assert wanted.lower() in text.lower()
    assert len(text.splitlines()) == 1
    assert "--help` shows how" in text


def test_version_and_help(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert out(capsys, "--version").startswith("refgenfs ")
    text = out(capsys, "--help")
    for command in ("mount", "umount", "status", "list", "info", "seek", "id", "pull", "pin", "unpin", "evict",
                    "cache", "config", "doctor", "demo"):  # fmt: skip
        assert f" {command} " in text
        assert "Usage: refgenfs" in out(capsys, command, "--help")


def test_an_unexpected_error_is_one_line_too(
    start: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(seek=lambda args: ok({"nonsense": 1}))
    assert "this is a defect" in err(capsys, "seek", "hg38/fasta")
    monkeypatch.setenv("REFGENFS_DEBUG", "1")
    with pytest.raises(KeyError):
        run(["seek", "hg38/fasta"])


# -- which daemon ---------------------------------------------------------------------------------------------


def test_no_daemon_says_how_to_start_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no daemon is running for /genomes" in (text := err(capsys, "status"))
    assert "`refgenfs mount`" in text
    assert "`refgenfs mount /x`" in err(capsys, "status", "-m", "/x")


def test_a_dead_daemons_socket_is_no_daemon(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start().close()
    assert "no daemon is running" in err(capsys, "status")
    assert "no daemon is running" in err(capsys, "status", "-m", "/genomes")


def test_of_several_daemons_the_configured_one_is_asked(
    start: Start, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = start("/mnt/a"), start("/mnt/b-c")
    assert "say which with -m: /mnt/a, /mnt/b-c" in err(capsys, "id", "hg38/fasta")
    out(capsys, "id", "-m", "/mnt/a", "hg38/fasta")
    config = home / "c.toml"
    config.write_text('[mount]\npoint = "/mnt/b-c"\n')
    out(capsys, "id", "-c", str(config), "hg38/fasta")
    assert (len(first.asked), len(second.asked)) == (1, 1)


@pytest.mark.parametrize("how", ["option", "environment", "place"])
def test_a_daemon_that_is_named_is_the_only_one_asked(
    start: Start, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    other = start("/mnt/other")
    config = home / ".config" / "refgenfs" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[mount]\npoint = "~/g"\n')
    arguments = []
    if how != "place":
        config = config.rename(home / "c.toml")
    if how == "option":
        arguments = ["-c", str(config)]
    if how == "environment":
        monkeypatch.setenv("REFGENFS_CONFIG", str(config))
    for command in (["evict", "hg38/fasta"], ["cache", "clear", "--yes"], ["seek", "hg38/fasta"], ["status"]):
        text = err(capsys, *command, *arguments)
        assert f"no daemon is running for {home}/g (" in text
        assert "running: -m /mnt/other" in text
    assert f"no genomes are mounted at {home}/g" in err(capsys, "umount", *arguments)
    assert other.asked == []
    daemon = start(f"{home}/g")
    out(capsys, "seek", "hg38/fasta", *arguments)
    assert (len(daemon.asked), other.asked) == (1, [])
    assert "/mnt/other: 34.1 GB freed" in out(capsys, "cache", "clear", "--yes", "-m", "/mnt/other")


def test_with_c_and_no_mount_point_the_default_is_meant(
    start: Start, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start("/mnt/other")
    (home / "c.toml").write_text('[cache]\nsize = "1GB"\n')
    text = err(capsys, "status", "-c", str(home / "c.toml"))
    assert "no daemon is running for /genomes" in text
    assert f"`refgenfs mount -c {home}/c.toml`" in text


def test_a_configuration_that_names_no_mountpoint_leaves_the_only_daemon(
    start: Start, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start("/mnt/other")
    monkeypatch.setenv("REFGENFS_CONFIG", str(home / "c.toml"))
    assert "c.toml: no such file" in err(capsys, "seek", "hg38/fasta")
    (home / "c.toml").write_text("[cache\n")
    assert "is no TOML" in err(capsys, "seek", "hg38/fasta")
    (home / "c.toml").write_text("[mount]\nallow_other = true\n")
    out(capsys, "seek", "hg38/fasta")


def test_status_takes_the_mountpoint_as_umount_does(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = start("/mnt/a"), start("/mnt/b")
    assert out(capsys, "status", "/mnt/a") == out(capsys, "status", "-m", "/mnt/a")
    assert (len(first.asked), len(second.asked)) == (2, 0)
    assert "given twice" in err(capsys, "status", "/mnt/a", "-m", "/mnt/b", status=2)


def test_evict_and_clear_say_where(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start("/mnt/a")
    assert out(capsys, "evict", "hg38/fasta").splitlines()[1].split() == ["hg38/fasta", "2.94", "GB", "/mnt/a"]
    assert out(capsys, "cache", "clear", "--yes") == "/mnt/a: 34.1 GB freed\n"


def test_an_empty_cache_is_explained(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    bare = {**STATUS["cache"], "used": 73_000, "contents": 0}
    start(status=lambda args: ok({**STATUS, "cache": bare}), cache_info=lambda args: ok({**bare, "contents": []}))
    assert "0 files (what is used is the cache's own book-keeping)" in out(capsys, "status")
    assert run(["cache", "info"]) == 0
    assert "the 73.0 kB in use are its own book-keeping" in capsys.readouterr().err


def test_the_only_daemon_is_asked_wherever_it_is(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start("/somewhere/else")
    out(capsys, "id", "hg38/fasta")


def test_a_mountpoint_is_known_by_its_real_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "real"
    (real / "genomes").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "direct").symlink_to(real / "genomes")
    monkeypatch.chdir(tmp_path)
    for name in ("link/genomes", "real/genomes", "direct", "./link/../real/genomes/"):
        assert canonical(name) == real / "genomes"


# -- the control protocol -----------------------------------------------------------------------------------------


def test_stream_yields_progress_then_the_result(start: Start, home: Path) -> None:
    start()
    client = ControlClient(runtime_dir(os.environ, os.geteuid()) / "genomes.sock")
    events = list(client.stream("cache_verify"))
    assert events == [Progress({"done": 10, "total": 24_000}), Result({"checked": 24_000, "damaged": []})]


@pytest.mark.parametrize(
    ("reply", "wanted"), [(b"", "ended before it answered"), (b"what\n", "no JSON"), (b"[]\n", "unknown here")]
)
def test_an_answer_that_is_none(start: Start, reply: bytes, wanted: str) -> None:
    start(status=lambda args: [reply])
    client = ControlClient(runtime_dir(os.environ, os.geteuid()) / "genomes.sock")
    with pytest.raises(ControlError, match=wanted):
        client.call("status")


def test_a_daemon_that_does_not_answer(start: Start) -> None:
    release = threading.Event()
    start(status=lambda args: ok(release.wait(10)))
    client = ControlClient(runtime_dir(os.environ, os.geteuid()) / "genomes.sock", reply_timeout=0.05)
    with pytest.raises(ReplyTimeout, match=r"hasn't answered 'status' in 0\.05 s"):
        client.call("status")
    release.set()


def test_errors_have_a_kind(start: Start) -> None:
    start()
    client = ControlClient(runtime_dir(os.environ, os.geteuid()) / "genomes.sock")
    with pytest.raises(DaemonRefused) as caught:
        client.call("list", genome="hg19")
    assert caught.value.kind == "NotInCatalog"
    with pytest.raises(NoDaemon):
        ControlClient(Path("/nowhere/x.sock")).call("status")


def test_what_the_parser_says_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    assert err(capsys, "mount", "--wait", "x", status=2) == (
        "refgenfs: invalid value for '--wait': must be a valid number (`refgenfs mount --help` shows how)\n"
    )
    assert "'--wait': must be at least 1 (" in err(capsys, "mount", "--wait", "0", status=2)
    assert "no such option: --cache (`refgenfs mount --help`" in err(capsys, "mount", "--cache", "5", status=2)
    assert "refgenfs: too many arguments: " in err(capsys, "mount", "a", "b", status=2)


# -- completion -----------------------------------------------------------------------------------------------


def test_keys_are_completed_from_the_catalog(start: Start) -> None:
    start()
    assert complete_key("") == sorted(f"{name}/" for name in ("hg38", "GRCh38", "mm10", DIGEST, OTHER))
    assert complete_key("hg38/fasta.f") == ["hg38/fasta.fai", "hg38/fasta.fasta"]
    assert complete_key("GR")[0] == "GRCh38/bowtie2_index"
    assert complete_genome_or_asset("hg") == ["hg38/bowtie2_index", "hg38/fasta"]


def test_completion_is_silent_where_nobody_answers(home: Path, start: Start) -> None:
    assert complete_key("h") == []
    start(list=lambda args: ok({"unexpected": 1}))
    assert complete_key("h") == []


# -- mount and umount -----------------------------------------------------------------------------------------


def test_mount_options_become_settings() -> None:
    text = (
        r"allow_other,cache_size=20GB,cache_dir=/a\,b,ro,nosuid,_netdev,nofail,x-systemd.automount,limits.memory=8MiB"
    )
    assert parse_mount_options(text) == {
        "mount.allow_other": True, "cache.size": "20GB", "cache.dir": "/a,b", "limits.memory": "8MiB",
    }  # fmt: skip
    assert parse_mount_options("") == {}
    assert parse_mount_options("allow_other=false") == {"mount.allow_other": "false"}
    with pytest.raises(ConfigError, match="did you mean 'cache_size'"):
        parse_mount_options("cache_sise=1GB")
    with pytest.raises(ConfigError, match="a value is missing"):
        parse_mount_options("cache_size")


def test_mountinfo_is_parsed() -> None:
    text = (
        "36 35 0:52 / /mnt/with\\040blank ro,nosuid shared:1 - fuse.refgenfs refgenfs ro,user_id=0\n"
        "37 35 8:1 / /home rw - ext4 /dev/sda1 rw\n"
        "nonsense\n"
    )
    ours, home = parse_mountinfo(text)
    assert (ours.point, ours.device, ours.is_refgenfs) == (Path("/mnt/with blank"), "0:52", True)
    assert not ours.is_for_all
    assert not home.is_refgenfs
    assert mount_at(Path("/proc")) is not None
    assert mount_at(Path("/proc/self")) is None


def test_a_file_system_of_several_machines_is_known() -> None:
    text = (
        "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "36 20 0:52 / /home rw shared:1 - nfs4 server:/home rw\n"
        "37 36 8:2 / /home/local rw - xfs /dev/sdb1 rw\n"
    )
    mounts = parse_mountinfo(text)
    found = {path: holder_of(Path(path), mounts) for path in ("/home/eve/.cache", "/home/local/x", "/homes", "/home")}
    assert {path: held and held.is_shared for path, held in found.items()} == {
        "/home/eve/.cache": True,
        "/home/local/x": False,
        "/homes": False,
        "/home": True,
    }
    assert holder_of(Path("/x"), []) is None
    assert holder_of(Path("/proc/self")) == mount_at(Path("/proc"))


def test_users_of_a_folder_are_named(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as process:
        try:
            found = users_of(tmp_path, besides=frozenset({os.getpid()}))
            assert (process.pid, "sleep") in [(user.pid, user.command) for user in found]
            assert users_of(tmp_path / "other") == []
        finally:
            process.kill()


STUB = """
import json, os, sys
told = int(sys.argv[1])
request = json.load(sys.stdin)
print("a line of the log", flush=True)
print("its last line", file=sys.stderr)
sys.stderr.flush()
what = {what!r}
if what == "ready":
    facts = {{"genomes": 2, "assets": 1, "problems": ["lab: away"], **request}}
    os.write(told, json.dumps({{"ready": facts}}).encode() + b"\\n")
elif what == "error":
    os.write(told, json.dumps({{"error": {{"kind": "CacheBusy", "message": "held by pid 1"}}}}).encode() + b"\\n")
elif what == "hang":
    import time
    time.sleep(60)
sys.exit(3)
"""


@pytest.fixture
def stub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a script stand for the daemon."""

    def set_up(what: str) -> None:
        monkeypatch.setattr(
            "refgenfs.launch.command", lambda fd: [sys.executable, "-c", STUB.format(what=what), str(fd)]
        )

    monkeypatch.setattr("refgenfs.launch.tree_answers", lambda point: True)
    return set_up


def test_mount_starts_a_daemon_and_tells(
    stub: Callable[[str], None], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub("ready")
    assert run(["mount", "-o", "cache_size=1GB", str(home / "g")]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{home}/g is mounted: 2 genomes, 1 asset\nTry: refgenfs list\n"
    assert captured.err == "refgenfs: source lab: away\n"
    logs = list((home / "state" / "refgenfs").iterdir())
    assert [log.stat().st_mode & 0o777 for log in logs] == [0o600]
    assert (home / "g").is_dir()


def test_the_daemon_gets_the_configuration(stub: Callable[[str], None], home: Path) -> None:
    from refgenfs.config import load_config
    from refgenfs.launch import start

    stub("ready")
    loaded = load_config(None, {"cache.dir": "~/c", "cache.size": "1GB"}, {"HOME": str(home)})
    facts = start(loaded, home / "log").facts
    assert facts["overrides"] == {"cache.dir": f"{home}/c", "cache.size": "1GB"}
    assert facts["path"] is None


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("error", "held by pid 1 (log: "),
        ("die", "ended with status 3: its last line; its log: "),
        ("hang", "wasn't ready after 1 s and was ended; its log: "),
    ],
)
def test_mount_says_why_the_daemon_failed(
    stub: Callable[[str], None], home: Path, capsys: pytest.CaptureFixture[str], what: str, wanted: str
) -> None:
    stub(what)
    assert wanted in err(capsys, "mount", "--wait", "1", str(home / "g"))


def test_a_failed_mount_leaves_no_folder(
    stub: Callable[[str], None], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub("error")
    (home / "there").mkdir()
    err(capsys, "mount", str(home / "there"))
    err(capsys, "mount", str(home / "there" / "a" / "b"))
    assert list((home / "there").iterdir()) == []


def test_mount_says_which_daemon_to_ask(
    stub: Callable[[str], None], start: Start, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub("ready")
    start("/mnt/other")
    assert run(["mount", "-o", "rw", str(home / "my g")]) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith(f"Try: refgenfs list -m '{home}/my g'\n")
    assert "the mount is read-only" in captured.err


def test_mount_and_doctor_refuse_a_token_that_others_can_read(
    stub: Callable[[str], None], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub("ready")
    token, config = home / "token", home / "c.toml"
    token.write_text("secret")
    token.chmod(0o644)
    config.write_text('[[source]]\nname = "a"\ntype = "refgenie"\nurl = "http://127.0.0.1:1"\ntoken_file = "token"\n')
    refused = err(capsys, "mount", "-c", str(config), str(home / "g"))
    assert refused == f"refgenfs: source.a.token_file: {token} can be read by others: chmod 600 {token}\n"
    assert refused == err(capsys, "config", "check", "-c", str(config))
    assert not (home / "g").exists()
    assert run(["doctor", "-c", str(config), str(home / "g")]) == 1
    assert f"fail  token: source.a.token_file: {token} can be read by others" in capsys.readouterr().out


def test_the_demo_keeps_off_a_strangers_folder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "work"
    folder.mkdir()
    (folder / "thesis.txt").touch()
    assert f"{folder} is in the way: it holds no demo" in err(capsys, "demo", "--workdir", str(folder))
    assert "can't be used" in err(capsys, "demo", "--workdir", str(folder / "thesis.txt"))
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_mount_refuses_what_is_no_place_for_it(start: Start, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "file").touch()
    assert "is no directory" in err(capsys, "mount", str(home / "file"))
    assert "is no directory" in err(capsys, "mount", str(home / "file" / "below"))
    assert "is a mountpoint of proc" in err(capsys, "mount", "/proc")
    start(str(home / "g"))
    assert "is mounted already" in err(capsys, "mount", str(home / "g"))


def test_umount_of_nothing_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no genomes are mounted at /genomes" in err(capsys, "umount")
    assert f"no genomes are mounted at {home}" in err(capsys, "umount", str(home))


def test_umount_names_who_is_busy(start: Start, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "g"
    folder.mkdir()
    daemon = start(str(folder))
    with subprocess.Popen(["sleep", "60"], cwd=folder) as process:
        try:
            text = err(capsys, "umount", str(folder))
        finally:
            process.kill()
    assert f"sleep (pid {process.pid})" in text
    assert "--lazy" in text
    assert "stop" not in [request["op"] for request in daemon.asked]


def test_umount_waits_until_the_daemon_has_ended(
    start: Start, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:

        def stop_soon(_: dict[str, Any]) -> list[Any]:
            threading.Timer(0.3, process.kill).start()
            return ok({})

        daemon = start(
            str(home / "g"),
            status=lambda args: ok({**STATUS, "pid": process.pid}),
            stop=stop_soon,
        )
        begun = time.monotonic()
        assert out(capsys, "umount", str(home / "g")) == f"{home}/g is unmounted\n"
        assert time.monotonic() - begun > 0.25
    assert daemon.asked[-1]["op"] == "stop"


def test_umount_says_where_the_daemon_stays(
    start: Start, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refgenfs.cli.mounting.STOP_SECONDS", 0.1)
    monkeypatch.setattr("refgenfs.cli.mounting._AFTER_FORCE_SECONDS", 0.1)
    start(str(home / "g"))
    text = err(capsys, "umount", str(home / "g"))
    assert "hasn't ended in 0.1 s" in text
    assert f"`kill {os.getpid()}`" in text


def test_the_tree_is_asked_by_a_child(tmp_path: Path) -> None:
    from refgenfs.launch import tree_answers

    assert tree_answers(Path("/proc"))
    assert not tree_answers(tmp_path)
    assert not tree_answers(tmp_path / "missing")


# -- config and doctor ----------------------------------------------------------------------------------------


def test_config_show_tells_where_values_come_from(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = home / "c.toml"
    path.write_text('[cache]\nsize = "20GB"\n[[source]]\nname = "lab"\ntype = "refgenie"\nurl = "http://u:pw@h/x"\n')
    text = out(capsys, "config", "show", "-c", str(path))
    rows = {line.split()[0]: line.split(None, 2)[1:] for line in text.splitlines()}
    assert rows["cache.size"] == ['"20GB"', f"file {path}"]
    assert rows["source.lab.url"] == ['"http://h/x"', f"file {path}"]
    assert rows["limits.connections"] == ["8", "default"]
    values = json.loads(out(capsys, "config", "show", "--json", "-c", str(path)))
    assert values["path"] == str(path)
    assert values["values"]["limits.connections"] == {"value": 8, "from": "default"}
    assert "pw" not in text + json.dumps(values)


def test_config_check(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = home / "c.toml"
    path.write_text('[cache]\nsise = 1\n[limits]\nmemory = "1B"\n')
    text = err(capsys, "config", "check", "-c", str(path))
    assert text.splitlines() == [
        f"refgenfs: {path}: cache.sise: unknown key; did you mean 'size'?",
        f"refgenfs: {path}: limits.memory: must be at least 4MiB",
    ]
    token = home / "token"
    token.write_text("secret")
    token.chmod(0o644)
    path.write_text('[[source]]\nname = "a"\ntype = "refgenie"\nurl = "http://h"\ntoken_file = "token"\n')
    assert f"chmod 600 {token}" in err(capsys, "config", "check", "-c", str(path))
    token.chmod(0o600)
    assert out(capsys, "config", "check", "-c", str(path)) == f"{path}: right\n"
    assert json.loads(out(capsys, "config", "check", "--json", "-c", str(path)))["ok"] is True


def test_doctor_finds_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from refgenfs.cli import checks
    from refgenfs.cli.check import Machine
    from refgenfs.config import Config

    conf = tmp_path / "fuse.conf"
    conf.write_text("#user_allow_other\n")
    config = Config.model_validate(
        {
            "mount": {"point": tmp_path / "g", "allow_other": True},
            "cache": {"dir": tmp_path / "c"},
            "source": [{"name": "a", "type": "refgenie", "url": "http://127.0.0.1:1", "timeout": 1}],
        }
    )
    environ = {"PATH": str(tmp_path), "REFGENFS_RUNTIME_DIR": str(tmp_path / "r")}
    machine = Machine(config, environ, 4711, tmp_path / "no-fuse", conf)
    found = {check.name: check for check in checks.run_checks(machine)}
    for name in ("device", "fusermount3", "other users", "source"):
        assert found[name].state == "fail"
        assert found[name].advice
    for name in ("libraries", "mountpoint", "cache", "daemon"):
        assert found[name].state == "ok"
    conf.write_text("user_allow_other\n")
    assert checks.check_allow_other(machine).state == "ok"


@pytest.mark.parametrize(
    ("path", "body", "state", "wanted"),
    [
        ("", b'["0a2b"]', "ok", "answers"),
        ("", b"<html>hello</html>", "fail", "no list of genomes"),
        ("", b'{"detail": 1}', "fail", "no list of genomes"),
        ("/v3", b"[]", "fail", "404"),
    ],
)
def test_doctor_asks_a_source_what_the_daemon_asks(path: str, body: bytes, state: str, wanted: str) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from refgenfs.cli import checks
    from refgenfs.cli.check import Machine
    from refgenfs.config import Config

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/v3/genomes/list" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        config = Config.model_validate({"source": [{"name": "a", "type": "refgenie", "url": url + path}]})
        (check,) = checks.check_sources(Machine(config, {}, 4711))
        server.shutdown()
    assert (check.state, wanted in check.found) == (state, True), check
    assert (check.advice == f"leave /v3 off url: {url}") == bool(path)


def test_doctor_ends_with_1_where_a_check_failed(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from refgenfs.cli.check import Check

    rows = [Check("device", "ok", "opens"), Check("cache", "fail", "full", "make room")]
    monkeypatch.setattr("refgenfs.cli.checks.run_checks", lambda machine: iter(rows))
    assert run(["doctor"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "ok    device: opens\nfail  cache: full (make room)\n"
    assert captured.err.startswith("refgenfs: 1 of 2 checks failed")
    assert run(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_doctor_without_a_configuration_tells_of_the_daemon_there_is(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """A service's: this user's defaults are another cache, and other sources."""
    source = {"name": "lab", "url": "https://lab.example.org"}
    sources: list[dict[str, Any]] = [
        {**source, "healthy": True, "error": ""},
        {**source, "healthy": False, "error": "HTTP 503"},
    ]
    routes = [("proxy", "http://cache1:3128", False), ("proxy", "direct", True), ("mirror", "https://m.org", True)]
    sources[0]["routes"] = [{"kind": kind, "url": url, "up": up, "requests": 5} for kind, url, up in routes]
    cache = {"dir": "/var/cache/x", "size": 10**9, "used": 10**8, "free": 10**10, "min_free": 0, "uncached": False}
    status = {"config": "/etc/refgenfs/lab.toml", "pid": 7, "uptime": 1.0, "state": "mounted"}
    start(status=lambda args: ok({**status, "cache": cache, "sources": sources}))
    assert run(["doctor"]) == 1
    told = capsys.readouterr().out
    assert "configuration: /etc/refgenfs/lab.toml, the daemon's" in told
    assert "ok    cache: /var/cache/x: 100 MB of 1.00 GB used; " in told
    assert "ok    source: lab: https://lab.example.org answers the daemon" in told
    assert "fail  source: lab: https://lab.example.org fails the daemon: HTTP 503 (check " in told
    assert "warn  proxy: lab: http://cache1:3128 fails the daemon (requests go on by the next one)" in told
    assert "ok    mirror: lab: https://m.org, 5 of the daemon's requests" in told
    assert "refgenomes" not in told
    assert "direct" not in told


def test_m_is_advised_only_where_it_is_needed(home: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    start("/genomes")
    asked = Path("/mine"), os.environ, os.geteuid()
    assert is_ambiguous(*asked)
    config = home / "mine.toml"
    config.write_text('[mount]\npoint = "/mine"\n')
    monkeypatch.setenv("REFGENFS_CONFIG", str(config))
    assert not is_ambiguous(*asked)  # the configuration says which
    assert is_ambiguous(Path("/genomes"), os.environ, os.geteuid())


def test_a_path_leads_to_the_daemon_of_a_service(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    daemon = start(explain=lambda args: ok({"files": [], "more": 0}))
    monkeypatch.setattr("refgenfs.paths._machine_dirs", lambda environ, uid: [Path(environ["OF_SERVICES"])])
    monkeypatch.setenv("OF_SERVICES", os.environ["REFGENFS_RUNTIME_DIR"])
    monkeypatch.setenv("REFGENFS_RUNTIME_DIR", str(tmp_path / "mine"))
    assert run(["explain", "/genomes/hg38/fasta/hg38.fa"]) == 0, capsys.readouterr().err
    assert daemon.asked[-1]["args"]["path"] == "hg38/fasta/hg38.fa"


# -- terminals ------------------------------------------------------------------------------------------------


def test_small_words() -> None:
    assert clean("a\x1b[1mb\nc\td\x00") == "a[1mb c d"
    assert shortened(DIGEST) == "2230c535…f138d4"
    assert shortened("short") == "short"
    assert amount(0, None, None) == "0 B"
    assert amount(10**9, 3 * 10**9, 10**8) == "1.00 GB of 3.00 GB  100 MB/s  20 s left"


def on_terminal(columns: int, *arguments: str) -> str:
    """Return what a command shows on a terminal of so many columns."""
    leader, follower = pty.openpty()
    environ = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color"}
    with subprocess.Popen(
        [sys.executable, "-m", "refgenfs", *arguments], stdout=follower, stderr=follower, env=environ
    ) as process:
        os.close(follower)
        pieces = []
        with contextlib.suppress(OSError):  # the end of a terminal is EIO
            while piece := os.read(leader, 65536):
                pieces.append(piece)
        os.close(leader)
        assert process.wait(30) == 0
    return b"".join(pieces).decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_gets_colour_and_lines_that_fit(
    start: Start, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    start()
    assert "\x1b[" in on_terminal(columns, "list")
    monkeypatch.setenv("NO_COLOR", "1")
    text = on_terminal(columns, "list")
    assert max(map(len, clean_lines(text))) <= columns
    assert (DIGEST in text) == (columns == 200)
    assert max(map(len, clean_lines(on_terminal(columns, "status")))) <= columns


@pytest.mark.parametrize("columns", [20, 60, 80, 200])
@pytest.mark.parametrize("length", [5, 30, 70])
def test_what_a_row_is_known_by_is_whole_and_in_one_line(
    monkeypatch: pytest.MonkeyPatch, columns: int, length: int
) -> None:
    import io

    from rich.console import Console

    from refgenfs.cli import output

    shown = io.StringIO()
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    monkeypatch.setattr(output, "console", lambda: Console(file=shown, width=columns, highlight=False, markup=False))
    table = output.Table(
        (
            output.Column("KEY", style="cyan"),
            output.Column("SIZE", right=True),
            output.Column("SEEK KEYS", fold=True),
            output.Column("DIGEST", shorten=True),
        )
    )
    keys = [f"g/{letter * length}:tag" for letter in "xy"]
    for key in keys:
        table.add(key, "2.94 GB", "one, two, three, four, five", DIGEST)
    output.write_table(table)
    lines = shown.getvalue().splitlines()
    for key in keys:
        assert [line.split()[0] for line in lines].count(key) == 1, lines
    assert shown.getvalue().count("2.94 GB") == 2
    assert all(len(line) <= columns or line.split()[0] in keys or len(line.split()) <= 2 for line in lines)


def clean_lines(text: str) -> list[str]:
    """Return lines without what only bold or dim type needs."""
    import re

    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in text.splitlines()]


def test_simple_commands_load_little(start: Start) -> None:
    start()
    code = (
        "import sys; from refgenfs.cli import run; assert run(['seek', 'hg38/fasta']) == 0; "
        "print({'pydantic', 'rich', 'trio', 'aiohttp', 'pyfuse3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "/genomes/hg38/fasta/hg38.fa\nset()\n"


# -- the status page --------------------------------------------------------------------------------------------


def test_web_prints_where_the_page_is(
    start: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def show(url: str) -> bool:
        shown.append(url)
        return len(shown) == 1

    monkeypatch.setattr("webbrowser.open", show)
    start(status=lambda args: ok({**STATUS, "web": "http://127.0.0.1:9417/"}))
    assert out(capsys, "web") == "http://127.0.0.1:9417/\n"
    assert json.loads(out(capsys, "web", "--json")) == {"web": "http://127.0.0.1:9417/"}
    assert shown == []
    assert out(capsys, "web", "--open") == "http://127.0.0.1:9417/\n"
    assert shown == ["http://127.0.0.1:9417/"]
    assert "no browser could be started" in err(capsys, "web", "--open")


def test_web_tells_how_to_get_to_a_socket(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start(status=lambda args: ok({**STATUS, "web": "/run/refgenfs/my page.sock"}))
    assert run(["web"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "/run/refgenfs/my page.sock\n"
    assert "ssh -N -L 8080:'/run/refgenfs/my page.sock'" in captured.err
    assert "browsers can't open" in err(capsys, "web", "--open")


def test_web_says_how_to_have_a_page(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start(status=lambda args: ok({**STATUS, "web": None}))
    assert 'set listen = "127.0.0.1:9417" in [web]' in err(capsys, "web")
