"""`refgenfs ticket`: samtools and bcftools read what it prints, from the origin and from any static server."""

from __future__ import annotations

import functools
import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.world import ALIAS, Site, make_site, source_toml
from tests.support.htsmake import make_samples
from tests.support.mounted import Setup

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data]

CONTENT_TYPE = "application/vnd.ga4gh.htsget.v1.3.0+json; charset=utf-8"
READS = "htsget-rs/bam/htsnexus_test_NA12878.bam"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """A static server; tickets have the protocol's content type."""

    def guess_type(self, path: Any) -> str:
        return CONTENT_TYPE if str(path).endswith(".json") else super().guess_type(path)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def static(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback with Python's own server, which knows no ranges."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def printed(*command: object) -> str:
    """Run a command that touches no mount."""
    words = ["timeout", "-s", "KILL", "60", *map(str, command)]
    environ = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.run(words, check=True, capture_output=True, text=True, env=environ).stdout


def beside(path: Path) -> dict[str, bytes]:
    """Return a file and its indices, by name."""
    return {one.name: one.read_bytes() for one in sorted(path.parent.iterdir()) if one.name.startswith(path.name)}


@pytest.fixture(scope="module")
def site(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A mount of assets with real files, whose unpacked copies have URLs."""
    hts, folder = data_dir / "data" / "htsget", tmp_path_factory.mktemp("site")
    with make_site(folder, remotes=True) as made:
        made.world.add("reads", beside(hts / READS))
        made.world.add("crams", beside(hts / "htslib/range.cram"))
        samples = make_samples(tmp_path_factory.mktemp("hts"), "vcf-bgzip", "bcf")
        made.world.add("variants", beside(samples["vcf-bgzip"].path) | beside(samples["bcf"].path))
        made.world.add("plain", {"x.fa": b">x\nACGT\n"})
        with made.mount():
            yield made


def ticket_of(site: Site, *arguments: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(site.m.refgenfs("ticket", *arguments).stdout)
    return answer


def refused(site: Site, *arguments: str) -> str:
    done = site.m.refgenfs("ticket", *arguments, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


@pytest.mark.parametrize("served", [False, True])
def test_samtools_reads_a_ticket(site: Site, tmp_path: Path, served: bool) -> None:
    whole = site.world.unpacked("reads") / Path(READS).name
    text = site.m.refgenfs("ticket", f"{ALIAS}/reads", "11:5,015,001-5,050,000", "20").stdout
    assert text.lstrip().startswith("{")
    (tmp_path / "ticket.json").write_text(text)
    regions = 'rname == "20" || (rname == "11" && pos <= 5050000 && endpos >= 5015001)'
    with static(tmp_path) as url:
        place = f"{url}/ticket.json" if served else tmp_path / "ticket.json"
        assert printed("samtools", "view", "-e", regions, place) == printed("samtools", "view", "-e", regions, whole)
        assert (
            printed("samtools", "head", place).splitlines()[:3] == printed("samtools", "head", whole).splitlines()[:3]
        )


@pytest.mark.parametrize(("region", "count"), [("CHROMOSOME_I", 18), ("CHROMOSOME_III", 41)])
def test_samtools_reads_a_ticket_of_a_cram(
    site: Site, data_dir: Path, tmp_path: Path, region: str, count: int
) -> None:
    (tmp_path / "t.json").write_text(site.m.refgenfs("ticket", f"{ALIAS}/crams", region, "--format", "cram").stdout)
    reference = data_dir / "data/htsget/htslib/ce.fa"
    found = printed("samtools", "view", "-c", "-T", reference, "-e", f'rname == "{region}"', tmp_path / "t.json")
    assert int(found) == count


@pytest.mark.parametrize("name", ["vcf-bgzip.vcf.gz", "bcf.bcf"])
def test_bcftools_reads_a_ticket(site: Site, tmp_path: Path, name: str) -> None:
    """Their records go on from block to block: the blocks at the edges are in the ticket itself."""
    region = "HLA:A*01:01:1-5000"
    ticket = ticket_of(site, f"{ALIAS}/variants", region, "scaffold39", "--file", name)
    assert any(one["url"].startswith("data:") for one in ticket["htsget"]["urls"])
    (tmp_path / "t.json").write_text(json.dumps(ticket))
    whole = site.world.unpacked("variants") / name
    for target in ("HLA:A*01:01", "scaffold39"):
        chosen = ["view", "-H", "-i", f'CHROM="{target}"']
        expected = printed("bcftools", *chosen, whole)
        assert expected
        assert printed("bcftools", *chosen, tmp_path / "t.json") == expected


def test_a_ticket_is_the_protocol_s(site: Site) -> None:
    base = f"{site.origin.url}/files/"
    ticket = ticket_of(site, f"{ALIAS}/reads", "11:5015001-5050000")
    assert list(ticket) == ["htsget"]
    assert ticket["htsget"]["format"] == "BAM"
    blocks = ticket["htsget"]["urls"]
    assert [one["headers"]["Range"] for one in blocks] == [
        "bytes=0-4667", "bytes=256721-647345", "bytes=824361-842100", "bytes=977196-996014", "bytes=2596771-2596798",
    ]  # fmt: skip
    assert [one["class"] for one in blocks] == ["header", "body", "body", "body", "body"]
    assert all(one["url"].startswith(base) and one["url"].endswith(Path(READS).name) for one in blocks)
    header = ticket_of(site, f"{ALIAS}/reads", "--class", "header")["htsget"]["urls"]
    assert [(one["headers"]["Range"], one["class"]) for one in header] == [("bytes=0-4667", "header")]
    whole = ticket_of(site, f"{ALIAS}/reads")["htsget"]["urls"]
    assert [one["headers"]["Range"] for one in whole] == ["bytes=0-2596798"]


def test_a_ticket_costs_the_origin_a_header_and_an_index(data_dir: Path, tmp_path: Path) -> None:
    """The file is not fetched: a new mount reads some blocks of it, and its index."""
    with make_site(tmp_path, remotes=True) as site:
        site.world.add("reads", beside(data_dir / "data" / "htsget" / READS))
        with site.mount():
            site.origin.reset_stats()
            ticket_of(site, f"{ALIAS}/reads", "11:5015001-5050000")
            fetched = site.origin.stats().matching("/files/*.bam").bytes
    assert 0 < fetched < 1_500_000


def test_files_of_a_plain_web_server(site: Site, tmp_path: Path) -> None:
    """A source of plain files has URLs by its nature."""
    name = Path(READS).name
    folder = next(iter(site.world.unpacked("reads").parents[0].glob("reads__*")))
    url = f"{site.origin.url}/files/{folder.parent.name}/{folder.name}/"
    source = f'[[source]]\nname = "web"\ntype = "http"\nurl = "{url}"\n'
    source += f'[[source.asset]]\nkey = "hg19/reads"\nfiles = {json.dumps(sorted(beside(folder / name)))}\n'
    with Setup(tmp_path, source).mount() as mounted:
        ticket = json.loads(mounted.refgenfs("ticket", "hg19/reads", "20").stdout)
    assert {one["url"] for one in ticket["htsget"]["urls"]} == {url + name}
    (tmp_path / "t.json").write_text(json.dumps(ticket))
    chosen = ["samtools", "view", "-c", "-e", 'rname == "20"']
    assert printed(*chosen, tmp_path / "t.json") == printed(*chosen, folder / name) != "0\n"


def test_an_index_that_the_origin_lacks_is_made(site: Site, tmp_path: Path) -> None:
    name = Path(READS).name
    folder = next(iter(site.world.unpacked("reads").parents[0].glob("reads__*")))
    url = f"{site.origin.url}/files/{folder.parent.name}/{folder.name}/"
    source = f'[[source]]\nname = "web"\ntype = "http"\nurl = "{url}"\n'
    source += f'[[source.asset]]\nkey = "hg19/reads"\nfiles = ["{name}"]\n'
    with Setup(tmp_path, source).mount() as mounted:
        ticket = json.loads(mounted.refgenfs("ticket", "hg19/reads", "11:5015001-5050000").stdout)
    assert [one["headers"]["Range"] for one in ticket["htsget"]["urls"]] == [
        "bytes=0-4667", "bytes=256721-1065951", "bytes=2596771-2596798",
    ]  # fmt: skip


def test_which_file_is_meant(site: Site) -> None:
    said = refused(site, f"{ALIAS}/variants", "chr1")
    assert "--file" in said
    assert "vcf-bgzip.vcf.gz" in said
    assert "bcf.bcf" in said
    assert "no file 'x.vcf.gz'" in refused(site, f"{ALIAS}/variants", "chr1", "--file", "x.vcf.gz")
    assert "no BAM, CRAM, VCF or BCF" in refused(site, f"{ALIAS}/plain")
    assert "neither CRAM nor BGZF" in refused(site, f"{ALIAS}/plain", "--file", "x.fa")


def test_queries_that_can_not_be_answered(site: Site) -> None:
    key = f"{ALIAS}/reads"
    assert "no reference '25'" in refused(site, key, "25")
    assert "ends before it begins" in refused(site, key, "11:5-4")
    assert "header goes with nothing else" in refused(site, key, "11", "--class", "header")
    assert "BAM, not CRAM" in refused(site, key, "11", "--format", "CRAM")
    assert "no seek key" in refused(site, f"{ALIAS}/reads.none", "11")


def test_another_base_for_the_blocks(site: Site) -> None:
    for url, whole in (
        ("https://host.example/a/x.bam?v=1", "https://host.example/a/x.bam?v=1"),
        ("https://host.example/a/", f"https://host.example/a/{Path(READS).name}"),
    ):
        blocks = ticket_of(site, f"{ALIAS}/reads", "22", "--url", url)["htsget"]["urls"]
        assert {one["url"] for one in blocks} == {whole}
    assert "no place for secrets" in refused(site, f"{ALIAS}/reads", "22", "--url", "https://me:pass@host.example/a")
    assert "has to be a URL" in refused(site, f"{ALIAS}/reads", "22", "--url", str(site.m.path))


def test_what_comes_out_of_an_archive_has_no_url(data_dir: Path, tmp_path: Path) -> None:
    with make_site(tmp_path, remotes=False) as site:
        site.world.add("reads", beside(data_dir / "data" / "htsget" / READS))
        with site.mount():
            said = refused(site, f"{ALIAS}/reads", "11")
            assert "out of an archive" in said
            assert "--url" in said
            blocks = ticket_of(site, f"{ALIAS}/reads", "11", "--url", "http://host.example/")["htsget"]["urls"]
            assert [one["headers"]["Range"] for one in blocks] == ["bytes=0-996014", "bytes=2596771-2596798"]


def test_a_url_that_takes_our_token_is_not_told(data_dir: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cr3t")
    with make_site(tmp_path, remotes=True) as site:
        site.world.add("reads", beside(data_dir / "data" / "htsget" / READS))
        site.setup.sources = source_toml(site.origin.url, remotes=True) + f'token_file = "{token}"\n'
        with site.mount():
            said = refused(site, f"{ALIAS}/reads", "11")
            assert "credentials of the source 'origin'" in said
            assert "s3cr3t" not in said + site.m.log_text()
