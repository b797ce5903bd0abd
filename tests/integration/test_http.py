"""Requests against origins that behave, and against origins that do not."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from aiohttp import web

from refgenfs.core.content import BLOCK, ByteRange
from refgenfs.core.errors import (
    DeadlineExceeded,
    IntegrityError,
    OriginDenied,
    OriginMissing,
    OriginUnavailable,
    RefgenfsError,
    StaleContent,
)
from refgenfs.core.retry import Outages, RetryPolicy
from refgenfs.fetch.answers import OriginFailing, OriginUnusable, RangesIgnored
from refgenfs.fetch.bridge import Bridge, open_bridge
from refgenfs.fetch.http import SHORT_TEXT, Http, RemoteFacts
from refgenfs.fetch.pieces import FEED, PIECE
from refgenfs.fetch.settings import Account, HttpSettings
from tests.integration.http_origin import (
    DATE,
    Fault,
    Origin,
    chunked,
    redirect,
    reset_after,
    serve,
    stall_after,
    status,
    then_change,
    truncate_after,
    with_headers,
)

QUICK = RetryPolicy(retry_for=5.0, first=0.01, longest=0.05)
DATA = random.Random(7).randbytes(3 * PIECE + 5 * BLOCK + 1234)
SIZE = len(DATA)


class Pieces:
    """A range sink that keeps what it gets, and checks that it comes as promised."""

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self.pieces: list[memoryview] = []

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    async def write(self, offset: int, data: memoryview) -> None:
        assert offset == self.start + sum(map(len, self.pieces))
        assert offset % BLOCK == 0
        assert 0 < len(data) <= PIECE
        await asyncio.sleep(0)
        self.pieces.append(data)


class Whole:
    """A stream sink that keeps what it gets."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def begin(self, validator: str) -> None:
        pass

    async def feed(self, data: bytes | memoryview) -> None:
        assert 0 < len(data) <= FEED
        await asyncio.sleep(0)
        self.data += data


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    async with open_bridge(grace=0.5) as opened:
        yield opened


@asynccontextmanager
async def open_http(
    bridge: Bridge,
    *,
    policy: RetryPolicy = QUICK,
    accounts: Mapping[str, Account] | None = None,
    connections: int = 8,
) -> AsyncIterator[Http]:
    http = Http(bridge, HttpSettings(policy=policy, accounts=accounts or {}, connections=connections))
    try:
        yield http
    finally:
        await http.aclose()


@pytest.fixture
async def http(bridge: Bridge) -> AsyncIterator[Http]:
    async with open_http(bridge, accounts={"lab": Account(timeout=0.4)}) as opened:
        yield opened


@pytest.fixture
async def origin(bridge: Bridge) -> AsyncIterator[Origin]:
    served = Origin(DATA)
    async with serve(bridge, served):
        yield served


@pytest.fixture
async def mirror(bridge: Bridge) -> AsyncIterator[Origin]:
    served = Origin(DATA)
    async with serve(bridge, served):
        yield served


def closed_port() -> str:
    """The URL of a port at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/x"


async def fetch(
    http: Http, *urls: str, start: int = 0, stop: int = SIZE, validator: str = '"v1"', size: int = SIZE
) -> bytes:
    sink = Pieces(start)
    await http.fetch_range(ByteRange(urls, validator), start, stop, size, sink, account="lab")
    return sink.data


async def fetch_as(http: Http, account: str, url: str) -> bytes:
    sink = Pieces()
    await http.fetch_range(ByteRange((url,), '"v1"'), 0, SIZE, SIZE, sink, account=account)
    return sink.data


async def stream(http: Http, *urls: str) -> bytes:
    sink = Whole()
    await http.stream(urls, sink, account="lab")
    return bytes(sink.data)


# ---- byte ranges from an origin that behaves


@pytest.mark.parametrize("validator", ['"v1"', DATE, ""])
async def test_a_whole_object_by_range(http: Http, origin: Origin, validator: str) -> None:
    assert await fetch(http, origin.url + "/x", validator=validator) == DATA
    (request,) = origin.requests
    assert request.headers["Range"] == f"bytes=0-{SIZE - 1}"
    assert request.headers.get("If-Range") == ('"v1"' if validator == '"v1"' else None)
    assert request.headers["Accept-Encoding"] == "identity"
    assert http.fetched == {"lab": SIZE}
    assert http.requests == {"lab": 1}
    assert not http.failures


@pytest.mark.parametrize(
    ("start", "stop"), [(0, BLOCK), (BLOCK, 2 * BLOCK), (3 * PIECE, SIZE), (SIZE - SIZE % BLOCK, SIZE)]
)
async def test_a_part_by_range(http: Http, origin: Origin, start: int, stop: int) -> None:
    assert await fetch(http, origin.url, start=start, stop=stop) == DATA[start:stop]
    assert http.fetched == {"lab": stop - start}


async def test_pieces_cover_whole_blocks(http: Http, origin: Origin) -> None:
    sink = Pieces(BLOCK)
    await http.fetch_range(ByteRange((origin.url,), '"v1"'), BLOCK, SIZE, SIZE, sink, account="lab")
    *most, last = (len(piece) for piece in sink.pieces)
    assert all(length % BLOCK == 0 for length in most)
    assert sum(most) + last == SIZE - BLOCK


async def test_an_empty_range_asks_nothing(http: Http, origin: Origin) -> None:
    assert await fetch(http, origin.url, start=BLOCK, stop=BLOCK) == b""
    assert origin.requests == []


@pytest.mark.parametrize(("start", "stop"), [(1, BLOCK), (0, BLOCK + 1), (0, SIZE + 1), (2 * BLOCK, BLOCK)])
async def test_ranges_lie_on_block_borders(http: Http, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="blocks"):
        await fetch(http, "http://nowhere.invalid/", start=start, stop=stop)


async def test_connections_are_kept(http: Http, origin: Origin) -> None:
    for index in range(4):
        await fetch(http, origin.url, start=index * BLOCK, stop=(index + 1) * BLOCK)
    assert len({request.transport for request in origin.requests}) == 1


# ---- and from one that does not


@pytest.mark.parametrize("fault", [reset_after, truncate_after, stall_after])
@pytest.mark.parametrize("count", [0, 1, BLOCK, 2 * PIECE + 77, SIZE - 1])
async def test_a_connection_that_ends_early_is_resumed(
    http: Http, origin: Origin, fault: Callable[[int], Fault], count: int
) -> None:
    origin.script.append(fault(count))
    assert await fetch(http, origin.url) == DATA
    assert len(origin.requests) == 2
    resumed = origin.ranges_asked[1]
    assert resumed is not None
    # from where it broke, or a little before: what lay in buffers is lost with the connection
    assert int(resumed.removeprefix("bytes=").split("-")[0]) <= count
    assert len(http.failures) == 1
    assert http.failures[0].url == origin.url
    assert http.failures[0].attempt == 1


async def test_what_was_received_is_not_asked_for_again(http: Http, origin: Origin) -> None:
    origin.script.append(stall_after(PIECE + 77))
    assert await fetch(http, origin.url) == DATA
    assert origin.ranges_asked[1] == f"bytes={PIECE + 77}-{SIZE - 1}"
    assert http.fetched == {"lab": SIZE}


async def test_an_origin_that_breaks_off_again_and_again_is_read_to_the_end(bridge: Bridge) -> None:
    served = Origin(DATA)
    served.script.extend([truncate_after(200_000)] * (SIZE // 200_000))
    patience = RetryPolicy(retry_for=0.5, first=0.001, longest=0.001)
    async with serve(bridge, served), open_http(bridge, policy=patience) as http:
        assert await fetch(http, served.url) == DATA


async def test_bytes_in_driblets_are_no_progress(bridge: Bridge) -> None:
    served = Origin(DATA)
    served.script.extend([truncate_after(10)] * 10_000)
    patience = RetryPolicy(retry_for=0.3, first=0.01, longest=0.02)
    async with serve(bridge, served), open_http(bridge, policy=patience) as http:
        with pytest.raises(OriginUnavailable, match="broke off"):
            await fetch(http, served.url)


@pytest.mark.parametrize("code", [500, 502, 503, 504, 429, 408])
async def test_an_origin_in_trouble_is_asked_again(http: Http, origin: Origin, code: int) -> None:
    origin.script.extend([status(code)] * 2)
    assert await fetch(http, origin.url) == DATA
    assert [failure.what for failure in http.failures] == [f"HTTP {code}"] * 2


async def test_an_account_of_which_nothing_works_is_failing(bridge: Bridge, origin: Origin) -> None:
    async with open_http(bridge, policy=RetryPolicy(retry_for=0), accounts={"lab": Account(timeout=0.4)}) as http:
        origin.script.extend([status(404)] * 4)
        for _ in range(4):
            with pytest.raises(OriginMissing):
                await fetch(http, origin.url)
        for count in range(1, 5):
            origin.script.append(status(503))
            with pytest.raises(OriginFailing):
                await fetch(http, origin.url)
            assert ("lab" in http.failing) == (count >= 3), "two are a hiccup"
        assert (http.failing["lab"].url, http.failing["lab"].what) == (origin.url, "HTTP 503")
        assert await fetch(http, origin.url) == DATA
        assert not http.failing


async def test_an_account_whose_transfers_get_on_is_not_failing(bridge: Bridge) -> None:
    served = Origin(DATA)
    served.script.extend([truncate_after(200_000)] * (SIZE // 200_000))
    patience = RetryPolicy(retry_for=0.5, first=0.001, longest=0.001)
    async with serve(bridge, served), open_http(bridge, policy=patience) as http:
        seen: list[str] = []
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                while True:
                    seen.extend(http.failing)
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(watch)
            assert await fetch(http, served.url) == DATA
            nursery.cancel_scope.cancel()
        assert len(http.failures) >= 3
        assert seen == []


async def test_retry_after_is_waited_for(http: Http, origin: Origin) -> None:
    origin.script.append(status(503, Retry_After="1"))
    before = trio.current_time()
    assert await fetch(http, origin.url, stop=BLOCK) == DATA[:BLOCK]
    assert trio.current_time() - before >= 0.9


async def test_retry_after_beyond_the_budget_is_given_up_at_once(http: Http, origin: Origin) -> None:
    origin.script.extend([status(503, Retry_After="3600")] * 2)
    with pytest.raises(OriginFailing, match="HTTP 503") as caught:
        await fetch(http, origin.url)
    assert caught.value.status == 503
    assert len(origin.requests) == 1


@pytest.mark.parametrize(
    "fault",
    [
        with_headers(Content_Range="bytes 0-1/" + str(SIZE)),
        with_headers(Content_Range=None),
        with_headers(Content_Range=f"bytes 0-{SIZE - 1}/*"),
        with_headers(Content_Encoding="gzip"),
        chunked(lambda right: right + b"x"),
        chunked(lambda right: right + right),
        status(416),
        status(204),
    ],
    ids=["other range", "no range", "no total", "coded", "a byte more", "twice", "416", "204"],
)
async def test_a_wrong_answer_is_never_used(http: Http, origin: Origin, fault: Fault) -> None:
    origin.script.append(fault)
    assert await fetch(http, origin.url) == DATA
    origin.script.extend([fault] * 10)
    with pytest.raises(IntegrityError):
        await fetch(http, origin.url)
    # a few times, and the times that a part of it got further
    assert len(origin.requests) <= 2 + 1 + QUICK.doubts + PIECE // BLOCK


async def test_a_chunked_body_that_is_short_is_asked_for_again(http: Http, origin: Origin) -> None:
    origin.script.append(chunked(lambda right: right[:-1]))
    assert await fetch(http, origin.url) == DATA
    assert http.failures[0].what == f"the body ended after {SIZE - 1} of {SIZE} bytes"


async def test_a_chunked_body_that_is_right_is_used(http: Http, origin: Origin) -> None:
    origin.script.append(chunked(lambda right: right))
    assert await fetch(http, origin.url) == DATA
    assert len(origin.requests) == 1


@pytest.mark.parametrize(("start", "stop"), [(0, BLOCK), (PIECE, 2 * PIECE), (3 * PIECE, SIZE)])
async def test_a_server_that_ignores_ranges_is_no_failure(http: Http, origin: Origin, start: int, stop: int) -> None:
    origin.ranges = False
    with pytest.raises(RangesIgnored):
        await fetch(http, origin.url, start=start, stop=stop)
    assert len(origin.requests) == 1
    assert (list(http.failures), http.failing, http.fetched) == ([], {}, {"lab": 0})
    assert http.manners.whole("lab", [origin.url], time.monotonic(), said=False)


async def test_a_server_that_ignores_ranges_gives_the_whole(http: Http, origin: Origin) -> None:
    origin.ranges = False
    assert await fetch(http, origin.url) == DATA


async def test_a_mirror_that_gives_parts_stands_in_for_a_server_that_does_not(
    bridge: Bridge, http: Http, origin: Origin
) -> None:
    mirror = Origin(DATA)
    origin.ranges = False
    async with serve(bridge, mirror):
        for _ in range(3):
            assert await fetch(http, origin.url, mirror.url, start=BLOCK, stop=PIECE) == DATA[BLOCK:PIECE]
        assert (len(origin.requests), len(mirror.requests)) == (1, 3)


async def test_a_mirror_that_gives_no_parts_is_known_at_once_while_the_server_is_away(
    http: Http, origin: Origin
) -> None:
    origin.ranges = False
    with pytest.raises(RangesIgnored):
        await fetch(http, closed_port(), origin.url, start=BLOCK, stop=PIECE)
    assert len(http.failures) <= 2
    assert await fetch(http, closed_port(), origin.url) == DATA


@pytest.mark.parametrize("body", [DATA + b"more", DATA[:-1]])
async def test_a_whole_of_another_length_that_was_not_told_is_stale(http: Http, origin: Origin, body: bytes) -> None:
    origin.ranges = False
    origin.script.append(chunked(lambda _: body))
    with pytest.raises(StaleContent, match=f"the size was {SIZE} bytes"):
        await fetch(http, origin.url, validator="")
    assert len(origin.requests) == 1


async def test_what_has_neither_version_nor_length_is_not_taken_up_in_the_middle(http: Http, origin: Origin) -> None:
    origin.ranges = False
    origin.script += [truncate_after(2 * PIECE), *[chunked(lambda right: right)] * 4]
    with pytest.raises(IntegrityError, match="neither size nor version"):
        await fetch(http, origin.url, validator="")


async def test_a_server_that_ignores_ranges_is_resumed_by_skipping(http: Http, origin: Origin) -> None:
    origin.ranges = False
    origin.script.append(truncate_after(2 * PIECE))
    assert await fetch(http, origin.url) == DATA


def make_new(origin: Origin) -> None:
    origin.etag, origin.date = '"v2"', "Sat, 02 Jan 2021 00:00:00 GMT"
    origin.data = bytes(byte ^ 255 for byte in origin.data)


@pytest.mark.parametrize("validator", ['"v1"', DATE])
@pytest.mark.parametrize("ranges", [True, False])
async def test_another_version_is_stale(http: Http, origin: Origin, validator: str, ranges: bool) -> None:
    origin.ranges = ranges
    make_new(origin)
    with pytest.raises(StaleContent, match="was"):
        await fetch(http, origin.url, validator=validator)
    assert len(origin.requests) == 1
    assert http.fetched == {"lab": 0}


@pytest.mark.parametrize("validator", ['"v1"', DATE])
async def test_a_version_that_changes_in_the_middle_is_stale(http: Http, origin: Origin, validator: str) -> None:
    origin.script.append(then_change(truncate_after(2 * PIECE), make_new))
    sink = Pieces()
    with pytest.raises(StaleContent):
        await http.fetch_range(ByteRange((origin.url,), validator), 0, SIZE, SIZE, sink, account="lab")
    assert DATA.startswith(sink.data)


async def test_another_size_is_stale_where_nothing_else_is_known(http: Http, origin: Origin) -> None:
    origin.data += b"more"
    with pytest.raises(StaleContent, match=f"was {SIZE} bytes and is {SIZE + 4}"):
        await fetch(http, origin.url, validator="")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (401, OriginDenied),
        (403, OriginDenied),
        (404, OriginMissing),
        (410, OriginMissing),
        (412, StaleContent),
        (400, OriginUnusable),
        (451, OriginUnusable),
    ],
)
async def test_a_plain_no_is_not_asked_again(
    http: Http, origin: Origin, code: int, kind: type[RefgenfsError]
) -> None:
    origin.script.append(status(code))
    with pytest.raises(kind, match=str(code)) as caught:
        await fetch(http, origin.url)
    assert not caught.value.transient or kind is StaleContent
    assert len(origin.requests) == 1


async def test_nobody_at_the_port_is_unavailable_after_the_budget(bridge: Bridge) -> None:
    patience = RetryPolicy(retry_for=0.3, first=0.05, longest=0.1)
    url = closed_port()
    async with open_http(bridge, policy=patience) as http:
        with pytest.raises(OriginUnavailable, match=r"no connection.*\(attempt \d+\)") as caught:
            await fetch(http, url)
    assert caught.value.__cause__ is not None
    assert caught.value.transient
    assert len(http.failures) >= 3


async def test_an_origin_that_stays_away_is_not_waited_for_anew_by_each(
    bridge: Bridge, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outages, "SHORT", 0.0)
    origin.script.extend([status(503)] * 10_000)
    async with open_http(bridge, policy=RetryPolicy(retry_for=0.4, first=0.02, longest=0.05)) as http:
        with pytest.raises(OriginUnavailable):
            await fetch(http, origin.url)
        before = len(origin.requests)
        assert before >= 5
        for _ in range(3):
            with pytest.raises(OriginUnavailable, match=r"\(attempt 1\)"):
                await fetch(http, origin.url)
        assert len(origin.requests) == before + 3
        bridge.loop.call_soon_threadsafe(origin.script.clear)
        assert await fetch(http, origin.url) == DATA
        bridge.loop.call_soon_threadsafe(origin.script.extend, [status(503)] * 10_000)
        before = len(origin.requests)
        with pytest.raises(OriginUnavailable):
            await fetch(http, origin.url)
        assert len(origin.requests) >= before + 5, "this may be a restart again"


async def test_an_unknown_host_is_unavailable(bridge: Bridge) -> None:
    async with open_http(bridge, policy=RetryPolicy(retry_for=0.0)) as http:
        with pytest.raises(OriginUnavailable, match="resolved"):
            await fetch(http, "http://nowhere.invalid/x")


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "nonsense", "http://", "file:///etc/passwd", "http://[/x", "http://h:99999999/"]
)
async def test_what_is_no_url_of_a_web_server_is_unusable(http: Http, url: str) -> None:
    with pytest.raises(OriginUnusable, match="no URL"):
        await fetch(http, url)


async def test_an_origin_that_comes_back_is_read_to_the_end(http: Http, origin: Origin) -> None:
    origin.script.append(truncate_after(PIECE))
    origin.script.extend([status(503)] * 10_000)
    got: list[bytes] = []
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            got.append(await fetch(http, origin.url))

        nursery.start_soon(read)
        await trio.sleep(0.3)
        http._bridge.loop.call_soon_threadsafe(origin.script.clear)
    assert got == [DATA]


async def test_an_answer_that_is_not_http(bridge: Bridge, http: Http) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        writer.close()

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(talk, "127.0.0.1", 0)

    async def close(server: asyncio.Server) -> None:
        server.close()
        await server.wait_closed()

    server = await bridge.run(listen)
    try:
        with pytest.raises(OriginUnavailable, match="not HTTP"):
            await fetch(http, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    finally:
        await bridge.run(lambda: close(server))


# ---- mirrors


async def test_a_mirror_takes_over(http: Http, origin: Origin) -> None:
    assert await fetch(http, closed_port(), origin.url) == DATA
    assert http.requests == {"lab": 2}


async def test_a_mirror_takes_over_in_the_middle(http: Http, origin: Origin, mirror: Origin) -> None:
    origin.script.append(stall_after(PIECE))
    origin.script.extend([status(503)] * 100)
    assert await fetch(http, origin.url, mirror.url) == DATA
    assert mirror.ranges_asked == [f"bytes={PIECE}-{SIZE - 1}"]


async def test_the_next_call_asks_the_mirror_first(http: Http, origin: Origin) -> None:
    dead = closed_port()
    await fetch(http, dead, origin.url, stop=BLOCK)
    await fetch(http, dead, origin.url, stop=BLOCK)
    assert http.requests == {"lab": 3}


@pytest.mark.parametrize("code", [403, 404, 400])
async def test_a_mirror_may_have_what_the_origin_denies(
    http: Http, origin: Origin, mirror: Origin, code: int
) -> None:
    origin.script.append(status(code))
    assert await fetch(http, origin.url, mirror.url) == DATA


async def test_a_mirror_with_another_version_is_left_out(http: Http, origin: Origin, mirror: Origin) -> None:
    make_new(mirror)
    origin.script.append(truncate_after(PIECE))
    assert await fetch(http, origin.url, mirror.url) == DATA


async def test_a_mirror_that_lacks_it_does_not_make_it_missing(bridge: Bridge, mirror: Origin) -> None:
    mirror.script.extend([status(404)] * 100)
    async with open_http(bridge, policy=RetryPolicy(retry_for=0.2, first=0.05)) as http:
        with pytest.raises(OriginUnavailable, match="no connection"):
            await fetch(http, closed_port(), mirror.url)


# ---- redirects and secrets


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_keeps_the_range(http: Http, origin: Origin, mirror: Origin, code: int) -> None:
    origin.script.append(redirect(code, lambda: mirror.url + "/there"))
    assert await fetch(http, origin.url, start=PIECE, stop=2 * PIECE) == DATA[PIECE : 2 * PIECE]
    assert mirror.requests[0].headers["Range"] == f"bytes={PIECE}-{2 * PIECE - 1}"
    assert mirror.requests[0].headers["If-Range"] == '"v1"'
    assert mirror.requests[0].path == "/there"


async def test_a_relative_redirect(http: Http, origin: Origin) -> None:
    origin.script.append(redirect(307, lambda: "../other?x=1"))
    assert await fetch(http, origin.url + "/a/b/c") == DATA
    assert origin.requests[1].path_qs == "/a/other?x=1"


async def test_signatures_in_urls_stay_as_they_are(http: Http, origin: Origin, mirror: Origin) -> None:
    signed = "/a%2Fb%20c+d?X-Amz-Signature=a%2Bb%2f%3D&y=%7E;z=a+b,c"
    origin.script.append(redirect(307, lambda: mirror.url + signed))
    assert await fetch(http, origin.url + signed) == DATA
    assert origin.requests[0].raw_path == signed
    assert mirror.requests[0].raw_path == signed


async def test_redirects_without_end(http: Http, origin: Origin) -> None:
    origin.script.extend([redirect(302, lambda: origin.url + "/again")] * 100)
    with pytest.raises(OriginUnusable, match="redirects"):
        await fetch(http, origin.url)
    assert len(origin.requests) == 6


@pytest.mark.parametrize("location", ["ftp://host/x", "http://[/", "file:///etc/passwd"])
async def test_a_redirect_to_what_is_no_web_server(http: Http, origin: Origin, location: str) -> None:
    origin.script.append(redirect(302, lambda: location))
    with pytest.raises(OriginUnusable):
        await fetch(http, origin.url)


async def test_a_token_goes_to_its_own_origin_only(
    bridge: Bridge, origin: Origin, mirror: Origin, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    lab = Account(origin=origin.url + "/api", token_file=token)
    async with open_http(bridge, accounts={"lab": lab}) as http:
        origin.script.append(redirect(307, lambda: mirror.url))
        assert await fetch(http, origin.url) == DATA
        assert await fetch(http, mirror.url) == DATA
        assert await fetch_as(http, "other", origin.url) == DATA
    assert [request.headers.get("Authorization") for request in origin.requests] == ["Bearer s3cret", None]
    assert [request.headers.get("Authorization") for request in mirror.requests] == [None, None]


async def test_a_token_is_read_again_when_its_file_changes(bridge: Bridge, origin: Origin, tmp_path: Path) -> None:
    token = tmp_path / "token"
    async with open_http(bridge, accounts={"lab": Account(origin=origin.url, token_file=token)}) as http:
        with pytest.raises(OriginDenied, match="token file"):
            await fetch(http, origin.url)
        for text in ("one", "twotwo"):
            token.write_text(text)
            await fetch(http, origin.url)
        for bad in ("", "two words", "line\nline", "bell\a", "é"):
            token.write_text(bad)
            with pytest.raises(OriginDenied, match=str(token)):
                await fetch(http, origin.url)
    sent = [request.headers["Authorization"] for request in origin.requests]
    assert sent == ["Bearer one", "Bearer twotwo"]


async def test_user_and_password_of_a_url_are_sent_and_never_shown(
    http: Http, origin: Origin, mirror: Origin
) -> None:
    url = origin.url.replace("http://", "http://user:pa%20ss@") + "/x?token=s3cret"
    origin.script.append(redirect(307, lambda: mirror.url))
    assert await fetch(http, url) == DATA
    assert origin.requests[0].headers["Authorization"] == "Basic dXNlcjpwYSBzcw=="
    assert "Authorization" not in mirror.requests[0].headers
    origin.script.append(status(404))
    with pytest.raises(OriginMissing) as caught:
        await fetch(http, url)
    assert str(caught.value) == f"{origin.url}/x: HTTP 404, not there (attempt 1)"
    assert http.failures[-1].url == origin.url + "/x"


async def test_a_proxy_is_asked_instead(bridge: Bridge, origin: Origin) -> None:
    proxy = origin.url.replace("http://", "http://me:pw@")
    async with open_http(bridge, accounts={"lab": Account(proxies=(proxy,))}) as http:
        assert await fetch(http, "http://far.invalid/x") == DATA
        origin.script.append(status(407))
        with pytest.raises(OriginDenied):
            await fetch(http, "http://far.invalid/x")
    assert origin.requests[0].headers["Host"] == "far.invalid"
    assert origin.requests[0].headers["Proxy-Authorization"] == "Basic bWU6cHc="


async def test_a_certificate_that_is_not_trusted(bridge: Bridge, http: Http, tmp_path: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x"]
    command += ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    await trio.run_process(command, capture_stderr=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)

    async def close(server: asyncio.Server) -> None:
        server.close()
        await server.wait_closed()

    server = await bridge.run(listen)
    try:
        with pytest.raises(OriginUnusable, match=r"TLS failed: .*self-signed"):
            await fetch(http, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    finally:
        await bridge.run(lambda: close(server))


# ---- sinks, cancels, memory


class Full(Exception):
    """What a sink may raise."""


@pytest.mark.parametrize("error", [Full("disk"), OSError(28, "no space"), TimeoutError("slow")])
@pytest.mark.parametrize("at", [0, 2])
async def test_what_a_sink_raises_passes_through(http: Http, origin: Origin, error: Exception, at: int) -> None:
    class Failing(Pieces):
        async def write(self, offset: int, data: memoryview) -> None:
            if len(self.pieces) == at:
                raise error
            await super().write(offset, data)

    class FailingWhole:
        async def begin(self, validator: str) -> None:
            pass

        async def feed(self, data: bytes | memoryview) -> None:
            raise error

    with pytest.raises(type(error)) as caught:
        await http.fetch_range(ByteRange((origin.url,), '"v1"'), 0, SIZE, SIZE, Failing(), account="lab")
    assert caught.value is error
    with pytest.raises(type(error)):
        await http.stream([origin.url], FailingWhole(), account="lab")
    assert len(origin.requests) == 2
    assert not http.failures


async def test_a_sink_that_fails_at_the_last_piece(http: Http, origin: Origin) -> None:
    class Failing(Pieces):
        async def write(self, offset: int, data: memoryview) -> None:
            raise Full

    with pytest.raises(Full):
        await http.fetch_range(ByteRange((origin.url,), ""), 0, BLOCK, SIZE, Failing(), account="lab")


class Slow(Pieces):
    """Stands still until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.cleaned = 0

    async def write(self, offset: int, data: memoryview) -> None:
        try:
            await self.go.wait()
            await super().write(offset, data)
        finally:
            self.cleaned += 1


class SlowWhole(Whole):
    """Stands still until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def begin(self, validator: str) -> None:
        pass

    async def feed(self, data: bytes | memoryview) -> None:
        await self.go.wait()
        await super().feed(data)


async def test_memory_is_bounded_while_the_sink_stands_still(bridge: Bridge) -> None:
    served = Origin(bytes(48 * PIECE))
    async with serve(bridge, served), open_http(bridge, accounts={"lab": Account(timeout=0.3)}) as http:
        sink = Slow()
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                extent = ByteRange((served.url,), '"v1"')
                await http.fetch_range(extent, 0, 48 * PIECE, 48 * PIECE, sink, account="lab")

            nursery.start_soon(read)
            await trio.sleep(1.0)  # several times the origin's allowance for silence
            # one piece at the sink, one assembled, one chunk in hand
            assert 0 < http.fetched["lab"] <= 3 * PIECE
            bridge.loop.call_soon_threadsafe(sink.go.set)
        assert len(sink.data) == 48 * PIECE
        assert len(served.requests) == 1  # a slow sink is no stall of the origin


async def test_a_cancel_waits_for_the_sink_and_closes_the_connection(http: Http, origin: Origin) -> None:
    sink = Slow()
    extent = ByteRange((origin.url,), '"v1"')
    with trio.move_on_after(0.2) as scope:
        await http.fetch_range(extent, 0, SIZE, SIZE, sink, account="lab")
    assert scope.cancelled_caught
    assert sink.cleaned == 1
    assert await fetch(http, origin.url) == DATA


async def test_requests_to_one_host_take_turns(bridge: Bridge) -> None:
    served = Origin(DATA)
    busy = most = 0

    async def slow(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.05)
        busy -= 1
        return await origin.send(request, *origin.head(request))

    served.script.extend([slow] * 12)
    # the budget is shorter than the wait for a turn, which must not count
    patience = RetryPolicy(retry_for=0.05)
    async with (
        serve(bridge, served),
        open_http(bridge, connections=2, policy=patience) as http,
        trio.open_nursery() as nursery,
    ):

        async def read(index: int) -> None:
            begin = index * BLOCK
            got = await fetch(http, served.url, start=begin, stop=begin + BLOCK)
            assert got == DATA[begin : begin + BLOCK]

        for index in range(12):
            nursery.start_soon(read, index)
    assert most == 2


async def test_who_gives_up_while_waiting_for_a_turn_costs_nobody_one(bridge: Bridge) -> None:
    served = Origin(DATA)

    async def silent(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError("nobody waits for it any more")

    async with serve(bridge, served), open_http(bridge, connections=2) as http:
        served.script.extend([silent] * 2)
        async with trio.open_nursery() as nursery:
            for index in range(12):
                nursery.start_soon(partial(fetch, http, served.url, start=index * BLOCK, stop=(index + 1) * BLOCK))
            while len(served.requests) < 2 or http.queueing < 10:  # noqa: ASYNC110  # counted on another thread
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()  # who has a turn and who waits, at the same moment
        assert http.queueing == 0
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(fetch, http, served.url)


# ---- whole objects


async def test_a_stream_of_a_whole_object(http: Http, origin: Origin) -> None:
    assert await stream(http, origin.url) == DATA
    assert origin.ranges_asked == [None]
    assert http.fetched == {"lab": SIZE}


@pytest.mark.parametrize("fault", [reset_after, truncate_after, stall_after])
@pytest.mark.parametrize("ranges", [True, False])
async def test_a_stream_that_breaks_is_resumed(
    http: Http, origin: Origin, fault: Callable[[int], Fault], ranges: bool
) -> None:
    origin.ranges = ranges
    origin.script.append(fault(PIECE + 77))
    assert await stream(http, origin.url) == DATA
    assert len(origin.requests) == 2
    assert origin.requests[1].headers["If-Range"] == '"v1"'


async def test_a_stream_by_date_is_resumed(http: Http, origin: Origin) -> None:
    origin.etag = None
    origin.script.append(truncate_after(PIECE))
    assert await stream(http, origin.url) == DATA


async def test_a_stream_that_never_began_is_asked_for_again(http: Http, origin: Origin) -> None:
    origin.etag = origin.date = None
    origin.script.extend([status(503), reset_after(0), stall_after(0)])
    assert await stream(http, closed_port(), origin.url) == DATA


async def test_a_stream_without_a_version_is_not_resumed(http: Http, origin: Origin) -> None:
    origin.etag = origin.date = None
    origin.script.append(truncate_after(PIECE))
    with pytest.raises(OriginUnavailable, match="resume") as caught:
        await stream(http, origin.url)
    assert caught.value.transient
    assert len(origin.requests) == 1


async def test_a_stream_of_unknown_length(http: Http, origin: Origin) -> None:
    origin.script.append(chunked(lambda right: right))
    assert await stream(http, origin.url) == DATA


async def test_a_stream_that_changes_in_the_middle_is_stale(http: Http, origin: Origin) -> None:
    origin.script.append(then_change(truncate_after(PIECE), make_new))
    sink = Whole()
    with pytest.raises(StaleContent):
        await http.stream([origin.url], sink, account="lab")
    assert DATA.startswith(bytes(sink.data))


async def test_a_stream_goes_on_at_a_mirror_of_the_same_version(http: Http, origin: Origin, mirror: Origin) -> None:
    origin.script.append(truncate_after(PIECE))
    origin.script.extend([status(503)] * 100)
    assert await stream(http, origin.url, mirror.url) == DATA
    assert len(mirror.requests) == 1


async def test_a_stream_of_an_empty_object(http: Http, origin: Origin) -> None:
    origin.data = b""
    assert await stream(http, origin.url) == b""


async def test_a_coded_stream_is_refused(http: Http, origin: Origin) -> None:
    origin.script.extend([with_headers(Content_Encoding="gzip")] * 10)
    with pytest.raises(IntegrityError, match="coded"):
        await stream(http, origin.url)


async def test_a_slow_stream_sink_is_no_stall(http: Http, origin: Origin) -> None:
    origin.data = bytes(48 * PIECE)
    sink = SlowWhole()
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            await http.stream([origin.url], sink, account="lab")

        nursery.start_soon(read)
        await trio.sleep(1.0)  # several times the origin's allowance for silence
        assert 0 < http.fetched["lab"] <= 2 * FEED
        http._bridge.loop.call_soon_threadsafe(sink.go.set)
    assert sink.data == origin.data
    assert len(origin.requests) == 1


# ---- documents and facts


async def test_documents(http: Http, origin: Origin) -> None:
    origin.data = '{"genomes": ["é", 1, null]}'.encode()
    assert await http.get_json([origin.url], account="lab", deadline=5) == {"genomes": ["é", 1, None]}
    assert await http.get_text([origin.url], account="lab", deadline=5) == '{"genomes": ["é", 1, null]}'


async def test_what_is_no_json_is_asked_for_again(http: Http, origin: Origin) -> None:
    origin.data = b"[1]"
    origin.script.append(chunked(lambda _: b"<html>"))
    assert await http.get_json([origin.url], account="lab", deadline=5) == [1]
    origin.data = b"<html>please log in</html>"
    with pytest.raises(IntegrityError, match="no JSON"):
        await http.get_json([origin.url], account="lab", deadline=5)
    origin.data = b"\xff\xfe"
    with pytest.raises(IntegrityError, match="UTF-8"):
        await http.get_text([origin.url], account="lab", deadline=5)


async def test_a_long_document_is_decoded_beside_the_loop(http: Http, origin: Origin) -> None:
    def decode(text: str) -> tuple[int, str]:
        return len(text), threading.current_thread().name

    for length in (SHORT_TEXT - 1, SHORT_TEXT):
        origin.data = b"x" * length
        got, thread = await http.get_document([origin.url], decode, account="lab", deadline=5)
        assert got == length
        assert (thread == "refgenfs-fetch") == (length < SHORT_TEXT)
    origin.data = b"[" * SHORT_TEXT
    with pytest.raises(IntegrityError, match="no JSON"):
        await http.get_json([origin.url], account="lab", deadline=5)


async def test_documents_are_bounded(bridge: Bridge, origin: Origin) -> None:
    http = Http(bridge, HttpSettings(policy=QUICK, max_document=PIECE))
    with pytest.raises(IntegrityError, match="more than"):
        await http.get_text([origin.url], account="lab", deadline=5)
    assert http.fetched["lab"] <= 2 * PIECE
    await http.aclose()


async def test_a_deadline_is_for_the_whole_call(http: Http, origin: Origin) -> None:
    origin.script.extend([status(503)] * 1000)
    for call in (http.get_json, http.get_text):
        with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
            await call([origin.url + "/x?secret"], account="lab", deadline=0.2)
    with trio.fail_after(10):  # far less than the budget times the number of calls
        with pytest.raises(DeadlineExceeded):
            await http.head([closed_port()], account="lab", deadline=0.2)


async def test_one_try_only(http: Http, origin: Origin) -> None:
    origin.script.extend([status(500)] * 5)
    with pytest.raises(OriginFailing) as caught:
        await http.get_json([origin.url], account="lab", deadline=5, retry_for=0)
    assert caught.value.status == 500
    assert len(origin.requests) == 1


async def test_facts_by_head(http: Http, origin: Origin) -> None:
    facts = await http.head([origin.url + "/x"], account="lab", deadline=5)
    assert facts == RemoteFacts(origin.url + "/x", SIZE, '"v1"', 1609459200.0)
    assert [request.method for request in origin.requests] == ["HEAD"]


@pytest.mark.parametrize("code", [405, 501, 403])
@pytest.mark.parametrize("ranges", [True, False])
async def test_facts_where_head_is_not_allowed(http: Http, origin: Origin, code: int, ranges: bool) -> None:
    origin.head_status, origin.ranges = code, ranges
    facts = await http.head([origin.url], account="lab", deadline=5)
    assert facts == RemoteFacts(origin.url, SIZE, '"v1"', 1609459200.0, ranges)
    assert http.fetched == {"lab": 0}


@pytest.mark.parametrize("head", [200, 405])
async def test_facts_of_an_empty_object(http: Http, origin: Origin, head: int) -> None:
    origin.data, origin.head_status = b"", head
    assert (await http.head([origin.url], account="lab", deadline=5)).size == 0


async def test_an_empty_object_has_the_date_and_the_validator_of_its_head(http: Http, origin: Origin) -> None:
    """A 416 has neither."""
    origin.data = b""
    facts = await http.head([origin.url], account="lab", deadline=5)
    assert facts == RemoteFacts(origin.url, 0, '"v1"', 1609459200.0, ranges=False)


async def test_facts_without_validator(http: Http, origin: Origin) -> None:
    origin.etag, origin.date = "unquoted", None
    facts = await http.head([origin.url], account="lab", deadline=5)
    assert (facts.validator, facts.mtime) == ("", 0.0)
    origin.etag = 'W/"weak"'
    facts = await http.head([origin.url], account="lab", deadline=5)
    assert facts.validator == 'W/"weak"'


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (with_headers(Content_Encoding="gzip"), IntegrityError),
        (with_headers(Content_Range="bytes 0-0/*"), IntegrityError),
        (status(403), OriginDenied),
        (status(404), OriginMissing),
    ],
)
async def test_facts_that_can_not_be_had(http: Http, origin: Origin, fault: Fault, kind: type[RefgenfsError]) -> None:
    origin.head_status = 405
    origin.script.extend([fault] * 10)
    with pytest.raises(kind):
        await http.head([origin.url], account="lab", deadline=5)


async def test_facts_of_a_mirror_name_the_mirror(http: Http, origin: Origin) -> None:
    facts = await http.head([closed_port(), origin.url], account="lab", deadline=5)
    assert facts.url == origin.url


# ---- a server that nobody here wrote


@pytest.fixture
async def nginx(tmp_path: Path) -> AsyncIterator[tuple[str, Path]]:
    """An nginx that serves a folder; its URL and the folder."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("needs nginx")
    port = closed_port().rsplit(":", 1)[1].removesuffix("/x")
    folder = tmp_path / "www"
    folder.mkdir()
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = tmp_path / "nginx.conf"
    config.write_text(
        ("user root;\n" if os.geteuid() == 0 else "")
        + f"daemon off; worker_processes 1; pid {tmp_path}/pid; error_log {tmp_path}/error.log;\n"
        + "events {}\n"
        + f"http {{ access_log off; {temporary}\n"
        + f"server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    command = [program, "-c", str(config), "-p", str(tmp_path), "-e", str(tmp_path / "error.log")]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(trio.run_process, command)
        with trio.fail_after(20):
            while True:
                try:
                    await (await trio.open_tcp_stream("127.0.0.1", int(port))).aclose()
                    break
                except OSError:
                    await trio.sleep(0.05)
        yield f"http://127.0.0.1:{port}", folder
        process.terminate()


async def test_nginx(http: Http, nginx: tuple[str, Path]) -> None:
    url, folder = nginx
    file = folder / "x.fa"
    file.write_bytes(DATA)
    os.utime(file, (1609459200, 1609459200))
    facts = await http.head([url + "/x.fa"], account="lab", deadline=10)
    assert (facts.size, facts.mtime) == (SIZE, 1609459200.0)
    assert facts.validator.startswith('"')
    for validator in (facts.validator, DATE, ""):
        assert await fetch(http, url + "/x.fa", validator=validator) == DATA
        part = await fetch(http, url + "/x.fa", start=PIECE, stop=PIECE + BLOCK, validator=validator)
        assert part == DATA[PIECE : PIECE + BLOCK]
    assert await stream(http, url + "/x.fa") == DATA
    with pytest.raises(OriginMissing):
        await fetch(http, url + "/y.fa")
    file.write_bytes(DATA[::-1])
    for validator in (facts.validator, DATE):
        with pytest.raises(StaleContent):
            await fetch(http, url + "/x.fa", validator=validator)


# ---- parts in memory


async def test_a_part_lies_on_no_borders(http: Http, origin: Origin) -> None:
    moved: list[int] = []
    part = await http.fetch_part(
        ByteRange((f"{origin.url}/x",), '"v1"'), 12_345, 345_678, SIZE, account="lab", moved=moved.append
    )
    assert part.data == DATA[12_345:345_678]
    assert (part.size, part.validator) == (SIZE, '"v1"')
    assert sum(moved) == 345_678 - 12_345
    assert origin.sent == 345_678 - 12_345


async def test_a_part_goes_on_after_a_break_where_the_version_is_the_same(http: Http, origin: Origin) -> None:
    origin.script.append(truncate_after(100_000))
    part = await http.fetch_part(ByteRange((f"{origin.url}/x",), ""), 7, 400_000, SIZE, account="lab")
    assert part.data == DATA[7:400_000]
    assert origin.sent < 400_000


async def test_a_part_of_two_versions_is_refused(http: Http, origin: Origin) -> None:
    def change(served: Origin) -> None:
        served.etag = '"v2"'

    origin.script.append(then_change(truncate_after(100_000), change))
    with pytest.raises(StaleContent):
        await http.fetch_part(ByteRange((f"{origin.url}/x",), ""), 7, 400_000, SIZE, account="lab")
    with pytest.raises(StaleContent):
        await http.fetch_part(ByteRange((f"{origin.url}/x",), '"v1"'), 7, 400_000, SIZE, account="lab")
    with pytest.raises(StaleContent):
        await http.fetch_part(ByteRange((f"{origin.url}/x",), ""), 7, 400_000, SIZE - 1, account="lab")


async def test_an_origin_that_knows_no_ranges_is_told_from_one_that_does(http: Http, origin: Origin) -> None:
    origin.ranges = False
    with pytest.raises(RangesIgnored):
        await http.fetch_part(ByteRange((f"{origin.url}/x",), ""), 7, 400_000, SIZE, account="lab")
    assert http.fetched["lab"] == 0


async def test_the_beginning_of_what_is_there_and_of_what_is_not(http: Http, origin: Origin) -> None:
    part = await http.fetch_beginning([f"{origin.url}/x"], 1000, account="lab", deadline=5)
    assert part is not None
    assert (bytes(part.data), part.size, part.validator) == (DATA[:1000], SIZE, '"v1"')
    origin.ranges = False
    part = await http.fetch_beginning([f"{origin.url}/x"], 1000, account="lab", deadline=5)
    assert part is not None
    assert (bytes(part.data), part.size) == (DATA[:1000], SIZE)
    origin.script.append(status(404))
    assert await http.fetch_beginning([f"{origin.url}/x"], 1000, account="lab", deadline=5) is None
    assert list(http.failures) == [], "that is no failure"
    for number, code in enumerate((503, 429), 1):
        origin.script.append(status(code))
        with pytest.raises(OriginFailing):
            await http.fetch_beginning([f"{origin.url}/x"], 1000, account="lab", deadline=5)
        assert len(http.failures) == number, "asked once"
