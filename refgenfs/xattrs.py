"""The extended attributes of the tree's nodes."""

from __future__ import annotations

from refgenfs.cache.store import Store
from refgenfs.library import Library
from refgenfs.tree import FileNode, FolderNode, Node


def describe(library: Library, store: Store, node: Node) -> dict[str, str]:
    """Return the extended attributes of a node, without their prefix."""
    if not isinstance(node, FileNode | FolderNode):
        return {}
    described = {"key": str(node.version.key), "digest": node.version.asset_digest}
    if isinstance(node, FolderNode):
        return described
    facts = node.facts or library.known_facts(node.version, node.name)
    content = facts.content if facts else node.content
    held = store.resident_bytes(content)
    size = facts.size if facts else None
    full = size is not None and held >= size
    described["origin"] = facts.origin if facts else "unknown"
    described["resident"] = "100" if full else str(held * 100 // size if size else 0)
    described["pinned"] = "1" if store.is_pinned(content) else "0"
    return described
