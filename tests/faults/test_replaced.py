"""An object that is replaced while it is read by byte ranges: in order, at random, mapped; by one reader and by four.

Whatever happens at the origin, every byte that one open file gives is of the version that it was opened with, or
the read fails with ESTALE or EIO (a mapping: SIGBUS); and who opens the file again reads the new version.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from refgenfs.demo.replies import Ask, Inline, Reply
from tests.faults.world import (
    ALIAS,
    BLOCK,
    PROBE,
    Site,
    assert_log_is_clean,
    make_site,
    noise,
)
from tests.support.faulty_origin import Fault
from tests.support.recorded import wait_until_recorded

pytestmark = pytest.mark.needs_fuse

SIZE = 56 * BLOCK + 4321  # 7 MiB: several windows
OLD, NEW = noise("old version", SIZE), noise("new version", SIZE)
How = Literal["sequential", "random", "mapped"]
HOWS: tuple[How, ...] = ("sequential", "random", "mapped")
NAME = "a.big"


class Lever:
    """What the origin has of the one file: as headers and bytes, to be thrown at any moment."""

    def __init__(self, site: Site) -> None:
        self.body = OLD
        self.etag: str | None = '"old"'
        self.modified: str | None = "Tue, 01 Jul 2025 10:00:00 GMT"
        self.gets = 0
        self.throw: Callable[[Lever, int], None] = lambda _lever, _number: None  # before the answer to each GET
        self.bend: Callable[[Lever, Ask, Reply], Reply] = lambda _lever, _ask, reply: reply
        self.pause = 0.0  # seconds before an answer: requests are in flight together
        self._lock = threading.Lock()
        site.origin.scripts[f"*/{NAME}"] = self._answer

    def put_new(self) -> None:
        """Replace the object, as most hosts do: another ETag, another date."""
        self.body, self.etag, self.modified = NEW, '"new"', "Wed, 02 Jul 2025 10:00:00 GMT"

    def _answer(self, ask: Ask, reply: Reply) -> Reply:
        reply.body.close()
        if ask.method == "GET":
            with self._lock:
                self.gets += 1
                self.throw(self, self.gets)
            time.sleep(self.pause)
        return self.bend(self, ask, self.plain(ask))

    def plain(self, ask: Ask) -> Reply:
        """Answer as a right host does."""
        body, headers = self.body, {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if self.etag is not None:
            headers["ETag"] = self.etag
        if self.modified is not None:
            headers["Last-Modified"] = self.modified
        span, condition = ask.headers.get("range"), ask.headers.get("if-range")
        if span is None or condition not in (None, self.etag):
            return Reply(200, headers, Inline(body))
        first, _, last = span.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1, len(body))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
        return Reply(206, headers, Inline(body[start:stop]))


@contextmanager
def levered(folder: Path) -> Iterator[tuple[Site, Lever]]:
    with make_site(folder, remotes=True) as site:
        site.world.add("one", {NAME: OLD, "other": noise("other", 5000)})
        yield site, Lever(site)


def read_through(
    site: Site, how: How, readers: int, after: Callable[[], object] | None = None
) -> list[dict[str, Any]]:
    """Have processes read the file through one open file each; return what each found, against both versions."""
    site.setup.folder.joinpath("old").write_bytes(OLD)
    site.setup.folder.joinpath("new").write_bytes(NEW)
    path = f"{site.m.path}/{ALIAS}/one/{NAME}"
    words = ["timeout", "-s", "KILL", "60", sys.executable, str(PROBE), "versions", how, path]
    words += [str(site.setup.folder / "old"), str(site.setup.folder / "new")]
    processes = [
        subprocess.Popen([*words, str(seed)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        for seed in range(readers)
    ]
    if after is not None:
        after()
    found = []
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0, (process.returncode, site.tail())
        found.append(json.loads(output))
    return found


def assert_one_version_each(found: list[dict[str, Any]], site: Site) -> None:
    for one in found:
        assert one["neither"] == 0, (one, site.tail())
        assert min(one["old"], one["new"]) == 0, (one, site.tail())
        assert set(one["errors"]) <= {"ESTALE", "EIO", "SIGBUS"}, (one, site.tail())


def assert_the_next_open_is_new(site: Site, body: bytes = NEW) -> None:
    """At once, without another try, and once more after a restart."""
    for _ in range(2):
        (found,) = read_through(site, "sequential", 1)
        right = "new" if body is NEW else "old"
        assert (found[right], found["errors"], found["neither"]) == (len(body), {}, 0), (found, site.tail())
    assert_log_is_clean(site.m)


# --- one event in the middle of a read ----------------------------------------------------------------------


def _replaced(lever: Lever, number: int, at: int) -> None:
    if number == at:
        lever.put_new()


@pytest.mark.parametrize("readers", [4])
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("at", [1, 3])
def test_replaced_before_the_nth_answer(tmp_path: Path, how: How, readers: int, at: int) -> None:
    """1: between the HEAD and the first GET; 3: while windows of several ranges are in flight."""
    with levered(tmp_path) as (site, lever), site.mount() as m:
        m.run("ls", "-l", f"{m.path}/{ALIAS}/one")
        lever.pause = 0.03
        lever.throw = lambda lever, number: _replaced(lever, number, at)
        found = read_through(site, how, readers)
        assert lever.body is NEW
        assert_one_version_each(found, site)
        assert any(one["errors"] for one in found), found
        assert_the_next_open_is_new(site)
    with site.mount():
        assert_the_next_open_is_new(site)


@pytest.mark.parametrize("how", HOWS)
def test_only_a_date_tells_the_versions_apart(tmp_path: Path, how: How) -> None:
    with levered(tmp_path) as (site, lever), site.mount():
        lever.etag = None

        def replace_it(lever: Lever, number: int) -> None:
            if number == 3:
                lever.body, lever.modified = NEW, "Tue, 01 Jul 2025 10:00:01 GMT"

        lever.throw = replace_it
        found = read_through(site, how, 2)
        assert_one_version_each(found, site)
        assert_the_next_open_is_new(site)


@pytest.mark.parametrize("dated", [False, True], ids=["alone", "with-a-date"])
def test_only_a_weak_etag_tells_the_versions_apart(tmp_path: Path, dated: bool) -> None:
    """The date is the same: replaced within the second."""
    with levered(tmp_path) as (site, lever), site.mount():
        lever.etag = 'W/"old"'
        lever.modified = lever.modified if dated else None

        def replace_it(lever: Lever, number: int) -> None:
            if number == 3:
                lever.body, lever.etag = NEW, 'W/"new"'

        lever.throw = replace_it
        found = read_through(site, "sequential", 2)
        assert_one_version_each(found, site)
        assert_the_next_open_is_new(site)


# --- hosts that answer from two versions --------------------------------------------------------------------


@pytest.mark.parametrize("how", HOWS)
def test_a_host_whose_servers_have_two_versions(tmp_path: Path, how: How) -> None:
    """Every other answer is of the other version; then the host is of one mind."""
    with levered(tmp_path) as (site, lever), site.mount():

        def alternate(lever: Lever, number: int) -> None:
            if number % 2:
                lever.body, lever.etag = OLD, '"old"'
            else:
                lever.body, lever.etag = NEW, '"new"'

        lever.throw = alternate
        for _ in range(2):
            assert_one_version_each(read_through(site, how, 2), site)
        lever.throw = lambda _lever, _number: None
        lever.put_new()
        read_through(site, "sequential", 1)  # may find that what was known is stale
        assert_the_next_open_is_new(site)


def _other_etag(lever: Lever, _ask: Ask, reply: Reply) -> Reply:
    return _newer(reply, {"ETag": '"new"'})


def _no_etag(lever: Lever, _ask: Ask, reply: Reply) -> Reply:
    reply = _newer(reply, {})
    del reply.headers["ETag"]
    return reply


def _other_total(lever: Lever, _ask: Ask, reply: Reply) -> Reply:
    span = reply.headers["Content-Range"].partition("/")[0]
    return _newer(reply, {"Content-Range": f"{span}/{SIZE + 1}"})


def _total_unknown(lever: Lever, _ask: Ask, reply: Reply) -> Reply:
    span = reply.headers["Content-Range"].partition("/")[0]
    return _newer(reply, {"Content-Range": f"{span}/*"})


def _other_place(lever: Lever, _ask: Ask, reply: Reply) -> Reply:
    span = reply.headers["Content-Range"].removeprefix("bytes ").partition("/")[0]
    first, last = map(int, span.split("-"))
    return _newer(reply, {"Content-Range": f"bytes {first + BLOCK}-{last + BLOCK}/{SIZE}"})


def _newer(reply: Reply, headers: dict[str, str]) -> Reply:
    """Return a part's reply with the new version's bytes in it."""
    first = int(reply.headers["Content-Range"].removeprefix("bytes ").partition("-")[0])
    return Reply(206, {**reply.headers, **headers}, Inline(NEW[first : first + reply.body.size]))


@pytest.mark.parametrize("readers", [4])
@pytest.mark.parametrize("bend", [_other_etag, _no_etag, _other_total, _total_unknown, _other_place])
def test_a_part_of_another_version(tmp_path: Path, bend: Callable[[Lever, Ask, Reply], Reply], readers: int) -> None:
    """Answers 2 to 4 have bytes of the new version under a 206 that gives itself away; the rest are right."""
    with levered(tmp_path) as (site, lever), site.mount():

        def bend_some(lever: Lever, ask: Ask, reply: Reply) -> Reply:
            return bend(lever, ask, reply) if reply.status == 206 and 2 <= lever.gets <= 4 else reply

        lever.bend = bend_some
        found = read_through(site, "sequential", readers)
        assert lever.gets > 2
        assert_one_version_each(found, site)
        assert all(one["new"] == 0 for one in found), found
        lever.bend = lambda _lever, _ask, reply: reply
        assert_the_next_open_is_new(site, OLD)


@pytest.mark.parametrize("readers", [1, 4])
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("remotes", [False, True], ids=["archive", "ranges"])
def test_a_tag_that_is_rebuilt_while_it_is_read(tmp_path: Path, how: How, readers: int, remotes: bool) -> None:
    """Files, archive and catalog change while half of the old archive is on its way."""
    with make_site(tmp_path, remotes=remotes) as site:
        site.world.add("one", {NAME: OLD})
        glob = site.bytes_glob("one")
        site.origin.faults = [Fault("stall", glob, after=SIZE // 3)]
        with site.mount() as m:

            def rebuild() -> None:
                time.sleep(0.3)  # they read, and then wait
                site.world.add("one", {NAME: NEW}, version="2")
                m.call("reload")

            found = read_through(site, how, readers, after=rebuild)
            assert_one_version_each(found, site)
            assert_the_next_open_is_new(site)
        with site.mount():
            assert_the_next_open_is_new(site)


@pytest.mark.parametrize("readers", [4])
@pytest.mark.parametrize("how", HOWS)
def test_an_archive_that_is_replaced_while_it_is_read(tmp_path: Path, how: How, readers: int) -> None:
    """The object behind the catalog's entry changes, the catalog does not; the stream breaks and is taken up."""
    with make_site(tmp_path) as site:
        site.world.add("one", {NAME: OLD})
        site.origin.faults = [Fault("stall", site.bytes_glob("one"), after=SIZE // 3)]
        with site.mount() as m:

            def put_new() -> None:
                time.sleep(0.3)
                site.world.place("one", {NAME: NEW})

            found = read_through(site, how, readers, after=put_new)
            assert_one_version_each(found, site)
            site.world.add("one", {NAME: NEW}, version="2")
            m.call("reload")
            assert_the_next_open_is_new(site)


def test_the_very_next_open_is_of_the_new_version(tmp_path: Path) -> None:
    """Whoever gets ESTALE and opens the name again, in the next microsecond, reads the new version."""
    script = """
import os, sys
for _ in range(25):
    fd = os.open(sys.argv[1], os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    first = os.pread(fd, 100, 0)
    print("go", flush=True)
    sys.stdin.readline()
    try:
        os.pread(fd, 100, int(sys.argv[2]))
        raise SystemExit("not stale")
    except OSError as exc:
        assert exc.errno == 116, exc
        again = os.open(sys.argv[1], os.O_RDONLY)
    assert os.pread(again, 100, 0) != first
    os.close(fd)
    os.close(again)
print("done", flush=True)
"""
    with levered(tmp_path) as (site, lever), site.mount() as m:
        path = f"{m.path}/{ALIAS}/one/{NAME}"
        words = ["timeout", "-s", "KILL", "60", sys.executable, "-c", script, path, str(40 * BLOCK)]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            for number in range(25):
                line = process.stdout.readline()
                assert line == "go\n", (number, line, process.stderr.read()[-500:], site.tail())
                lever.body, lever.etag = (NEW, f'"{number}"') if lever.body is OLD else (OLD, f'"{number}"')
                process.stdin.write("\n")
                process.stdin.flush()
            line = process.stdout.readline()
            assert line == "done\n", (line, process.stderr.read()[-500:], site.tail())


# --- what the cache keeps of a version ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_cache_that_lost_what_it_knew_of_the_version(tmp_path: Path, how: str) -> None:
    """Half of the old version is resident, its facts are not in the ledger, and the object was replaced since."""
    with levered(tmp_path) as (site, lever):
        with site.mount() as m:
            assert read_pieces(site, range(0, SIZE // 2, 2 * BLOCK))
            wait_until_recorded(m)
            if how == "killed":
                m.kill()
        with sqlite3.connect(site.setup.folder / "cache" / "ledger" / "cache.db") as ledger:
            assert ledger.execute("DELETE FROM Cache WHERE key LIKE 'facts/%'").rowcount
        lever.put_new()
        with site.mount():
            assert_one_version_each(read_through(site, "sequential", 1), site)
            assert_the_next_open_is_new(site)
        with site.mount():
            assert_the_next_open_is_new(site)


def read_pieces(site: Site, offsets: range) -> bytes:
    """Read one block at each of these offsets, out of order."""
    script = (
        "import os,sys\nfd=os.open(sys.argv[1],os.O_RDONLY)\nos.posix_fadvise(fd,0,0,os.POSIX_FADV_RANDOM)\n"
        "for at in sys.argv[2:]: sys.stdout.buffer.write(os.pread(fd,131072,int(at)))"
    )
    words = [str(offset) for offset in reversed(offsets)]
    path = f"{site.m.path}/{ALIAS}/one/{NAME}"
    got: bytes = site.m.run(sys.executable, "-c", script, path, *words, text=False).stdout
    return got
