"""Who holds connections to the status page, or never takes an answer: others get theirs.

Promises:
- connections are bounded, and who comes when there are too many is answered nevertheless;
- one on which nothing is asked ends;
- an answer that nobody takes is not copied for each who asked for it;
- the loop that the page shares with what is fetched for readers answers so many requests a second, and no more.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from refgenfs.web import Place, bodies, door
from refgenfs.web.admission import uid_of_peer
from tests.integration.test_status_page import ask
from tests.integration.test_web import Taken, answers, free_port, serving, until


@pytest.fixture
def place() -> Place:
    return "127.0.0.1", free_port()


@contextmanager
def held(place: Place, number: int, first: bytes) -> Iterator[list[socket.socket]]:
    """Have so many connections, on each of which this was sent."""
    assert isinstance(place, tuple)
    made: list[socket.socket] = []
    try:
        for _ in range(number):
            made.append(socket.create_connection(place, timeout=10))
            made[-1].sendall(first)
        yield made
    finally:
        for one in made:
            one.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("first", [b"", b"GET /api/no", b"GET /api/catalog HTTP/1.1\r\nHost: localhost\r\n\r\n"])
async def test_who_holds_connections_keeps_nobody_out(
    place: Place, first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door.Door.__init__, "__defaults__", (16,))
    async with serving(place, Taken()):
        before = descriptors()
        with held(place, 100, first):
            for _ in range(3):
                assert (await ask(place, "/api/now")).status == 200
            await until(lambda: descriptors() <= before + 100 + 16 + 2)
        assert (await ask(place, "/api/now")).status == 200


@pytest.mark.parametrize("first", [b"", b"GET /api/no"])
async def test_a_connection_on_which_nothing_is_asked_ends(
    place: Place, first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "SILENT", 0.2)
    monkeypatch.setattr(door, "LOOK", 0.05)
    async with serving(place, Taken()):
        with held(place, 1, first) as (one,):
            try:
                left = await trio.to_thread.run_sync(one.recv, 1)
            except ConnectionResetError:
                left = b""
            assert left == b""


class _Long(Taken):
    """Has much to tell, which takes long to say."""

    async def catalog(self, *, viewer: int | None) -> Mapping[str, Any]:
        return {"rows": [os.urandom(512).hex() for _ in range(16_000)]}


async def test_an_answer_that_nobody_takes_is_not_copied_for_each(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async with serving(place, _Long()):
        whole = (await ask(place, "/api/catalog")).body
        assert len(whole) > 16_000_000
        before = resident()
        request = b"GET /api/catalog HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with held(place, 20, request):
            await trio.sleep(1)
            assert (await ask(place, "/api/catalog", Accept_Encoding="gzip")).status == 200
            assert resident() - before < 6 * len(whole), "each has a copy of it"


async def test_a_long_answer_that_comes_in_parts_is_whole() -> None:
    data, headers = os.urandom(3 * bodies.PART + 5), dict[str, str]()
    parts = bodies._sent(data, headers)
    assert not isinstance(parts, bytes)
    assert b"".join([part async for part in parts]) == data
    assert headers == {"Content-Length": str(len(data))}


async def test_who_asks_without_end_leaves_time_for_readers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "ANSWER_EVERY", 0.05)
    async with serving(place, Taken()):
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask, place, "/nothing")
        assert time.monotonic() - began >= 19 * 0.05


async def test_a_place_without_connections_lets_in_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be accepted for want of descriptors is accepted later."""
    monkeypatch.setattr(door, "NO_DESCRIPTOR", 0.05)
    real, failed = socket.socket.accept, list[int]()

    def accept(self: socket.socket) -> Any:
        if len(failed) < 3:
            failed.append(1)
            raise OSError(24, "Too many open files")
        return real(self)

    async with serving(place, Taken()):
        monkeypatch.setattr(socket.socket, "accept", accept)
        assert await trio.to_thread.run_sync(answers, place)
        assert len(failed) == 3


def test_a_socket_that_was_closed_is_nobody_s() -> None:
    """The kernel shows it as root's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        end, _ = listener.accept()
        with end:
            assert uid_of_peer(end.getpeername(), end.getsockname()) == os.getuid()
            client.close()  # and waits for the other end to do so, too
            assert uid_of_peer(end.getpeername(), end.getsockname()) is None
