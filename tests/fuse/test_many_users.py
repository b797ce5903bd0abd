"""Sixty-four users at one mount: made with useradd, real processes, a real nginx that is slow.

Promises:
- while one copies everything, cold, the others' `ls`, `stat` and small reads, cold ones too, wait for none of the
  copy's transfers: who has nothing under way comes before another's next, and a place is kept for them;
- each has an account of what they were given, and of what was fetched for them;
- a source for a group is for its members, whoever else reads beside them.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.crowd import BLOCK, Crowd, Did, User, users
from tests.support.mounted import Mounted, Setup
from tests.support.plain_files import plain_files

pytestmark = [
    pytest.mark.needs_fuse,
    pytest.mark.needs_root,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not shutil.which("useradd") or not shutil.which("nginx"), reason="needs useradd and nginx"),
]

USERS = 64
MEMBERS = 32  # of the group that may read the guarded source
MIB = 1 << 20
RATE = MIB  # bytes a second of one of the origin's connections
TRANSFER = 4.0  # seconds that one of the copy's requests (4 MiB) takes at that rate
BULK = 24  # files of 16 MiB
ALONE, STORM = 6.0, 12.0  # seconds of the crowd by itself, and beside the copy
OPERATIONS = ("list", "stat", "warm", "cold")


def numbered(path: Path, size: int) -> None:
    """Write a sparse file in which every block begins with its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
        for number in range(-(-size // BLOCK)):
            os.pwrite(file.fileno(), b"%016d" % number, number * BLOCK)


@contextmanager
def at_work(folder: Path, group: int) -> Iterator[Mounted]:
    """Mount what the crowd reads, for all."""
    files = folder / "origin"
    bulk = [f"bulk/{number:02}.bin" for number in range(BULK)]
    small = [f"small/{number:02}.txt" for number in range(20)]
    for name in bulk:
        numbered(files / name, 16 * MIB)
    for name in small:
        numbered(files / name, BLOCK)
    numbered(files / "genome/genome.fa", (USERS + 1) * 256 * BLOCK)
    numbered(files / "secret/secret.txt", BLOCK)
    with plain_files(files, rate=RATE) as origin:
        table = origin.source(
            {"hg38/bulk": bulk, "hg38/small": small, "hg38/genome": ["genome/genome.fa"]}, revalidate="1h"
        )
        guarded = origin.source({"hg38/secret": ["secret/secret.txt"]}, name="lab", revalidate="1h")
        at = guarded.index("[[source.asset]]")
        table += f'{guarded[:at]}allow_groups = ["{group}"]\n{guarded[at:]}'
        with Setup(folder, table, size="4GB", extra="allow_other = true").mount() as mounted:
            yield mounted


@contextmanager
def copying(mounted: Mounted, who: User, folder: Path) -> Iterator[None]:
    """Have a user copy all that there is, one file after the other and many at a time."""
    target = folder / "copy"
    target.mkdir()
    os.chown(target, who.uid, who.gid)
    script = (
        f"cp -r {mounted.path}/hg38/bulk {target}/all & "
        f"for one in {mounted.path}/hg38/bulk/*; do cp $one {target}/ & done; wait"
    )
    process = subprocess.Popen(
        ["timeout", "-s", "KILL", "120", "setpriv", "--reuid", str(who.uid), "--regid", str(who.gid),
         "--clear-groups", "bash", "-c", script],
        stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while mounted.status()["flights"] * BLOCK < 24 * MIB:
            assert time.monotonic() < deadline, "the copy does not get going"
            time.sleep(0.1)
        yield
        assert process.poll() is None, "the copy ended before the crowd: nothing was seen of a storm"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def table(alone: Sequence[Did], storm: Sequence[Did]) -> str:
    """Return the latencies, in milliseconds."""
    lines = [f"{'':6}{'':7}{'n':>6}{'median':>9}{'p99':>9}{'max':>9}   ms"]
    for what in OPERATIONS:
        for when, done in (("alone", alone), ("storm", storm)):
            taken = times(done, what)
            row = (statistics.median(taken), percentile(taken, 99), taken[-1])
            lines.append(f"{what:6}{when:>7}{len(taken):>6}" + "".join(f"{1000 * one:>9.1f}" for one in row))
    return "\n".join(lines)


def times(done: Sequence[Did], what: str) -> list[float]:
    return sorted(one.seconds for one in done if one.what == what)


def percentile(taken: Sequence[float], percent: int) -> float:
    return taken[min(len(taken) - 1, len(taken) * percent // 100)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that others may enter, and that goes with what was copied."""
    path = Path(tempfile.mkdtemp(prefix="rgfs-crowd-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def test_one_user_s_copy_of_everything_holds_nobody_up(folder: Path) -> None:
    with users(USERS, MEMBERS) as everybody, at_work(folder, group := everybody[0].groups[-1]) as mounted:
        copier, crowd = everybody[-1], everybody[:-1]
        for number in range(20):  # resident from here on
            mounted.run("cat", f"{mounted.path}/hg38/small/{number:02}.txt", text=False)
        mounted.run("head", "-c", "1", f"{mounted.path}/hg38/genome/genome.fa", text=False)
        alone = Crowd(crowd, f"{mounted.path}/hg38", ALONE, first=1).run()
        with copying(mounted, copier, folder):
            before = mounted.status()["fetched"]
            storm = Crowd(crowd, f"{mounted.path}/hg38", STORM, first=100).run()
            copied = mounted.status()["fetched"] - before
        print(table(alone, storm))
        accounts = {row["uid"]: row for row in mounted.status()["users"]}
        # while the crowd read, the copy had all that the origin gives to others than them
        assert copied > STORM * RATE, "there was no storm"
        for what in OPERATIONS:
            assert len(times(storm, what)) > USERS
            assert not [one for one in storm if one.what == what and one.error]
            # Behind one of the copy's transfers a read would wait for half of it on the average, and behind the row
            # of those that wait for several; a busy machine delays all alike.
            usual, delayed = times(alone, what), times(storm, what)
            bound = TRANSFER / 4 + 3 * percentile(usual, 95)
            assert percentile(delayed, 95) < bound, f"{what} waits behind the copy"
            assert delayed[-1] < TRANSFER + 3 * usual[-1], f"{what} waited for all of a transfer of the copy's"
        check_accounts(accounts, crowd, copier, [*alone, *storm])
        check_guarded(crowd, group, [*alone, *storm])
        assert mounted.memory() < 250 * MIB


def check_accounts(accounts: dict[int, dict[str, int]], crowd: Sequence[User], copier: User, done: list[Did]) -> None:
    """Each is charged with what they read, and nobody with the copy but who made it."""
    for user in crowd:
        cold = sum(one.what == "cold" and one.uid == user.uid for one in done)
        account = accounts[user.uid]
        assert cold * BLOCK <= account["fetched"] <= (cold + 16) * BLOCK, "not one request of the copy's"
        assert account["reads"] >= cold
    assert accounts[copier.uid]["fetched"] > STORM * RATE


def check_guarded(crowd: Sequence[User], group: int, done: list[Did]) -> None:
    """Members read the guarded source, others are refused."""
    members = {user.uid for user in crowd if group in user.groups}
    assert len(members) == MEMBERS
    told = {(one.uid in members, one.error) for one in done if one.what == "guarded"}
    assert told == {(True, ""), (False, "PermissionError: Permission denied")}
