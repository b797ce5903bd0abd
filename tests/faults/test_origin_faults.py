"""What an origin does wrong: right bytes or the right error, in time; then it heals, and nothing wrong is kept.

All tests of a route share one mount; each has an asset of its own, so that nothing of it is in any cache.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from refgenfs.demo.replies import Ask, Inline, Reply
from tests.faults.world import BLOCK, BOUND, Script, Site, assert_log_is_clean, make_site
from tests.support.faulty_origin import Fault

pytestmark = pytest.mark.needs_fuse


@dataclass(frozen=True)
class Case:
    """A fault, by name; `errors` are those allowed."""

    name: str
    faults: Sequence[Fault]
    errors: tuple[str, ...]
    must_fail: bool = False


def _f(kind: str, times: int | None = 1, after: int = 0, value: int = 0, retry_after: int | None = None) -> Fault:
    return Fault(kind, times=times, after=after, value=value, retry_after=retry_after)  # type: ignore[arg-type]


# Faults of both routes: the connection's and the status line's.
COMMON = [
    Case("503-once", [_f("status", value=503)], ()),
    Case("503-with-retry-after", [_f("status", value=503, retry_after=1)], ()),
    Case("503-for-ever", [_f("status", None, value=503)], ("EIO",), must_fail=True),
    Case("500-once", [_f("status", value=500)], ()),
    Case("429-once", [_f("status", value=429)], ()),
    Case("401", [_f("status", None, value=401)], ("EACCES",), must_fail=True),
    Case("403", [_f("status", None, value=403)], ("EACCES",), must_fail=True),
    Case("404", [_f("status", None, value=404)], ("EIO",), must_fail=True),
    Case("reset-before-the-body", [_f("reset")], ()),
    Case("reset-in-the-body", [_f("reset", 3, after=300_000)], ()),
    Case("reset-for-ever-early", [_f("reset", None, after=1_000)], ("EIO",), must_fail=True),
    Case("truncated", [_f("truncate", 2, after=200_000)], ()),
    Case("truncated-for-ever", [_f("truncate", None, after=100)], ("EIO",), must_fail=True),
    Case("silent-once", [_f("silent")], ()),
    Case("silent-for-ever", [_f("silent", None)], ("EIO", "ETIMEDOUT"), must_fail=True),
    Case("stall-before-the-body", [_f("stall")], ()),
    Case("stall-in-the-body", [_f("stall", 2, after=400_000)], ()),
    Case("stall-for-ever", [_f("stall", None, after=1_000)], ("EIO", "ETIMEDOUT"), must_fail=True),
    Case("length-too-small-once", [_f("wrong_length", value=-1_000)], ("EIO",)),
    Case("length-too-small-for-ever", [_f("wrong_length", None, value=-1_000)], ("EIO", "ESTALE"), must_fail=True),
    Case("length-too-large-once", [_f("wrong_length", value=1_000)], ("EIO",)),
    Case("length-too-large-for-ever", [_f("wrong_length", None, value=1_000)], ("EIO", "ESTALE"), must_fail=True),
]
# Of byte ranges only.
RANGES = [
    Case("range-shifted-once", [_f("shift_range", value=BLOCK)], ()),
    Case("range-shifted-for-ever", [_f("shift_range", None, value=BLOCK)], ("EIO",), must_fail=True),
    Case("total-wrong", [_f("wrong_total", None, value=1)], ("ESTALE",), must_fail=True),
    Case("range-ignored", [_f("ignore_range", None)], ()),
    Case("etag-flipped-for-ever", [_f("flip_etag", None)], ("ESTALE", "EIO"), must_fail=True),
    Case("etag-flipped-once", [_f("flip_etag")], ("ESTALE",)),
]


def _asset(case: str) -> str:
    return case.replace("-", "_")


@pytest.fixture(scope="module", params=["archive", "ranges"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    remotes = request.param == "ranges"
    names = [_asset(case.name) for case in COMMON + (RANGES if remotes else [])]
    names += ["refused", "scripted_short", "scripted_long", "scripted_elsewhere"]
    folder = tmp_path_factory.mktemp(request.param)
    with make_site(folder, names, remotes=remotes) as made, made.mount():
        yield made


@pytest.fixture(autouse=True)
def behaves_again(site: Site) -> Iterator[None]:
    site.reset()
    yield
    site.reset()


def _prepare(site: Site, asset: str) -> None:
    """Let the daemon know names and sizes where they come by other requests than the bytes."""
    site.m.run("ls", "-lR", f"{site.m.path}/tiny/{asset}" if site.remotes else f"{site.m.path}/tiny", timeout=30)


def _check(site: Site, case: Case) -> None:
    asset = _asset(case.name)
    if site.remotes:
        _prepare(site, asset)
    faults = [Fault(f.kind, site.bytes_glob(asset), f.times, f.after, f.value, f.retry_after) for f in case.faults]
    site.origin.faults = faults
    began = time.monotonic()
    # an archive's length is wrong at its end only: its last file feels it
    only = "c.exact" if case.name.startswith("length") else "a.big"
    # who has read of an archive that turned out wrong is told so, whatever the next one is
    stale = () if site.remotes or only == "a.big" else ("ESTALE",)
    seen = site.read_or(*case.errors, *stale, asset=asset, only=only)
    assert time.monotonic() - began < 2 * BOUND
    if case.must_fail and (site.remotes or not case.name.startswith("length-too-large")):
        assert seen != [""], "the fault was not met"
    # the mount lives: another asset answers at once
    site.m.run("ls", f"{site.m.path}/tiny", timeout=20)
    if all(fault.times for fault in faults):
        assert not any(fault in faults for fault in site.origin.faults), "the fault was not met"
    site.reset()
    site.read_right(asset)


@pytest.mark.parametrize("case", COMMON, ids=lambda case: case.name)
def test_fault(site: Site, case: Case) -> None:
    _check(site, case)


@pytest.mark.parametrize("case", RANGES, ids=lambda case: case.name)
def test_range_fault(site: Site, case: Case) -> None:
    if not site.remotes:
        return  # an archive is asked for whole
    _check(site, case)


def _short(ask: Ask, reply: Reply) -> Reply:
    """A 206 that says what was asked for, with fewer bytes and a Content-Length of that."""
    return _resized(reply, -700)


def _long(ask: Ask, reply: Reply) -> Reply:
    return _resized(reply, 700)


def _resized(reply: Reply, change: int) -> Reply:
    if reply.status != 206:
        return reply
    data = reply.body.read(0, reply.body.size)
    reply.body.close()
    return Reply(206, reply.headers, Inline(data[:change] if change < 0 else data + bytes(change)))


@pytest.mark.parametrize(("name", "script"), [("scripted_short", _short), ("scripted_long", _long)])
def test_206_of_another_length(site: Site, name: str, script: Script) -> None:
    if site.remotes:
        _prepare(site, name)
    site.origin.scripts = {site.bytes_glob(name): script}
    seen = site.read_or("EIO", "ESTALE", asset=name, only="a.big")
    if site.remotes:
        assert seen != [""]
    site.reset()
    site.read_right(name)


def test_a_206_of_another_place(site: Site) -> None:
    """A whole and honest answer, but to another question: bytes of the neighbouring block."""
    name = "scripted_elsewhere"
    data = (site.world.unpacked(name) / "a.big").read_bytes()

    def elsewhere(ask: Ask, reply: Reply) -> Reply:
        start, _, last = ask.headers.get("range", "").removeprefix("bytes=").partition("-")
        if reply.status != 206 or int(last) + BLOCK >= len(data):
            return reply
        first, stop = int(start) + BLOCK, int(last) + BLOCK + 1
        headers = {**reply.headers, "Content-Range": f"bytes {first}-{stop - 1}/{len(data)}"}
        reply.body.close()
        return Reply(206, headers, Inline(data[first:stop]))

    if site.remotes:
        _prepare(site, name)
        site.origin.scripts = {f"/files/*/{name}__*/a.big": elsewhere}
        assert site.read_or("EIO", asset=name, only="a.big") == ["EIO"]
    site.reset()
    site.read_right(name)


def test_refused_connections(site: Site) -> None:
    if site.remotes:
        _prepare(site, "refused")
    site.stop_origin()
    try:
        seen = site.read_or("EIO", "ETIMEDOUT", asset="refused", only="a.big")
        assert seen != [""]
        site.m.run("ls", f"{site.m.path}/tiny", timeout=20)
    finally:
        site.start_origin()
    site.read_right("refused")


def test_afterwards_the_cache_holds_nothing_wrong(site: Site) -> None:
    """Last of the route: all that was kept under all those faults, read again by another daemon."""
    time.sleep(1.0)  # the last stream's retries end, and with them what it brought
    site.read_right(*site.world.assets)
    report = site.m.call("cache_verify")
    assert not report["damaged"]
    assert report["bytes"] > 0
    assert_log_is_clean(site.m)
    assert site.m.stop() == 0
    with site.mount():
        site.stop_origin()  # so all of it must come out of the cache
        try:
            site.read_right(*site.world.assets)
        finally:
            site.start_origin()
        assert_log_is_clean(site.m)
