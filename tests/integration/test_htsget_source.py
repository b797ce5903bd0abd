"""A htsget server as a source: its catalog, its health, the facts of its files, and what is kept of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from refgenfs.core.catalog import AssetVersion
from refgenfs.core.catalog_json import FactsRow, dump_facts, load_facts
from refgenfs.core.content import FileFacts, InlineData
from refgenfs.core.errors import OriginDenied
from refgenfs.core.htsget.model import Format
from refgenfs.core.ticketblocks import TicketBlocks
from refgenfs.sources import Unchecked
from refgenfs.sources.htsget import HtsgetSource
from tests.support.ticketdesk import LAB, Desk, open_desk
from tests.support.ticketing import TicketServer, inline, ranged, served

ASSETS = [
    ("hg38/reads", [("a.bam", Format.BAM, "x/a"), ("b.bam", Format.BAM, "b")]),
    ("hg38/reads", [("a.cram", Format.CRAM, "x/a")]),
    ("hg38/calls:v2", [("c.vcf.gz", Format.VCF, "c")]),
]


@pytest.fixture
def server() -> Iterator[TicketServer]:
    made = TicketServer()
    with served(made):
        yield made


@pytest.fixture
async def desk(tmp_path: Path, server: TicketServer) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path / "cache", server.url, retry_for=0.2) as opened:
        yield opened


def make(desk: Desk, server: TicketServer) -> HtsgetSource:
    return HtsgetSource(desk.http, desk.fetcher, name=LAB, url=server.url, assets=ASSETS, timeout=1, wall=lambda: 7.0)


async def version(source: HtsgetSource) -> AssetVersion:
    catalog = await source.catalog()
    return catalog.genomes[0].assets["reads"].tags["default"]


async def test_the_catalog_is_the_configuration_s(desk: Desk, server: TicketServer) -> None:
    source = make(desk, server)
    reads = await version(source)
    assert await source.listing(reads) == ("a.bam", "a.cram", "b.bam")
    assert reads.seek_keys == {"dir": ".", "cram": "a.cram"}
    calls = (await source.catalog()).genomes[0].assets["calls"].tags["v2"]
    assert calls.seek_keys == {"dir": ".", "calls": "c.vcf.gz", "vcf": "c.vcf.gz"}
    assert {one.path for one in server.requests} == {"/reads/service-info", "/variants/service-info"}


@pytest.mark.parametrize("status", [200, 404, 405, 400])
async def test_a_server_that_answers_is_well(desk: Desk, server: TicketServer, status: int) -> None:
    server.info = status
    assert (await make(desk, server).catalog()).genomes


@pytest.mark.parametrize("status", [401, 403, 503])
async def test_a_server_that_lets_nobody_in_has_its_catalog_all_the_same(
    desk: Desk, server: TicketServer, status: int
) -> None:
    server.info = status
    with pytest.raises(Unchecked) as caught:
        await make(desk, server).catalog()
    assert [genome.digest for genome in caught.value.catalog.genomes] == ["hg38"]


async def test_facts_outlive_the_daemon_without_urls(desk: Desk, server: TicketServer) -> None:
    source = make(desk, server)
    reads = await version(source)
    url = server.serve("/a", b"y" * 500)
    secret = {"X-Secret": "h3ader"}
    server.tickets["x/a"] = lambda request, body: [
        {"url": inline(b"x")},
        ranged(f"{url}?sig", 0, 400, headers=secret),
    ]
    facts = await source.facts(reads, "a.bam")
    assert facts is not None
    assert (facts.size, facts.mtime, facts.origin) == (401, 7.0, "htsget")
    kept = dump_facts(
        FactsRow(server.url, {"a.bam": facts, "empty": FileFacts("c", 0, 0.0, InlineData(b""), LAB, "inline")})
    )
    assert "h3ader" not in str(kept)
    assert "/a" not in str(kept).replace("x/a", "")
    loaded = load_facts(kept, LAB)
    assert loaded is not None
    assert loaded.facts["a.bam"] == facts
    assert source.name_of(reads, facts.extent) == "a.bam"
    other = await source.facts(reads, "a.bam", None)
    assert other == facts


async def test_ids_that_are_not_there_and_those_that_are_denied(desk: Desk, server: TicketServer) -> None:
    source = make(desk, server)
    reads = await version(source)
    assert await source.facts(reads, "b.bam") is None
    assert await source.facts(reads, "nothing") is None
    server.token = "another"
    with pytest.raises(OriginDenied):
        await source.facts(reads, "a.bam")


async def test_formats_of_one_id_are_two_contents(desk: Desk, server: TicketServer) -> None:
    source = make(desk, server)
    reads = await version(source)
    server.tickets["x/a"] = lambda request, body: [{"url": inline(b"the same")}]
    facts = [await source.facts(reads, name) for name in ("a.bam", "a.cram")]
    assert all(one is not None and isinstance(one.extent, TicketBlocks) for one in facts)
    assert len({one.content for one in facts if one is not None}) == 2


async def test_an_empty_file(desk: Desk, server: TicketServer) -> None:
    source = make(desk, server)
    server.tickets["b"] = lambda request, body: [{"url": inline(b"")}]
    facts = await source.facts(await version(source), "b.bam")
    assert facts is not None
    assert facts.extent == InlineData(b"")
