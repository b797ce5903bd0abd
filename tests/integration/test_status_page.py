"""The status page over real sockets: who gets what, and what a browser may do with it.

Promises:
- no route changes anything; nothing of the page is taken from elsewhere, run inline, framed or sniffed;
- without a token a browser is answered under this machine's own names only, and only root and the daemon's own user
  see all: the others are known by their sockets;
- with one, nothing is told without it; a browser gets a cookie that no script reads, that ends with its time and with
  the token, and that holds no token;
- answers are compressed, and cost nothing where the browser has them; who asks often gets the same again.
"""

from __future__ import annotations

import gzip
import http.client
import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from refgenfs.users import NOBODY
from refgenfs.web import Place, admission, site
from refgenfs.web.admission import is_here, uid_of_peer
from refgenfs.web.bodies import encode
from tests.integration.test_web import Taken, _Unix, free_port, serving

COOKIE = re.compile(r"(\w+)=([^;]*); ([^\r\n]*)")


@dataclass(frozen=True)
class Got:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def _ask(place: Place, path: str, headers: Mapping[str, str], method: str, body: bytes | None) -> Got:
    connection = _Unix(place) if isinstance(place, Path) else http.client.HTTPConnection(*place, timeout=10)
    try:
        connection.request(method, path, body=body, headers=dict(headers))
        answer = connection.getresponse()
        return Got(answer.status, dict(answer.headers), answer.read())
    finally:
        connection.close()


async def ask(place: Place, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Got:
    """Ask; the names of headers have `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await trio.to_thread.run_sync(_ask, place, path, named, method, body)


@pytest.fixture
def place() -> Place:
    return "127.0.0.1", free_port()


async def test_every_answer_keeps_a_browser_from_doing_anything_else_with_it(place: Place) -> None:
    async with serving(place, Taken()):
        for path in (
            "/",
            "/static/main.js",
            "/static/page.css",
            "/api/now",
            "/metrics",
            "/nothing",
            "/api/asset?key=x",
        ):
            got = await ask(place, path)
            policy = got.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert got.headers["X-Content-Type-Options"] == "nosniff"
            assert got.headers["Referrer-Policy"] == "no-referrer"


def test_the_page_is_its_own_files_and_nothing_inline() -> None:
    files = site.read_files()
    assert {"index.html", "login.html", "main.js", "page.css", "icon.svg"} <= files.keys()
    for name, body in files.items():
        text = body.data.decode()
        text = text.replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, f"{name} names another place"
        if name.endswith(".html"):
            assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?! [^>]*src=)|javascript:", text), name
        if name.endswith(".js"):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
            )


async def test_nothing_changes_anything(place: Place) -> None:
    paths = ("/", "/metrics", "/api/now", "/api/history", "/api/catalog", "/api/cache", "/api/asset")
    async with serving(place, Taken()):
        for path in paths:
            for method in ("POST", "PUT", "DELETE", "PATCH"):
                assert (await ask(place, path, method)).status == 405
        assert (await ask(place, "/login", "POST")).status == 404  # there is no token to give


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("localhost:8080", True),
        ("page.localhost:8080", True),
        ("127.0.0.1:9417", True),
        ("127.3.2.1", True),
        ("[::1]:9417", True),
        ("[::1]", True),
        ("LOCALHOST.", True),
        ("evil.example:9417", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("10.0.0.1:9417", False),
        ("[fe80::1]:9417", False),
        ("", False),
        ("[", False),
    ],
)
def test_a_host_is_this_machine_s_or_not(host: str, here: bool) -> None:
    assert is_here(host) is here


async def test_a_name_that_was_pointed_here_is_refused(place: Place, tmp_path: Path) -> None:
    async with serving(place, Taken()):
        for path in ("/", "/api/now", "/api/catalog"):
            assert (await ask(place, path, Host="evil.example")).status == 403
            assert (await ask(place, path, Host="localhost:1")).status == 200
        assert (await ask(place, "/metrics", Host="node1:9417")).status == 200  # as Prometheus names it
        assert (await ask(place, "/api/now", Sec_Fetch_Site="cross-site")).status == 403
    socket_path = tmp_path / "p.sock"
    async with serving(socket_path, Taken()):
        assert (await ask(socket_path, "/api/now", Host="evil.example")).status == 403
        assert (await ask(socket_path, "/api/now", Host="localhost:8080")).json()["viewer"] is None


async def test_only_root_and_who_mounted_see_all_on_a_port(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(place, Taken()):
        assert (await ask(place, "/api/now")).json()["viewer"] is None
        for uid, viewer in ((0, None), (os.getuid(), None), (4321, 4321), (None, NOBODY)):
            monkeypatch.setattr(admission, "uid_of_peer", lambda *_, uid=uid: uid)
            assert (await ask(place, "/api/now")).json()["viewer"] == viewer


@pytest.mark.needs_root
async def test_another_user_of_the_machine_is_known_by_their_socket(place: Place) -> None:
    assert isinstance(place, tuple)
    script = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{place[1]}/api/now').read().decode())"
    command = [sys.executable, "-I", "-c", script]
    async with serving(place, Taken()):
        for uid, viewer in ((65534, 65534), (0, None)):
            run = await trio.run_process(
                ["setpriv", f"--reuid={uid}", "--clear-groups", *command], capture_stdout=True
            )
            assert json.loads(run.stdout)["viewer"] == viewer


def test_nobody_s_socket_is_nobody_s() -> None:
    assert uid_of_peer(("127.0.0.1", 1), ("127.0.0.1", 2)) is None
    assert uid_of_peer(("::1", 1, 0, 0), ("::1", 2, 0, 0)) is None
    assert uid_of_peer("", None) is None


async def test_a_browser_gives_the_token_once(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "WRONG", 0.01)
    file = tmp_path / "token"
    file.write_text("s3cret")
    caplog.set_level(logging.DEBUG)
    async with serving(place, Taken(), file):
        shown = await ask(place, "/", Accept="text/html")
        assert (shown.status, b'type="password"' in shown.body) == (401, True)
        for path in ("/api/now", "/api/history", "/api/catalog", "/api/asset?key=hg38/fasta", "/metrics"):
            assert (await ask(place, path)).status == 401
        assert (await ask(place, "/static/page.css")).status == 200  # nothing of anybody's
        form = {"Content_Type": "application/x-www-form-urlencoded"}
        wrong = await ask(place, "/login", "POST", b"token=guess", **form)
        assert (wrong.status, wrong.headers["Location"], "Set-Cookie" in wrong.headers) == (303, "./?wrong", False)
        assert (
            await ask(place, "/login", "POST", b"token=s3cret", Sec_Fetch_Site="cross-site", **form)
        ).status == 403
        right = await ask(place, "/login", "POST", b"token=s3cret", **form)
        found = COOKIE.match(right.headers["Set-Cookie"])
        assert found is not None
        name, value, rest = found.groups()
        assert (right.status, right.headers["Location"]) == (303, "./")
        assert {"HttpOnly", "SameSite=Strict"} <= set(rest.split("; "))
        assert "s3cret" not in right.headers["Set-Cookie"]
        # whoever has the token, by whatever name the machine goes
        got = await ask(place, "/api/now", Cookie=f"{name}={value}", Host="node1.example")
        assert (got.status, got.json()["viewer"], got.headers["X-Refgenfs-Login"]) == (200, None, "token")
        until, _, seal = value.partition(".")
        for forged in (
            f"{int(until) + 1}.{seal}",
            f"{int(until) - 10**7}.{seal}",
            f"{until}.",
            "",
            "x.y",
            f"{until}.é",
        ):
            assert (await ask(place, "/api/now", Cookie=f"{name}={forged}".encode().decode("latin-1"))).status == 401
        out = await ask(place, "/logout", "POST", Cookie=f"{name}={value}")
        assert (out.status, "Max-Age=0" in out.headers["Set-Cookie"]) == (303, True)
        file.write_text("another")  # ends all sessions
        assert (await ask(place, "/api/now", Cookie=f"{name}={value}")).status == 401
    assert "s3cret" not in caplog.text
    assert value not in caplog.text
    caplog.clear()


async def test_a_session_ends_with_its_time(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "SESSION", -1)
    file = tmp_path / "token"
    file.write_text("s3cret")
    async with serving(place, Taken(), file):
        form = {"Content_Type": "application/x-www-form-urlencoded"}
        right = await ask(place, "/login", "POST", b"token=s3cret", **form)
        cookie = right.headers["Set-Cookie"].partition(";")[0]
        assert (await ask(place, "/api/now", Cookie=cookie)).status == 401


async def test_a_guess_is_waited_for_and_few_are_taken_at_a_time(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "WRONG", 1.0)
    file = tmp_path / "token"
    file.write_text("s3cret")
    found: list[int] = []

    async def guess() -> None:
        form = {"Content_Type": "application/x-www-form-urlencoded"}
        found.append((await ask(place, "/login", "POST", b"token=guess", **form)).status)

    async with serving(place, Taken(), file), trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(guess)
    assert found.count(429) == 12 - admission.TRIES
    assert found.count(303) == admission.TRIES


async def test_a_long_form_is_refused(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret")
    async with serving(place, Taken(), file):
        form = {"Content_Type": "application/x-www-form-urlencoded"}
        assert (await ask(place, "/login", "POST", b"token=" + b"x" * 100_000, **form)).status == 413


async def test_answers_are_compressed_and_cost_nothing_the_second_time(place: Place) -> None:
    async with serving(place, Taken()):
        for path in ("/api/catalog", "/api/history", "/static/main.js", "/"):
            plain = await ask(place, path)
            packed = await ask(place, path, Accept_Encoding="gzip, br")
            assert gzip.decompress(packed.body) == plain.body
            assert len(packed.body) < len(plain.body) * 0.6
            etag = plain.headers["ETag"]
            again = await ask(place, path, If_None_Match=f'"other", W/{etag}')
            assert (again.status, again.body) == (304, b"")
            assert (await ask(place, path, If_None_Match='"other"')).status == 200


async def test_who_asks_often_gets_the_same_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "FRESH_NOW", 3600.0)
    taken = Taken()
    async with serving(place, taken):
        assert taken.count == 0, "nobody asked"
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(ask, place, "/api/now")
        assert taken.count == 1


async def test_what_cannot_be_told_is_an_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(site, "LIST_DEADLINE", 0.3)
    taken = Taken()
    async with serving(place, taken):
        async with trio.open_nursery() as nursery:  # it never comes, however many ask
            for _ in range(4):
                nursery.start_soon(_expect, place, "/api/cache", 503)
        assert (await ask(place, "/api/asset?key=nothing")).status == 404
        assert (await ask(place, "/api/asset?key=hg38/fasta")).json() == {"key": "hg38/fasta", "name": "?"}
        taken.error = ZeroDivisionError("a defect")
        got = await ask(place, "/api/now")
        assert (got.status, "defect" in got.body.decode()) == (500, False)
        taken.error = None
        assert (await ask(place, "/api/now")).status == 200
    caplog.clear()


async def _expect(place: Place, path: str, status: int) -> None:
    assert (await ask(place, path)).status == status


def test_json_is_what_json_is() -> None:
    value = {
        "a": list(range(1234)),
        "b": {"c": "é\n\u2028</script>"},
        "d": [],
        "e": [[n, {"x": None}] for n in range(999)],
    }
    assert json.loads(encode(value)) == value


def test_every_file_of_the_page_is_served_with_its_type() -> None:
    assert {path.name for path in site.STATIC.iterdir()} == set(site.read_files())
