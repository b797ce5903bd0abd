"""The recipes for Docker, podman and Apptainer: what containers of real podman, and namespaces, see of the mount."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults.world import Site, make_site
from tests.support.mounted import Mounted
from tests.support.podman import Podman, podman

RECIPES = Path(__file__).resolve().parents[2] / "mount" / "recipes"
FOLDER = "/srv/refgenfs"  # of the recipes
FILE = "tiny/a/b.small"
USER, SHIFT = 1000, 200_000  # a container's user, and the first user of a container that has users of its own

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]


@dataclass
class Host:
    """A folder that takes the place of /srv/refgenfs, on a disk whose mounts others see, as systemd makes /."""

    folder: Path
    site: Site
    podman: Podman

    @contextmanager
    def mount(self) -> Iterator[Mounted]:
        with self.site.mount() as m:
            yield m

    def recipe(self, name: str) -> str:
        """Return a recipe, for this host's folder."""
        return (RECIPES / name).read_text().replace(FOLDER, str(self.folder))

    @property
    def file(self) -> str:
        return f"{self.folder}/genomes/{FILE}"

    @property
    def digest(self) -> str:
        return hashlib.md5((self.site.world.unpacked("a") / "b.small").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def box() -> Iterator[Podman]:
    with podman() as made:
        yield made


@pytest.fixture
def host(box: Podman) -> Iterator[Host]:
    top = Path(tempfile.mkdtemp(prefix="rgfs-host-"))
    top.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755,size=64m", "host", top], check=True, timeout=20)
    try:
        subprocess.run(["mount", "--make-shared", top], check=True, timeout=20)
        folder = top / "refgenfs"
        folder.mkdir()
        with make_site(top, ["a"], remotes=True) as site:
            site.setup.mountpoint = folder / "genomes"
            site.setup.extra = "allow_other = true"
            yield Host(folder, site, box)
    finally:
        subprocess.run(["umount", "-R", "-l", top], check=False, capture_output=True, timeout=20)
        shutil.rmtree(top, ignore_errors=True)


def eventually(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "that did not come"
        time.sleep(0.1)


def compose_mount(host: Host) -> str:
    """Return the volume of the recipe for Docker, as `docker run --mount` and podman take it."""
    service: dict[str, Any] = yaml.safe_load(host.recipe("docker/compose.yaml"))["services"]["align"]
    (volume,) = service["volumes"]
    assert volume["read_only"] is True
    bind = volume["bind"]["propagation"]
    return f"--mount=type={volume['type']},src={volume['source']},dst={volume['target']},ro,bind-propagation={bind}"


def test_the_command_line_of_the_recipe_is_its_volume(host: Host) -> None:
    said = compose_mount(host).removeprefix("--mount=").replace(",ro,", ",readonly,")
    assert f"docker run --mount {said} " in host.recipe("docker/compose.yaml")


def test_a_container_that_runs_sees_mounts_come_and_go(host: Host) -> None:
    with host.podman.running([compose_mount(host)]) as container:
        assert container.run("cat", host.file).returncode == 1  # no daemon yet
        with host.mount() as m:
            assert host.digest in container.run("md5sum", host.file, check=True).stdout
            m.kill()
            assert "not connected" in container.run("cat", host.file).stderr
        with host.mount() as m:  # as a unit that is started anew
            assert host.digest in container.run("md5sum", host.file, check=True).stdout
            written = container.run("sh", "-c", f": >{host.file}.new")
            assert "Read-only file system" in written.stderr
        assert container.run("cat", host.file).returncode == 1


def test_a_mountpoint_that_is_bound_itself_stays_dead_after_a_restart(host: Host) -> None:
    """Why the recipes bind the folder above it."""
    with host.mount() as m, host.podman.running([f"--volume={m.path}:/genomes:ro,rslave"]) as container:
        assert host.digest in container.run("md5sum", f"/genomes/{FILE}", check=True).stdout
        m.kill()
        with host.mount():
            assert host.digest in m.run("md5sum", host.file).stdout
            assert "not connected" in container.run("md5sum", f"/genomes/{FILE}").stderr


def test_podman_binds_it_everywhere_by_its_configuration(host: Host) -> None:
    conf = host.recipe("podman/containers.conf")
    with host.mount():
        shown = host.podman.run([], "md5sum", host.file, conf=conf)
        assert host.digest in shown.stdout
        assert host.podman.run([], "md5sum", host.file, check=False).returncode == 1


def test_who_asks_is_the_user_whom_the_host_knows(host: Host) -> None:
    """A container's users are the host's, unless it has its own: then what they are on the host."""
    rule = f'allow_users = ["{USER}", "{SHIFT + USER}"]\n'
    host.site.setup.sources += rule
    bind, own = compose_mount(host), f"--uidmap=0:{SHIFT}:65536"
    may = {
        (): {"0": True, str(USER): True, str(USER + 1): False},
        (own,): {"0": False, str(USER): True, str(USER + 1): False},
    }
    with host.mount():
        for options, users in may.items():
            for user, allowed in users.items():
                done = host.podman.run([bind, *options, f"--user={user}"], "md5sum", host.file, check=False)
                assert (done.returncode == 0) is allowed, (options, user, done.stderr)
                assert allowed or "denied" in done.stderr


BIND = """
set -eu
mkdir -p "$2/root"
mount -t tmpfs root "$2/root"
mkdir -p "$2/root/genomes"
mount --rbind "$1" "$2/root/genomes"
cd "$2/root"
cat "genomes/genomes/$3"
echo ready >&2
read -r _
cat "genomes/genomes/$3"
"""


def test_namespaces_of_an_ordinary_user_as_apptainer_makes_them(host: Host) -> None:
    """A user namespace, and a mount namespace that is a slave of the host's, with a bind into a root of its own."""
    conf = host.recipe("apptainer/apptainer.conf").splitlines()
    assert f"bind path = {host.folder}" in conf
    assert "mount slave = yes" in conf
    scratch = host.folder.parent / "scratch"
    scratch.mkdir(mode=0o777)
    scratch.chmod(0o777)
    data = (host.site.world.unpacked("a") / "b.small").read_bytes()
    user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    apart = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "slave"]
    command = ["timeout", "-s", "KILL", "60", *user, *apart, "sh", "-c", BIND, "bind"]
    with host.mount() as m:
        process = subprocess.Popen(
            [*command, str(host.folder), str(scratch), FILE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
        )
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == b"ready\n"
            m.kill()
            with host.mount():
                out, err = process.communicate(b"\n", timeout=30)
        finally:
            process.kill()
            process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out == data * 2


@pytest.mark.parametrize("users", [(), ("--unshare-user", "--uid", "0", "--gid", "0")])
def test_bubblewrap_of_an_ordinary_user(host: Host, users: tuple[str, ...]) -> None:
    user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    binds = ["--ro-bind", "/bin/busybox", "/bin/busybox", "--ro-bind", str(host.folder), str(host.folder)]
    with host.mount() as m:
        done = m.run(*user, "bwrap", *binds, *users, "/bin/busybox", "md5sum", host.file)
        assert host.digest in done.stdout
        assert os.listxattr(host.file)
