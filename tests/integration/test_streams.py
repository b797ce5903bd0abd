"""Whole objects over several connections: in order, every byte once, whatever happens to one of them.

Promises:
- a stream that its origin keeps waiting has ranges ahead of it fetched over further connections, each byte once;
- a connection that breaks costs what it had not brought, and no more; a mirror takes over; another version is stale;
- an origin that can't, or won't, answer ranges rightly is asked over one connection;
- what is held ahead is lent first, and given back whatever happens; what is recalled is fetched again;
- connections are left for others; streams of one host share them; a near origin needs one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
from aiohttp import web

from refgenfs.core.errors import OriginUnavailable, RefgenfsError, StaleContent
from refgenfs.core.lanes import FIRST, KEPT_FREE, LEG
from refgenfs.core.retry import RetryPolicy
from refgenfs.fetch.bridge import Bridge, open_bridge
from refgenfs.fetch.http import Http
from refgenfs.fetch.settings import Account, HttpSettings
from tests.integration.http_origin import (
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
from tests.support.scripted import eventually

MIB = 1 << 20
DATA = random.Random(11).randbytes(11 * MIB + 12_345)
SIZE = len(DATA)
QUICK = RetryPolicy(retry_for=5.0, first=0.01, longest=0.05)


class FarOrigin(Origin):
    """Gives each connection little at a time; counts how many it serves at once."""

    def __init__(self, data: bytes = DATA, *, pause: float = 0.004, etag: str | None = '"v1"') -> None:
        super().__init__(data, etag=etag)
        self.pause = pause
        self.conditions = True  # it heeds If-Range
        self.busy = self.most = 0

    def span(self, request: web.BaseRequest) -> tuple[int, int] | None:
        asked = request.headers.get("Range", "").removeprefix("bytes=").split("-")
        if self.conditions or len(asked) != 2:
            return super().span(request)
        return int(asked[0]), min(len(self.data), int(asked[1]) + 1)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            return await super().answer(request)
        finally:
            self.busy -= 1

    async def send(self, request: web.BaseRequest, response: web.StreamResponse, body: bytes) -> web.StreamResponse:
        await response.prepare(request)
        for begin in range(0, len(body), 65536):
            await asyncio.sleep(self.pause)
            await response.write(body[begin : begin + 65536])
            self.sent += len(body[begin : begin + 65536])
        await response.write_eof()
        return response

    def spans(self) -> list[tuple[int, int]]:
        """The ranges that were asked for, in their order in the object."""
        asked = [text.removeprefix("bytes=").split("-") for text in self.ranges_asked if text is not None]
        return sorted((int(first), min(len(self.data), int(last) + 1)) for first, last in asked)


class Lent:
    """Memory that was lent to a leg."""

    def __init__(self, memory: Memory, nbytes: int, recall: Callable[[], None]) -> None:
        self.memory, self.nbytes, self.recall = memory, nbytes, recall
        self.number = memory.lent

    def release(self) -> None:
        self.memory.held.discard(self)


class Memory:
    """Lends at most `most` bytes."""

    def __init__(self, most: int = 64 * MIB) -> None:
        self.most = most
        self.peak = self.lent = 0
        self.held: set[Lent] = set()

    async def take(self, nbytes: int, recall: Callable[[], None]) -> Lent | None:
        await asyncio.sleep(0.001)  # it is another thread that lends
        if sum(one.nbytes for one in self.held) + nbytes > self.most:
            return None
        lent = Lent(self, nbytes, recall)
        self.held.add(lent)
        self.lent += 1
        self.peak = max(self.peak, sum(one.nbytes for one in self.held))
        return lent


class Sink:
    """Keeps what it gets; may do something at each piece."""

    def __init__(self, at_piece: Callable[[int], None] = lambda _: None, pause: float = 0.0) -> None:
        self.data = bytearray()
        self.validators: list[str] = []
        self._at_piece = at_piece
        self._pause = pause

    async def begin(self, validator: str) -> None:
        assert not self.data
        self.validators.append(validator)

    async def feed(self, data: bytes | memoryview) -> None:
        await asyncio.sleep(self._pause)
        self.data += data
        self._at_piece(len(self.data))


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    async with open_bridge(grace=0.5) as opened:
        yield opened


@pytest.fixture
async def http(bridge: Bridge) -> AsyncIterator[Http]:
    accounts = {"hasty": Account(timeout=0.5)}  # the others have time: silence under load is no fault
    opened = Http(bridge, HttpSettings(policy=QUICK, accounts=accounts))
    try:
        yield opened
    finally:
        await opened.aclose()


@pytest.fixture
async def far(bridge: Bridge) -> AsyncIterator[FarOrigin]:
    origin = FarOrigin()
    async with serve(bridge, origin):
        yield origin


@pytest.fixture
async def mirror(bridge: Bridge) -> AsyncIterator[FarOrigin]:
    origin = FarOrigin()
    async with serve(bridge, origin):
        yield origin


async def stream(
    http: Http, *urls: str, sink: Sink | None = None, memory: Memory | None = None, account: str = "lab"
) -> bytes:
    """Stream, and see to it that all memory was given back."""
    sink, memory = sink or Sink(), memory or Memory()
    try:
        await http.stream(urls, sink, account=account, lender=memory)
    finally:
        assert not memory.held, "memory was not given back"
    return bytes(sink.data)


def at(number: int, fault: Fault) -> Fault:
    """Do as the fault does at the request of that number, from 0, and right before."""
    seen = 0

    async def counting(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        nonlocal seen
        seen += 1
        if seen <= number:
            origin.script.appendleft(counting)
            return await origin.send(request, *origin.head(request))
        return await fault(origin, request)

    return counting


def late(fault: Fault) -> Fault:
    """Do as the fault does, when all that comes before a second request was fed and this is waited for."""

    async def waiting(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        assert isinstance(origin, FarOrigin)
        while origin.sent < FIRST:  # noqa: ASYNC110 - tells no other way
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        return await fault(origin, request)

    return waiting


# ---- an origin that behaves


async def test_a_far_origin_is_asked_over_several_connections_for_every_byte_once(http: Http, far: FarOrigin) -> None:
    sink, memory = Sink(), Memory()
    assert await stream(http, far.url, sink=sink, memory=memory) == DATA
    assert sink.validators == ['"v1"']
    assert 3 <= far.most <= 8 - KEPT_FREE
    assert far.sent == SIZE == http.fetched["lab"]
    spans = far.spans()
    assert spans[0] == (0, FIRST)
    assert spans[-1][1] == SIZE
    assert [stop for _, stop in spans[:-1]] == [start for start, _ in spans[1:]]
    assert [request.headers.get("If-Range") for request in far.requests] == [None] + ['"v1"'] * (len(spans) - 1)
    assert 2 * LEG <= memory.peak <= 8 * LEG


async def test_it_is_quicker_than_one_connection(http: Http, far: FarOrigin) -> None:
    began = trio.current_time()
    assert await stream(http, far.url, memory=Memory(0)) == DATA
    alone = trio.current_time() - began
    assert far.most == 1
    began = trio.current_time()
    assert await stream(http, far.url) == DATA
    assert trio.current_time() - began < 0.8 * alone


async def test_a_sink_that_is_waited_for_needs_one_connection(http: Http, bridge: Bridge) -> None:
    near = FarOrigin(pause=0.0)
    async with serve(bridge, near):
        memory = Memory()
        assert await stream(http, near.url, sink=Sink(pause=0.02), memory=memory) == DATA
    assert near.most == 1
    assert memory.lent == 0
    assert near.spans() == [(0, FIRST), (FIRST, SIZE)]


async def test_an_object_that_fits_the_first_request(http: Http, far: FarOrigin) -> None:
    for size in (1, 65_536, FIRST - 1, FIRST):
        far.data = DATA[:size]
        far.requests.clear()
        assert await stream(http, far.url) == DATA[:size]
        assert len(far.requests) == 1


async def test_an_empty_object(http: Http, far: FarOrigin) -> None:
    far.data = b""
    assert await stream(http, far.url) == b""


# ---- connections that break


@pytest.mark.parametrize("fault", [reset_after, truncate_after, stall_after])
@pytest.mark.parametrize("number", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [0, MIB + 77])
async def test_a_connection_that_breaks_costs_what_it_had_not_brought(
    http: Http, far: FarOrigin, fault: Callable[[int], Fault], number: int, count: int
) -> None:
    account = "hasty" if fault is stall_after else "lab"
    far.script.append(at(number, fault(count)))
    assert await stream(http, far.url, account=account) == DATA
    assert http.fetched[account] == SIZE


async def test_every_leg_breaks(http: Http, far: FarOrigin) -> None:
    async def early(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        origin.script.appendleft(early)
        span = origin.span(request)
        return await truncate_after((span[1] - span[0]) // 2 + 1 if span else 0)(origin, request)

    far.script.append(early)
    assert await stream(http, far.url) == DATA
    assert http.fetched["lab"] == SIZE


async def test_an_origin_that_refuses_several_is_asked_over_one(http: Http, far: FarOrigin) -> None:
    async def one_at_a_time(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        origin.script.appendleft(one_at_a_time)
        if far.busy > 1:
            return web.Response(status=503)
        return await origin.send(request, *origin.head(request))

    far.script.append(one_at_a_time)
    assert await stream(http, far.url) == DATA
    assert far.sent == SIZE
    assert not http.failures, "a refused leg is nobody's error"
    assert len(far.requests) < 20


@pytest.mark.parametrize("whose", ["a leg's", "the front's"])
async def test_an_origin_that_asks_to_be_left_alone_gets_no_leg_meanwhile(
    bridge: Bridge, http: Http, whose: str
) -> None:
    """It is asked for what is fed next, when that is allowed, and for nothing ahead."""
    far = FarOrigin(DATA * 5)
    told: list[float] = []
    ahead: list[float] = []  # legs after that: seconds later

    async def busy(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        origin.script.appendleft(busy)
        now, (start, _) = asyncio.get_running_loop().time(), origin.span(request) or (0, 0)
        if start == 0 and whose == "the front's":
            response, body = origin.head(request)
            await response.prepare(request)
            while far.most < 3:  # legs are under way
                await response.write(body[: MIB // 4])
                body = body[MIB // 4 :]
                await asyncio.sleep(0.02)
            assert request.transport is not None
            request.transport.close()
            return response
        is_leg = start >= FIRST and far.busy > 1
        if told and is_leg:
            ahead.append(now - told[0])
        if not told and start and is_leg == (whose == "a leg's"):
            told.append(now)
            return web.Response(status=503, headers={"Retry-After": "2"})
        return await origin.send(request, *origin.head(request))

    far.script.append(busy)
    async with serve(bridge, far):
        assert await stream(http, far.url) == far.data
    assert ahead
    assert min(ahead) > 1.99


async def test_a_mirror_takes_over(http: Http, far: FarOrigin, mirror: FarOrigin) -> None:
    far.script.append(
        at(3, then_change(truncate_after(MIB), lambda origin: origin.script.extend([status(503)] * 99)))
    )
    assert await stream(http, far.url, mirror.url) == DATA
    assert mirror.requests
    assert http.fetched["lab"] == SIZE


async def test_an_origin_that_goes_away_is_the_error(http: Http, far: FarOrigin, mirror: FarOrigin) -> None:
    gone = [status(404)] * 99
    far.script.append(at(3, then_change(truncate_after(MIB), lambda origin: origin.script.extend(gone))))
    mirror.script.extend([status(403)] * 99)
    sink = Sink()
    with pytest.raises(RefgenfsError, match="404") as caught:
        await stream(http, far.url, mirror.url, sink=sink)
    assert far.url in str(caught.value), "the error is of whom the stream is"
    assert DATA.startswith(sink.data)


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("when", [lambda fault: fault, late])
async def test_another_version_is_stale_and_never_mixed(
    http: Http, far: FarOrigin, number: int, conditions: bool, when: Callable[[Fault], Fault]
) -> None:
    async def changed(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        far.data, far.etag, far.conditions = DATA[::-1], '"v2"', conditions
        return await origin.send(request, *origin.head(request))

    far.script.append(at(number, when(changed)))
    sink = Sink()
    with pytest.raises(StaleContent):
        await stream(http, far.url, sink=sink)
    assert DATA.startswith(sink.data)


# ---- origins that can't or won't


async def test_without_a_strong_validator_one_connection_is_used(http: Http, far: FarOrigin) -> None:
    for etag in ('W/"v1"', None):
        far.etag, far.most, far.sent = etag, 0, 0
        far.requests.clear()
        assert await stream(http, far.url) == DATA
        assert far.most == 1
        assert far.spans() == [(0, FIRST), (FIRST, SIZE)]
        assert far.sent == SIZE


async def test_without_any_validator_it_is_asked_for_whole(http: Http, far: FarOrigin) -> None:
    far.etag = far.date = None
    assert await stream(http, far.url) == DATA
    assert far.ranges_asked[1:] == [None]
    far.script.extend([at(1, truncate_after(MIB))])
    with pytest.raises(OriginUnavailable, match="resume"):
        await stream(http, far.url)


async def test_an_origin_without_ranges_is_asked_once(http: Http, far: FarOrigin) -> None:
    far.ranges = False
    assert await stream(http, far.url) == DATA
    assert len(far.requests) == 1
    assert far.sent == SIZE


async def test_an_origin_without_a_length(http: Http, far: FarOrigin) -> None:
    far.ranges = False
    far.script.append(chunked(lambda right: right))
    assert await stream(http, far.url) == DATA
    assert len(far.requests) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        with_headers(Content_Range="bytes 5-9/100"),
        with_headers(Content_Range="bytes 0-4194303/*"),
        with_headers(Content_Range=None),
        status(416),
        status(400),
        status(501),
    ],
)
async def test_a_first_request_that_is_answered_wrong_is_made_without_a_range(
    http: Http, far: FarOrigin, wrong: Fault
) -> None:
    far.script.append(wrong)
    sink = Sink()
    assert await stream(http, far.url, sink=sink) == DATA
    assert far.ranges_asked[1] is None
    assert len(far.requests) == 2
    assert len(sink.validators) == 1
    assert not http.failures


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("when", [lambda fault: fault, late])
@pytest.mark.parametrize("wrong", ["bytes 1-2/100", "nonsense", "bytes 0-0/*", "whole"])
async def test_ranges_that_are_answered_wrong_from_some_time_on(
    http: Http, far: FarOrigin, number: int, when: Callable[[Fault], Fault], wrong: str
) -> None:
    async def lie(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        origin.script.appendleft(lie)
        if wrong == "whole":
            origin.ranges = False
            return await origin.send(request, *origin.head(request))
        changes = {} if origin.span(request) is None else {"Content_Range": wrong}
        if wrong.startswith("bytes 1-2") and changes:
            changes["Content_Range"] = f"bytes 1-2/{SIZE}"
        return await origin.send(request, *origin.head(request, **changes))

    far.script.append(at(number, when(lie)))
    assert await stream(http, far.url) == DATA
    assert not http.failures


async def test_a_body_longer_than_its_range_is_not_used(http: Http, far: FarOrigin) -> None:
    async def longer(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        response, right = origin.head(request, Content_Length=None)
        response.enable_chunked_encoding()
        return await origin.send(request, response, right + b"x")

    far.script.append(at(2, longer))
    assert await stream(http, far.url) == DATA


# ---- memory and connections


async def test_without_memory_it_comes_over_one_connection_in_long_stretches(http: Http, far: FarOrigin) -> None:
    memory = Memory(0)
    assert await stream(http, far.url, memory=memory) == DATA
    assert memory.lent == 0
    assert len(far.requests) <= 3
    assert far.sent == SIZE


async def test_what_is_recalled_is_fetched_again(http: Http, far: FarOrigin) -> None:
    memory = Memory()
    recalled: list[Lent] = []

    def recall_all(fed: int) -> None:
        if not recalled and fed > FIRST - MIB and memory.held:
            recalled.extend(memory.held)
            for lent in recalled:
                lent.recall()
            assert not memory.held

    assert await stream(http, far.url, sink=Sink(recall_all), memory=memory) == DATA
    assert recalled


async def test_what_is_recalled_while_the_stream_waits_for_an_answer_is_fed_once(http: Http, far: FarOrigin) -> None:
    memory = Memory()
    asked = recalled = 0

    async def answer(origin: Origin, request: web.BaseRequest) -> web.StreamResponse:
        """Recall the first leg, so that the stream asks for it itself; before that is answered, recall the others."""
        nonlocal asked, recalled
        start = int(request.headers["Range"].removeprefix("bytes=").split("-")[0])
        if start > FIRST and asked < 2:
            await asyncio.sleep(60)  # it is recalled
        if start == FIRST and asked < 2:
            asked += 1
            await asyncio.sleep(0.1)  # others are under way by now
            held = sorted(memory.held, key=lambda lent: lent.number)
            for lent in held[:1] if asked == 1 else held:
                lent.recall()
                recalled += asked > 1
            await asyncio.sleep(0.1)
        return await origin.send(request, *origin.head(request))

    far.script.extend([answer] * 20)
    assert await stream(http, far.url, memory=memory) == DATA
    assert recalled
    assert sum(start == FIRST for start, _ in far.spans()) == 2


async def test_connections_are_left_for_others(bridge: Bridge, far: FarOrigin) -> None:
    for connections in (1, 2, KEPT_FREE + 1, KEPT_FREE + 2):
        http = Http(bridge, HttpSettings(policy=QUICK, connections=connections))
        far.most = 0
        assert await stream(http, far.url) == DATA
        assert far.most <= max(1, connections - KEPT_FREE)
        await http.aclose()


async def test_connections_that_others_have_are_left_to_them(bridge: Bridge, far: FarOrigin) -> None:
    other = FarOrigin(bytes(SIZE), pause=0.02)
    http = Http(bridge, HttpSettings(policy=QUICK, connections=8))
    async with trio.open_nursery() as nursery:
        far.script.extend([lambda _, request: other.answer(request)] * 5)
        for _ in range(5):
            nursery.start_soon(lambda: stream(http, far.url, memory=Memory(0)))
        await eventually(lambda: other.busy == 5)
        far.most = far.busy
        assert await stream(http, far.url) == DATA
        assert other.busy == 5, "the others took longer"
        assert far.most == 6
        nursery.cancel_scope.cancel()
    await http.aclose()


async def test_streams_of_one_host_share_its_connections(http: Http, far: FarOrigin) -> None:
    got: list[bytes] = []

    async def one(name: str) -> None:
        got.append(await stream(http, f"{far.url}/{name}"))

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(one, name)
    assert got == [DATA] * 3
    assert far.most <= 8 - KEPT_FREE
    assert far.sent == 3 * SIZE
    shares = [sum(request.path == f"/{name}" for request in far.requests) for name in "abc"]
    assert min(shares) > 3, "each had several"


async def test_it_ends_with_whoever_wanted_it(http: Http, far: FarOrigin) -> None:
    class Stuck(Sink):
        async def feed(self, data: bytes | memoryview) -> None:
            await super().feed(data)
            if len(self.data) > FIRST - MIB:
                await asyncio.sleep(60)

    memory = Memory()
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            await http.stream([far.url], Stuck(), account="lab", lender=memory)

        nursery.start_soon(read)
        await eventually(lambda: memory.held)
        nursery.cancel_scope.cancel()
    assert not memory.held
    before = http.fetched["lab"]
    await trio.sleep(0.1)
    assert http.fetched["lab"] == before


async def test_what_the_sink_raises_passes_through(http: Http, far: FarOrigin) -> None:
    class Full(Exception):
        """What a sink may raise."""

    def fill(fed: int) -> None:
        if fed > FIRST + MIB:
            raise Full

    with pytest.raises(Full):
        await stream(http, far.url, sink=Sink(fill))
    assert not http.failures


async def test_each_range_goes_through_the_redirect_and_the_token_only_where_it_belongs(
    bridge: Bridge, far: FarOrigin, tmp_path: Path
) -> None:
    api = Origin(b"")
    async with serve(bridge, api):
        api.script.extend([redirect(307, lambda: f"{far.url}/object?signature=abc")] * 99)
        token = tmp_path / "token"
        token.write_text("secret\n")
        account = Account(origin=api.url, token_file=token)
        http = Http(bridge, HttpSettings(policy=QUICK, accounts={"lab": account}))
        assert await stream(http, api.url + "/archive") == DATA
        await http.aclose()
    assert far.most >= 3
    assert far.sent == SIZE
    assert [request.headers.get("Range") for request in api.requests] == far.ranges_asked
    assert {request.headers.get("Authorization") for request in api.requests} == {"Bearer secret"}
    assert {request.headers.get("Authorization") for request in far.requests} == {None}
