"""Users who take whatever they can: names, open files, waits. Others go on, and the daemon stays what it was.

Promises:
- names that there are not cost no memory, no request of the origin, and nothing on the disk;
- names that resolve without end (slices, parts of MD5s) cost what a number of the newest cost;
- one user's open files are bounded, and so are the daemon's descriptors, with one line in the log;
- one user's waiting reads leave the daemon free for others, and nothing of them stays when their process was killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from refgenfs.fuse.unlisted import KEPT
from tests.fuse.test_access import ANN, EVE
from tests.support.htsmake import REFERENCES, make_samples
from tests.support.mounted import Mounted, Setup
from tests.support.plain_files import PlainFiles, plain_files

pytestmark = [
    pytest.mark.needs_fuse,
    pytest.mark.needs_root,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx"),
]

MIB = 1 << 20
BLOCK = 64 * 1024
LIMIT = 64  # files that one user may have open here
FLOOD = 2500  # reads that wait


# Become another user, whom this Python need not be open to, and go on.
BECOME = """
import errno, os, resource, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
os.setgroups([])
os.setgid(60000)
os.setuid(int(sys.argv[1]))
"""
# Look up names, from a folder; the errors that there were.
LOOK = (
    BECOME
    + """
seen = set()
for name in sys.stdin.read().splitlines():
    try:
        os.stat(name)
        seen.add("there")
    except OSError as exc:
        seen.add(errno.errorcode[exc.errno])
print(*sorted(seen))
"""
)
# Open a file as often as it goes, up to a number; how often it went, and what ended it.
OPEN = (
    BECOME
    + """
held, end = [], ""
try:
    for _ in range(int(sys.argv[3])):
        held.append(os.open(sys.argv[2], os.O_RDONLY))
except OSError as exc:
    end = errno.errorcode[exc.errno]
print(len(held), end, flush=True)
sys.stdin.readline()
"""
)
# Have threads that each wait for a block; whatever became of them is told at the next line.
WAIT = (
    BECOME
    + """
threading.stack_size(65536)
fd = os.open(sys.argv[2], os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
refused = []
def read(number):
    try:
        os.pread(fd, 10, number * 65536)
    except OSError as exc:
        refused.append(exc.errno)
for number in range(int(sys.argv[3])):
    threading.Thread(target=read, args=(number,), daemon=True).start()
print("started", flush=True)
sys.stdin.readline()
print(len(refused), *{errno.errorcode[one] for one in refused}, flush=True)
sys.stdin.readline()
"""
)


class Site:
    """A mount for all of files of a slow web server, and of a folder."""

    def __init__(self, mounted: Mounted, origin: PlainFiles, bam: str) -> None:
        self.mounted = mounted
        self.origin = origin
        self.bam = bam

    def python(self, code: str, uid: int, *arguments: object) -> subprocess.Popen[str]:
        """Run a program as a user, in the mount's top folder."""
        command = ["timeout", "-s", "KILL", "120", sys.executable, "-c", code, str(uid), *map(str, arguments)]
        return subprocess.Popen(
            command,
            cwd=self.mounted.path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def look(self, names: list[str], uid: int = EVE) -> str:
        """Look names up as a user; return what came of it."""
        return self.python(LOOK, uid).communicate("\n".join(names), timeout=130)[0].strip()

    def nodes(self) -> int:
        """Return how many inodes the daemon has."""
        return os.statvfs(self.mounted.path).f_files

    def fds(self) -> int:
        """Return how many descriptors the daemon has open."""
        return len(os.listdir(f"/proc/{self.mounted.process.pid}/fd"))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="rgfs-greedy-"))
    folder.chmod(0o755)
    try:
        files = folder / "origin"
        (files / "made").mkdir(parents=True)
        bam = make_samples(files / "made", "bai")["bai"].path.name
        with (files / "large.bin").open("wb") as file:
            file.truncate((FLOOD + 10) * BLOCK)
        (files / "small.txt").write_text("small")
        with plain_files(files) as origin:
            sources = origin.source(
                {
                    "hg38/bam": [f"made/{bam}", f"made/{bam}.bai"],
                    "hg38/large": ["large.bin"],
                    "hg38/small": ["small.txt"],
                },
                revalidate="1h",
            )
            sources += f'[[source]]\nname = "near"\ntype = "local"\npath = "{files}"\n'
            sources += '[[source.asset]]\nkey = "hg38/near"\nfiles = ["small.txt", "large.bin"]\n'
            limits = {"open_files": str(LIMIT), "read_deadline": "20s", "retry_for": "10s"}
            with Setup(folder, sources, extra="allow_other = true", limits=limits).mount() as mounted:
                yield Site(mounted, origin, bam)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_names_that_there_are_not_cost_nothing(site: Site) -> None:
    places = ["{}", "hg38/{}", "hg38/{}/x", "hg38/small/{}", "hg38/bam/regions/{}", ".refget/{}", ".refget/ab/{}",
              "hg38/small:{}", "hg38/small/small.txt.{}", "hg38/bam/regions/header/{}", "{0}{0}{0}{0}"]  # fmt: skip
    site.look([place.format(f"{number:012x}") for number in range(20) for place in places])  # what can be known is
    site.mounted.run("cat", f"{site.mounted.path}/hg38/small/small.txt")
    before = (len(site.origin.log()), site.nodes(), site.mounted.memory("VmRSS"), disk_of(site.mounted.cache))
    assert site.look([place.format(f"{number:012x}") for number in range(100, 2100) for place in places]) == "ENOENT"
    assert len(site.origin.log()) == before[0], "an origin was asked for names that there are not"
    assert site.nodes() - before[1] < 10
    assert site.mounted.memory("VmRSS") - before[2] < 8 * MIB
    assert disk_of(site.mounted.cache) == before[3]


def disk_of(cache: Path) -> set[str]:
    """Return the contents that a cache has."""
    return {path.name for path in (cache / "contents").iterdir()} - {"journal"}


def test_names_without_end_are_forgotten(site: Site) -> None:
    reference, length = REFERENCES[0]
    names = [f"hg38/bam/regions/{reference}:{1 + number % (length - 9)}-{length - number // (length - 9)}"
             for number in range(KEPT + 5000)]  # fmt: skip
    before = site.nodes()
    assert site.look(names) == "there"
    deadline = time.monotonic() + 60
    while site.nodes() - before > KEPT + 100:
        assert time.monotonic() < deadline, f"{site.nodes()} inodes"
        time.sleep(0.2)
    assert site.mounted.memory("VmRSS") < 150 * MIB
    assert site.look(names[:50] + names[-50:]) == "there"


def test_one_user_s_open_files_are_bounded(site: Site) -> None:
    before, log = site.fds(), len(site.mounted.log_text().splitlines())
    greedy = [site.python(OPEN, EVE, path, 1000) for path in ("hg38/near/large.bin", "hg38/small/small.txt")]
    try:
        told = [one.stdout.readline().split() for one in greedy if one.stdout]
        assert sum(int(count) for count, _ in told) == LIMIT
        assert {end for _, end in told} == {"EMFILE"}
        assert site.fds() - before <= 8, "one descriptor a file, however many have it open"
        other = site.python(OPEN, ANN, "hg38/near/large.bin", 10)
        assert other.communicate("", timeout=60)[0].split() == ["10"]
        root = site.python(OPEN, 0, "hg38/near/large.bin", 5000)
        assert root.communicate("", timeout=60)[0].split() == ["5000"]
        lines = site.mounted.log_text().splitlines()[log:]
        assert len([line for line in lines if "limits.open_files" in line]) == 1
    finally:
        for one in greedy:
            one.communicate("", timeout=60)
    again = site.python(OPEN, EVE, "hg38/small/small.txt", LIMIT)
    assert again.communicate("", timeout=60)[0].split() == [str(LIMIT)]


def test_one_user_s_waiting_reads_hold_nobody_up(site: Site) -> None:
    mounted = site.mounted
    assert site.look(["hg38/large/large.bin", "hg38/small/small.txt"]) == "there"
    site.origin.stop()  # and whoever reads waits until the daemon gives up
    with site.python(WAIT, EVE, "hg38/large/large.bin", FLOOD) as flood:
        try:
            flooded(site, flood)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(flood.pid, signal.SIGKILL)
            site.origin.start()
    # Who opened a file need not be who reads it, so their end is no sign; what waits ends by its deadline.
    deadline = time.monotonic() + 60
    while waiting(site):
        assert time.monotonic() < deadline, "a killed process's reads wait still"
        time.sleep(0.2)
    assert mounted.run("cat", f"{mounted.path}/hg38/small/small.txt").stdout == "small"


def flooded(site: Site, flood: subprocess.Popen[str]) -> None:
    """See others served while one user's reads wait, all that may."""
    assert flood.stdout is not None
    assert flood.stdout.readline() == "started\n"
    deadline = time.monotonic() + 40
    while waiting(site) < 1000:
        assert time.monotonic() < deadline, "nobody waits"
        time.sleep(0.1)
    somebody = ("setpriv", "--reuid", str(ANN), "--clear-groups")
    for _ in range(3):
        site.mounted.run(*somebody, "ls", "-l", f"{site.mounted.path}/hg38/small")
        site.mounted.run(*somebody, "cat", f"{site.mounted.path}/hg38/near/small.txt")
    assert waiting(site) >= 1000, "they did not wait for so long: nothing was seen"


def waiting(site: Site) -> int:
    """Return how many requests wait, as they are told of when they have for a second."""
    text = site.mounted.call("metrics")["text"]
    (line,) = [line for line in text.splitlines() if line.startswith("refgenfs_requests_waiting ")]
    return int(line.split()[1])
