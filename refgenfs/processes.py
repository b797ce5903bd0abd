"""What /proc says of a process that waits for us."""

from __future__ import annotations

import os
import resource
import signal

# Signals that end a process unless it catches them.
_FATAL = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# Who catches one of these wants to end, or to do something else than wait.
_ASKED = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


OPEN_FILES = 65536  # descriptors that a daemon has use for


def raise_open_files() -> None:
    """Let this process have as many descriptors open as it may: a shell's limit is for who uses select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def wants_to_die(pid: int) -> bool:
    """Say whether a process (or thread) has a signal pending that ends it or asks it to end, or is gone.

    SIGHUP and SIGQUIT count only where nobody catches them: a daemon reloads and a JVM prints its threads on
    them, and goes on.

    A process that waits in an uninterruptible sleep for our answer gets no signal delivered, not even SIGKILL;
    /proc/<pid>/status still shows it (proc_pid_status(5): SigPnd, ShdPnd, SigBlk, SigIgn, SigCgt).
    A pid of 0 is a process of a container that we can't see: never said to die.
    """
    if pid <= 0:
        return False
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            masks = dict(line.split(":", 1) for line in file if line.startswith(("Sig", "Shd")))
    except FileNotFoundError:
        return not _exists(pid)  # /proc may be hidden from us (hidepid), or not be there
    except OSError:
        return False
    pending = int(masks.get("SigPnd", "0"), 16) | int(masks.get("ShdPnd", "0"), 16)
    ignored = int(masks.get("SigBlk", "0"), 16) | int(masks.get("SigIgn", "0"), 16)
    caught = int(masks.get("SigCgt", "0"), 16)
    pending &= ~ignored
    return any(_has(pending, number) and (number in _ASKED or not _has(caught, number)) for number in _FATAL)


def is_alive(pid: int) -> bool:
    """Say whether there is such a process, and more than a zombie, whose signals stay pending."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        return False


def command_of(pid: int) -> str:
    """Return what a process (or thread) is called, "?" for one that is gone or that we can't see."""
    if pid <= 0:
        return "?"
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read(64).strip().decode(errors="replace") or "?"
    except OSError:
        return "?"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _has(mask: int, number: int) -> bool:
    return bool(mask >> (number - 1) & 1)
