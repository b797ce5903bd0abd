"""Files of htsget servers on a mount: what tools read of them is what they read of the originals."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pysam
import pytest

from refgenfs.cli.reaching import ask_htsget
from refgenfs.config import sources as config
from refgenfs.core.htsget.model import Format
from tests.support.htsgetserver import Sample, find_samples, serve_sample, source_toml
from tests.support.mounted import Mounted, Setup
from tests.support.ticketing import TOKEN, TicketServer, served

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data]

SECRETS = (TOKEN,)


@dataclass
class World:
    """A daemon over a server of tickets and a host of blocks."""

    mounted: Mounted
    server: TicketServer
    host: TicketServer
    samples: list[Sample]

    def path(self, sample: Sample, region: str = "") -> Path:
        """Return where a file is, or its slice."""
        folder = self.mounted.path / "hg38" / sample.format.lower()
        return (folder / "regions" / region if region else folder) / sample.name

    def sample(self, format_: Format, stem: str = "") -> Sample:
        """Return a file by its format, and what its name begins with."""
        return next(one for one in self.samples if one.format is format_ and one.name.startswith(stem))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("htsget")
    (folder / "made").mkdir()
    samples = find_samples(data_dir, folder / "made")
    server, host = TicketServer(), TicketServer()
    with served(server, host):
        token = folder / "lab.token"
        token.write_text(TOKEN)
        server.token = TOKEN
        for sample in samples:
            serve_sample(server, sample, host)
        setup = Setup(folder, source_toml(server, samples, extra=f'token_file = "{token}"'))
        with setup.mount() as mounted:
            yield World(mounted, server, host, samples)


# By number: the files are found when tests run.
of_each_file = pytest.mark.parametrize("number", range(11))


def test_all_files_are_there(world: World) -> None:
    assert {sample.format for sample in world.samples} == set(Format)
    assert len(world.samples) == 11
    for format_ in Format:
        listed = world.mounted.run("ls", str(world.mounted.path / "hg38" / format_.lower())).stdout.split()
        assert listed == sorted(one.name for one in world.samples if one.format is format_)


@of_each_file
def test_whole_files_are_byte_for_byte_the_originals(world: World, number: int) -> None:
    sample = world.samples[number]
    world.mounted.run("cmp", str(world.path(sample)), str(sample.path))


def test_an_index_is_made_beside_a_whole_file(world: World) -> None:
    for format_, regions in ((Format.BAM, ("11:5015001-5050000", "20", "*")), (Format.CRAM, ("11", "20", "*"))):
        sample = world.sample(format_, "htsnexus")
        for region in regions:
            count = [
                world.mounted.run("samtools", "view", "-c", str(path), region).stdout
                for path in (world.path(sample), sample.path)
            ]
            assert count[0] == count[1]
    sample = world.sample(Format.VCF, "HG002")
    assert world.mounted.run("tabix", str(world.path(sample)), "22").stdout == (
        world.mounted.run("tabix", str(sample.path), "22").stdout
    )


def test_the_origin_s_index_is_taken_where_it_has_one(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "made").mkdir()
    samples = [one for one in find_samples(data_dir, tmp_path / "made") if one.name in ("range.bam", "range.cram")]
    server, host = TicketServer(), TicketServer()
    with served(server, host):
        for sample in samples:
            serve_sample(server, sample, host)
            host.serve(f"/data/{sample.name}{sample.index}", Path(f"{sample.path}{sample.index}").read_bytes())
        with Setup(tmp_path, source_toml(server, samples)).mount() as mounted:
            for sample in samples:
                path = mounted.path / "hg38" / sample.format.lower() / sample.name
                assert not Path(f"{path}.csi").exists()
                mounted.run("cmp", f"{path}{sample.index}", f"{sample.path}{sample.index}")
                assert os.stat(f"{path}{sample.index}").st_mtime >= path.stat().st_mtime
                host.sent.clear()
                assert records(path, sample, "CHROMOSOME_II") == records(sample.path, sample, "CHROMOSOME_II")
                assert world_bytes(host) < sample.path.stat().st_size + 4 * 65536


def world_bytes(host: TicketServer) -> int:
    """Return how many bytes of bodies a host has sent."""
    return sum(host.sent.values())


def test_a_file_is_known_by_name_when_the_server_is_away(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "made").mkdir()
    sample = next(one for one in find_samples(data_dir, tmp_path / "made") if one.name == "range.bam")
    server = TicketServer()
    with served(server):
        serve_sample(server, sample)
        setup = Setup(tmp_path, source_toml(server, [sample]), limits={"retry_for": "1s"})
        with setup.mount() as mounted:
            mounted.run("cmp", f"{mounted.path}/hg38/bam/range.bam", str(sample.path))
            assert mounted.stop() == 0
    with setup.mount() as mounted:
        mounted.run("cmp", f"{mounted.path}/hg38/bam/range.bam", str(sample.path))
        deadline = time.monotonic() + 30
        while mounted.status()["sources"][0]["healthy"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not mounted.status()["sources"][0]["healthy"]


def test_a_server_that_is_away_at_first_is_listed_all_the_same(tmp_path: Path) -> None:
    sources = (
        "[[source]]\nname = 'lab'\ntype = 'htsget'\nurl = 'http://127.0.0.1:9'\n"
        "[[source.asset]]\nkey = 'hg38/x'\nreads = ['a']\n"
    )
    with Setup(tmp_path, sources, limits={"retry_for": "0s"}).mount() as mounted:
        assert mounted.run("ls", f"{mounted.path}/hg38/x").stdout == "a.bam\n"
        assert mounted.run("stat", f"{mounted.path}/hg38/x/a.bam", check=False).returncode


# ---- regions


def copy_of(sample: Sample) -> Path:
    """Return the original, which has its index beside it."""
    return sample.path


def records_by_reference(sample: Sample) -> dict[str, int]:
    """Return how many records a file has of each reference."""
    found: dict[str, int] = {}
    if sample.format.is_reads:
        for line in subprocess.run(
            ["samtools", "idxstats", str(sample.path)], capture_output=True, check=True, text=True
        ).stdout.splitlines():
            name, _, mapped, placed = line.split("\t")
            found[name] = int(mapped) + int(placed)
        return found
    with pysam.VariantFile(str(sample.path)) as file:
        for record in file:
            found[record.chrom] = found.get(record.chrom, 0) + 1
    return found


def references_of(sample: Sample) -> list[str]:
    """Return the names of all references that htslib finds in a file."""
    if sample.format.is_reads:
        with pysam.AlignmentFile(str(sample.path), check_sq=False) as file:
            return list(file.references)
    with pysam.VariantFile(str(sample.path)) as file:
        return [str(name) for name in file.header.contigs]


def records(path: Path, sample: Sample, region: str) -> list[str]:
    """Return the records that htslib gives of a region of a sample's file, or of its slice at `path`."""
    fasta = sample.path.with_name("ce.fa")
    if sample.format.is_reads:
        reference = ["-T", str(fasta)] if fasta.exists() else []
        command = ["samtools", "view", "--no-PG", *reference, str(path), region]
    else:
        command = ["bcftools", "view", "-H", str(path), region]
    done = subprocess.run(["timeout", "-s", "KILL", "60", *command], capture_output=True, check=False, text=True)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout.splitlines()


@of_each_file
def test_slices_have_what_the_originals_have(world: World, number: int) -> None:
    """For every reference of every file, and for `header` and `unmapped`; indices are made."""
    sample = world.samples[number]
    known = records_by_reference(sample)
    for reference in references_of(sample):
        slice_ = world.path(sample, reference if ":" not in reference else f"{{{reference}}}")
        if not known.get(reference):
            assert slice_.stat().st_size
            continue
        region = f"{{{reference}}}" if ":" in reference else reference
        assert records(slice_, sample, region) == records(sample.path, sample, region)
    if sample.format.is_reads:
        assert records(world.path(sample, "unmapped"), sample, "*") == records(sample.path, sample, "*")
        head = [
            world.mounted.run("samtools", "head", str(path)).stdout
            for path in (world.path(sample, "header"), sample.path)
        ]
        world.mounted.run("samtools", "quickcheck", str(world.path(sample, "header")))
    else:
        head = [
            world.mounted.run("bcftools", "view", "-h", "--no-version", str(path)).stdout
            for path in (world.path(sample, "header"), sample.path)
        ]
    assert head[0] == head[1]


def test_regions_are_written_as_samtools_writes_them(world: World) -> None:
    for format_, stem, regions in (
        (Format.BAM, "htsnexus", ("11:5015001-5050000", "20:100-", "11:-5000000", "11")),
        (Format.CRAM, "htsnexus", ("11:5015001-5050000", "20")),
        (Format.VCF, "HG002", ("22:1-20000000", "20")),
        (Format.BCF, "sample1", ("chrM:151-153",)),
    ):
        sample = world.sample(format_, stem)
        for region in regions:
            asked = region.replace(":-", ":1-")
            assert records(world.path(sample, region), sample, asked) == records(sample.path, sample, asked)


def test_several_regions_are_one_file(world: World) -> None:
    sample = world.sample(Format.BAM, "htsnexus")
    slice_ = world.path(sample, "20:60000-70000,11:5015001-5050000,11:4999976-5003981")
    for region in ("20:60000-70000", "11:5015001-5050000", "11:4999976-5003981"):
        assert records(slice_, sample, region) == records(sample.path, sample, region)
    assert world.mounted.run("samtools", "quickcheck", "-v", str(slice_)).stdout == ""


def test_equal_regions_are_one_inode(world: World) -> None:
    sample = world.sample(Format.BAM, "htsnexus")
    same = (
        "11:5015001-5050000",
        "11:05015001-5050000",
        "{11}:5015001-5050000",
        "11:5015001-5040000,11:5030000-5050000",
    )
    assert len({world.path(sample, region).stat().st_ino for region in same}) == 1
    assert world.path(sample, "11").stat().st_ino == world.path(sample, "11:1-135006516").stat().st_ino
    assert world.path(sample, "*").stat().st_ino == world.path(sample, "unmapped").stat().st_ino


def test_names_of_regions_that_are_none(world: World) -> None:
    sample = world.sample(Format.BAM, "htsnexus")
    world.path(sample, "11").stat()
    before = len(world.server.requests)
    for region in ("12:1-5x", "nothing", "11:5-1", "11,", ".git", "header,11", "11:1,000-2,000", "x" * 255):
        assert not world.path(sample, region).exists(), region
        assert not world.path(sample, region).parent.exists(), region
    assert not (world.path(sample, "11").parent / "nothing.bam").exists()
    assert not (world.path(sample, "11").parent / "range.bam").exists()
    assert not (world.mounted.path / "hg38" / "vcf" / "regions" / "unmapped").exists()
    assert len([one for one in world.server.requests[before:] if "htsnexus" in one.path]) == 0


def test_regions_are_not_listed(world: World) -> None:
    sample = world.sample(Format.BAM, "htsnexus")
    world.path(sample, "11").stat()
    assert "regions" not in os.listdir(world.path(sample).parent)
    assert os.listdir(world.path(sample).parent / "regions") == []
    assert sample.name in os.listdir(world.path(sample, "11").parent)


def test_a_region_costs_its_blocks(tmp_path: Path, data_dir: Path) -> None:
    """Not more than 1.2 times what the reference implementation's ranges have for this query: 431,880 bytes."""
    (tmp_path / "made").mkdir()
    sample = next(
        one for one in find_samples(data_dir, tmp_path / "made") if one.name.startswith("htsnexus_test_NA12878.bam")
    )
    server, host = TicketServer(), TicketServer()
    with served(server, host):
        serve_sample(server, sample, host)
        with Setup(tmp_path, source_toml(server, [sample])).mount() as mounted:
            path = mounted.path / "hg38" / "bam" / "regions" / "11:5015001-5050000" / sample.name
            count = mounted.run("samtools", "view", "-c", str(path)).stdout
            assert int(count) >= 3803
            assert sum(host.sent.values()) <= 1.2 * 431_880
            region = mounted.run("samtools", "view", "-c", str(path), "11:5015001-5050000").stdout
            assert int(region) == 3803
            assert sum(host.sent.values()) <= 1.2 * 431_880


def test_doctor_asks_the_server(tmp_path: Path) -> None:
    server = TicketServer()
    with served(server):
        token = tmp_path / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        source = config.HtsgetSource(
            name="lab",
            type="htsget",
            url=server.url,
            token_file=token,
            asset=(config.HtsgetAsset(key="g/x", variants=("a",)),),
        )
        server.token = TOKEN
        assert ask_htsget(source).state == "ok"
        assert [one.path for one in server.requests] == ["/variants/service-info"]
        server.info = 404  # an older server
        server.tickets["a"] = lambda request, body: [{"url": "data:;base64,AAAA"}]
        assert ask_htsget(source).found.endswith("answers, with a ticket")
        del server.tickets["a"]
        assert ask_htsget(source).state == "fail"
        server.token = "another"
        denied = ask_htsget(source)
        assert denied.state == "fail"
        assert "access denied" in denied.found
        assert TOKEN not in str(denied)
    assert ask_htsget(source).state == "fail"


def test_no_secret_is_told(world: World) -> None:
    sample = world.sample(Format.BAM, "htsnexus")
    world.mounted.run("cat", str(world.path(sample)), text=False)
    told = world.mounted.log_text() + str(world.mounted.status())
    told += world.mounted.run("getfattr", "-d", "-m", "-", str(world.path(sample))).stdout
    told += world.mounted.refgenfs("info", "hg38/bam", "--json").stdout
    told += world.mounted.refgenfs("config", "show").stdout
    assert not [one for one in SECRETS if one in told]
