"""Servers and hosts that misbehave, below a mount: the right bytes or the right errno, in time; and huge files."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from refgenfs.core.htsget import bgzf
from tests.support.htsmake import make_samples
from tests.support.mounted import Mounted, Setup
from tests.support.ticketing import TOKEN, TicketServer, inline, ranged, served

pytestmark = [pytest.mark.needs_fuse]

DATA = random.Random(9).randbytes(700_000)
SECRETS = (TOKEN, "5ecret", "h3ader")
SIGNED = "?X-Sig=5ecret"
HEADERS = {"X-Secret": "h3ader"}
GIB = 1 << 30
READ = """
import sys
try:
    open(sys.argv[1], "rb").read()
except OSError as exc:
    print(exc.errno)
else:
    print(0)
"""


@dataclass
class World:
    """A daemon over a server of tickets and a host of blocks, with ids that a test gives tickets for."""

    mounted: Mounted
    server: TicketServer
    host: TicketServer
    used: int = 0

    def path(self, *urls: Any) -> str:
        """Return the path of a file whose ticket has these URLs: a new id each time."""
        id_ = f"id{self.used}"
        self.used += 1
        self.server.tickets[id_] = (
            (lambda request, body: urls[0](request)) if callable(urls[0]) else (lambda request, body: list(urls))
        )
        return f"{self.mounted.path}/hg38/x/{id_}.bam"

    def errno(self, path: str) -> int:
        """Return what `open` and `read` of all of a file fail with; 0: not at all."""
        return int(self.mounted.run(sys.executable, "-c", READ, path, timeout=50).stdout)

    def reads(self, path: str) -> bytes:
        """Return all of a file."""
        return bytes(self.mounted.run("cat", path, text=False, timeout=50).stdout)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("faults")
    token = folder / "lab.token"
    token.write_text(TOKEN)
    server, host = TicketServer(), TicketServer()
    with served(server, host):
        server.token = TOKEN
        ids = ", ".join(f'"id{at}"' for at in range(60))
        sources = (
            f'[[source]]\nname = "lab"\ntype = "htsget"\nurl = "{server.url}"\n'
            f'token_file = "{token}"\ntimeout = "2s"\n'
            f'[[source.asset]]\nkey = "hg38/x"\nreads = [{ids}]\n'
        )
        limits = {"retry_for": "2s", "lookup_deadline": "15s", "read_deadline": "15s"}
        with Setup(folder, sources, size="64MiB", limits=limits, extra='[log]\nlevel = "debug"').mount() as mounted:
            yield World(mounted, server, host)


def source_of(server: TicketServer, ids: str) -> str:
    """Return a source with these ids as one asset."""
    head = f'[[source]]\nname = "lab"\ntype = "htsget"\nurl = "{server.url}"\n'
    return f'{head}[[source.asset]]\nkey = "g/x"\nreads = {ids}\n'


def signed(world: World, name: str, **options: Any) -> str:
    """Put an object at the host that needs the ticket's headers; return its signed URL."""
    return world.host.serve(f"/{name}", DATA, needs=HEADERS, **options) + SIGNED


def part(url: str, start: int, stop: int) -> dict[str, Any]:
    return ranged(url, start, stop, headers=HEADERS)


GOOD: dict[str, dict[str, Any]] = {
    "ranges": {},
    "no ranges": {"ranges": False},
    "no ranges and no length": {"ranges": False, "tells_length": False},
    "no total": {"tells_total": False},
    "no validator": {"etag": None},
    "503 first": {"statuses": deque([503, 503])},
    "breaks off": {"cut": 200_000},
    "signed range": {"only": "bytes=9-699999"},
}


@pytest.mark.parametrize("name", GOOD)
def test_hosts_whose_bytes_are_right(world: World, name: str) -> None:
    url = signed(world, name.replace(" ", "-"), **GOOD[name])
    path = world.path({"url": inline(b"head")}, part(url, 9, len(DATA)), {"url": inline(b"")})
    assert os.stat(path).st_size == 4 + len(DATA) - 9
    assert world.reads(path) == b"head" + DATA[9:]


def test_redirects_to_other_hosts(world: World) -> None:
    far = signed(world, "far")
    near = world.server.serve("/near", redirect=far, needs=HEADERS)
    assert world.reads(world.path(part(near + SIGNED, 9, len(DATA)))) == DATA[9:]


def test_tickets_that_expire(world: World) -> None:
    url = signed(world, "expiring")
    path = world.path(part(url, 0, len(DATA)))
    assert os.stat(path).st_size == len(DATA)
    world.host.blobs["/expiring"].statuses.append(403)
    assert world.reads(path) == DATA


BAD: dict[str, tuple[dict[str, Any], int]] = {
    "short 206": ({"short": 3}, errno.EIO),
    "another range": ({"shift": 7}, errno.EIO),
    "gzip": ({"coding": "gzip"}, errno.EIO),
    "truncated": ({"cut": 10, "ranges": False}, errno.EIO),
    "gone": ({"statuses": deque([404] * 99)}, errno.EIO),
    "denied": ({"statuses": deque([403] * 99)}, errno.EACCES),
    "endless": ({"endless": True, "ranges": False, "head_length": False}, errno.EIO),
}


@pytest.mark.parametrize("name", BAD)
def test_hosts_that_lie(world: World, name: str) -> None:
    options, number = BAD[name]
    url = signed(world, name.replace(" ", "-"), **options)
    began = time.monotonic()
    assert world.errno(world.path({"url": url, "headers": HEADERS})) == number
    assert time.monotonic() - began < 45
    assert world.mounted.memory() < 400 << 20


def test_other_blocks_under_an_open_file(world: World) -> None:
    url = signed(world, "moving")
    path = world.path(part(url, 0, len(DATA)))
    with open(path, "rb") as file:
        assert file.read(1000) == DATA[:1000]
        world.server.tickets[Path(path).stem] = lambda request, body: [
            part(url, 0, 650_000),
            part(url, 650_000, len(DATA)),
        ]
        world.host.blobs["/moving"].statuses.extend([403] * 3)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        world.mounted.refgenfs("evict", "hg38/x")
        with pytest.raises(OSError, match="Stale"):
            os.pread(file.fileno(), 100_000, 500_000)
    world.host.blobs["/moving"].statuses.clear()
    assert world.reads(path) == DATA


NO_TICKETS: dict[str, tuple[Any, int]] = {
    "html": (b"<html></html>", errno.EIO),
    "another key first": ({"version": 1, "htsget": {"urls": [{"url": "http://x/"}]}}, errno.EIO),
    "empty": ({"htsget": {"urls": []}}, errno.EIO),
    "a file of the machine": ({"htsget": {"urls": [{"url": "file:///etc/passwd"}]}}, errno.EIO),
    "denied": ((403, {"htsget": {"error": "PermissionDenied", "message": TOKEN}}), errno.EACCES),
    "not there": ((404, {"htsget": {"error": "NotFound", "message": TOKEN}}), errno.EIO),
    "too large": ((413, {"htsget": {"error": "PayloadTooLarge"}}), errno.EIO),
    "another format": ({"htsget": {"format": "CRAM", "urls": [{"url": "http://x/"}]}}, errno.EIO),
}


@pytest.mark.parametrize("name", NO_TICKETS)
def test_answers_that_are_no_ticket(world: World, name: str) -> None:
    answer, number = NO_TICKETS[name]
    assert world.errno(world.path(lambda request: answer)) == number


def test_quoted_ids(tmp_path: Path) -> None:
    server = TicketServer()
    with served(server):
        ids = ["a b", "ä/ö", "x?y=1&z", "p%41q", "h#1"]
        for id_ in ids:
            server.tickets[id_] = lambda request, body: [{"url": inline(request.path.encode())}]
        listed = ", ".join(f'"{id_}"' for id_ in ids)
        sources = source_of(server, f"[{listed}]")
        with Setup(tmp_path, sources).mount() as mounted:
            for id_ in ids:
                name = id_.rpartition("/")[2] + ".bam"
                assert mounted.run("cat", f"{mounted.path}/g/x/{name}").stdout == f"/reads/{id_}"


def test_no_secret_of_all_this_is_told(world: World) -> None:
    told = world.mounted.log_text() + str(world.mounted.status())
    told += world.mounted.refgenfs("cache", "info").stdout + world.mounted.refgenfs("status").stdout
    cache = [path for path in world.mounted.cache.rglob("*") if path.is_file() and "contents" not in path.parts]
    told += "".join(path.read_bytes().decode("latin-1") for path in cache)
    assert not [one for one in SECRETS if one in told]
    assert list((world.mounted.cache / "scratch").iterdir()) == []


# ---- a hundred gigabytes


def test_a_hundred_gigabytes_cost_what_is_read_of_them(tmp_path: Path) -> None:
    """A BAM whose index says that its second reference begins far behind: opened, its end read, a region read."""
    made = make_samples(tmp_path, "bai")["bai"]
    bam, data = made.path, made.path.read_bytes()
    header = bgzf_header_end(bam)
    size = 100 * GIB
    tail = data[header:]

    def slice_(start: int, stop: int) -> bytes:
        out = bytearray(stop - start)
        for at, piece in ((0, data[:header]), (size - len(tail), tail)):
            first, last = max(start, at), min(stop, at + len(piece))
            if first < last:
                out[first - start : last - start] = piece[first - at : last - at]
        return bytes(out)

    server, host = TicketServer(), TicketServer()
    with served(server, host):
        url = host.serve("/huge", size=size, slice=slice_)
        server.tickets["huge"] = lambda request, body: (
            [ranged(url, 0, header), ranged(url, size - len(tail), size)]
            if "referenceName" in request.query
            else [ranged(url, 0, header)]
            if "class" in request.query
            else [{"url": url}]
        )
        sources = source_of(server, '["huge"]')
        with Setup(tmp_path, sources).mount() as mounted:
            path = f"{mounted.path}/g/x/huge.bam"
            assert os.stat(path).st_size == size
            mounted.run("samtools", "quickcheck", path)
            with open(path, "rb") as file:
                file.seek(-28, os.SEEK_END)
                assert file.read() == bgzf.EOF_MARKER
            before = mounted.memory()
            reference = subprocess.run(
                ["samtools", "idxstats", str(bam)], capture_output=True, check=True, text=True
            ).stdout.split()[0]
            region = f"{mounted.path}/g/x/regions/{reference}/huge.bam"
            done = mounted.run("samtools", "view", "-c", region).stdout
            assert done == mounted.run("samtools", "view", "-c", str(bam)).stdout
            assert sum(host.sent.values()) < 8 << 20
            assert mounted.memory() - before < 64 << 20
            assert mounted.memory() < 300 << 20


def bgzf_header_end(bam: Path) -> int:
    """Return where the blocks of a BAM's header end."""
    from tests.support.htsfiles import Files

    return Files(bam.read_bytes()).open().header_end
