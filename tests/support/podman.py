"""Real containers: podman with a store of its own, an image of nothing but busybox, no registry, no network."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BUSYBOX = Path("/bin/busybox")  # Debian's busybox-static: it runs in a root with nothing else
APPLETS = ("sh", "cat", "ls", "sleep", "stat", "md5sum", "id", "mount", "umount", "grep", "test")
IMAGE = "localhost/box"
SECONDS = 60


@dataclass(frozen=True, slots=True)
class Podman:
    """A store of images and containers in a folder; containers that are left are removed with it."""

    folder: Path

    def ask(self, *arguments: str, check: bool = True, conf: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run podman; `conf` is a containers.conf."""
        stores = ["--root", str(self.folder / "store"), "--runroot", str(self.folder / "run")]
        # runc: Debian's crun takes no machine that has both versions of cgroups, as some have
        machine = ["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime=runc"]
        environ = {**os.environ, **({"CONTAINERS_CONF": str(conf)} if conf else {})}
        command = ["timeout", "-s", "KILL", str(SECONDS), "podman", *stores, *machine, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=environ, cwd="/"
        )
        assert not check or done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done

    def run(
        self, options: list[str], *command: str, check: bool = True, conf: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a new container."""
        return self.ask("run", "--rm", *_apart(), *options, IMAGE, *command, check=check, conf=conf)

    @contextmanager
    def running(self, options: list[str], *command: str) -> Iterator[Container]:
        """Have a container run during the block; it sleeps if it is not told what to do."""
        name = f"box-{uuid.uuid4().hex[:8]}"
        self.ask("run", "--detach", "--name", name, *_apart(), *options, IMAGE, *(command or ("sleep", "300")))
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


def _apart() -> list[str]:
    """Return options for a container that has no network, and asks for no more than this process may have."""
    limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    hard = {name: min(4096, resource.getrlimit(number)[1] % 2**63) for name, number in limits.items()}
    return ["--network=none", *(f"--ulimit={name}={number}:{number}" for name, number in hard.items())]


@contextmanager
def podman(more: Mapping[str, str] | None = None) -> Iterator[Podman]:
    """Make a store with the image, which has these files besides; it is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="podman-"))
    root = folder / "root"
    try:
        (root / "bin").mkdir(parents=True)
        shutil.copy(BUSYBOX, root / "bin" / "busybox")
        for applet in APPLETS:
            (root / "bin" / applet).symlink_to("busybox")
        for name, text in (more or {}).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        subprocess.run(["tar", "-C", root, "-cf", folder / "root.tar", "."], check=True, timeout=SECONDS)
        made = Podman(folder)
        made.ask("import", str(folder / "root.tar"), IMAGE)
        yield made
    finally:
        subprocess.run(["umount", "-l", folder / "store" / "vfs"], check=False, capture_output=True, timeout=SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
