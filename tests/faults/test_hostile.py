"""Answers that are meant to harm: catalogs that are none, names that lead out, archives that are traps."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from refgenfs.demo.replies import Ask, Body, Inline, Reply, json_reply
from tests.faults.world import (
    ALIAS,
    DIGEST,
    TAG,
    Script,
    Site,
    World,
    archive_of,
    assert_log_is_clean,
    make_site,
    member,
    noise,
    probe,
    tar_of,
    usual_files,
)

pytestmark = pytest.mark.needs_fuse

MIB = 1 << 20
PEAK = 150 * MIB
HONEST = {"a.big": noise("honest", 200_000), "b.small": noise("small", 900)}


# --- archives -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """An archive as bytes; `listing` is what the server says that is in it, `fails` that all of it is refused."""

    name: str
    archive: bytes
    listing: tuple[str, ...] = ("a.big", "b.small", "evil")
    fails: bool = True


def _with(*extra: tuple[tarfile.TarInfo, bytes], first: bool = False) -> bytes:
    good = [(member(f"{TAG}/{name}", len(data)), data) for name, data in HONEST.items()]
    return gzip.compress(tar_of([*extra, *good] if first else [*good, *extra]), 1, mtime=0)


def _link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(f"{TAG}/{name}", kind=tarfile.SYMTYPE, link=target), b""


def _cases() -> Iterator[Bad]:
    out = b"root:x:0:0"
    yield Bad("dotdot", _with((member(f"{TAG}/../evil", len(out)), out)))
    yield Bad("dotdot_first", _with((member("../evil", len(out)), out), first=True))
    yield Bad("absolute", _with((member("/etc/evil", len(out)), out)))
    yield Bad("two_tops", _with((member("other/evil", len(out)), out)))
    yield Bad("twice", _with((member(f"{TAG}/a.big", len(out)), out)))
    yield Bad("no_top", _with((member("evil", len(out)), out)))
    for kind, flag in (("chr", tarfile.CHRTYPE), ("blk", tarfile.BLKTYPE), ("fifo", tarfile.FIFOTYPE)):
        yield Bad(f"device_{kind}", _with((member(f"{TAG}/evil", kind=flag), b"")), fails=False)
    inside = f"/x/{DIGEST}/../../etc/passwd"
    targets = ("/etc/passwd", "../../../../../etc/passwd", "..", ".", "evil", inside, "/proc/self/mem")
    for number, target in enumerate(targets):
        yield Bad(f"link_{number}", _with(_link("evil", target)), fails=False)
    yield Bad("loop", _with(_link("evil", "evil2"), _link("evil2", "evil")), fails=False)
    good = archive_of(HONEST)
    yield Bad("truncated", good[:-3_000])
    yield Bad("truncated_trailer", good[:-4])
    yield Bad("trailing_garbage", good + noise("garbage", 5_000))
    yield Bad("no_gzip", noise("nothing", 50_000))
    yield Bad("empty", b"")
    yield Bad("gzip_of_noise", gzip.compress(noise("no tar", 50_000)))
    yield Bad("html", b"<html>Welcome to the captive portal</html>")


CASES = list(_cases())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with make_site(tmp_path_factory.mktemp("hostile"), ["fine"]) as made:
        for case in CASES:
            made.world.add(case.name, HONEST, archive=case.archive, listing=case.listing)
        with made.mount():
            yield made


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_archive(site: Site, case: Bad) -> None:
    folder = f"{site.m.path}/{ALIAS}/{case.name}"
    seen = site.read_or("EIO", "ESTALE", asset=case.name)  # never a wrong byte of the honest members
    evil = site.m.run("cat", f"{folder}/evil", check=False, timeout=15)
    assert evil.returncode == 1, evil.stdout
    assert "root:" not in evil.stdout
    names = probe(site.m, "list", folder)[0]["names"]
    for name, kind in names.items():
        assert name in case.listing, name
        assert kind not in ("link", "other", "dir"), (name, kind)
    if case.fails:
        assert not isinstance(names.get("evil"), int)
    else:
        assert seen == ["", ""], site.tail()
    site.read_right("fine")


def test_hostile_archives_leave_nothing_wrong(site: Site) -> None:
    """Last: the mended archives read right, also after a restart."""
    for case in CASES:
        site.world.add(case.name, HONEST)
    site.m.call("reload")
    names = [case.name for case in CASES]
    for found in site.compare(*names):
        assert found["wrong"] == -1, found
    site.read_right(*names, "fine")
    assert not site.m.call("cache_verify")["damaged"]
    assert_log_is_clean(site.m)
    assert site.m.memory() < PEAK
    site.m.stop()
    with site.mount() as m:
        site.read_right(*names, "fine")
        assert_log_is_clean(m)


def test_a_gzip_bomb(tmp_path: Path) -> None:
    """2 GiB of zeros in 2 MB, as a member and as a header that never ends: memory and disk stay bounded."""
    huge = 2 << 30
    head = tar_of([(member(f"{TAG}/a.big", 10), bytes(10))])[:1024] + member(f"{TAG}/zeros", huge).tobuf()
    with make_site(tmp_path, ["fine"], size="40MB") as site:
        bomb = gzip.compress(head, 1) + gzip.compress(bytes(16 * MIB), 9) * (huge // (16 * MIB))
        long_name = member("x", huge, kind=tarfile.GNUTYPE_LONGNAME).tobuf()
        site.world.add("member", {"a.big": bytes(10), "zeros": b""}, archive=bomb, listing=["a.big", "zeros"])
        site.world.add("name", {"a.big": bytes(10)}, archive=gzip.compress(long_name) + bomb[len(head) :])
        with site.mount() as m:
            path = f"{m.path}/{ALIAS}/member/zeros"
            begun = m.run("head", "-c", "1000000", path, check=False, timeout=20, text=False)
            assert begun.stdout == bytes(len(begun.stdout))
            site.read_or("EIO", asset="name")
            site.read_right("fine")
            used = int(m.run("du", "-sB1", str(m.cache)).stdout.split()[0])
            assert used <= 40_000_000
            assert m.memory() < PEAK, m.memory()


class _Large:
    """A body that says that it is larger than it is."""

    size = 1 << 44

    def __init__(self, body: Body) -> None:
        self._body = body

    def read(self, offset: int, size: int) -> bytes:
        return self._body.read(offset, size)

    def close(self) -> None:
        self._body.close()


def _said_to_be_large(ask: Ask, reply: Reply) -> Reply:
    if ask.method == "HEAD":
        reply.body = _Large(reply.body)
    elif "Content-Range" in reply.headers:
        reply.headers["Content-Range"] = f"{reply.headers['Content-Range'].partition('/')[0]}/{_Large.size}"
    return reply


@pytest.mark.parametrize("remotes", [True, False], ids=["unpacked", "archive"])
def test_a_file_that_is_said_to_have_16_tib(tmp_path: Path, remotes: bool) -> None:
    """No map is made of its 268 million blocks; what there is of it reads."""
    world, data = World(tmp_path / "root"), noise("large", 3 * MIB)
    head = member(f"{TAG}/a.big", _Large.size).tobuf(tarfile.GNU_FORMAT)
    world.add("large", {"a.big": data}, archive=gzip.compress(tar_of([_folder()])[:512] + head + data, 1))
    with make_site(tmp_path, ["fine"], world=world, remotes=remotes) as site, site.mount() as m:
        site.origin.scripts["/files/*/large__*/*"] = _said_to_be_large
        path = f"{m.path}/{ALIAS}/large/a.big"
        read = m.run("head", "-c", "100000", path, timeout=20, text=False, check=False)
        assert data.startswith(read.stdout)  # the archive ends soon, and what came of it is taken back then
        if remotes:
            assert len(read.stdout) == 100_000
            assert int(m.run("stat", "-c", "%s", path, timeout=20).stdout) == _Large.size
        site.read_right("fine")
        assert m.memory() < PEAK, m.memory()
        assert not m.status()["cache"]["error"]
        assert_log_is_clean(m)


def _folder() -> tuple[tarfile.TarInfo, bytes]:
    return member(f"{TAG}/", kind=tarfile.DIRTYPE), b""


# --- the catalog --------------------------------------------------------------------------------------------


def _fixed(body: bytes, status: int = 200) -> Script:
    def script(ask: Ask, reply: Reply) -> Reply:
        reply.body.close()
        return Reply(status, {"Content-Type": "application/json"}, Inline(body))

    return script


class _Endless:
    """A body of 3 GB that takes no memory."""

    size = 3_000_000_000

    def read(self, offset: int, size: int) -> bytes:
        return b" " * min(size, self.size - offset)

    def close(self) -> None:
        pass


def _endless(ask: Ask, reply: Reply) -> Reply:
    reply.body.close()
    return Reply(200, {"Content-Type": "application/json"}, _Endless())


CATALOGS: dict[str, Script] = {
    "garbage": _fixed(noise("garbage", 3_000)),
    "empty": _fixed(b""),
    "half": _fixed(b'{"' + DIGEST.encode() + b'": {"assets": {"one"'),
    "html": _fixed(b"<html><h1>It works!</h1></html>"),
    "list": _fixed(b"[1, 2, 3]"),
    "null": _fixed(b"null"),
    "wrong_inside": _fixed(json.dumps({DIGEST: {"assets": {"one": {"tags": 7}}}}).encode()),
    "deep": _fixed(b"[" * 200_000),
    "endless": _endless,
    "error": _fixed(b"oops", 500),
    "denied": _fixed(b"no", 403),
}


@pytest.mark.parametrize("remotes", [False, True], ids=["archive", "ranges"])
def test_a_catalog_that_is_none(tmp_path: Path, remotes: bool) -> None:
    """The last good one stays, and all of its files read."""
    with make_site(tmp_path, ["one", "two"], remotes=remotes) as site, site.mount() as m:
        site.read_right("one")
        for name, script in CATALOGS.items():
            site.origin.scripts = {"/_private_api/*": script, "/v3/genomes/*": script, "/v3/assets/list": script}
            m.call("reload")
            shown = m.run("ls", f"{m.path}/{ALIAS}", timeout=20).stdout.split()
            assert shown == ["one", "one:default", "two", "two:default"], name
            site.read_right("one")
            assert not m.status()["sources"][0]["healthy"], name
            assert m.memory() < PEAK + 100 * MIB, name
        site.read_right("two")
        site.reset()
        m.call("reload")
        assert m.status()["sources"][0]["healthy"]
        site.read_right("one", "two")
        assert_log_is_clean(m)


def test_a_first_start_with_a_catalog_that_is_none(tmp_path: Path) -> None:
    with make_site(tmp_path, ["one"]) as site:
        site.origin.scripts = {"*": CATALOGS["garbage"]}
        with site.mount() as m:
            assert m.run("ls", str(m.path), timeout=20).stdout == ""
            site.reset()
            m.call("reload")
            site.read_right("one")
            assert_log_is_clean(m)


def test_hostile_names_in_the_catalog(tmp_path: Path) -> None:
    """Names that no path can have are left out; the others are there."""
    bad = ["../up", "..", ".", "", "a/b", "/abs", "nul\0", "new\nline", "x" * 300, "colon:inside", "\x1b[31mred"]
    with make_site(tmp_path, ["one"]) as site:
        catalog = json.loads((site.world.root / "genomes.json").read_bytes())
        asset = catalog[DIGEST]["assets"]["one"]
        for name in bad:
            catalog[DIGEST]["assets"][name] = asset
            catalog[DIGEST]["aliases"].append(name)
            asset["tags"][f"{name}/x"] = asset["tags"][TAG]
            catalog[name] = catalog[DIGEST] | {"aliases": [], "assets": {}}
        site.origin.scripts = {"/_private_api/*": lambda ask, reply: json_reply(catalog)}
        with site.mount() as m:
            assert sorted(probe(m, "list", str(m.path))[0]["names"]) == sorted([ALIAS, DIGEST])
            assert sorted(probe(m, "list", f"{m.path}/{ALIAS}")[0]["names"]) == ["one", "one:default"]
            site.read_right("one")
            assert "\x1b" not in m.log_text()
            assert_log_is_clean(m)


@pytest.mark.parametrize("remotes", [False, True], ids=["archive", "ranges"])
def test_hostile_names_in_a_listing(tmp_path: Path, remotes: bool) -> None:
    files = usual_files("one")
    bad = ["../up", "/etc/passwd", "..", ".", "a/../../b", "x\0y", "", "y" * 300, "d/" * 2_000 + "f", "a.big/below"]
    with make_site(tmp_path, remotes=remotes) as site:
        site.world.add("one", files, listing=[*files, *bad])
        site.world.add("two", listing=[*files, 7, None])
        with site.mount() as m:
            shown = probe(m, "list", f"{m.path}/{ALIAS}/one")[0]["names"]
            assert shown == {name: len(data) for name, data in files.items()}
            site.read_right("one")
            # a listing that is no list of names is no listing: an error, or what the archive holds
            second = probe(m, "list", f"{m.path}/{ALIAS}/two")[0]
            assert second["error"] in ("", "EIO")
            assert set(second["names"]) <= set(files)
            assert_log_is_clean(m)
