"""The recipe for Kubernetes: by the schemas of its API, and its pods in real containers, as kubelet runs them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from refgenfs.core.units import parse_size
from tests.conftest import REPOSITORY
from tests.faults.world import Site, make_site
from tests.support.podman import THIS_MACHINE, Container, Podman, podman, this_machine

RECIPE = REPOSITORY / "mount" / "recipes" / "kubernetes"
VALIDATE = REPOSITORY / ".venv" / "recipes" / "bin" / "kubernetes-validate"
VERSIONS = ("1.25.0", "1.31.0", "1.37.0")
GENOMES = "/srv/refgenfs/genomes"
FILE = f"{GENOMES}/tiny/a/b.small"

PROPAGATION = {"Bidirectional": "rshared", "HostToContainer": "rslave", "None": "rprivate"}


def documents(name: str) -> dict[str, dict[str, Any]]:
    """Return the objects of a manifest by their kind."""
    return {each["kind"]: each for each in yaml.safe_load_all((RECIPE / name).read_text())}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["refgenfs.yaml", "consumer.yaml"])
def test_the_schemas_of_the_api_know_every_field(name: str, version: str) -> None:
    command = [str(VALIDATE), "--strict", "--kubernetes-version", version, str(RECIPE / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_schemas_do_not_say() -> None:
    daemon, consumer = documents("refgenfs.yaml"), documents("consumer.yaml")["Pod"]
    spec = daemon["DaemonSet"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert container["securityContext"]["privileged"], "the API server takes Bidirectional of no others"
    assert daemon["PriorityClass"]["metadata"]["name"] == pod["priorityClassName"]
    assert daemon["PriorityClass"]["value"] <= 1_000_000_000, "more is the system's own"
    for each, mounts in ((pod, container["volumeMounts"]), (consumer["spec"], all_mounts(consumer["spec"]))):
        assert {mount["name"] for mount in mounts} == {volume["name"] for volume in each["volumes"]}
    port = spec["template"]["metadata"]["annotations"]["prometheus.io/port"]
    assert f'listen = "0.0.0.0:{port}"' in daemon["ConfigMap"]["data"]["config.toml"]
    assert container["ports"][0]["containerPort"] == int(port)
    stop = container["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert "-lt 40 " in stop
    assert pod["terminationGracePeriodSeconds"] >= 40 + 15
    assert parse_size(container["resources"]["limits"]["memory"].replace("Gi", "GiB")) == 2 << 30


def all_mounts(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [mount for each in (*pod["initContainers"], *pod["containers"]) for mount in each["volumeMounts"]]


# ---------------------------------------------------------------- a node


@dataclass
class Node:
    """What kubelet has on a node: folders in the place of the host's, and podman for the containers."""

    folder: Path
    podman: Podman
    site: Site

    def host_path(self, path: str) -> Path:
        """Return what stands for a path of the host."""
        return self.folder / path.strip("/").replace("/", "-")

    def volumes(self, spec: dict[str, Any], container: dict[str, Any]) -> list[str]:
        """Return the options that mount what a container of a pod mounts."""
        made = {volume["name"]: self._volume(volume) for volume in spec["volumes"]}
        options = []
        for mount in container["volumeMounts"]:
            mode = "ro" if mount.get("readOnly") else "rw"
            how = PROPAGATION[mount.get("mountPropagation", "None")]
            options.append(f"--volume={made[mount['name']]}:{mount['mountPath']}:{mode},{how}")
        return options

    def _volume(self, volume: dict[str, Any]) -> Path:
        if "hostPath" in volume:
            path = self.host_path(volume["hostPath"]["path"])
        else:
            path = self.folder / f"volume-{volume['name']}"
        path.mkdir(exist_ok=True)
        if "configMap" in volume:
            text = documents("refgenfs.yaml")["ConfigMap"]["data"]["config.toml"]
            (path / "config.toml").write_text(text.replace("https://genomes.example.org", self.site.origin.url))
        for name in ("lab.token", "metrics.token") if "secret" in volume else ():
            (path / name).unlink(missing_ok=True)
            (path / name).write_text("a-token-of-the-test\n")
            (path / name).chmod(volume["secret"]["defaultMode"])
        return path

    @contextmanager
    def daemon(self) -> Iterator[Container]:
        """Run the container of the DaemonSet, until its startup probe succeeds."""
        spec = documents("refgenfs.yaml")["DaemonSet"]["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        context = container["securityContext"]
        options = [f"--privileged={context['privileged']}", "--stop-timeout=20"]
        options += ["--pid=host"] if spec["hostPID"] else []
        options += [f"--read-only={context['readOnlyRootFilesystem']}", "--read-only-tmpfs=false"]
        options += [*this_machine(REPOSITORY), *self.volumes(spec, container)]
        with self.podman.running(options, *container["command"], image=THIS_MACHINE, network="host") as running:
            probe = container["startupProbe"]["exec"]["command"]
            eventually(lambda: running.run(*probe).returncode == 0, running.logs)
            yield running

    @contextmanager
    def consumer(self) -> Iterator[Container]:
        """Run the pod's first container, as its user."""
        spec = documents("consumer.yaml")["Pod"]["spec"]
        options = [f"--user={spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}"]
        options += ["--cap-drop=all", "--security-opt=no-new-privileges"]
        with self.podman.running([*options, *self.volumes(spec, spec["containers"][0])], "sleep", "300") as running:
            yield running


def eventually(true: Callable[[], bool], tell: Callable[[], str] = str, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, tell()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def image() -> Iterator[Podman]:
    with podman() as made:
        yield made


@pytest.fixture
def node(image: Podman) -> Iterator[Node]:
    folder = Path(tempfile.mkdtemp(prefix="rgfs-node-"))
    folder.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755,size=64m", "node", folder], check=True, timeout=20)
    try:
        subprocess.run(["mount", "--make-shared", folder], check=True, timeout=20)
        with make_site(folder, ["a"], remotes=True) as site:
            yield Node(folder, image, site)
    finally:
        subprocess.run(["umount", "-R", "-l", folder], check=False, capture_output=True, timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_a_pod_reads_what_the_daemon_of_its_node_mounts(node: Node) -> None:
    truth = hashlib.md5((node.site.world.unpacked("a") / "b.small").read_bytes()).hexdigest()
    spec = documents("refgenfs.yaml")["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]
    (node.host_path("/srv/refgenfs")).mkdir()
    with node.consumer() as consumer:
        assert consumer.run("cat", FILE).returncode == 1, "no daemon yet"
        with node.daemon() as daemon:
            assert truth in consumer.run("md5sum", FILE, check=True, user="1000").stdout
            for probe in ("readinessProbe", "livenessProbe"):
                status = daemon.run(*spec[probe]["exec"]["command"], check=True).stdout
                assert json.loads(status)["mountpoint"] == GENOMES
            assert "requests under way stay limited" not in daemon.logs(), "it is root, and has the kernel's switches"
            daemon.end("KILL")
            assert "not connected" in consumer.run("cat", FILE).stderr
        with node.daemon() as daemon:
            assert truth in consumer.run("md5sum", FILE, check=True, user="1000").stdout
            host_file = FILE.replace("/srv/refgenfs", str(node.host_path("/srv/refgenfs")))
            script = f"md5sum {host_file}; exec sleep 5 <{host_file}"
            held = subprocess.Popen(
                ["timeout", "-s", "KILL", "30", "sh", "-c", script], stdout=subprocess.PIPE, text=True
            )
            assert held.stdout is not None
            assert truth in held.stdout.readline(), "the node has it, too"
            began = time.monotonic()
            daemon.run(*spec["lifecycle"]["preStop"]["exec"]["command"])
            assert time.monotonic() - began > 1, "it waits for who reads"
            held.communicate(timeout=20)
        assert consumer.run("ls", GENOMES).stdout == ""
    assert not os.path.ismount(node.host_path("/srv/refgenfs") / "genomes")


def test_the_image_has_what_the_daemon_needs() -> None:
    """It was built by podman, which takes minutes and registries: here is what would break it."""
    text = (RECIPE / "Containerfile").read_text()
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        assert all((REPOSITORY / part).exists() for part in source.split()), source
    forced = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = set(re.findall(r"^COPY ([\w/]+) /src/[\w/]+$", text, re.MULTILINE))
    assert {*forced["packages"], *forced["force-include"]} <= copied
    runtime = re.search(
        r"^runtime_packages=\((.*?)\)", (REPOSITORY / "scripts/bootstrap.sh").read_text(), re.M | re.S
    )
    assert runtime is not None
    needed = {name.strip("'").split("|")[0] for name in runtime[1].split()} - {"bwa", "fuse3"}
    built = re.search(r"install -y --no-install-recommends (.*)\nCOPY", text)
    assert built is not None
    assert needed <= set(built[1].split())
