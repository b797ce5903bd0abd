"""The tree against a plain dict of lookups: what the kernel holds is what is alive, and numbers are never reused."""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import hypothesis.strategies as st
import trio
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from refgenfs.core.content import content_id
from refgenfs.core.errors import NotInCatalog
from refgenfs.tree import ROOT, FileNode, FolderNode
from tests.support.shelves import ALIASES, DIGEST, SOURCE, genome_of, make_tree, snapshot_of, version_of

T = TypeVar("T")
GENOMES = [*ALIASES, DIGEST, "hg19"]
ASSETS = ["fasta", "bwa"]
TAGS = ["default", "other"]
# Every name that may be looked up anywhere; most are absent where they are asked for.
NAMES = [
    *GENOMES, *ASSETS, *TAGS, *(f"{asset}:{tag}" for asset in ASSETS for tag in TAGS), "sub", "plain.txt", ".Trash",
    *(f"{genome}.{end}" for genome in GENOMES for end in ("fa", "idx")),
]  # fmt: skip
VERSIONS = {
    (asset, tag): [version_of(asset, tag, f"{asset}-{tag}-{n}") for n in range(2)] for asset in ASSETS for tag in TAGS
}
FILES = (f"{DIGEST}.fa", f"sub/{DIGEST}.idx", "plain.txt")

# A path in the model: the names from the root. What it means depends on the snapshot of the moment of its lookup.
Meaning = tuple[Any, ...]


def run(call: Callable[[], Awaitable[T]]) -> T:
    async def main() -> T:
        return await call()

    return trio.run(main)


class TreeMachine(RuleBasedStateMachine):
    """`self.held` has for each number the lookups that the kernel holds, `self.meant` what it stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.choice = dict.fromkeys(VERSIONS, 0)
        self.default = dict.fromkeys(ASSETS, "default")
        self.absent: set[str] = set()
        self.tree, self.catalog, self.library = make_tree(self.snapshot())
        for versions in VERSIONS.values():
            for version in versions:
                self.library.files[version] = FILES
        self.held: dict[int, int] = {ROOT: 1}
        self.meant: dict[int, Meaning] = {ROOT: ("root",)}
        self.numbers: dict[Meaning, int] = {("root",): ROOT}
        self.seen: set[int] = {ROOT}

    def snapshot(self) -> Any:
        assets = {}
        for asset in ASSETS:
            if asset not in self.absent:
                default = self.default[asset]
                tags = [default, *(tag for tag in TAGS if tag != default)]
                assets[asset] = [VERSIONS[asset, tag][self.choice[asset, tag]] for tag in tags]
        return snapshot_of(genome_of(assets))

    # -- the model's own idea of names

    def version(self, asset: str, tag: str) -> tuple[str, str, int]:
        return asset, tag, self.choice[asset, tag]

    def means(self, parent: Meaning, name: str) -> Meaning | None:
        match parent:
            case ("root",):
                return ("genome", name) if name in (*ALIASES, DIGEST) else None
            case ("genome", genome):
                asset, colon, tag = name.partition(":")
                if asset not in ASSETS or asset in self.absent or (colon and tag not in TAGS):
                    return None
                return ("folder", genome, name, self.version(asset, tag or self.default[asset]), "")
            case ("folder", genome, spelling, version, prefix):
                return self.in_folder(genome, spelling, version, prefix, name)
        return None

    def in_folder(
        self, genome: str, spelling: str, version: tuple[str, str, int], prefix: str, name: str
    ) -> Meaning | None:
        shown = {file.replace(DIGEST, genome): file for file in FILES}
        path = f"{prefix}/{name}" if prefix else name
        if path in shown:
            asset, tag, number = version
            return ("file", content_id(SOURCE, VERSIONS[asset, tag][number].asset_digest, shown[path]))
        if any(file.startswith(path + "/") for file in shown):
            return ("folder", genome, spelling, version, path)
        if not prefix and spelling in ASSETS and name in TAGS and version[0] not in self.absent:
            return ("folder", genome, f"{spelling}/{name}", self.version(version[0], name), "")
        return None

    # -- what the kernel does

    def take(self, number: int, meaning: Meaning) -> None:
        """Check an answer, and count it as the kernel would."""
        known = self.numbers.get(meaning)
        if known is None:
            assert number not in self.seen, f"{number} was used before, for {self.meant.get(number)}"
        else:
            assert number == known, (meaning, number, known)
        self.seen.add(number)
        self.numbers[meaning] = number
        self.meant[number] = meaning
        self.held[number] = self.held.get(number, 0) + 1
        self.tree.remember(number)

    def drop(self, number: int) -> None:
        del self.numbers[self.meant.pop(number)]
        del self.held[number]

    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def lookup(self, data: st.DataObject, name: str) -> None:
        self.look(data.draw(st.sampled_from(sorted(self.held))), name)

    @rule(
        genome=st.sampled_from(GENOMES),
        asset=st.sampled_from([*ASSETS, *(f"{asset}:{tag}" for asset in ASSETS for tag in TAGS)]),
        rest=st.sampled_from([(), ("sub",), ("other",), ("plain.txt",), ("sub", "idx"), ("fa",), ("other", "fa")]),
    )
    def walk(self, genome: str, asset: str, rest: tuple[str, ...]) -> None:
        """Look a path up from the top, as far as it goes: most lookups of the other rule find nothing."""
        at: int | None = ROOT
        for name in (genome, asset, *(f"{genome}.{part}" if part in ("fa", "idx") else part for part in rest)):
            at = self.look(at, name) if at is not None else None

    def look(self, parent: int, name: str) -> int | None:
        wanted = self.means(self.meant[parent], name)
        if self.meant[parent][0] == "file":
            return None
        try:
            found = run(lambda: self.tree.lookup(parent, name))
        except NotInCatalog:
            assert wanted is None
            return None
        assert wanted is not None, (self.meant[parent], name)
        assert stat.S_ISREG(found.mode) == (wanted[0] == "file")
        self.take(found.inode, wanted)
        return found.inode

    @rule(data=st.data(), taken=st.integers(0, 5))
    def readdir(self, data: st.DataObject, taken: int) -> None:
        """List a folder; the kernel takes some entries and refuses the next."""
        folders = [number for number, meaning in self.meant.items() if meaning[0] != "file"]
        number = data.draw(st.sampled_from(sorted(folders)))
        entries = run(lambda: self.tree.entries(number))
        for position, (name, node) in enumerate(entries):
            wanted = self.means(self.meant[number], name)
            assert wanted is not None, (self.meant[number], name)
            attributes = self.tree.entry(number, name, node)
            if position >= taken:
                self.tree.discard_unused(attributes.inode)
                if wanted not in self.numbers:
                    self.seen.add(attributes.inode)
                return
            self.take(attributes.inode, wanted)

    @precondition(lambda self: len(self.held) > 1)
    @rule(data=st.data(), share=st.sampled_from([0.3, 1.0]))
    def forget(self, data: st.DataObject, share: float) -> None:
        number = data.draw(st.sampled_from(sorted(set(self.held) - {ROOT})))
        lookups = max(1, int(self.held[number] * share))
        self.tree.forget(number, lookups)
        self.held[number] -= lookups
        if not self.held[number]:
            self.drop(number)

    @rule(place=st.sampled_from(sorted(VERSIONS)))
    def rebuild(self, place: tuple[str, str]) -> None:
        self.choice[place] ^= 1
        self.refresh()

    @rule(asset=st.sampled_from(ASSETS), tag=st.sampled_from(TAGS))
    def switch_default(self, asset: str, tag: str) -> None:
        self.default[asset] = tag
        self.refresh()

    @rule(asset=st.sampled_from(ASSETS))
    def remove_or_add(self, asset: str) -> None:
        self.absent ^= {asset}
        self.refresh()

    def refresh(self) -> None:
        """Replace the snapshot: exactly the names that the kernel may hold and that mean another thing are told."""
        self.catalog.snapshot = self.snapshot()
        expected = set()
        for number, meaning in self.meant.items():
            for child, below in self.meant.items():
                name = _name_under(meaning, below)
                if name is not None and child != number and self.means(meaning, name) != below:
                    expected.add((number, name))
        assert set(self.tree.outdated(self.catalog.snapshot)) == expected

    @invariant()
    def what_is_held_is_alive(self) -> None:
        assert len(self.tree) == len(self.held)
        for number, lookups in self.held.items():
            inode = self.tree.inode(number)
            if number != ROOT:
                assert inode.lookups == lookups
            meaning = self.meant[number]
            if meaning[0] == "file":
                assert isinstance(inode.node, FileNode)
                assert self.tree.number_of(meaning[1]) == number
            elif meaning[0] == "folder":
                assert isinstance(inode.node, FolderNode)


def _name_under(parent: Meaning, child: Meaning) -> str | None:
    """Return the name that an asset's own folder has in `parent`, if it is one of the folders there."""
    if child[0] != "folder" or child[4]:
        return None
    _, genome, spelling, _, _ = child
    asset, slash, tag = spelling.partition("/")
    if not slash:
        return str(spelling) if parent == ("genome", genome) else None
    inside = parent[0] == "folder" and parent[1:3] == (genome, asset) and not parent[4]
    return str(tag) if inside else None


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
