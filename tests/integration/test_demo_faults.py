"""The faulty origin does wrong what it was asked to, and nothing else."""

from __future__ import annotations

import gc
import json
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Literal

import pytest

from refgenfs.demo.build import DemoRoot, build_demo_root
from refgenfs.demo.genome import genome_digest, make_genome
from refgenfs.demo.origin import running
from tests.support.asking import ask, spawn_origin
from tests.support.faulty_origin import Fault, FaultyOrigin, Kind

GENOME = make_genome(seed=5, length=120_000)
DIGEST = genome_digest(GENOME)
FASTA = f"/files/{DIGEST}/fasta__default/{DIGEST}.fa"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRoot:
    return build_demo_root(tmp_path_factory.mktemp("demo") / "root", genome=GENOME, reads=1)


@pytest.fixture
def faulty(demo: DemoRoot) -> Iterator[FaultyOrigin]:
    with running(FaultyOrigin(demo.root, remotes=True)) as running_origin:
        yield running_origin


def test_a_status_comes_as_often_as_asked_and_only_where_asked(faulty: FaultyOrigin) -> None:
    faulty.faults = [Fault("status", path="*/attrs/*", times=2, value=503, retry_after=3)]
    assert ask(faulty.url, "/v3/genomes/list").status == 200
    first = ask(faulty.url, f"/v3/genomes/attrs/{DIGEST}")
    assert (first.status, first.headers["retry-after"]) == (503, "3")
    assert faulty.faults == [Fault("status", path="*/attrs/*", times=1, value=503, retry_after=3)]
    assert [ask(faulty.url, f"/v3/genomes/attrs/{DIGEST}").status for _ in range(2)] == [503, 200]
    assert faulty.faults == []


@pytest.mark.parametrize("kind", ["truncate", "reset"])
def test_a_body_breaks_off(faulty: FaultyOrigin, demo: DemoRoot, kind: Kind) -> None:
    faulty.faults = [Fault(kind, path="/files/*", after=5_000)]
    data = (demo.unpacked("fasta") / f"{DIGEST}.fa").read_bytes()
    broken = ask(faulty.url, FASTA)
    assert broken.broken
    assert int(broken.headers["content-length"]) == len(data)
    if kind == "truncate":
        assert broken.body == data[:5_000]
    assert faulty.stats().paths[FASTA].bytes == 5_000
    assert ask(faulty.url, FASTA).body == data


@pytest.mark.parametrize("kind", ["", "stall", "silent", "truncate"])
def test_an_origin_that_is_stopped_leaves_no_socket_behind(demo: DemoRoot, kind: Kind | Literal[""]) -> None:
    """Whatever its clients are about: reading slowly, waiting, or just connected. The collector would complain."""
    request = f"GET {FASTA} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    origin = FaultyOrigin(demo.root, remotes=True)
    origin.faults = [Fault(kind, times=None, after=3_000)] if kind else []
    with ExitStack() as clients:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            with running(origin):
                for at in range(8):
                    address = ("127.0.0.1", origin.port)
                    client = clients.enter_context(socket.create_connection(address, timeout=20))
                    if at < 5:
                        client.sendall(request)
                    if at == 4:
                        time.sleep(0.2)
            gc.collect()
        assert [str(warning.message) for warning in seen if str(origin.port) in str(warning.message)] == []


def test_a_body_stalls_and_a_request_is_never_answered(faulty: FaultyOrigin) -> None:
    request = f"GET {FASTA} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    faulty.faults = [Fault("stall", after=3_000), Fault("silent")]
    with socket.create_connection(("127.0.0.1", faulty.port), timeout=20) as client:
        client.sendall(request)
        received = b""
        while len(received.partition(b"\r\n\r\n")[2]) < 3_000:
            received += client.recv(65_536)
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert len(received.partition(b"\r\n\r\n")[2]) == 3_000
    with socket.create_connection(("127.0.0.1", faulty.port), timeout=0.5) as client:
        client.sendall(request)
        with pytest.raises(TimeoutError):
            client.recv(1)
    assert ask(faulty.url, FASTA).status == 200


def test_ranges_lie(faulty: FaultyOrigin, demo: DemoRoot) -> None:
    data = (demo.unpacked("fasta") / f"{DIGEST}.fa").read_bytes()
    faulty.faults = [Fault("ignore_range"), Fault("shift_range", value=7), Fault("wrong_total", value=-1)]
    ignored, shifted, total = (ask(faulty.url, FASTA, headers={"Range": "bytes=10-19"}) for _ in range(3))
    assert (ignored.status, ignored.body) == (200, data)
    assert (shifted.body, shifted.headers["content-range"]) == (data[10:20], f"bytes 17-26/{len(data)}")
    assert (total.body, total.headers["content-range"]) == (data[10:20], f"bytes 10-19/{len(data) - 1}")


def test_lengths_lie(faulty: FaultyOrigin, demo: DemoRoot) -> None:
    data = (demo.unpacked("fasta") / f"{DIGEST}.fa").read_bytes()
    faulty.faults = [Fault("wrong_length", value=10), Fault("wrong_length", value=-10)]
    longer, shorter = ask(faulty.url, FASTA), ask(faulty.url, FASTA)
    assert (longer.broken, longer.body, int(longer.headers["content-length"])) == (True, data, len(data) + 10)
    assert (shorter.broken, shorter.body) == (False, data[:-10])


def test_one_bit_is_flipped(faulty: FaultyOrigin, demo: DemoRoot) -> None:
    data = (demo.unpacked("fasta") / f"{DIGEST}.fa").read_bytes()
    faulty.faults = [Fault("flip_bit", after=100)]
    flipped, whole = ask(faulty.url, FASTA), ask(faulty.url, FASTA)
    assert [i for i, (a, b) in enumerate(zip(flipped.body, data, strict=True)) if a != b] == [100]
    assert flipped.headers["etag"] == whole.headers["etag"]


def test_another_version_is_told_by_its_etag(faulty: FaultyOrigin, demo: DemoRoot) -> None:
    before = ask(faulty.url, FASTA, method="HEAD").headers["etag"]
    faulty.faults = [Fault("flip_etag", times=None)]
    stale = ask(faulty.url, FASTA, headers={"Range": "bytes=0-9", "If-Range": before})
    after = stale.headers["etag"]
    assert (stale.status, after != before) == (200, True)
    assert ask(faulty.url, FASTA, headers={"Range": "bytes=0-9", "If-Range": after}).status == 206
    assert ask(faulty.url, FASTA, headers={"Range": "bytes=0-9"}).headers["etag"] == after


def test_faults_are_set_from_another_process(demo: DemoRoot) -> None:
    process, url = spawn_origin("tests.support.faulty_origin", demo.root, "--remotes", "--die-with-parent")
    with process:
        wanted = json.dumps([{"kind": "status", "path": "/files/*", "value": 500}]).encode()
        (left,) = json.loads(ask(url, "/_faults", method="POST", body=wanted).body)
        assert (left["kind"], left["times"]) == ("status", 1)
        assert [ask(url, FASTA).status for _ in range(2)] == [500, 200]
        assert ask(url, "/_faults", method="POST", body=b'[{"kind": "magic"}]').status == 400
        ask(url, "/_faults", method="POST", body=wanted)
        assert json.loads(ask(url, "/_faults", method="DELETE").body) == []
        process.terminate()
        assert process.wait(5) == 0
