"""A real Slurm of one node: munged, slurmctld and slurmd in a folder, on ports of loopback, ended by their pids."""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.children import end

PORTS = range(20000, 30000)  # the kernel gives none of these to others, who ask for just any
START_TIMEOUT = 60.0  # seconds
NODE = "node"


@dataclass(frozen=True, slots=True)
class Slurm:
    """A cluster that runs; its commands find it by SLURM_CONF."""

    folder: Path

    def run(self, *command: str, timeout: int = 60) -> str:
        """Run a command of Slurm's and return what it printed."""
        environ = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}
        full = ["timeout", "-s", "KILL", str(timeout), *command]
        done = subprocess.run(
            full, capture_output=True, text=True, check=False, env=environ, stdin=subprocess.DEVNULL, cwd="/"
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr, self.logs())
        return done.stdout

    def submit(self, script: str, *options: str) -> int:
        """Submit a job and return its number."""
        out = self.folder / "job-%j.out"
        printed = self.run("sbatch", "--parsable", f"--output={out}", *options, f"--wrap={script}")
        return int(printed.split(";")[0])

    def job(self, number: int) -> str:
        """Return the state of a job."""
        found = re.search(r"JobState=(\w+)", self.run("scontrol", "-o", "show", "job", str(number)))
        assert found is not None
        return found[1]

    def node(self) -> str:
        """Return the state of the node: "idle", "mixed", "drained", … ."""
        return self.run("sinfo", "--noheader", "--Node", "--format=%T").strip()

    def cancel_all(self) -> None:
        """End all jobs: what they run would outlast the daemons."""
        with contextlib.suppress(AssertionError):
            self.run("scancel", "--user=root", timeout=10)
            deadline = time.monotonic() + 10
            while self.run("squeue", "--noheader", timeout=10).strip() and time.monotonic() < deadline:
                time.sleep(0.1)

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        return "\n".join(path.read_text(errors="replace")[-2500:] for path in sorted(self.folder.glob("*.log")))


@contextmanager
def running_slurm(prolog: Path, epilog: Path, settings: Mapping[str, str]) -> Iterator[Slurm]:
    """Run a cluster of this machine, as root; `settings` are lines of slurm.conf besides."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, ExitStack() as stack:
        folder = Path(name)
        for each in ("state", "spool", "run"):
            (folder / each).mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        controller, node = _free_ports(2)
        lines = {**_configuration(folder, controller, node), "Prolog": prolog, "Epilog": epilog, **settings}
        text = "".join(f"{key}={value}\n" for key, value in lines.items())
        text += f"NodeName={NODE} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={node} CPUs=4\n"
        text += f"PartitionName=all Nodes={NODE} Default=YES MaxTime=INFINITE State=UP\n"
        (folder / "slurm.conf").write_text(text)
        slurm = Slurm(folder)
        _start(stack, slurm, "munged", *_munged(folder))
        _until(lambda: (folder / "run/munge.socket").exists(), slurm)
        _start(stack, slurm, "slurmctld", "slurmctld", "-D", "-c")
        _start(stack, slurm, "slurmd", "slurmd", "-D", "-N", NODE)
        _until(lambda: slurm.node() == "idle", slurm)
        try:
            yield slurm
        finally:
            slurm.cancel_all()


def _configuration(folder: Path, controller: int, node: int) -> dict[str, object]:
    return {
        "ClusterName": "test",
        "SlurmctldHost": f"{socket.gethostname()}(127.0.0.1)",
        "SlurmctldPort": controller,
        "SlurmdPort": node,
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/run/munge.socket",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "run/slurmctld.pid",
        "SlurmdPidFile": folder / "run/slurmd.pid",
        "ProctrackType": "proctrack/pgid",  # no cgroups: they are the machine's
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU",
        "SlurmdParameters": "config_overrides",  # the node's CPUs are what is said here
        "SchedulerParameters": "sched_min_interval=1,batch_sched_delay=0",
        "ReturnToService": 2,
    }


def _munged(folder: Path) -> list[str]:
    paths = {"key-file": "munge.key", "socket": "run/munge.socket", "pid-file": "run/munged.pid", "seed-file": "seed"}
    options = [f"--{option}={folder / path}" for option, path in paths.items()]
    return ["munged", "--foreground", "--force", f"--log-file={folder / 'munged-own.log'}", *options]


def _start(stack: ExitStack, slurm: Slurm, name: str, *command: str) -> None:
    environ = {**os.environ, "SLURM_CONF": str(slurm.folder / "slurm.conf")}
    environ["PATH"] = f"{environ['PATH']}:/usr/sbin:/sbin"
    with (slurm.folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environ, cwd="/")
    stack.callback(end, process)


def _until(true: Callable[[], bool], slurm: Slurm) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not true():
        assert time.monotonic() < deadline, slurm.logs()
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody has on any address."""
    with ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(PORTS, len(PORTS)):
            one = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                one.bind(("", port))
                found.append(port)
            if len(found) == count:
                return found
    raise AssertionError("no port is free")
