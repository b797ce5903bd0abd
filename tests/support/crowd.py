"""Many users at one mount: made with useradd, each a process of its own that reads a little now and then.

`python -m tests.support.crowd` runs them, as root: a plan (JSON) comes on standard input, and what they did leaves
on standard output, one JSON line an operation. They are forked, and execute nothing: this Python may be one that they
can't enter.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

BLOCK = 64 * 1024
SMALL = 4096  # bytes of a small read


@dataclass(frozen=True)
class User:
    """A user of the machine, with their groups."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


@contextmanager
def users(count: int, members: int) -> Iterator[list[User]]:
    """Make users by useradd, the first `members` of them in a group of their own; all are gone at the end."""
    prefix = f"rgfs{secrets.token_hex(3)}"
    group = f"{prefix}lab"
    names = [f"{prefix}u{number:02}" for number in range(count)]
    try:
        subprocess.run(["groupadd", group], check=True, capture_output=True, timeout=60)
        for number, name in enumerate(names):
            more = ["-G", group] if number < members else []
            command = ["useradd", "-M", "-N", "-d", "/nonexistent", "-s", "/usr/sbin/nologin", *more, name]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        yield [_user(name) for name in names]
    finally:
        for name in names:
            subprocess.run(["userdel", name], check=False, capture_output=True, timeout=60)
        subprocess.run(["groupdel", group], check=False, capture_output=True, timeout=60)


def _user(name: str) -> User:
    def asked(*options: str) -> list[int]:
        done = subprocess.run(["id", *options, name], check=True, capture_output=True, text=True, timeout=60)
        return [int(word) for word in done.stdout.split()]

    return User(name, asked("-u")[0], asked("-g")[0], tuple(asked("-G")))


@dataclass(frozen=True)
class Did:
    """One operation: of whom, what, how long it took in seconds, and what went wrong."""

    uid: int
    what: str
    seconds: float
    error: str


class Crowd:
    """The users at work on a mount, between `with` and the end of `seconds`."""

    def __init__(self, members: list[User], folder: str, seconds: float, first: int) -> None:
        self._plan = {
            "users": [[one.uid, one.gid, list(one.groups)] for one in members],
            "folder": folder,
            "seconds": seconds,
            "first": first,
        }
        self._seconds = seconds

    def run(self) -> list[Did]:
        """Return what was done."""
        command = ["timeout", "-s", "KILL", str(int(self._seconds) + 60), sys.executable, "-m", "tests.support.crowd"]
        done = subprocess.run(
            command, input=json.dumps(self._plan), capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [Did(**json.loads(line)) for line in done.stdout.splitlines()]


class _Reader:
    """One user at work; `cold` is the next block that nobody has read yet."""

    def __init__(self, number: int, uid: int, folder: str, first: int) -> None:
        self._uid = uid
        self._folder = folder
        self._cold = (number + 1) * 256 + first  # who looked at the file's head had some of it
        self._dice = random.Random(number)
        self._small = [f"{folder}/small/{number:02}.txt" for number in range(20)]

    def work(self, seconds: float) -> None:
        """Do one thing after the other, with pauses, for so long."""
        acts: list[Callable[[], None]] = [self.list, self.stat, self.cold, self.warm, self.guarded]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._dice.shuffle(acts)
            for act in acts:
                time.sleep(self._dice.random())
                if time.monotonic() < until:
                    self._timed(act)

    def _timed(self, act: Callable[[], None]) -> None:
        error, began = "", time.monotonic()
        try:
            act()
        except OSError as exc:
            error = f"{type(exc).__name__}: {exc.strerror}"
        row = {"uid": self._uid, "what": act.__name__, "seconds": time.monotonic() - began, "error": error}
        os.write(1, json.dumps(row).encode() + b"\n")  # short enough to stay in one piece

    def list(self) -> None:
        """Do as `ls -l`."""
        for entry in os.scandir(f"{self._folder}/small"):
            entry.stat()

    def stat(self) -> None:
        """Look one file up."""
        os.stat(self._dice.choice(self._small))

    def cold(self) -> None:
        """Read a little where nobody has read, as `samtools faidx` does."""
        self._read(f"{self._folder}/genome/genome.fa", self._cold * BLOCK)
        self._cold += 1

    def warm(self) -> None:
        """Read a little of what is resident, and not out of the kernel's pages."""
        self._read(self._dice.choice(self._small), 0)

    def guarded(self) -> None:
        """Read what only some may."""
        self._read(f"{self._folder}/secret/secret.txt", 0)

    def _read(self, path: str, offset: int) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            data = os.pread(fd, SMALL, offset)
            if data[:16] != b"%016d" % (offset // BLOCK):
                raise AssertionError(f"{path} at {offset}: {data[:16]!r}")
        finally:
            os.close(fd)


def main() -> None:
    """Run the plan on standard input."""
    plan = json.load(sys.stdin)
    children = []
    for number, (uid, gid, groups) in enumerate(plan["users"]):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                signal.alarm(int(plan["seconds"]) + 40)
                os.setgroups(groups)
                os.setgid(gid)
                os.setuid(uid)
                _Reader(number, uid, plan["folder"], plan["first"]).work(plan["seconds"])
                code = 0
            except BaseException as exc:  # noqa: BLE001  # a child must not go on as its parent would
                os.write(2, f"user {uid}: {exc!r}\n".encode())
            os._exit(code)
        children.append(pid)
    sys.exit(max([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in children]))


if __name__ == "__main__":
    main()
