"""`refgenfs index`: the files that it writes, what it says, and how it fails."""

from __future__ import annotations

import json
import os
import pty
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from refgenfs.cli import run
from tests.support.seekindexes import build_index, inflate, parse_index, sample_tar
from tests.support.tars import parse

TAR = sample_tar()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive on disk, as an administrator has it."""
    path = tmp_path / "fasta__default.tgz"
    path.write_bytes(subprocess.run(["gzip", "-6", "-n"], input=TAR, capture_output=True, check=True).stdout)
    return path


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "refgenfs", "index", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)


def test_the_index_lies_beside_its_archive(archive: Path, tmp_path: Path) -> None:
    done = command("--spacing", "128KiB", "--json", archive)
    assert (done.returncode, done.stderr) == (0, "")
    target = archive.with_name("fasta__default.tgz.seekidx")
    file = target.read_bytes()
    index = parse_index(file)
    assert json.loads(done.stdout)["archives"] == [
        {
            "archive": str(archive),
            "archive_size": archive.stat().st_size,
            "unpacked_size": len(TAR),
            "members": 6,
            "index": str(target),
            "index_size": len(file),
            "spans": len(index),
            "spacing": 131_072,
        }
    ]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()  # whoever serves the archive can read it
    assert list(index.members) == parse(TAR).members
    data = archive.read_bytes()
    assert b"".join(inflate(file, data, number) for number in range(len(index))) == TAR
    (tmp_path / "again").mkdir()
    assert file == build_index([data], tmp_path / "again", 131_072)[0]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_line_for_each_archive(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = archive.with_name("other.tgz")
    other.write_bytes(archive.read_bytes())
    assert run(["index", str(archive), str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["INDEX", "MEMBERS", "SPANS", "SIZE", "OF", "THE", "ARCHIVE"]
    assert [line.split()[0] for line in lines[1:]] == [f"{archive}.seekidx", f"{other}.seekidx"]


def test_an_index_is_replaced(archive: Path) -> None:
    target = archive.with_name("elsewhere")
    for spacing in ("128KiB", "1MiB"):
        assert run(["index", str(archive), "--output", str(target), "--spacing", spacing]) == 0
    assert len(parse_index(target.read_bytes())) == 2
    assert sorted(path.name for path in archive.parent.iterdir()) == ["elsewhere", archive.name]


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("missing", "No such file or directory"),
        ("folder", "this is no file"),
        ("text", "this is no gzip file; pack it with `tar -czf`"),
        ("empty", "it is cut short"),
        ("cut", "it is cut short: its gzip data has no end; fetch or pack it again"),
        ("damaged", "the archive's gzip data is damaged"),
        ("no tar", "the archive is damaged: no checksum in the tar header"),
        ("half a tar", "it is cut short, or no tar"),
        ("fifo", "this is no file"),
    ],
)
def test_what_is_no_archive(what: str, wanted: str, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = archive.with_name("x.tgz")
    good = archive.read_bytes()
    archive.unlink()
    match what:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "no tar" | "half a tar":
            content = b"ACGT" * 1000 if what == "no tar" else TAR[:-12_000]
            path.write_bytes(subprocess.run(["gzip"], input=content, capture_output=True, check=True).stdout)
        case "missing":
            pass
        case _:
            path.write_bytes({"text": b">chr1", "empty": b"", "cut": good[:-9]}.get(what, good[:-8] + b"x" * 8))
    assert run(["index", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"refgenfs: {path}: {wanted}")
    assert captured.err.count("\n") == 1
    assert [item.name for item in path.parent.iterdir()] == ([] if what == "missing" else ["x.tgz"])


def test_one_that_fails_does_not_stop_the_others(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "--json", "/nowhere.tgz", str(archive)]) == 1
    captured = capsys.readouterr()
    assert captured.err == "refgenfs: /nowhere.tgz: No such file or directory\n"
    assert [item["archive"] for item in json.loads(captured.out)["archives"]] == [str(archive)]


def test_what_is_no_index_is_not_replaced(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = archive.read_bytes()
    for arguments in (["--output", str(archive)], ["--output", str(archive.parent)]):
        assert run(["index", str(archive), *arguments]) == 1
        assert "is there, and is no seek index: remove it, or choose --output" in capsys.readouterr().err
    assert archive.read_bytes() == good


def test_a_folder_that_can_not_be_written_to(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", str(archive), "--output", "/proc/index"]) == 1
    assert capsys.readouterr().err.startswith(f"refgenfs: {archive}: ")


def test_a_full_disk_leaves_nothing(archive: Path, tmp_path: Path) -> None:
    old = archive.with_name(archive.name + ".seekidx")
    assert command("--spacing", "1MiB", archive).returncode == 0
    before = old.read_bytes()
    line = [sys.executable, "-m", "refgenfs", "index", "--spacing", "128KiB", str(archive)]
    done = subprocess.run(
        line,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"refgenfs: {archive}: ")
    assert done.stderr.count("\n") == 1
    assert old.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name, old.name]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["a", "b", "--output", "c"], "--output is for one archive"),
        (["a", "--spacing", "12"], "it has to be from 128KiB to 16MiB"),
        (["a", "--spacing", "2M"], "'2M' can be read two ways"),
        ([], "missing argument"),
    ],
)
def test_wrong_command_lines(arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", *arguments]) == 2
    assert wanted in capsys.readouterr().err


def test_a_bar_on_a_terminal(archive: Path) -> None:
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "refgenfs", "index", str(archive)]
    shown = b""
    with subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=theirs, env=os.environ | {"TERM": "xterm"}
    ) as child:
        os.close(theirs)
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:
                break  # the other side is closed
            if not piece:
                break
            shown += piece
        assert child.wait(timeout=30) == 0
    os.close(ours)
    assert archive.name.encode() in shown
