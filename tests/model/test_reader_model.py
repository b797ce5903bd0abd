"""Reads through the reader against slicing bytes, whatever happens in between.

Random steps: reads of plain files and of members of an archive (one or several at a time), evictions, pins, an
origin that breaks off, restarts of the daemon over one cache directory. Whatever is returned is a slice of the
file; an error is one that the origin made; the bound of the cache holds; and nothing is left behind.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import hypothesis.strategies as st
import trio
from hypothesis import HealthCheck, given, settings

from refgenfs.cache.content import Content
from refgenfs.core.content import BLOCK, Run
from refgenfs.core.errors import CacheError, OriginUnavailable
from refgenfs.reader.reader import OpenFile
from tests.support.scripted import Packed, Rig, Served, entry, gather, letters, open_rig, pack, room_for

SIZES = {"small": 10, "middle": 3 * BLOCK, "large": 11 * BLOCK + 777}
PLAIN = {f"plain-{name}": size for name, size in SIZES.items()}
ARCHIVE: Packed = pack([entry(name, size) for name, size in SIZES.items()])
BODIES = {**{name: letters(name, size) for name, size in PLAIN.items()}, **ARCHIVE.data}
AWAY = OriginUnavailable("away")


@dataclass(frozen=True)
class Read:
    name: str
    at: float
    length: int


@dataclass(frozen=True)
class Together:
    reads: tuple[Read, ...]


@dataclass(frozen=True)
class Evict:
    name: str
    first: int
    stop: int


@dataclass(frozen=True)
class Break:
    """The origin breaks off at this part of each object; 1.0: it is well again."""

    at: float


@dataclass(frozen=True)
class Pin:
    name: str
    pinned: bool


@dataclass(frozen=True)
class Settle:
    pass


Step = Together | Evict | Break | Pin | Settle

NAMES = st.sampled_from(sorted(BODIES))
READS = st.builds(Read, NAMES, st.floats(0, 1.1), st.sampled_from([1, 4096, BLOCK, 3 * BLOCK, 20 * BLOCK]))
STEPS = st.one_of(
    st.builds(Together, st.lists(READS, min_size=1, max_size=4).map(tuple)),
    st.builds(Evict, NAMES, st.integers(0, 6), st.integers(0, 12)),
    st.builds(Break, st.sampled_from([0.0, 0.4, 0.9, 1.0, 1.0])),
    st.builds(Pin, NAMES, st.booleans()),
    st.builds(Settle),
)
LIVES = st.lists(st.lists(STEPS, max_size=8), min_size=1, max_size=3)


class Life:
    """A daemon, from its start to its end."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.served: list[Served] = []
        self.files: dict[str, OpenFile] = {}
        self.broken = False
        self.facts = {}
        for name, size in PLAIN.items():
            served, self.facts[name] = rig.serve_file(name, size)
            self.served.append(served)
        served, self.ref = rig.serve_archive(ARCHIVE)
        served.pieces = (50_000, 1, 300_000)
        self.served.append(served)

    async def open(self, name: str) -> OpenFile:
        if name not in self.files:
            if name in PLAIN:
                self.files[name] = await self.rig.reader.open(self.facts[name])
            else:
                archive = await self.rig.open_archive(self.ref)
                self.files[name] = await self.rig.open_member(archive, name)
        return self.files[name]

    async def read(self, read: Read) -> None:
        body = BODIES[read.name]
        offset = int(read.at * len(body))
        file = await self.open(read.name)
        data = await self.rig.read(file, offset, read.length)
        assert data == body[offset : offset + read.length], (read, len(data))

    async def take(self, step: Step) -> None:
        match step:
            case Together(reads):
                for result in await gather(*(partial(self.read, read) for read in reads)):
                    assert result is None or (result is AWAY and self.broken), result
            case Evict(name, first, stop) if name in self.files:
                content = self.files[name].content
                if isinstance(content, Content) and first < stop:
                    content.evict(Run(first, min(stop, len(content.map.flags))))
            case Break(at):
                self.broken = self.broken or at < 1
                for served in self.served:
                    served.fault = AWAY if at < 1 else None
                    served.fault_at = int(at * len(served.body)) // BLOCK * BLOCK
            case Pin(name, pinned) if name in self.files:
                cid = self.files[name].facts.content
                with suppress(CacheError):  # a full cache has no room to note it
                    (self.rig.store.pin if pinned else self.rig.store.unpin)(cid)
            case Settle():
                await self.rig.settled()
        assert self.rig.store.used <= self.rig.store.quota

    async def end(self) -> None:
        for served in self.served:
            served.fault = None
        await self.rig.settled()


async def live(directory: Path, blocks: int, lives: list[list[Step]]) -> None:
    for steps in lives:
        async with open_rig(directory, size=room_for(blocks), linger=0.01) as rig:
            life = Life(rig)
            for step in steps:
                await life.take(step)
            await life.end()


@given(blocks=st.sampled_from([0, 5, 9, 60]), lives=LIVES)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_reads_are_slices_whatever_happens(blocks: int, lives: list[list[Step]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trio.run(live, Path(folder), blocks, lives)
