"""Where a running daemon's socket and log are, and where a configuration may be.

All are functions of the mountpoint, the environment and the user.

A daemon is known by its mountpoint. Its instance name is the mountpoint's path with '/' written as '-', so
that a look into the runtime directory tells which daemons there are and where.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

from refgenfs.core.errors import ControlError

# A socket's path has 107 bytes: this leaves 54 to a runtime directory, of which "/run/user/4294967295/refgenfs/"
# takes 31.
_NAME_BYTES = 48
PROBE_SECONDS = 2.0  # for a daemon to answer at its socket
_PLAIN = re.compile(rb"[A-Za-z0-9_.,+@=]")
_ESCAPE = re.compile(r"%([0-9A-F]{2})")


def instance_name(mountpoint: Path) -> str:
    """Return the name of the daemon that serves an absolute mountpoint: "/a/b-c" is "a-b%2Dc".

    Letters, digits and a few marks stand for themselves, other bytes are %-escaped. A name that is too
    long for a socket's path is cut, and made unique by a digest after "%%".
    """
    parts = [os.fsencode(part) for part in mountpoint.parts if part != "/"]
    name = "-".join(_escape(part) for part in parts) or "-"
    if len(name) <= _NAME_BYTES:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: _NAME_BYTES - 18]}%%{digest}"


def mountpoint_of(name: str) -> Path | None:
    """Return the mountpoint that an instance name stands for; None where the name was cut."""
    if "%%" in name:
        return None
    parts = (os.fsdecode(_unescape(part)) for part in name.split("-"))
    return Path("/", *(part for part in parts if part))


def runtime_dir(environ: Mapping[str, str], uid: int) -> Path:
    """Return the directory of control sockets, its maker's own: only they can put a socket there.

    `$REFGENFS_RUNTIME_DIR` where it is set; else root's is in /run, a user's in `$XDG_RUNTIME_DIR` or in /tmp.
    """
    if environ.get("REFGENFS_RUNTIME_DIR"):
        return Path(environ["REFGENFS_RUNTIME_DIR"])
    if uid == 0:
        return Path("/run/refgenfs")
    if environ.get("XDG_RUNTIME_DIR"):
        return Path(environ["XDG_RUNTIME_DIR"], "refgenfs")
    return Path(environ.get("TMPDIR") or "/tmp", f"refgenfs-{uid}")  # noqa: S108  # its owner is checked


def make_runtime_dir(environ: Mapping[str, str], uid: int, *, shared: bool = False) -> Path:
    """Make the runtime directory and return it; raise ControlError where a socket isn't safe in it.

    `shared`: others may come to a socket in it, now and later; until then it is closed to them.
    """
    folder = runtime_dir(environ, uid)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != uid:
            raise ControlError(f"{folder} isn't your own directory: set XDG_RUNTIME_DIR to one that is")
        # another daemon of this user's may have one that is shared
        folder.chmod(0o755 if shared else stat.S_IMODE(facts.st_mode) & 0o755)
    except OSError as exc:
        raise ControlError(f"{folder} can't be made: {exc.strerror}; set XDG_RUNTIME_DIR to a directory") from exc
    return folder


def socket_path(mountpoint: Path, environ: Mapping[str, str], uid: int) -> Path:
    """Return the control socket of the daemon that serves `mountpoint`."""
    return runtime_dir(environ, uid) / f"{instance_name(mountpoint)}.sock"


def socket_of(mountpoint: Path, environ: Mapping[str, str], uid: int) -> Path:
    """Return the socket by which to ask the daemon that serves `mountpoint`: the user's own, else the machine's.

    In /tmp a folder that has the name of the user's own may be anybody's: who listens there is not asked.
    """
    own = socket_path(mountpoint, environ, uid)
    known = uid == 0 or bool(environ.get("REFGENFS_RUNTIME_DIR") or environ.get("XDG_RUNTIME_DIR"))
    known = known or _is_own(own.parent, uid)
    if known and os.path.exists(own):
        return own
    others = [folder / own.name for folder in _machine_dirs(environ, uid)]
    return next(filter(os.path.exists, others), own if known else others[0])


def _is_own(folder: Path, uid: int) -> bool:
    try:
        facts = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and _is_safe(facts, uid)


def _machine_dirs(environ: Mapping[str, str], uid: int) -> list[Path]:
    """Return where daemons of the whole machine listen: root's, and those of services, each a user of its own.

    Only root and systemd make anything in /run, so nobody else listens there.
    """
    if environ.get("REFGENFS_RUNTIME_DIR"):
        return []
    roots = [] if uid == 0 else [runtime_dir({}, 0)]
    return [*roots, *sorted(Path("/run").glob("refgenfs-*"))]


def log_path(mountpoint: Path, environ: Mapping[str, str], uid: int) -> Path:
    """Return the log file of a daemon that runs in the background."""
    if environ.get("XDG_STATE_HOME"):
        folder = Path(environ["XDG_STATE_HOME"], "refgenfs")
    elif uid == 0:
        folder = Path("/var/log/refgenfs")
    elif environ.get("HOME"):
        folder = Path(environ["HOME"], ".local", "state", "refgenfs")
    else:
        folder = runtime_dir(environ, uid)
    return folder / f"{instance_name(mountpoint)}.log"


def find_sockets(environ: Mapping[str, str], uid: int) -> list[Path]:
    """Return the control sockets that exist, sorted; a daemon that was killed leaves its own behind.

    A runtime directory that is another user's has none: in /tmp anybody could have made it. Root's own, and those of
    services, are for all.
    """
    folder = runtime_dir(environ, uid)
    of_machine = [path for one in _machine_dirs(environ, uid) for path in one.glob("*.sock")]
    try:
        own = folder.glob("*.sock") if _is_safe(folder.lstat(), uid) else ()
        return sorted((*own, *of_machine))
    except OSError:
        return sorted(of_machine)


def remove_dead(path: Path) -> bool:
    """Remove a unix socket that nobody answers on; return False, and leave it, where somebody does.

    Raises OSError where that can't be told: a busy daemon's queue is full, which is no sign of death.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except FileNotFoundError:
            return True
        except ConnectionRefusedError:  # also by what is no socket
            if path.is_socket():
                path.unlink(missing_ok=True)
            return True
    return False


def _is_safe(facts: os.stat_result, uid: int) -> bool:
    """Say whether who listens in a directory is the user, or root."""
    return facts.st_uid == uid or (facts.st_uid == 0 and not facts.st_mode & 0o022)


def home_dir(environ: Mapping[str, str], uid: int) -> str:
    """Return the user's home, "/" where none is known."""
    try:
        return environ.get("HOME") or pwd.getpwuid(uid).pw_dir
    except KeyError:
        return "/"


def config_places(environ: Mapping[str, str], home: str) -> tuple[Path, Path]:
    """Return where a configuration is looked for that nobody named: the user's, then the machine's."""
    folder = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    return Path(folder, "refgenfs", "config.toml"), Path("/etc/refgenfs/config.toml")


def _escape(part: bytes) -> str:
    return "".join(chr(b) if _PLAIN.match(bytes((b,))) else f"%{b:02X}" for b in part)


def _unescape(part: str) -> bytes:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), part).encode("latin-1")
