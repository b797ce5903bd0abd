"""What the tests on the booted machine share: an origin with the demo's genome."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from refgenfs.demo.build import DemoRoot, build_demo_root
from refgenfs.demo.origin import Origin, serve


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRoot:
    """The demo's genome, as a server has it."""
    return build_demo_root(tmp_path_factory.mktemp("demo") / "root")


@pytest.fixture(scope="session")
def origin(demo: DemoRoot) -> Iterator[Origin]:
    """A server of it, on the network that the machine shares."""
    with serve(demo.root, remotes=True) as origin:
        yield origin


@pytest.fixture(scope="session")
def md5(demo: DemoRoot) -> str:
    """The MD5 of its FASTA."""
    return hashlib.md5((demo.root / demo.digest / "fasta__default" / f"{demo.digest}.fa").read_bytes()).hexdigest()
