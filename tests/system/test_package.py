"""The package for Debian on a booted machine: installed by apt, upgraded while somebody reads, removed, purged.

A story in order: each test begins where the one before ended, with the package installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from refgenfs.demo.origin import Origin
from tests.support.booted import Done, Machine
from tests.support.instances import FASTA, UNIT, config
from tests.support.packages import build_package, next_package

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.slow, pytest.mark.timeout(1200)]

VERSION, HIGHER = "0.1.0+test1", "0.1.0+test2"
IDLE = "refgenfs@idle"
TREES = "/usr/lib/refgenfs"
# What is where packages put files, where they keep what they made, and where units and daemons are.
SNAPSHOT = "find /etc /usr /var /run -xdev | grep refgenfs | sort; ls -d /var/cache/refgenfs* || true"
# Reads a little, says so, and the rest when it is told to.
READER = """
exec 3<{file} >/run/reader.out 2>&1
head -c 1000 <&3 >/run/reader.part
touch /run/reader.reads
until [ -e /run/reader.go ]; do sleep 0.1; done
cat /run/reader.part - <&3 | md5sum
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The package, and one of a higher version."""
    package = build_package("make deb", tmp_path_factory.mktemp("package"), VERSION)
    return package, next_package(package, VERSION, HIGHER)


@pytest.fixture(scope="module")
def machine(booted_machine: Machine, packages: tuple[Path, Path]) -> Iterator[Machine]:
    """The machine, with the packages' files on it."""
    machine = booted_machine
    first, higher = packages
    machine.shell("mkdir -p /run/dist")
    machine.send(first, f"/run/dist/{first.name}")
    machine.send(higher, "/run/higher.deb")
    machine.shell("mkdir -p /var/cache/apt/archives/partial /var/cache/debconf")
    try:
        yield machine
    finally:
        print(machine.log(UNIT))
        apt(machine, "purge", "refgenfs", code=None)
        machine.shell("umount -l /genomes /mnt/idle; rm -rf /run/*.deb /run/dist /run/reader.*", code=None)


def apt(machine: Machine, *arguments: str, code: int | None = 0) -> Done:
    """Run apt-get as an administrator's script would: nothing is asked."""
    command = ["apt-get", "-q", "-y", "--allow-downgrades", *arguments]
    return machine(*command, code=code, timeout=300, DEBIAN_FRONTEND="noninteractive")


def program_of(machine: Machine, unit: str) -> str:
    """Return the Python that an instance runs with."""
    pid = machine.show(unit, "MainPID")
    return machine("cat", f"/proc/{pid}/cmdline").out.partition("\0")[0]


def start_reader(machine: Machine) -> None:
    """Have somebody open the demo's FASTA and read its first bytes, who goes on when told to."""
    machine.shell("rm -f /run/reader.*")
    script = READER.format(file=FASTA)
    machine("systemd-run", "--collect", "--unit=reader", "--property=Type=exec", "bash", "-c", script)
    machine.until("test -e /run/reader.reads")


def end_reader(machine: Machine) -> str:
    """Have the reader read the rest; return what it printed."""
    machine.shell("touch /run/reader.go")
    machine.until("! systemctl is-active reader")
    return machine("cat", "/run/reader.out").out


def test_apt_installs_it_and_mounts_nothing(machine: Machine) -> None:
    before = machine.shell(SNAPSHOT)
    assert "refgenfs@" not in before
    machine.shell("cd /run; apt install ./dist/refgenfs_*.deb", timeout=300)
    assert machine("refgenfs", "--version", HOME="/nonexistent").out.startswith("refgenfs ")
    assert machine("id", "-un", "refgenfs").out == "refgenfs\n"
    assert (
        machine.shell(
            "findmnt -t fuse.refgenfs || true; systemctl list-units --plain 'refgenfs@*' | grep refg || true"
        )
        == ""
    )
    assert machine("systemd-analyze", "verify", f"{UNIT}.service").err.count("refgenfs") == 0
    assert (
        "/etc/refgenfs/example.toml" in machine("refgenfs", "config", "check", "-c", "/etc/refgenfs/example.toml").out
    )
    assert machine("dpkg", "-V", "refgenfs").out == ""
    for path in ("/usr/sbin/mount.refgenfs", "/usr/lib/systemd/user/refgenfs@.service", "/run/refgenfs"):
        machine("test", "-e", path)
    told = machine("refgenfs", "service", "install", "--no")
    assert "came with the package" in told.err
    assert machine("refgenfs", "service", "uninstall", code=None).err.count("apt remove refgenfs") == 1


def test_its_program_hears_of_nothing_of_a_user_s(machine: Machine) -> None:
    machine.write("/run/mine/trio.py", "raise SystemExit('of a user')\n")
    assert machine("refgenfs", "config", "show", PYTHONPATH="/run/mine").code == 0
    machine.shell("rm -rf /run/mine")


def test_an_instance_is_served_by_it(machine: Machine, origin: Origin, md5: str) -> None:
    machine.shell("cp /etc/refgenfs/example.toml /etc/refgenfs/lab.toml")
    machine.write("/etc/refgenfs/lab.toml", config(origin))
    machine.shell("systemctl enable --now refgenfs@lab")
    assert program_of(machine, UNIT) == f"{TREES}/{VERSION}/bin/python"
    assert machine("md5sum", FASTA).out.split()[0] == md5
    assert machine.shell(
        "bash -ic 'complete -p refgenfs' 2>/dev/null || cat /usr/share/bash-completion/completions/refgenfs"
    )


def test_a_reader_lives_through_an_upgrade(machine: Machine, origin: Origin, md5: str) -> None:
    machine.write("/etc/refgenfs/idle.toml", config(origin, point="/mnt/idle"))
    machine("systemctl", "start", IDLE)
    start_reader(machine)
    pid = machine.show(UNIT, "MainPID")
    told = apt(machine, "install", "/run/higher.deb").out
    assert re.search(rf"^{UNIT} goes on with the version before, 1 file open: `systemctl restart", told, re.M)
    assert f"{IDLE} runs the new version" in told
    # who reads has the daemon that it began with, which finds all that it needs
    assert machine.show(UNIT, "MainPID") == pid
    assert machine("head", "-c", "3", "/genomes/demo/fasta/demo.dict").out == "@HD"
    assert end_reader(machine) == f"{md5}  -\n"
    # nobody read here
    assert program_of(machine, IDLE) == f"{TREES}/{HIGHER}/bin/python"
    assert machine("md5sum", FASTA.replace("/genomes", "/mnt/idle")).out.split()[0] == md5
    machine("systemctl", "restart", UNIT)
    assert program_of(machine, UNIT) == f"{TREES}/{HIGHER}/bin/python"
    assert machine("md5sum", FASTA).out.split()[0] == md5
    assert set(machine("ls", "-A", TREES).out.split()) == {VERSION, HIGHER}
    machine("dpkg-reconfigure", "refgenfs", DEBIAN_FRONTEND="noninteractive")
    assert machine("ls", "-A", TREES).out.split() == [HIGHER]  # nothing runs of the other any more


def test_installing_the_same_again_disturbs_nobody(machine: Machine, md5: str) -> None:
    start_reader(machine)
    apt(machine, "install", "--reinstall", "/run/higher.deb")
    assert end_reader(machine) == f"{md5}  -\n"
    assert machine("ls", "-A", TREES).out.split() == [HIGHER]


def test_removal_unmounts_and_keeps_what_is_the_administrator_s(machine: Machine) -> None:
    machine("systemctl", "stop", IDLE)
    machine("mount", "-t", "refgenfs", "idle", "/mnt/idle")  # a daemon of no unit
    start_reader(machine)
    apt(machine, "remove", "refgenfs")
    assert machine("findmnt", "-t", "fuse.refgenfs", code=None).out == ""
    assert machine("pgrep", "-f", TREES, code=None).out == ""
    assert "Transport endpoint is not connected" in end_reader(machine)
    machine("test", "-e", "/etc/refgenfs/lab.toml")
    machine("test", "-d", "/var/cache/refgenfs-lab/contents")


def test_purging_leaves_nothing(machine: Machine) -> None:
    apt(machine, "purge", "refgenfs")
    machine("systemctl", "reset-failed")
    left = machine.shell(SNAPSHOT).splitlines()
    assert [path for path in left if not path.startswith(("/var/log/", "/var/lib/apt/", "/run/dist/"))] == []
    assert machine("systemctl", "list-unit-files", "--plain", "--no-legend", "refgenfs*", code=None).out == ""
    assert machine("findmnt", "-t", "fuse.refgenfs", code=None).out == ""
    assert machine("id", "-un", "refgenfs").out == "refgenfs\n"  # as users of packages do
