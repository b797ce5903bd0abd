"""One content: its resident blocks, read and written."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from isal import isal_zlib

from refgenfs.cache.blockmap import ABSENT, DOUBTFUL, PAGE, RESIDENT, BlockMap
from refgenfs.cache.disk import Handle, WrongFile, punch_hole
from refgenfs.cache.entries import Entry
from refgenfs.cache.shelf import BlockDamaged, Reservation, Shelf, block_cost, cost_of
from refgenfs.core.content import BLOCK, ContentId, Run, block_count, block_length
from refgenfs.core.errors import CacheError

if TYPE_CHECKING:
    from typing_extensions import Buffer


D = TypeVar("D", bound=bytes | memoryview | None)


def checksum(data: Buffer) -> int:
    """Return the CRC32 of a block, as `Content.commit` wants it."""
    return isal_zlib.crc32(data)


class Content:
    """A content of the store. There is one object for one content; it may be held for as long as wanted.

    `read`, `commit`, `drop` and `missing` are for the trio thread, and never wait for anything but the disk;
    `write` is for any thread.
    """

    __slots__ = (
        "__weakref__",
        "_entry",
        "_handle",
        "_make_room",
        "_replaced",
        "_shelf",
        "_written",
        "id",
        "map",
        "size",
    )

    def __init__(
        self,
        shelf: Shelf,
        entry: Entry,
        blocks: BlockMap,
        make_room: Callable[[int, int | None], Reservation | None],
    ) -> None:
        self.id: ContentId = entry.cid
        self.size: int = entry.size
        self.map = blocks
        self._entry = entry
        self._shelf = shelf
        self._make_room = make_room
        self._handle: Handle | None = None
        self._replaced = False  # its file is not what was left there
        self._written: dict[int, float] = {}  # blocks whole on the disk, not committed; and since when

    @property
    def entry(self) -> Entry:
        """The store's record of this content."""
        return self._entry

    def missing(self, run: Run) -> int:
        """Return the index of the first block of the run that is not resident, or -1."""
        return self.map.flags.find(ABSENT, run.first, run.stop)

    def resident(self) -> int:
        """Return how many bytes are resident."""
        return self._entry.resident

    def cost(self, run: Run) -> int:
        """Return what to reserve for the blocks of a run, in bytes."""
        return cost_of(self.size, run)

    def reserve(self, run: Run, *, older_than: int | None = None) -> Reservation | None:
        """Reserve room for a run of blocks, and cover them; None when there is none (see `Store.reserve`)."""
        reservation = self._make_room(self.cost(run), older_than)
        if reservation is not None:
            reservation.cover(self, run)
        return reservation

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; all of their blocks must be resident.

        Blocks that are read whole are held against their checksums, and those that were not since an unclean stop
        also when they are read in part. Raises BlockDamaged when the disk does not have what it should; the damaged
        blocks are then no longer resident.
        """
        return bytes(self._read(offset, length, self._pread))

    def read_at_once(self, offset: int, length: int) -> bytes | memoryview | None:
        """Do as `read`; but None where the disk would have to be waited for."""
        return self._read(offset, length, self._pread_at_once)

    def _read(self, offset: int, length: int, pread: Callable[[Run, int, int], D]) -> bytes | D:
        if length <= 0:
            return b""
        first, stop = offset // BLOCK, -(-(offset + length) // BLOCK)
        flags = self.map.flags
        if stop > len(flags) or flags.find(ABSENT, first, stop) >= 0:
            raise CacheError(f"bytes {offset} to {offset + length} of content {self.id} are not all resident")
        run = Run(first, stop)
        data = pread(run, length, offset)
        if data is not None:
            whole = self._compare(data, offset, length)
            if flags.find(DOUBTFUL, first, stop) >= 0:  # what is left of them was read in part
                self._check(Run(first, min(whole.first, stop)))
                self._check(Run(max(whole.stop, first), stop))
        self.touch(run)
        return data

    def agrees(self, index: int, crc: int) -> bool:
        """Say whether a resident block has this CRC-32."""
        return self.map.crcs[index] == crc

    def touch(self, run: Run) -> None:
        """Count as used what is resident of these blocks, so that it is evicted after what was used before."""
        shelf = self._shelf
        for segment in range(run.first // shelf.segment_blocks, (run.stop - 1) // shelf.segment_blocks + 1):
            shelf.index.touch(self.id, segment)
        self._entry.last_used = shelf.now()

    def bring(self, offset: int, length: int) -> None:
        """Bring bytes from the disk into memory, for a read that follows; for any thread. Never raises OSError."""
        with suppress(OSError), self._shelf.handles.lease(self.id, self.size, create=False) as fd:
            os.pread(fd, length, offset)

    def pass_by(self, run: Run) -> None:
        """Let the system forget these blocks' pages, but for those not on the disk yet; for any thread.

        Who has read them has them in pages of the mount. Never raises OSError.
        """
        with suppress(OSError), self._shelf.handles.lease(self.id, self.size, create=False) as fd:
            os.posix_fadvise(fd, run.first * BLOCK, len(run) * BLOCK, os.POSIX_FADV_DONTNEED)

    def write(self, index: int, data: Buffer) -> int:
        """Write whole consecutive blocks from block `index` on and return their number; for any thread.

        They are not resident before `commit`. Raises CacheError when the disk refuses, or what is resident is not
        known yet: then none of them can be committed.
        """
        view = memoryview(data).cast("B")
        run = Run(index, index + block_count(len(view)))
        if not view or run.stop > len(self.map.flags) or len(view) != self._length(run):
            raise ValueError(f"{len(view)} bytes at block {index} are no whole blocks of content {self.id}")
        shelf = self._shelf
        if not shelf.known:  # there is no room that could be promised; and who reads the image may give them back
            raise CacheError(f"content {self.id} can't be written: what the cache holds is still being read")
        shelf.unsettled[self.id] = self
        try:
            with shelf.handles.lease(self.id, self.size, create=True) as fd:
                self._pwrite(fd, view, index)
                since = shelf.clock()
                self._written.update((block, since) for block in range(run.first, run.stop))
        except WrongFile as exc:
            self._replaced = True
            raise CacheError(f"content {self.id} can't be written: {exc.strerror}") from exc
        except OSError as exc:
            message = f"the cache directory {shelf.directory} refused a write: {exc.strerror}"
            shelf.errors.note(message)
            raise CacheError(message) from exc
        return len(run)

    def commit(self, index: int, crc: int, reservation: Reservation | None = None) -> bool:
        """Make a block resident that `write` has written, and return True.

        False, and the block is not resident, when it was not written whole or was dropped since.
        """
        if self._written.pop(index, None) is None:
            return False
        shelf, blocks = self._shelf, self.map
        shelf.errors.clear()
        length = block_length(self.size, index)
        spent = shelf.grows(index // PAGE not in blocks.dirty)
        if blocks.flags[index] == ABSENT:
            shelf.entries[self.id] = self._entry
            cost = block_cost(length)
            before = shelf.account.files
            shelf.charge(self._entry, length)
            spent += shelf.account.files - before
            shelf.index.grow(self.id, index // shelf.segment_blocks, cost)
        if reservation is not None:
            reservation.spend(spent)
        blocks.mark(index, RESIDENT, crc)
        shelf.dirty[self.id] = self
        self._entry.last_used = shelf.now()
        return True

    def drop(self, run: Run) -> int:
        """Forget the blocks of a run, give their bytes back to the disk, and return how many those were."""
        freed = self._forget(run)
        self.abandon(run)
        return freed

    def evict(self, run: Run) -> int:
        """Forget the resident blocks of a run; blocks written and not committed yet are left alone."""
        shelf = self._shelf
        freed = self._forget(run if shelf.punch else Run(0, len(self.map.flags)))
        if not self._entry.resident and not self._entry.pinned:
            shelf.unlink(self._entry, lambda: bool(self._written))
        return freed

    def abandon(self, run: Run) -> None:
        """Give back what was written in a run and never committed."""
        if self._written:
            for index in [index for index in self._written if run.first <= index < run.stop]:
                if self._written.pop(index, None) is not None and self.map.flags[index] == ABSENT:
                    self._punch(Run(index, index + 1))

    def settle(self, older_than: float) -> bool:
        """Give back blocks written before this time and never committed; say whether none are left."""
        if self._replaced:
            self._replaced = False
            self._clear_way()
        for index, since in list(self._written.items()):
            if since < older_than:
                self.abandon(Run(index, index + 1))
        return not self._written

    def _clear_way(self) -> None:
        """Forget all blocks if the file is not what was left there, and remove it, so that there can be another."""
        try:
            self._shelf.handles.get(self.id, self.size, create=False)
        except WrongFile:
            self._ruin()
        except OSError:
            return  # said where it is read or written

    def give_back_holes(self) -> None:
        """Punch whatever is not resident: bytes that nobody accounts for."""
        for run in self.map.absent_runs():
            self._punch(run)

    def recheck(self, index: int) -> bool:
        """Check a resident block against its checksum now; drop it and return False if it is damaged."""
        if self.map.flags[index] == ABSENT:
            return True
        try:
            self._check(Run(index, index + 1), every=True)
        except BlockDamaged:
            return False
        return True

    def trust(self, index: int) -> None:
        """Note that a doubtful block was found to be right."""
        if self.map.flags[index] == DOUBTFUL:
            self.map.mark(index, RESIDENT, self.map.crcs[index])
            self._shelf.dirty[self.id] = self

    def _check(self, run: Run, *, every: bool = False) -> None:
        for index in range(run.first, run.stop):
            if every or self.map.flags[index] == DOUBTFUL:
                self._hold(index, self._pread(Run(index, index + 1), block_length(self.size, index), index * BLOCK))

    def _compare(self, data: bytes | memoryview, offset: int, length: int) -> Run:
        """Hold what was read of whole blocks against their checksums: 3 µs each, a tenth of reading it. Return them.

        Of a block that is read in part there is nothing to hold it against; `verify` finds what is wrong there.
        """
        end = offset + length
        whole = Run(-(-offset // BLOCK), block_count(self.size) if end == self.size else end // BLOCK)
        view = memoryview(data)
        for index in range(whole.first, whole.stop):
            at = index * BLOCK - offset
            self._hold(index, view[at : at + BLOCK])
        return whole

    def _hold(self, index: int, data: Buffer) -> None:
        """Hold a block's bytes against its checksum; forget it and raise BlockDamaged if they differ."""
        if isal_zlib.crc32(data) != self.map.crcs[index]:
            self._forget(Run(index, index + 1))
            raise BlockDamaged(self.id, index, "its checksum differs")
        self.trust(index)

    def _pread(self, run: Run, length: int, offset: int) -> bytes:
        try:
            data = os.pread(self._descriptor(), length, offset)
        except (FileNotFoundError, WrongFile) as exc:
            self._ruin()
            raise BlockDamaged(self.id, run.first, exc.strerror or "") from exc
        except OSError as exc:
            self._forget(run)
            raise BlockDamaged(self.id, run.first, exc.strerror or "") from exc
        if len(data) != length:
            self._ruin()
            raise BlockDamaged(self.id, run.first, "its file is too short")
        return data

    def _pread_at_once(self, run: Run, length: int, offset: int) -> bytes | memoryview | None:
        buffer = bytearray(length)
        try:
            if os.preadv(self._descriptor(), [buffer], offset, os.RWF_NOWAIT) == length:
                return memoryview(buffer)
        except BlockingIOError:
            return None
        except OSError:
            return self._pread(run, length, offset)  # it can't be asked so (EOPNOTSUPP); or that tells what is wrong
        return None

    def _descriptor(self) -> int:
        handle = self._handle
        if handle is None or handle.fd < 0:
            handle = self._handle = self._shelf.handles.get(self.id, self.size, create=False)
        handle.recent = True
        return handle.fd

    def _ruin(self) -> None:
        """Forget all blocks, and the file, which is not what was left there."""
        self._forget(Run(0, len(self.map.flags)), punch=False)
        self._shelf.unlink(self._entry, lambda: bool(self._written))

    def _pwrite(self, fd: int, view: memoryview, index: int) -> None:
        done, offset = 0, index * BLOCK
        try:
            while done < len(view):
                done += os.pwrite(fd, view[done:], offset + done)
        except OSError:
            if done and self._shelf.punch:
                self._punch_fd(fd, Run(index, index + block_count(len(view))))
            raise

    def _punch_fd(self, fd: int, run: Run) -> None:
        """Give back what a failed write left, where nothing is resident; for any thread."""
        if (
            self.map.flags.find(RESIDENT, run.first, run.stop)
            < 0
            > self.map.flags.find(DOUBTFUL, run.first, run.stop)
        ):
            try:
                punch_hole(fd, run.first * BLOCK, len(run) * BLOCK)
            except OSError as exc:
                self._shelf.errors.note(f"a hole can't be punched in content {self.id}: {exc.strerror}")

    def _forget(self, run: Run, *, punch: bool = True) -> int:
        """Make the blocks of a run absent, in the map first and then on the disk."""
        freed, shelf, blocks = 0, self._shelf, self.map
        for found in blocks.resident_runs(run.first, run.stop):
            for index in range(found.first, found.stop):
                blocks.mark(index, ABSENT, 0)
                length = block_length(self.size, index)
                shelf.index.shrink(self.id, index // shelf.segment_blocks, block_cost(length))
                freed += length
            if punch:
                self._punch(found)
        if freed:
            shelf.charge(self._entry, -freed)
            shelf.dirty[self.id] = self
        return freed

    def _punch(self, run: Run) -> None:
        shelf = self._shelf
        if not shelf.punch:
            return
        try:
            handle = shelf.handles.get(self.id, self.size, create=False)
            punch_hole(handle.fd, run.first * BLOCK, len(run) * BLOCK)
        except (FileNotFoundError, WrongFile):
            return
        except OSError as exc:
            shelf.errors.note(f"a hole can't be punched in content {self.id}: {exc.strerror}")

    def _length(self, run: Run) -> int:
        return min(run.stop * BLOCK, self.size) - run.first * BLOCK
