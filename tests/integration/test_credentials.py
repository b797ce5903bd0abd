"""What proves who asks goes to its own origin only, and is never told; proxies are those of the source, or the
environment's."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from refgenfs.core.content import BLOCK, ByteRange
from refgenfs.core.errors import OriginDenied, OriginUnavailable, RefgenfsError
from refgenfs.core.retry import RetryPolicy
from refgenfs.fetch.answers import OriginUnusable
from refgenfs.fetch.bridge import Bridge, open_bridge
from refgenfs.fetch.http import Http
from refgenfs.fetch.settings import Account, HttpSettings
from tests.integration.http_origin import Origin, redirect, serve
from tests.support.tinyproxy import Tinyproxy

DATA = b"reference" * BLOCK


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    async with open_bridge(grace=0.5) as opened:
        yield opened


@pytest.fixture
async def origins(bridge: Bridge) -> AsyncIterator[tuple[Origin, Origin]]:
    served = Origin(DATA), Origin(DATA)
    async with serve(bridge, *served):
        yield served


@asynccontextmanager
async def open_http(bridge: Bridge, account: Account) -> AsyncIterator[Http]:
    policy = RetryPolicy(retry_for=0.0, doubts=0)
    http = Http(bridge, HttpSettings(policy=policy, accounts={"lab": account}))
    try:
        yield http
    finally:
        await http.aclose()


class _Sink:
    async def write(self, offset: int, data: memoryview) -> None:
        pass


async def ask(http: Http, *urls: str) -> None:
    await http.fetch_range(ByteRange(urls, ""), 0, len(DATA), len(DATA), _Sink(), account="lab")


def sent(origin: Origin) -> list[str | None]:
    """What each request to an origin proved itself with."""
    return [request.headers.get("Authorization") for request in origin.requests]


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def with_user(url: str, user: str) -> str:
    return url.replace("http://", f"http://{user}@")


def secret(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


async def test_user_and_password_file(bridge: Bridge, origins: tuple[Origin, Origin], tmp_path: Path) -> None:
    own, other = origins
    password = secret(tmp_path / "password", "open sesame\n")
    account = Account(origin=own.url, user="eve", password_file=password)
    async with open_http(bridge, account) as http:
        own.script.append(redirect(307, lambda: other.url))
        await ask(http, f"{own.url}/x")
        await ask(http, f"{other.url}/x")
        secret(password, "changed")
        await ask(http, f"{own.url}/x")
        secret(password, "two\nlines")
        with pytest.raises(OriginDenied, match="no single line") as caught:
            await ask(http, f"{own.url}/x")
        assert "two" not in str(caught.value)
    assert sent(own) == [basic("eve", "open sesame"), basic("eve", "changed")]
    assert sent(other) == [None, None]


async def test_a_netrc_by_the_host_s_name(bridge: Bridge, origins: tuple[Origin, Origin], tmp_path: Path) -> None:
    own, other = origins
    netrc = secret(tmp_path / "netrc", "machine 127.0.0.1 login eve password hunter2\n")
    async with open_http(bridge, Account(origin=own.url, netrc_file=netrc)) as http:
        own.script.append(redirect(302, lambda: f"{other.url}/there"))
        await ask(http, f"{own.url}/x")
        await ask(http, with_user(own.url, "adam:apple"))
        secret(netrc, "machine 127.0.0.1 login eve passw0rd hunter2\n")
        with pytest.raises(OriginDenied, match="line 1 is no netrc") as caught:
            await ask(http, f"{own.url}/x")
        assert "hunter2" not in str(caught.value)
        secret(netrc, "machine elsewhere.example.org login eve password hunter2\n")
        await ask(http, f"{own.url}/x")
    assert sent(own) == [basic("eve", "hunter2"), basic("adam", "apple"), None]
    assert sent(other) == [None]


async def test_mirrors_get_what_the_source_has_or_their_own(
    bridge: Bridge, origins: tuple[Origin, Origin], tmp_path: Path
) -> None:
    own, mirror = origins
    token = secret(tmp_path / "token", "t0ken")
    async with open_http(bridge, Account(own.url, mirrors=(mirror.url,), token_file=token)) as http:
        await ask(http, f"{mirror.url}/x")
    asked = Account(own.url, mirrors=(with_user(mirror.url, "eve:apple"),), token_file=token)
    async with open_http(bridge, asked) as http:
        await ask(http, f"{mirror.url}/x")
        await ask(http, f"{own.url}/x")
    assert sent(mirror) == ["Bearer t0ken", basic("eve", "apple")]
    assert sent(own) == ["Bearer t0ken"]


async def test_what_an_origin_with_tls_has_goes_to_no_mirror_without(
    bridge: Bridge, origins: tuple[Origin, Origin], tmp_path: Path
) -> None:
    mirror = origins[0]
    token = secret(tmp_path / "token", "t0ken")
    account = Account("https://genomes.example.org/x", mirrors=(mirror.url,), token_file=token)
    async with open_http(bridge, account) as http:
        await ask(http, f"{mirror.url}/x")
    assert sent(mirror) == [None]


async def test_user_and_password_of_the_source_s_url_survive_a_redirect_of_its_own(
    bridge: Bridge, origins: tuple[Origin, Origin]
) -> None:
    own, _ = origins
    url = with_user(own.url, "eve:apple")
    async with open_http(bridge, Account(origin=url)) as http:
        own.script.append(redirect(301, lambda: f"{own.url}/moved"))
        await ask(http, f"{url}/x")
    assert sent(own) == [basic("eve", "apple")] * 2


async def test_certificates_that_cannot_be_read(bridge: Bridge, tmp_path: Path) -> None:
    async with open_http(bridge, Account(ca_file=tmp_path / "ca.pem")) as http:
        with pytest.raises(OriginUnusable, match=r"certificates in .*ca\.pem can't be read: No such file"):
            await ask(http, "https://127.0.0.1:1/x")


# ---- proxies


async def test_a_proxy_by_configuration(
    bridge: Bridge, origins: tuple[Origin, Origin], tinyproxy: Tinyproxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with open_http(bridge, Account(proxies=(tinyproxy.url,))) as http:
        await ask(http, f"{origins[0].url}/by-proxy")
    assert len(tinyproxy.requests("/by-proxy")) == 1


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
async def test_a_proxy_by_the_environment(
    bridge: Bridge,
    origins: tuple[Origin, Origin],
    tinyproxy: Tinyproxy,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setenv(name, tinyproxy.url.removeprefix("http://") if name.isupper() else tinyproxy.url)
    async with open_http(bridge, Account()) as http:
        await ask(http, f"{origins[0].url}/by-proxy")
    assert len(tinyproxy.requests("/by-proxy")) == 1
    monkeypatch.setenv("NO_PROXY", "example.org,127.0.0.1")
    async with open_http(bridge, Account()) as http:
        await ask(http, f"{origins[0].url}/direct")
    monkeypatch.delenv("NO_PROXY")
    async with open_http(bridge, Account(proxies=("direct",))) as http:
        await ask(http, f"{origins[0].url}/direct")
    assert tinyproxy.requests("/direct") == []
    assert len(origins[0].requests) == 3


async def test_a_proxy_that_asks_who_it_is(
    bridge: Bridge, origins: tuple[Origin, Origin], asking_proxy: Tinyproxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_http(bridge, Account(proxies=(with_user(asking_proxy.url, "user:hunter2"),))) as http:
        await ask(http, f"{origins[0].url}/by-proxy")
    monkeypatch.setenv("http_proxy", with_user(asking_proxy.url, "user:wr0ng"))
    async with open_http(bridge, Account()) as http:
        with pytest.raises(OriginDenied) as caught:
            await ask(http, f"{origins[0].url}/by-proxy")
        assert "wr0ng" not in str(caught.value)
    assert len(origins[0].requests) == 1
    assert "Proxy-Authorization" not in origins[0].requests[0].headers


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_away_is_no_missing_file(bridge: Bridge, scheme: str) -> None:
    async with open_http(bridge, Account(proxies=("http://127.0.0.1:1",))) as http:
        with pytest.raises(OriginUnavailable, match="proxy"):
            await ask(http, f"{scheme}://origin.example.org/x")


async def test_a_proxy_of_another_kind_is_said(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://eve:hunter2@127.0.0.1:1080")
    async with open_http(bridge, Account()) as http:
        with pytest.raises(RefgenfsError, match="the environment names a socks5:// proxy") as caught:
            await ask(http, "http://origin.example.org/x")
        assert "hunter2" not in str(caught.value)
