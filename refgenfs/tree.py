"""The tree: names, inodes and lookup counts. Knows no FUSE and no errno.

    /                       genomes, by every alias and digest
    /<genome>/              <asset> (its default tag) and <asset>:<tag>
    /<genome>/<asset>/…     the files; below the default one, <tag>/ resolves too, as refgenie lays it out

A file's inode stands for its content, under all names of it. A folder has an inode for each of its names
(the kernel allows a directory one place only), and one for each version: a rebuilt tag is a new folder, and
who sits in the old one keeps it. Numbers are never used twice.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from refgenfs.catalog import Catalog
from refgenfs.core.catalog import AssetVersion, CatalogSnapshot
from refgenfs.core.content import ContentId, FileFacts
from refgenfs.core.errors import IsADirectory, NotADirectory, NotInCatalog, OriginUnavailable, StaleContent
from refgenfs.core.layout import is_junk
from refgenfs.library import Library, Located
from refgenfs.reader.reader import OpenFile
from refgenfs.reader.siblings import Siblings

ROOT = 1

# A name can come to mean another version when the catalog is refreshed; then the kernel is told, so this only
# bounds what it may believe if that word is lost.
NAME_TIMEOUT = 60.0  # seconds
# A content never changes, nor do its attributes.
CONTENT_TIMEOUT = 86400.0  # seconds
# For a size that is not known yet: the kernel must ask again before it uses it.
UNKNOWN_TIMEOUT = 0.0
NAMES_KEPT = 64  # names remembered of one file, to tell the kernel when they mean something else


@dataclass(frozen=True, slots=True)
class RootNode:
    """The top of the tree."""


@dataclass(frozen=True, slots=True)
class GenomeNode:
    """A genome under one of its names."""

    genome: str


@dataclass(frozen=True, slots=True)
class FolderNode:
    """A folder of an asset version. `spelling` tells apart `asset`, `asset:tag` and `asset/tag`."""

    genome: str
    spelling: str
    version: AssetVersion
    prefix: str

    @property
    def is_top(self) -> bool:
        """Whether this is the asset's own folder, not one inside it."""
        return not self.prefix


@dataclass(slots=True)
class FileNode:
    """A file: its content, and one way to it. Facts are None until the origin was asked."""

    version: AssetVersion
    name: str
    content: ContentId
    facts: FileFacts | None = None
    opened: bool = False  # the kernel may have pages of it
    retired: bool = False  # its bytes were taken back: the name has another inode
    names: set[tuple[int, str]] = field(default_factory=set)  # (parent inode, name)


Node = RootNode | GenomeNode | FolderNode | FileNode


@dataclass(slots=True)
class Inode:
    """A node with its number, and how many lookups the kernel holds on it."""

    number: int
    node: Node
    lookups: int = 0


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat shows. Times in Unix seconds, timeouts in seconds."""

    inode: int
    mode: int
    size: int
    mtime: float
    entry_timeout: float
    attr_timeout: float


class Tree:
    """Resolves names to inodes. Lives on the trio thread."""

    def __init__(self, catalog: Catalog, library: Library, born: float, siblings: Siblings | None = None) -> None:
        self._catalog = catalog
        self._library = library
        self._siblings = siblings
        self._born = born
        self._inodes: dict[int, Inode] = {ROOT: Inode(ROOT, RootNode(), 1)}
        self._numbers: dict[Node | ContentId, int] = {RootNode(): ROOT}
        self._next = ROOT + 1

    # -- inodes -------------------------------------------------------------------------------------------

    def inode(self, number: int) -> Inode:
        """Return a live inode; raise NotInCatalog for one that the kernel has forgotten."""
        try:
            return self._inodes[number]
        except KeyError:
            raise NotInCatalog(f"inode {number} is not in use") from None

    def remember(self, number: int) -> None:
        """Count one lookup that the kernel was told of."""
        self.inode(number).lookups += 1

    def forget(self, number: int, lookups: int) -> None:
        """Take back lookups; at none left the inode goes, and its number is never used again."""
        inode = self._inodes.get(number)
        if inode is None or number == ROOT:
            return
        inode.lookups -= lookups
        if inode.lookups <= 0:
            del self._inodes[number]
            identity = _identity(inode.node)
            if self._numbers.get(identity) == number:  # not so for one that was retired
                del self._numbers[identity]

    def __len__(self) -> int:
        return len(self._inodes)

    def _place(self, node: Node) -> Inode:
        identity = _identity(node)
        number = self._numbers.get(identity)
        if number is None:
            number, self._next = self._next, self._next + 1
            self._numbers[identity] = number
            self._inodes[number] = Inode(number, node)
        return self._inodes[number]

    def discard_unused(self, number: int) -> None:
        """Drop an inode that was made for an answer that the kernel did not take."""
        self.forget(number, 0)

    # -- names --------------------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: str) -> Attributes:
        """Resolve one name; for a file this waits until its size is known.

        The answer's inode is counted only by `remember`. Raises NotInCatalog, NotADirectory, and what the
        origin answers.
        """
        node = self.inode(parent).node
        child: Node
        if isinstance(node, RootNode):
            self._check_genome(name)
            child = GenomeNode(name)
        elif isinstance(node, GenomeNode):
            child = self._asset_folder(node.genome, name)
        elif isinstance(node, FolderNode):
            child = await self._in_folder(node, name)
        else:
            raise NotADirectory(f"{node.name} is a file")
        inode = self._place(child)
        if isinstance(inode.node, FileNode):
            self._adopt(inode.node, child, parent, name)
        return self._attributes(inode)

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
        return _file(await self._library.locate(folder.version, child.origin_name))

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

    # -- attributes ---------------------------------------------------------------------------------------

    async def getattr(self, number: int) -> Attributes:
        """Return an inode's attributes, waiting for a size that is not known yet."""
        inode = self.inode(number)
        if isinstance(inode.node, FileNode):
            await self._facts(inode.node)
        return self._attributes(inode)

    async def _facts(self, node: FileNode) -> FileFacts:
        if node.facts is None:
            node.facts = await self._library.facts(node.version, node.name)
        return node.facts

    def _attributes(self, inode: Inode) -> Attributes:
        node = inode.node
        if not isinstance(node, FileNode):
            mode = stat.S_IFDIR | 0o555
            return Attributes(inode.number, mode, 0, self._born, NAME_TIMEOUT, NAME_TIMEOUT)
        mode = stat.S_IFREG | 0o444
        if node.facts is None:
            return Attributes(inode.number, mode, 0, self._born, UNKNOWN_TIMEOUT, UNKNOWN_TIMEOUT)
        facts = node.facts
        return Attributes(inode.number, mode, facts.size, facts.mtime, NAME_TIMEOUT, CONTENT_TIMEOUT)

    # -- listings -----------------------------------------------------------------------------------------

    async def entries(self, number: int) -> list[tuple[str, Node]]:
        """Return a folder's entries in a stable order. Never waits for sizes."""
        node = self.inode(number).node
        if isinstance(node, RootNode):
            return [(name, GenomeNode(name)) for name in self._catalog.snapshot.names]
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
        inode = self._place(node)
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
        for inode in self._inodes.values():
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
            parent = self._numbers.get(GenomeNode(genome))
            parents = folders.get((genome, asset), []) if slash else [] if parent is None else [parent]
            changed += [(number, tag or asset) for number in parents]
        return changed

    def names_of(self, content: ContentId) -> list[tuple[int, str]]:
        """Return the names (parent inode, name) by which the kernel may know a content."""
        number = self._numbers.get(content)
        node = self._inodes[number].node if number is not None else None
        return list(node.names) if isinstance(node, FileNode) else []

    def path_of(self, number: int) -> str:
        """Return one of an inode's paths, from the top of the tree; raise NotInCatalog for one that is not in use."""
        node = self.inode(number).node
        if isinstance(node, RootNode):
            return ""
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
        return self._numbers.get(content)

    def retire(self, content: ContentId) -> int | None:
        """Give a content another inode from now on; return the one that it had, None if the kernel knows none.

        The kernel's pages belong to an inode: who has the old one open must not find bytes there that others
        were given of another version.
        """
        number = self._numbers.pop(content, None)
        if number is not None:
            node = self._inodes[number].node
            assert isinstance(node, FileNode)
            node.retired = True
        return number


def _file(located: Located) -> FileNode:
    return FileNode(located.version, located.name, located.facts.content, located.facts)


def _identity(node: Node) -> Node | ContentId:
    return node.content if isinstance(node, FileNode) else node


def _still(snapshot: CatalogSnapshot, node: FolderNode) -> bool:
    """Whether a folder's spelling means the same version as before."""
    spelling = node.spelling.replace("/", ":", 1)
    asset, colon, tag = spelling.partition(":")
    try:
        return snapshot.asset(node.genome, asset).version(tag if colon else None) == node.version
    except NotInCatalog:
        return False
