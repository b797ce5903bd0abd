"""How far to read ahead of one open file: nothing for a random reader, more and more for a sequential one.

Pure: offsets in, runs of blocks out. One `Window` belongs to one file handle. As in the kernel's own readahead
(Documentation/mm/readahead in Linux) what is ahead starts small, grows while the reader goes on in order, and falls
back to nothing at the first jump. But it is measured by what the reader has read: so many times that is the most that
can have been fetched in vain, and what it skips counts towards it. And it slides: a quarter of it is asked for
anew whenever a quarter was read, so that there are always several requests on their way.
"""

from __future__ import annotations

from dataclasses import dataclass

from refgenfs.core.content import BLOCK, Run, block_count

# The first window: small, since most files of an index are small, and many a reader looks at a file's head only.
FIRST_WINDOW = 512 * 1024 // BLOCK  # blocks
GROWTH = 4  # windows are so many times what was read in order
# 32 MiB are eight requests of 4 MiB, on as many connections: what an origin gives one connection may be little.
# It costs no memory: blocks go to the disk as they land.
LARGEST_WINDOW = 32 * 1024 * 1024 // BLOCK  # blocks
# One request is an eighth of the window, so that also a small one is on several connections: each begins slowly, and
# gives no more than its share. Not less than what a round trip is worth, not so much that no other gets its turn.
REQUESTS = 8
SHORTEST_REQUEST = 512 * 1024 // BLOCK  # blocks
LONGEST_REQUEST = 4 * 1024 * 1024 // BLOCK  # blocks
# Two dozen readers in order fit into the cache with what is fetched ahead of each: what is evicted before it is read
# comes twice.
CACHE_SHARE = 32
# The kernel splits and reorders a reader's requests (two readahead windows of up to 1 MiB each in flight),
# and loaders skip headers: that is still reading in order.
TOLERANCE = 4 * 1024 * 1024  # bytes
# What a reader in order has left behind is told in steps of this: seldom, and not before it is surely behind.
STEP = 16 * 1024 * 1024 // BLOCK  # blocks


def largest_window(cache: int) -> int:
    """Return how many blocks a window may have beside a cache of so many bytes."""
    return max(FIRST_WINDOW, min(LARGEST_WINDOW, cache // CACHE_SHARE // BLOCK))


@dataclass(slots=True)
class Window:
    """What one reader of a file of `size` bytes is expected to want next."""

    size: int
    limit: int = LARGEST_WINDOW  # blocks
    eager: bool = True  # who begins at the beginning is taken to go on
    _expected: int = -1  # offset at which a reader in order would go on; -1 before the first read
    _began: int = 0  # the block from which on it has gone in order
    _read: int = 0  # blocks that it has read since; the others it has skipped
    _blocks: int = 0  # the present window, in blocks; 0 while the reader is not known to go in order
    _horizon: int = 0  # blocks below this were asked for
    _behind: int = 0  # blocks below this were told to be left behind, or were not read in order

    def advance(self, offset: int, length: int) -> Run | None:
        """Note a read; return the run of blocks beyond it that should start to arrive, if any."""
        end = offset + length
        if self._in_order(offset, length):
            self._count(offset, end)
            self._expected = max(self._expected, end)
            if self._grow():
                return self._extend()
        self._expected = end
        self._blocks = self._horizon = 0
        self._began = self._behind = offset // BLOCK
        self._read = -(-end // BLOCK) - self._began
        return None

    @property
    def request(self) -> int:
        """Blocks that one request for this reader should have at the most."""
        if not self._blocks:
            return LONGEST_REQUEST
        return min(LONGEST_REQUEST, max(SHORTEST_REQUEST, self._blocks // REQUESTS))

    def leave_behind(self) -> Run | None:
        """Return the blocks that a reader in order has passed since they were last told, when they are many."""
        if not self._blocks:
            return None
        stop = (self._expected - TOLERANCE) // BLOCK
        if stop - self._behind < STEP:
            return None
        first, self._behind = self._behind, stop
        return Run(first, stop)

    def _in_order(self, offset: int, length: int) -> bool:
        if self._expected < 0:
            return self.eager and offset < BLOCK
        # Small reads here and there come close to one another by chance: who is not known yet has to fit better.
        tolerance = TOLERANCE if self._blocks else max(BLOCK, 2 * length)
        return abs(offset - self._expected) <= tolerance

    def _count(self, offset: int, end: int) -> None:
        if end > self._expected:
            reached = -(-self._expected // BLOCK)
            self._read += max(0, -(-end // BLOCK) - max(reached, offset // BLOCK))
        else:  # the kernel's requests come out of order
            self._read += (end - offset) // BLOCK

    def _grow(self) -> bool:
        """Set the window by what was read; False when what was skipped is more than that is worth."""
        reached = -(-self._expected // BLOCK)
        if not self._blocks and self._began:
            # it jumped here: what came in order so far may be one large read in parts
            self._began, self._read = reached, 0
        passed = reached - self._began
        read = min(passed, self._read)
        self._blocks = min(self.limit, max(FIRST_WINDOW, GROWTH * read) - (passed - read))
        return self._blocks > 0

    def _extend(self) -> Run | None:
        reached = -(-self._expected // BLOCK)
        horizon = max(self._horizon, reached)
        if horizon - reached > self._blocks * 3 // 4:
            return None
        stop = min(block_count(self.size), reached + self._blocks)
        if stop <= horizon:
            return None
        self._horizon = stop
        return Run(horizon, stop)
