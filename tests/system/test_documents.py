"""What the documentation has systemd and apt do: typed page by page, on one booted machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from refgenfs.demo.origin import Origin
from tests.conftest import REPOSITORY
from tests.support.booted import HOST_PYTHON, PREFIX, Machine
from tests.support.documents import Command, documents, parse
from tests.support.sessions import judge, ran, script, typed

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.slow, pytest.mark.timeout(1200)]

HOME = "/root"
SESSION_SECONDS = 240
BUILD_SECONDS = 600
TEXTS = {str(path.relative_to(REPOSITORY)): path.read_text() for path in documents()}
PAGES = [page for page, text in TEXTS.items() if typed(parse(text, page), "booted")]


def _wheels(folder: Path) -> Path:
    """Build all wheels as docs/install.md does; return a tar file of them."""
    copied = shutil.ignore_patterns(".*", "build", "dist", "site", "__pycache__")
    shutil.copytree(REPOSITORY, folder / "refgenfs", ignore=copied)
    subprocess.run([HOST_PYTHON, "-m", "venv", folder / "venv"], check=True, timeout=120)
    environ = {**os.environ, "PATH": f"{folder / 'venv/bin'}:{os.environ['PATH']}"}
    build = "pip wheel -w wheels ."
    subprocess.run(
        build.split(),
        cwd=folder / "refgenfs",
        env=environ,
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=BUILD_SECONDS,
    )
    subprocess.run(["tar", "-C", folder / "refgenfs", "-cf", folder / "wheels.tar", "wheels"], check=True, timeout=60)
    return folder / "wheels.tar"


@pytest.fixture(scope="module")
def machine(booted_machine: Machine) -> Iterator[Machine]:
    """The machine, with no refgenfs installed, and its wheels at home."""
    up = booted_machine
    with tempfile.TemporaryDirectory() as name:
        up.send(_wheels(Path(name)), "/run/wheels.tar")
    up.shell(f"{PREFIX}/bin/pip uninstall -qy refgenfs; rm -f /usr/local/bin/refgenfs")
    up.shell(f"cd {HOME} && tar -xf /run/wheels.tar && cp wheels/refgenfs-*.whl .")
    yield up
    up.shell("systemctl stop 'refgenfs@*'; rm -f /etc/systemd/system/*.wants/refgenfs@*; systemctl daemon-reload")
    up.shell(f"{PREFIX}/bin/refgenfs service uninstall", code=None)
    up.shell(
        f"rm -rf {HOME}/* {HOME}/.[a-z]* /run/wheels.tar /etc/refgenfs /var/log/refgenfs /usr/local/bin/refgenfs"
    )


@pytest.mark.parametrize("page", PAGES)
def test_the_page_s_commands_do_what_it_says(machine: Machine, origin: Origin, page: str) -> None:
    todo = typed(parse(TEXTS[page], page), "booted")
    machine.write("/run/session", script(todo))
    out = machine("bash", "-c", "bash /run/session 2>&1", code=None, timeout=SESSION_SECONDS, ORIGIN=origin.url).out
    done = ran(todo, out)
    for one in done:
        if wrong := judge(one, HOME):
            pytest.fail(f"{wrong}\n\nthe end of the session:\n{out[-3000:]}", pytrace=False)
    assert len(done) == sum(isinstance(item, Command) for item in todo), out[-3000:]
