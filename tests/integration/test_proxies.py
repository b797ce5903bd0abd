"""Several proxies in order: what one does not bring the next one does, and no wrong byte is taken from any."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from refgenfs.core import lanes, retry
from refgenfs.core.content import BLOCK, ByteRange
from refgenfs.core.errors import OriginMissing, OriginUnavailable, StaleContent
from refgenfs.core.retry import RetryPolicy
from refgenfs.fetch import attempts, streams
from refgenfs.fetch.bridge import Bridge, open_bridge
from refgenfs.fetch.http import Http
from refgenfs.fetch.settings import Account, HttpSettings
from tests.integration.http_origin import (
    Fault,
    Origin,
    reset_after,
    serve,
    stall_after,
    status,
    truncate_after,
    with_headers,
)

DATA = bytes(range(256)) * (BLOCK // 64)
OLD = bytes(len(DATA))


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    async with open_bridge(grace=0.5) as opened:
        yield opened


@pytest.fixture
async def hosts(bridge: Bridge) -> AsyncIterator[tuple[Origin, Origin]]:
    """A proxy, which has everything that is asked for, and the origin."""
    served = Origin(DATA), Origin(DATA)
    async with serve(bridge, *served):
        yield served


@asynccontextmanager
async def open_http(
    bridge: Bridge, *proxies: str, retry_for: float = 0.0, timeout: float = 1.0
) -> AsyncIterator[Http]:
    policy = RetryPolicy(retry_for=retry_for, first=0.01, doubts=0)
    accounts = {"lab": Account(proxies=proxies, timeout=timeout)}
    http = Http(bridge, HttpSettings(policy=policy, accounts=accounts))
    try:
        yield http
    finally:
        await http.aclose()


class _Sink:
    def __init__(self) -> None:
        self.data = bytearray(len(DATA))

    async def write(self, offset: int, data: memoryview) -> None:
        self.data[offset : offset + len(data)] = data


async def fetch(http: Http, origin: Origin, validator: str = '"v1"') -> bytes:
    sink = _Sink()
    extent = ByteRange((f"{origin.url}/g.fa",), validator)
    await http.fetch_range(extent, 0, BLOCK, len(DATA), sink, account="lab")
    return bytes(sink.data[:BLOCK])


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def page(**headers: str) -> Fault:
    """A page of HTML in the place of what was asked for."""

    async def fault(origin: Origin, request: object) -> object:
        from aiohttp import web

        return web.Response(text="<html>log in, please</html>" * 4, content_type="text/html", headers=headers)

    return fault  # type: ignore[return-value]


def states(http: Http) -> list[tuple[bool, int]]:
    return [(route.up, route.requests) for route in http.routes("lab")]


async def test_the_first_proxy_is_asked_and_no_other(bridge: Bridge, hosts: tuple[Origin, Origin]) -> None:
    proxy, origin = hosts
    async with open_http(bridge, proxy.url, "direct") as http:
        for _ in range(3):
            assert await fetch(http, origin) == DATA[:BLOCK]
        assert states(http) == [(True, 3), (True, 0)]
    assert (len(proxy.requests), len(origin.requests)) == (3, 0)


async def test_a_proxy_that_refuses_is_passed_over(bridge: Bridge, hosts: tuple[Origin, Origin]) -> None:
    _, origin = hosts
    async with open_http(bridge, closed_port(), "direct") as http:
        for _ in range(3):
            assert await fetch(http, origin) == DATA[:BLOCK]
        assert states(http) == [(False, 1), (True, 3)], "each request finds out anew that the proxy is away"
        assert not http.failing


async def test_the_second_proxy_takes_over_before_the_origin_does(
    bridge: Bridge, hosts: tuple[Origin, Origin]
) -> None:
    proxy, origin = hosts
    async with open_http(bridge, closed_port(), proxy.url, "direct") as http:
        assert await fetch(http, origin) == DATA[:BLOCK]
    assert (len(proxy.requests), len(origin.requests)) == (1, 0)


async def test_without_direct_nothing_goes_past_the_proxies(bridge: Bridge, hosts: tuple[Origin, Origin]) -> None:
    _, origin = hosts
    async with open_http(bridge, closed_port(), closed_port()) as http:
        with pytest.raises(OriginUnavailable, match="no connection to the proxy"):
            await fetch(http, origin)
    assert not origin.requests


RUBBISH: dict[str, Fault] = {
    "502": status(502),
    "403 of its own": status(403, X_Squid_Error="ERR_ACCESS_DENIED 0"),
    "404 for all that is asked": status(404),
    "407": status(407),
    "a page of HTML": page(),
    "a page of HTML with the right ETag": page(ETag='"v1"'),
    "a wrong Content-Range": with_headers(Content_Range=f"bytes 1-{BLOCK}/{len(DATA)}"),
    "no Content-Range": with_headers(Content_Range=None),
    "another ETag": with_headers(ETag='"v0"'),
    "no ETag": with_headers(ETag=None),
    "truncated": truncate_after(BLOCK // 2),
    "reset": reset_after(BLOCK // 2),
    "nothing, for too long": stall_after(0),
}


@pytest.mark.parametrize("what", RUBBISH)
async def test_rubbish_of_a_proxy_gives_no_wrong_byte(
    bridge: Bridge, hosts: tuple[Origin, Origin], what: str
) -> None:
    proxy, origin = hosts
    proxy.data = OLD  # whatever it sends would be wrong
    proxy.script.append(RUBBISH[what])
    async with open_http(bridge, proxy.url, "direct") as http:
        got = await fetch(http, origin)
        half = BLOCK // 2 if what in ("truncated", "reset") else 0  # it said that these are of this very version
        assert got[half:] == DATA[half:BLOCK]
    assert (len(proxy.requests), len(origin.requests)) == (1, 1)


async def test_a_stale_proxy_is_asked_again_for_other_things(bridge: Bridge, hosts: tuple[Origin, Origin]) -> None:
    proxy, origin = hosts
    proxy.script.append(with_headers(ETag='"v0"'))
    async with open_http(bridge, proxy.url, "direct") as http:
        await fetch(http, origin)
        await fetch(http, origin)
        assert states(http) == [(True, 2), (True, 1)]


async def test_stale_by_every_way_is_stale(bridge: Bridge, hosts: tuple[Origin, Origin]) -> None:
    proxy, origin = hosts
    async with open_http(bridge, proxy.url, "direct") as http:
        with pytest.raises(StaleContent):
            await fetch(http, origin, '"v9"')
    assert (len(proxy.requests), len(origin.requests)) == (1, 1)


async def test_what_no_way_finds_is_missing(bridge: Bridge, hosts: tuple[Origin, Origin]) -> None:
    proxy, origin = hosts
    proxy.script.append(status(404))
    origin.script.append(status(404))
    async with open_http(bridge, proxy.url, "direct") as http:
        with pytest.raises(OriginMissing):
            await fetch(http, origin)


async def test_an_origin_that_fails_is_not_blamed_on_the_proxy(bridge: Bridge, hosts: tuple[Origin, Origin]) -> None:
    """Else a restart of the origin would have every node leave the cache, and all come back to it at once."""
    proxy, origin = hosts
    proxy.script.append(status(502))
    origin.script.append(status(503))
    async with open_http(bridge, proxy.url, "direct") as http:
        with pytest.raises(OriginUnavailable):
            await fetch(http, origin)
        assert states(http)[0] == (True, 1)
        assert await fetch(http, origin) == DATA[:BLOCK]
        assert states(http)[0] == (True, 2)


async def test_an_origin_that_was_away_is_not_blamed_on_the_proxy_either(
    bridge: Bridge, hosts: tuple[Origin, Origin]
) -> None:
    """Whoever happens to be asked first when it is back has nothing to say of the other."""
    proxy, origin = hosts
    proxy.script.extend([status(502), status(502, Retry_After="1")])
    origin.script.append(status(503))
    async with open_http(bridge, proxy.url, "direct", retry_for=5.0) as http:
        assert await fetch(http, origin) == DATA[:BLOCK]
        assert [up for up, _ in states(http)] == [True, True]


async def test_a_proxy_that_fails_where_the_origin_does_not_is_blamed(
    bridge: Bridge, hosts: tuple[Origin, Origin]
) -> None:
    proxy, origin = hosts
    proxy.script.append(status(502))
    async with open_http(bridge, proxy.url, "direct") as http:
        await fetch(http, origin)
        await fetch(http, origin)
        assert states(http) == [(False, 1), (True, 2)]


async def test_the_words_name_the_proxy_and_no_password(bridge: Bridge, hosts: tuple[Origin, Origin]) -> None:
    proxy, origin = hosts
    with_password = proxy.url.replace("http://", "http://me:hunter2@")
    proxy.script.append(status(502))
    async with open_http(bridge, with_password, "direct") as http:
        await fetch(http, origin)
        assert http.failures[-1].what == f"HTTP 502, by the proxy {proxy.url}"
        assert [route.url for route in http.routes("lab")] == [proxy.url, "direct"]


async def test_an_answer_tells_more_than_none(bridge: Bridge, hosts: tuple[Origin, Origin]) -> None:
    """Nodes that have no way out by themselves are told what the proxy was told."""
    proxy, _ = hosts
    proxy.script.append(status(404))
    away = Origin(DATA)
    away.url = closed_port()
    async with open_http(bridge, proxy.url, "direct") as http:
        with pytest.raises(OriginMissing, match="404"):
            await fetch(http, away)


async def test_a_page_of_html_is_taken_where_nobody_else_can_be_asked(
    bridge: Bridge, hosts: tuple[Origin, Origin]
) -> None:
    """Some servers call everything HTML."""
    _, origin = hosts
    origin.script.append(with_headers(Content_Type="text/html", Content_Range=None))
    async with open_http(bridge, "direct") as http:
        facts = await http.head([f"{origin.url}/g.fa"], account="lab", deadline=5.0)
    assert facts.size == len(DATA)


async def test_facts_are_not_taken_of_a_page_of_html(bridge: Bridge, hosts: tuple[Origin, Origin]) -> None:
    proxy, origin = hosts
    proxy.data, proxy.head_status = b"<html>log in, please</html>", 405
    proxy.script.append(page(ETag='"page"'))
    async with open_http(bridge, proxy.url, "direct") as http:
        facts = await http.head([f"{origin.url}/g.fa"], account="lab", deadline=5.0)
    assert (facts.size, facts.validator) == (len(DATA), '"v1"')


# -- long ones ------------------------------------------------------------------------------------------------


class _Stream:
    def __init__(self) -> None:
        self.data = bytearray()

    async def begin(self, validator: str) -> None:
        pass

    async def feed(self, data: bytes | memoryview) -> None:
        self.data += data


class _NoMemory:
    async def take(self, nbytes: int, recall: object) -> None:
        return None


@pytest.fixture
def short_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream is asked for in many small requests, and what failed is tried again at once."""
    monkeypatch.setattr(lanes, "LONG", BLOCK)
    monkeypatch.setattr(streams, "FIRST", BLOCK)
    monkeypatch.setattr(retry, "Health", partial(retry.Health, first=0.0))
    monkeypatch.setattr(attempts, "Health", partial(retry.Health, first=0.0))


@pytest.mark.usefixtures("short_requests")
@pytest.mark.parametrize("fault", [status(502), truncate_after(BLOCK // 2)], ids=["at the start", "in the middle"])
async def test_a_stream_goes_back_to_the_proxy(bridge: Bridge, hosts: tuple[Origin, Origin], fault: Fault) -> None:
    """Else all who stream while the proxy is restarted would ask the origin to the end of their archives."""
    proxy, origin = hosts
    proxy.script.append(fault)
    sink = _Stream()
    async with open_http(bridge, proxy.url, "direct") as http:
        await http.stream([f"{origin.url}/a.tgz"], sink, account="lab", lender=_NoMemory())
        assert sink.data == DATA
        assert [up for up, _ in states(http)] == [True, True]
    assert len(origin.requests) == 1
    assert len(proxy.requests) == len(DATA) // BLOCK


@pytest.mark.usefixtures("short_requests")
async def test_a_stream_does_not_stay_for_a_proxy_that_is_stale(bridge: Bridge, hosts: tuple[Origin, Origin]) -> None:
    proxy, origin = hosts
    proxy.data, proxy.etag = OLD, '"v0"'
    proxy.script.append(status(502))
    sink = _Stream()
    async with open_http(bridge, proxy.url, "direct") as http:
        await http.stream([f"{origin.url}/a.tgz"], sink, account="lab", lender=_NoMemory())
    assert sink.data == DATA
