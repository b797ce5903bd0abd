"""An ordinary user, made with useradd: no root, no sudo, mounts through fusermount3.

It happens in mount and process namespaces of their own, so that neither a mount nor a daemon outlives a test, and
so that the machine can be as it is elsewhere: /dev/fuse for everybody, /etc/fuse.conf as the test wants it, and
this Python and this code where they are, but with folders above them that others may enter.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from refgenfs.core.units import human_bytes
from refgenfs.demo.build import DemoRoot, build_demo_root
from refgenfs.demo.origin import Origin, serve
from refgenfs.paths import instance_name
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_root, pytest.mark.timeout(300)]

REFGENFS = (sys.executable, "-m", "refgenfs")
PATH = "/usr/local/bin:/usr/bin:/bin"
NOBODY = "nobody"
READY_SECONDS = 30

# Run as the first process of the namespaces: "$1" is the stage, "$2…" are pairs of a folder that others can't
# enter, and a folder below it that they need. It stays until its standard input ends, and reaps orphans.
MACHINE = r"""
set -euo pipefail
stage=$1
shift
mount -t proc proc /proc
# a copy of somebody else's mount would keep it alive
mapfile -t points < <(awk '/ - fuse.refgenfs /{print $5}' /proc/self/mountinfo)
for point in "${points[@]}"; do umount -l "$(printf %b "${point//\\/\\0}")"; done
mount -t tmpfs -o mode=755 stage "$stage"
number=0
for ((i = 2; i <= $#; i += 2)); do
    mkdir "$stage/$i"
    mount --bind "${!i}" "$stage/$i"
done
for ((i = 1; i <= $#; i += 2)); do
    mountpoint -q "${!i}" && [[ $(stat -fc %T "${!i}") == tmpfs ]] || mount -t tmpfs -o mode=755 cover "${!i}"
done
for ((i = 2; i <= $#; i += 2)); do
    mkdir -p "${!i}"
    mount --move "$stage/$i" "${!i}"
done
mknod -m 666 "$stage/fuse" c $((0x$(stat -c %t /dev/fuse))) $((0x$(stat -c %T /dev/fuse)))
mount --bind "$stage/fuse" /dev/fuse
: >"$stage/fuse.conf"
mount --bind "$stage/fuse.conf" /etc/fuse.conf
echo ready
read -r _ || true
"""


@dataclass
class Machine:
    """The namespaces, their user, and a folder that everybody can enter."""

    folder: Path
    user: str
    pid: int  # of the namespaces' first process, as it is known outside
    config: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def uid(self) -> int:
        return pwd.getpwnam(self.user).pw_uid

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def genomes(self) -> Path:
        return self.home / "genomes"

    def run(
        self, *command: str | Path, user: str = "", check: bool = True, more: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a user, in that user's home, with an environment that has nothing of ours."""
        user = user or self.user
        environ = _environ(user, self.home if user == self.user else self.folder)
        environ |= {**(self.variables if user == self.user else {}), **(more or {})}
        inside = ["nsenter", "-t", str(self.pid), "-m", "-p", "--"]
        become = [] if user == "root" else ["runuser", "-u", user, "--"]
        clean = ["env", "-i", f"--chdir={environ['HOME']}", *(f"{key}={value}" for key, value in environ.items())]
        full = [*inside, *become, *clean, "timeout", "-s", "KILL", "60", *map(str, command)]
        done = subprocess.run(full, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, cwd="/")
        if check:
            log = self.run("sh", "-c", "cat ~/.local/state/refgenfs/*", check=False) if done.returncode else done
            assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{log.stdout}"
        return done

    def refgenfs(
        self, *arguments: str | Path, user: str = "", check: bool = True, more: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of ours as a user."""
        return self.run(*REFGENFS, *arguments, user=user, check=check, more=more)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.refgenfs("status", "--json").stdout)
        return status

    def mounts(self) -> str:
        """Return what is mounted by refgenfs."""
        text = Path(f"/proc/{self.pid}/mountinfo").read_text()
        lines = (line for line in text.splitlines() if " fuse.refgenfs " in line)
        return "\n".join(line for line in lines if str(self.folder) in line)

    def processes(self) -> list[str]:
        """Return the commands that the user has running, zombies aside."""
        listed = self.run("ps", "-o", "stat=,args=", "-u", self.user, user="root", check=False).stdout.splitlines()
        return [line for line in listed if line and not line.startswith("Z")]

    def permit_allow_other(self, *, permitted: bool) -> None:
        """Write the namespaces' /etc/fuse.conf."""
        line = "user_allow_other" if permitted else "# user_allow_other"
        self.run("sh", "-c", f"echo '{line}' >/etc/fuse.conf", user="root")


def _environ(user: str, home: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "USER": user,
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONFAULTHANDLER": "1",
    }


def _covered() -> list[str]:
    """Return pairs: a folder that others can't enter, and a folder below it that this Python or this code is in."""
    needed = {REPOSITORY, Path(sys.prefix), Path(sys.base_prefix), Path(os.path.realpath(sys.executable)).parents[1]}
    pairs = []
    for path in sorted({Path(os.path.realpath(path)) for path in needed} | needed):
        for above in reversed(path.parents):
            if not above.stat().st_mode & stat.S_IXOTH:
                pairs += [str(above), str(path)]
                break
    return pairs


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRoot:
    return build_demo_root(tmp_path_factory.mktemp("demo") / "root")


@pytest.fixture
def origin(demo: DemoRoot) -> Iterator[Origin]:
    with serve(demo.root) as origin:
        yield origin


@pytest.fixture
def machine(origin: Origin, demo: DemoRoot) -> Iterator[Machine]:
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="refgenfs-user-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        shutil.copy(demo.reads, folder / "reads.fq")
        (folder / "reads.fq").chmod(0o644)
        user = f"rgfs{secrets.token_hex(4)}"
        subprocess.run(["useradd", "-m", "-d", folder / "home", "-s", "/bin/bash", user], check=True)
        stack.callback(_remove, user)
        uid = pwd.getpwnam(user).pw_uid
        stack.callback(shutil.rmtree, f"/tmp/refgenfs-{uid}", ignore_errors=True)
        config = folder / "config.toml"
        config.write_text(
            '[cache]\nsize = "1GB"\nmin_free = "0%"\n'
            f'[[source]]\nname = "demo"\ntype = "refgenie"\nurl = "{origin.url}"\n'
        )
        made = Machine(folder, user, _enter(stack, folder / "stage"), config)
        done = made.run(sys.executable, "-c", "import refgenfs.daemon", check=False)
        assert done.returncode == 0, f"others can't run this Python or this code: {done.stderr}"
        yield made


def _remove(user: str) -> None:
    """Remove the user, whose last processes may be about to end."""
    deadline = time.monotonic() + 15
    while (done := subprocess.run(["userdel", user], check=False, capture_output=True, text=True)).returncode:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.1)


def _enter(stack: ExitStack, stage: Path) -> int:
    """Make the namespaces, which end with the stack; return the number of their first process."""
    stage.mkdir()
    apart = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL"]
    holder = subprocess.Popen(
        [*apart, "bash", "-c", MACHINE, "machine", stage, *_covered()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    stack.callback(holder.wait, 20)
    stack.callback(holder.kill)
    assert holder.stdin is not None
    assert holder.stdout is not None
    stack.callback(holder.stdin.close)
    stack.callback(holder.stdout.close)
    assert holder.stdout.readline() == b"ready\n"
    children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
    return int(children[0])


def aligned(output: str) -> str:
    """Return what bwa printed but for the line that has its command."""
    return "\n".join(line for line in output.splitlines() if not line.startswith("@PG"))


def on_plain_files(demo: DemoRoot) -> str:
    index = demo.unpacked("bwa_index") / f"{demo.digest}.fa"
    done = subprocess.run(["bwa", "mem", "-v", "1", index, demo.reads], capture_output=True, text=True, check=True)
    return aligned(done.stdout)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# -------------------------------------------------------------------------------------------------------------


def test_the_whole_job_without_root(machine: Machine, demo: DemoRoot, origin: Origin) -> None:
    assert machine.run("id", "-u").stdout.strip() != "0"
    told = machine.refgenfs("mount", machine.genomes, "-c", machine.config)
    assert told.stdout == f"{machine.genomes} is mounted: 1 genome, 2 assets\nTry: refgenfs list\n"
    assert f"user_id={machine.uid}" in machine.mounts()

    assert machine.run("ls", machine.genomes).stdout.split() == sorted([demo.digest, "demo"])
    index = machine.genomes / "demo" / "bwa_index" / "demo.fa"
    output = machine.run("bwa", "mem", "-v", "1", index, machine.folder / "reads.fq").stdout
    assert aligned(output) == on_plain_files(demo)

    status = machine.status()
    assert status["mountpoint"] == str(machine.genomes)
    assert status["fetched"] >= demo.archive("bwa_index").stat().st_size
    assert "Recent errors" not in machine.refgenfs("status").stdout

    pulled = json.loads(machine.refgenfs("pull", "--json", "demo/bwa_index", "demo/fasta").stdout)
    assert [item["key"] for item in pulled["keys"]] == ["demo/bwa_index", "demo/fasta"]
    again = json.loads(machine.refgenfs("pull", "--json", "demo/bwa_index", "demo/fasta").stdout)
    assert [item["fetched"] for item in again["keys"]] == [0, 0]
    assert human_bytes(again["keys"][0]["bytes"]) in machine.refgenfs("info", "demo/bwa_index").stdout

    gone = machine.refgenfs("umount", machine.genomes)
    assert gone.stdout == f"{machine.genomes} is unmounted\n"
    assert machine.mounts() == ""
    assert machine.processes() == []
    assert machine.run("ls", "-A", machine.genomes).stdout == ""

    origin.reset_stats()
    machine.refgenfs("mount", machine.genomes, "-c", machine.config)
    machine.run("bwa", "mem", "-v", "1", index, machine.folder / "reads.fq")
    assert origin.stats().matching("*archive*").requests == 0, "the cache survived the restart"


@pytest.mark.parametrize("with_xdg", [False, True], ids=["plain", "xdg"])
def test_files_are_where_the_documentation_says(machine: Machine, with_xdg: bool) -> None:
    home, uid = machine.home, machine.uid
    cache, state, runtime = home / ".cache", home / ".local" / "state", Path(f"/tmp/refgenfs-{uid}")
    if with_xdg:
        cache, state, runtime = home / "c", home / "s", home / "r" / "refgenfs"
        machine.run("mkdir", "-m", "700", home / "r")
        machine.variables |= {
            "XDG_CACHE_HOME": str(cache), "XDG_STATE_HOME": str(state), "XDG_RUNTIME_DIR": str(home / "r"),
        }  # fmt: skip
    machine.refgenfs("mount", machine.genomes, "-c", machine.config)
    machine.run("md5sum", machine.genomes / "demo/bwa_index/demo.fa.bwt")

    name = instance_name(machine.genomes)
    assert machine.status()["cache"]["dir"] == str(cache / "refgenfs")
    assert any((cache / "refgenfs" / "contents").iterdir())
    for folder in (cache / "refgenfs", cache / "refgenfs" / "ledger", state / "refgenfs", runtime):
        assert mode(folder) == 0o700, folder
        assert folder.stat().st_uid == uid
    log, sock = state / "refgenfs" / f"{name}.log", runtime / f"{name}.sock"
    assert (mode(log), mode(sock)) == (0o600, 0o600)
    assert stat.S_ISSOCK(sock.stat().st_mode)
    assert "mounted on" in log.read_text()
    machine.refgenfs("umount", machine.genomes)
    assert not sock.exists()


def test_others_can_not_read_the_mount_nor_ask_its_daemon(machine: Machine) -> None:
    machine.refgenfs("mount", machine.genomes, "-c", machine.config)
    for other in (NOBODY, "root"):
        for path in (machine.genomes, machine.genomes / "demo/bwa_index/demo.fa.bwt"):
            done = machine.run("cat", path, user=other, check=False)
            assert (done.returncode, done.stdout) == (1, "")
            assert "Permission denied" in done.stderr
    environ = {"REFGENFS_RUNTIME_DIR": f"/tmp/refgenfs-{machine.uid}"}
    done = machine.refgenfs("status", "-m", machine.genomes, user=NOBODY, check=False, more=environ)
    assert done.returncode == 1
    assert "belongs to another user; ask as the user who mounted it" in done.stderr
    done = machine.refgenfs("umount", machine.genomes, user=NOBODY, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert machine.mounts(), "it is still mounted"
    assert machine.run("ls", machine.genomes / "demo").stdout


def test_root_unmounts_what_a_user_mounted_and_the_daemon_ends(machine: Machine) -> None:
    machine.refgenfs("mount", machine.genomes, "-c", machine.config)
    done = machine.refgenfs(
        "umount", machine.genomes, user="root", more={"REFGENFS_RUNTIME_DIR": str(machine.folder)}
    )
    assert done.stdout == f"{machine.genomes} is unmounted; its daemon ends by itself\n"
    assert machine.mounts() == ""
    deadline = time.monotonic() + 15
    while machine.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert machine.processes() == []


def test_allow_other_is_refused_clearly_unless_fuse_conf_permits_it(machine: Machine) -> None:
    machine.permit_allow_other(permitted=False)
    done = machine.refgenfs("mount", machine.genomes, "-c", machine.config, "-o", "allow_other", check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "/etc/fuse.conf doesn't permit it" in done.stderr
    assert "user_allow_other" in done.stderr
    assert machine.mounts() == ""
    assert machine.processes() == []

    machine.permit_allow_other(permitted=True)
    machine.refgenfs("mount", machine.genomes, "-c", machine.config, "-o", "allow_other")
    assert machine.run("ls", machine.genomes / "demo", user=NOBODY).stdout.split()[0] == "bwa_index"
    assert machine.run("head", "-c", "5", machine.genomes / "demo/fasta/demo.fa", user=NOBODY).stdout.startswith(">")
    done = machine.run("touch", machine.genomes / "demo" / "x", user=NOBODY, check=False)
    assert "Read-only file system" in done.stderr
    machine.refgenfs("umount")
    assert machine.mounts() == ""


def test_a_dead_mountpoint_is_recovered(machine: Machine) -> None:
    machine.refgenfs("mount", machine.genomes, "-c", machine.config)
    machine.run("sh", "-c", f"kill -9 {machine.status()['pid']}")
    dead = machine.run("ls", machine.genomes, check=False)  # one that the daemon had not answered yet is aborted
    assert re.search("Transport endpoint is not connected|Software caused connection abort", dead.stderr)
    done = machine.refgenfs("status", check=False)
    assert done.returncode == 1
    point = machine.genomes
    assert done.stderr == f"refgenfs: the daemon for {point} has died: `refgenfs mount {point}` recovers its mount\n"
    machine.refgenfs("mount", machine.genomes, "-c", machine.config)
    assert "demo" in machine.run("ls", machine.genomes).stdout
    assert machine.mounts().count("fuse.refgenfs") == 1

    machine.run("sh", "-c", f"kill -9 {machine.status()['pid']}")
    done = machine.refgenfs("umount", machine.genomes)
    assert done.stdout == f"{machine.genomes} is unmounted; its daemon had ended before\n"
    assert machine.mounts() == ""


@pytest.mark.parametrize(
    ("point", "says"),
    [
        ("/genomes-of-nobody", "can't be made or read: Permission denied; name a directory of your own"),
        ("/usr", "it isn't this user's; name a folder of yours"),
    ],
)
def test_a_mountpoint_that_is_not_the_users_is_refused(machine: Machine, point: str, says: str) -> None:
    done = machine.refgenfs("mount", point, "-c", machine.config, check=False)
    assert done.returncode == 1
    assert says in done.stderr.splitlines()[-1]
    assert machine.mounts() == ""
    assert machine.processes() == []


def test_a_device_that_is_not_for_users_is_named(machine: Machine) -> None:
    machine.run("chmod", "600", "/dev/fuse", user="root")
    done = machine.refgenfs("mount", machine.genomes, "-c", machine.config, check=False)
    assert done.returncode == 1
    assert "/dev/fuse isn't for this user: `chmod 666 /dev/fuse` as root" in done.stderr
    checks = _doctor(machine, expect=1)
    assert checks["device"]["state"] == "fail"
    assert "chmod 666 /dev/fuse" in checks["device"]["advice"]


def _doctor(machine: Machine, *arguments: str | Path, expect: int) -> Mapping[str, dict[str, str]]:
    done = machine.refgenfs("doctor", "-c", machine.config, "--json", *arguments, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] is (expect == 0)
    return {check["name"]: check for check in told["checks"]}


def test_doctor_says_what_is_what(machine: Machine) -> None:
    checks = _doctor(machine, machine.genomes, expect=0)
    assert {name for name, check in checks.items() if check["state"] != "ok"} == {"readahead"}
    assert "only root can raise it" in checks["readahead"]["found"]
    assert checks["mountpoint"]["found"] == f"{machine.genomes} will be made"

    checks = _doctor(machine, expect=1)  # without a mountpoint anywhere it is /genomes
    assert checks["mountpoint"]["state"] == "fail"
    assert f"install -d -o {machine.user} /genomes" in checks["mountpoint"]["advice"]

    machine.refgenfs("mount", machine.genomes, "-c", machine.config)
    checks = _doctor(machine, expect=0)  # the only daemon there is
    assert checks["mountpoint"]["found"] == f"{machine.genomes} is mounted"
    assert "/sys/class/bdi/" in checks["readahead"]["advice"]
    assert checks["daemon"]["found"].endswith("mounted")

    machine.run("sh", "-c", f"kill -9 {machine.status()['pid']}")
    checks = _doctor(machine, machine.genomes, expect=0)
    assert (checks["mountpoint"]["state"], checks["mountpoint"]["found"]) == (
        "warn",
        f"{machine.genomes} is a dead mount",
    )

    machine.config.write_text(machine.config.read_text() + "[mount]\nallow_other = true\n")
    checks = _doctor(machine, machine.home / "other", expect=1)
    assert checks["other users"]["state"] == "fail"
    assert "user_allow_other" in checks["other users"]["advice"]


def test_with_allow_other_root_mounts_for_everybody(machine: Machine, demo: DemoRoot) -> None:
    point, cache = machine.folder / "everybody", machine.folder / "roots-cache"
    runtime = {"REFGENFS_RUNTIME_DIR": str(machine.folder / "run")}
    environ = {**runtime, "XDG_STATE_HOME": str(machine.folder / "state")}
    options = f"allow_other,cache_dir={cache}"
    machine.refgenfs("mount", point, "-c", machine.config, "-o", options, user="root", more=environ)
    wanted = hashlib.md5((demo.unpacked("bwa_index") / f"{demo.digest}.fa.bwt").read_bytes()).hexdigest()
    for user in (machine.user, NOBODY, "root"):
        assert machine.run("md5sum", point / "demo/bwa_index/demo.fa.bwt", user=user).stdout.split()[0] == wanted
        done = machine.run("touch", point / "demo/bwa_index/demo.fa.bwt", user=user, check=False)
        assert "Read-only file system" in done.stderr
    # who may read the files may not look into the cache, nor stop the daemon
    assert machine.run("ls", cache, check=False).returncode == 2
    done = machine.refgenfs("umount", point, check=False, more=runtime)
    assert done.returncode == 1
    assert machine.mounts()
    machine.refgenfs("umount", point, user="root", more=environ)
    assert machine.mounts() == ""


def test_the_demo_needs_no_root(machine: Machine) -> None:
    done = machine.refgenfs("demo", "--json")
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert report["warm_bytes"] == 0
    assert machine.mounts() == ""
    assert machine.processes() == []
