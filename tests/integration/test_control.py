"""The control socket, with the client that the command line uses, in a thread of its own.

Promises:
- a request is answered by progress lines and then one result or one error, whose kind is the error's class;
- whatever a client sends, or does not, ends in an error for it and in nothing for anybody else;
- the socket is its owner's only; a dead one is replaced, a live one never.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from refgenfs import control
from refgenfs.control import LONGEST_REQUEST, ControlServer, Operation, Progress
from refgenfs.control_client import ControlClient, DaemonRefused, NoDaemon, Result
from refgenfs.control_client import Progress as Told
from refgenfs.core.errors import ControlError, NotInCatalog

T = TypeVar("T")


async def echo(arguments: dict[str, Any], _: Progress) -> dict[str, Any]:
    await trio.lowlevel.checkpoint()
    return arguments


async def count(arguments: dict[str, Any], progress: Progress) -> str:
    for step in range(arguments["to"]):
        await progress({"step": step})
    return "done"


async def absent(_: dict[str, Any], __: Progress) -> None:
    await trio.lowlevel.checkpoint()
    raise NotInCatalog("no source has a genome 'hg99'")


async def burst(_: dict[str, Any], __: Progress) -> None:
    await trio.lowlevel.checkpoint()
    raise ZeroDivisionError("a defect")


async def burst_in_nursery(_: dict[str, Any], __: Progress) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(absent, {}, partial(trio.sleep, 0))


async def odd(_: dict[str, Any], __: Progress) -> Any:
    await trio.lowlevel.checkpoint()
    return {"not JSON": object()}


class Endless:
    """An operation that tells how it goes until its client has gone."""

    def __init__(self) -> None:
        self.running = 0
        self.ended = trio.Event()

    async def __call__(self, _: dict[str, Any], progress: Progress) -> None:
        self.running += 1
        try:
            while True:
                await progress({"text": "x" * 10_000})
                await trio.sleep(0.001)
        finally:
            self.running -= 1
            self.ended.set()


OPERATIONS: dict[str, Operation] = {
    "echo": echo,
    "count": count,
    "absent": absent,
    "burst": burst,
    "burst_in_nursery": burst_in_nursery,
    "odd": odd,
}


@asynccontextmanager
async def serving(path: Path, **more: Operation) -> AsyncIterator[ControlClient]:
    server = ControlServer(path, lambda _: {**OPERATIONS, **more})
    listener = server.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, listener)
        yield ControlClient(path, reply_timeout=5, idle_timeout=5)
        nursery.cancel_scope.cancel()


async def in_thread(call: Callable[[], T]) -> T:
    with trio.fail_after(20):
        return await trio.to_thread.run_sync(call)


async def refused(client: ControlClient, op: str, **args: Any) -> DaemonRefused:
    def ask() -> DaemonRefused:
        with pytest.raises(DaemonRefused) as caught:
            client.call(op, **args)
        return caught.value

    return await in_thread(ask)


def talk(path: Path, *pieces: bytes, shut: bool = True) -> bytes:
    """Send raw bytes, and return all that comes back."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        raw.settimeout(5)
        raw.connect(os.fspath(path))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                raw.sendall(piece)
            if shut:
                raw.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := raw.recv(65536):
                answer += chunk
        return answer


def error_of(answer: bytes) -> dict[str, str]:
    error: dict[str, str] = json.loads(answer)["error"]
    return error


# ---- requests


async def test_a_request_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as client:
        asked = {"keys": ["hg38/fasta"], "text": "ümläut \udce4", "number": 1.5, "none": None}
        assert await in_thread(lambda: client.call("echo", **asked)) == asked
        assert await in_thread(lambda: client.call("echo")) == {}


async def test_progress_comes_before_the_result(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as client:
        events = await in_thread(lambda: list(client.stream("count", to=3)))
    assert events == [Told({"step": 0}), Told({"step": 1}), Told({"step": 2}), Result("done")]


async def test_errors_carry_their_class_and_text(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as client:
        error = await refused(client, "absent")
    assert (error.kind, error.message) == ("NotInCatalog", "no source has a genome 'hg99'")


async def test_errors_come_out_of_a_nursery_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Operations that tell how they go have a nursery; people must not see groups of exceptions."""
    async with serving(tmp_path / "s") as client:
        error = await refused(client, "burst_in_nursery")
    assert (error.kind, error.message) == ("NotInCatalog", "no source has a genome 'hg99'")
    assert caplog.records == []


async def test_an_unexpected_failure_is_told_logged_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "s") as client:
        error = await refused(client, "burst")
        assert error.kind == "ZeroDivisionError"
        assert "unexpected: a defect" in error.message
        assert await in_thread(lambda: client.call("echo", a=1)) == {"a": 1}
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"]


async def test_a_result_that_is_no_json_is_an_error_not_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "s") as client:
        assert (await refused(client, "odd")).kind == "TypeError"
        assert await in_thread(lambda: client.call("echo", a=1)) == {"a": 1}
    assert "unexpectedly" in caplog.text


async def test_an_unknown_operation_is_told_which_there_are(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as client:
        error = await refused(client, "explode")
    assert error.kind == "ControlError"
    assert "no operation 'explode'" in error.message
    assert "absent, burst, burst_in_nursery, count, echo" in error.message


async def test_many_clients_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as client:
        results: list[Any] = []

        async def ask(number: int) -> None:
            results.append(await in_thread(lambda: client.call("echo", number=number)))

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(ask, number)
    assert sorted(result["number"] for result in results) == list(range(30))


# ---- what clients send


@pytest.mark.parametrize(
    "sent",
    [b"garbage\n", b"\xff\xfe\x00\n", b"{\n", b"\n", b"", b'{"op": "echo"', b"[" * 100_000 + b"\n", b"NaN" * 9],
    ids=["text", "binary", "brace", "empty line", "nothing", "half a line", "deep", "words"],
)
async def test_what_is_no_json_is_refused(tmp_path: Path, sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path / "s") as client:
        error = error_of(await in_thread(lambda: talk(tmp_path / "s", sent)))
        assert error["kind"] == "ControlError"
        assert "one line of JSON" in error["message"]
        assert await in_thread(lambda: client.call("echo", a=1)) == {"a": 1}
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("sent", [b"[]\n", b"7\n", b"null\n", b'"echo"\n'])
async def test_what_is_no_object_is_refused(tmp_path: Path, sent: bytes) -> None:
    async with serving(tmp_path / "s"):
        error = error_of(await in_thread(lambda: talk(tmp_path / "s", sent)))
    assert error["kind"] == "ControlError"
    assert "a request is an object" in error["message"]


@pytest.mark.parametrize(
    "sent", [b"{}\n", b'{"op": ["echo"]}\n', b'{"op": "echo", "args": []}\n', b'{"op": null, "args": {}}\n']
)
async def test_what_is_no_request_is_refused(tmp_path: Path, sent: bytes) -> None:
    async with serving(tmp_path / "s"):
        assert error_of(await in_thread(lambda: talk(tmp_path / "s", sent)))["kind"] == "ControlError"


async def test_a_request_may_come_in_pieces(tmp_path: Path) -> None:
    async with serving(tmp_path / "s"):
        answer = await in_thread(
            lambda: talk(tmp_path / "s", b'{"op": "ec', b'ho", "args": {"a"', b": 1}}\n more", shut=False)
        )
    assert json.loads(answer) == {"ok": {"a": 1}}


async def test_a_line_without_end_is_refused_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_DEADLINE", 0.05)
    async with serving(tmp_path / "s"):
        error = error_of(await in_thread(lambda: talk(tmp_path / "s", b'{"op": "ech', shut=False)))
    assert error["kind"] == "ControlError"


async def test_a_huge_line_is_not_taken_in(tmp_path: Path) -> None:
    sent = b'{"op": "echo", "args": {"a": "' + b"x" * (4 * LONGEST_REQUEST)
    async with serving(tmp_path / "s") as client:
        answer = await in_thread(lambda: talk(tmp_path / "s", sent))
        assert answer == b"" or error_of(answer)["kind"] == "ControlError"
        with pytest.raises(ControlError):
            await in_thread(lambda: client.call("echo", a="x" * (4 * LONGEST_REQUEST)))
        assert await in_thread(lambda: client.call("echo", a=1)) == {"a": 1}


async def test_a_visitor_s_request_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that answers the kernel parses it: one of 1 MiB takes 20 ms, and eight are under way."""
    long = b'{"op": "count", "args": {"to": 0, "x": [' + b"[]," * 30_000 + b"0]}}\n"
    async with serving(tmp_path / "s"):
        assert json.loads(await in_thread(lambda: talk(tmp_path / "s", long))) == {"ok": "done"}
        monkeypatch.setattr(control.Caller, "is_master", False)
        error = error_of(await in_thread(lambda: talk(tmp_path / "s", long)))
        assert error["kind"] == "ControlError"
        assert "at most 65,536 bytes" in error["message"]
        short = long.replace(b"[]," * 30_000, b"[]," * 20_000)
        assert json.loads(await in_thread(lambda: talk(tmp_path / "s", short))) == {"ok": "done"}


# ---- clients that go away


async def test_a_client_that_goes_away_in_the_middle_of_progress_ends_the_operation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    endless = Endless()
    async with serving(tmp_path / "s", endless=endless) as client:

        def leave_early() -> None:
            events = client.stream("endless")
            assert isinstance(next(events), Told)
            events.close()

        await in_thread(leave_early)
        with trio.fail_after(20):
            await endless.ended.wait()
        assert await in_thread(lambda: client.call("echo", a=1)) == {"a": 1}
    assert endless.running == 0
    assert caplog.records == []


async def test_a_client_that_does_not_read_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control, "SEND_DEADLINE", 0.05)
    endless = Endless()
    async with serving(tmp_path / "s", endless=endless):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
            raw.connect(os.fspath(tmp_path / "s"))
            raw.sendall(b'{"op": "endless"}\n')
            with trio.fail_after(20):
                await endless.ended.wait()
    assert caplog.records == []


async def test_a_client_that_only_connects_disturbs_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as client:
        assert await in_thread(client.is_alive)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
            raw.connect(os.fspath(tmp_path / "s"))
            assert await in_thread(lambda: client.call("echo", a=1)) == {"a": 1}


async def test_the_end_of_the_daemon_ends_requests_and_the_socket(tmp_path: Path) -> None:
    endless = Endless()
    outcomes: list[object] = []

    async def ask(client: ControlClient) -> None:
        def watch() -> object:
            try:
                return list(client.stream("endless"))
            except ControlError as exc:
                return exc

        outcomes.append(await in_thread(watch))

    async with trio.open_nursery() as nursery:
        async with serving(tmp_path / "s", endless=endless) as client:
            nursery.start_soon(ask, client)
            with trio.fail_after(20):
                while not endless.running:  # noqa: ASYNC110
                    await trio.sleep(0.001)
        assert not (tmp_path / "s").exists()
    assert isinstance(outcomes[0], ControlError)
    assert "ended before it answered" in str(outcomes[0])


# ---- the socket


async def test_the_socket_is_its_owners_only(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        async with serving(tmp_path / "s"):
            mode = (tmp_path / "s").stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
            assert os.umask(0) == 0  # what it was before
    finally:
        os.umask(previous)


async def test_a_dead_sockets_file_is_replaced(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(os.fspath(tmp_path / "s"))
    dead.close()
    with pytest.raises(NoDaemon):
        await in_thread(lambda: ControlClient(tmp_path / "s").call("echo"))
    async with serving(tmp_path / "s") as client:
        assert await in_thread(lambda: client.call("echo", a=1)) == {"a": 1}


async def test_a_live_one_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as client:
        with pytest.raises(ControlError, match=r"a daemon answers on .* already"):
            ControlServer(tmp_path / "s", lambda _: OPERATIONS).listen()
        assert await in_thread(lambda: client.call("echo", a=1)) == {"a": 1}


async def test_a_live_one_that_is_overrun_is_left_alone_too(tmp_path: Path) -> None:
    """Its queue of connections is full: that is no dead daemon."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(os.fspath(tmp_path / "s"))
        busy.listen(0)
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.connect(os.fspath(tmp_path / "s"))
            with pytest.raises(ControlError):
                ControlServer(tmp_path / "s", lambda _: OPERATIONS).listen()
            assert (tmp_path / "s").exists()


@pytest.mark.parametrize("place", ["missing/s", "file/s", "x" * 200])
async def test_a_place_that_cannot_be_used_is_said(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ControlError, match=r"can't listen on|too long for a socket"):
        ControlServer(tmp_path / place, lambda _: OPERATIONS).listen()
