"""What a failing origin makes of the log: some lines, their number, and every other failure in sight."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from refgenfs.core.repeats import BURST
from tests.faults.world import Site, make_site
from tests.support.faulty_origin import Fault

pytestmark = pytest.mark.needs_fuse

READS = 500  # the kernel asks twice for a page that failed
# Open once, so that only reads fail; each is answered anew, for the kernel keeps no page of a read that failed.
READ_AGAIN = f"""
import os, sys
fd, failed = os.open(sys.argv[1], os.O_RDONLY), 0
for _ in range({READS}):
    try:
        os.pread(fd, 1, 0)
    except OSError:
        failed += 1
print(failed)
"""


@pytest.fixture(params=["archive", "ranges"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path, ["gone", "denied"], remotes=request.param == "ranges") as made, made.mount():
        yield made


def test_a_thousand_failures_are_some_lines_and_their_number(site: Site) -> None:
    if site.remotes:
        site.m.run("ls", "-lR", f"{site.m.path}/tiny", timeout=30)
    else:  # sizes are known by then, and the last file's blocks are not
        site.read_right("gone", "denied")
        site.m.call("cache_clear")
        site.drop_pages("gone", "denied")
    site.origin.faults = [
        Fault("status", site.bytes_glob("gone"), None, value=404),
        Fault("status", site.bytes_glob("denied"), None, value=403),
    ]
    path = f"{site.m.path}/tiny"
    done = site.m.run(sys.executable, "-c", READ_AGAIN, f"{path}/gone/c.exact", timeout=100)
    assert int(done.stdout) == READS
    site.m.run("head", "-c1", f"{path}/denied/c.exact", timeout=30, check=False)
    assert site.m.stop() == 0
    lines = site.m.log_text().splitlines()
    failures = [line for line in lines if "OriginMissing" in line and " WARNING " in line]
    sums = [line for line in failures if "more like it in the last minute" in line]
    assert BURST <= len(failures) - len(sums) <= 3 * BURST, site.tail()  # a window may have ended meanwhile
    assert sums, site.tail()
    counted = sum(int(line.partition("(and ")[2].partition(" ")[0]) for line in sums)
    requests = [line for line in failures if "read of " in line and line not in sums]
    assert counted + len(requests) >= READS
    assert any("OriginDenied" in line for line in lines), "another failure is not hidden"
