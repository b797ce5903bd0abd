"""`mount` and `umount`."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refgenfs.cli.connection import canonical, choose, is_ambiguous
from refgenfs.cli.mount_options import asks_for_writing
from refgenfs.cli.options import AsJson, ConfigFile
from refgenfs.cli.output import note, write, write_json
from refgenfs.control_client import ControlClient, NoDaemon
from refgenfs.core.errors import ConfigError, ControlError, RefgenfsError
from refgenfs.core.units import counted
from refgenfs.paths import log_path, socket_of

if TYPE_CHECKING:
    from refgenfs.config import LoadedConfig
    from refgenfs.launch import Started

STOP_SECONDS = 30.0
_AFTER_FORCE_SECONDS = 5.0
_SETTLE_SECONDS = 1.0  # the kernel tells a daemon of a close a moment after it
_POLL_SECONDS = 0.05

MountDir = Annotated[
    str | None,
    typer.Argument(
        metavar="MOUNTPOINT", help="Where. Without it: the configuration's mount.point.", show_default=False
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        metavar="OPTIONS",
        help="Settings for this mount, separated by commas: allow_other, cache_size=20GB, cache_dir=/x, "
        "or any key such as limits.memory=32MiB. Words of mount(8) are accepted.",
        show_default=False,
    ),
]


class Busy(RefgenfsError):
    """The mount is in use; the message names by whom."""


def mount(
    mountpoint: MountDir = None,
    config: ConfigFile = None,
    options: Options = None,
    foreground: Annotated[
        bool, typer.Option("-f", "--foreground", metavar="", help="Stay in the foreground.")
    ] = False,
    wait: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for the daemon.", min=1)] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Mount the genomes; return when the tree answers."""
    loaded = load(mountpoint, config, options or [])
    if asks_for_writing(",".join(options or [])):
        note("the mount is read-only, `-o rw` or not")
    point = loaded.config.mount.point
    if foreground:
        from refgenfs.daemon import run

        with _mountpoint(point):
            status = run(loaded, ready_fd=None)
            raise typer.Exit(status)
    begun = begin(loaded, wait)
    _tell(point, begun, log_path(point, os.environ, os.geteuid()), as_json)


def begin(loaded: LoadedConfig, wait: float = 60.0) -> Started:
    """Start a daemon in the background and return when its tree answers; raise ControlError or StartFailed."""
    from refgenfs.launch import start, tree_answers

    point = loaded.config.mount.point
    log = log_path(point, os.environ, os.geteuid())
    with _mountpoint(point):
        begun = start(loaded, log, deadline=wait)
    if not tree_answers(point):
        raise ControlError(f"the daemon is up, but {point} doesn't answer: see {log}, then `refgenfs umount {point}`")
    return begun


@contextmanager
def _mountpoint(point: Path) -> Iterator[None]:
    """Make a mountpoint for the body, and take it away again if that fails."""
    client = ControlClient(socket_of(point, os.environ, os.geteuid()), mountpoint=point)
    with _removed_on_failure(make_mountpoint(point, client)):
        yield


def load(mountpoint: str | None, config: Path | None, options: list[str]) -> LoadedConfig:
    from refgenfs.cli.mount_options import parse_mount_options
    from refgenfs.config import file_problems, load_config

    overrides: dict[str, Any] = parse_mount_options(",".join(options))
    if mountpoint is not None:
        overrides["mount.point"] = str(canonical(mountpoint))
    loaded = load_config(config, overrides, os.environ)
    if problems := file_problems(loaded.config):
        raise ConfigError("\n".join(problems))
    point = canonical(loaded.config.mount.point)
    if point == loaded.config.mount.point:
        return loaded
    # the kernel knows the mount by its real path, and so must everybody who looks for it
    return load_config(config, {**overrides, "mount.point": str(point)}, os.environ)


def make_mountpoint(point: Path, client: ControlClient) -> list[Path]:
    """See to it that `point` can be mounted on; return the folders that were made for it, the deepest first.

    Raises ControlError where it can't be mounted on.

    What is mounted there isn't touched: a dead mount of ours is left to the daemon, which recovers it.
    """
    from refgenfs.mount_table import mount_at

    mounted = mount_at(point)
    if client.is_alive(mounted=mounted is not None):
        raise ControlError(f"{point} is mounted already; `refgenfs umount {point}` first, or just use it")
    if mounted is not None and (mounted.is_refgenfs or mounted.is_trigger):
        return []
    if mounted is not None:
        raise ControlError(f"{point} is a mountpoint of {mounted.fstype} already: name another directory")
    made = [folder for folder in (point, *point.parents) if not os.path.lexists(folder)]
    try:
        point.mkdir(parents=True, exist_ok=True)
        if os.listdir(point):
            note(f"{point} isn't empty: what is in it can't be seen while the genomes are mounted")
    except (FileExistsError, NotADirectoryError) as exc:
        raise ControlError(f"{point} is no directory: name one, or a path where one can be made") from exc
    except OSError as exc:
        raise ControlError(
            f"{point} can't be made or read: {exc.strerror}; name a directory of your own, "
            "for example `refgenfs mount ~/genomes`"
        ) from exc
    return made


@contextmanager
def _removed_on_failure(made: list[Path]) -> Iterator[None]:
    """Take folders that were made for a mount away again where it doesn't come about; what isn't empty stays."""
    try:
        yield
    except BaseException as exc:
        if not isinstance(exc, typer.Exit) or exc.exit_code:
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()
        raise


def _tell(point: Path, begun: Started, log: Path, as_json: bool) -> None:
    genomes, assets = int(begun.facts.get("genomes", 0)), int(begun.facts.get("assets", 0))
    if as_json:
        facts = {"mountpoint": str(point), "pid": begun.pid, "genomes": genomes, "assets": assets}
        write_json({**facts, "problems": begun.facts.get("problems", []), "log": str(log)})
        return
    write(f"{point} is mounted: {counted(genomes, 'genome')}, {counted(assets, 'asset')}")
    for problem in begun.facts.get("problems", ()):
        note(f"source {problem}")
    which = f" -m {shlex.quote(str(point))}" if is_ambiguous(point, os.environ, os.geteuid()) else ""
    write(f"Try: refgenfs {'list' if genomes else 'status'}{which}")


def umount(
    mountpoint: MountDir = None,
    config: ConfigFile = None,
    lazy: Annotated[
        bool,
        typer.Option(
            "-l", "--lazy", metavar="", help="Detach now; the daemon ends when nobody uses the files any more."
        ),
    ] = False,
) -> None:
    """Unmount, and wait until the daemon has ended."""
    from refgenfs.mount_table import genome_mounts, mount_at
    from refgenfs.mountpoint import is_dead

    environ, uid = os.environ, os.geteuid()
    try:
        client = choose(mountpoint, config, environ, uid)
        point = client.mountpoint or Path(client.call("status")["mountpoint"])
    except NoDaemon:
        from refgenfs.cli.connection import configured_mountpoint

        point = configured_mountpoint(config, environ)
        client = ControlClient(socket_of(point, environ, uid), mountpoint=point)
    mounted = mount_at(point)
    alive = client.is_alive(mounted=mounted is not None)
    if not alive and (mounted is None or not mounted.is_refgenfs):
        others = ", ".join(map(str, genome_mounts()))
        raise ControlError(
            f"no genomes are mounted at {point}; {f'they are at {others}' if others else 'nor elsewhere'}"
        )
    if not alive:
        dead = is_dead(point)
        _fusermount(point, lazy=lazy or dead)
        write(f"{point} is unmounted; its daemon {'had ended before' if dead else 'ends by itself'}")
        return
    pid = int(client.call("status")["pid"])
    users = _settled_users(point, pid, client)
    if users and not lazy:
        raise Busy(f"{point} is busy: used by {users}; end them, or `refgenfs umount --lazy {point}`")
    if users:
        _fusermount(point, lazy=True)
        write(f"{point} is detached; the daemon ends when nobody uses its files any more")
        return
    _stop(client, point, pid)


def _settled_users(point: Path, pid: int, client: ControlClient) -> str:
    """Return who uses the mount, in words; an empty text where nobody does for longer than a moment."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (users := _users(point, pid, client)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return users


def _users(point: Path, pid: int, client: ControlClient) -> str:
    from refgenfs.mount_table import users_of

    seen = users_of(point, besides=frozenset({pid, os.getpid()}))
    if seen:
        return ", ".join(str(user) for user in seen[:5]) + (", …" if len(seen) > 5 else "")
    unseen = client.call("status")["open_files"]
    return f"processes of other users ({counted(unseen, 'open file')})" if unseen else ""


def _stop(client: ControlClient, point: Path, pid: int) -> None:
    """Ask the daemon to end and wait for it; unmount by force where it doesn't, and say so."""
    refused = ""
    try:
        client.call("stop")
    except ControlError as exc:
        refused = str(exc)
    if _has_ended(point, pid, 0.0 if refused and client.is_alive() else STOP_SECONDS):
        write(f"{point} is unmounted")
        return
    note(refused or f"the daemon (pid {pid}) hasn't ended in {STOP_SECONDS:g} s: unmounting without it")
    if _is_mounted(point):
        _fusermount(point, lazy=True)
    if not _has_ended(point, pid, _AFTER_FORCE_SECONDS):
        raise ControlError(f"{point} is unmounted, but its daemon still runs: see its log, then `kill {pid}`")
    write(f"{point} is unmounted")


def _has_ended(point: Path, pid: int, seconds: float) -> bool:
    """Say whether mount and daemon are gone, waiting for it for some seconds."""
    deadline = time.monotonic() + seconds
    while _is_mounted(point) or _is_running(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _is_mounted(point: Path) -> bool:
    from refgenfs.mount_table import mount_at

    mounted = mount_at(point)
    return mounted is not None and mounted.is_refgenfs


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def _fusermount(point: Path, *, lazy: bool) -> None:
    if os.geteuid() == 0:
        command = ["umount", "-i", *(["-l"] if lazy else []), str(point)]
    else:
        program = shutil.which("fusermount3") or shutil.which("fusermount")
        if program is None:
            raise ControlError("fusermount3 isn't there: install fuse3")
        command = [program, "-u", *(["-z"] if lazy else []), "--", str(point)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise Busy(f"{point} can't be unmounted: {why[0]}")
