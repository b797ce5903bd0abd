"""Contents that are blocks of tickets, from servers and hosts that behave in every way that there is."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from aiohttp import web

from refgenfs.core.content import BLOCK
from refgenfs.core.errors import (
    CacheError,
    IntegrityError,
    OriginDenied,
    OriginMissing,
    OriginUnavailable,
    PayloadTooLarge,
    RefgenfsError,
    StaleContent,
    UnsupportedFormat,
)
from refgenfs.core.htsget import bgzf
from refgenfs.core.htsget.model import Class, Format, Interval, Query, Region
from tests.support.ticketdesk import LAB, MIB, Desk, assert_no_secret, listen, open_desk
from tests.support.ticketing import BEARER, TOKEN, TicketServer, inline, ranged, served

DATA = random.Random(5).randbytes(5 * BLOCK + 1234)
OTHER = random.Random(6).randbytes(len(DATA))
SIGNATURE = "X-Sig=5ecret"


@pytest.fixture
def servers() -> Iterator[tuple[TicketServer, TicketServer]]:
    """A server of tickets, and a host of blocks."""
    tickets, host = TicketServer(), TicketServer()
    with served(tickets, host):
        yield tickets, host


@pytest.fixture
async def desk(tmp_path: Path, servers: tuple[TicketServer, TicketServer]) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path / "cache", servers[0].url) as opened:
        yield opened


def give(server: TicketServer, *urls: Any) -> None:
    """Let the server give a ticket of these for the id `a`."""
    server.tickets["a"] = lambda request, body: [{"url": one} if isinstance(one, str) else one for one in urls]


# ---- blocks of every kind


async def test_blocks_of_every_kind_make_one_content(desk: Desk, servers: tuple[TicketServer, TicketServer]) -> None:
    tickets, host = servers
    url = host.serve("/a", DATA)
    plain = host.serve("/b", OTHER)
    dynamic = host.serve("/c", OTHER[:777], ranges=False, tells_length=False, head_length=False, etag=None)
    opened = {"url": url, "headers": {"Range": f"bytes={BLOCK}-"}}
    give(tickets, inline(b"head"), ranged(url, 10, 2 * BLOCK + 5), plain, dynamic, opened, inline(b"tail"))
    whole = b"head" + DATA[10 : 2 * BLOCK + 5] + OTHER + OTHER[:777] + DATA[BLOCK:] + b"tail"
    extent = await desk.settle()
    assert extent.size == len(whole)
    assert await desk.fetch(extent) == whole
    for start in range(0, len(whole), BLOCK):
        stop = min(len(whole), start + BLOCK)
        assert await desk.fetch(extent, start, stop) == whole[start:stop]


async def test_lengths_that_the_ticket_tells_cost_one_byte_an_object(
    desk: Desk, servers: tuple[TicketServer, TicketServer]
) -> None:
    tickets, host = servers
    url = host.serve("/a", DATA)
    give(tickets, *(ranged(url, at, at + 100) for at in range(0, 5000, 200)))
    extent = await desk.settle()
    assert [block.length for block in extent.blocks] == [100] * 25
    assert {block.validator for block in extent.blocks} == {'"1"'}
    assert host.sent["/a"] == 1


async def test_a_read_in_the_middle_costs_its_stretch(desk: Desk, servers: tuple[TicketServer, TicketServer]) -> None:
    tickets, host = servers
    give(tickets, host.serve("/a", DATA))
    extent = await desk.settle()
    host.sent.clear()
    assert await desk.fetch(extent, 2 * BLOCK, 3 * BLOCK) == DATA[2 * BLOCK : 3 * BLOCK]
    assert host.sent["/a"] == BLOCK
    assert tickets.count("/reads") == 1


@pytest.mark.parametrize(
    "options",
    [
        {"ranges": False},
        {"ranges": False, "tells_length": False},
        {"tells_total": False},
        {"tells_total": False, "head": 403},
        {"ranges": False, "tells_length": False, "head_length": False},
        {"ranges": False, "tells_length": False, "head": 405, "etag": None},
    ],
)
async def test_hosts_that_tell_lengths_in_other_ways(
    desk: Desk, servers: tuple[TicketServer, TicketServer], options: dict[str, Any]
) -> None:
    tickets, host = servers
    give(tickets, inline(b"x"), host.serve("/a", DATA, **options))
    extent = await desk.settle()
    assert extent.size == 1 + len(DATA)
    assert await desk.fetch(extent, BLOCK, 3 * BLOCK) == (b"x" + DATA)[BLOCK : 3 * BLOCK]
    assert await desk.fetch(extent) == b"x" + DATA


@pytest.mark.parametrize("tells_length", [True, False])
async def test_a_host_without_ranges_sends_a_block_once(
    desk: Desk, servers: tuple[TicketServer, TicketServer], tells_length: bool
) -> None:
    tickets, host = servers
    url = host.serve("/a", DATA, ranges=False, tells_length=tells_length)
    give(tickets, ranged(url, 100, len(DATA) - 100))
    extent = await desk.settle()
    host.requests.clear()
    for at in (3, 0, 4, 2, 1):
        start, stop = at * BLOCK, min(extent.size, (at + 1) * BLOCK)
        assert await desk.fetch(extent, start, stop) == DATA[100:-100][start:stop]
    assert len(host.asked("/a")) <= 2


async def test_a_200_of_just_the_range_is_taken(desk: Desk, servers: tuple[TicketServer, TicketServer]) -> None:
    tickets, host = servers

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        host.requests.append(request)
        first, last = request.headers["Range"].removeprefix("bytes=").split("-")
        return web.Response(body=DATA[int(first) : int(last) + 1])

    host.answer = answer  # type: ignore[method-assign]
    give(tickets, ranged(f"{host.url}/a", 50, 50 + 3 * BLOCK))
    extent = await desk.settle()
    assert await desk.fetch(extent, BLOCK, 2 * BLOCK) == DATA[50 + BLOCK : 50 + 2 * BLOCK]
    assert await desk.fetch(extent) == DATA[50 : 50 + 3 * BLOCK]


async def test_a_block_that_is_too_large_for_the_disk_is_cut_out_of_its_stream(
    tmp_path: Path, servers: tuple[TicketServer, TicketServer]
) -> None:
    tickets, host = servers
    data = random.Random(7).randbytes(3 * MIB)
    give(tickets, ranged(host.serve("/a", data, ranges=False), 77, len(data)))
    async with open_desk(tmp_path / "cache", tickets.url, quota=8 * MIB) as desk:
        extent = await desk.settle()
        assert await desk.fetch(extent, 4 * BLOCK, 6 * BLOCK) == data[77:][4 * BLOCK : 6 * BLOCK]
        assert len(desk.fetcher.spools) == 0


# ---- bounds


async def test_an_endless_block_is_given_up(tmp_path: Path, servers: tuple[TicketServer, TicketServer]) -> None:
    tickets, host = servers
    give(tickets, host.serve("/a", endless=True, ranges=False, head_length=False))
    async with open_desk(tmp_path / "cache", tickets.url, quota=16 * MIB) as desk:
        with pytest.raises(CacheError, match=r"raise cache\.size"):
            await desk.settle()
        assert host.sent["/a"] < 32 * MIB
        await trio.sleep(0.05)
        assert desk.reserved == 0


async def test_what_is_spooled_has_a_bound(tmp_path: Path, servers: tuple[TicketServer, TicketServer]) -> None:
    tickets, host = servers
    data = [random.Random(at).randbytes(MIB + at) for at in range(8)]
    options = {"ranges": False, "tells_length": False, "head_length": False}
    give(tickets, *(host.serve(f"/{at}", one, **options) for at, one in enumerate(data)))
    async with open_desk(tmp_path / "cache", tickets.url, quota=16 * MIB) as desk:
        extent = await desk.settle()
        assert extent.size == sum(map(len, data))
        assert desk.fetcher.spools.taken <= 4 * MIB
        assert await desk.fetch(extent) == b"".join(data)  # what has gone is had again
        assert desk.fetcher.spools.taken <= 4 * MIB
    assert desk.reserved == 0


async def test_a_block_of_no_length_that_has_other_bytes_the_second_time(
    tmp_path: Path, servers: tuple[TicketServer, TicketServer]
) -> None:
    tickets, host = servers
    options = {"ranges": False, "tells_length": False, "head_length": False, "etag": None}
    give(tickets, host.serve("/a", DATA, **options))
    async with open_desk(tmp_path / "cache", tickets.url) as desk:
        extent = await desk.settle()
        async with open_desk(tmp_path / "cache2", tickets.url) as second:
            host.blobs["/a"].data = OTHER
            with pytest.raises(StaleContent):
                await second.fetch(extent)
            fresh = await second.settle()
            assert fresh.size == extent.size
            assert fresh.validator != extent.validator
            assert await second.fetch(fresh) == OTHER
        assert await desk.fetch(extent) == DATA  # what it has on its disk is still what it was


# ---- hosts that lie


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"shift": 1}, IntegrityError),
        ({"short": 1}, IntegrityError),
        ({"coding": "gzip"}, IntegrityError),
        ({"coding": "gzip", "ranges": False}, IntegrityError),
        ({"cut": 1000}, OriginUnavailable),
        ({"cut": 1000, "ranges": False}, OriginUnavailable),
    ],
)
@pytest.mark.parametrize("known", [True, False])
async def test_a_host_that_lies_gives_no_byte(
    desk: Desk,
    servers: tuple[TicketServer, TicketServer],
    options: dict[str, Any],
    error: type[Exception],
    known: bool,
) -> None:
    tickets, host = servers
    url = host.serve("/a", DATA)
    give(tickets, ranged(url, 5, len(DATA)) if known else url)
    extent = await desk.settle()
    host.serve("/a", DATA, **options)
    with pytest.raises(error), trio.fail_after(15):
        await desk.fetch(extent, BLOCK, 4 * BLOCK)


async def test_a_connection_that_breaks_is_taken_up_again(
    desk: Desk, servers: tuple[TicketServer, TicketServer]
) -> None:
    tickets, host = servers
    give(tickets, inline(b"q" * 100), host.serve("/a", DATA))
    extent = await desk.settle()
    host.blobs["/a"].cut = BLOCK + 100
    assert await desk.fetch(extent) == b"q" * 100 + DATA


async def test_trouble_that_passes_is_ridden_out(desk: Desk, servers: tuple[TicketServer, TicketServer]) -> None:
    tickets, host = servers
    answers: deque[Any] = deque([(503, b"busy"), (500, b""), (429, b"")])
    url = host.serve("/a", DATA)
    tickets.tickets["a"] = lambda request, body: answers.popleft() if answers else [{"url": url}]
    host.blobs["/a"].statuses.extend([503, 502, 200, 503])
    assert await desk.whole() == DATA


async def test_another_object_under_the_same_url_is_stale(
    desk: Desk, servers: tuple[TicketServer, TicketServer]
) -> None:
    tickets, host = servers
    give(tickets, ranged(host.serve("/a", DATA), 0, 4 * BLOCK))
    extent = await desk.settle()
    host.serve("/a", OTHER, etag='"2"')
    with pytest.raises(StaleContent):
        await desk.fetch(extent)
    assert (await desk.settle()).validator != extent.validator


# ---- redirects, headers, secrets


async def test_the_ticket_s_headers_go_everywhere_and_the_token_to_its_server_only(
    tmp_path: Path, servers: tuple[TicketServer, TicketServer], caplog: pytest.LogCaptureFixture
) -> None:
    listen(caplog)
    tickets, host = servers
    token = tmp_path / "token"
    token.write_text(TOKEN)
    tickets.token = TOKEN
    needs = {"X-Secret": "h3ader", "Authorization": "Basic t1cket"}
    far = host.serve("/far", DATA, needs=needs)
    near = tickets.serve("/near", redirect=f"{far}?{SIGNATURE}", needs=needs)
    open_ = tickets.serve("/open", b"!")
    give(tickets, ranged(f"{near}?{SIGNATURE}", 3, len(DATA), headers=needs), open_)
    async with open_desk(tmp_path / "cache", tickets.url, token_file=token) as desk:
        assert await desk.whole() == DATA[3:] + b"!"
        assert_no_secret(caplog, desk.http, TOKEN, "h3ader", "t1cket", "5ecret")
    assert {one.headers.get("Authorization") for one in tickets.requests if one.path == "/reads/a"} == {BEARER}
    assert {one.headers.get("Authorization") for one in tickets.requests if one.path == "/open"} == {None}
    blocks = [one for one in (*tickets.requests, *host.requests) if one.path in ("/near", "/far")]
    assert {one.headers.get("Authorization") for one in blocks} == {"Basic t1cket"}


async def test_the_token_is_read_again_when_it_changes(
    tmp_path: Path, servers: tuple[TicketServer, TicketServer]
) -> None:
    tickets, host = servers
    token = tmp_path / "token"
    token.write_text("old")
    tickets.token = TOKEN
    give(tickets, host.serve("/a", DATA))
    async with open_desk(tmp_path / "cache", tickets.url, token_file=token) as desk:
        with pytest.raises(OriginDenied, match="token_file"):
            await desk.settle()
        token.write_text(TOKEN)
        assert await desk.whole() == DATA


async def test_errors_hold_no_secrets(
    tmp_path: Path, servers: tuple[TicketServer, TicketServer], caplog: pytest.LogCaptureFixture
) -> None:
    listen(caplog)
    tickets, host = servers
    token = tmp_path / "token"
    token.write_text("wr0ng")
    tickets.token = TOKEN
    gone = f"{host.url}/gone?{SIGNATURE}"
    async with open_desk(tmp_path / "cache", tickets.url, token_file=token, retry_for=0.1) as desk:
        with pytest.raises(RefgenfsError) as denied:
            await desk.settle()
        tickets.token = None
        give(tickets, {"url": gone, "headers": {"X-Secret": "h3ader"}})
        with pytest.raises(RefgenfsError) as missing:
            await desk.settle()
        give(tickets, ranged(f"{host.serve('/a', DATA, shift=5)}?{SIGNATURE}", 0, 10, headers={"X-Secret": "h3ader"}))
        with pytest.raises(RefgenfsError) as lying:
            await desk.whole()
        for caught in (denied, missing, lying):
            assert not [one for one in ("wr0ng", "h3ader", "5ecret") if one in str(caught.value)]
        assert_no_secret(caplog, desk.http, "wr0ng", "h3ader", "5ecret")


# ---- signed and expiring URLs


async def test_a_range_that_is_signed_into_the_url(desk: Desk, servers: tuple[TicketServer, TicketServer]) -> None:
    tickets, host = servers
    url = host.serve("/a", DATA, only=f"bytes=9-{len(DATA) - 1}")
    give(tickets, ranged(f"{url}?{SIGNATURE}", 9, len(DATA)))
    extent = await desk.settle()
    assert await desk.fetch(extent, BLOCK, 2 * BLOCK) == DATA[9:][BLOCK : 2 * BLOCK]
    assert await desk.fetch(extent) == DATA[9:]
    assert host.asked("/a").count(f"bytes=9-{len(DATA) - 1}") == 1
    assert tickets.count("/reads") == 1


@pytest.mark.parametrize("status", [401, 403, 410])
async def test_a_ticket_that_expired_is_asked_for_again_once(
    desk: Desk, servers: tuple[TicketServer, TicketServer], status: int
) -> None:
    tickets, host = servers
    times = iter(range(100))

    def ticket(request: web.BaseRequest, body: Any) -> Any:
        url = host.serve(f"/{next(times)}", DATA)
        return [ranged(f"{url}?{SIGNATURE}", 9, len(DATA))]

    tickets.tickets["a"] = ticket
    extent = await desk.settle()
    assert await desk.fetch(extent, 0, BLOCK) == DATA[9:][:BLOCK]
    host.blobs["/0"].statuses.extend([status] * 100)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(_same, desk, extent, BLOCK, DATA[9:])
    assert tickets.count("/reads") == 2
    host.blobs["/1"].statuses.extend([status] * 100)
    give(tickets, ranged(f"{host.url}/1?{SIGNATURE}", 9, len(DATA)))
    with pytest.raises((OriginDenied, OriginMissing)):
        await desk.fetch(extent, 2 * BLOCK, 3 * BLOCK)
    assert tickets.count("/reads") == 3


async def _same(desk: Desk, extent: Any, start: int, data: bytes) -> None:
    assert await desk.fetch(extent, start) == data[start:]


@pytest.mark.parametrize("change", ["length", "order", "count", "inline"])
async def test_a_ticket_for_other_blocks_is_stale(
    desk: Desk, servers: tuple[TicketServer, TicketServer], change: str
) -> None:
    tickets, host = servers
    url = host.serve("/a", DATA)
    parts = [ranged(url, 0, BLOCK), ranged(url, BLOCK, 3 * BLOCK), {"url": inline(b"end")}]
    give(tickets, *parts)
    extent = await desk.settle()
    changed = {
        "length": [ranged(url, 0, BLOCK), ranged(url, BLOCK, 3 * BLOCK + 1), {"url": inline(b"end")}],
        "order": [ranged(url, 0, 2 * BLOCK), ranged(url, 2 * BLOCK, 3 * BLOCK), {"url": inline(b"end")}],
        "count": [ranged(url, 0, 3 * BLOCK), {"url": inline(b"end")}],
        "inline": [*parts[:2], {"url": inline(b"End")}],
    }
    give(tickets, *changed[change])
    host.blobs["/a"].statuses.append(403)
    with pytest.raises(StaleContent):
        await desk.fetch(extent)
    assert (await desk.settle()).validator != extent.validator


async def test_a_new_daemon_asks_for_the_ticket_by_what_it_kept(
    tmp_path: Path, desk: Desk, servers: tuple[TicketServer, TicketServer]
) -> None:
    tickets, host = servers
    give(tickets, inline(b"head"), ranged(host.serve("/a", DATA), 9, len(DATA)))
    extent = await desk.settle()
    async with open_desk(tmp_path / "cache2", tickets.url) as second:
        assert await second.fetch(extent) == b"head" + DATA[9:]


# ---- tickets and errors


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"<html>", IntegrityError),
        ({"version": 1, "htsget": {"urls": [{"url": "http://x/"}]}}, IntegrityError),
        ({"htsget": {"urls": [{"url": "http://x/"}]}, "version": 1}, IntegrityError),
        ({"htsget": {"urls": []}}, IntegrityError),
        ({"htsget": {"urls": [{"url": "file:///etc/passwd"}]}}, IntegrityError),
        ({"htsget": {"format": "CRAM", "urls": [{"url": "http://x/"}]}}, UnsupportedFormat),
        ((404, {"htsget": {"error": "NotFound"}}), OriginMissing),
        ((403, {"htsget": {"error": "PermissionDenied"}}), OriginDenied),
        ((413, {"htsget": {"error": "PayloadTooLarge"}}), PayloadTooLarge),
        ((400, {"htsget": {"error": "UnsupportedFormat"}}), UnsupportedFormat),
        ((400, b"no"), OriginUnavailable),
    ],
)
async def test_answers_that_are_no_ticket(
    desk: Desk, servers: tuple[TicketServer, TicketServer], answer: Any, error: type[Exception]
) -> None:
    servers[0].tickets["a"] = lambda request, body: answer
    with pytest.raises(error), trio.fail_after(15):
        await desk.settle()


async def test_a_ticket_without_end_is_given_up(desk: Desk, servers: tuple[TicketServer, TicketServer]) -> None:
    tickets, _ = servers
    answer = tickets.answer
    sent = 0

    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        if not request.path.startswith("/reads"):
            return await answer(request)
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(b'{"htsget": {"urls": [')
        while True:
            await response.write(b'{"url": "http://x/"}, ' * 4096)
            sent += 4096 * 22

    tickets.answer = endless  # type: ignore[method-assign]
    with pytest.raises(IntegrityError, match="more than"), trio.fail_after(30):
        await desk.settle()
    assert sent < 200 * MIB


async def test_many_who_want_one_ticket_ask_for_it_once(
    desk: Desk, servers: tuple[TicketServer, TicketServer]
) -> None:
    tickets, host = servers
    give(tickets, host.serve("/a", DATA))
    extent = await desk.settle()
    folder = desk.store.directory.with_name("other")
    async with open_desk(folder, tickets.url) as second, trio.open_nursery() as nursery:
        for start in range(0, 5 * BLOCK, BLOCK):
            nursery.start_soon(_same, second, extent, start, DATA)
    assert tickets.count("/reads") == 2


async def test_tickets_in_memory_have_a_bound(desk: Desk, servers: tuple[TicketServer, TicketServer]) -> None:
    tickets, _ = servers
    for at in range(60):
        tickets.tickets[f"a{at}"] = lambda request, body: [{"url": inline(bytes(MIB))}]
        await desk.settle(f"a{at}")
    assert len(desk.fetcher.tickets) < 30


async def test_several_regions_go_by_post(desk: Desk, servers: tuple[TicketServer, TicketServer]) -> None:
    tickets, _ = servers
    got: list[Any] = []

    def ticket(request: web.BaseRequest, body: Any) -> Any:
        got.append(body)
        return [{"url": inline(b"x")}]

    tickets.tickets["a"] = ticket
    regions = (Region("1", Interval(5, 9)), Region("2"))
    assert await desk.whole(regions=regions) == b"x"
    assert got == [
        {"format": "BAM", "regions": [{"referenceName": "1", "start": 5, "end": 9}, {"referenceName": "2"}]}
    ]


# ---- headers


async def test_a_header_gets_its_end_marker(
    desk: Desk, servers: tuple[TicketServer, TicketServer], data_dir: Path
) -> None:
    tickets, host = servers
    files = data_dir / "data" / "htsget" / "htsget-rs"
    bam = (files / "bam" / "htsnexus_test_NA12878.bam").read_bytes()
    cram = (files / "cram" / "htsnexus_test_NA12878.cram").read_bytes()
    url, cram_url = host.serve("/bam", bam), host.serve("/cram", cram)
    tickets.tickets["a"] = lambda request, body: [
        ranged(url, 0, 4668) if request.query["format"] == "BAM" else ranged(cram_url, 0, 6134)
    ]
    assert await desk.whole(class_=Class.HEADER) == bam[:4668] + bgzf.EOF_MARKER
    assert await desk.whole(format_=Format.CRAM, class_=Class.HEADER) == cram[:6134] + cram[-38:]
    give(tickets, ranged(url, 0, 4668), inline(bgzf.EOF_MARKER))
    assert await desk.whole(class_=Class.HEADER) == bam[:4668] + bgzf.EOF_MARKER


# ---- what is beside a file


async def test_an_index_beside_the_one_object_of_a_ticket(
    desk: Desk, servers: tuple[TicketServer, TicketServer]
) -> None:
    tickets, host = servers
    needs = {"X-Secret": "h3ader"}
    url = host.serve("/a.bam", DATA, needs=needs)
    host.serve("/a.bam.bai", OTHER, needs=needs)
    give(tickets, ranged(url, 0, 100, headers=needs), ranged(url, 100, len(DATA), headers=needs))
    query = Query("a", Format.BAM)
    found = await desk.fetcher.sibling(query, ".bai", account=LAB)
    assert found is not None
    assert await desk.fetch(found.extent) == OTHER
    assert await desk.fetcher.sibling(query, ".csi", account=LAB) is None
    assert not desk.http.failures  # that there is none is no failure
    for other in (  # whose offsets are not the object's
        [ranged(url, 0, 100, headers=needs), ranged(url, 200, len(DATA), headers=needs)],
        [ranged(url, 100, len(DATA), headers=needs)],
        [ranged(url, 0, len(DATA) - 1, headers=needs)],
        [{"url": inline(DATA[:5])}, ranged(url, 5, len(DATA), headers=needs)],
    ):
        give(tickets, *other)
        await desk.settle()
        assert await desk.fetcher.sibling(query, ".bai", account=LAB) is None
    give(tickets, {"url": f"{url}?{SIGNATURE}", "headers": needs})
    await desk.settle()
    assert await desk.fetcher.sibling(query, ".bai", account=LAB) is None


def test_the_data_is_what_it_should_be() -> None:
    assert hashlib.sha256(DATA).digest() != hashlib.sha256(OTHER).digest()
