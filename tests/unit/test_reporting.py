"""What the service manager is told while a daemon runs: a line for people, and that both loops go round."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from refgenfs.administration.parts import Daemon
from refgenfs.administration.reporting import Reporting, clock
from refgenfs.notify import ServiceManager

NOW = time.mktime((2026, 3, 4, 12, 30, 0, 0, 0, -1))


class Heard(ServiceManager):
    """Keeps what it is told."""

    def __init__(self, watchdog: float | None = None) -> None:
        super().__init__("@nobody", watchdog)
        self.messages: list[str] = []

    def _tell(self, *lines: str, fds: Any = ()) -> bool:
        self.messages.append("\n".join(lines))
        return True


def make_daemon(*sources: Any, failing: dict[str, Any] | None = None, uncached: bool = False) -> Any:
    genome = object()
    return SimpleNamespace(
        mountpoint="/genomes",
        catalog=SimpleNamespace(
            snapshot=SimpleNamespace(genomes={"hg38": genome, "d1": genome, "mm10": object()}),
            status=lambda: sources,
        ),
        store=SimpleNamespace(used=12 * 10**9, quota=200 * 10**9, uncached=uncached),
        fuse=SimpleNamespace(open_files=1),
        http=SimpleNamespace(failing=failing or {}),
    )


def source(name: str, since: float | None = None) -> Any:
    return SimpleNamespace(name=name, failing_since=since)


async def answers() -> None:
    await trio.lowlevel.checkpoint()


def reporting(daemon: Any, manager: ServiceManager, probe: Callable[[], Awaitable[None]] = answers) -> Reporting:
    return Reporting(manager, cast(Daemon, daemon), probe)


def test_the_line_is_for_people() -> None:
    daemon = make_daemon(source("public"), source("lab"))
    expected = "serving /genomes: 2 genomes; cache 12.0 GB of 200 GB; 1 file open"
    assert reporting(daemon, Heard()).sentence() == expected


def test_the_line_names_sources_that_are_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    failing = {"files": SimpleNamespace(when=NOW - 60)}
    daemon = make_daemon(source("lab", NOW - 1620), source("files"), source("public"), failing=failing, uncached=True)
    line = reporting(daemon, Heard()).sentence()
    assert line.endswith(
        "; the cache's disk refuses, reads go on without it; lab is away since 12:03; files is away since 12:29"
    )
    many = make_daemon(*(source(f"s{number}", NOW) for number in range(5)))
    assert reporting(many, Heard()).sentence().endswith("s2 is away since 12:30; 2 more are away")


def test_another_day_has_its_date() -> None:
    assert clock(NOW - 1620, NOW) == "12:03"
    assert clock(NOW - 86_400, NOW) == "03 Mar 12:30"


async def test_the_watchdog_is_fed_several_times_in_its_time(autojump_clock: MockClock) -> None:
    manager = Heard(watchdog=6.0)
    with trio.move_on_after(6.5):
        await reporting(make_daemon(), manager).run()
    assert manager.messages.count("WATCHDOG=1") == 4  # at 0, 2, 4 and 6 seconds
    assert sum(message.startswith("STATUS=") for message in manager.messages) == 1


async def test_the_watchdog_starves_when_a_loop_hangs(autojump_clock: MockClock) -> None:
    manager, hangs = Heard(watchdog=6.0), trio.Event()

    async def probe() -> None:
        if len(manager.messages) > 2:
            await hangs.wait()
        await trio.lowlevel.checkpoint()

    with trio.move_on_after(60):
        await reporting(make_daemon(), manager, probe).run()
    assert manager.messages.count("WATCHDOG=1") == 2


async def test_without_a_manager_nothing_is_asked(autojump_clock: MockClock) -> None:
    async def probe() -> None:
        raise AssertionError

    with trio.move_on_after(60) as scope:
        await reporting(make_daemon(), ServiceManager(), probe).run()
    assert scope.cancelled_caught
