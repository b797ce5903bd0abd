"""Jobs of making something: how long they may take, who waits for them, and how they failed."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from refgenfs.core.content import ContentId
from refgenfs.core.errors import CannotBeMade, GenerateFailed, RefgenfsError
from refgenfs.core.indices import kinds_of, name_index, shown_index
from refgenfs.core.newest import Newest
from refgenfs.library import Located
from refgenfs.made.process import Bounds, TooSlow

log = logging.getLogger(__name__)

# Seconds from the start of a worker to its end, for data of some bytes. Who waits can be killed, and an origin that
# is silent is given up after `limits.read_deadline`: so this is for a worker that hangs, and for a very slow line.
SECONDS = 60.0
RATE = 2e6  # bytes a second
LINGER = 30.0  # seconds for which something is made that nobody waits for any more
MEMORY = 1 << 30  # bytes of address space; 35 MB is the usual, a .bai of a whole genome takes 100
# `samtools dict` has a sequence in memory as a whole, in a buffer that doubles as it grows.
LONGEST_SEQUENCE = 4 << 30  # bytes
UNPACKED = 5  # times what packed bases take
LARGEST = 256 << 20  # bytes of one index; 10 MB is a large one
SMALLEST_BOUND = 16 << 20  # a BAM of one read may have 100,000 references
# Seconds for which a failure is believed. What htslib says of data stays so, but one can be asked to look again.
REFUSED_FOR = 3600.0
SLOW_FOR = 600.0
FAILED_FOR = 10.0
REMEMBERED = 4096


class Unfit(CannotBeMade):
    """Data that is none of which there are such indices: tools probe, so nobody needs to be told."""


@dataclass(slots=True, eq=False)
class Job:
    """Something that is being made. `done` of `total` bytes of data were read; times are trio's."""

    data: Located
    maker: str
    total: int
    asked: float
    done: int = 0
    error: RefgenfsError | None = None
    ended: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    holders: int = 0
    spoilt: bool = False  # its data was wrong

    @property
    def names(self) -> list[str]:
        """The names of what is being made."""
        name = self.data.name
        return [name_index(name, kind, kind.usual) for kind in kinds_of(self.maker, name)]

    @property
    def age(self) -> float:
        """Seconds since it was asked for."""
        return trio.current_time() - self.asked

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for it in here; when nobody does, it is given up after a while."""
        self.holders += 1
        self.scope.deadline = math.inf
        try:
            yield
        finally:
            self.holders -= 1
            if not self.holders:
                self.scope.deadline = trio.current_time() + LINGER


class Failures:
    """What makings failed with, by data and maker, for as long as making it again would be in vain."""

    def __init__(self) -> None:
        self._known: Newest[tuple[ContentId, str], tuple[RefgenfsError, float]] = Newest(REMEMBERED)

    def recall(self, key: tuple[ContentId, str]) -> None:
        """Raise what a making failed with a while ago."""
        if key in self._known:
            error, until = self._known[key]
            if trio.current_time() < until:
                raise copy.copy(error)
            del self._known[key]

    def note(self, key: tuple[ContentId, str], error: RefgenfsError) -> None:
        """Remember a failure, but for what an origin did: it may do something else the next time."""
        times: dict[type[Exception], float] = {
            CannotBeMade: REFUSED_FOR,
            TooSlow: SLOW_FOR,
            GenerateFailed: FAILED_FOR,
        }
        seconds = next((seconds for kind, seconds in times.items() if isinstance(error, kind)), None)
        if seconds is not None:
            self._known.put(key, (error, trio.current_time() + seconds))

    def clear(self) -> None:
        """Believe nothing any more: what was in vain may not be."""
        self._known.clear()

    def forget(self, data: ContentId) -> None:
        """Believe nothing of this data any more."""
        for key in [key for key in self._known if key[0] == data]:
            del self._known[key]


def bounds_of(maker: str, size: int) -> Bounds:
    """Return what making something of `size` bytes of data may take."""
    memory = MEMORY + (3 * min(UNPACKED * size, LONGEST_SEQUENCE) if maker == "dict" else 0)
    return Bounds(SECONDS + size / RATE, memory, min(LARGEST, SMALLEST_BOUND + size))


def what(job: Job) -> str:
    """Return what is being made, for people."""
    names = " and ".join(shown_index(name) for name in job.names)
    return f"{names} of {job.data.version.key}"


def say(job: Job, error: RefgenfsError) -> None:
    """Say in one line why something was not made."""
    if isinstance(error, Unfit):
        log.debug("%s: there is none: %s", what(job), error)
    else:
        log.warning("%s: not made: %s", what(job), error)
