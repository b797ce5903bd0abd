"""The helper of mount(8): `mount -t refgenfs CONFIG /genomes`, lines of fstab, maps of autofs.

mount(8) calls `mount.refgenfs CONFIG DIRECTORY [-sfnvrw] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`, and wants an exit
status of its own (mount(8), EXIT STATUS).
"""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refgenfs.core.errors import ConfigError, RefgenfsError

USAGE, FAILED, INTERRUPTED = 1, 32, 8
USUAL = frozenset({"none", "refgenfs", "default", "-"})  # for the configuration at one of the usual places
FOLDER = Path("/etc/refgenfs")


@dataclass(frozen=True, slots=True)
class Request:
    """What mount(8) asks for."""

    spec: str
    directory: str
    options: str
    fake: bool = False
    verbose: bool = False
    sloppy: bool = False


def main(arguments: Sequence[str]) -> int:
    """Mount, return when the tree answers, and give the exit status for mount(8)."""
    try:
        request = parse(arguments)
        if "remount" in request.options.split(","):
            return _refuse_remount(request)
        return 0 if request.fake else _mount(request)
    except ConfigError as exc:
        return _say(str(exc), USAGE)
    except RefgenfsError as exc:
        return _say(str(exc), FAILED)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)


def parse(arguments: Sequence[str]) -> Request:
    """Return what the arguments ask for; raise ConfigError."""
    try:
        found, rest = getopt.gnu_getopt(list(arguments), "sfnvrwN:t:o:")
    except getopt.GetoptError as exc:
        raise ConfigError(f"{exc.msg}: `mount -t refgenfs CONFIG DIRECTORY [-o OPTIONS]`") from exc
    if len(rest) != 2:
        raise ConfigError("a configuration and a directory are needed: `mount -t refgenfs CONFIG DIRECTORY`")
    given = {name for name, _ in found}
    words = [value for name, value in found if name == "-o"]
    words += [word for flag, word in (("-r", "ro"), ("-w", "rw")) if flag in given]
    return Request(rest[0], rest[1], ",".join(words), fake="-f" in given, verbose="-v" in given, sloppy="-s" in given)


def find_config(spec: str, folder: Path = FOLDER) -> Path | None:
    """Return the file that fstab's first field means; None for one of the usual places.

    It is a path, or a name in /etc/refgenfs; raises ConfigError for a name that isn't there.
    """
    if spec in USUAL:
        return None
    if "/" not in spec:
        named = folder / f"{spec}.toml"
        if not named.exists():
            raise ConfigError(f"{spec}: there is no {named}; write one, or the path of a configuration")
        return named
    return Path(spec)


def _refuse_remount(request: Request) -> int:
    point = request.directory
    return _say(
        f"{point} can't be remounted: it is read-only as it is. `refgenfs reload {point}` takes what changed in its "
        "configuration; other options are taken by umount and mount",
        USAGE,
    )


def _mount(request: Request) -> int:
    from refgenfs.cli import mounting
    from refgenfs.cli.connection import canonical
    from refgenfs.cli.mount_options import known_options

    config = find_config(request.spec)
    if _is_served(canonical(request.directory), config):
        return 0  # as `mount -a` finds it, which knows mounts by their source
    options = known_options(request.options) if request.sloppy else request.options
    loaded = mounting.load(request.directory, config, [options])
    if os.geteuid() == 0 and loaded.origins["mount.allow_other"] == "default":
        # what the machine mounts is for all of it, unless the configuration says no
        loaded = mounting.load(request.directory, config, [options, "allow_other"])
    begun = mounting.begin(loaded)
    for problem in begun.facts.get("problems", ()):
        _say(f"source {problem}", 0)
    if request.verbose:
        sys.stdout.write(f"mount.refgenfs: {loaded.config.mount.point} is mounted\n")
    return 0


def _is_served(point: Path, config: Path | None) -> bool:
    """Say whether a daemon with this configuration serves there already."""
    from refgenfs.control_client import ControlClient
    from refgenfs.core.errors import ControlError
    from refgenfs.mount_table import mount_at
    from refgenfs.paths import socket_of

    mount = mount_at(point)
    if mount is None or not mount.is_refgenfs:
        return False
    try:
        status = ControlClient(socket_of(point, os.environ, os.geteuid()), mountpoint=point).call("status")
        return config is None or status["config"] == os.path.abspath(config)
    except (ControlError, LookupError, TypeError):
        return False


def _say(message: str, status: int) -> int:
    for line in message.splitlines():
        sys.stderr.write(f"mount.refgenfs: {line}\n")
    return status
