"""What is known of every content: as an object where somebody has looked, else as numbers in arrays.

A cache of a million contents is mostly of such as nobody asks for today; they take 55 bytes each. A content is
*taken up* when it is asked for: from then on it has an `Entry`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from refgenfs.core.content import ContentId

_WIDTH = 20  # bytes of an identity


class Entry:
    """What is known of a content whether it is open or not. `version` changes with the block map."""

    __slots__ = ("cid", "kept", "last_used", "pinned", "resident", "size", "stored_used", "version")

    def __init__(
        self,
        cid: ContentId,
        size: int,
        resident: int = 0,
        last_used: float = 0.0,
        pinned: bool = False,
        kept: bool = False,
    ) -> None:
        self.cid = cid
        self.size = size
        self.resident = resident
        self.last_used = last_used  # Unix seconds
        self.stored_used = last_used  # the same, as the ledger has it
        self.pinned = pinned  # by people
        self.kept = kept  # by the daemon itself, within a bound (see `Keeping`)
        self.version = 0


@dataclass(frozen=True, slots=True)
class EntryRow:
    """A content at one moment; sizes in bytes, `last_used` in Unix seconds."""

    cid: ContentId
    size: int
    resident: int
    pinned: bool
    last_used: float
    kept: bool = False


class Table:
    """Contents as numbers, in the order of their identities. Rows are added first, then looked up."""

    def __init__(self) -> None:
        self.left = 0  # rows that were not taken
        self._cids = bytearray()
        self.sizes = array("Q")
        self.residents = array("Q")
        self._used = array("d")
        self._pinned = bytearray()
        self._kept = bytearray()
        self._gone = bytearray()
        self._order = array("I")  # positions, the least recently used first
        self._ranks = array("I")  # the inverse of it

    def add(
        self, cid: ContentId, size: int, resident: int, last_used: float, pinned: bool, kept: bool = False
    ) -> bool:
        """Add a row; False, and nothing is added, unless its identity is one and follows all others."""
        try:
            raw = bytes.fromhex(cid)
        except ValueError:
            return False
        if len(raw) != _WIDTH or raw <= self._cids[-_WIDTH:]:
            return False
        self._cids += raw
        self.sizes.append(size)
        self.residents.append(resident)
        self._used.append(last_used)
        self._pinned.append(pinned)
        self._kept.append(kept)
        self._gone.append(0)
        self.left += 1
        return True

    def sort(self) -> None:
        """Put the rows in the order of their last use; none is added afterwards."""
        self._order = array("I", sorted(range(len(self.sizes)), key=self._used.__getitem__))
        self._ranks = array("I", bytes(4 * len(self._order)))
        for rank, position in enumerate(self._order):
            self._ranks[position] = rank

    def bound_uses(self, now: float) -> list[EntryRow]:
        """Have no row used later than `now`, in the order that they are in; return those that were."""
        changed = []
        for place, position in enumerate(reversed(self._order)):
            if self._used[position] <= now:
                break
            self._used[position] = now - 0.001 * place
            changed.append(self.row(position))
        return changed

    def __len__(self) -> int:
        """Return how many rows were added."""
        return len(self.sizes)

    def find(self, cid: ContentId) -> int:
        """Return the position of a content that was not taken, or -1."""
        try:
            raw = bytes.fromhex(cid)
        except ValueError:
            return -1
        cids, low, high = self._cids, 0, len(self.sizes)
        while low < high:
            middle = (low + high) // 2
            if cids[_WIDTH * middle : _WIDTH * middle + _WIDTH] < raw:
                low = middle + 1
            else:
                high = middle
        if low < len(self.sizes) and cids[_WIDTH * low : _WIDTH * low + _WIDTH] == raw and not self._gone[low]:
            return low
        return -1

    def positions(self) -> Iterator[int]:
        """Return the positions of all that were not taken."""
        return (position for position, gone in enumerate(self._gone) if not gone)

    def by_use(self, rank: int) -> Iterator[int]:
        """Return the positions of all that were not taken, the least recently used first, from a rank on."""
        return (position for position in self._order[rank:] if not self._gone[position])

    def rank(self, position: int) -> int:
        """Return the place of a row in the order of last use, from 0."""
        return self._ranks[position]

    def row(self, position: int) -> EntryRow:
        """Return a row as it is."""
        return EntryRow(
            self._cids[_WIDTH * position : _WIDTH * position + _WIDTH].hex(),
            self.sizes[position],
            self.residents[position],
            bool(self._pinned[position]),
            self._used[position],
            bool(self._kept[position]),
        )

    def flagged(self) -> list[ContentId]:
        """Return the contents whose rows say that they are pinned."""
        return [self.row(position).cid for position, pinned in enumerate(self._pinned) if pinned]

    def set_pinned(self, cids: Iterable[ContentId]) -> None:
        """Have these contents pinned, and no others."""
        self._pinned = bytearray(len(self._pinned))
        for cid in cids:
            if (position := self.find(cid)) >= 0:
                self._pinned[position] = 1

    def held(self) -> list[int]:
        """Return the positions of what is pinned or kept."""
        return [position for position in self.positions() if self._pinned[position] or self._kept[position]]

    def take(self, position: int) -> Entry:
        """Take a row out of the table."""
        self._gone[position] = 1
        self.left -= 1
        row = self.row(position)
        return Entry(row.cid, row.size, row.resident, row.last_used, row.pinned, row.kept)


class Entries:
    """All contents by their identity. `taken_up(entry, rank)` is called when one leaves the table."""

    def __init__(self, taken_up: Callable[[Entry, int], None]) -> None:
        self._objects: dict[ContentId, Entry] = {}
        self._table = Table()
        self._next = 0  # everything of a lower rank has left the table
        self._taken_up = taken_up

    def adopt(self, table: Table) -> None:
        """Know the contents of a table, which is sorted, in place of the last one's; take up what is held."""
        self._table, self._next = table, 0
        for position in table.held():
            self._take(position)

    def get(self, cid: ContentId) -> Entry | None:
        """Return the entry of a content, which is taken up, or None."""
        entry = self._objects.get(cid)
        if entry is None and (position := self._table.find(cid)) >= 0:
            entry = self._take(position)
        return entry

    def __setitem__(self, cid: ContentId, entry: Entry) -> None:
        """Know a content by this entry."""
        self._objects[cid] = entry

    def forget(self, cid: ContentId) -> None:
        """Know a content no longer."""
        self._objects.pop(cid, None)

    def objects(self) -> list[Entry]:
        """Return the entries of what was taken up."""
        return list(self._objects.values())

    def __len__(self) -> int:
        """Return how many contents are known."""
        return len(self._objects) + self._table.left

    def rows(self) -> Iterator[EntryRow]:
        """Return all contents, and take none up."""
        for entry in self._objects.values():
            yield EntryRow(entry.cid, entry.size, entry.resident, entry.pinned, entry.last_used, entry.kept)
        for position in self._table.positions():
            yield self._table.row(position)

    def peek(self, cid: ContentId) -> EntryRow | None:
        """Return what is known of a content, and take it not up. For any thread: it may be a moment old."""
        entry = self._objects.get(cid)
        if entry is not None:
            return EntryRow(cid, entry.size, entry.resident, entry.pinned, entry.last_used, entry.kept)
        table = self._table
        position = table.find(cid)
        return table.row(position) if position >= 0 else None

    def resident(self, cid: ContentId) -> int:
        """Return how many bytes of a content are resident, and take it not up."""
        entry = self._objects.get(cid)
        if entry is not None:
            return entry.resident
        position = self._table.find(cid)
        return self._table.residents[position] if position >= 0 else 0

    def take_up_oldest(self, cost: Callable[[int], int], nbytes: int) -> None:
        """Take up what of the table was used longest ago, until it is charged with so many bytes."""
        if self._next >= len(self._table):
            return
        for position in self._table.by_use(self._next):
            if nbytes <= 0:
                return
            self._next = self._table.rank(position) + 1
            nbytes -= cost(self._take(position).resident)
        self._next = len(self._table)

    def _take(self, position: int) -> Entry:
        entry = self._table.take(position)
        self._objects[entry.cid] = entry
        self._taken_up(entry, self._table.rank(position))
        return entry
