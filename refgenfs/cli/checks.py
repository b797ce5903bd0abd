"""What `doctor` looks at: one function a check, each with what was found and what to do."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import OpenerDirector, Request

from refgenfs.cache.disk import punch_hole
from refgenfs.cache.lock import PASSING
from refgenfs.cli.check import Check, Machine, State
from refgenfs.cli.kernel_checks import check_background, check_readahead
from refgenfs.control_client import ControlClient
from refgenfs.core.errors import ControlError, redact_url
from refgenfs.core.refgenie import v3_url
from refgenfs.core.units import format_size, human_bytes, human_duration
from refgenfs.mount_table import holder_of, mount_at
from refgenfs.mountpoint import permits_allow_other
from refgenfs.paths import socket_of

if TYPE_CHECKING:
    from refgenfs.config import Source, WebSource

_SOURCE_SECONDS = 8.0
_LIST_BYTES = 64 << 20
_PACKAGES = ("pyfuse3", "trio", "aiohttp", "botocore", "pydantic", "diskcache", "isal", "pysam", "typer", "rich")


def run_checks(machine: Machine) -> Iterator[Check]:
    """Yield the outcome of every check."""
    single: tuple[Callable[[Machine], Check], ...] = (
        check_python,
        check_pyfuse3,
        check_device,
        check_fusermount,
        check_allow_other,
        check_mountpoint,
        check_readahead,
        check_background,
        check_cache_dir,
        check_space,
        check_daemon,
    )
    for check in single:
        yield check(machine)
    yield from check_tokens(machine)
    yield from check_sources(machine)
    from refgenfs.cli.routes import check_routes

    yield from check_routes(machine.config.source)


def check_python(_: Machine) -> Check:
    """Tell versions."""
    from importlib.metadata import PackageNotFoundError, version

    found, missing = [f"Python {'.'.join(map(str, sys.version_info[:3]))}"], []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        return Check("libraries", "fail", f"missing: {', '.join(missing)}", "install refgenfs with its requirements")
    return Check("libraries", "ok", ", ".join(found))


def check_pyfuse3(_: Machine) -> Check:
    """Load libfuse's binding, in a process of its own."""
    code = "import pyfuse3; print(pyfuse3.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Check(
            "libfuse", "fail", f"pyfuse3 doesn't load: {why}", "install libfuse3 (Debian: apt install fuse3)"
        )
    return Check("libfuse", "ok", f"pyfuse3 {done.stdout.strip()} loads")


def check_device(machine: Machine) -> Check:
    """Open /dev/fuse."""
    device = machine.fuse_device
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Check(
            "device",
            "fail",
            f"{device} isn't there",
            "as root: modprobe fuse; in a container: --device /dev/fuse",
        )
    except OSError as exc:
        advice = f"as root: chmod 666 {device}; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
        return Check("device", "fail", f"{device} can't be opened: {exc.strerror}", advice)
    return Check("device", "ok", f"{device} opens")


def check_fusermount(machine: Machine) -> Check:
    """Find fusermount3, which mounts for users who aren't root."""
    program = shutil.which("fusermount3", path=machine.environ.get("PATH"))
    if machine.uid == 0:
        return Check("fusermount3", "ok", program or "not there, and root needs none")
    if program is None:
        return Check("fusermount3", "fail", "not found", "install it (Debian: apt install fuse3)")
    facts = os.stat(program)
    if facts.st_uid != 0 or not facts.st_mode & stat.S_ISUID:
        return Check("fusermount3", "fail", f"{program} isn't set-uid root", f"as root: chmod u+s {program}")
    return Check("fusermount3", "ok", program)


def check_allow_other(machine: Machine) -> Check:
    """See whether other users may be let in."""
    if not machine.config.mount.allow_other:
        return Check("other users", "ok", "mount.allow_other is false: only this user sees the mount")
    if machine.uid == 0:
        return Check("other users", "ok", "let in by mount.allow_other")
    if permits_allow_other(machine.fuse_conf):
        return Check("other users", "ok", f"let in by mount.allow_other, and {machine.fuse_conf} permits it")
    advice = f"as root: echo user_allow_other >> {machine.fuse_conf}, or set mount.allow_other = false"
    return Check("other users", "fail", f"{machine.fuse_conf} doesn't permit mount.allow_other", advice)


def check_mountpoint(machine: Machine) -> Check:
    """See what is at the mountpoint, without touching what is mounted there."""
    point = machine.config.mount.point
    mounted = mount_at(point)
    if mounted is not None and mounted.is_refgenfs:
        alive = _client(machine).is_alive()
        if alive:
            return Check("mountpoint", "ok", f"{point} is mounted")
        return Check("mountpoint", "warn", f"{point} is a dead mount", f"refgenfs mount {point} recovers it")
    if mounted is not None:
        return Check("mountpoint", "fail", f"{point} is a mountpoint of {mounted.fstype}", "name another directory")
    parent = _existing(point)
    if not parent.is_dir():
        return Check("mountpoint", "fail", f"{parent} is no directory", "set mount.point to a directory")
    if not os.access(parent, os.W_OK):
        advice = f"as root: install -d -o {_user(machine.uid)} {point}; or refgenfs mount ~/genomes"
        return Check("mountpoint", "fail", f"{point} isn't this user's to mount on", advice)
    what = "is there" if parent == point else "will be made"
    return Check("mountpoint", "ok", f"{point} {what}")


def check_cache_dir(machine: Machine) -> Check:
    """Write to the cache's file system, and punch a hole."""
    folder = machine.config.cache.dir
    where = _existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=where, prefix=".refgenfs-") as file:
            file.write(b"x" * 65536)
            file.flush()
            punched = _punches(file.fileno())
    except OSError as exc:
        if exc.errno in PASSING:
            advice = "a mount comes up, and reads what is there, but keeps nothing until the disk takes writes again"
        else:
            advice = f"set cache.dir to a directory that {_user(machine.uid)} can write to"
        return Check("cache", "fail", f"{where} can't be written to: {exc.strerror}", advice)
    if not punched:
        advice = "set cache.dir to a local file system, such as ext4, xfs, btrfs or tmpfs"
        return Check(
            "cache", "fail", f"the file system of {where} punches no holes, so nothing can be evicted", advice
        )
    held = holder_of(where.resolve())
    if held is not None and held.is_shared:
        advice = "set cache.dir to a disk of this machine: it is faster, and each node needs a cache of its own"
        return Check("cache", "warn", f"{folder} is on {held.fstype}, which other machines may have too", advice)
    return Check("cache", "ok", f"{folder} {'can be written to' if where == folder else 'will be made'}")


def check_space(machine: Machine) -> Check:
    """Compare the cache's bounds with the disk."""
    cache = machine.config.cache
    facts = os.statvfs(_existing(cache.dir))
    total, free = facts.f_frsize * facts.f_blocks, facts.f_frsize * facts.f_bavail
    kept = cache.min_free.bytes_of(total)
    try:
        used = int(_client(machine).call("status")["cache"]["used"])
    except (ControlError, LookupError, TypeError):
        used = 0
    room = max(0, free + used - kept)
    size = format_size(cache.size)
    found = f"{human_bytes(free)} free, {human_bytes(kept)} of it kept free; cache.size is {size}"
    if room < 64 << 20:
        return Check("disk space", "fail", found, "make room, or set cache.dir to a larger file system")
    if room < cache.size:
        return Check("disk space", "warn", found, f"none needed: the cache stops at about {human_bytes(room)}")
    return Check("disk space", "ok", found)


def check_daemon(machine: Machine) -> Check:
    """Ask the daemon how it is."""
    client = _client(machine)
    point = machine.config.mount.point
    if not client.is_alive(mounted=mount_at(point) is not None):
        return Check("daemon", "ok", f"none is running for {point}")
    try:
        answer = client.call("status")
        found = f"pid {answer['pid']}, up {human_duration(answer['uptime'])}, {answer['state']}"
        if answer["cache"]["uncached"]:
            advice = "it goes on by itself when the disk takes writes again"
            return Check("daemon", "warn", f"{found}; nothing is kept: {answer['cache']['error']}", advice)
        return Check("daemon", "ok", found)
    except (ControlError, LookupError, TypeError) as exc:
        return Check(
            "daemon", "fail", f"{type(exc).__name__}: {exc}", f"refgenfs umount {point}, then mount it again"
        )


def check_tokens(machine: Machine) -> Iterator[Check]:
    """See whether files that hold a token are readable, and by their owner only."""
    from refgenfs.config import WebSource, secret_files, token_problem

    for source in machine.config.source:
        if not isinstance(source, WebSource):
            continue
        for name, path in secret_files(source):
            where = f"source.{source.name}.{name}"
            what = "token" if name == "token_file" else "password"
            problem = token_problem(path)
            if problem:
                yield Check(what, "fail", f"{where}: {problem}", "`refgenfs mount` refuses it as it is")
            else:
                yield Check(what, "ok", f"{where}: {path} can be read by this user only")


def check_sources(machine: Machine) -> list[Check]:
    """Ask every source one short question, all at once and in bounded time."""
    found: dict[str, Check] = {}
    threads = []
    for source in machine.config.source:
        thread = threading.Thread(target=lambda s: found.__setitem__(s.name, _ask(s)), args=(source,), daemon=True)
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join(_SOURCE_SECONDS)
    return [
        found.get(source.name, _unreachable(source, f"no answer in {_SOURCE_SECONDS:g} s"))
        for source in machine.config.source
    ]


def _ask(source: Source) -> Check:
    from refgenfs.cli.reaching import ask_files, ask_htsget
    from refgenfs.config import HtsgetSource, RefgenieSource

    if isinstance(source, HtsgetSource):
        return ask_htsget(source)
    return _ask_server(source) if isinstance(source, RefgenieSource) else ask_files(source)


def _ask_server(source: WebSource) -> Check:
    """Ask for the list of genomes, by one proxy after the other until there is an answer."""
    from refgenfs.cli.routes import openers

    every = openers(source)
    for opener in every[:-1]:
        check = _ask_by(opener, source)
        if check.state != "fail":
            return check
    return _ask_by(every[-1], source)


def _ask_by(opener: OpenerDirector, source: WebSource) -> Check:
    name, url = "source", f"{source.name}: {redact_url(source.url)}"
    bare = v3_url(redact_url(source.url), "genomes", "list")  # urllib takes a password for a port, and says so
    request = Request(bare, headers={"User-Agent": "refgenfs doctor"})  # noqa: S310
    wrong = "check that url is a refgenieserver's, without /v3"
    if source.url.rstrip("/").endswith("/v3"):
        wrong = f"leave /v3 off url: {redact_url(source.url).rstrip('/').removesuffix('/v3')}"
    try:
        with opener.open(request, timeout=min(source.timeout, _SOURCE_SECONDS - 1)) as answer:
            body = answer.read(_LIST_BYTES)
        if _is_list(body):
            return Check(name, "ok", f"{url} answers")
        return Check(name, "fail", f"{url} answers what is no list of genomes", wrong)
    except HTTPError as exc:
        exc.close()
        if exc.code in (401, 403):
            state: State = "ok" if source.token_file else "warn"
            return Check(
                name,
                state,
                f"{url} answers, and asks for a token",
                "" if source.token_file else "set token_file",
            )
        return Check(name, "fail", f"{url} answers {exc.code} {exc.reason}", wrong)
    except (OSError, HTTPException, ValueError) as exc:
        return _unreachable(source, str(getattr(exc, "reason", exc)))


def _is_list(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), list)
    except (ValueError, RecursionError):
        return False


def _unreachable(source: Source | WebSource, why: str) -> Check:
    advice = "check url, network and proxy; what is in the cache can be read without it"
    url = getattr(source, "url", None)
    found = f"{source.name}: {f'{redact_url(url)} ' if url else ''}doesn't answer: {why}"
    return Check("source", "fail", found, advice)


def _client(machine: Machine) -> ControlClient:
    point = machine.config.mount.point
    path = socket_of(point, machine.environ, machine.uid)
    return ControlClient(path, mountpoint=point, connect_timeout=2.0, reply_timeout=5.0)


def _existing(path: Path) -> Path:
    return path if os.path.lexists(path) or path.parent == path else _existing(path.parent)


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _punches(fd: int) -> bool:
    """Say whether the file system gives blocks in the middle of a file back."""
    try:
        punch_hole(fd, 4096, 4096)
    except OSError:
        return False
    return True
