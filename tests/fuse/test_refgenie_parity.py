"""The tree is what `refgenie pull` lays out: names, bytes and sizes, against the real server in each of its modes.

A real refgenie client pulls everything that the server has into a folder of its own. Refgenie keeps an asset's
files at `data/<digest>/<asset>/<tag>/<digest>…` and links to them at `alias/<alias>/<asset>/<tag>/<alias>…`. So
`alias/` and `data/` are the roots of two trees that the mount shows as one: below the mountpoint are the same
paths (`<asset>/<tag>/` unlisted; listed are `<asset>/` and `<asset>:<tag>/`). "The path's root aside" means that
`refgenfs seek` prints the mountpoint where `refgenie seek` prints the path of `alias/`, and then the same.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.mounted import Mounted, Setup
from tests.support.nginx import NginxProxy
from tests.support.refgenieserver import RefgenieServer

pytest_plugins = ("tests.support.refgenieserver",)
pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data]

MODES = ("archives", "remotes", "archives-public-api", "remotes-public-api")


@dataclass(frozen=True)
class Tag:
    """One tag of an asset, as the server's catalog has it."""

    genome: str  # the digest
    aliases: tuple[str, ...]
    asset: str
    tag: str
    default: bool
    seek_keys: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the genome."""
        return (*self.aliases, self.genome)

    @property
    def listed(self) -> tuple[str, ...]:
        """The folders that the tree lists for it."""
        return (self.asset, f"{self.asset}:{self.tag}") if self.default else (f"{self.asset}:{self.tag}",)


@dataclass(frozen=True)
class Content:
    """One file of refgenie's layout: where its bytes are, how many, and their MD5."""

    path: Path
    size: int
    md5: str


@dataclass(frozen=True)
class Pulled:
    """What a real client has laid out."""

    folder: Path
    program: Path
    tags: tuple[Tag, ...]

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """The aliases of each genome."""
        return {tag.genome: tag.aliases for tag in self.tags}

    def refgenie(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the client."""
        environ = {**os.environ, "REFGENIE": str(self.folder / "genome_config.yaml")}
        environ.pop("PYTHONPATH", None)
        command = [str(self.program), *arguments]
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
        )
        assert not check or done.returncode == 0, done.stderr[-2000:]
        return done

    def content(self, tag: Tag, name: str) -> Content:
        """Return the file of this name in refgenie's data folder; a link to a sibling asset is followed there."""
        path = self.folder / "data" / tag.genome / tag.asset / tag.tag / name
        if path.is_symlink():
            # It leads to a path of the machine that built it, `…/data/<digest>/<asset>/<tag>/<file>`.
            parts = Path(os.readlink(path)).parts[-4:]
            path = self.folder.joinpath("data", *parts)
        data = path.read_bytes()
        return Content(path, len(data), hashlib.md5(data).hexdigest())

    def files(self, tag: Tag) -> dict[str, Content]:
        """Return the files of a tag, by refgenie's name under the digest."""
        folder = self.folder / "data" / tag.genome / tag.asset / tag.tag
        names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if not path.is_dir()]
        return {name: self.content(tag, name) for name in names if not name.startswith("_refgenie_build")}

    def expected(self, unlisted: bool = False) -> dict[str, Content]:
        """Return every file that the tree has, by its path there; `unlisted`: in `asset/tag/`."""
        found = {}
        for tag in self.tags:
            folders = (f"{tag.asset}/{tag.tag}",) if unlisted else tag.listed
            for name, content in self.files(tag).items():
                for genome, folder in itertools.product(tag.names, folders):
                    found[f"{genome}/{folder}/{name.replace(tag.genome, genome)}"] = content
        return found


def read_catalog(server: RefgenieServer) -> tuple[Tag, ...]:
    with urllib.request.urlopen(f"{server.url}/_private_api/genomes/dict", timeout=10) as answer:
        genomes: dict[str, Any] = json.load(answer)
    return tuple(
        Tag(digest, tuple(genome["aliases"]), name, tag, tag == asset["default_tag"], tuple(attrs["seek_keys"]))
        for digest, genome in genomes.items()
        for name, asset in genome["assets"].items()
        for tag, attrs in asset["tags"].items()
    )


@pytest.fixture(scope="module")
def pulled(archive_server: RefgenieServer, tmp_path_factory: pytest.TempPathFactory) -> Pulled:
    """Everything that the server has, pulled by the real client."""
    folder = tmp_path_factory.mktemp("pulled")
    client = Pulled(folder, archive_server.bin / "refgenie", read_catalog(archive_server))
    client.refgenie("init", "-c", str(folder / "genome_config.yaml"), "-s", archive_server.url)
    client.refgenie("pull", "--batch", *(f"{tag.aliases[0]}/{tag.asset}:{tag.tag}" for tag in client.tags))
    for digest, aliases in client.aliases.items():
        client.refgenie("alias", "set", "-d", digest, "-a", *aliases)
    return client


@dataclass(frozen=True)
class Seen:
    """A mount of one mode, what the real client has, and the first thing that was ever asked of the mount."""

    route: str
    source: str
    pulled: Pulled
    mounted: Mounted
    first_listing: str
    resident_then: int


@pytest.fixture(scope="module", params=MODES)
def seen(request: pytest.FixtureRequest, pulled: Pulled, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    mode: str = request.param
    name = {"archives": "archive_server", "remotes": "remotes_server"}[mode.partition("-")[0]]
    server: RefgenieServer = request.getfixturevalue(name)
    with ExitStack() as stack:
        deny = ("/_private_api",) if mode.endswith("public-api") else ()
        proxy = stack.enter_context(NginxProxy(server.url, deny, deny_status=404))
        source = f'[[source]]\nname = "real"\ntype = "refgenie"\nurl = "{proxy.url}"\n'
        mounted = stack.enter_context(Setup(tmp_path_factory.mktemp(mode), source).mount())
        listing = mounted.run("env", "LC_ALL=C", "ls", "-lR", ".", cwd=mounted.path)
        assert listing.stderr == ""
        resident = sum(content["resident"] for content in mounted.call("cache_info")["contents"])
        served = [entry.status for entry in proxy.log() if entry.path.startswith("/_private_api")]
        assert served, "the catalog in one call is asked for first"
        assert set(served) == ({404} if deny else {200})
        yield Seen(mode.partition("-")[0], source, pulled, mounted, listing.stdout, resident)


def test_the_pull_is_whole(pulled: Pulled) -> None:
    """What follows compares with the pull: so it has to have everything, under every alias, as refgenie says."""
    assert {tag.genome: tag.aliases for tag in pulled.tags} == pulled.aliases
    assert any(len(tag.aliases) > 1 for tag in pulled.tags)
    assert any(not tag.default for tag in pulled.tags)
    assert len(pulled.expected()) > 50
    for tag in pulled.tags:
        names = set(pulled.files(tag))
        assert names
        for alias in tag.aliases:
            folder = pulled.folder / "alias" / alias / tag.asset / tag.tag
            found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
            assert found == {name.replace(tag.genome, alias) for name in names}


def test_the_first_listing_has_exact_sizes(seen: Seen) -> None:
    """`ls -lR` on a mount of which nothing was read before."""
    sizes, folder = {}, ""
    for line in seen.first_listing.splitlines():
        if line.endswith(":") and line.startswith("."):
            folder = line[2:-1]
        elif line.startswith("-"):
            fields = line.split(maxsplit=8)
            sizes[f"{folder}/{fields[8]}"] = int(fields[4])
    assert sizes == {path: content.size for path, content in seen.pulled.expected().items()}


def test_listing_fetches_no_unpacked_copy(seen: Seen) -> None:
    """Where the host has unpacked copies, it tells their sizes; an archive tells them as it streams by."""
    assert (seen.resident_then == 0) == (seen.route == "remotes")


def walk(mounted: Mounted, *tops: str) -> dict[str, tuple[str, int, int]]:
    """Return kind, size and inode of everything below some folders of the mount."""
    done = mounted.run("find", *(tops or (".",)), "-mindepth", "1", "-printf", "%y %s %i %p\\n", cwd=mounted.path)
    assert done.stderr == ""
    rows = (line.split(" ", 3) for line in done.stdout.splitlines())
    return {path.removeprefix("./"): (kind, int(size), int(inode)) for kind, size, inode, path in rows}


def md5s(mounted: Mounted, paths: list[str]) -> dict[str, str]:
    done = mounted.run("md5sum", *paths, cwd=mounted.path)
    return {path: digest for digest, path in (line.split("  ", 1) for line in done.stdout.splitlines())}


def test_every_name_and_every_byte(seen: Seen) -> None:
    expected = seen.pulled.expected()
    found = walk(seen.mounted)
    files = {path: size for path, (kind, size, _) in found.items() if kind == "f"}
    assert files == {path: content.size for path, content in expected.items()}
    folders = {str(parent) for path in expected for parent in Path(path).parents} - {"."}
    assert {path for path, (kind, *_) in found.items() if kind == "d"} == folders
    assert len(files) + len(folders) == len(found)  # nothing else: no link, no device
    assert md5s(seen.mounted, sorted(expected)) == {path: content.md5 for path, content in expected.items()}


def test_refgenie_s_own_folders_resolve_unlisted(seen: Seen) -> None:
    expected = seen.pulled.expected(unlisted=True)
    folders = sorted({str(Path(path).parent) for path in expected})
    found = walk(seen.mounted, *folders)
    assert {path: size for path, (_, size, _) in found.items()} == {p: c.size for p, c in expected.items()}
    assert md5s(seen.mounted, sorted(expected)) == {path: content.md5 for path, content in expected.items()}
    assert not any(path in walk(seen.mounted) for path in folders)


def test_names_resolve_without_a_listing(seen: Seen, tmp_path: Path) -> None:
    """On a mount where nothing was listed, so that the kernel knows no name: each is looked up."""
    expected = seen.pulled.expected(unlisted=True) | seen.pulled.expected()
    with Setup(tmp_path, seen.source).mount() as mounted:
        assert md5s(mounted, list(expected)) == {path: content.md5 for path, content in expected.items()}


def test_one_content_is_one_inode(seen: Seen) -> None:
    """Under alias, second alias and digest, as `asset`, `asset:tag` and `asset/tag`."""
    expected = seen.pulled.expected() | seen.pulled.expected(unlisted=True)
    tops = sorted({str(Path(path).parent) for path in expected})
    found = walk(seen.mounted, *tops)
    inodes: dict[tuple[str, str], set[int]] = {}
    for tag in seen.pulled.tags:
        for name, genome in itertools.product(seen.pulled.files(tag), tag.names):
            for folder in (*tag.listed, f"{tag.asset}/{tag.tag}"):
                path = f"{genome}/{folder}/{name.replace(tag.genome, genome)}"
                inodes.setdefault((str((tag.genome, tag.asset, tag.tag)), name), set()).add(found[path][2])
    assert {place: len(numbers) for place, numbers in inodes.items()} == dict.fromkeys(inodes, 1)
    distinct = {next(iter(numbers)) for numbers in inodes.values()}
    # Two tags of one digest are one content; so are, with archives, an index's link to the FASTA and the FASTA
    # itself. An unpacked copy of such a link is a file of its own.
    shared = [tag for tag in seen.pulled.tags if not tag.default]
    contents = {content.path for content in expected.values()}
    if seen.route == "remotes":
        contents = {Path(tag + name) for tag, name in inodes}
    assert len(distinct) == len(contents) - sum(len(seen.pulled.files(tag)) for tag in shared)


# -- seek and id ------------------------------------------------------------------------------------------------


def registry_paths(tags: tuple[Tag, ...]) -> dict[str, tuple[str, Tag]]:
    """Return every registry path by a first alias, with the genome's name and the tag that it means."""
    found = {}
    for tag in tags:
        for spelling in ("", f":{tag.tag}") if tag.default else (f":{tag.tag}",):
            for seek_key in ("", *(f".{key}" for key in tag.seek_keys)):
                found[f"{tag.aliases[0]}/{tag.asset}{seek_key}{spelling}"] = tag.aliases[0], tag
    return found


@dataclass(frozen=True)
class Answers:
    """What the real client prints: of each registry path the path, of each asset the digest."""

    paths: dict[str, str]
    digests: dict[str, str]


@pytest.fixture(scope="module")
def answers(pulled: Pulled) -> Answers:
    keys = list(registry_paths(pulled.tags))
    paths = pulled.refgenie("seek", *keys).stdout.splitlines()
    digests = [line.rpartition(",")[2] for line in pulled.refgenie("id", *keys).stdout.splitlines()]
    assert len(paths) == len(digests) == len(keys) > 30
    return Answers(dict(zip(keys, paths, strict=True)), dict(zip(keys, digests, strict=True)))


@pytest.fixture(scope="module")
def quick(archive_server: RefgenieServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A mount for the commands, which ask the catalog and no files."""
    source = f'[[source]]\nname = "real"\ntype = "refgenie"\nurl = "{archive_server.url}"\n'
    with Setup(tmp_path_factory.mktemp("quick"), source).mount() as mounted:
        yield mounted


def printed(mounted: Mounted, command: str, keys: list[str]) -> dict[str, str]:
    """Return what a command of ours prints for each key."""
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda key: mounted.refgenfs(command, key), keys)
        return {key: one.stdout for key, one in zip(keys, done, strict=True)}


def test_seek_prints_what_refgenie_prints(quick: Mounted, pulled: Pulled, answers: Answers) -> None:
    root = f"{pulled.folder}/alias/"
    assert all(path.startswith(root) for path in answers.paths.values())
    expected = {key: f"{quick.path}/{path.removeprefix(root)}\n" for key, path in answers.paths.items()}
    assert printed(quick, "seek", list(expected)) == expected


def test_what_seek_prints_is_there(quick: Mounted, pulled: Pulled, answers: Answers) -> None:
    """And it is the listed file; or a folder with its names, or a prefix of the names of files."""
    root = f"{pulled.folder}/alias"
    script = [
        'same() { [ -f "$1" ] && [ "$1" -ef "$2" ] || { echo "not the same file: $1 $2"; exit 1; }; }',
        'alike() { diff <(cd "$1" && ls -d $3*) <(cd "$2" && ls -d $3*); }',
    ]
    kinds = set()
    for key, (alias, tag) in registry_paths(pulled.tags).items():
        ours = f"{quick.path}{answers.paths[key].removeprefix(root)}"
        listed = quick.path / alias / tag.listed[0]
        name = os.path.basename(ours)
        kind = "folder" if name == "." else "file" if Path(answers.paths[key]).exists() else "prefix"
        kinds.add(kind)
        if kind == "file":
            script.append(f"same {ours} {listed / name}")
        else:
            script.append(f"alike {os.path.dirname(ours)} {listed} {name.strip('.')}")
    assert kinds >= {"folder", "file", "prefix"}
    quick.run("bash", "-euc", "\n".join(script))


def test_seek_by_other_names(quick: Mounted, pulled: Pulled) -> None:
    """By a second alias, and by the digest, which refgenie shows as the first alias."""
    tag = next(tag for tag in pulled.tags if len(tag.aliases) > 1 and tag.asset == "fasta")
    keys = [f"{name}/fasta.fai" for name in (*tag.aliases, tag.genome)]
    theirs = pulled.refgenie("seek", *keys).stdout.split()
    expected = [path.replace(f"{pulled.folder}/alias", str(quick.path)) + "\n" for path in theirs]
    assert printed(quick, "seek", keys) == dict(zip(keys, expected, strict=True))


def test_id_prints_what_refgenie_prints(quick: Mounted, pulled: Pulled, answers: Answers) -> None:
    keys = [key for key in answers.digests if "." not in key]
    assert printed(quick, "id", keys) == {key: f"{answers.digests[key]}\n" for key in keys}
    with_seek_key = f"{pulled.tags[0].aliases[1]}/fasta.fai"  # the asset's, whatever the seek key
    assert quick.refgenfs("id", with_seek_key).stdout.strip() == pulled.refgenie("id", with_seek_key).stdout.strip()


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("nothing/fasta", r"genome 'nothing'"),
        ("tinyA/nothing", r"genome tinyA has no asset 'nothing'; it has: .*bwa_index.*fasta"),
        ("tinyA/fasta:nothing", r"no tag 'nothing'; it has: default"),
        ("tinyA/fasta.nothing", r"no seek key 'nothing'; it has: chrom_sizes, dir, fai, fasta"),
    ],
)
def test_keys_that_do_not_exist(quick: Mounted, pulled: Pulled, key: str, says: str) -> None:
    for command in ("seek", "id"):
        theirs = pulled.refgenie(command, key, check=False)
        ours = quick.refgenfs(command, key, check=False)
        assert ours.returncode == theirs.returncode == (0 if (command, "." in key) == ("id", True) else 1)
        if ours.returncode:
            assert ours.stdout == theirs.stdout == ""
            assert re.fullmatch(rf"refgenfs: .*{says}.*\n", ours.stderr)


@pytest.mark.parametrize(
    "key", ["tinyA", "", "tinyA/", "/", "tinyA/fasta/default", "tinyA/fasta:", "../x", "tinyA/a b"]
)
def test_what_is_no_key(quick: Mounted, key: str) -> None:
    for command in ("seek", "id"):
        done = quick.refgenfs(command, key, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(r"refgenfs: .*write (genome/asset\[\.seek_key\]\[:tag\]|tinyA/ASSET).*\n", done.stderr)
