"""What the kernel says about mounts, and who uses one; nothing here touches a mounted file system."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")
_SHARED = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "wekafs", "gfs2", "ocfs2"}
    | {"fuse.glusterfs", "fuse.sshfs", "fuse.ceph", "fuse.juicefs", "fuse.s3fs", "pvfs2", "orangefs", "panfs"}
)
_SCAN_SECONDS = 3.0  # a machine with many processes must not make `umount` slow


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    point: Path
    fstype: str
    source: str
    device: str  # major:minor
    options: frozenset[str] = frozenset()  # of the file system, not of this mount of it

    @property
    def is_refgenfs(self) -> bool:
        """Say whether this is a mount of ours, dead or alive."""
        return self.fstype.startswith("fuse") and "refgenfs" in (self.source, self.fstype.partition(".")[2])

    @property
    def is_for_all(self) -> bool:
        """Say whether a mount of FUSE lets other users in."""
        return "allow_other" in self.options

    @property
    def is_shared(self) -> bool:
        """Say whether other machines may have it too: a file system of a network or a cluster."""
        return self.fstype in _SHARED

    @property
    def is_trigger(self) -> bool:
        """Say whether an automounter waits here for the first access: who lists it has to wait for the mount."""
        return self.fstype == "autofs"


def parse_mountinfo(text: str) -> list[Mount]:
    """Return the mounts that /proc/self/mountinfo lists, in its order: the last one at a point is on top."""
    mounts = []
    for line in text.splitlines():
        fields = line.split(" ")
        try:
            dash = fields.index("-")
            options = frozenset(fields[dash + 3].split(",") if len(fields) > dash + 3 else ())
            mounts.append(
                Mount(Path(_plain(fields[4])), fields[dash + 1], _plain(fields[dash + 2]), fields[2], options)
            )
        except (ValueError, IndexError):
            continue
    return mounts


def mount_at(point: Path) -> Mount | None:
    """Return what is mounted at exactly this path, the topmost; None where nothing is."""
    found = [mount for mount in _mounts() if mount.point == point]
    return found[-1] if found else None


def holder_of(path: Path, mounts: Iterable[Mount] | None = None) -> Mount | None:
    """Return the mount that has an absolute path without links, of `mounts` or of this process; None: unknown."""
    found = None
    for mount in _mounts() if mounts is None else mounts:  # the last of the deepest is on top
        if path.is_relative_to(mount.point) and (found is None or len(mount.point.parts) >= len(found.point.parts)):
            found = mount
    return found


def genome_mounts() -> list[Path]:
    """Return where genomes are mounted, whoever did that."""
    return sorted({mount.point for mount in _mounts() if mount.is_refgenfs})


def _mounts() -> list[Mount]:
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


@dataclass(frozen=True, slots=True)
class User:
    """A process that keeps a mount busy."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"


def users_of(point: Path, *, besides: frozenset[int] = frozenset()) -> list[User]:
    """Return the processes that have a file or directory under `point` open, mapped, or as theirs.

    Only processes that this user may look at are seen; names are read from /proc, and nothing under `point`
    is touched.
    """
    deadline = time.monotonic() + _SCAN_SECONDS
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in besides:
            continue
        if time.monotonic() > deadline:
            break
        if any(_is_under(path, str(point)) for path in _paths_of(entry)):
            found.append(User(int(entry), _command(entry)))
    return found


def _paths_of(pid: str) -> Iterator[str]:
    for link in ("cwd", "root", "exe"):
        yield from _link(f"/proc/{pid}/{link}")
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            yield from _link(f"/proc/{pid}/fd/{number}")
        with open(f"/proc/{pid}/maps", errors="surrogateescape") as maps:
            for line in maps:
                yield _plain(line[73:].rstrip("\n"))
    except OSError:
        return


def _link(path: str) -> Iterator[str]:
    try:
        yield os.readlink(path)
    except OSError:
        return


def _is_under(path: str, point: str) -> bool:
    return path == point or path.startswith(f"{point}/")


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "a process"


def _plain(text: str) -> str:
    """Undo the kernel's octal escapes of blanks and line ends."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
