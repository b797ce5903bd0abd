"""Sequences by MD5 where FASTAs are of sources that not everybody may read: with real users, on a real mount."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fuse.test_indices import big_fasta
from tests.fuse.test_refget import place, sequences_of
from tests.support.mounted import Mounted, Setup
from tests.support.plain_files import plain_files
from tests.support.refget import refget_server

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_root]

EVE, BOB, ANN = 61001, 61002, 61003  # Eve may read "secret", Ann "other", Bob neither
SECRET, OTHER, OPEN = b"ACGTTGCA" * 30_000, b"GGGTTTAA" * 30_000, b"TTTTACGT" * 30_000
BOTH = b"CCCCACGT" * 30_000
ABSENT = "0" * 32


def digest(sequence: bytes) -> str:
    return hashlib.md5(sequence).hexdigest()


def fasta(path: Path, *sequences: bytes) -> None:
    path.write_bytes(b"".join(b">s%d\n%s\n" % (number, one) for number, one in enumerate(sequences)))


def as_user(mounted: Mounted, uid: int, *command: str) -> subprocess.CompletedProcess[bytes]:
    who = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
    return mounted.run(*who, *command, check=False, timeout=50, text=False)


def start(mounted: Mounted, uid: int, *command: str) -> subprocess.Popen[bytes]:
    who = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
    return subprocess.Popen(["timeout", "-s", "KILL", "50", *who, *command], stdout=subprocess.PIPE)


def reads(mounted: Mounted, uid: int, sequence: bytes) -> bool:
    """Say whether a user reads a sequence; else it must look as one that there is not."""
    path = str(place(mounted, digest(sequence)))
    done = as_user(mounted, uid, "cat", path)
    assert done.returncode or done.stdout == sequence
    if done.returncode:
        assert b"No such file" in done.stderr, done.stderr
        for command in (["stat", path], ["getfattr", "-d", path], ["test", "-e", path], ["ls", "-l", path]):
            assert as_user(mounted, uid, *command).returncode, command
    return not done.returncode


@contextmanager
def mounted_files(folder: Path, *, rate: int = 0, extra: str = "") -> Iterator[Mounted]:
    """Mount `<source>.fa` of each source that there is, those of "secret" and "other" for Eve and for Ann alone."""
    rules = {"secret": EVE, "other": ANN}
    site = folder / "site"
    with plain_files(site, rate=rate) as served:
        sources = ""
        for name in ("secret", "other", "open"):
            if (site / f"{name}.fa").exists():
                rule = f'allow_users = ["{rules[name]}"]\n' if name in rules else ""
                table = served.source({f"g/{name}": [f"{name}.fa"]}, name=name)
                sources += table.replace("[[source]]\n", f"[[source]]\n{rule}")
        with Setup(folder, sources, extra=f"allow_other = true\n{extra}").mount() as mounted:
            yield mounted


@pytest.fixture
def folder() -> Iterator[Path]:
    # Others must get as far as the mountpoint: pytest's own folders are for its user alone.
    folder = Path(tempfile.mkdtemp(prefix="rgfs-guarded-"))
    folder.chmod(0o755)
    (folder / "site").mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_sequence_is_for_those_who_may_read_its_fasta(folder: Path) -> None:
    fasta(folder / "site/secret.fa", SECRET, BOTH)
    fasta(folder / "site/other.fa", OTHER)
    fasta(folder / "site/open.fa", OPEN, BOTH)
    with mounted_files(folder) as mounted:
        for _ in range(2):  # also what the daemon and the kernel remember from those who may
            for uid, allowed in ((BOB, []), (EVE, [SECRET]), (BOB, []), (ANN, [OTHER]), (0, [SECRET, OTHER])):
                for sequence in (SECRET, OTHER, OPEN, BOTH):
                    assert reads(mounted, uid, sequence) == (sequence in [OPEN, BOTH, *allowed])


def test_what_takes_long_lets_nobody_in(folder: Path) -> None:
    """Where a FASTA takes long to be read, its sequence's name is answered first: before it is known whose it is."""
    big_fasta(folder / "site/secret.fa", 2_000_000)
    found = list(sequences_of(folder / "site/secret.fa").values())
    with mounted_files(folder, rate=200_000) as mounted:
        waits = [start(mounted, uid, "md5sum", str(place(mounted, digest(found[0])))) for uid in (0, EVE)]
        while any(one.poll() is None for one in waits):
            assert not reads(mounted, BOB, found[0])
        for one in waits:
            assert one.communicate()[0].split()[0].decode() == digest(found[0])
        assert not reads(mounted, BOB, found[0])
        assert not reads(mounted, ANN, found[1])
        assert reads(mounted, EVE, found[1])


def test_an_md5_that_somebody_asks_for_reads_nothing_that_is_not_for_them(folder: Path) -> None:
    fasta(folder / "site/secret.fa", SECRET)
    with mounted_files(folder) as mounted:
        assert not reads(mounted, BOB, SECRET)
        assert mounted.status()["fetched"] == 0
        assert reads(mounted, EVE, SECRET)  # what was not found for one is looked for, for another


def test_a_refget_server_has_for_all_what_a_fasta_has_for_some(folder: Path) -> None:
    fasta(folder / "site/secret.fa", SECRET)
    with refget_server() as server:
        server.add(SECRET)
        with mounted_files(folder, extra=f'[refget]\nservers = ["{server.url}"]\n') as mounted:
            for uid in (EVE, BOB, EVE):
                assert reads(mounted, uid, SECRET)
