"""The page with the metrics, over real sockets.

Promises:
- nothing is taken while nobody asks, and at most one snapshot a second however many do;
- who has not the token gets nothing, and the log no token;
- a place that is taken costs one line in the log, and is tried again; a dead socket is replaced, a live one never;
- what goes wrong with a snapshot is an answer, and the page lives on.
"""

from __future__ import annotations

import http.client
import logging
import socket
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from refgenfs.core.errors import NotInCatalog
from refgenfs.core.metrics import CONTENT_TYPE, Metric, Reading
from refgenfs.fetch.bridge import open_bridge
from refgenfs.web import Place, StatusPage, bind, site

X = Metric("x_total", "counter", "X.")


class Taken:
    """Takes snapshots, and counts them."""

    def __init__(self) -> None:
        self.count = 0
        self.error: Exception | None = None

    def metrics(self) -> tuple[Reading, ...]:
        self.count += 1
        if self.error is not None:
            raise self.error
        return (Reading(X, (((), self.count),)),)

    async def now(self, *, viewer: int | None) -> Mapping[str, Any]:
        self.count += 1
        if self.error is not None:
            raise self.error
        return {"viewer": viewer, "count": self.count}

    async def history(self) -> Mapping[str, Any]:
        return {"fine": [[0.0, 1, 2, 0.5]] * 3000}

    async def catalog(self, *, viewer: int | None) -> Mapping[str, Any]:
        return {"rows": [["genome", f"asset {number}"] for number in range(2000)]}

    async def cache(self, *, viewer: int | None) -> Mapping[str, Any]:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def asset(self, key: str, *, viewer: int | None) -> Mapping[str, Any]:
        if key != "hg38/fasta":
            raise NotInCatalog(f"no asset {key!r}")
        return {"key": key, "name": "\udcff"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Unix(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


def ask(place: Place, path: str = "/metrics", token: str = "", method: str = "GET") -> tuple[int, str, str]:
    """Return status, type and text of an answer."""
    connection = _Unix(place) if isinstance(place, Path) else http.client.HTTPConnection(*place, timeout=10)
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Content-Type", ""), answer.read().decode()
    finally:
        connection.close()


async def answer(place: Place, path: str = "/metrics", token: str = "", method: str = "GET") -> tuple[int, str, str]:
    return await trio.to_thread.run_sync(ask, place, path, token, method)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds; it is asked on a thread."""
    with trio.fail_after(10):
        while not await trio.to_thread.run_sync(condition):  # noqa: ASYNC110  # sockets and logs set no event
            await trio.sleep(0.01)


def answers(place: Place) -> bool:
    try:
        ask(place, "/nothing")
    except OSError:
        return False
    return True


@asynccontextmanager
async def serving(place: Place, taken: Taken, token_file: Path | None = None) -> AsyncIterator[None]:
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        nursery.start_soon(StatusPage(bridge, place, token_file, taken).serve)
        await until(lambda: answers(place))
        yield
        nursery.cancel_scope.cancel()


async def test_it_answers_with_a_snapshot_and_keeps_it_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "FRESH", 3600.0)
    place, taken = ("127.0.0.1", free_port()), Taken()
    async with serving(place, taken):
        assert taken.count == 0, "nobody asked"
        assert await answer(place) == (200, CONTENT_TYPE, "# HELP x_total X.\n# TYPE x_total counter\nx_total 1\n")
        for _ in range(5):
            assert (await answer(place))[2].endswith("x_total 1\n")
        monkeypatch.setattr(site, "FRESH", 0.0)
        assert (await answer(place))[2].endswith("x_total 2\n")


async def test_many_who_ask_at_once_share_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "FRESH", 3600.0)
    place, taken = ("127.0.0.1", free_port()), Taken()
    async with serving(place, taken), trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(answer, place)
    assert taken.count == 1


async def test_other_paths_and_methods_are_refused() -> None:
    place, taken = ("127.0.0.1", free_port()), Taken()
    async with serving(place, taken):
        assert (await answer(place, "/metrics/../secret"))[0] == 404
        assert (await answer(place, method="POST"))[0] == 405
        assert (await answer(place, "/"))[0] == 200
    assert taken.count == 0


async def test_a_token_is_needed_where_there_is_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, place = tmp_path / "token", ("127.0.0.1", free_port())
    file.write_text("s3cret\n")
    with caplog.at_level(logging.DEBUG):
        async with serving(place, Taken(), file):
            for wrong in ("", "s3cre", "s3cret2", "S3CRET"):
                assert (await answer(place, token=wrong))[0] == 401
                assert (await answer(place, "/", token=wrong))[0] == 401
            assert (await answer(place, token="s3cret"))[0] == 200
            file.write_text("another")
            assert (await answer(place, token="s3cret"))[0] == 401
            assert (await answer(place, token="another"))[0] == 200
            file.unlink()
            status, _, text = await answer(place, token="another")
            assert (status, "token" in text) == (503, True)
    assert "s3cret" not in caplog.text
    assert "another" not in caplog.text
    caplog.clear()


async def test_what_goes_wrong_is_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    place, taken = ("127.0.0.1", free_port()), Taken()
    async with serving(place, taken):
        taken.error = ZeroDivisionError("a defect")
        assert (await answer(place))[0] == 500
        taken.error = None
        assert (await answer(place))[0] == 200
    assert "could not be made" in caplog.text
    caplog.clear()


async def test_a_place_that_is_taken_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(site, "TRY_AGAIN", 0.01)
    place = ("127.0.0.1", free_port())
    taken = bind(place)
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        with caplog.at_level(logging.WARNING):
            nursery.start_soon(StatusPage(bridge, place, None, Taken()).serve)
            await until(lambda: "no status page and no metrics at" in caplog.text)
            await trio.sleep(0.1)
            assert caplog.text.count("no status page and no metrics at") == 1
        taken.close()
        await until(lambda: answers(place))
        nursery.cancel_scope.cancel()
    caplog.clear()


async def test_a_unix_socket_is_for_user_and_group_and_goes_at_the_end(tmp_path: Path) -> None:
    place = tmp_path / "m.sock"
    bind(place).close()  # one that a daemon left behind
    async with serving(place, Taken()):
        assert stat.S_IMODE(place.stat().st_mode) == 0o660
        assert (await answer(place))[0] == 200
        with pytest.raises(OSError, match="in use"):
            bind(place)
        assert (await answer(place))[0] == 200
    assert not place.exists()


async def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("mine")
    with pytest.raises(OSError, match="in use"):
        bind(place)
    assert place.read_text() == "mine"
