"""What a service manager is told, on a real socket, and what it hands over.

Promises: every message is one datagram of lines; a status is said again only when it changes; no manager, or one
that does not listen, is no reason to fail; of descriptors that are handed over the newest counts, and older ones are
closed.
"""

from __future__ import annotations

import array
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from refgenfs import notify
from refgenfs.notify import ServiceManager, handed_over


@dataclass
class Manager:
    """The manager's end of the socket."""

    address: str
    channel: socket.socket

    def ours(self, **environ: str) -> ServiceManager:
        return ServiceManager.of({"NOTIFY_SOCKET": self.address, **environ}, os.getpid())

    def heard(self) -> list[str]:
        return self.channel.recv(4096).decode().split("\n")

    def is_quiet(self) -> bool:
        self.channel.setblocking(False)
        try:
            self.channel.recv(4096)
        except BlockingIOError:
            return True
        return False


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@refgenfs-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(address if request.param == "path" else f"\0{address[1:]}")
        channel.settimeout(5)
        yield Manager(address, channel)


def test_a_start_a_reload_and_an_end(manager: Manager) -> None:
    ours = manager.ours()
    assert ours.listens
    ours.extend(20, "waiting for a first catalog")
    assert manager.heard() == ["EXTEND_TIMEOUT_USEC=20000000", "STATUS=waiting for a first catalog"]
    ours.ready("serving /genomes:\n 2 genomes")
    assert manager.heard() == ["READY=1", "STATUS=serving /genomes: 2 genomes"]
    ours.reloading()
    word, stamp = manager.heard()
    assert word == "RELOADING=1"
    assert int(stamp.removeprefix("MONOTONIC_USEC=")) > 0
    ours.alive()
    assert manager.heard() == ["WATCHDOG=1"]
    ours.stopping("unmounting")
    assert manager.heard() == ["STOPPING=1", "STATUS=unmounting"]


def test_a_status_is_said_when_it_changes(manager: Manager) -> None:
    ours = manager.ours()
    ours.ready("one")
    manager.heard()
    ours.status("one")
    ours.status("two")
    ours.status("two")
    assert manager.heard() == ["STATUS=two"]
    assert manager.is_quiet()


def test_a_descriptor_is_kept_and_dropped(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = manager.ours()
    ends = os.pipe()
    monkeypatch.setattr(notify, "TAKEN_TIMEOUT", 0.05)  # nobody takes the barrier away here
    assert not ours.keep("fuse", ends[0])
    size = array.array("i").itemsize
    text, rights, *_ = manager.channel.recvmsg(4096, socket.CMSG_SPACE(size))
    assert text.decode().split("\n") == ["FDSTORE=1", "FDNAME=fuse"]
    received = array.array("i", rights[0][2])[0]
    assert os.fstat(received).st_ino == os.fstat(ends[0]).st_ino
    barrier, rights, *_ = manager.channel.recvmsg(4096, socket.CMSG_SPACE(size))
    assert barrier == b"BARRIER=1"
    for fd in (*ends, received, array.array("i", rights[0][2])[0]):
        os.close(fd)
    ours.drop("fuse")
    assert manager.heard() == ["FDSTOREREMOVE=1", "FDNAME=fuse"]


def test_the_watchdog_is_for_the_process_that_is_named(manager: Manager) -> None:
    assert manager.ours().watchdog is None
    assert manager.ours(WATCHDOG_USEC="30000000").watchdog == 30
    assert manager.ours(WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid())).watchdog == 30
    assert manager.ours(WATCHDOG_USEC="30000000", WATCHDOG_PID="1").watchdog is None
    assert manager.ours(WATCHDOG_USEC="soon").watchdog is None
    assert manager.ours(WATCHDOG_USEC="0").watchdog is None


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234"])
def test_without_a_manager_nothing_is_said(address: str) -> None:
    ours = ServiceManager.of({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"}, os.getpid())
    assert not ours.listens
    assert ours.watchdog is None
    ours.ready("fine")
    assert not ours.keep("fuse", 0)


def test_a_manager_that_went_away_is_no_reason_to_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = ServiceManager.of({"NOTIFY_SOCKET": str(tmp_path / "gone")}, os.getpid())
    with caplog.at_level(logging.WARNING):
        ours.ready("fine")
    assert "isn't told READY=1: No such file or directory" in caplog.text


def test_the_newest_descriptor_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = os.pipe()
    monkeypatch.setattr(notify, "FIRST_FD", ends[0])
    assert ends[1] == ends[0] + 1
    os.set_inheritable(ends[1], True)
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "fuse:fuse"}
    try:
        assert handed_over({**environ, "LISTEN_PID": "1"}, os.getpid(), "fuse") is None
        assert handed_over(environ, os.getpid(), "other") is None
        assert handed_over({}, os.getpid(), "fuse") is None
        assert handed_over(environ, os.getpid(), "fuse") == ends[1]
        assert not os.get_inheritable(ends[1])
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(ends[0])
    finally:
        os.close(ends[1])
