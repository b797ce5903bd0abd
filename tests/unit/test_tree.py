"""The tree: names, inodes and lookup counts, over a catalog and a library that are fake.

Promises:
- a genome is found by every alias and by its digest, an asset as `asset`, `asset:tag` and `asset/tag/`;
- a content has one inode under all its names; a folder has one for each of its names and versions;
- an inode lives while the kernel holds lookups on it, and its number is never used for anything else;
- listing waits for no size; what is not known is shown so that the kernel asks again;
- junk names ask no origin; a new snapshot says which names mean something else now.
"""

from __future__ import annotations

import stat
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from refgenfs.core.content import FileFacts
from refgenfs.core.errors import IsADirectory, NotADirectory, NotInCatalog, StaleContent
from refgenfs.tree import ROOT, Attributes, FileNode, FolderNode, GenomeNode, RootNode, Tree
from refgenfs.tree.tree import PROMPT_LISTED
from tests.support.shelves import (
    ALIASES,
    BORN,
    DIGEST,
    FakeCatalog,
    FakeLibrary,
    genome_of,
    make_tree,
    snapshot_of,
    version_of,
)

FASTA = version_of("fasta", "default")
OTHER = version_of("fasta", "other")
BWA = version_of("bwa_index", "default")
SNAPSHOT = snapshot_of(genome_of({"fasta": [FASTA, OTHER], "bwa_index": [BWA]}))


@pytest.fixture
def made() -> tuple[Tree, FakeCatalog, FakeLibrary]:
    return make_tree(SNAPSHOT)


@pytest.fixture
def tree(made: tuple[Tree, FakeCatalog, FakeLibrary]) -> Tree:
    return made[0]


@pytest.fixture
def catalog(made: tuple[Tree, FakeCatalog, FakeLibrary]) -> FakeCatalog:
    return made[1]


@pytest.fixture
def library(made: tuple[Tree, FakeCatalog, FakeLibrary]) -> FakeLibrary:
    return made[2]


async def walk(tree: Tree, path: str) -> Attributes:
    """Look a path up as the kernel does: one name after the other, each counted."""
    number = ROOT
    attributes = await tree.getattr(ROOT)
    for name in path.split("/"):
        attributes = await tree.lookup(number, name)
        number = attributes.inode
        tree.remember(number)
    return attributes


async def names(tree: Tree, path: str) -> list[str]:
    number = (await walk(tree, path)).inode if path else ROOT
    return [name for name, _ in await tree.entries(number)]


# ---- names


@pytest.mark.parametrize("genome", [*ALIASES, DIGEST])
@pytest.mark.parametrize("asset", ["fasta", "fasta:default", "fasta/default"])
async def test_every_name_of_a_file_resolves(tree: Tree, genome: str, asset: str) -> None:
    attributes = await walk(tree, f"{genome}/{asset}/{genome}.fa")
    assert stat.S_ISREG(attributes.mode)
    assert stat.S_IMODE(attributes.mode) == 0o444
    assert attributes.size == len(f"{DIGEST}.fa") * 1000
    assert attributes.mtime == 1_600_000_000.0
    assert stat.S_ISREG((await walk(tree, f"{genome}/{asset}/sub/{genome}.idx")).mode)
    folder = await walk(tree, f"{genome}/{asset}/sub")
    assert stat.S_ISDIR(folder.mode)
    assert stat.S_IMODE(folder.mode) == 0o555
    assert folder.mtime == BORN


@pytest.mark.parametrize(
    "path",
    [
        "hg19", "", ".", "hg38/nothing", "hg38/fasta:nothing", "hg38/fasta:", "hg38/:default", "hg38/fasta:default:x",
        "hg38/fasta/nothing", "hg38/fasta/hg38.fa.gz", f"hg38/fasta/{DIGEST}.fa", f"{DIGEST}/fasta/hg38.fa",
        "hg38/fasta:default/default", "hg38/fasta/default/default", "hg38/fasta/default/other",
        "hg38/fasta/sub/other", "hg38/fasta/sub/nothing", "hg38/fasta/..",
    ],
)  # fmt: skip
async def test_what_is_no_name_is_not_there(tree: Tree, path: str) -> None:
    with pytest.raises(NotInCatalog):
        await walk(tree, path)


async def test_nothing_is_below_a_file(tree: Tree) -> None:
    file = await walk(tree, "hg38/fasta/hg38.fa")
    with pytest.raises(NotADirectory):
        await tree.lookup(file.inode, "x")
    with pytest.raises(NotADirectory):
        await tree.entries(file.inode)


async def test_tags_are_other_files(tree: Tree) -> None:
    assert (await walk(tree, "hg38/fasta:other/hg38.fa")).inode != (await walk(tree, "hg38/fasta/hg38.fa")).inode
    assert (await walk(tree, "hg38/fasta/other/hg38.fa")).inode == (
        await walk(tree, "hg38/fasta:other/hg38.fa")
    ).inode


async def test_a_file_named_like_a_tag_is_the_file(tree: Tree, library: FakeLibrary) -> None:
    library.files[FASTA] = ("other", "x")
    assert stat.S_ISREG((await walk(tree, "hg38/fasta/other")).mode)


async def test_listings(tree: Tree) -> None:
    assert await names(tree, "") == sorted([*ALIASES, DIGEST])
    assert await names(tree, "hg38") == ["bwa_index", "bwa_index:default", "fasta", "fasta:default", "fasta:other"]
    assert await names(tree, "hg38/fasta") == ["hg38.fa", "hg38.fa.fai", "plain.txt", "sub"]
    assert await names(tree, f"{DIGEST}/fasta/sub") == [f"{DIGEST}.idx"]
    assert await names(tree, "hg38/fasta/default") == await names(tree, "hg38/fasta")


async def test_what_is_listed_is_what_is_found(tree: Tree) -> None:
    """Every entry of every folder has the inode that a lookup gives it."""
    todo = [ROOT]
    while todo:
        number = todo.pop()
        for name, node in await tree.entries(number):
            listed = tree.entry(number, name, node)
            tree.remember(listed.inode)
            found = await tree.lookup(number, name)
            assert found.inode == listed.inode
            assert found.mode == listed.mode
            if stat.S_ISDIR(found.mode):
                todo.append(found.inode)


# ---- one inode a content


async def test_a_content_has_one_inode_under_all_its_names(tree: Tree) -> None:
    inodes = {
        (await walk(tree, f"{genome}/{asset}/{genome}.fa")).inode
        for genome in (*ALIASES, DIGEST)
        for asset in ("fasta", "fasta:default", "fasta/default")
    }
    assert len(inodes) == 1


async def test_tags_of_the_same_bytes_are_one_content() -> None:
    one, two = version_of("fasta", "one", "same"), version_of("fasta", "two", "same")
    tree, _, _ = make_tree(snapshot_of(genome_of({"fasta": [one, two]})))
    assert (await walk(tree, "hg38/fasta:one/hg38.fa")).inode == (await walk(tree, "hg38/fasta:two/hg38.fa")).inode


async def test_a_link_to_a_siblings_file_is_that_file(tree: Tree, library: FakeLibrary) -> None:
    library.links[BWA, f"{DIGEST}.fa"] = FASTA, f"{DIGEST}.fa"
    linked, original = await walk(tree, "hg38/bwa_index/hg38.fa"), await walk(tree, "hg38/fasta/hg38.fa")
    assert linked.inode == original.inode


async def test_folders_have_an_inode_for_each_of_their_names(tree: Tree) -> None:
    """The kernel allows a directory one place only."""
    paths = [
        f"{genome}/{asset}{rest}"
        for genome in (*ALIASES, DIGEST)
        for asset in ("fasta", "fasta:default", "fasta/default")
        for rest in ("", "/sub")
    ] + list(ALIASES)
    inodes = [(await walk(tree, path)).inode for path in paths]
    assert len(set(inodes)) == len(paths)


async def test_a_replaced_file_is_a_new_inode(tree: Tree, library: FakeLibrary) -> None:
    """Replaced in place at the origin: who has it open goes on with what it opened."""
    old = await walk(tree, "hg38/fasta/plain.txt")
    library.salts[FASTA, "plain.txt"] = '"2"'
    new = await walk(tree, "hg38/fasta/plain.txt")
    assert new.inode != old.inode
    assert (await tree.getattr(old.inode)).inode == old.inode


# ---- sizes


async def test_a_listing_waits_for_no_size_and_says_that_it_has_none(tree: Tree, library: FakeLibrary) -> None:
    folder = await walk(tree, "hg38/fasta")
    library.asked.clear()
    entries = dict(await tree.entries(folder.inode))
    assert [line for line in library.asked if line.startswith("facts")] == []
    unknown = tree.entry(folder.inode, "hg38.fa", entries["hg38.fa"])
    assert (unknown.size, unknown.attr_timeout, unknown.entry_timeout) == (0, 0.0, 0.0)
    tree.remember(unknown.inode)
    known = await tree.getattr(unknown.inode)
    assert known.inode == unknown.inode
    assert known.size > 0
    assert known.attr_timeout > 3600
    again = tree.entry(folder.inode, "hg38.fa", dict(await tree.entries(folder.inode))["hg38.fa"])
    assert (again.inode, again.size) == (known.inode, known.size)


async def test_a_size_that_is_known_is_listed(tree: Tree, library: FakeLibrary) -> None:
    await walk(tree, "hg38/fasta/hg38.fa")
    folder = await walk(tree, "GRCh38/fasta")
    for name, node in await tree.entries(folder.inode):
        attributes = tree.entry(folder.inode, name, node)
        assert (attributes.size > 0) == (name == "GRCh38.fa")
        tree.discard_unused(attributes.inode)


async def test_a_size_is_asked_for_once(tree: Tree, library: FakeLibrary) -> None:
    file = await walk(tree, "hg38/fasta/hg38.fa")
    library.asked.clear()
    for _ in range(3):
        await tree.getattr(file.inode)
        await tree.open(file.inode)
    assert library.asked == []


async def test_a_size_that_takes_long_does_not_hold_its_name_up(
    tree: Tree, library: FakeLibrary, autojump_clock: MockClock
) -> None:
    """The kernel asks for one name of a folder at a time: the others would wait."""
    folder = await walk(tree, "hg38/fasta")
    library.delay = 20.0
    began = trio.current_time()
    early = await tree.lookup(folder.inode, "hg38.fa")
    tree.remember(early.inode)
    assert trio.current_time() - began == pytest.approx(PROMPT_LISTED)
    assert (early.size, early.attr_timeout, early.entry_timeout) == (0, 0.0, 0.0)
    again = await tree.lookup(folder.inode, "hg38.fa")
    assert again.inode == early.inode
    assert trio.current_time() - began < 2 * PROMPT_LISTED
    known = await tree.getattr(early.inode)
    assert (known.inode, known.size > 0) == (early.inode, True)
    assert trio.current_time() - began > library.delay
    assert (await tree.lookup(folder.inode, "hg38.fa")).size == known.size


async def test_a_link_that_was_answered_early_is_looked_up_anew(
    tree: Tree, library: FakeLibrary, autojump_clock: MockClock
) -> None:
    """What it leads to has an inode of its own: one content, one inode."""
    name = f"{DIGEST}.fa"
    library.links[OTHER, name] = (FASTA, name)
    target, folder = await walk(tree, "hg38/fasta/hg38.fa"), await walk(tree, "hg38/fasta:other")
    library.delay = 20.0
    early = await tree.lookup(folder.inode, "hg38.fa")
    tree.remember(early.inode)
    assert early.inode != target.inode
    for call in (tree.getattr, tree.open):
        with pytest.raises(StaleContent):  # which has the kernel look it up again
            await call(early.inode)
    assert (await tree.lookup(folder.inode, "hg38.fa")).inode == target.inode


async def test_bytes_that_were_taken_back_stay_with_the_old_inode(tree: Tree) -> None:
    """Who has it open may have pages of them: who opens the name again must not see those, nor give it new ones."""
    old = (await walk(tree, "hg38/fasta/hg38.fa")).inode
    node = tree.inode(old).node
    assert isinstance(node, FileNode)
    assert tree.retire(node.content) == old
    assert tree.retire(node.content) is None
    with pytest.raises(StaleContent):
        await tree.open(old)
    new = (await walk(tree, "hg38/fasta/hg38.fa")).inode
    assert new != old
    await tree.open(new)
    assert (await tree.getattr(old)).inode == old
    tree.forget(old, 1)
    assert (await walk(tree, "GRCh38/fasta/GRCh38.fa")).inode == new


# ---- lookup counts


async def test_an_inode_lives_as_long_as_its_lookups(tree: Tree) -> None:
    file = (await walk(tree, "hg38/fasta/hg38.fa")).inode
    await walk(tree, "GRCh38/fasta/GRCh38.fa")
    assert tree.inode(file).lookups == 2
    tree.forget(file, 1)
    assert (await tree.getattr(file)).inode == file
    tree.forget(file, 1)
    with pytest.raises(NotInCatalog, match="not in use"):
        await tree.getattr(file)
    with pytest.raises(NotInCatalog):
        await tree.open(file)


async def test_a_number_is_never_used_again(tree: Tree) -> None:
    seen: set[int] = set()
    for _ in range(5):
        for path in ("hg38", "hg38/fasta", "hg38/fasta/hg38.fa"):
            number = (await walk(tree, path)).inode
            assert number not in seen or tree.inode(number).lookups > 1
            seen.add(number)
        for number in list(seen):
            tree.forget(number, 99)
        assert len(tree) == 1
    assert len(seen) == 15


async def test_what_is_not_remembered_is_not_kept(tree: Tree) -> None:
    """An entry that the kernel did not take leaves nothing behind."""
    folder = await walk(tree, "hg38/fasta")
    before = len(tree)
    for name, node in await tree.entries(folder.inode):
        tree.discard_unused(tree.entry(folder.inode, name, node).inode)
    assert len(tree) == before
    # one that the kernel holds by another name stays
    file = await walk(tree, "GRCh38/fasta/GRCh38.fa")
    before = len(tree)
    tree.discard_unused(tree.entry(folder.inode, "hg38.fa", dict(await tree.entries(folder.inode))["hg38.fa"]).inode)
    assert len(tree) == before
    assert tree.inode(file.inode).lookups == 1


async def test_the_root_is_never_forgotten(tree: Tree) -> None:
    tree.forget(ROOT, 10**9)
    tree.discard_unused(ROOT)
    assert isinstance(tree.inode(ROOT).node, RootNode)
    assert stat.S_ISDIR((await tree.getattr(ROOT)).mode)


async def test_forgetting_what_is_not_there_does_nothing(tree: Tree) -> None:
    tree.forget(12345, 1)
    tree.discard_unused(12345)
    assert len(tree) == 1
    with pytest.raises(NotInCatalog):
        tree.remember(12345)


async def test_a_failed_lookup_leaves_nothing(tree: Tree, library: FakeLibrary) -> None:
    folder = await walk(tree, "hg38/fasta")
    before = len(tree)
    library.links[FASTA, "plain.txt"] = None
    for name in ("nothing", "plain.txt", ".Trash"):
        with pytest.raises(NotInCatalog):
            await tree.lookup(folder.inode, name)
    assert len(tree) == before


# ---- files


async def test_open_gives_the_file_and_only_files_open(tree: Tree) -> None:
    file = await walk(tree, "GRCh38/fasta/GRCh38.fa")
    opened = cast("tuple[FileFacts, object, str]", await tree.open(file.inode))
    assert opened[0].size == file.size
    assert opened[1:] == (FASTA, f"{DIGEST}.fa")
    for path in ("hg38", "hg38/fasta", "hg38/fasta/sub"):
        with pytest.raises(IsADirectory):
            await tree.open((await walk(tree, path)).inode)
    with pytest.raises(IsADirectory):
        await tree.open(ROOT)


async def test_the_key_of_an_inode(tree: Tree) -> None:
    for path, key in ((f"{DIGEST}/fasta/other/{DIGEST}.fa", "other"), ("GRCh38/fasta/sub", "default")):
        node = tree.inode((await walk(tree, path)).inode).node
        assert isinstance(node, FileNode | FolderNode)
        assert str(node.version.key) == f"hg38/fasta:{key}"


async def test_the_names_of_a_content(tree: Tree) -> None:
    file = await walk(tree, "hg38/fasta/hg38.fa")
    await walk(tree, "GRCh38/fasta:default/GRCh38.fa")
    node = tree.inode(file.inode).node
    assert isinstance(node, FileNode)
    folders = [(await walk(tree, path)).inode for path in ("hg38/fasta", "GRCh38/fasta:default")]
    assert set(tree.names_of(node.content)) == {(folders[0], "hg38.fa"), (folders[1], "GRCh38.fa")}
    assert tree.names_of("0" * 40) == []
    tree.forget(file.inode, 2)
    assert tree.names_of(node.content) == []


# ---- junk


@pytest.mark.parametrize(
    "name", [".Trash", ".Trash-1000", ".hidden", "autorun.inf", ".DS_Store", "._x", "lost+found"]
)
async def test_junk_asks_no_origin(tree: Tree, library: FakeLibrary, name: str) -> None:
    for path in ("", "hg38/", "hg38/fasta/"):
        with pytest.raises(NotInCatalog):
            await walk(tree, path + name)
    assert library.asked == []


async def test_a_file_that_is_named_like_junk_is_there_once_the_listing_is(tree: Tree, library: FakeLibrary) -> None:
    library.files[FASTA] = ("HEAD", "x")
    assert await names(tree, "hg38/fasta") == ["HEAD", "x"]
    assert stat.S_ISREG((await walk(tree, "hg38/fasta/HEAD")).mode)


# ---- change


async def folders_of(tree: Tree, *paths: str) -> dict[str, int]:
    return {path: (await walk(tree, path)).inode for path in paths}


async def test_the_same_snapshot_outdates_nothing(tree: Tree) -> None:
    await folders_of(
        tree, "hg38/fasta/sub", "hg38/fasta:other", "hg38/fasta/default", "GRCh38/bwa_index/hg38.fa"[:16]
    )
    assert tree.outdated(SNAPSHOT) == []


async def test_a_rebuilt_tag_outdates_its_names(tree: Tree, catalog: FakeCatalog) -> None:
    at = await folders_of(tree, "hg38", "hg38/fasta", "hg38/fasta:default", "hg38/fasta:other", "hg38/bwa_index")
    old_file = await walk(tree, "hg38/fasta/hg38.fa")
    rebuilt = version_of("fasta", "default", "rebuilt")
    catalog.snapshot = snapshot_of(genome_of({"fasta": [rebuilt, OTHER], "bwa_index": [BWA]}))
    assert sorted(tree.outdated(catalog.snapshot)) == [(at["hg38"], "fasta"), (at["hg38"], "fasta:default")]
    # who sits in the old folder keeps it; who looks up anew gets the new one
    assert (await tree.lookup(at["hg38/fasta"], "hg38.fa")).inode == old_file.inode
    new = await walk(tree, "hg38/fasta")
    assert new.inode != at["hg38/fasta"]
    assert (await walk(tree, "hg38/fasta/hg38.fa")).inode != old_file.inode


async def test_another_default_tag_outdates_the_name_without_a_tag(tree: Tree) -> None:
    at = await folders_of(tree, "hg38", "hg38/fasta", "hg38/fasta:default", "hg38/fasta:other")
    switched = snapshot_of(genome_of({"fasta": [OTHER, FASTA], "bwa_index": [BWA]}))
    assert tree.outdated(switched) == [(at["hg38"], "fasta")]


async def test_what_is_gone_is_outdated(tree: Tree, catalog: FakeCatalog) -> None:
    at = await folders_of(tree, "hg38", "hg38/bwa_index", "hg38/fasta:other", "GRCh38", DIGEST)
    smaller = snapshot_of(genome_of({"fasta": [FASTA]}, aliases=("hg38",)))
    assert sorted(tree.outdated(smaller)) == sorted(
        [(ROOT, "GRCh38"), (at["hg38"], "bwa_index"), (at["hg38"], "fasta:other")]
    )
    catalog.snapshot = smaller
    with pytest.raises(NotInCatalog):
        await walk(tree, "hg38/bwa_index")
    with pytest.raises(NotInCatalog):
        await tree.entries(at["GRCh38"])


async def test_a_folder_that_is_gone_from_the_listing_is_not_there(tree: Tree, library: FakeLibrary) -> None:
    sub = await walk(tree, "hg38/fasta/sub")
    library.files[FASTA] = ("plain.txt",)
    with pytest.raises(NotInCatalog, match="any more"):
        await tree.entries(sub.inode)


async def test_a_tags_own_folder_is_outdated_where_it_is(tree: Tree) -> None:
    """`fasta/other` is the name `other` in the folder `fasta`, which itself means what it meant."""
    at = await folders_of(tree, "hg38", "hg38/fasta", "hg38/fasta/other")
    rebuilt = snapshot_of(genome_of({"fasta": [FASTA, version_of("fasta", "other", "new")], "bwa_index": [BWA]}))
    assert tree.outdated(rebuilt) == [(at["hg38/fasta"], "other")]


def test_nodes_are_what_they_name() -> None:
    assert GenomeNode("hg38") == GenomeNode("hg38")
    assert FolderNode("hg38", "fasta", FASTA, "").is_top
    assert not FolderNode("hg38", "fasta", FASTA, "sub").is_top


async def test_a_name_is_believed_no_longer_than_its_file(tree: Tree, catalog: FakeCatalog) -> None:
    path = "hg38/fasta/hg38.fa"
    assert (await walk(tree, path)).entry_timeout == 60
    catalog.holds = 5.0
    assert (await walk(tree, path)).entry_timeout == 5
    catalog.holds = 600.0
    assert (await walk(tree, path)).entry_timeout == 60
