"""Slices of files that no htsget server gives: of plain files on a web server, by their indices."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from refgenfs.core.htsget.model import Format
from tests.fuse.test_htsget import records, records_by_reference, references_of
from tests.support.htsgetserver import Sample, find_samples
from tests.support.mounted import Mounted, Setup
from tests.support.ticketing import TicketServer, served

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data]


@dataclass
class Web:
    """A daemon over a web server that has the shared files, most with their indices."""

    mounted: Mounted
    server: TicketServer
    samples: list[Sample]

    def path(self, sample: Sample, region: str) -> Path:
        """Return where a slice is."""
        return self.mounted.path / "hg38" / sample.format.lower() / "regions" / region / sample.name


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("web")
    (folder / "made").mkdir()
    samples = find_samples(data_dir, folder / "made")
    server = TicketServer()
    with served(server):
        sources = f'[[source]]\nname = "web"\ntype = "http"\nurl = "{server.url}/data/"\n'
        for format_ in Format:
            names: list[str] = []
            for sample in samples:
                if sample.format is not format_:
                    continue
                indices = [sample.index] if sample.name != "range.bam" else []  # an index is made of this one
                for ending in ("", *indices, *([".gzi"] if Path(f"{sample.path}.gzi").exists() else [])):
                    server.serve(f"/data/{sample.name}{ending}", Path(f"{sample.path}{ending}").read_bytes())
                    names.append(sample.name + ending)
            sources += f'[[source.asset]]\nkey = "hg38/{format_.lower()}"\nfiles = {json.dumps(names)}\n'
        with Setup(folder, sources).mount() as mounted:
            yield Web(mounted, server, samples)


@pytest.mark.parametrize("number", range(11))
def test_slices_have_what_the_originals_have(web: Web, number: int) -> None:
    sample = web.samples[number]
    known = records_by_reference(sample)
    for reference in [name for name in references_of(sample) if known.get(name)]:
        folder = f"{{{reference}}}" if ":" in reference else reference
        assert records(web.path(sample, folder), sample, folder) == records(sample.path, sample, folder)
    head = ["samtools", "head"] if sample.format.is_reads else ["bcftools", "view", "-h", "--no-version"]
    heads = [web.mounted.run(*head, str(path)).stdout for path in (web.path(sample, "header"), sample.path)]
    assert heads[0] == heads[1]
    if sample.format.is_reads:
        web.mounted.run("samtools", "quickcheck", str(web.path(sample, "header")))
        assert records(web.path(sample, "unmapped"), sample, "*") == records(sample.path, sample, "*")


def test_a_slice_costs_its_ranges(tmp_path: Path, data_dir: Path) -> None:
    path = data_dir / "data/htsget/htsget-rs/bam/htsnexus_test_NA12878.bam"
    server = TicketServer()
    with served(server):
        for ending in ("", ".bai", ".gzi"):
            server.serve(f"/{path.name}{ending}", Path(f"{path}{ending}").read_bytes())
        sources = (
            f"[[source]]\nname = 'web'\ntype = 'http'\nurl = '{server.url}/'\n"
            f"[[source.asset]]\nkey = 'hg38/x'\nfiles = ['{path.name}', '{path.name}.bai', '{path.name}.gzi']\n"
        )
        with Setup(tmp_path, sources).mount() as mounted:
            slice_ = mounted.path / "hg38/x/regions/11:5015001-5050000" / path.name
            assert int(mounted.run("samtools", "view", "-c", str(slice_), "11:5015001-5050000").stdout) == 3803
            assert slice_.stat().st_size == 431_880
            # a slice is made of whole blocks of the cache: 64 KiB more at each edge, at the most
            assert server.sent[f"/{path.name}"] <= 431_880 + 9 * 65_536
            listed = os.listdir(slice_.parent)
            assert path.name in listed
            assert len(listed) == 2  # and the index that was made


def test_what_has_no_slices(web: Web) -> None:
    folder = web.mounted.path / "hg38" / "bam" / "regions"
    for region in ("nothing", "11:9-1", ".Trash"):
        assert not (folder / region).exists()
    assert os.listdir(folder) == []
    assert "regions" not in os.listdir(folder.parent)


def test_a_file_that_is_replaced_has_new_slices(tmp_path: Path, data_dir: Path) -> None:
    files = data_dir / "data/htsget/htsget-rs/bam"
    old = (files / "htsnexus_test_NA12878.bam").read_bytes()
    fresh = subprocess.run(
        ["samtools", "view", "-b", "--no-PG", "-s", "0.5", str(files / "htsnexus_test_NA12878.bam")],
        check=True,
        capture_output=True,
    ).stdout
    server = TicketServer()
    with served(server):
        server.serve("/a.bam", old)
        sources = (
            f"[[source]]\nname = 'web'\ntype = 'http'\nurl = '{server.url}/'\nrevalidate = '0s'\n"
            "[[source.asset]]\nkey = 'hg38/x'\nfiles = ['a.bam']\n"
        )
        with Setup(tmp_path, sources).mount() as mounted:
            slice_ = mounted.path / "hg38/x/regions/20/a.bam"
            counts = [mounted.run("samtools", "view", "-c", str(slice_)).stdout]
            server.serve("/a.bam", fresh, etag='"2"')
            time_out = 20
            while True:
                done = mounted.run("samtools", "view", "-c", str(slice_), check=False)
                if done.stdout not in ("", counts[0]) or not time_out:
                    break
                time_out -= 1
                mounted.run("sleep", "0.3")
            assert 0 < int(done.stdout) < int(counts[0])


def test_evicting_an_asset_takes_what_was_cut_out_of_it(tmp_path: Path, data_dir: Path) -> None:
    bam = data_dir / "data/htsget/htsget-rs/bam/htsnexus_test_NA12878.bam"
    fasta = data_dir / "data/htsget/htslib/ce.fa"
    server = TicketServer()
    with served(server):
        server.serve("/a.bam", bam.read_bytes())
        server.serve("/ce.fa", fasta.read_bytes())
        sources = f"[[source]]\nname = 'web'\ntype = 'http'\nurl = '{server.url}/'\n" + "".join(
            f"[[source.asset]]\nkey = 'hg38/{asset}'\nfiles = ['a.bam', 'ce.fa']\n" for asset in "xy"
        )
        md5 = "8ede36131e0dbf3417807e48f77f3ebd"
        script = f"""
            for asset in x y; do
                samtools view -c $M/hg38/$asset/regions/11:5015001-5050000/a.bam 11:5015001-5050000
            done
            cat $M/.refget/8e/de/{md5[4:]} | wc -c
        """
        with Setup(tmp_path, sources).mount() as mounted:
            before = mounted.shell(script)
            mounted.refgenfs("evict", "hg38/x")
            left = mounted.call("cache_info")["contents"]
            assert left
            assert {one["key"] for one in left if one["resident"]} == {"hg38/y:default"}
            mounted.refgenfs("evict", "hg38/y")
            assert not [one for one in mounted.call("cache_info")["contents"] if one["resident"]]
            assert mounted.shell(script) == before
