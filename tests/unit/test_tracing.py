"""Who follows requests: bounded, and nothing while nobody does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from refgenfs import tracing
from refgenfs.core.content import FileFacts, InlineData
from refgenfs.core.errors import ControlError
from refgenfs.core.readahead import Window
from refgenfs.fuse import Operations
from refgenfs.reader.flights import FlightBoard
from refgenfs.reader.reader import OpenFile, Reader
from refgenfs.tracing import Event, Follower, Handle, Tracing
from refgenfs.tree import Tree

FACTS = FileFacts("c" * 40, 10, 0.0, InlineData(b"0123456789"), "lab", "inline")


def event(operation: str = "read") -> Event:
    return Event(0.0, 1, "cat", 0, operation, "/a")


def open_tracing() -> Tracing:
    tree = SimpleNamespace(inode=lambda number: SimpleNamespace(node=None), path_of=lambda number: f"/{number}")
    file = OpenFile(FACTS, None, None, Window(10))
    return Tracing(cast(Tree, tree), {7: Handle(file, 1, 1000, 5)})


def test_what_nobody_takes_is_counted_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MOST_EVENTS", 3)
    follower = Follower()
    for _ in range(5):
        follower.tell(event())
    events, dropped = follower.take()
    assert (len(events), dropped) == (3, 2)
    assert follower.take() == ([], 0)


def test_it_is_on_while_somebody_follows() -> None:
    found, board = open_tracing(), FlightBoard()
    states = [found.on]
    with found.follow(board) as first:
        with found.follow(board) as second:
            found.end(event(), 0.5, "")
            assert [len(one.take()[0]) for one in (first, second)] == [1, 1]
        states.append(found.on)
    states.append(found.on)
    assert states == [False, True, False]


def test_only_so_many_follow() -> None:
    found, board = open_tracing(), FlightBoard()
    contexts = [found.follow(board) for _ in range(tracing.MOST_FOLLOWERS)]
    for one in contexts:
        one.__enter__()
    with pytest.raises(ControlError, match="follow already"), found.follow(board):
        pass
    for one in contexts:
        one.__exit__(None, None, None)
    assert not found.on


def test_a_read_is_of_who_opened_the_file() -> None:
    found = open_tracing().begin("read", (7, 4, 100))
    assert found is not None
    assert (found.pid, found.uid, found.path, found.source) == (1, 1000, "/5", "lab")
    assert (found.offset, found.size, found.waits_for) == (4, 100, "")


def test_what_is_not_known_is_not_told_of() -> None:
    found = open_tracing()
    assert found.begin("read", (8, 0, 1)) is None
    assert found.begin("getxattr", (1, b"user.x", None)) is None


def test_a_defect_in_it_is_logged_and_hinders_no_request(caplog: pytest.LogCaptureFixture) -> None:
    assert open_tracing().begin("read", ("too", "few")) is None
    assert "can't be told of" in caplog.text
    caplog.clear()


def test_names_are_told_of_where_they_took_long() -> None:
    found = open_tracing()
    with found.follow(FlightBoard()) as follower:
        found.end(event("lookup"), tracing.LONG / 2, "")
        found.end(event("lookup"), tracing.LONG * 2, "")
        found.end(event("open"), 0.0, "")
        assert [one["operation"] for one in follower.take()[0]] == ["lookup", "open"]


async def test_requests_touch_nothing_while_nobody_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    operations = Operations(cast(Tree, None), cast(Reader, None), lambda _: {}, lambda: (0, 0))

    def never(*_: Any) -> None:
        raise AssertionError("nobody follows")

    monkeypatch.setattr(operations.tracing, "begin", never)
    monkeypatch.setattr(operations.tracing, "end", never)
    await operations.release(1)
    assert operations.timings["release"].count == 1
