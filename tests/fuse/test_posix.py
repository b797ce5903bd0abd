"""Programs meet a read-only disk: what they call, what they get, and that one that is killed goes.

Everything that touches a mount is done by a child with a time limit. What the tree shows is compared with a
plain folder that has the same names and bytes; both routes to the bytes (archives and unpacked copies) are tried.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import mmap
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from refgenfs.demo.origin import running
from tests.conftest import REPOSITORY
from tests.support.faulty_origin import Fault, FaultyOrigin
from tests.support.mounted import Mounted, Setup
from tests.support.nginx import NginxProxy, Served
from tests.support.refgenieserver import RefgenieServer

pytest_plugins = ("tests.support.refgenieserver",)
pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data]

LARGE = "tinyA/bowtie2_index/tinyA.1.bt2"  # 4 MB, 33 blocks
SMALL = "tinyA/fasta/tinyA.fa.fai"
FASTA = "tinyA/fasta/tinyA.fa"


@dataclass(frozen=True)
class Ground:
    """A mount, a plain folder that has what it shows, and what stands between it and its origin."""

    route: str
    server: RefgenieServer
    plain: Path
    proxies: tuple[NginxProxy, ...]
    mounted: Mounted

    def requests(self) -> list[Served]:
        """Return what was asked for since `forget_requests`."""
        return [served for proxy in self.proxies for served in proxy.log()]

    def forget_requests(self) -> None:
        """Begin all logs anew."""
        for proxy in self.proxies:
            proxy.clear()

    def wait_until_quiet(self, seconds: float = 15) -> None:
        """Return once no request comes in any more: what is fetched unasked has been fetched."""
        deadline, seen = time.monotonic() + seconds, -1
        while (count := len(self.requests())) != seen:
            assert time.monotonic() < deadline, "the daemon does not come to rest"
            seen = count
            time.sleep(0.3)


def source(url: str, more: str = "") -> str:
    return f'[[source]]\nname = "origin"\ntype = "refgenie"\nurl = "{url}"\n{more}'


def make_plain(archives: Path, folder: Path, names: dict[str, str]) -> Path:
    """Lay out what is served as the tree has to show it, under these aliases (digest: alias)."""
    for digest, alias in names.items():
        for unpacked in sorted(path for path in (archives / digest).iterdir() if path.is_dir()):
            asset, _, tag = unpacked.name.partition("__")
            for name in (asset, f"{asset}:{tag}") if tag == "default" else (f"{asset}:{tag}",):
                target = folder / alias / name
                target.mkdir(parents=True)
                for file in unpacked.iterdir():
                    shutil.copyfile(file, target / file.name.replace(digest, alias))
    return folder


def get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def genomes_of(server: RefgenieServer) -> dict[str, Any]:
    """Return the server's whole catalog, by genome digest."""
    genomes: dict[str, Any] = get_json(f"{server.url}/_private_api/genomes/dict")
    return genomes


@pytest.fixture(scope="module")
def plain(archive_server: RefgenieServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the mounts have to show of the genomes' first aliases."""
    names = {digest: genome["aliases"][0] for digest, genome in genomes_of(archive_server).items()}
    return make_plain(archive_server.archives, tmp_path_factory.mktemp("plain"), names)


@pytest.fixture(scope="module", params=["archives", "remotes"])
def ground(request: pytest.FixtureRequest, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A mount that all tests share, by either route; nginx notes what it asks for."""
    route: str = request.param
    name = {"archives": "archive_server", "remotes": "remotes_server"}[route]
    server: RefgenieServer = request.getfixturevalue(name)
    with ExitStack() as stack:
        proxies: list[NginxProxy] = []
        rewrite: dict[str, str] = {}
        if server.static_url:
            proxies.append(stack.enter_context(NginxProxy(server.static_url)))
            rewrite = {server.static_url: proxies[0].url}
        proxies.append(stack.enter_context(NginxProxy(server.url, rewrite=rewrite)))
        setup = Setup(tmp_path_factory.mktemp(route), source(proxies[-1].url))
        mounted = stack.enter_context(setup.mount())
        yield Ground(route, server, plain, tuple(proxies), mounted)


@contextmanager
def fresh(ground: Ground, folder: Path) -> Iterator[Mounted]:
    """Mount once more, with nothing in the cache, and no request noted but this mount's."""
    ground.wait_until_quiet()
    ground.forget_requests()
    with Setup(folder, source(ground.proxies[-1].url)).mount() as mounted:
        yield mounted


def in_child(mounted: Mounted, function: Callable[..., Any], *arguments: Any, timeout: int = 60) -> Any:
    """Call a function of this file in a process of its own, which is killed if it takes too long.

    Arguments and the result are JSON values.
    """
    script = f"import json, sys\nfrom {__name__} import {function.__name__} as f\n"
    script += "print(json.dumps(f(*json.loads(sys.argv[1]))))"
    done = mounted.run(sys.executable, "-c", script, json.dumps(arguments), timeout=timeout, cwd=REPOSITORY)
    return json.loads(done.stdout)


def error_name(call: Callable[[], object]) -> str:
    """Return the name of the errno that a call fails with, or "" for none."""
    try:
        call()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return ""


# -- whole trees ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copy",
    [
        "cp -r $M/tinyA $T/tinyA",
        "cp -a $M/tinyA $T/tinyA",
        "cp --reflink=auto --sparse=auto -r $M/tinyA $T/tinyA",
        "tar -C $M -c tinyA | tar -C $T -x",
        "rsync -a $M/tinyA $T/",
        "rsync -aHX --checksum $M/tinyA $T/",
    ],
)
def test_copies_are_whole(ground: Ground, tmp_path: Path, copy: str) -> None:
    done = ground.mounted.run(
        "env", f"M={ground.mounted.path}", f"T={tmp_path}", "bash", "-euo", "pipefail", "-c", copy
    )
    assert done.stderr == ""
    same = subprocess.run(["diff", "-r", ground.plain / "tinyA", tmp_path / "tinyA"], capture_output=True, text=True)
    assert (same.returncode, same.stdout) == (0, "")
    subprocess.run(["chmod", "-R", "u+w", tmp_path / "tinyA"], check=True)


def test_rsync_finds_nothing_new_the_second_time(ground: Ground, tmp_path: Path) -> None:
    once = ground.mounted.shell(f"rsync -ai $M/tinyB {tmp_path}/")
    assert ">f" in once
    assert ground.mounted.shell(f"rsync -ai $M/tinyB {tmp_path}/") == ""
    subprocess.run(["chmod", "-R", "u+w", tmp_path / "tinyB"], check=True)


def test_find(ground: Ground) -> None:
    def find(*tests: str) -> set[str]:
        done = ground.mounted.run("find", "tinyA", "tinyB", *tests, cwd=ground.mounted.path)
        assert done.stderr == ""
        return set(done.stdout.split())

    files = {path: path.stat().st_size for path in ground.plain.rglob("*") if path.is_file()}
    names = {str(path.relative_to(ground.plain)): size for path, size in files.items()}
    folders = {str(path.relative_to(ground.plain)) for path in ground.plain.rglob("*") if path.is_dir()}
    assert find("-type", "f") == set(names)
    assert find("-type", "d") == folders
    assert find("!", "-type", "f", "!", "-type", "d") == set()
    assert find("-type", "f", "-size", "+1000k") == {name for name, size in names.items() if size > 1000 * 1024}
    assert find("-type", "f", "-size", "-100c") == {name for name, size in names.items() if size < 100}
    assert find("-type", "f", "-perm", "/222") == set()
    assert find("-type", "f", "-printf", "%p:%s\n") == {f"{name}:{size}" for name, size in names.items()}


def test_md5sum(ground: Ground) -> None:
    expected = {
        f"{hashlib.md5(path.read_bytes()).hexdigest()}  ./{path.relative_to(ground.plain / 'tinyB')}"
        for path in (ground.plain / "tinyB").rglob("*")
        if path.is_file()
    }
    assert set(ground.mounted.shell("cd $M/tinyB; find . -type f | xargs md5sum").splitlines()) == expected


def test_samtools(ground: Ground) -> None:
    for file in ("tinyA/fasta/tinyA.fa chr2:5000-7100 chrM", "tinyB/fasta_bgz/tinyB.fa.gz chrI:99-70000 chrII"):
        name, *regions = file.split()
        on_disk = subprocess.run(
            ["samtools", "faidx", ground.plain / name, *regions], capture_output=True, text=True, check=True
        )
        done = ground.mounted.run("samtools", "faidx", str(ground.mounted.path / name), *regions)
        assert (done.stdout, done.stderr) == (on_disk.stdout, "")
        assert len(done.stdout) > 2000


# -- one file ---------------------------------------------------------------------------------------------------


def read_in_many_ways(path: str, seed: int) -> dict[str, str]:
    """Read a file in every way that programs do; return the MD5 that each way gives."""
    digests: dict[str, str] = {}
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    with mmap.mmap(fd, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as shared:
        whole = bytearray(size)
        places = list(range(0, size, 70001))
        random.Random(seed).shuffle(places)
        for at in places:
            whole[at : at + 70001] = shared[at : at + 70001]
        digests["mmap shared, at random"] = hashlib.md5(whole).hexdigest()
    with mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as private:
        private[0] ^= 255  # our own copy of the page only
        assert os.pread(fd, 1, 0)[0] == private[0] ^ 255
        private[0] ^= 255
        digests["mmap private"] = hashlib.md5(private).hexdigest()
    with tempfile.TemporaryFile() as sink:
        done = 0
        while sent := os.sendfile(sink.fileno(), fd, done, 1 << 20):
            done += sent
        sink.seek(0)
        digests["sendfile"] = hashlib.md5(sink.read()).hexdigest()
    parts: list[bytes] = []
    os.lseek(fd, 0, os.SEEK_SET)
    while part := os.read(fd, 4099):
        parts.append(part)
    digests["read by 4099"] = hashlib.md5(b"".join(parts)).hexdigest()
    parts, at = [], 0
    while part := os.pread(fd, 65537, at):
        parts.append(part)
        at += len(part)
    digests["pread by 65537"] = hashlib.md5(b"".join(parts)).hexdigest()
    buffers = [bytearray(1000), bytearray(99991), bytearray(size)]
    count = os.preadv(fd, buffers, 0)
    digests["preadv"] = hashlib.md5(b"".join(buffers)[:count]).hexdigest()
    os.close(fd)
    return digests


@pytest.mark.parametrize("name", [LARGE, FASTA, SMALL])
def test_reads_of_every_kind(ground: Ground, name: str) -> None:
    expected = hashlib.md5((ground.plain / name).read_bytes()).hexdigest()
    digests = in_child(ground.mounted, read_in_many_ways, str(ground.mounted.path / name), 7)
    assert digests == dict.fromkeys(digests, expected)


def test_mmap_comes_first(ground: Ground, tmp_path: Path) -> None:
    """A cold file is mapped before anything has asked for its size."""
    with fresh(ground, tmp_path) as mounted:
        digests = in_child(mounted, read_in_many_ways, str(mounted.path / LARGE), 8)
        expected = hashlib.md5((ground.plain / LARGE).read_bytes()).hexdigest()
        assert digests == dict.fromkeys(digests, expected)


def read_at_the_edges(path: str) -> dict[str, Any]:
    """Read and seek at and beyond the end of a file."""
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    found = {
        "last": len(os.pread(fd, 100, size - 1)),
        "at the end": len(os.pread(fd, 100, size)),
        "beyond": len(os.pread(fd, 4096, size + 1)),
        "far beyond": len(os.pread(fd, 4096, 1 << 50)),
        "across": len(os.pread(fd, 1 << 22, 3)) - (size - 3),
        "before": error_name(lambda: os.pread(fd, 1, -1)),
        "end": os.lseek(fd, 0, os.SEEK_END) - size,
        "data": os.lseek(fd, 5, os.SEEK_DATA),
        "hole": os.lseek(fd, 0, os.SEEK_HOLE) - size,
        "no data": error_name(lambda: os.lseek(fd, size, os.SEEK_DATA)),
        "write": error_name(lambda: os.write(fd, b"x")),
        "mmap for writing": error_name(lambda: mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_WRITE)),
        "fsync": error_name(lambda: os.fsync(fd)),
        "flock": error_name(lambda: fcntl.flock(fd, fcntl.LOCK_SH)),
        "atime": os.fstat(fd).st_atime_ns - os.stat(path).st_mtime_ns,
    }
    os.close(fd)
    return found


@pytest.mark.parametrize("name", [FASTA, SMALL])
def test_the_edges_of_a_file(ground: Ground, name: str) -> None:
    zero = ("at the end", "beyond", "far beyond", "across", "end", "hole", "atime")
    expected: dict[str, Any] = dict.fromkeys(zero, 0)
    expected |= {"last": 1, "data": 5, "before": "EINVAL", "no data": "ENXIO", "write": "EBADF"}
    expected |= {"mmap for writing": "EACCES", "fsync": "", "flock": ""}
    assert in_child(ground.mounted, read_at_the_edges, str(ground.mounted.path / name)) == expected


@pytest.mark.parametrize(
    ("bs", "skip", "count", "flags"),
    [
        (4097, 3, 7, ""),
        (1, 131071, 5, ""),
        (131073, 1, 2, ""),
        (7 << 20, 0, 1, ""),
        (1 << 20, 1, 2, "direct"),
        (4096, 31, 3, "direct"),
        (512, 255, 9, "direct"),
        (1 << 20, 0, 99, "direct"),
        (64 << 10, 100_001, 200_003, "skip_bytes,count_bytes"),
        (64 << 10, 4_283_400, 100, "skip_bytes,count_bytes"),
    ],
)
def test_dd(ground: Ground, bs: int, skip: int, count: int, flags: str) -> None:
    command = ["dd", f"if={ground.mounted.path / LARGE}", f"bs={bs}", f"skip={skip}", f"count={count}", "status=none"]
    done = ground.mounted.run(*command, *([f"iflag={flags}"] if flags else []), text=False)
    unit = 1 if "bytes" in flags else bs
    data = (ground.plain / LARGE).read_bytes()
    assert done.stdout == data[skip * unit : (skip + count) * unit]
    assert done.stderr == b""


# -- what would write -------------------------------------------------------------------------------------------


def try_to_write(top: str, file: str) -> dict[str, str]:
    """Try all that would change something in `top`, which has `file`; return the error of each attempt."""
    path, folder = f"{top}/{file}", os.path.dirname(f"{top}/{file}")
    new = f"{folder}/new"
    attempts: dict[str, Callable[[], object]] = {
        "open for writing": lambda: os.open(path, os.O_WRONLY),
        "open for both": lambda: os.open(path, os.O_RDWR),
        "open to append": lambda: os.open(path, os.O_WRONLY | os.O_APPEND),
        "open and truncate": lambda: os.open(path, os.O_RDONLY | os.O_TRUNC),
        "create": lambda: os.open(new, os.O_RDONLY | os.O_CREAT),
        "create at the top": lambda: os.open(f"{top}/new", os.O_WRONLY | os.O_CREAT),
        "create what is there": lambda: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
        "open or create what is there": lambda: os.close(os.open(path, os.O_RDONLY | os.O_CREAT)),
        "open a temporary file": lambda: os.open(folder, os.O_TMPFILE | os.O_RDWR),
        "open a folder for writing": lambda: os.open(folder, os.O_WRONLY),
        "unlink": lambda: os.unlink(path),
        "unlink nothing": lambda: os.unlink(new),
        "rmdir": lambda: os.rmdir(folder),
        "rename": lambda: os.rename(path, new),
        "rename to the top": lambda: os.rename(path, f"{top}/new"),
        "link": lambda: os.link(path, new),
        "symlink": lambda: os.symlink("anywhere", new),
        "mkdir": lambda: os.mkdir(new),
        "mkdir at the top": lambda: os.mkdir(f"{top}/new"),
        "mkdir where one is": lambda: os.mkdir(folder),
        "mkfifo": lambda: os.mkfifo(new),
        "chmod": lambda: os.chmod(path, 0o644),
        "chmod a folder": lambda: os.chmod(folder, 0o700),
        "chown": lambda: os.chown(path, os.getuid(), os.getgid()),
        "truncate": lambda: os.truncate(path, 0),
        "utime": lambda: os.utime(path),
        "set times": lambda: os.utime(path, (1, 1)),
        "setxattr": lambda: os.setxattr(path, "user.mine", b"1"),
        "setxattr of ours": lambda: os.setxattr(path, "user.refgenfs.pinned", b"1"),
        "removexattr": lambda: os.removexattr(path, "user.refgenfs.key"),
    }
    found = {what: error_name(attempt) for what, attempt in attempts.items()}
    return found | {"may write": str(os.access(path, os.W_OK)), "folder": str(os.access(folder, os.W_OK))}


def expected_refusals() -> dict[str, str]:
    """Return what Linux answers on a read-only disk."""
    others = {
        "create what is there": "EEXIST",
        "mkdir where one is": "EEXIST",
        "open or create what is there": "",
        "open a folder for writing": "EISDIR",
        "may write": "False",
        "folder": "False",
    }
    return dict.fromkeys(try_to_write("/nowhere", "x/y"), "EROFS") | others


def test_nothing_can_be_written(ground: Ground) -> None:
    before = ground.mounted.shell("find $M | sort | md5sum")
    found = in_child(ground.mounted, try_to_write, str(ground.mounted.path), FASTA)
    assert found == expected_refusals()
    assert ground.mounted.shell("find $M | sort | md5sum") == before


@pytest.mark.needs_root
def test_a_read_only_disk_refuses_alike(ground: Ground, tmp_path: Path) -> None:
    """What is expected above is what a bind mount of plain files, made read-only, answers."""
    try:
        subprocess.run(["mount", "--bind", ground.plain, tmp_path], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", tmp_path], check=True)
        assert try_to_write(str(tmp_path), FASTA) == expected_refusals()
    finally:
        subprocess.run(["umount", tmp_path], check=False, capture_output=True)


@pytest.mark.parametrize(
    "command",
    [
        "touch $F",
        "touch $D/new",
        "rm -f $F",
        "rm -rf $D",
        "mv $F $D/new",
        "ln $F $D/new",
        "ln -s $F $D/new",
        "mkdir $D/new",
        "chmod u+w $F",
        "truncate -s 0 $F",
        "setfattr -n user.mine -v 1 $F",
        "cp $F $D/new",
        "sed -i s/a/b/ $F",
    ],
)
def test_programs_say_that_it_is_read_only(ground: Ground, command: str) -> None:
    path = ground.mounted.path / FASTA
    done = ground.mounted.run("env", f"F={path}", f"D={path.parent}", "bash", "-c", command, check=False)
    assert done.returncode
    assert "Read-only file system" in done.stderr


# -- names ------------------------------------------------------------------------------------------------------

JUNK = (
    ".Trash", ".Trash-1000", ".hidden", ".DS_Store", "._tinyA", ".directory", "autorun.inf", "desktop.ini",
    "Thumbs.db", ".git", "HEAD", "lost+found", ".xdg-volume-info", ".nfs0000001",
)  # fmt: skip


def errors_of_stat(names: list[str]) -> list[str]:
    """Return the error that stat gives for each name; names are bytes in hexadecimal."""
    return [error_name(lambda name=name: os.stat(bytes.fromhex(name))) for name in names]  # type: ignore[misc]


def stat_errors(mounted: Mounted, *names: bytes | str) -> list[str]:
    top = os.fsencode(mounted.path)
    encoded = [os.path.join(top, name if isinstance(name, bytes) else name.encode()).hex() for name in names]
    result: list[str] = in_child(mounted, errors_of_stat, encoded)
    return result


def test_junk_and_absent_names_ask_nobody(ground: Ground) -> None:
    ground.wait_until_quiet()
    ground.forget_requests()
    folders = ["", "tinyA/", "tinyA/fasta/", "tinyA/bowtie2_index:second/", "tinyB/bwa_index/"]
    names = [folder + name for folder in folders for name in (*JUNK, "nothing", "tinyA.fa.bak", "hg38")]
    assert stat_errors(ground.mounted, *names) == ["ENOENT"] * len(names)
    assert ground.requests() == []


def test_long_and_strange_names(ground: Ground) -> None:
    absent: list[bytes | str] = [
        "x" * 255, "tinyA/" + "x" * 255, "tinyA/fasta/" + "x" * 255, "tinyA/fasta/" + "é" * 127,
        b"tinyA/fasta/\xff\xfe", b"\x80", "tinyA/fasta/a\nb", "tinyA/fasta/ ", "tinyA/fasta/*",
        "tinyA/:default", "tinyA/fasta:", "tinyA/fasta:nothing", "tinyA/fasta:default:default", "tinyA/fasta.fai",
        "tinyA/fasta:default/default", "tinyA/fasta/default/default", "tinyA/fasta/nothing", "tinyA:", ":",
        "tinyA/bwa_index/second",
    ]  # fmt: skip
    assert stat_errors(ground.mounted, *absent) == ["ENOENT"] * len(absent)
    too_long = ["x" * 256, "tinyA/" + "x" * 256, "tinyA/fasta/" + "é" * 128]
    assert stat_errors(ground.mounted, *too_long) == ["ENAMETOOLONG"] * len(too_long)
    inside = [f"{FASTA}/x", f"{FASTA}/", f"{FASTA}/.", f"{FASTA}/.hidden"]
    assert stat_errors(ground.mounted, *inside) == ["ENOTDIR"] * len(inside)
    there = ["tinyA/../tinyB/fasta", "tinyA/fasta/.", "tinyA//fasta/", FASTA, "tinyA/fasta/default/../../bwa_index"]
    assert stat_errors(ground.mounted, *there) == [""] * len(there)


def test_junk_is_answered_while_the_origin_is_silent(stalling: Stalling, tmp_path: Path) -> None:
    """With no listing known, and none to be had, what only desktops look for needs none."""
    origin = FaultyOrigin(stalling.root)
    origin.faults = [Fault("silent", "*/dir_contents/*", times=None)]
    with running(origin), Setup(tmp_path, source(origin.url), limits={"lookup_deadline": "2s"}).mount() as mounted:
        names = [f"tinyA/fasta/{name}" for name in JUNK]
        assert stat_errors(mounted, *names) == ["ENOENT"] * len(names)  # who waited would have ETIMEDOUT
        assert stat_errors(mounted, FASTA) == ["ETIMEDOUT"]


def open_wrongly(file: str, folder: str) -> dict[str, str]:
    """Take a file for a folder, and the other way round."""
    return {
        "listdir": error_name(lambda: os.listdir(file)),
        "O_DIRECTORY": error_name(lambda: os.open(file, os.O_RDONLY | os.O_DIRECTORY)),
        "chdir": error_name(lambda: os.chdir(file)),
        "read a folder": error_name(lambda: os.read(os.open(folder, os.O_RDONLY), 10)),
        "readlink": error_name(lambda: os.readlink(file)),
        "readlink of a folder": error_name(lambda: os.readlink(folder)),
    }


def test_files_and_folders_are_told_apart(ground: Ground) -> None:
    path = ground.mounted.path / FASTA
    found = in_child(ground.mounted, open_wrongly, str(path), str(path.parent))
    expected = {"listdir": "ENOTDIR", "O_DIRECTORY": "ENOTDIR", "chdir": "ENOTDIR", "read a folder": "EISDIR"}
    assert found == expected | {"readlink": "EINVAL", "readlink of a folder": "EINVAL"}
    for command in ("ls", "cat"):
        done = ground.mounted.run(command, f"{path}/", check=False)
        assert done.returncode
        assert "Not a directory" in done.stderr


# -- attributes -------------------------------------------------------------------------------------------------


def attributes_of(top: str, files: list[str], folders: list[str]) -> dict[str, list[list[int]]]:
    def rows(names: list[str]) -> list[list[int]]:
        stats = [os.lstat(f"{top}/{name}") for name in names]
        return [[s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_size, s.st_blocks] for s in stats]

    return {"files": rows(files), "folders": rows(folders)}


def test_modes_owners_links_and_sizes(ground: Ground) -> None:
    files, folders = [LARGE, FASTA, SMALL], ["", "tinyA", "tinyA/fasta", "tinyA/fasta:default"]
    found = in_child(ground.mounted, attributes_of, str(ground.mounted.path), files, folders)
    uid, gid = os.getuid(), os.getgid()
    sizes = [(ground.plain / name).stat().st_size for name in files]
    # One link each, whatever the number of names: tar and rsync keep no table of them, and store each in full.
    assert found["files"] == [[stat.S_IFREG | 0o444, 1, uid, gid, size, -(-size // 512)] for size in sizes]
    # Of folders, one link says that the number of subfolders is not told (as on btrfs): find looks into all.
    assert [row[:4] for row in found["folders"]] == [[stat.S_IFDIR | 0o555, 1, uid, gid]] * len(folders)
    assert "\nh" not in ground.mounted.shell("tar -C $M -c tinyA | tar -tv")


def accesses(path: str) -> list[bool]:
    return [os.access(path, mode) for mode in (os.F_OK, os.R_OK, os.W_OK, os.X_OK)]


def test_access(ground: Ground) -> None:
    top = str(ground.mounted.path)
    assert in_child(ground.mounted, accesses, f"{top}/{FASTA}") == [True, True, False, False]
    assert in_child(ground.mounted, accesses, f"{top}/tinyA/fasta") == [True, True, False, True]
    assert in_child(ground.mounted, accesses, f"{top}/tinyA/nothing") == [False] * 4


def test_df(ground: Ground) -> None:
    name, size, available = ground.mounted.shell("df -B1 --output=source,size,avail $M | tail -1").split()
    assert (name, available) == ("refgenfs", "0")
    assert 0.99e9 < int(size) <= 1e9  # the cache's quota
    done = ground.mounted.run("stat", "-f", "-c", "%l %S", str(ground.mounted.path))
    assert done.stdout == "255 4096\n"
    used = int(ground.mounted.shell("df -B1 --output=used $M | tail -1"))
    assert abs(used - ground.mounted.status()["cache"]["used"]) <= 4096


def xattrs_of(path: str) -> dict[str, str]:
    return {name: os.getxattr(path, name).decode() for name in os.listxattr(path)}


def test_xattrs(ground: Ground) -> None:
    mounted, path = ground.mounted, str(ground.mounted.path / "tinyB/fasta/tinyB.fa")
    digest, genome = next(
        (digest, genome) for digest, genome in genomes_of(ground.server).items() if "tinyB" in genome["aliases"]
    )
    asset_digest = genome["assets"]["fasta"]["tags"]["default"]["asset_digest"]
    mounted.refgenfs("pull", "tinyB/fasta")
    expected = {"key": "tinyB/fasta:default", "digest": asset_digest, "pinned": "0", "resident": "100"}
    expected["origin"] = {"archives": "archive", "remotes": "range"}[ground.route]
    named = {f"user.refgenfs.{name}": value for name, value in expected.items()}
    assert in_child(mounted, xattrs_of, path) == named
    others = [f"{digest}/fasta/{digest}.fa", "tinyB/fasta:default/tinyB.fa"]
    if ground.route == "archives":  # an archive of an index has a link; unpacked, the host has a file of its own
        others.append("tinyB/bwa_index/tinyB.fa")
    for other in others:
        assert in_child(mounted, xattrs_of, str(mounted.path / other)) == named
    listed = mounted.run("getfattr", "-d", "--absolute-names", path).stdout.splitlines()
    assert set(listed[1:]) - {""} == {f'{name}="{value}"' for name, value in named.items()}
    mounted.refgenfs("pin", "tinyB/fasta")
    assert in_child(mounted, xattrs_of, path)["user.refgenfs.pinned"] == "1"
    mounted.refgenfs("unpin", "tinyB/fasta")
    mounted.refgenfs("evict", "tinyB/fasta")
    left = in_child(mounted, xattrs_of, path)
    assert (left["user.refgenfs.pinned"], left["user.refgenfs.resident"]) == ("0", "0")
    folder = in_child(mounted, xattrs_of, str(mounted.path / "tinyB/fasta"))
    assert folder == {name: named[name] for name in ("user.refgenfs.key", "user.refgenfs.digest")}


def errors_of_xattrs(path: str) -> list[str]:
    ours = ("user.nothing", "user.refgenfs.nothing", "user.refgenfs.é")
    names = (*ours, "security.selinux", "system.posix_acl_access")
    return [error_name(lambda name=name: os.getxattr(path, name)) for name in names]  # type: ignore[misc]


def test_absent_xattrs(ground: Ground) -> None:
    found = in_child(ground.mounted, errors_of_xattrs, str(ground.mounted.path / FASTA))
    assert found[:4] == ["ENODATA"] * 4
    assert found[4] in ("ENODATA", "EOPNOTSUPP")
    done = ground.mounted.run("ls", "-lZ", str(ground.mounted.path / FASTA))  # asks for both kinds of the last two
    assert done.stderr == ""
    assert done.stdout.startswith("-r--r--r-- ")


# -- a large folder ---------------------------------------------------------------------------------------------

MANY = 1200


def make_large_root(root: Path) -> Path:
    """Make an origin's folder with one asset of very many files."""
    digest = "ab" * 24
    names = [f"{digest}.{i:05}.txt" for i in range(MANY)]
    (root / digest).mkdir(parents=True)
    archive = root / digest / "many__default.tgz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for i, name in enumerate(names):
            member = tarfile.TarInfo(f"default/{name}")
            member.size = i % 50
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    tag = {
        "asset_path": "many",
        "asset_digest": hashlib.md5(b"many").hexdigest(),
        "archive_digest": hashlib.md5(archive.read_bytes()).hexdigest(),
        "asset_size": "70 KB",
        "archive_size": "60 KB",
        "seek_keys": {"many": "."},
        "asset_parents": [],
        "asset_children": [],
    }
    asset = {"asset_description": "", "default_tag": "default", "tags": {"default": tag}}
    genome = {"genome_description": "", "aliases": ["g"], "assets": {"many": asset}}
    (root / "genomes.json").write_text(json.dumps({digest: genome}))
    (root / digest / "asset_dir_contents_many__default.json").write_text(json.dumps(names))
    return root


def list_twice(path: str) -> list[int]:
    """List a folder in two ways at once, entries taken in turn."""
    with os.scandir(path) as first, os.scandir(path) as second:
        names = [(a.name, b.name, a.is_file()) for a, b in zip(first, second, strict=True)]
    assert all(a == b and is_file for a, b, is_file in names)
    return [len(names), len({a for a, _, _ in names})]


def test_a_folder_with_many_files(tmp_path: Path) -> None:
    origin = FaultyOrigin(make_large_root(tmp_path / "root"))
    with running(origin), Setup(tmp_path, source(origin.url)).mount() as mounted:
        assert in_child(mounted, list_twice, str(mounted.path / "g/many")) == [MANY, MANY]
        assert origin.stats().matching("*/archive/*").requests == 0  # names need no archive
        lines = mounted.shell("ls -l $M/g/many").splitlines()[1:]
        rows = {line.split()[-1]: int(line.split()[4]) for line in lines}
        assert rows == {f"g.{i:05}.txt": i % 50 for i in range(MANY)}
        assert mounted.shell("cat $M/g/many/* | wc -c").split() == [str(sum(i % 50 for i in range(MANY)))]
        assert origin.stats().matching("*/archive/*/many").requests == 1


# -- many at once -----------------------------------------------------------------------------------------------


def read_in_threads(paths: list[str], threads: int) -> list[list[Any]]:
    """Have all threads stat and read the same files at once, each in an order of its own."""
    barrier = threading.Barrier(threads)
    found: list[dict[str, tuple[int, int, str]]] = [{} for _ in range(threads)]

    def work(number: int) -> None:
        dice = random.Random(number)
        barrier.wait()
        for path in dice.sample(paths, len(paths)):
            info = os.stat(path)
            with open(path, "rb", buffering=0) as file:
                data = bytearray(info.st_size)
                places = list(range(0, info.st_size, 300_007))
                for at in dice.sample(places, len(places)):
                    data[at : at + 300_007] = os.pread(file.fileno(), min(300_007, info.st_size - at), at)
            found[number][path] = info.st_ino, info.st_size, hashlib.md5(data).hexdigest()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(one == found[0] for one in found)
    return [[path, *facts] for path, facts in sorted(found[0].items())]


def test_200_threads_on_cold_files(ground: Ground, tmp_path: Path) -> None:
    names = [LARGE, "tinyA/bowtie2_index/tinyA.2.bt2", "tinyA/bowtie2_index/tinyA.3.bt2"]
    with fresh(ground, tmp_path) as mounted:
        found = in_child(mounted, read_in_threads, [str(mounted.path / name) for name in names], 200)
        facts = {path: (size, digest) for path, _, size, digest in found}
        data = {str(mounted.path / name): (ground.plain / name).read_bytes() for name in names}
        assert facts == {path: (len(data), hashlib.md5(data).hexdigest()) for path, data in data.items()}
        assert len({inode for _, inode, *_ in found}) == len(names)
        archive = "/archive/" if ground.route == "archives" else ".bt2"
        besides = (".seekidx", ".rev.", ".4.bt2")  # what comes unasked: an index, siblings
        asked = [served for served in ground.requests() if not any(part in served.path for part in besides)]
        sent = sum(served.bytes for served in asked if archive in served.path)
    if ground.route == "archives":
        digest = next(d for d, g in genomes_of(ground.server).items() if "tinyA" in g["aliases"])
        once = (ground.server.archives / digest / "bowtie2_index__default.tgz").stat().st_size
    else:
        once = sum(map(len, data.values()))
    assert sent == once  # however many want it


# -- eviction below an open file --------------------------------------------------------------------------------


@contextmanager
def stopping(*processes: subprocess.Popen[Any]) -> Iterator[None]:
    """Let no process outlive the block."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def read_when_told(path: str) -> str:
    """Open and map a file, read its beginning, say so, wait for a line, and read it all again."""
    fd = os.open(path, os.O_RDONLY)
    mapped = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
    size = os.fstat(fd).st_size
    os.pread(fd, 200_000, 0)
    print("open", flush=True)
    sys.stdin.readline()
    mapped.madvise(mmap.MADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    first = hashlib.md5(os.pread(fd, size, 0)).hexdigest()
    assert hashlib.md5(mapped).hexdigest() == first
    return first


def test_a_file_is_evicted_while_it_is_open(ground: Ground) -> None:
    mounted, path = ground.mounted, str(ground.mounted.path / LARGE)
    mounted.run("cat", path, text=False)
    script = f"from {__name__} import read_when_told as f\nprint(f({path!r}))"
    reader = subprocess.Popen(
        ["timeout", "-s", "KILL", "60", sys.executable, "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    with stopping(reader):
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        before = mounted.status()
        mounted.refgenfs("evict", "tinyA/bowtie2_index")
        freed = before["cache"]["used"] - mounted.status()["cache"]["used"]
        assert freed >= 4_000_000
        said = reader.communicate("go\n", timeout=60)[0]
    assert said.strip() == hashlib.md5((ground.plain / LARGE).read_bytes()).hexdigest()
    assert mounted.status()["fetched"] > before["fetched"]  # it was gone indeed


ENOUGH = 10


def read_for(path: str, other: str, seconds: float) -> int:
    """Compare pieces at random places of two files, past the page cache, and return how many were compared.

    For so long, and until there were a few: a busy machine may need longer for them.
    """
    dice, count, end = random.Random(os.getpid()), 0, time.monotonic() + seconds
    fd, plain = os.open(path, os.O_RDONLY), os.open(other, os.O_RDONLY)
    size = os.fstat(plain).st_size
    while time.monotonic() < end or count <= ENOUGH:
        at, length = dice.randrange(size), dice.randrange(1, 500_000)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, length, at) == os.pread(plain, length, at), (at, length)
        count += 1
    return count


def test_evictions_in_the_midst_of_reads(ground: Ground) -> None:
    mounted = ground.mounted
    call = f"read_for({str(mounted.path / LARGE)!r}, {str(ground.plain / LARGE)!r}, 1.5)"
    script = f"from {__name__} import read_for\nprint({call})"
    command = ["timeout", "-s", "KILL", "60", sys.executable, "-c", script]
    readers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
        for _ in range(3)
    ]
    evictions = 0
    with stopping(*readers):
        while any(reader.poll() is None for reader in readers):
            evictions += mounted.call("evict", keys=["tinyA/bowtie2_index"])["keys"][0]["bytes"] > 0
            time.sleep(0.05)
        results = [(reader.returncode, *reader.communicate()) for reader in readers]
    assert all(code == 0 and int(out) > ENOUGH for code, out, _ in results), results
    assert evictions > 3
    assert in_child(mounted, xattrs_of, str(mounted.path / LARGE))["user.refgenfs.key"]  # the mount lives on


# -- who is killed goes -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stalling:
    """An origin's folder with the real genomes, and a file that lies across the 300,000th byte of its archive."""

    root: Path
    genome: str  # tinyA's digest
    large: str  # the file's path in the tree


def make_stalling(server: RefgenieServer, folder: Path) -> Stalling:
    """Copy what a real server serves for an origin that can go wrong."""
    genomes = genomes_of(server)
    for digest in genomes:
        shutil.copytree(server.archives / digest, folder / digest)
    (folder / "genomes.json").write_text(json.dumps(genomes))
    genome = next(digest for digest, facts in genomes.items() if "tinyA" in facts["aliases"])
    with tarfile.open(folder / genome / "bowtie2_index__default.tgz") as tar:
        # In the order of the builder's folder: two of 4 MB, which are half of the archive each, and small ones.
        name = next(member.name for member in tar if member.size > 1_000_000)
    return Stalling(folder, genome, f"tinyA/bowtie2_index/{Path(name).name.replace(genome, 'tinyA')}")


@pytest.fixture(scope="module")
def stalling(archive_server: RefgenieServer, tmp_path_factory: pytest.TempPathFactory) -> Stalling:
    return make_stalling(archive_server, tmp_path_factory.mktemp("stalling"))


@contextmanager
def stalled_mount(stalling: Stalling, folder: Path, *, remotes: bool) -> Iterator[Mounted]:
    """Mount an origin that says nothing of tinyA's bwa_index and sizes of fasta, and stalls in its bowtie2_index."""
    origin = FaultyOrigin(stalling.root, remotes=remotes)
    silent = [
        Fault("silent", f"*/dir_contents/{stalling.genome}/bwa_index", times=None),
        Fault("silent", f"*/{stalling.genome}/fasta__default/*", times=None),
        Fault("silent", f"*/archive/{stalling.genome}/fasta", times=None),
    ]
    with running(origin):
        origin.faults = silent
        # The host's requests that stall are given up after this; others get their turn then.
        with Setup(folder, source(origin.url, 'timeout = "6s"\n')).mount() as mounted:
            # Answers that are whole before they stall would leave their connection unfit for the next request. So
            # sizes are asked for first, and each range stalls within its first block.
            mounted.run("ls", str(mounted.path / "tinyA/bowtie2_index"))
            place, after = f"*/archive/{stalling.genome}/bowtie2_index", 300_000
            if remotes:
                mounted.run("ls", "-l", str(mounted.path / "tinyA/bowtie2_index"))
                place, after = f"*/{stalling.genome}/bowtie2_index__default/*", 50_000
            origin.faults = [*silent, Fault("stall", place, times=None, after=after)]
            yield mounted


WAITS = {
    "list": "ls $M/tinyA/bwa_index",
    "look up": "stat $M/tinyA/bwa_index/tinyA.fa.sa",
    "stat": f"stat $M/{FASTA}",
    "read": "cat $M/$LARGE",
    "read directly": "dd if=$M/$LARGE of=/dev/null bs=1M iflag=direct",
    "mmap": f"samtools faidx $M/{FASTA} chr1",
}


@pytest.mark.parametrize(
    ("remotes", "number"), [(False, signal.SIGKILL), (True, signal.SIGKILL), (True, signal.SIGINT)]
)
def test_who_is_killed_while_it_waits_goes(
    stalling: Stalling, tmp_path: Path, remotes: bool, number: signal.Signals
) -> None:
    with stalled_mount(stalling, tmp_path, remotes=remotes) as mounted:
        waiting = {
            what: subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                env={**os.environ, "M": str(mounted.path), "LARGE": stalling.large},
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for what, command in WAITS.items()
        }  # fmt: skip
        with stopping(*waiting.values()):
            time.sleep(1.2)
            assert [what for what, process in waiting.items() if process.poll() is not None] == []
            for process in waiting.values():
                process.send_signal(number)
            deadline = time.monotonic() + 15  # a tenth of what they would wait for otherwise
            while (left := [what for what, p in waiting.items() if p.poll() is None]) and time.monotonic() < deadline:
                time.sleep(0.02)
            if left:
                mounted.kill()  # who is deaf would be waited for below
            assert left == [], "these are deaf"
        assert mounted.run("ls", str(mounted.path / "tinyB/fasta")).stdout.split()[0] == "tinyB.chrom.sizes"
        assert len(mounted.run("cat", str(mounted.path / "tinyB/fasta/tinyB.fa"), text=False).stdout) > 100_000
        assert mounted.stop() == 0
