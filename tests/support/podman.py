"""Real containers: podman with a store of its own, an image of nothing but busybox, no registry, no network."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BUSYBOX = Path("/bin/busybox")  # Debian's busybox-static: it runs in a root with nothing else
APPLETS = ("sh", "cat", "ls", "sleep", "stat", "md5sum", "id", "mount", "umount", "grep", "test")
IMAGE = "localhost/box"
THIS_MACHINE = "localhost/this-machine"  # links to programs that are there with the options of `this_machine`
ETC = ("passwd", "group", "nsswitch.conf", "ld.so.cache", "hosts")
LOCKS = (
    '[engine]\nlock_type = "file"\n'  # in the store: those in memory are the machine's, and a new store frees them
)
SECONDS = 60


@dataclass(frozen=True, slots=True)
class Podman:
    """A store of images and containers in a folder; containers that are left are removed with it."""

    folder: Path

    def ask(self, *arguments: str, check: bool = True, conf: str = "") -> subprocess.CompletedProcess[str]:
        """Run podman; `conf` is the text of a containers.conf."""
        stores = ["--root", str(self.folder / "store"), "--runroot", str(self.folder / "run")]
        # runc: Debian's crun takes no machine that has both versions of cgroups, as some have
        machine = ["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime=runc"]
        file = self.folder / "containers.conf"
        file.write_text(f"{conf}\n{LOCKS}")
        environ = {**os.environ, "CONTAINERS_CONF": str(file)}
        command = ["timeout", "-s", "KILL", str(SECONDS), "podman", *stores, *machine, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=environ, cwd="/"
        )
        assert not check or done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done

    def run(
        self, options: list[str], *command: str, check: bool = True, conf: str = "", image: str = IMAGE
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a new container."""
        return self.ask("run", "--rm", *_apart(), *options, image, *command, check=check, conf=conf)

    @contextmanager
    def running(
        self, options: list[str], *command: str, image: str = IMAGE, network: str = "none"
    ) -> Iterator[Container]:
        """Have a container run during the block; it sleeps if it is not told what to do."""
        name = f"box-{uuid.uuid4().hex[:8]}"
        what = [image, *(command or ("sleep", "300"))]
        self.ask("run", "--detach", "--name", name, *_apart(network), *options, *what)
        try:
            yield Container(self, name)
        finally:
            self.ask("rm", "--force", "--time", "0", name, check=False)


@dataclass(frozen=True, slots=True)
class Container:
    """A container that runs."""

    podman: Podman
    name: str

    def run(self, *command: str, check: bool = False, user: str = "0") -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self.podman.ask("exec", "--user", user, self.name, *command, check=check)

    def logs(self) -> str:
        """Return what it has printed."""
        done = self.podman.ask("logs", self.name, check=False)
        return (done.stdout + done.stderr)[-4000:]

    def end(self, signal: str = "TERM") -> None:
        """Send its first process a signal, and wait until it has ended."""
        self.podman.ask("kill", "--signal", signal, self.name)
        self.podman.ask("wait", self.name)


def _apart(network: str = "none") -> list[str]:
    """Return options for a container that asks for no more than this process may have."""
    limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    hard = {name: min(4096, resource.getrlimit(number)[1] % 2**63) for name, number in limits.items()}
    return [f"--network={network}", *(f"--ulimit={name}={number}:{number}" for name, number in hard.items())]


def this_machine(repository: Path) -> list[str]:
    """Return options by which a container of THIS_MACHINE has this machine's programs, and refgenfs of this clone."""
    folders = sorted({"/usr", sys.base_prefix, str(repository)})
    path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin"
    return [f"--env=PATH={path}", *(f"--volume={folder}:{folder}:ro" for folder in folders)]


@contextmanager
def podman() -> Iterator[Podman]:
    """Make a store with the images; it is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="podman-"))
    made = Podman(folder)
    try:
        _import(made, IMAGE, _box(folder / "box"))
        _import(made, THIS_MACHINE, _bare(folder / "bare"))
        yield made
    finally:
        subprocess.run(["umount", "-l", folder / "store" / "vfs"], check=False, capture_output=True, timeout=SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


def _box(root: Path) -> Path:
    (root / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    return root


def _bare(root: Path) -> Path:
    (root / "etc").mkdir(parents=True)
    (root / "usr").mkdir()
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    for name in ETC:
        shutil.copy(Path("/etc") / name, root / "etc" / name)
    return root


def _import(made: Podman, name: str, root: Path) -> None:
    archive = root.with_suffix(".tar")
    subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True, timeout=SECONDS)
    made.ask("import", str(archive), name)
