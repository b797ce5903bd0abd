"""The inodes that the kernel knows: numbers, and how many lookups it holds on each."""

from __future__ import annotations

from collections.abc import Iterator

from refgenfs.core.content import ContentId
from refgenfs.core.errors import NotInCatalog
from refgenfs.tree.nodes import Inode, Node, RootNode, identity

ROOT = 1


class Inodes:
    """Inodes by number, one for each identity that nothing was detached from. Numbers are never used twice."""

    def __init__(self) -> None:
        self._inodes: dict[int, Inode] = {ROOT: Inode(ROOT, RootNode(), 1)}
        self._numbers: dict[Node | ContentId, int] = {RootNode(): ROOT}
        self._next = ROOT + 1

    def __getitem__(self, number: int) -> Inode:
        """Return a live inode; raise NotInCatalog for one that the kernel has forgotten."""
        try:
            return self._inodes[number]
        except KeyError:
            raise NotInCatalog(f"inode {number} is not in use") from None

    def __contains__(self, number: int) -> bool:
        return number in self._inodes

    def __iter__(self) -> Iterator[Inode]:
        return iter(self._inodes.values())

    def __len__(self) -> int:
        return len(self._inodes)

    def of(self, what: Node | ContentId) -> Inode | None:
        """Return the inode of a folder's node, or of a content; None if the kernel knows none."""
        number = self._numbers.get(what)
        return self._inodes[number] if number is not None else None

    def place(self, node: Node) -> Inode:
        """Return the inode of a node, a new one where there is none; it goes with the next `forget` until counted."""
        found = self.of(identity(node))
        if found is not None:
            return found
        number, self._next = self._next, self._next + 1
        self._numbers[identity(node)] = number
        made = self._inodes[number] = Inode(number, node)
        return made

    def forget(self, number: int, lookups: int) -> None:
        """Take back lookups; at none left the inode goes."""
        inode = self._inodes.get(number)
        if inode is None or number == ROOT:
            return
        inode.lookups -= lookups
        if inode.lookups <= 0:
            del self._inodes[number]
            known_as = identity(inode.node)
            if self._numbers.get(known_as) == number:  # not so for one that was detached
                del self._numbers[known_as]

    def detach(self, content: ContentId) -> Inode | None:
        """Let a content have another inode from now on; return the one that it had, None for none."""
        number = self._numbers.pop(content, None)
        return self._inodes[number] if number is not None else None
