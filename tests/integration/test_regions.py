"""Regions of files of a htsget server: what is asked for, what is remembered, and servers that can't do it all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import ByteRange, FileFacts
from refgenfs.core.errors import DeadlineExceeded, NotInCatalog, OriginDenied, OriginUnavailable
from refgenfs.core.htsget.model import Format
from refgenfs.core.ticketblocks import TicketBlocks
from refgenfs.reader.budget import Budget
from refgenfs.reader.flights import FlightBoard
from refgenfs.reader.ranges import Fetchers, RangeFlights
from refgenfs.reader.reader import Reader
from refgenfs.regions import deriver
from refgenfs.regions.deriver import Regions
from refgenfs.regions.ticketed import TicketSlicer
from refgenfs.sources.htsget import HtsgetSource
from tests.support.htsgetserver import Sample, serve_sample
from tests.support.ticketdesk import LAB, MIB, Desk, open_desk
from tests.support.ticketing import TicketServer, ranged, served

pytestmark = pytest.mark.needs_data
NAME = "htsnexus_test_NA12878.bam"
FIRST, SECOND, THIRD = "11:5015001-5050000", "11:4999977-5003981", "20:60001-70000"


@dataclass
class Lab:
    """Slices over a real fetcher, reader and cache."""

    regions: Regions
    version: AssetVersion
    desk: Desk
    reader: Reader
    now: float = 0.0

    async def facts(self, folder: str, name: str = NAME) -> FileFacts | None:
        """Look a slice up as the library does."""
        top = await self.regions.child(self.version, "hg38", "", "regions", {})
        assert top is not None
        if await self.regions.child(self.version, "hg38", "regions", folder, {}) is None:
            return None
        child = await self.regions.child(self.version, "hg38", f"regions/{folder}", name, {})
        if child is None or child.origin_name is None:
            return None
        try:
            return await self.regions.facts(self.version, child.origin_name)
        except NotInCatalog:
            return None

    async def slice(self, folder: str) -> TicketBlocks:
        """Return the extent of a slice that there is."""
        facts = await self.facts(folder)
        assert facts is not None
        assert isinstance(facts.extent, TicketBlocks)
        return facts.extent


@pytest.fixture
def server() -> Iterator[TicketServer]:
    made = TicketServer()
    with served(made):
        yield made


@pytest.fixture
def sample(data_dir: Path) -> Sample:
    path = data_dir / "data/htsget/htsget-rs/bam" / NAME
    return Sample("set/htsnexus_test_NA12878", Format.BAM, path, ".bai")


@asynccontextmanager
async def open_lab(folder: Path, server: TicketServer, ids: int = 1, *, deadline: float = 10.0) -> AsyncIterator[Lab]:
    async with open_desk(folder, server.url, retry_for=0.3) as desk, trio.open_nursery() as nursery:
        board, budget = FlightBoard(), Budget(64 * MIB)
        flights = RangeFlights(Fetchers({ByteRange: desk.http, TicketBlocks: desk.fetcher}), board, budget, nursery)
        reader = Reader(desk.store, board, flights, None, lambda _: None, patience=5, nursery=nursery)  # type: ignore[arg-type]
        files = [(NAME, Format.BAM, "set/htsnexus_test_NA12878")]
        files += [(f"{at}.bam", Format.BAM, f"{at}") for at in range(1, ids)]
        source = HtsgetSource(
            desk.http, desk.fetcher, name=LAB, url=server.url, assets=[("hg38/x", files)], hold=60, timeout=1
        )
        version = source._catalog().genomes[0].assets["x"].tags["default"]
        regions = Regions((TicketSlicer({LAB: source}, reader),), lookup_deadline=deadline, wall=lambda: opened.now)
        regions.open(nursery)
        opened = Lab(regions, version, desk, reader)
        yield opened
        nursery.cancel_scope.cancel()


@pytest.fixture
async def lab(tmp_path: Path, server: TicketServer, sample: Sample) -> AsyncIterator[Lab]:
    serve_sample(server, sample)
    async with open_lab(tmp_path / "cache", server) as opened:
        yield opened


def tickets(server: TicketServer) -> list[str]:
    """Return what tickets were asked for: a GET's query, or POST."""
    return [
        one.query_string if one.method == "GET" else "POST"
        for one in server.requests
        if one.path.startswith("/reads/")
    ]


async def test_a_slice_is_asked_for_once(lab: Lab, server: TicketServer) -> None:
    found = [await lab.facts(folder) for folder in (FIRST, "11:05015001-5050000", f"{FIRST},11:5020000-5030000")]
    assert found[0] is not None
    assert found[0] == found[1] == found[2]
    assert tickets(server) == ["format=BAM&class=header", "format=BAM&referenceName=11&start=5015000&end=5050000"]


async def test_several_regions_are_one_post(lab: Lab, server: TicketServer, sample: Sample) -> None:
    extent = await lab.slice(f"{FIRST},{THIRD}")
    assert tickets(server)[1:] == ["POST"]
    assert await lab.desk.fetch(extent) == sample.files.joined(sample.files.search(FIRST, THIRD))


@pytest.mark.parametrize("status", [404, 405, 400, 501, "repeats"])
async def test_where_several_can_t_be_asked_for_the_region_that_has_all_is(
    tmp_path: Path, server: TicketServer, sample: Sample, status: Any
) -> None:
    serve_sample(server, sample)
    right = server.tickets[sample.id]

    def ticket(request: Any, body: Any) -> Any:
        if body is None:
            return right(request, body)
        if status != "repeats":
            return status, b"no"
        url = f"{server.url}/data/{NAME}"
        files = [ranged(url, 0, 4668), ranged(url, 256721, 300000), ranged(url, 2596771, 2596799)]
        return [*files, *files]

    server.tickets[sample.id] = ticket
    async with open_lab(tmp_path / "cache", server) as lab:
        extent = await lab.slice(f"{FIRST},{SECOND}")
        assert tickets(server)[1:] == ["POST", "format=BAM&referenceName=11&start=4999976&end=5050000"]
        assert await lab.desk.fetch(extent) == sample.files.joined(sample.files.search("11:4999977-5050000"))
        whole = await lab.slice(f"{FIRST},{THIRD}")
        assert whole.size == sample.path.stat().st_size
        asked = tickets(server)[3:]
        assert asked[-1] == "format=BAM"
        assert asked.count("POST") == (1 if status == 404 else 0)  # which may have meant the reference


async def test_a_server_in_trouble_is_not_one_without_post(
    tmp_path: Path, server: TicketServer, sample: Sample
) -> None:
    serve_sample(server, sample)
    right = server.tickets[sample.id]
    server.tickets[sample.id] = lambda request, body: right(request, body) if body is None else (503, b"busy")
    async with open_lab(tmp_path / "cache", server) as lab:
        with pytest.raises(OriginUnavailable):
            await lab.facts(f"{FIRST},{THIRD}")


async def test_a_server_that_gives_no_headers_is_asked_for_the_file(
    tmp_path: Path, server: TicketServer, sample: Sample
) -> None:
    serve_sample(server, sample)
    right = server.tickets[sample.id]

    def ticket(request: Any, body: Any) -> Any:
        if "class" in request.query:
            return 400, {"htsget": {"error": "InvalidInput"}}
        return right(request, body)

    server.tickets[sample.id] = ticket
    async with open_lab(tmp_path / "cache", server) as lab:
        assert await lab.facts(FIRST) is not None
        assert await lab.facts("12345") is None
        assert server.sent[f"/data/{NAME}"] < 600_000


async def test_names_that_are_none_ask_nobody(lab: Lab, server: TicketServer) -> None:
    await lab.facts(FIRST)
    before = len(server.requests)
    for at in range(3000):
        assert await lab.facts(f"junk{at}") is None
        assert await lab.facts(f"11:{at + 2}-{at + 1}") is None
    assert len(server.requests) == before
    assert len(lab.regions._known) == 1


async def test_what_the_server_has_not_is_remembered_for_a_while(
    tmp_path: Path, server: TicketServer, sample: Sample
) -> None:
    serve_sample(server, sample)
    right = server.tickets[sample.id]

    def ticket(request: Any, body: Any) -> Any:
        if "referenceName" in request.query:
            return 404, {"htsget": {"error": "NotFound"}}
        return right(request, body)

    server.tickets[sample.id] = ticket
    async with open_lab(tmp_path / "cache", server) as lab:
        for _ in range(3):
            assert await lab.facts(FIRST) is None
        assert len(tickets(server)) == 2
        server.tickets[sample.id] = right
        lab.now = 61
        assert await lab.facts(FIRST) is not None


async def test_what_is_remembered_has_a_bound(
    lab: Lab, server: TicketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deriver, "KNOWN", 20)
    for at in range(1, 30):
        assert await lab.facts(f"11:{at}-{at + 1}") is not None
    assert lab.regions._weight <= 20
    assert lab.regions._weight == sum(known.weight for known in lab.regions._known.values())


async def test_a_server_that_is_away_changes_nothing(lab: Lab, server: TicketServer) -> None:
    known = await lab.facts(FIRST)
    lab.now = 1000
    server.tickets.clear()
    lab.desk.fetcher.tickets._servers = lambda _: ("http://127.0.0.1:9",)
    assert await lab.facts(FIRST) == known
    with pytest.raises(OriginUnavailable):
        await lab.facts("20")


async def test_a_new_version_is_another_content(tmp_path: Path, server: TicketServer, sample: Sample) -> None:
    serve_sample(server, sample)
    async with open_lab(tmp_path / "cache", server) as lab:
        before = await lab.facts(FIRST)
        assert before is not None
        server.blobs[f"/data/{NAME}"].etag = '"2"'
        lab.now = 61
        after = await lab.facts(FIRST)
        assert after is not None
        assert after.content != before.content
        assert lab.regions.forget(after) == [after.content]
        assert lab.regions.forget(after) == []


async def test_one_folder_of_many_files(tmp_path: Path, server: TicketServer, sample: Sample) -> None:
    serve_sample(server, sample)
    async with open_lab(tmp_path / "cache", server, ids=4) as lab:
        children = await lab.regions.children(lab.version, "hg38", f"regions/{FIRST}")
        assert children is not None
        assert list(children) == [NAME]  # the server knows the others not
        assert await lab.regions.children(lab.version, "hg38", "regions") == {}
        assert await lab.regions.children(lab.version, "hg38", "regions/nothing") is None
        assert await lab.facts(FIRST, "1.bam") is None


async def test_every_lookup_ends(tmp_path: Path, server: TicketServer, sample: Sample) -> None:
    serve_sample(server, sample)
    answer = server.answer

    async def slow(request: Any) -> Any:
        if "referenceName" in request.query:
            await asyncio.sleep(1.5)
        return await answer(request)

    server.answer = slow  # type: ignore[method-assign]
    async with open_lab(tmp_path / "cache", server, deadline=0.5) as lab:
        with pytest.raises(DeadlineExceeded):
            await lab.facts(FIRST)
        await trio.sleep(2)
        assert await lab.facts(FIRST) is not None  # it went on


async def test_denied_is_not_absent(tmp_path: Path, server: TicketServer, sample: Sample) -> None:
    serve_sample(server, sample)
    server.token = "another"
    async with open_lab(tmp_path / "cache", server) as lab:
        with pytest.raises(OriginDenied):
            await lab.facts(FIRST)
