"""What `doctor` looks at where a daemon runs with a configuration that isn't this user's: what that daemon says.

Its files may be closed to this user, and its network, its cache and its options are a unit's: to check this user's
defaults instead would tell of another mount.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from refgenfs.cli.check import Check, Machine
from refgenfs.cli.checks import (
    check_daemon,
    check_device,
    check_fusermount,
    check_mountpoint,
    check_pyfuse3,
    check_python,
)
from refgenfs.cli.kernel_checks import check_background, check_readahead
from refgenfs.core.units import human_bytes
from refgenfs.mount_table import mount_at


def run_served_checks(machine: Machine, status: Mapping[str, Any]) -> Iterator[Check]:
    """Yield the outcome of every check; `status` is what the daemon at the mountpoint answers to that question."""
    for check in (check_python, check_pyfuse3, check_device, check_fusermount):
        yield check(machine)
    file = status["config"]
    yield Check("configuration", "ok", f"{file}, the daemon's (to check it: refgenfs doctor -c {shlex.quote(file)})")
    yield _users(machine.config.mount.point)
    for check in (check_mountpoint, check_readahead, check_background):
        yield check(machine)
    yield _cache(status["cache"])
    yield check_daemon(machine)
    for source in status["sources"]:
        yield _source(source)
    for source in status["sources"]:
        yield from _ways(source)


def _users(point: Path) -> Check:
    mounted = mount_at(point)
    if mounted is not None and mounted.is_for_all:
        return Check("other users", "ok", f"let in to {point}")
    return Check("other users", "ok", f"not let in to {point}: only its user sees it")


def _cache(cache: Mapping[str, Any]) -> Check:
    used, size, free, kept = (int(cache[name]) for name in ("used", "size", "free", "min_free"))
    found = f"{cache['dir']}: {human_bytes(used)} of {human_bytes(size)} used; {human_bytes(free)} free on its disk"
    room = max(0, free + used - kept)
    if room < 64 << 20:
        return Check("cache", "fail", found, "make room, or set cache.dir to a larger file system")
    if room < size:
        return Check("cache", "warn", found, f"none needed: the cache stops at about {human_bytes(room)}")
    return Check("cache", "ok", found)


def _source(source: Mapping[str, Any]) -> Check:
    where = f"{source['name']}: {source['url']}"
    if source["healthy"]:
        return Check("source", "ok", f"{where} answers the daemon")
    advice = "check url, network, proxy and credentials; what is in the cache can be read without it"
    return Check("source", "fail", f"{where} fails the daemon: {source['error']}", advice)


def _ways(source: Mapping[str, Any]) -> Iterator[Check]:
    """Yield a check for each proxy and each mirror: what the daemon saw of it when it last went by it."""
    for route in source.get("routes", ()):
        if route["kind"] == "server" or route["url"] == "direct":
            continue
        where = f"{source['name']}: {route['url']}"
        if route["up"]:
            yield Check(route["kind"], "ok", f"{where}, {route['requests']:,} of the daemon's requests")
        else:
            yield Check(route["kind"], "warn", f"{where} fails the daemon", "requests go on by the next one")
