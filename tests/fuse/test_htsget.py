"""Files of htsget servers on a mount: what tools read of them is what they read of the originals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

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
    assert world.mounted.run("tabix", str(world.path(sample)), "chr22").stdout == (
        world.mounted.run("tabix", str(sample.path), "chr22").stdout
    )


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
        assert not mounted.status()["sources"][0]["healthy"]


def test_a_server_that_is_away_at_first_is_listed_all_the_same(tmp_path: Path) -> None:
    sources = (
        "[[source]]\nname = 'lab'\ntype = 'htsget'\nurl = 'http://127.0.0.1:9'\n"
        "[[source.asset]]\nkey = 'hg38/x'\nreads = ['a']\n"
    )
    with Setup(tmp_path, sources, limits={"retry_for": "0s"}).mount() as mounted:
        assert mounted.run("ls", f"{mounted.path}/hg38/x").stdout == "a.bam\n"
        assert mounted.run("stat", f"{mounted.path}/hg38/x/a.bam", check=False).returncode


def test_no_secret_is_told(world: World) -> None:
    sample = world.sample(Format.BAM, "htsnexus")
    world.mounted.run("cat", str(world.path(sample)), text=False)
    told = world.mounted.log_text() + str(world.mounted.status())
    told += world.mounted.run("getfattr", "-d", "-m", "-", str(world.path(sample))).stdout
    told += world.mounted.refgenfs("info", "hg38/bam", "--json").stdout
    told += world.mounted.refgenfs("config", "show").stdout
    assert not [one for one in SECRETS if one in told]
