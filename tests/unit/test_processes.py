"""What /proc says of processes that wait for us: whether they are being killed.

Promises: a process with a fatal signal pending wants to die; one with none, or with one that it blocks or ignores,
does not; one that is gone does; one that can't be seen (pid 0) never does.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from refgenfs import processes
from refgenfs.memory import resident_memory
from refgenfs.processes import wants_to_die

SLEEP = "print('ready', flush=True); time.sleep(60)"


@contextmanager
def child(setup: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that sleeps, stopped so that signals stay pending; it is killed at the end."""
    command = [sys.executable, "-c", f"import signal, time\n{setup}\n{SLEEP}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def until(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not true() and time.monotonic() < deadline:
        time.sleep(0.001)
    return true()


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0]


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    assert until(lambda: state_of(process.pid) == "T")


def test_who_lives_does_not_want_to_die() -> None:
    assert not wants_to_die(os.getpid())
    assert not wants_to_die(1)
    with child() as process:
        assert not wants_to_die(process.pid)
        stop(process)
        assert not wants_to_die(process.pid)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT], ids=lambda number: number.name
)
def test_a_fatal_signal_that_is_pending_means_death(number: signal.Signals) -> None:
    with child(f"signal.signal({int(number)}, signal.SIG_DFL)") as process:
        stop(process)
        process.send_signal(number)
        assert until(lambda: wants_to_die(process.pid))
        assert process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGCHLD, signal.SIGWINCH], ids=lambda number: number.name)
def test_other_signals_mean_nothing(number: signal.Signals) -> None:
    with child() as process:
        stop(process)
        process.send_signal(number)
        time.sleep(0.02)
        assert not wants_to_die(process.pid)


def test_a_signal_that_is_blocked_means_nothing() -> None:
    with child("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])") as process:
        process.send_signal(signal.SIGTERM)
        stop(process)
        assert until(lambda: _pending(process.pid, signal.SIGTERM))
        assert not wants_to_die(process.pid)


def test_a_signal_that_is_ignored_means_nothing() -> None:
    with child("signal.signal(signal.SIGTERM, signal.SIG_IGN)") as process:
        stop(process)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.02)
        assert not wants_to_die(process.pid)


def test_a_signal_with_a_handler_counts() -> None:
    """Its handler can't run before we answer: Ctrl-C in a Python that waits in stat() must get through."""
    with child("signal.signal(signal.SIGINT, signal.default_int_handler)") as process:
        stop(process)
        process.send_signal(signal.SIGINT)
        assert until(lambda: wants_to_die(process.pid))


def test_a_kill_of_one_that_cannot_be_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an uninterruptible sleep SIGKILL stays pending; that is made up here, from a real status."""
    with open(f"/proc/{os.getpid()}/status", encoding="ascii") as file:
        real = file.read()
    for mask in ("SigPnd", "ShdPnd"):
        for ours in ("SigBlk", "SigIgn"):
            assert f"{ours}:" in real
        text = "\n".join(
            f"{mask}:\t{1 << (signal.SIGKILL - 1):016x}" if line.startswith(mask) else line
            for line in real.splitlines()
        )
        monkeypatch.setattr(processes, "open", lambda *_, text=text, **__: io.StringIO(text + "\n"), raising=False)
        assert wants_to_die(4242)


def test_who_is_gone_wants_to_die() -> None:
    with child() as process:
        pid = process.pid
    assert wants_to_die(pid)


def test_a_thread_is_seen_too() -> None:
    """The kernel names the thread that asks."""
    script = "import threading; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    with child(script) as process:
        threads = [int(name) for name in os.listdir(f"/proc/{process.pid}/task")]
        assert len(threads) == 2
        assert not any(wants_to_die(thread) for thread in threads)
        stop(process)
        process.send_signal(signal.SIGTERM)
        assert until(lambda: all(wants_to_die(thread) for thread in threads))


@pytest.mark.parametrize("pid", [0, -1])
def test_who_cannot_be_seen_is_never_said_to_die(pid: int) -> None:
    assert not wants_to_die(pid)


def test_without_proc_nobody_is_said_to_die(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc is not mounted, or hides others' processes (hidepid), a process is not gone for that."""

    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(processes, "open", absent, raising=False)
    assert not wants_to_die(os.getpid())
    assert not wants_to_die(1)


def test_a_status_that_cannot_be_read_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(processes, "open", refuse, raising=False)
    assert not wants_to_die(os.getpid())


def test_memory_is_in_bytes() -> None:
    assert 5 << 20 < resident_memory() < 4 << 30


def _pending(pid: int, number: signal.Signals) -> bool:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        masks = dict(line.split(":", 1) for line in file if line.startswith(("SigPnd", "ShdPnd")))
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks.values())


FAULTS = """
import resource
from refgenfs.memory import tame_allocator
tame_allocator()
for _ in range(8):
    bytearray(1 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(64):
    bytearray(1 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_buffer_of_a_mebibyte_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 1024, "each was mapped anew: 256 page faults a buffer"


HOLES = """
import trio
from refgenfs.memory import give_back, resident_memory, tame_allocator

async def main():
    tame_allocator()
    buffers = [bytearray(b"x" * 65536) for _ in range(2000)]
    kept = buffers[::40]
    del buffers
    before, came = resident_memory(), iter([1, 1, 1])
    with trio.move_on_after(1):
        await give_back(lambda: next(came, 1), every=0.1)
    print(before, resident_memory(), len(kept))

trio.run(main)
"""


def test_memory_between_what_is_kept_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, timeout=60, check=True)
    before, after, _ = map(int, done.stdout.split())
    assert before - after > 64 << 20, "what was freed between two buffers that are kept stays with the process"
