"""Room on the disk for the index of an archive that goes by."""

from __future__ import annotations

import logging

from refgenfs.cache.keeping import bound_of
from refgenfs.cache.shelf import Reservation
from refgenfs.cache.store import Store
from refgenfs.core.errors import RefgenfsError
from refgenfs.core.seekindex import WINDOW
from refgenfs.fetch.seekpoints import IndexBuilder

log = logging.getLogger(__name__)

STEP = 256 * 1024  # bytes reserved at a time
SLACK = 2 * WINDOW  # bytes that may be written before the next look


class Spill:
    """The scratch file of one stream's index builder, whose bytes are reserved as they come.

    Without room the index is given up, and the archive goes on. All methods are for the trio thread.
    """

    def __init__(self, store: Store, spacing: int) -> None:
        self.builder: IndexBuilder | None = None
        self._store = store
        self._spacing = spacing
        self._path = store.scratch / f"{id(self):x}.windows"
        self._reservations: list[Reservation] = []
        self._reserved = 0

    def begin(self) -> IndexBuilder | None:
        """Begin an index anew; None where none can be made."""
        self.close()
        try:
            self.builder = IndexBuilder(self._path, self._spacing)
        except (RefgenfsError, OSError) as exc:
            log.info("no seek indexes are made: %s", exc)
        return self.builder

    def look_after(self, older_than: int) -> None:
        """Reserve what the file takes by now and a little more, at the expense of what is older than that stamp."""
        builder = self.builder
        if builder is None or builder.failed or self.size + SLACK <= self._reserved:
            return
        small = self._reserved + STEP <= bound_of(self._store.quota)  # worth more than a few blocks of members
        reservation = self._store.reserve(STEP, older_than=None if small else older_than)
        if reservation is None:
            builder.failed = "there is no room in the cache for its windows"
            return
        self._reservations.append(reservation)
        self._reserved += STEP

    @property
    def size(self) -> int:
        """Bytes that the file takes."""
        return 0 if self.builder is None else self.builder.spilled

    def close(self) -> None:
        """Remove the file, and give back its room. Never awaits; idempotent."""
        if self.builder is not None:
            self.builder.close()
            self.builder = None
        for reservation in self._reservations:
            reservation.release()
        self._reservations, self._reserved = [], 0
