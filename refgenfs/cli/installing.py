"""Where the files of `systemd/` and `mount/` go, and how updatedb is kept out of the genomes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from refgenfs.core.errors import RefgenfsError

FSTYPE = "fuse.refgenfs"  # as /proc/self/mountinfo has it
PACKAGED = "/usr/bin/refgenfs"  # where the files have the program, as a package of a distribution would
PACKAGES = "/usr/lib/refgenfs/"  # where our own packages have each version, in a folder of its own
HIDDEN = ("/home", "/root", "/run/user")  # what ProtectHome= hides from the unit's user


class InstallFailed(RefgenfsError):
    """Something can't be installed; the message says what to do."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of ours, and where it goes."""

    source: str
    target: str
    mode: int = 0o644


# What a package would put below /usr/lib goes below /usr/local/lib, where systemd looks too; /etc stays the
# administrator's. mount(8) looks for helpers in /sbin only.
FILES = (
    File("systemd/refgenfs@.service", "usr/local/lib/systemd/system/refgenfs@.service"),
    File("systemd/user/refgenfs@.service", "usr/local/lib/systemd/user/refgenfs@.service"),
    File("systemd/refgenfs.sysusers.conf", "usr/local/lib/sysusers.d/refgenfs.conf"),
    File("systemd/refgenfs.tmpfiles.conf", "usr/local/lib/tmpfiles.d/refgenfs.conf"),
    File("mount/mount.refgenfs", "sbin/mount.refgenfs", 0o755),
    # `mount -o remount` goes by the type in /proc/self/mountinfo
    File("mount/mount.refgenfs", f"sbin/mount.{FSTYPE}", 0o755),
    File("docs/man/refgenfs.1", "usr/local/share/man/man1/refgenfs.1"),
    File("docs/man/refgenfs.toml.5", "usr/local/share/man/man5/refgenfs.toml.5"),
    File("docs/man/mount.refgenfs.8", "usr/local/share/man/man8/mount.refgenfs.8"),
)


def is_packaged() -> bool:
    """Whether this program came with a package of the distribution, and the files with it."""
    return sys.prefix.startswith(PACKAGES)


def install(root: Path) -> Iterator[Path]:
    """Write the files below `root`, and yield each; raise InstallFailed."""
    program = find_program()
    hidden = next((path for path in (program, os.path.realpath(sys.executable)) if _is_hidden(path)), None)
    if root == Path("/") and hidden:
        raise InstallFailed(
            f"{hidden} can't be run by the unit's user: install refgenfs elsewhere, for example "
            "`/usr/bin/python3 -m venv /opt/refgenfs && /opt/refgenfs/bin/pip install refgenfs`"
        )
    for file in FILES:
        target = root / file.target
        text = (_shared() / file.source).read_text()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(target, text.replace(PACKAGED, _escaped(program, file)), file.mode)
        except OSError as exc:
            raise InstallFailed(
                f"{target} can't be written: {exc.strerror}; install as root, or with --root"
            ) from exc
        yield target


def _is_hidden(path: str) -> bool:
    return any(os.path.commonpath((path, place)) == place for place in HIDDEN)


def uninstall(root: Path) -> Iterator[Path]:
    """Remove the files below `root`, and yield each that was there; raise InstallFailed."""
    for file in FILES:
        target = root / file.target
        try:
            target.unlink()
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise InstallFailed(f"{target} can't be removed: {exc.strerror}; as root it can") from exc
        yield target
    if root == Path("/"):
        _run("systemctl", "daemon-reload")


def activate() -> Iterator[str]:
    """Make the user and the folders, and have systemd look again; yield what could not be done, in words."""
    for command in (
        ("systemd-sysusers", "/usr/local/lib/sysusers.d/refgenfs.conf"),
        ("systemd-tmpfiles", "--create", "/usr/local/lib/tmpfiles.d/refgenfs.conf"),
        ("systemctl", "daemon-reload"),
    ):
        if said := _run(*command):
            yield f"`{' '.join(command)}`: {said}"


def _run(*command: str) -> str:
    """Run a command; return why it failed, or an empty text."""
    if shutil.which(command[0]) is None:
        return "isn't there"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL)
    said = (done.stderr.strip() or f"exit {done.returncode}").splitlines()
    return said[-1] if done.returncode else ""


def find_program() -> str:
    """Return the path of `refgenfs` that belongs to this Python."""
    beside = os.path.join(os.path.dirname(sys.executable), "refgenfs")
    program = beside if os.access(beside, os.X_OK) else shutil.which("refgenfs")
    if program is None:
        raise InstallFailed("the program `refgenfs` isn't installed: pip install refgenfs")
    return os.path.abspath(program)


def pruned(path: Path) -> str | None:
    """Return updatedb's configuration with our type pruned; None where there is none, or it is already."""
    try:
        text = path.read_text()
    except OSError:
        return None
    found = re.search(r"""^([ \t]*PRUNEFS[ \t]*=[ \t]*)(["'])(.*?)\2""", text, re.MULTILINE)
    if found is None:
        return f'{text.rstrip()}\nPRUNEFS="{FSTYPE}"\n'.lstrip("\n")
    if FSTYPE in found[3].split():
        return None
    return f"{text[: found.end(3)].rstrip()} {FSTYPE}{text[found.end(3) :]}"


def _shared() -> Path:
    """Return the folder that has `systemd/` and `mount/`: the wheel's, or the repository's."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "share", package.parent) if (folder / "systemd").is_dir())


def _escaped(program: str, file: File) -> str:
    """Return a path for a script, or for a unit's line, where blanks and percent signs would mean something."""
    if file.mode & 0o100:
        return shlex.quote(program)
    return program.replace("%", "%%").replace(" ", "\\x20")


def _write(path: Path, text: str, mode: int) -> None:
    """Replace a file as a whole."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.chmod(mode)
    beside.replace(path)
