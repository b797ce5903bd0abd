"""What the tests do on a mount, in a process of its own that may be killed. Standard library only.

probe.py compare [TRUTH MOUNTED]…    read each file whole and compare every byte; one JSON line for each
probe.py list FOLDER…                names in a folder, with type and size or the error
probe.py hold FILE                   open; then for each line `OFFSET LENGTH` on stdin, the bytes as hex
probe.py versions HOW FILE OLD NEW SEED    read all of a file, and count what is of which version
probe.py random SEED SECONDS [TRUTH MOUNTED]…    read and compare random pieces of random files
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import signal
import stat
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

CHUNK = 128 * 1024
ERRORS = 6  # after so many no more is read


def main() -> None:
    act, *arguments = sys.argv[1:]
    if act == "compare":
        for truth, path in _pairs(arguments):
            _say(compare(truth, path))
    elif act == "list":
        for path in arguments:
            _say(list_folder(path))
    elif act == "hold":
        hold(arguments[0])
    elif act == "versions":
        how, path, old, new, seed = arguments
        _say(read_versions(how, path, (old, new), int(seed)))
    elif act == "random":
        _say(read_randomly(int(arguments[0]), float(arguments[1]), _pairs(arguments[2:])))


def compare(truth: str, path: str) -> dict[str, Any]:
    """Return how far a file reads right, the error that ends it, and where the first wrong byte is (-1: none)."""
    began = time.monotonic()
    with open(truth, "rb") as file:
        right = file.read()
    found: dict[str, Any] = {"path": path, "good": 0, "size": len(right), "wrong": -1, "error": ""}
    try:
        fd = os.open(path, os.O_RDONLY)
        try:
            if os.fstat(fd).st_size != len(right):
                found["wrong"] = 0
            while chunk := os.read(fd, CHUNK):
                at = found["good"]
                if chunk != right[at : at + len(chunk)]:
                    found["wrong"] = at + _first_difference(chunk, right[at : at + len(chunk)])
                    break
                found["good"] += len(chunk)
            else:
                if found["good"] != len(right):
                    found["wrong"] = found["good"]
        finally:
            os.close(fd)
    except OSError as exc:
        found["error"] = errno.errorcode[exc.errno or 0]
    found["seconds"] = round(time.monotonic() - began, 3)
    return found


def _first_difference(got: bytes, right: bytes) -> int:
    return next((at for at, (a, b) in enumerate(zip(got, right, strict=False)) if a != b), min(len(got), len(right)))


def list_folder(path: str) -> dict[str, Any]:
    """Return what `ls -l` would show of a folder: {name: size, "dir", "link", "other" or an error}."""
    shown: dict[str, Any] = {}
    try:
        names = os.listdir(path)
    except OSError as exc:
        return {"error": errno.errorcode[exc.errno or 0], "names": {}}
    for name in names:
        try:
            facts = os.lstat(f"{path}/{name}")
        except OSError as exc:
            shown[name] = errno.errorcode[exc.errno or 0]
            continue
        kinds = {stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFREG: facts.st_size}
        shown[name] = kinds.get(stat.S_IFMT(facts.st_mode), "other")
    return {"error": "", "names": shown}


def hold(path: str) -> None:
    """Keep one file open and read where told to."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as exc:
        _say({"error": errno.errorcode[exc.errno or 0], "data": ""})
        return
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # only what is asked for
    _say({"error": "", "data": ""})
    for line in sys.stdin:
        offset, length = map(int, line.split())
        try:
            _say({"error": "", "data": os.pread(fd, length, offset).hex()})
        except OSError as exc:
            _say({"error": errno.errorcode[exc.errno or 0], "data": ""})


def read_versions(how: str, path: str, versions: tuple[str, str], seed: int) -> dict[str, Any]:
    """Read a file by one open file; return the bytes that are of the old, the new, or neither version, and errors."""
    bodies = []
    for version in versions:
        with open(version, "rb") as file:
            bodies.append(file.read())
    found: dict[str, Any] = {"old": 0, "new": 0, "neither": 0, "errors": {}}
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as exc:
        found["errors"][errno.errorcode[exc.errno or 0]] = 1
        return found
    offsets = list(range(0, os.fstat(fd).st_size, CHUNK))
    if how != "sequential":
        random.Random(seed).shuffle(offsets)
    if how == "random":
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    read = _mapped(fd) if how == "mapped" else (lambda offset: os.pread(fd, CHUNK, offset))
    for offset in offsets:
        try:
            got = read(offset)
        except OSError as exc:
            name = errno.errorcode[exc.errno or 0] if exc.errno else "SIGBUS"
            found["errors"][name] = found["errors"].get(name, 0) + 1
            if sum(found["errors"].values()) >= ERRORS:
                break
            continue
        bodies_here = [
            body[offset : offset + len(got)] for body in bodies
        ]  # a read is short where a later page failed
        whose = [name for name, right in zip(("old", "new"), bodies_here, strict=True) if got == right]
        found[whose[0] if whose else "neither"] += len(got)
    os.close(fd)
    return found


def _mapped(fd: int) -> Callable[[int], bytes]:
    """Return how to read through a mapping: in a child, for a page that can't be had is the end of who touches it."""
    area = mmap.mmap(fd, 0, prot=mmap.PROT_READ)

    def read(offset: int) -> bytes:
        from_child, to_parent = os.pipe()
        child = os.fork()
        if not child:
            os.close(from_child)
            view = area[offset : offset + CHUNK]
            while view:
                view = view[os.write(to_parent, view) :]
            os._exit(0)
        os.close(to_parent)
        with os.fdopen(from_child, "rb") as pipe:
            got = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGBUS:
            raise OSError
        return got

    return read


def read_randomly(seed: int, seconds: float, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Read for some seconds; return how much was right, how often which error came, and what was wrong."""
    dice = random.Random(seed)
    end = time.monotonic() + seconds
    errors: dict[str, int] = {}
    found: dict[str, Any] = {"bytes": 0, "reads": 0, "longest": 0.0, "wrong": [], "errors": errors}
    while time.monotonic() < end and len(found["wrong"]) < 5:
        truth, path = dice.choice(pairs)
        began = time.monotonic()
        try:
            _read_some(dice, truth, path, found)
        except OSError as exc:
            name = errno.errorcode[exc.errno or 0]
            errors[name] = errors.get(name, 0) + 1
        found["longest"] = max(found["longest"], round(time.monotonic() - began, 3))
    return found


def _read_some(dice: random.Random, truth: str, path: str, found: dict[str, Any]) -> None:
    size = os.path.getsize(truth)
    with open(truth, "rb") as right:
        fd = os.open(path, os.O_RDONLY)
        try:
            if dice.random() < 0.5:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            for _ in range(dice.randint(1, 6)):
                offset = dice.randrange(size)
                length = dice.choice((100, 4096, 70_000, CHUNK, 700_000))
                length = min(length, size - offset)
                # a read is short where a later page failed: what follows must be asked for again
                while length:
                    got = os.pread(fd, length, offset)
                    if not got or got != os.pread(right.fileno(), len(got), offset):
                        found["wrong"].append([path, offset, length, len(got)])
                        return
                    found["bytes"] += len(got)
                    offset, length = offset + len(got), length - len(got)
                found["reads"] += 1
            # what was read is not to be answered out of the kernel's pages again and again
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(arguments[::2], arguments[1::2], strict=True))


def _say(value: object) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
