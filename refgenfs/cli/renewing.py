"""After an upgrade of the package: what still runs the version before.

Each version of the package has a folder of its own, and a daemon runs from the one that it began with. Who has a file
open would lose it with its daemon, so a daemon whose files are open goes on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from refgenfs.cli.installing import PACKAGES
from refgenfs.control_client import ControlClient
from refgenfs.core.errors import ControlError
from refgenfs.core.units import counted

RUN = Path("/run")
ASK_SECONDS = 10.0
RESTART_SECONDS = 120.0  # a stop and a start, each with what the unit gives it


@dataclass(frozen=True, slots=True)
class Instance:
    """A unit that runs, and the path of the Python that its daemon runs with."""

    unit: str
    program: str

    @property
    def name(self) -> str:
        """The unit, as people type it."""
        return self.unit.removesuffix(".service")

    @property
    def is_outdated(self) -> bool:
        """Whether it runs from the folder of another version of the package."""
        return self.program.startswith(PACKAGES) and not self.program.startswith(f"{sys.prefix}/")


def renew() -> Iterator[str]:
    """Restart the instances of another version that nobody has a file open of; yield a line for each."""
    for instance in instances():
        if not instance.is_outdated:
            continue
        files = open_files(instance.unit)
        if files is None or files:
            why = "as it doesn't answer" if files is None else f"{counted(files, 'file')} open"
            yield f"{instance.name} goes on with the version before, {why}: `systemctl restart {instance.name}` later"
        elif said := _systemctl("restart", instance.unit):
            yield f"{instance.name} can't be restarted: {said}"
        else:
            yield f"{instance.name} runs the new version"


def instances() -> Iterator[Instance]:
    """Yield the instances of the system's manager that run."""
    listed = _ask("list-units", "--state=active", "--plain", "--no-legend", "--full", "refgenfs@*.service")
    for line in listed.splitlines():
        unit = line.split()[0]
        pid = _ask("show", "-p", "MainPID", "--value", unit).strip()
        try:
            program = Path("/proc", pid, "cmdline").read_bytes().partition(b"\0")[0]
        except OSError:  # it has ended
            continue
        yield Instance(unit, os.fsdecode(program))


def open_files(unit: str) -> int | None:
    """Return how many files of an instance are open; None where it doesn't say."""
    name = unit.partition("@")[2].removesuffix(".service")
    for path in (RUN / f"refgenfs-{name}").glob("*.sock"):
        try:
            return int(ControlClient(path, reply_timeout=ASK_SECONDS).call("status")["open_files"])
        except (ControlError, LookupError, TypeError, ValueError):
            continue
    return None


def _ask(*arguments: str) -> str:
    done = subprocess.run(
        ["systemctl", *arguments], capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
    )
    return done.stdout


def _systemctl(*arguments: str) -> str:
    """Have something done; return why it failed, or an empty text."""
    try:
        done = subprocess.run(
            ["systemctl", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=RESTART_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {RESTART_SECONDS:g} s"
    return "" if done.returncode == 0 else (done.stderr.strip() or f"exit {done.returncode}").splitlines()[0]
