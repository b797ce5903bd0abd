"""Sources that not everybody may read, on a mount that everybody sees: with real users and groups."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.mounted import Mounted, Setup
from tests.support.ticketing import TicketServer, inline, served

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_root]

# Numbers that no user of the machine has: the kernel and the daemon need no names.
EVE, BOB, ANN = 61001, 61002, 61003
LAB, CLINIC, NONE = 62001, 62002, 62003
DATA = b"what only some may read"


@dataclass
class Somebody:
    """A user who runs commands."""

    mounted: Mounted
    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        groups = ["--groups", ",".join(map(str, self.groups))] if self.groups else ["--clear-groups"]
        who = ["setpriv", "--reuid", str(self.uid), "--regid", str(self.gid), *groups]
        return self.mounted.run(*who, *command, check=False, timeout=20)

    def reads(self, path: str) -> bool:
        done = self.run("cat", f"{self.mounted.path}/{path}")
        assert done.returncode or done.stdout == DATA.decode()
        assert not done.returncode or "Permission denied" in done.stderr, done.stderr
        return not done.returncode

    def sees(self, path: str) -> list[str]:
        done = self.run("ls", f"{self.mounted.path}/{path}")
        assert not done.returncode, done.stderr
        return done.stdout.split()

    def enters(self, path: str) -> bool:
        return not self.run("ls", f"{self.mounted.path}/{path}").returncode


def source(server: TicketServer, name: str, key: str, rule: str) -> str:
    return (
        f'[[source]]\nname = "{name}"\ntype = "htsget"\nurl = "{server.url}"\n{rule}\n'
        f'[[source.asset]]\nkey = "{key}"\nreads = ["a"]\n'
    )


RULES = {
    "open": "",
    "users": f'allow_users = ["{EVE}", "{BOB}"]',
    "group": f'allow_groups = ["{LAB}"]',
    "one": f'allow_users = ["{EVE}"]',
    "both": f'allow_users = ["{ANN}"]\nallow_groups = ["{LAB}", "{CLINIC}"]',
    "nobody": "allow_users = []",
}
ALLOWED = {  # of Eve in no group, Bob in the lab by his process's groups, Ann in the clinic by her main group
    "open": (True, True, True),
    "users": (True, True, False),
    "group": (False, True, False),
    "one": (True, False, False),
    "both": (False, True, True),
    "nobody": (False, False, False),
}


@pytest.fixture(scope="module")
def mounted() -> Iterator[Mounted]:
    # Others must get as far as the mountpoint: pytest's own folders are for its user alone.
    folder = Path(tempfile.mkdtemp(prefix="rgfs-access-"))
    folder.chmod(0o755)
    try:
        yield from mount_all(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def mount_all(folder: Path) -> Iterator[Mounted]:
    """Run a daemon that has a source for each rule."""
    server = TicketServer()
    with served(server):
        server.tickets["a"] = lambda request, body: [{"url": inline(DATA)}]
        sources = "".join(source(server, name, f"hg38/{name}", rule) for name, rule in RULES.items())
        sources += source(server, "alone", "secret/x", RULES["users"])
        sources += source(server, "other", "shared/x", RULES["one"]) + source(
            server, "third", "shared/y", RULES["group"]
        )
        with Setup(folder, sources, extra="allow_other = true").mount() as running:
            yield running


@pytest.fixture
def people(mounted: Mounted) -> tuple[Somebody, Somebody, Somebody]:
    return (
        Somebody(mounted, EVE, NONE),
        Somebody(mounted, BOB, NONE, (NONE, LAB)),
        Somebody(mounted, ANN, CLINIC),
    )


@pytest.mark.parametrize("name", RULES)
def test_who_reads_what(mounted: Mounted, people: tuple[Somebody, ...], name: str) -> None:
    path = f"hg38/{name}/a.bam"
    for _ in range(2):  # also what the kernel remembers from those who may
        for who, may in zip(people, ALLOWED[name], strict=True):
            assert who.reads(path) is may
            assert who.enters(f"hg38/{name}") is may
            assert (name in who.sees("hg38")) is may
            assert (who.run("stat", f"{mounted.path}/hg38/{name}").returncode == 0) is may
            assert (who.run("stat", f"{mounted.path}/{path}").returncode == 0) is may
            assert (who.run("getfattr", "-n", "user.refgenfs.key", f"{mounted.path}/{path}").returncode == 0) is may
        mounted.run("cmp", f"{mounted.path}/{path}", "/dev/null", check=False)
    assert mounted.run("cat", f"{mounted.path}/{path}").stdout == DATA.decode()


def test_a_genome_is_for_whom_anything_in_it_is(people: tuple[Somebody, ...]) -> None:
    eve, bob, ann = people
    assert [who.enters("secret") for who in people] == [True, True, False]
    assert [who.enters("shared") for who in people] == [True, True, False]
    assert eve.sees("shared") == ["x", "x:default"]
    assert bob.sees("shared") == ["y", "y:default"]
    assert ann.sees("") == ["hg38"]
    assert eve.sees("") == ["hg38", "secret", "shared"]


def test_what_stat_shows(mounted: Mounted) -> None:
    def shown(path: str) -> tuple[int, int, int]:
        found = os.stat(mounted.path / "hg38" / path)
        return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)

    assert shown("open") == (0, 0, 0o555)
    assert shown("open/a.bam") == (0, 0, 0o444)
    assert shown("group") == (0, LAB, 0o550)
    assert shown("group/a.bam") == (0, LAB, 0o440)
    assert shown("one") == (EVE, 0, 0o500)
    assert shown("one/a.bam") == (EVE, 0, 0o400)
    assert shown("nobody/a.bam") == (0, 0, 0o400)
    assert shown("users/a.bam") == (0, 0, 0o444)


def test_names_that_there_are_and_others_look_alike(mounted: Mounted, people: tuple[Somebody, ...]) -> None:
    ann = people[2]
    for name in ("a.bam", "nothing.bam", "regions"):
        assert "Permission denied" in ann.run("stat", f"{mounted.path}/hg38/users/{name}").stderr


def test_slices_and_indices_are_guarded_too(mounted: Mounted, people: tuple[Somebody, ...]) -> None:
    for who, may in zip(people, ALLOWED["users"], strict=True):
        for path in ("regions/header/a.bam", "regions/unmapped/a.bam"):
            assert who.reads(f"hg38/users/{path}") is may


def test_who_has_a_file_open_reads_on(mounted: Mounted, people: tuple[Somebody, ...]) -> None:
    eve, _, ann = people
    fd = os.open(mounted.path / "hg38" / "users" / "a.bam", os.O_RDONLY)
    try:
        done = subprocess.run(
            [
                "timeout",
                "-s",
                "KILL",
                "20",
                "setpriv",
                "--reuid",
                str(ANN),
                "--regid",
                str(NONE),
                "--clear-groups",
                "cat",
            ],
            stdin=fd,
            capture_output=True,
            check=True,
        )
    finally:
        os.close(fd)
    assert done.stdout == DATA
    assert not ann.reads("hg38/users/a.bam")
    assert eve.reads("hg38/users/a.bam")


def test_groups_are_those_that_the_process_has_now(mounted: Mounted) -> None:
    assert Somebody(mounted, BOB, NONE, (LAB,)).reads("hg38/group/a.bam")
    assert not Somebody(mounted, BOB, NONE).reads("hg38/group/a.bam")
    assert Somebody(mounted, BOB, LAB).reads("hg38/group/a.bam")


def test_the_cache_is_the_daemon_s_alone(mounted: Mounted) -> None:
    assert stat.S_IMODE(mounted.cache.stat().st_mode) == 0o700


def test_nothing_of_this_is_a_failure(mounted: Mounted, people: tuple[Somebody, ...]) -> None:
    before = mounted.log_text()
    people[2].reads("hg38/users/a.bam")
    time.sleep(0.1)
    assert mounted.log_text() == before


def test_names_that_the_machine_does_not_know_are_an_error(tmp_path: Path) -> None:
    setup = Setup(tmp_path, source(TicketServer(), "lab", "hg38/x", 'allow_users = ["no-such-user"]'))
    with pytest.raises(AssertionError, match="this machine has no user 'no-such-user'"), setup.mount():
        pass
