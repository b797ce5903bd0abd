"""The tree: names, inodes and lookup counts. Knows no FUSE and no errno."""

from refgenfs.tree.inodes import ROOT
from refgenfs.tree.nodes import Attributes, FileNode, FolderNode, GenomeNode, Inode, Node, RefgetNode, RootNode
from refgenfs.tree.tree import REFGET, SequencesByMd5, Tree

__all__ = [
    "REFGET",
    "ROOT",
    "Attributes",
    "FileNode",
    "FolderNode",
    "GenomeNode",
    "Inode",
    "Node",
    "RefgetNode",
    "RootNode",
    "SequencesByMd5",
    "Tree",
]
