"""From names to nodes, and what is shown of them. Knows no FUSE and no errno.

    /                       genomes, by every alias and digest
    /.refget/<aa>/<bb>/…    sequences by MD5, for CRAM; not listed
    /<genome>/              <asset> (its default tag) and <asset>:<tag>
    /<genome>/<asset>/…     the files; below the default one, <tag>/ resolves too, as refgenie lays it out

A file's inode stands for its content, under all names of it. A folder has an inode for each of its names
(the kernel allows a directory one place only), and one for each version: a rebuilt tag is a new folder, and
who sits in the old one keeps it. Numbers are never used twice.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol

import trio

from refgenfs.catalog import Catalog
from refgenfs.core.access import Rule, union
from refgenfs.core.catalog import AssetVersion, CatalogSnapshot
from refgenfs.core.content import ContentId, FileFacts, Sequence
from refgenfs.core.errors import (
    AnotherFile,
    IsADirectory,
    NotADirectory,
    NotInCatalog,
    OriginUnavailable,
    StaleContent,
)
from refgenfs.core.layout import DERIVED, is_junk
from refgenfs.core.regions import FOLDER
from refgenfs.library import Library, Located
from refgenfs.reader.reader import OpenFile
from refgenfs.reader.siblings import Siblings
from refgenfs.tree.attributes import UNKNOWN_TIMEOUT, of_file, of_folder, owned
from refgenfs.tree.inodes import ROOT, Inodes
from refgenfs.tree.nodes import Attributes, FileNode, FolderNode, GenomeNode, Inode, Node, RefgetNode, RootNode

REFGET = ".refget"  # at the top; resolves, and is not listed
MD5_DIGITS = 32
FOLDER_DIGITS = 4  # of an MD5 that are folders, two at a time, as REF_PATH=…/%2s/%2s/%s has it
NO_HEX = re.compile(r"[^0-9a-f]")

# The kernel asks for one name of a folder at a time (seen on 6.18: libfuse asks for no parallel lookups), and who
# waits behind it can't even be killed. So a size that takes long, to be made, to stream by or to be told by an
# origin, is not waited for by a name: a stat, or an open, then waits for its own file alone.
PROMPT = 1.0  # seconds that a lookup waits for what is made
PROMPT_LISTED = 0.1  # for the size of what is listed: a near origin tells it in that time, and one answer is enough
PROMPT_AGAIN = 0.02  # where another one has waited in vain already
AWAITED = 1024  # names of which that is remembered
NAMES_KEPT = 64  # names remembered of one file, to tell the kernel when they mean something else


class SequencesByMd5(Protocol):
    """Sequences of the tree, and where they are, for who may read the guarded sources `allowed`."""

    def place(self, md5: str, allowed: frozenset[str]) -> tuple[AssetVersion, str]:
        """Return a version and a name by which the library finds a sequence."""
        ...

    async def locate(self, md5: str, allowed: frozenset[str]) -> Located:
        """Return where a sequence is; raise NotInCatalog where there is none, and what hinders to find out."""
        ...


class Tree:
    """Resolves names to inodes. Lives on the trio thread."""

    def __init__(
        self,
        catalog: Catalog,
        library: Library,
        born: float,
        siblings: Siblings | None = None,
        sequences: SequencesByMd5 | None = None,
        rules: Mapping[str, Rule] | None = None,
    ) -> None:
        self._sequences = sequences
        self._catalog = catalog
        self._rules = rules or {}
        self._library = library
        self._siblings = siblings
        self._born = born
        self._inodes = Inodes()
        self._awaited: set[tuple[AssetVersion, str]] = set()  # names that were answered without a size

    # -- inodes -------------------------------------------------------------------------------------------

    def inode(self, number: int) -> Inode:
        """Return a live inode; raise NotInCatalog for one that the kernel has forgotten."""
        return self._inodes[number]

    def remember(self, number: int) -> None:
        """Count one lookup that the kernel was told of."""
        self._inodes[number].lookups += 1

    def forget(self, number: int, lookups: int) -> None:
        """Take back lookups; at none left the inode goes, and its number is never used again."""
        self._inodes.forget(number, lookups)

    def discard_unused(self, number: int) -> None:
        """Drop an inode that was made for an answer that the kernel did not take."""
        self._inodes.forget(number, 0)

    def __len__(self) -> int:
        return len(self._inodes)

    def __contains__(self, number: int) -> bool:
        return number in self._inodes

    def is_unlisted(self, number: int) -> bool:
        """Say whether an inode is of a name that resolves and that no listing has, of which there is no end."""
        node = self.inode(number).node
        if isinstance(node, FileNode):
            return node.name.startswith(DERIVED)
        return isinstance(node, RefgetNode) or (isinstance(node, FolderNode) and node.prefix.startswith(f"{FOLDER}/"))

    # -- names --------------------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: str, allowed: frozenset[str] = frozenset()) -> Attributes:
        """Resolve one name; for a file this waits until its size is known.

        `allowed` are the guarded sources that who asks may read: a sequence is found by what it is, wherever it is.
        The answer's inode is counted only by `remember`. Raises NotInCatalog, NotADirectory, and what the
        origin answers.
        """
        node = self.inode(parent).node
        child: Node
        if isinstance(node, RefgetNode) or (isinstance(node, RootNode) and name == REFGET):
            child = await self._in_refget(node, name, allowed)
        elif isinstance(node, RootNode):
            self._check_genome(name)
            child = GenomeNode(name)
        elif isinstance(node, GenomeNode):
            child = self._asset_folder(node.genome, name)
        elif isinstance(node, FolderNode):
            child = await self._in_folder(node, name)
        else:
            raise NotADirectory(f"{node.name} is a file")
        inode = self._inodes.place(child)
        if isinstance(inode.node, FileNode):
            self._adopt(inode.node, child, parent, name)
        return self._attributes(inode)

    async def _in_refget(self, node: RootNode | RefgetNode, name: str, allowed: frozenset[str]) -> Node:
        """Resolve `.refget`, `aa` and `aa/bb` in it, and what is the rest of an MD5."""
        if self._sequences is None:
            raise NotInCatalog(f"{name}: sequences are not served")
        if isinstance(node, RootNode):
            return RefgetNode("")
        digits = (node.digits + name).lower()
        if len(digits) == MD5_DIGITS:
            if NO_HEX.search(digits):
                raise NotInCatalog(f"{digits!r} is no MD5")
            find = partial(self._sequences.locate, digits, allowed)
            return await self._promptly(*self._sequences.place(digits, allowed), find)
        if len(name) != 2 or len(digits) > FOLDER_DIGITS or NO_HEX.search(digits):
            raise NotInCatalog(f"{name!r} is no part of an MD5")
        return RefgetNode(digits)

    def _check_genome(self, name: str) -> None:
        """Raise NotInCatalog for a genome that no source has; OriginUnavailable while one might."""
        unanswered = self._catalog.unanswered
        if unanswered and name not in self._catalog.snapshot.genomes and not is_junk(name):
            raise OriginUnavailable(f"{name}: it isn't known what {', '.join(unanswered)} has: no answer yet")
        self._catalog.snapshot.genome(name)

    def _asset_folder(self, genome: str, spelling: str) -> FolderNode:
        asset, colon, tag = spelling.partition(":")
        found = self._catalog.snapshot.asset(genome, asset)
        return FolderNode(genome, spelling, found.version(tag if colon else None), "")

    async def _in_folder(self, folder: FolderNode, name: str) -> Node:
        if is_junk(name) and self._library.known_layout(folder.version, folder.genome) is None:
            raise NotInCatalog(name)
        child = await self._library.child(folder.version, folder.genome, folder.prefix, name)
        if child is None:
            return self._tag_folder(folder, name)
        if child.origin_name is None:
            prefix = f"{folder.prefix}/{name}" if folder.prefix else name
            return FolderNode(folder.genome, folder.spelling, folder.version, prefix)
        if child.origin_name.startswith(DERIVED):
            find = partial(self._library.locate, folder.version, child.origin_name)
            return await self._promptly(folder.version, child.origin_name, find)
        find = partial(self._library.locate, folder.version, child.origin_name)
        return await self._promptly(folder.version, child.origin_name, find, PROMPT_LISTED)

    async def _promptly(
        self, version: AssetVersion, name: str, find: Callable[[], Awaitable[Located]], patience: float = PROMPT
    ) -> FileNode:
        """Return a file; before its size is known, if that takes longer than `patience` (seconds)."""
        key = (version, name)
        with trio.move_on_after(PROMPT_AGAIN if key in self._awaited else patience):
            found = await find()
            self._awaited.discard(key)
            return _file(found)
        if len(self._awaited) >= AWAITED:
            self._awaited.clear()
        self._awaited.add(key)
        return FileNode(version, name, self._library.provisional_id(version, name))

    def _tag_folder(self, folder: FolderNode, name: str) -> FolderNode:
        """Resolve refgenie's own `asset/tag`, which is not listed."""
        if folder.is_top and ":" not in folder.spelling and "/" not in folder.spelling:
            asset = self._catalog.snapshot.asset(folder.genome, folder.version.asset)
            if name in asset.tags:
                return FolderNode(folder.genome, f"{folder.spelling}/{name}", asset.tags[name], "")
        raise NotInCatalog(f"{folder.version.key} has no file {name!r}")

    def _adopt(self, known: FileNode, fresh: Node, parent: int, name: str) -> None:
        if isinstance(fresh, FileNode) and fresh.facts is not None:
            known.facts = fresh.facts
        if len(known.names) < NAMES_KEPT:
            known.names.add((parent, name))

    # -- access -------------------------------------------------------------------------------------------

    def guard(self, rules: Mapping[str, Rule]) -> None:
        """Go by these rules from now on; those of sources that had names before are what they were."""
        self._rules = rules

    @property
    def is_guarded(self) -> bool:
        """Whether there is anything that not everybody may read."""
        return bool(self._rules)

    @property
    def rules(self) -> Mapping[str, Rule]:
        """Who may read what not everybody may, by source."""
        return self._rules

    def rule(self, node: Node) -> Rule | None:
        """Return who may read a node; None: everybody. A genome is for whom anything in it is."""
        if not self._rules or isinstance(node, RootNode | RefgetNode):
            return None
        if isinstance(node, FileNode | FolderNode):
            return self._rules.get(node.version.source)
        genome = self._catalog.snapshot.genomes.get(node.genome)
        assets = genome.assets.values() if genome is not None else ()
        return union(self._rules.get(version.source) for asset in assets for version in asset.tags.values())

    # -- attributes ---------------------------------------------------------------------------------------

    async def getattr(self, number: int) -> Attributes:
        """Return an inode's attributes, waiting for a size that is not known yet."""
        inode = self.inode(number)
        if isinstance(inode.node, FileNode):
            await self._facts(inode.node)
        return self._attributes(inode)

    async def _facts(self, node: FileNode) -> FileFacts:
        if node.facts is None:
            facts = await self._library.facts(node.version, node.name)
            if facts.content != node.content and not node.name.startswith(DERIVED):
                # A link, or replaced: that content has an inode of its own. The kernel looks the name up anew.
                raise AnotherFile(f"{node.name} of {node.version.key} is another file")
            node.facts = facts
            if isinstance(facts.extent, Sequence):  # of which it was not known yet whose it is, and who may read it
                node.version = facts.extent.version
        return node.facts

    def _attributes(self, inode: Inode) -> Attributes:
        node = inode.node
        if isinstance(node, FileNode):
            shown = of_file(inode.number, node.facts, self._born, self._catalog.hold(node.version))
        else:
            shown = of_folder(inode.number, self._born)
        rule = self.rule(node)
        return shown if rule is None else owned(shown, rule)

    # -- listings -----------------------------------------------------------------------------------------

    async def entries(self, number: int) -> list[tuple[str, Node]]:
        """Return a folder's entries in a stable order. Never waits for sizes."""
        node = self.inode(number).node
        if isinstance(node, RootNode):
            return [(name, GenomeNode(name)) for name in self._catalog.snapshot.names]
        if isinstance(node, RefgetNode):
            return []  # they are asked for, and not listed
        if isinstance(node, GenomeNode):
            return list(self._list_genome(node.genome))
        if isinstance(node, FolderNode):
            return await self._list_folder(node)
        raise NotADirectory(f"{node.name} is a file")

    def _list_genome(self, genome: str) -> Iterator[tuple[str, Node]]:
        for name, asset in sorted(self._catalog.snapshot.genome(genome).assets.items()):
            spellings = [name, *(f"{name}:{tag}" for tag in sorted(asset.tags))]
            for spelling in spellings:
                yield spelling, self._asset_folder(genome, spelling)

    async def _list_folder(self, folder: FolderNode) -> list[tuple[str, Node]]:
        children = await self._library.children(folder.version, folder.genome, folder.prefix)
        entries: list[tuple[str, Node]] = []
        for name, child in sorted(children.items()):
            if child.origin_name is None:
                prefix = f"{folder.prefix}/{name}" if folder.prefix else name
                entries.append((name, FolderNode(folder.genome, folder.spelling, folder.version, prefix)))
                continue
            located = self._library.known(folder.version, child.origin_name, fresh=True)
            if located is not None:
                entries.append((name, _file(located)))
                continue
            content = self._library.provisional_id(folder.version, child.origin_name)
            entries.append((name, FileNode(folder.version, child.origin_name, content)))
        return entries

    def entry(self, parent: int, name: str, node: Node) -> Attributes:
        """Return the attributes of a listed entry, with an inode; counted only by `remember`."""
        inode = self._inodes.place(node)
        if isinstance(inode.node, FileNode):
            self._adopt(inode.node, node, parent, name)
        attributes = self._attributes(inode)
        if isinstance(node, FileNode) and node.facts is None:  # the name is looked up anew before it is used
            return replace(attributes, entry_timeout=UNKNOWN_TIMEOUT)
        return attributes

    # -- files --------------------------------------------------------------------------------------------

    async def open(self, number: int) -> OpenFile:
        """Open a file's content for reading, until `close`; raise IsADirectory for a folder."""
        node = self.inode(number).node
        if not isinstance(node, FileNode):
            raise IsADirectory("a folder can't be read as a file")
        if node.retired:  # the kernel looks the name up anew, and opens what it finds
            raise StaleContent(f"{node.name} of {node.version.key}: what came of it was taken back; open it again")
        file = await self._library.open(await self._facts(node), node.version, node.name)
        if node.opened:
            file.settle()
        node.opened = True
        # no await from here on: what was noted as open is closed by the caller
        if self._siblings is not None:
            self._siblings.opened(file, node.version, node.name)
        return file

    def close(self, file: OpenFile) -> None:
        """Close what `open` gave."""
        if self._siblings is not None:
            self._siblings.closed(file)

    # -- change -------------------------------------------------------------------------------------------

    def outdated(self, snapshot: CatalogSnapshot) -> list[tuple[int, str]]:
        """Return the names (parent inode, name) that a new snapshot gives another meaning."""
        changed: list[tuple[int, str]] = []
        folders: dict[tuple[str, str], list[int]] = {}  # of each genome and spelling: one a version
        outdated: set[tuple[str, str]] = set()
        for inode in self._inodes:
            node = inode.node
            if isinstance(node, GenomeNode) and node.genome not in snapshot.genomes:
                changed.append((ROOT, node.genome))
            elif isinstance(node, FolderNode) and node.is_top:
                folders.setdefault((node.genome, node.spelling), []).append(inode.number)
                if not _still(snapshot, node):
                    outdated.add((node.genome, node.spelling))
        for genome, spelling in outdated:
            # `asset` and `asset:tag` are names in the genome; `tag` of `asset/tag` is one in each folder `asset`
            asset, slash, tag = spelling.partition("/")
            parent = self._inodes.of(GenomeNode(genome))
            parents = folders.get((genome, asset), []) if slash else [] if parent is None else [parent.number]
            changed += [(number, tag or asset) for number in parents]
        return changed

    def names_of(self, content: ContentId) -> list[tuple[int, str]]:
        """Return the names (parent inode, name) by which the kernel may know a content."""
        inode = self._inodes.of(content)
        return list(inode.node.names) if inode is not None and isinstance(inode.node, FileNode) else []

    def path_of(self, number: int) -> str:
        """Return one of an inode's paths, from the top of the tree; raise NotInCatalog for one that is not in use."""
        node = self.inode(number).node
        if isinstance(node, RootNode):
            return ""
        if isinstance(node, RefgetNode):
            return "/".join(["", REFGET, *(node.digits[at : at + 2] for at in range(0, len(node.digits), 2))])
        if isinstance(node, GenomeNode):
            return f"/{node.genome}"
        if isinstance(node, FolderNode):
            return "/".join(["", node.genome, node.spelling, *([node.prefix] if node.prefix else [])])
        for parent, name in sorted(node.names):
            if parent in self._inodes:
                return f"{self.path_of(parent)}/{name}"
        return f"/{node.version.key}/{node.name}"  # by no name that the kernel knows still

    def number_of(self, content: ContentId) -> int | None:
        """Return the inode of a content, if the kernel knows it."""
        inode = self._inodes.of(content)
        return inode.number if inode is not None else None

    def retire(self, content: ContentId) -> int | None:
        """Give a content another inode from now on; return the one that it had, None if the kernel knows none.

        The kernel's pages belong to an inode: who has the old one open must not find bytes there that others
        were given of another version.
        """
        inode = self._inodes.detach(content)
        if inode is None:
            return None
        assert isinstance(inode.node, FileNode)
        inode.node.retired = True
        return inode.number


def _file(located: Located) -> FileNode:
    return FileNode(located.version, located.name, located.facts.content, located.facts)


def _still(snapshot: CatalogSnapshot, node: FolderNode) -> bool:
    """Whether a folder's spelling means the same version as before."""
    spelling = node.spelling.replace("/", ":", 1)
    asset, colon, tag = spelling.partition(":")
    try:
        return snapshot.asset(node.genome, asset).version(tag if colon else None) == node.version
    except NotInCatalog:
        return False
