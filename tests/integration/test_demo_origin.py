"""The demo's origin: built the same every time, answering as a refgenieserver does, counted to the byte."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from refgenfs.demo.build import DemoError, DemoRoot, build_demo_root, size_text
from refgenfs.demo.genome import asset_digest, check_alignments, genome_digest, make_genome, read_fasta
from refgenfs.demo.origin import Count, Origin, parse_latency, parse_rate, running, serve
from tests.support.asking import ask, spawn_origin

GENOME = make_genome(seed=5, length=120_000)
DIGEST = genome_digest(GENOME)
ARCHIVE = f"/v3/assets/archive/{DIGEST}/bwa_index"
FASTA = f"/files/{DIGEST}/fasta__default/{DIGEST}.fa"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRoot:
    return build_demo_root(tmp_path_factory.mktemp("demo") / "root", genome=GENOME, reads=200)


@pytest.fixture(scope="module")
def origin(demo: DemoRoot) -> Iterator[Origin]:
    with serve(demo.root) as running_origin:
        yield running_origin


@pytest.fixture(scope="module")
def remote(demo: DemoRoot) -> Iterator[Origin]:
    with serve(demo.root, remotes=True) as running_origin:
        yield running_origin


# --- the folder ---------------------------------------------------------------------------------------------


def test_the_same_folder_is_built_every_time(demo: DemoRoot, tmp_path: Path) -> None:
    again = build_demo_root(tmp_path / "again", genome=GENOME, reads=200)
    for path in sorted(path for path in demo.root.rglob("*") if path.is_file()):
        assert (again.root / path.relative_to(demo.root)).read_bytes() == path.read_bytes(), path
    assert demo.digest == DIGEST == genome_digest(read_fasta(demo.unpacked("fasta") / f"{DIGEST}.fa"))


def test_a_finished_folder_is_kept_and_an_outdated_one_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "root"
    first = build_demo_root(folder, genome=GENOME, reads=10)
    before = first.archive("bwa_index").stat().st_ino
    build_demo_root(folder, genome=GENOME, reads=10, bwa="no-such-program")  # not even looked for
    assert first.archive("bwa_index").stat().st_ino == before
    build_demo_root(folder, genome=GENOME, reads=11)
    assert first.archive("bwa_index").stat().st_ino != before
    assert first.reads.read_bytes().count(b"\n") == 44
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DemoError, match="holds no demo"):
        build_demo_root(tmp_path, genome=GENOME, reads=1)
    assert (tmp_path / "thesis.tex").exists()


def test_a_missing_or_failing_bwa_is_named(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="apt install bwa"):
        build_demo_root(tmp_path / "root", bwa="no-such-bwa", genome=GENOME, reads=1)
    with pytest.raises(DemoError, match="failed with status 1"):
        build_demo_root(tmp_path / "root", bwa="false", genome=GENOME, reads=1)
    assert list(tmp_path.iterdir()) == []


def test_archives_are_laid_out_as_refgenie_does(demo: DemoRoot, tmp_path: Path) -> None:
    attrs = json.loads((demo.root / "genomes.json").read_bytes())[DIGEST]["assets"]
    for asset, names in (
        ("fasta", {".fa", ".fa.fai", ".chrom.sizes"}),
        ("bwa_index", {".fa", ".fa.amb", ".fa.ann", ".fa.bwt", ".fa.pac", ".fa.sa"}),
    ):
        with tarfile.open(demo.archive(asset)) as tar:
            members = tar.getmembers()
            tar.extraction_filter = lambda member, _: member  # an attribute: early 3.11 takes no such argument
            tar.extractall(tmp_path / asset)  # noqa: S202 - links and all, our own
        expected = {f"default/{DIGEST}{name}" for name in names}
        assert [member.name for member in members] == ["default", *sorted(expected)]
        listed = json.loads((demo.root / DIGEST / f"asset_dir_contents_{asset}__default.json").read_bytes())
        assert [f"default/{name}" for name in listed] == sorted(expected)
        said = attrs[asset]["tags"]["default"]
        assert said["asset_digest"] == asset_digest(tmp_path / asset / "default")
        assert said["archive_digest"] == hashlib.md5(demo.archive(asset).read_bytes()).hexdigest()
        for name in listed:
            unpacked, archived = demo.unpacked(asset) / name, tmp_path / asset / "default" / name
            assert not unpacked.is_symlink()
            if not archived.is_symlink():
                assert unpacked.read_bytes() == archived.read_bytes()
    link = os.readlink(tmp_path / "bwa_index" / "default" / f"{DIGEST}.fa")
    assert link == f"/build/data/{DIGEST}/fasta/default/{DIGEST}.fa"


def test_bwa_finds_the_reads_where_they_came_from(demo: DemoRoot) -> None:
    command = ["bwa", "mem", str(demo.unpacked("bwa_index") / f"{DIGEST}.fa"), str(demo.reads)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    check = check_alignments(run.stdout.splitlines())
    assert check.total == 200
    assert check.right_place >= 195


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.00 B"), (1023, "1023.00 B"), (1024, "1.00 KB"), (1_247_805, "1.19 MB"), (2**40, "1.00 TB")],
)
def test_sizes_are_rounded_as_refgenie_does(size: int, text: str) -> None:
    assert size_text(size) == text


# --- answers ------------------------------------------------------------------------------------------------


def test_the_catalog_is_the_same_with_and_without_the_prefix(origin: Origin) -> None:
    for path in ("/genomes/list", "/genomes/alias_dict", "/assets/list", f"/assets/attrs/{DIGEST}/fasta"):
        assert ask(origin.url, path).body == ask(origin.url, f"/v3{path}").body
    assert json.loads(ask(origin.url, "/v3/genomes/alias_dict").body) == {DIGEST: ["demo"]}
    with_seek_keys = json.loads(ask(origin.url, "/v3/assets/list?includeSeekKeys=true").body)
    assert with_seek_keys[DIGEST][:3] == ["bwa_index.dir:default", "bwa_index:default", "fasta.chrom_sizes:default"]


def test_the_catalog_is_read_again_when_it_changes(demo: DemoRoot, tmp_path: Path) -> None:
    shutil.copytree(demo.root, tmp_path / "root")
    with serve(tmp_path / "root") as origin:
        catalog = json.loads((tmp_path / "root" / "genomes.json").read_bytes())
        catalog[DIGEST]["aliases"].append("another")
        (tmp_path / "root" / "genomes.json").write_text(json.dumps(catalog))
        assert json.loads(ask(origin.url, "/v3/genomes/alias_dict").body) == {DIGEST: ["demo", "another"]}


def test_an_archive_is_served_whole_and_by_ranges(origin: Origin, demo: DemoRoot) -> None:
    data = demo.archive("bwa_index").read_bytes()
    whole = ask(origin.url, ARCHIVE)
    assert (whole.status, whole.body, int(whole.headers["content-length"])) == (200, data, len(data))
    part = ask(origin.url, ARCHIVE, headers={"Range": "bytes=1000-1999"})
    assert (part.status, part.body) == (206, data[1000:2000])
    assert part.headers["content-range"] == f"bytes 1000-1999/{len(data)}"
    assert ask(origin.url, ARCHIVE, headers={"Range": "bytes=-7"}).body == data[-7:]
    assert ask(origin.url, ARCHIVE, headers={"Range": "bytes=9-"}).body == data[9:]
    assert ask(origin.url, ARCHIVE, headers={"Range": f"bytes={len(data)}-"}).status == 416
    etag = whole.headers["etag"]
    assert ask(origin.url, ARCHIVE, headers={"Range": "bytes=0-9", "If-Range": etag}).status == 206
    assert ask(origin.url, ARCHIVE, headers={"Range": "bytes=0-9", "If-Range": '"other"'}).body == data
    assert ask(origin.url, ARCHIVE, method="HEAD").status == 405


def test_without_remotes_there_is_no_remote_and_no_unpacked_copy(origin: Origin) -> None:
    assert ask(origin.url, "/v3/remotes/dict").status == 500
    assert ask(origin.url, FASTA).status == 404


def test_with_remotes_files_are_read_by_ranges(remote: Origin, demo: DemoRoot) -> None:
    said = ask(remote.url, f"/v3/assets/file_path/{DIGEST}/fasta/fasta?remoteClass=http").body.decode()
    assert said == f"{remote.url}{FASTA}"
    assert json.loads(ask(remote.url, "/v3/remotes/dict").body)["http"]["prefix"] == f"{remote.url}/files/"
    data = (demo.unpacked("fasta") / f"{DIGEST}.fa").read_bytes()
    head = ask(remote.url, FASTA, method="HEAD")
    assert (head.status, head.body, int(head.headers["content-length"])) == (200, b"", len(data))
    assert ask(remote.url, FASTA, headers={"Range": "bytes=60-99"}).body == data[60:100]
    redirect = ask(remote.url, ARCHIVE)
    assert (redirect.status, redirect.body) == (307, b"")
    target = redirect.headers["location"].removeprefix(remote.url)
    assert ask(remote.url, target).body == demo.archive("bwa_index").read_bytes()
    etag = ask(remote.url, FASTA, method="HEAD").headers["etag"]
    assert ask(remote.url, FASTA, headers={"If-None-Match": etag}).status == 304


@pytest.mark.parametrize(
    "path", ["/files/", "/files/genomes.json", f"/files/{DIGEST}/../genomes.json", "/files/%2e%2e/%2e%2e/etc/passwd"]
)
def test_nothing_outside_the_genomes_is_served(remote: Origin, path: str) -> None:
    assert ask(remote.url, path).status == 404


def test_the_private_catalog_can_be_left_out(demo: DemoRoot, origin: Origin) -> None:
    assert DIGEST in json.loads(ask(origin.url, "/_private_api/genomes/dict").body)
    with serve(demo.root, private_api=False) as public:
        assert ask(public.url, "/_private_api/genomes/dict").status == 404
        assert ask(public.url, "/v3/genomes/list").status == 200


# --- counts, rate, latency ----------------------------------------------------------------------------------


def test_every_body_byte_is_counted_by_path(demo: DemoRoot) -> None:
    with serve(demo.root, remotes=True) as origin:
        size = (demo.unpacked("fasta") / f"{DIGEST}.fa").stat().st_size
        ask(origin.url, FASTA)
        ask(origin.url, FASTA, headers={"Range": "bytes=10-109"})
        ask(origin.url, FASTA, method="HEAD")
        ask(origin.url, "/v3/genomes/list")
        assert origin.stats().paths[FASTA] == Count(3, size + 100)
        assert origin.stats().matching("/files/*") == Count(3, size + 100)
        over_http = json.loads(ask(origin.url, "/_stats").body)
        assert over_http["requests"] == 4
        assert over_http["paths"][FASTA] == {"requests": 3, "bytes": size + 100}
        assert json.loads(ask(origin.url, "/_stats", method="DELETE").body)["requests"] == 0
        assert origin.stats().total == Count()


def test_what_a_leaving_client_did_not_take_is_not_counted(demo: DemoRoot, tmp_path: Path) -> None:
    shutil.copytree(demo.root, tmp_path / "root")
    big = tmp_path / "root" / DIGEST / "fasta__default" / "big"
    with big.open("wb") as handle:
        handle.truncate(64 << 20)
    path = f"/files/{DIGEST}/fasta__default/big"
    with serve(tmp_path / "root", remotes=True) as origin:
        with socket.create_connection(("127.0.0.1", origin.port)) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            client.recv(1000)
            time.sleep(0.3)  # the buffers of both ends fill up
        assert 0 < origin.stats().paths[path].bytes < 16 << 20


def test_many_clients_are_served_at_once(origin: Origin, demo: DemoRoot) -> None:
    data = demo.archive("bwa_index").read_bytes()
    with ThreadPoolExecutor(16) as pool:
        assert all(answer.body == data for answer in pool.map(lambda _: ask(origin.url, ARCHIVE), range(64)))


def test_rate_and_latency_are_kept(demo: DemoRoot) -> None:
    size = demo.archive("bwa_index").stat().st_size
    with serve(demo.root, rate=size / 1.5, latency=0.1) as origin:
        started = time.monotonic()
        with ThreadPoolExecutor(4) as pool:  # the rate is each connection's own
            assert all(len(answer.body) == size for answer in pool.map(lambda _: ask(origin.url, ARCHIVE), range(4)))
        assert 1.5 < time.monotonic() - started < 5  # one after the other would be 6
        started = time.monotonic()
        ask(origin.url, "/v3/genomes/list")
        assert time.monotonic() - started >= 0.1


def test_rates_and_latencies_are_read_with_their_units() -> None:
    assert [parse_rate(text) for text in ("1000", "20MB", "1.5kB", "2 GB")] == [1000, 20e6, 1500, 2e9]
    assert [parse_latency(text) for text in ("20ms", "0.5s", "0ms")] == [0.02, 0.5, 0.0]
    for parse, text in ((parse_rate, "fast"), (parse_rate, "0"), (parse_latency, "20")):
        with pytest.raises(ValueError, match="is no"):
            parse(text)


# --- a process of its own -----------------------------------------------------------------------------------


def test_a_process_of_its_own_ends_on_sigterm_even_while_it_sends(demo: DemoRoot) -> None:
    process, url = spawn_origin(
        "refgenfs.demo.origin", demo.root, "--rate", "5kB", "--latency", "1ms", "--no-private-api"
    )
    with process, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
        client.sendall(f"GET {ARCHIVE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        assert ask(url, "/_private_api/genomes/dict").status == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0


def test_a_process_of_its_own_ends_with_its_parent(demo: DemoRoot) -> None:
    process, url = spawn_origin("refgenfs.demo.origin", demo.root, "--remotes", "--die-with-parent")
    with process:
        assert ask(url, FASTA, method="HEAD").status == 200
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(5) == 0


def test_a_folder_that_is_no_demo_is_said_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "refgenfs.demo.origin", "--root", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert run.returncode == 1
    assert "genomes.json" in run.stderr
    assert run.stderr.count("\n") == 1


def test_an_origin_comes_back_on_its_port(demo: DemoRoot) -> None:
    origin = Origin(demo.root)
    with running(origin):
        url = origin.url
        assert ask(url, "/v3/genomes/list").status == 200
    with pytest.raises(ConnectionRefusedError):
        ask(url, "/v3/genomes/list")
    with running(origin):
        assert origin.url == url
        assert ask(url, "/v3/genomes/list").status == 200
        with pytest.raises(OSError, match="address"), serve(demo.root, port=origin.port):
            pass
