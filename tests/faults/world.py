"""A small server's folder made of nothing but bytes, an origin that does wrong on purpose, and what reads it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from refgenfs.demo.answers import CATALOG
from refgenfs.demo.origin import running
from refgenfs.demo.replies import Ask, Reply
from tests.support.faulty_origin import FaultyOrigin
from tests.support.mounted import Mounted, Setup

PROBE = Path(__file__).with_name("probe.py")
DIGEST = "5ca1ab1e" * 6  # 48 letters, as refgenieserver wants them
ALIAS = "tiny"
TAG = "default"
BLOCK = 128 * 1024

# Every wait of the daemon is short, so that a test of "never comes" is short too.
LIMITS = {"retry_for": "1100ms", "read_deadline": "2s", "lookup_deadline": "3s"}
TIMEOUT = "500ms"  # of silence, at the source
BOUND = 10.0  # seconds within which every answer has to come; the kernel asks twice for a page that failed


def noise(seed: object, size: int) -> bytes:
    """Return the same incompressible bytes for the same seed."""
    return random.Random(str(seed)).randbytes(size)


def usual_files(seed: object) -> dict[str, bytes]:
    """Return an asset's files: one of several blocks, a small one, one that is some exact blocks, an empty one."""
    return {
        "a.big": noise(f"{seed} big", 9 * BLOCK + 12_345),
        "b.small": noise(f"{seed} small", 5_000),
        "c.exact": noise(f"{seed} exact", 4 * BLOCK),
        "d.empty": b"",
    }


# --- archives -----------------------------------------------------------------------------------------------


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """Return a tar header."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mtime = kind, size, link, 1_600_000_000
    return info


def tar_of(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """Return a tar archive of just these members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data) if data else None)
    return out.getvalue()


def archive_of(files: Mapping[str, bytes], *, top: str = TAG, stamp: int = 0) -> bytes:
    """Return a well-formed .tgz; another `stamp` gives other archive bytes with the same files in them."""
    members = [(member(f"{top}/", kind=tarfile.DIRTYPE), b"")]
    members += [(member(f"{top}/{name}", len(data)), data) for name, data in files.items()]
    return gzip.compress(tar_of(members), compresslevel=1, mtime=stamp)


# --- the server's folder ------------------------------------------------------------------------------------


@dataclass
class World:
    """A refgenieserver's archive folder that can be changed while it is served."""

    root: Path
    assets: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.root / DIGEST

    def add(
        self,
        asset: str,
        files: Mapping[str, bytes] | None = None,
        *,
        archive: bytes | None = None,
        archive_digest: str | None = None,
        listing: Sequence[object] | None = None,
        version: str = "",
    ) -> None:
        """Put an asset on the server, or another version in its place, and tell of it in the catalog."""
        files = usual_files(f"{asset}{version}") if files is None else files
        self.place(asset, files, archive=archive, listing=listing)
        attrs = {
            "asset_path": asset,
            "asset_digest": hashlib.md5(f"{asset} {version}".encode() + b"".join(files.values())).hexdigest(),
            "archive_digest": self.md5(asset) if archive_digest is None else archive_digest,
            "asset_size": "1 MB",
            "archive_size": "1 MB",
            "seek_keys": {"dir": ".", **({asset: min(files)} if files else {})},
            "asset_parents": [],
            "asset_children": [],
        }
        self.assets[asset] = {"asset_description": "noise", "tags": {TAG: attrs}, "default_tag": TAG}
        self.publish()

    def place(
        self,
        asset: str,
        files: Mapping[str, bytes],
        *,
        archive: bytes | None = None,
        listing: Sequence[object] | None = None,
    ) -> None:
        """Put files and archive on the server, and say nothing of it in the catalog."""
        folder = self.unpacked(asset)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            replace(folder / name, data)
        replace(self.archive(asset), archive_of(files) if archive is None else archive)
        names = list(files) if listing is None else listing
        replace(self.home / f"asset_dir_contents_{asset}__{TAG}.json", json.dumps(names).encode())

    def publish(self) -> None:
        """Write the catalog."""
        genome = {"genome_description": "noise", "aliases": [ALIAS], "assets": self.assets}
        self.root.mkdir(exist_ok=True)
        replace(self.root / CATALOG, json.dumps({DIGEST: genome}).encode())

    def archive(self, asset: str) -> Path:
        return self.home / f"{asset}__{TAG}.tgz"

    def unpacked(self, asset: str) -> Path:
        return self.home / f"{asset}__{TAG}"

    def md5(self, asset: str) -> str:
        return hashlib.md5(self.archive(asset).read_bytes()).hexdigest()

    def files(self, asset: str) -> list[str]:
        return sorted(path.name for path in self.unpacked(asset).iterdir())


def replace(path: Path, data: bytes) -> None:
    """Write a file as a careful server does: whoever has the old one open goes on with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(data)
    os.replace(fresh, path)


# --- the origin ---------------------------------------------------------------------------------------------

Script = Callable[[Ask, Reply], Reply]


class ScriptedOrigin(FaultyOrigin):
    """An origin whose replies pass through the first script whose glob matches the path."""

    def __init__(self, root: Path, **options: Any) -> None:
        super().__init__(root, **options)
        self.scripts: dict[str, Script] = {}

    def answer(self, ask: Ask) -> Reply:
        reply = super().answer(ask)
        if reply.status == 416:  # as nginx and S3 say it; Starlette's own way has a test in test_starlette.py
            reply.headers["Content-Range"] = f"bytes {reply.headers['Content-Range']}"
        script = next((s for pattern, s in list(self.scripts.items()) if fnmatchcase(ask.path, pattern)), None)
        return reply if script is None else script(ask, reply)


# --- the daemon over it -------------------------------------------------------------------------------------


@dataclass
class Site:
    """A world, its origin and a daemon's setup. `mounted` is the daemon that runs."""

    world: World
    origin: ScriptedOrigin
    setup: Setup
    remotes: bool
    _stack: ExitStack = field(default_factory=ExitStack)
    mounted: Mounted | None = None

    @property
    def m(self) -> Mounted:
        assert self.mounted is not None
        return self.mounted

    def start_origin(self) -> None:
        self._stack.enter_context(running(self.origin))

    def stop_origin(self) -> None:
        """Have nobody listen on the origin's port."""
        self._stack.close()

    @contextmanager
    def mount(self) -> Iterator[Mounted]:
        with self.setup.mount() as mounted:
            self.mounted = mounted
            yield mounted

    def reset(self) -> None:
        """Have the origin behave."""
        self.origin.faults = []
        self.origin.scripts = {}

    def bytes_glob(self, asset: str) -> str:
        """Return the glob of the URLs that an asset's bytes come from."""
        return f"/files/*/{asset}__*/*" if self.remotes else f"/v3/assets/archive/*/{asset}"

    def pairs(self, *assets: str, name: str = ALIAS, only: str = "") -> list[str]:
        """Return truth, mounted, truth, mounted… of every file of the assets."""
        return [
            part
            for asset in assets
            for file in self.world.files(asset)
            if not only or file == only
            for part in (str(self.world.unpacked(asset) / file), f"{self.m.path}/{name}/{asset}/{file}")
        ]

    def compare(self, *assets: str, only: str = "", name: str = ALIAS, timeout: int = 60) -> list[dict[str, Any]]:
        """Read every file of the assets, or one, and say how it went."""
        return probe(self.m, "compare", *self.pairs(*assets, only=only, name=name), timeout=timeout)

    def read_right(self, *assets: str, only: str = "") -> None:
        """Assert that every byte of the assets reads, and is right."""
        for found in self.compare(*assets, only=only):
            assert (found["error"], found["wrong"], found["good"]) == ("", -1, found["size"]), (found, self.tail())

    def read_or(self, *errors: str, asset: str, only: str = "") -> list[str]:
        """Assert that each file reads right or fails with one of these errors, in time; return the errors."""
        seen = []
        for found in self.compare(asset, only=only):
            assert found["wrong"] == -1, (found, self.tail())
            assert found["error"] in ("", *errors), (found, self.tail())
            assert found["seconds"] < BOUND, (found, self.tail())
            assert found["error"] or found["good"] == found["size"], found
            seen.append(found["error"])
        return seen

    def drop_pages(self, *assets: str) -> None:
        """Have the kernel forget what it has of the files, so that the daemon is asked."""
        script = "for f in sys.argv[1:]:\n fd=os.open(f,os.O_RDONLY);os.posix_fadvise(fd,0,0,os.POSIX_FADV_DONTNEED)"
        paths = self.pairs(*assets)[1::2]
        self.m.run(sys.executable, "-c", f"import os,sys\n{script}", *paths)

    def tail(self, lines: int = 25) -> str:
        return "\n" + "\n".join(self.m.log_text().splitlines()[-lines:])


def source_toml(url: str, *, remotes: bool) -> str:
    return (
        f'[[source]]\nname = "origin"\ntype = "refgenie"\nurl = "{url}"\n'
        f'timeout = "{TIMEOUT}"\nremotes = {"true" if remotes else "false"}\n'
    )


@contextmanager
def make_site(
    folder: Path,
    assets: Iterable[str] = (),
    *,
    remotes: bool = False,
    size: str = "200MB",
    world: World | None = None,
    origin: type[ScriptedOrigin] = ScriptedOrigin,
    **options: Any,
) -> Iterator[Site]:
    """Make a world with these usual assets, serve it, and prepare a daemon's setup over it."""
    world = World(folder / "root") if world is None else world
    for asset in assets:
        world.add(asset)
    world.publish()
    server = origin(world.root, remotes=remotes, **options)
    setup = Setup(folder, sources="", size=size, limits=LIMITS)
    site = Site(world, server, setup, remotes)
    site.start_origin()
    setup.sources = source_toml(server.url, remotes=remotes)
    try:
        yield site
    finally:
        site.stop_origin()


def probe(mounted: Mounted, *arguments: str, timeout: int = 60) -> list[dict[str, Any]]:
    """Run the probe on a mount and return its lines."""
    done = mounted.run(sys.executable, str(PROBE), *arguments, timeout=timeout, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr, mounted.log_text()[-3000:])
    return [json.loads(line) for line in done.stdout.splitlines()]


class Held:
    """A file that another process holds open."""

    def __init__(self, path: str) -> None:
        command = ["timeout", "-s", "KILL", "60", sys.executable, str(PROBE), "hold", path]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Held:
        self.error = self._answer()["error"]
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.terminate()  # timeout(1) hands it on
            self._process.wait(70)
        self._process.stdout.close()

    def read(self, offset: int, length: int) -> tuple[str, bytes]:
        """Return the error, or "" and the bytes."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{offset} {length}\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer["error"], bytes.fromhex(answer["data"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that holds the file was killed"
        answer: dict[str, Any] = json.loads(line)
        return answer


def assert_log_is_clean(mounted: Mounted) -> None:
    """Assert that the daemon met nothing unexpected and told no secret."""
    text = mounted.log_text()
    assert "Traceback" not in text, text[-6000:]
    assert "unexpected" not in text, text[-6000:]
    assert "?tag=" not in text, text[-6000:]
