"""Names that no listing has: a slice of every region, every part of an MD5. There is no end of them.

The kernel keeps what it was told of until it needs the memory, and as long as it does, an inode is kept here. So it
is asked to forget the oldest of them, and whoever holds on to ever more gets no more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from refgenfs.core.errors import TooManyNames
from refgenfs.core.shares import Shares

KEPT = 10_000  # of the newest that the kernel is not asked to forget; about 1 KiB each, with the inode
MOST = 40_000  # that there are, those included that it was asked to forget and that somebody uses


@dataclass(frozen=True, slots=True)
class _Name:
    parent: int
    name: str
    uid: int


class Unlisted:
    """The inodes of such names that the kernel knows, by who looked them up first."""

    def __init__(self, forget_name: Callable[[int, str], None], kept: int = KEPT, most: int = MOST) -> None:
        self._forget_name = forget_name
        self._kept = kept
        self._shares = Shares(most, most)
        self._recent: OrderedDict[int, _Name] = OrderedDict()  # oldest first
        self._leaving: dict[int, _Name] = {}  # that the kernel was asked to forget, and has not yet

    def __len__(self) -> int:
        return len(self._recent) + len(self._leaving)

    def found(self, number: int, parent: int, name: str, uid: int) -> None:
        """Note that a user looked up a name with this inode. Raises TooManyNames for one who uses too many."""
        known = self._recent.pop(number, None) or self._leaving.pop(number, None)
        if known is None and not self._shares.take(uid):
            raise TooManyNames(f"user {uid} uses as many names that no listing has as one user may")
        self._recent[number] = _Name(parent, name, uid if known is None else known.uid)
        while len(self._recent) > self._kept:
            oldest, one = self._recent.popitem(last=False)
            self._leaving[oldest] = one
            self._forget_name(one.parent, one.name)

    def forgotten(self, number: int) -> None:
        """Note that the kernel has forgotten an inode; nothing happens for one that is not of these."""
        known = self._recent.pop(number, None) or self._leaving.pop(number, None)
        if known is not None:
            self._shares.give_back(known.uid)
