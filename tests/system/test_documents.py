"""What the documentation has systemd and apt do: typed page by page, on one booted machine."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from refgenfs.demo.build import build_demo_root
from refgenfs.demo.origin import serve
from tests.conftest import REPOSITORY
from tests.support.booted import PREFIX, Machine, booted, make_wheels
from tests.support.documents import Command, documents, parse
from tests.support.sessions import judge, ran, script, typed

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.slow, pytest.mark.timeout(1200)]

HOME = "/root"
SESSION_SECONDS = 240
TEXTS = {str(path.relative_to(REPOSITORY)): path.read_text() for path in documents()}
PAGES = [page for page, text in TEXTS.items() if typed(parse(text, page), "booted")]


@pytest.fixture(scope="module")
def machine(booted_root: Path) -> Iterator[Machine]:
    """A machine on which refgenfs was never installed, with its wheels at home."""
    with tempfile.TemporaryDirectory() as name, booted(booted_root) as up:
        folder = Path(name)
        make_wheels(folder)  # pip wheel -w wheels .
        subprocess.run(["tar", "-C", folder, "-cf", folder / "wheels.tar", "wheels"], check=True, timeout=60)
        up.send(folder / "wheels.tar", "/run/wheels.tar")
        up.shell(f"{PREFIX}/bin/pip uninstall -qy refgenfs; rm -f /usr/local/bin/refgenfs; tar -C {HOME} -xf /run/wheels.tar")
        up.shell(f"cp {HOME}/wheels/refgenfs-*.whl {HOME}")
        yield up


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(build_demo_root(tmp_path_factory.mktemp("demo") / "root").root, remotes=True) as served:
        yield served.url


@pytest.mark.parametrize("page", PAGES)
def test_the_page_s_commands_do_what_it_says(machine: Machine, origin: str, page: str) -> None:
    todo = typed(parse(TEXTS[page], page), "booted")
    machine.write("/run/session", script(todo))
    out = machine("bash", "-c", "bash /run/session 2>&1", code=None, timeout=SESSION_SECONDS, ORIGIN=origin).out
    done = ran(todo, out)
    for one in done:
        if wrong := judge(one, HOME):
            pytest.fail(f"{wrong}\n\nthe end of the session:\n{out[-3000:]}", pytrace=False)
    assert len(done) == sum(isinstance(item, Command) for item in todo), out[-3000:]
