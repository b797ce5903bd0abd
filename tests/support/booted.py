"""A booted machine of the test's own: Debian with systemd in a container, and refgenfs installed from its wheel.

The root with its packages, and what refgenfs depends on, is made once and cached beside the bare roots; it is booted
with a file system over it that is gone with the machine. The network is the host's. Commands run in it as on a
console of its own: in the namespaces of its first process, outside of every unit.

Its units are bounded in memory and tasks, as far as the host lets cgroups be made: those of version 1 are made here,
those of version 2 are nspawn's matter.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.bare_root import BASE_DAYS, ENTER, Site, configure, locked, make_base, run_apart, tail

PACKAGES = (
    *("systemd", "systemd-sysv", "libpam-systemd", "dbus", "dbus-user-session", "fuse3", "python3-venv", "mount"),
    *("procps", "kmod", "util-linux", "attr", "autofs", "plocate", "ca-certificates"),
)
INSTALL_SECONDS = 600
BOOT_SECONDS = 90
AUTOFS = Path("/dev/autofs")  # what automounting takes of a kernel
CONTROLLERS = ("memory", "pids")  # what bounds of units take
HOST_PYTHON = "/usr/bin/python3"  # of the host's distribution, as the container's is
PREFIX = "/opt/refgenfs"
ENVIRON = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}

PREPARE = r"""
set -eu
export DEBIAN_FRONTEND=noninteractive
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
apt-get -qq update
apt-get -qq install -y --no-install-recommends "$@"
rm /usr/sbin/policy-rc.d
python3 -m venv /opt/refgenfs
/opt/refgenfs/bin/pip install -q --no-index --find-links /srv/wheels /srv/wheels/*.whl
systemctl disable -q autofs apt-daily.timer apt-daily-upgrade.timer plocate-updatedb.timer || true
: >/etc/machine-id
rm -rf /srv/wheels
"""


@dataclass(frozen=True, slots=True)
class Done:
    """What a command printed, and its exit status."""

    code: int
    out: str
    err: str


class Machine:
    """A booted machine. Each command has a time limit, as it may touch a mount that hangs."""

    def __init__(self, leader: int, root: Path) -> None:
        self._leader = leader
        self._root = root

    def __call__(self, *command: str, code: int | None = 0, timeout: int = 60, **environ: str) -> Done:
        """Run a command as root, outside of every unit; it has to exit with `code`, unless that is None."""
        enter = ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--"]
        clean = ["env", "-i", *(f"{key}={value}" for key, value in {**ENVIRON, **environ}.items())]
        done = subprocess.run(
            ["timeout", "-s", "KILL", str(timeout), *enter, *clean, *command],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
        )
        told = f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert code is None or done.returncode == code, told
        return Done(done.returncode, done.stdout, done.stderr)

    def shell(self, script: str, *, code: int | None = 0, timeout: int = 60) -> str:
        """Run a bash script; return what it printed."""
        return self("bash", "-euc", script, code=code, timeout=timeout).out

    def write(self, path: str, text: str) -> None:
        """Write a file."""
        self("bash", "-euc", 'mkdir -p "$(dirname "$1")"; printf %s "$2" >"$1"', "write", path, text)

    def send(self, file: Path, path: str) -> None:
        """Bring a file of the host into the machine."""
        with file.open("rb") as source:
            enter = ["nsenter", "-t", str(self._leader), "-m", "-r", "--", "tee", path]
            subprocess.run(enter, stdin=source, stdout=subprocess.DEVNULL, check=True, timeout=60)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self("systemctl", "show", unit, "-p", name, "--value").out.strip()

    def log(self, unit: str) -> str:
        """Return the last lines of a unit's journal."""
        return self("journalctl", "-u", unit, "-n", "60", "--no-pager", "-o", "cat", code=None).out

    def until(self, script: str, seconds: float = 30) -> None:
        """Wait until a bash script succeeds."""
        deadline = time.monotonic() + seconds
        while (done := self("bash", "-euc", script, code=None, timeout=20)).code:
            assert time.monotonic() < deadline, f"{script}: still {done}"
            time.sleep(0.1)


def make_wheels(folder: Path, *options: str) -> None:
    """Build the wheel of this repository, and of all that it depends on unless the options say no."""
    subprocess.run([HOST_PYTHON, "-m", "venv", folder / "venv"], check=True, timeout=120)
    pip = [folder / "venv/bin/pip", "wheel", "-q", "--disable-pip-version-check", "--no-input"]
    command = [*map(str, pip), "-w", str(folder / "wheels"), *options, str(REPOSITORY)]
    done = subprocess.run(command, check=False, timeout=INSTALL_SECONDS, capture_output=True, text=True)
    assert done.returncode == 0, tail(done.stdout + done.stderr)


def make_root(site: Site, cache: Path) -> Path:
    """Return a folder with a root that can be booted, made unless the cache has it."""
    with locked(cache, "booted"):
        return _make_root(site, cache)


def _make_root(site: Site, cache: Path) -> Path:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    made_of = repr((site.suite, PACKAGES, PREPARE, project["dependencies"]))
    name = f"booted-{site.suite}-{platform.machine()}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    made = cache / name
    if made.is_dir() and time.time() - made.stat().st_mtime < BASE_DAYS * 86400:
        return made
    base = make_base(site, cache)
    for old in cache.glob(f"booted-{site.suite}-*"):
        shutil.rmtree(old)
    with tempfile.TemporaryDirectory(dir=cache, prefix="booting-") as folder:
        root = Path(folder) / "root"
        root.mkdir(mode=0o755)
        subprocess.run(["tar", "-C", root, "--numeric-owner", "-xpf", base], check=True, timeout=300)
        environment = configure(root, site)
        make_wheels(Path(folder))
        shutil.copytree(Path(folder) / "wheels", root / "srv/wheels")
        archives = cache / f"archives-booted-{site.suite}"  # apt locks the folder, and the bare root's runs meanwhile
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        enter = ["/bin/sh", "-c", ENTER, "enter", str(root), str(archives), "/", ""]
        prepare = ["/bin/bash", "-c", PREPARE, "prepare", *PACKAGES]
        status, output = run_apart([*enter, *prepare], INSTALL_SECONDS, environment)
        assert status == 0, f"the root can't be made:\n{tail(output)}"
        root.rename(made)
    made.touch()
    return made


@contextlib.contextmanager
def _own_cgroups() -> Iterator[list[Path]]:
    """Yield cgroups of a machine's own, one for each of the host's hierarchies that its units' bounds take."""
    made = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controller, path = line.split(":", 2)
        above = Path("/sys/fs/cgroup", controller, path.lstrip("/"))
        if controller in CONTROLLERS and above.is_dir():
            made.append(above / f"refgenfs-tests-{os.getpid()}")
            made[-1].mkdir()
    try:
        yield made
    finally:
        for top in made:
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()


def _bound_units(machine: Machine) -> None:
    """Let the first process make cgroups in hierarchies of version 1, which nspawn hands over to be read only."""
    there = [
        name for name in CONTROLLERS if f" /sys/fs/cgroup/{name} cgroup ro," in machine("cat", "/proc/mounts").out
    ]
    for name in there:
        machine("mount", "-o", "remount,bind,rw", f"/sys/fs/cgroup/{name}")
    if there:
        machine("systemctl", "daemon-reexec")


@contextlib.contextmanager
def booted(root: Path, disk: Path) -> Iterator[Machine]:
    """Boot a root, with a file system over it that is thrown away, and wait until it is up.

    What it writes is in memory, but for what is below `/srv/disk`, which is the folder `disk`.
    """
    command = [
        *("sh", "-c", 'for own in $CGROUPS; do echo $$ >"$own/cgroup.procs"; done; exec "$@"', "boot"),
        *("systemd-nspawn", "--quiet", "--boot", f"--directory={root}", "--volatile=overlay", "--machine=refgenfs"),
        *("--bind=/dev/fuse", "--capability=all", "--register=no", "--keep-unit", "--console=pipe"),
        *("--resolv-conf=off", "--timezone=off", "--tmpfs=/var/cache:mode=755", f"--bind={disk}:/srv/disk"),
    ]
    if AUTOFS.exists():
        command.append(f"--bind={AUTOFS}")
    # a root that is in use is not booted again: one machine at a time, whichever lane has it
    with locked(root.parent, "boot"), _own_cgroups() as cgroups, tempfile.TemporaryFile("w+") as log:
        # the kernel's limits are raised in /sys
        environ = {**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1", "CGROUPS": " ".join(map(str, cgroups))}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ)
        leader = 0
        try:
            leader = _wait_for_leader(process.pid)
            machine = Machine(leader, root)
            machine.until("systemctl is-system-running | grep -Eq 'running|degraded'", BOOT_SECONDS)
            _bound_units(machine)
            # for everybody, as udev makes it, whatever the host's is
            machine.shell("umount /dev/fuse; rm /dev/fuse; mknod -m 666 /dev/fuse c 10 229")
            yield machine
        except BaseException:
            log.seek(0)
            print(tail(log.read()))
            raise
        finally:
            if leader:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(leader, signal.SIGKILL)  # its processes and mounts go with it
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def _wait_for_leader(pid: int) -> int:
    """Return the process that is the first one in the container, as the host numbers it."""
    deadline = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                numbers = Path(f"/proc/{child}/status").read_text().partition("NSpid:")[2].splitlines()[0].split()
                if numbers[-1] == "1" and Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        time.sleep(0.05)
    raise AssertionError("the container has no first process")


@pytest.fixture(scope="session")
def booted_machine(site: Site, root_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The machine: one boot for all tests. Whoever installs something there takes it away again."""
    for program in ("systemd-nspawn", "nsenter"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    disk = tmp_path_factory.mktemp("disk")
    disk.chmod(0o755)
    with booted(make_root(site, root_cache), disk) as machine:
        yield machine
