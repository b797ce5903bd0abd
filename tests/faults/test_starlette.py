"""What a refgenieserver's own web framework answers, where that is not what the RFC says."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from refgenfs.demo.replies import Ask, Reply
from tests.faults.world import make_site

pytestmark = pytest.mark.needs_fuse


def test_an_empty_file_of_a_host_in_starlettes_way(tmp_path: Path) -> None:
    """Its 416 says `Content-Range: */0`, without the unit: still no reason to fetch a whole archive."""
    with make_site(tmp_path, ["one"], remotes=True) as site:

        def bare(ask: Ask, reply: Reply) -> Reply:
            if reply.status == 416:
                reply.headers["Content-Range"] = reply.headers["Content-Range"].removeprefix("bytes ")
            return reply

        site.origin.scripts = {"/files/*": bare}
        with site.mount():
            site.read_right("one", only="d.empty")
            time.sleep(0.3)
            assert site.origin.stats().matching("*.tgz").requests == 0
