"""A fresh clone on a bare system: `make` installs what is missing, and then does what the README says.

The bare system is a minimal root of the host's own distribution, made by debootstrap and entered by chroot in
namespaces of its own, so that neither a mount nor a process outlives the test. What a site needs to reach its
mirrors (proxies, certificates, local folders of wheels) is asked of the host's apt and pip, and carried over.

What is tested is the commit at HEAD.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.bare_root import BASE_SECONDS, ENTER, Site, configure, make_base, run_apart, tail

CLONE = "/srv/a clone/refgenfs"  # the space is part of the test

COMMAND_SECONDS = 1200  # about 300 MB of packages, over the same line


@dataclass(frozen=True, slots=True)
class Command:
    """One command in the clone: it has to exit with 0 and print a match of every pattern in `prints`."""

    argv: tuple[str, ...]
    prints: tuple[str, ...]


COMMANDS = (
    Command(("make", "demo"), (r"bootstrap: ready", r"bwa mem")),
    Command(("make", "test", "PYTEST_ARGS=tests/unit"), (r"bootstrap: ready", r"\d+ passed")),
    Command(("make", "install"), (r"\A\Z",)),  # nothing left to install: nothing said
    Command(
        ("make", "install-service", "SERVICE_ARGS=--yes"), (r"^/usr/local/lib/systemd/system/refgenfs@.service$",)
    ),
    Command(("/usr/local/bin/refgenfs", "--version"), (r"\Arefgenfs \d",)),
)


@pytest.fixture
def bare_root(site: Site, root_cache: Path) -> Iterator[Path]:
    """A bare root with a clone of HEAD in it."""
    base = make_base(site, root_cache)
    root = Path(tempfile.mkdtemp(dir=root_cache, prefix="root-"))
    try:
        root.chmod(0o755)
        subprocess.run(["tar", "-C", root, "--numeric-owner", "-xpf", base], check=True, timeout=300)
        clone = root / CLONE.removeprefix("/")
        clone.parent.mkdir(parents=True)
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", REPOSITORY, clone], check=True, timeout=120)
        yield root
    finally:
        shutil.rmtree(root)


# ---------------------------------------------------------------- the test


@pytest.mark.slow
@pytest.mark.needs_root
@pytest.mark.needs_fuse
@pytest.mark.timeout(BASE_SECONDS + (len(COMMANDS) + 1) * COMMAND_SECONDS)
def test_make_works_in_a_fresh_clone_on_a_bare_root(bare_root: Path, site: Site, root_cache: Path) -> None:
    environment = configure(bare_root, site)
    archives = root_cache / f"archives-{site.suite}"  # packages that apt has fetched before
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    folders = "".join(f"{folder}\n" for folder in site.folders)
    enter = ["/bin/sh", "-c", ENTER, "enter", str(bare_root), str(archives), CLONE, folders]
    for command in COMMANDS:
        began = time.monotonic()
        status, output = run_apart([*enter, *command.argv], COMMAND_SECONDS, environment)
        line = " ".join(command.argv)
        print(f"$ {line}\n{output}[exit {status}, {time.monotonic() - began:.0f} s]")
        assert status == 0, f"{line}: exit {status}\n{tail(output)}"
        for pattern in command.prints:
            assert re.search(pattern, output, re.MULTILINE), (
                f"{line} printed nothing like {pattern!r}:\n{tail(output)}"
            )
