"""The machine: caches dropped, processes measured, commands under a deadline, and what it is."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
_DROP = Path("/proc/sys/vm/drop_caches")


class Failed(Exception):
    """A contestant, or something it needs, did not do what it should; the text says what."""


# What a contestant that fails may raise here: it is out then, and the others go on.
FAILURES = (Failed, OSError, ValueError, subprocess.SubprocessError)


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes took so far: user and system seconds, and the sum of their peaks of resident bytes."""

    cpu: float
    memory: int


def run(
    command: Sequence[str],
    *,
    timeout: float = 100,
    check: bool = True,
    stdin: Path | None = None,
    stdout: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command that may touch a mount; it is killed after `timeout` seconds. Raises Failed."""
    full = ["timeout", "-s", "KILL", f"{timeout:g}", *command]
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(stdin.open("rb")) if stdin else subprocess.DEVNULL
        sink = stack.enter_context(stdout.open("wb")) if stdout else subprocess.PIPE
        process = subprocess.Popen(
            full, stdin=source, stdout=sink, stderr=subprocess.PIPE, text=True, errors="replace",
            env=None if environ is None else dict(environ),
        )  # fmt: skip
        try:
            output, errors = process.communicate(timeout=timeout + 20)
        except subprocess.TimeoutExpired:  # not even SIGKILL gets it out of a read
            raise Failed(f"{command[0]} can't be killed after {timeout:g} s") from None
    if process.returncode in (137, -9):
        raise Failed(f"over {timeout:g} s")
    if check and process.returncode:
        lines = (errors or output or "").strip().splitlines()
        raise Failed(
            f"{Path(command[0]).name}: exit {process.returncode}: {lines[-1] if lines else 'it said nothing'}"
        )
    return subprocess.CompletedProcess(full, process.returncode, output or "", errors or "")


def timed(command: Sequence[str], *, timeout: float = 100, stdout: Path | None = None) -> float:
    """Run a command and return how many seconds it took. Raises Failed."""
    began = time.perf_counter()
    run(command, timeout=timeout, stdout=stdout)
    return time.perf_counter() - began


def at_once(commands: Iterable[Sequence[str]], *, timeout: float = 100) -> tuple[float, list[str]]:
    """Run commands at the same time; return the seconds until the last has ended, and what each printed."""
    began = time.perf_counter()
    processes = [
        subprocess.Popen(
            ["timeout", "-s", "KILL", f"{timeout:g}", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for command in commands
    ]  # fmt: skip
    outputs = [process.communicate(timeout=timeout + 20)[0] for process in processes]
    seconds = time.perf_counter() - began
    codes = [process.returncode for process in processes]
    if any(codes):
        raise Failed(f"a reader ended with {next(code for code in codes if code)}")
    return seconds, outputs


def read_whole(*paths: Path | str, size: int | None = None, timeout: float = 100) -> float:
    """Read files in order, 1 MiB a call, and return the seconds.

    Raises Failed, also where they do not have `size` bytes together: who ends early was not fast.
    """
    environ = os.environ | {"LC_ALL": "C"}  # dd says what it read in the reader's language
    began = time.perf_counter()
    told = [
        run(["dd", f"if={path}", "of=/dev/null", "bs=1M"], timeout=timeout, environ=environ).stderr for path in paths
    ]
    seconds = time.perf_counter() - began
    got = sum(int(found[1]) for text in told if (found := re.search(r"^(\d+) bytes", text, re.M)))
    if size is not None and got != size:
        raise Failed(f"{got:,} of {size:,} bytes came")
    return seconds


# --- caches -------------------------------------------------------------------------------------------------


def may_drop() -> bool:
    """Say whether this process may have the kernel forget all clean pages."""
    return os.access(_DROP, os.W_OK)


def drop_caches(paths: Iterable[Path] = ()) -> None:
    """Have the kernel forget every clean page, of the disk and of all mounts; without root, those of `paths`."""
    os.sync()
    if may_drop():
        _DROP.write_text("3\n")
    else:
        drop_pages(paths)


def drop_pages(paths: Iterable[Path]) -> None:
    """Have the kernel forget what it holds of these files, and of nothing else. Reads nothing."""
    for path in paths:
        run(["dd", f"if={path}", "iflag=nocache", "count=0", "status=none"], timeout=30)


def load_pages(paths: Iterable[Path]) -> None:
    """Bring files of the disk into the page cache."""
    for path in paths:
        read_whole(path)


# --- processes ----------------------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found, left = [], [pid]
    while left:
        found.append(one := left.pop())
        left += children.get(one, [])
    return found


def usage(pid: int) -> Usage:
    """Return what a process and its descendants took so far; those that have ended count by their CPU time only."""
    cpu, memory = 0.0, 0
    for one in family(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            cpu += sum(int(value) for value in fields[11:15]) / TICK
            memory += memory_of(one, "VmHWM")
    return Usage(cpu, memory)


def memory_of(pid: int, what: str) -> int:
    """Return VmHWM (peak) or VmRSS (now) of a process in bytes; 0 once it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(what):
                return int(line.split()[1]) * 1024
    return 0


def stop(process: subprocess.Popen[bytes], patience: float = 8) -> None:
    """End a process of ours, by its number."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    if process.poll() is None:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


def unmount(point: Path) -> None:
    """Take a mount down whatever state it is in; nothing happens where there is none."""
    for program in ("fusermount3", "fusermount"):
        if shutil.which(program):
            subprocess.run([program, "-uz", str(point)], check=False, capture_output=True, timeout=20)
            return


def is_mounted(point: Path) -> bool:
    """Say whether something is mounted there, without touching it."""
    return any(line.split()[4] == str(point) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def wait_for_mount(process: subprocess.Popen[bytes], point: Path, log: Path, timeout: float) -> None:
    """Wait until a process has mounted. Raises Failed when it ends or the time is over."""
    deadline = time.monotonic() + timeout
    while not is_mounted(point):
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(errors="replace").strip().splitlines()
            what = f"not mounted after {timeout:g} s" if process.poll() is None else f"exit {process.returncode}"
            raise Failed(f"{what}: {lines[-1][:160] if lines else 'it said nothing'}")
        time.sleep(0.02)


def raise_readahead(point: Path, kib: int = 1024) -> None:
    """Give a mount the kernel readahead that refgenfs gives its own; only root can."""
    done = subprocess.run(["mountpoint", "-d", str(point)], capture_output=True, text=True, check=False, timeout=20)
    setting = Path(f"/sys/class/bdi/{done.stdout.strip()}/read_ahead_kb")
    if done.returncode == 0 and os.access(setting, os.W_OK):
        setting.write_text(f"{kib}\n")


# --- what it is ---------------------------------------------------------------------------------------------


def describe(scratch: Path) -> dict[str, str]:
    """Return what a reader of the figures has to know of this machine."""
    cpu = next(_fields(Path("/proc/cpuinfo"), "model name"), platform.machine())
    memory = next(_fields(Path("/proc/meminfo"), "MemTotal"), "0 kB")
    kind = subprocess.run(["df", "--output=fstype", str(scratch)], capture_output=True, text=True, check=False)
    return {
        "processor": f"{len(os.sched_getaffinity(0))} × {cpu}",
        "memory": f"{int(memory.split()[0]) / (1 << 20):.0f} GiB",
        "kernel": platform.release(),
        "disk": f"{kind.stdout.split()[-1]} at {_throughput(scratch)}",
        "python": platform.python_version(),
        "nginx": version("nginx", "-v"),
        "curl": version("curl", "--version"),
    }


def version(program: str, option: str = "--version") -> str:
    """Return the version that a program tells, or what there is instead."""
    if not shutil.which(program):
        return "not installed"
    done = subprocess.run([program, option], capture_output=True, text=True, check=False, timeout=30)
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return found.group() if found else "unknown"


def _fields(path: Path, name: str) -> Iterator[str]:
    for line in path.read_text().splitlines():
        if line.startswith(name):
            yield line.partition(":")[2].strip()


def _throughput(scratch: Path) -> str:
    """Return the speed of the disk, written past the page cache and read back: 256 MiB."""
    file = scratch / "disk-speed"
    try:
        run(["dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=256", "oflag=direct", "status=none"])
        seconds = timed(["dd", f"if={file}", "of=/dev/null", "bs=1M", "iflag=direct", "status=none"])
    except Failed:
        return "an unknown speed"
    finally:
        file.unlink(missing_ok=True)
    return f"{256 * 1.048576 / seconds:.0f} MB/s read with O_DIRECT"
