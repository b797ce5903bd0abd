"""What stands in the tree: nodes, the inodes that the kernel knows them by, and what stat shows of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import ContentId, FileFacts


@dataclass(frozen=True, slots=True)
class RootNode:
    """The top of the tree."""


@dataclass(frozen=True, slots=True)
class RefgetNode:
    """The folder of sequences by MD5, or one in it: `digits` are the first of the MD5s there."""

    digits: str


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


Node = RootNode | RefgetNode | GenomeNode | FolderNode | FileNode


@dataclass(slots=True)
class Inode:
    """A node with its number, and how many lookups the kernel holds on it."""

    number: int
    node: Node
    lookups: int = 0


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat shows. Times in Unix seconds, timeouts in seconds; without a uid or gid it is the daemon's."""

    inode: int
    mode: int
    size: int
    mtime: float
    entry_timeout: float
    attr_timeout: float
    uid: int | None = None
    gid: int | None = None


def identity(node: Node) -> Node | ContentId:
    """Return what a node's inode stands for: a file's is its content, under all names of it."""
    return node.content if isinstance(node, FileNode) else node
