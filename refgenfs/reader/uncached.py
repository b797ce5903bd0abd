"""A content that the cache can't hold now: everything of it is missing, and stays so."""

from __future__ import annotations

from dataclasses import dataclass

from refgenfs.cache.content import Content
from refgenfs.cache.shelf import Reservation
from refgenfs.core.content import ContentId, Run
from refgenfs.core.errors import CacheError
from refgenfs.reader.straight import StraightContent


@dataclass(frozen=True, slots=True)
class UncachedContent:
    """Stands in for a `Content` when the disk or the ledger refuses; what is read of it is never stored."""

    id: ContentId
    size: int

    def missing(self, run: Run) -> int:
        """Return the first block of the run: none is resident."""
        return run.first if run.first < run.stop else -1

    def reserve(self, run: Run, *, older_than: int | None = None) -> Reservation | None:
        """Return None: there is no room."""
        return None

    def read(self, offset: int, length: int) -> bytes:
        """Raise CacheError: nothing is resident."""
        raise CacheError(f"content {self.id} is not in the cache")

    def touch(self, run: Run) -> None:
        """Do nothing: nothing is resident."""

    def read_at_once(self, offset: int, length: int) -> bytes | memoryview | None:
        """Raise CacheError: nothing is resident."""
        return self.read(offset, length)

    def bring(self, offset: int, length: int) -> None:
        """Do nothing: nothing is on the disk."""

    def pass_by(self, run: Run) -> None:
        """Do nothing: nothing is on the disk."""

    def write(self, index: int, data: memoryview) -> int:
        """Raise CacheError: nothing can be stored."""
        raise CacheError(f"content {self.id} can't be stored")

    def commit(self, index: int, crc: int, reservation: Reservation | None = None) -> bool:
        """Return False: nothing becomes resident."""
        return False


AnyContent = Content | UncachedContent | StraightContent
