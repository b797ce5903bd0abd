"""Files of the tree as what searches read: byte ranges, through the cache and not through the mount."""

from __future__ import annotations

from dataclasses import dataclass

from refgenfs.core.readahead import Window
from refgenfs.reader.reader import OpenFile, Reader


@dataclass(frozen=True, slots=True)
class OpenBytes:
    """A content that is read through the cache (see `htsfiles.RangeReader`)."""

    reader: Reader
    file: OpenFile

    @classmethod
    def of(cls, reader: Reader, file: OpenFile) -> OpenBytes:
        """Read a file that was just opened so that what is wanted comes, and nothing is read ahead."""
        file.window = Window(file.facts.size, limit=0, eager=False)
        return cls(reader, file)

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self.file.facts.size

    async def read(self, start: int, stop: int) -> bytes | memoryview:
        """Return these bytes. What comes is to be copied before anything is awaited: it may be evicted then."""
        return await self.reader.read_checked(self.file, start, stop)
