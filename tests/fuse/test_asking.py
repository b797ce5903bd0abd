"""What a daemon that serves everybody tells whom: the control socket, asked by real users.

Promises:
- every user may ask what there is and how it is, and have what they may read pulled;
- what binds or takes from others is refused to all but root and the daemon's user, in one line that says so;
- of sources that a user may not read, of other users and of their requests, nothing is told;
- a user's open connections are bounded, and those who are slow are given up: others are answered meanwhile;
- a daemon whose mount is its user's alone answers nobody else.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refgenfs.cli.connection import running
from refgenfs.control import USERS_CONNECTIONS
from refgenfs.control_client import ControlClient, DaemonRefused, NotAllowed
from refgenfs.paths import socket_path
from tests.fuse.test_access import ANN, BOB, CLINIC, DATA, EVE, LAB, NONE, RULES, source
from tests.support.mounted import Mounted, Setup
from tests.support.ticketing import TicketServer, inline, served

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_root]

REFUSED = {
    "pin": {"keys": ["hg38/open"]},
    "unpin": {"keys": ["hg38/open"]},
    "pins": {},
    "evict": {"keys": ["hg38/open"]},
    "cache_verify": {},
    "cache_clear": {},
    "reload": {},
    "stop": {},
}


@contextlib.contextmanager
def acting_as(uid: int, gid: int = NONE, groups: tuple[int, ...] = ()) -> Iterator[None]:
    """Be somebody else for a while, as far as the kernel goes by effective numbers."""
    before = os.getgroups(), os.getegid()
    os.setgroups(list(groups))
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(before[1])
        os.setgroups(before[0])


@pytest.fixture(scope="module")
def mounted() -> Iterator[Mounted]:
    folder = Path(tempfile.mkdtemp(prefix="rgfs-asking-"))
    folder.chmod(0o755)
    try:
        server = TicketServer()
        with served(server):
            server.tickets["a"] = lambda request, body: [{"url": inline(DATA)}]
            sources = "".join(source(server, name, f"hg38/{name}", rule) for name, rule in RULES.items())
            sources += source(server, "alone", "secret/x", RULES["users"])
            with Setup(folder, sources, extra="allow_other = true").mount() as running:
                yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def client_of(mounted: Mounted) -> ControlClient:
    return ControlClient(socket_path(mounted.path, mounted.environ, 0), mountpoint=mounted.path, idle_timeout=20)


def ask(mounted: Mounted, uid: int, op: str, gid: int = NONE, groups: tuple[int, ...] = (), **args: Any) -> Any:
    with acting_as(uid, gid, groups):
        return client_of(mounted).call(op, **args)


def refusal(mounted: Mounted, uid: int, op: str, **args: Any) -> DaemonRefused:
    with pytest.raises(DaemonRefused) as caught:
        ask(mounted, uid, op, **args)
    assert "\n" not in caught.value.message
    return caught.value


def test_the_socket_is_for_all_where_the_mount_is(mounted: Mounted) -> None:
    path = socket_path(mounted.path, mounted.environ, 0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    with acting_as(EVE):
        found = running(mounted.environ, EVE)
    assert [client.mountpoint for client in found] == [mounted.path]


@pytest.mark.parametrize("op", REFUSED)
def test_what_is_for_root_alone_is_refused_in_one_line(mounted: Mounted, op: str) -> None:
    error = refusal(mounted, EVE, op, **REFUSED[op])
    assert error.kind == "NotAllowed"
    assert error.message.startswith("only root or the daemon's user may ")
    assert mounted.process.poll() is None


def test_every_operation_is_either_open_or_refused(mounted: Mounted) -> None:
    """One that is added must be put on one side on purpose; until it is, it is refused."""
    known = refusal(mounted, EVE, "no such").message.partition("knows: ")[2].split(", ")
    open_to_all = {
        "explain",
        "id",
        "info",
        "list",
        "metrics",
        "pull",
        "seek",
        "status",
        "ticket",
        "trace",
        "cache_info",
    }
    assert set(known) == open_to_all | REFUSED.keys()


def test_questions_of_what_one_may_read(mounted: Mounted) -> None:
    key = "hg38/open"
    assert ask(mounted, EVE, "seek", key=key)["path"].startswith(str(mounted.path))
    assert ask(mounted, EVE, "info", key=key)["source"] == "open"
    assert ask(mounted, EVE, "id", key=key) == mounted.call("id", key=key)
    assert ask(mounted, EVE, "explain", path="hg38/open/a.bam")["files"][0]["size"] == len(DATA)
    assert ask(mounted, EVE, "pull", keys=[key])["keys"][0]["bytes"] == len(DATA)
    assert ask(mounted, ANN, "info", gid=CLINIC, key="hg38/both")["source"] == "both"
    assert ask(mounted, BOB, "info", groups=(LAB,), key="hg38/group")["source"] == "group"


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("info", {"key": "hg38/group"}),
        ("seek", {"key": "hg38/group"}),
        ("id", {"key": "hg38/group"}),
        ("explain", {"key": "hg38/group"}),
        ("explain", {"path": "hg38/group/a.bam"}),
        ("explain", {"path": "hg38/group/nothing"}),
        ("explain", {"path": "hg38/group/default/a.bam"}),
        ("pull", {"keys": ["hg38/open", "hg38/group"]}),
        ("ticket", {"key": "hg38/group"}),
        ("list", {"genome": "secret"}),
    ],
)
def test_nothing_of_sources_that_one_may_not_read(mounted: Mounted, op: str, args: dict[str, Any]) -> None:
    error = refusal(mounted, ANN, op, **args)
    assert error.kind == "NotAllowed"
    assert "that you may not read" in error.message
    assert "a.bam" not in error.message


def test_lists_have_what_one_may_read(mounted: Mounted) -> None:
    def assets(uid: int, **who: Any) -> set[str]:
        return {row["asset"] for row in ask(mounted, uid, "list", genome="hg38", **who)["assets"]}

    assert assets(0) == set(RULES)
    assert assets(EVE) == {"open", "users", "one"}
    assert assets(BOB, groups=(LAB,)) == {"open", "users", "group", "both"}
    assert assets(ANN, gid=CLINIC) == {"open", "both"}
    genomes = {row["name"]: row["assets"] for row in ask(mounted, ANN, "list")["genomes"]}
    assert genomes == {"hg38": 2}, "a genome of which one may read nothing is not named"


def test_status_and_metrics_are_of_what_one_may_know(mounted: Mounted) -> None:
    for uid in (EVE, ANN):
        with acting_as(uid):
            assert (mounted.path / "hg38/open/a.bam").read_bytes() == DATA
    status = ask(mounted, ANN, "status")
    assert {row["name"] for row in status["sources"]} == {"open", "both"}
    assert [row["uid"] for row in status["users"]] == [ANN]
    assert status["served"] >= len(DATA), "the second may have had it from the kernel's pages"
    assert {row["uid"] for row in mounted.status()["users"]} >= {EVE, ANN}
    text = ask(mounted, ANN, "metrics")["text"]
    assert 'source="open"' in text
    for name in RULES.keys() - {"open", "both"}:
        assert f'source="{name}"' not in text
    assert json.dumps(status).count("group") == 0


def test_the_cache_s_list_is_of_what_one_may_read(mounted: Mounted) -> None:
    with acting_as(EVE):
        for name in ("open", "one"):
            assert (mounted.path / f"hg38/{name}/a.bam").read_bytes() == DATA

    def keys(uid: int) -> set[str]:
        return {row["key"] for row in ask(mounted, uid, "cache_info")["contents"] if row["resident"]}

    ask(mounted, EVE, "pull", keys=["hg38/one"])
    assert {"hg38/one:default"} <= keys(0)
    assert "hg38/one:default" not in keys(ANN)


def test_one_follows_one_s_own_requests_alone(mounted: Mounted) -> None:
    told: list[dict[str, Any]] = []

    def follow() -> None:
        for event in client.stream("trace", seconds=3):
            if hasattr(event, "fields"):
                told.extend(event.fields["events"])

    with acting_as(ANN):
        client = client_of(mounted)
        thread = threading.Thread(target=follow)
        thread.start()
        time.sleep(0.5)
    for uid in (EVE, ANN):
        with acting_as(uid):
            assert (mounted.path / "hg38/open/a.bam").stat().st_size
            mounted.path.joinpath("hg38/open/a.bam").read_bytes()
    thread.join(20)
    opened = {event["uid"] for event in told if event["operation"] == "open"}
    assert opened == {ANN}


def test_one_user_s_connections_keep_nobody_from_asking(mounted: Mounted) -> None:
    path = os.fspath(socket_path(mounted.path, mounted.environ, 0))
    held = []
    try:
        with acting_as(EVE):
            for _ in range(300):
                one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                one.settimeout(5)
                one.connect(path)
                held.append(one)
        error = refusal(mounted, EVE, "status")
        assert "too many requests under way" in error.message
        assert ask(mounted, ANN, "status")["state"] == "mounted"
        assert mounted.status()["state"] == "mounted"
        fds = len(os.listdir(f"/proc/{mounted.process.pid}/fd"))
        assert fds < 200 + USERS_CONNECTIONS
    finally:
        for one in held:
            one.close()
    deadline = time.monotonic() + 20
    while True:
        try:
            assert ask(mounted, EVE, "status")["state"] == "mounted"
            return
        except DaemonRefused:
            assert time.monotonic() < deadline, "connections that are gone count still"
            time.sleep(0.1)


def test_a_daemon_for_its_user_alone_answers_nobody_else(tmp_path: Path) -> None:
    server = TicketServer()
    with served(server):
        server.tickets["a"] = lambda request, body: [{"url": inline(DATA)}]
        with Setup(tmp_path, source(server, "open", "hg38/open", "")).mount() as mounted:
            path = socket_path(mounted.path, mounted.environ, 0)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            path.parent.chmod(0o755)
            with acting_as(EVE), pytest.raises(NotAllowed, match="belongs to another user"):
                client_of(mounted).call("status")
            assert mounted.status()["state"] == "mounted"
