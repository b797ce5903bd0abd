"""`refgenfs trace` on real mounts: who reads what, and what it waits for, while it waits."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.world import ALIAS, Held, Site, make_site
from tests.support.faulty_origin import Fault
from tests.support.mounted import Mounted

pytestmark = pytest.mark.needs_fuse

Event = dict[str, Any]


class Trace:
    """A `refgenfs trace` that runs, and its lines."""

    def __init__(self, mounted: Mounted, *options: str) -> None:
        environ = {**mounted.environ, "REFGENFS_CONFIG": str(mounted.config)}
        command = ["timeout", "-s", "KILL", "60", sys.executable, "-m", "refgenfs", "trace", "--json", *options]
        self.process = subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.events: list[Event] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def until(self, wanted: Callable[[Event], bool], seconds: float = 20) -> Event:
        """Return the first event that is wanted, of those to come or that came."""
        deadline = time.monotonic() + seconds
        for known in self.events:
            if wanted(known):
                return known
        while True:
            try:
                event: Event = json.loads(self._lines.get(timeout=max(0.01, deadline - time.monotonic())))
            except queue.Empty:
                raise AssertionError(f"nothing of the kind came: {self.events}") from None
            self.events.append(event)
            if wanted(event):
                return event

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)
        self._reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def following(site: Site, *options: str) -> Iterator[Trace]:
    """Follow a daemon, from when it knows of it."""
    trace = Trace(site.m, *options)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:  # an open is told of: it is answered by the daemon each time
            site.m.run("cat", str(site.m.path / ALIAS / "one" / "d.empty"))
            try:
                trace.until(lambda event: event["path"].endswith("d.empty"), 0.5)
            except AssertionError:
                continue
            break
        yield trace
    finally:
        trace.end()


@pytest.fixture(params=[True, False], ids=["ranges", "archive"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path, ["one", "two"], remotes=request.param) as made, made.mount():
        yield made


def test_who_reads_what_and_whether_it_had_to_wait(site: Site) -> None:
    with following(site) as trace:
        file = str(site.m.path / ALIAS / "two" / "a.big")
        for _ in range(2):
            site.m.run("dd", f"if={file}", "of=/dev/null", "bs=65536", "count=1", "skip=2", "iflag=direct")
        first = trace.until(lambda event: event["operation"] == "read" and event["path"] == f"/{ALIAS}/two/a.big")
        assert (first["offset"], first["size"], first["command"]) == (131072, 65536, "dd")
        assert first["uid"] == os.getuid()
        assert first["pid"] > 0
        assert first["over"]
        assert "from origin" in first["waits_for"]
        second = trace.until(lambda event: event["operation"] == "read" and event["pid"] != first["pid"])
        assert (second["waits_for"], second["error"]) == ("", "")
        opened = [event for event in trace.events if event["operation"] == "open" and event["pid"] == first["pid"]]
        assert opened[0]["path"] == first["path"]


def test_a_wait_is_told_of_while_it_lasts_and_why(tmp_path: Path) -> None:
    with make_site(tmp_path, ["one", "two"], remotes=True) as site:
        site.setup.limits = {"retry_for": "60s", "read_deadline": "60s"}
        with site.mount() as mounted, following(site, "--waits") as trace:
            path = str(mounted.path / ALIAS / "two" / "a.big")
            with Held(path) as held:
                site.origin.faults = [Fault("status", site.bytes_glob("two"), None, value=503)]
                reading = threading.Thread(target=held.read, args=(0, 65536), daemon=True)
                reading.start()
                waits = trace.until(lambda event: not event["over"] and event["operation"] == "read")
                assert waits["path"] == f"/{ALIAS}/two/a.big"
                assert waits["seconds"] >= 1
                assert "by range, from origin" in waits["waits_for"]
                assert "503" in waits["trouble"]
                site.reset()
                ended = trace.until(lambda event: event["over"] and event["operation"] == "read", 60)
                assert (ended["error"], ended["seconds"] > 1) == ("", True)
                reading.join(60)


def test_a_read_that_hung_before_anybody_followed_is_told_of(tmp_path: Path) -> None:
    with make_site(tmp_path, ["one", "two"], remotes=True) as site:
        site.setup.limits = {"retry_for": "60s", "read_deadline": "60s"}
        with site.mount() as mounted, Held(str(mounted.path / ALIAS / "two" / "a.big")) as held:
            site.origin.faults = [Fault("status", site.bytes_glob("two"), None, value=503)]
            reading = threading.Thread(target=held.read, args=(0, 65536), daemon=True)
            reading.start()
            trace = Trace(mounted)
            try:
                waits = trace.until(lambda event: not event["over"])
                assert waits["path"] == f"/{ALIAS}/two/a.big"
            finally:
                trace.end()
                site.reset()
                reading.join(60)


def test_it_ends_by_itself_and_is_for_people(site: Site) -> None:
    done = site.m.refgenfs("trace", "--for", "0.5")
    assert (done.returncode, done.stdout) == (0, "")
    with following(site) as trace:
        trace.end()
        assert trace.process.returncode == 0
        site.read_right("one")
    lines = subprocess.Popen(
        ["timeout", "-s", "KILL", "60", sys.executable, "-m", "refgenfs", "trace", "--for", "6"],
        env={**site.m.environ, "REFGENFS_CONFIG": str(site.m.config)},
        stdout=subprocess.PIPE,
        text=True,
    )
    while lines.poll() is None:
        site.drop_pages("one")
        site.read_right("one")
        time.sleep(0.2)
    assert lines.stdout is not None
    text = lines.stdout.read()
    lines.stdout.close()
    assert lines.returncode == 0
    assert f"/{ALIAS}/one/a.big" in text
    assert "warm" in text
