"""Reads over spans against slicing, for archives, points, evictions and orders that nobody thought of."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import hypothesis.strategies as st
import trio
from hypothesis import HealthCheck, given, settings

from refgenfs.core.content import BLOCK, Run, block_count
from tests.support.scripted import entry, gather, open_rig, pack, room_for

Steps = list[tuple[list[tuple[int, float, int]], list[tuple[int, int, int]]]]  # reads together, then evictions

SIZES = st.lists(
    st.one_of(st.integers(1, 2000), st.integers(BLOCK - 600, BLOCK + 600), st.integers(1, 7 * BLOCK)),
    min_size=1,
    max_size=5,
)
READ = st.tuples(st.integers(0, 4), st.floats(0, 1), st.sampled_from([1, 4096, BLOCK, 3 * BLOCK, 30 * BLOCK]))
EVICT = st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(1, 4))
STEPS = st.lists(st.tuples(st.lists(READ, min_size=1, max_size=3), st.lists(EVICT, max_size=2)), max_size=6)


async def live(
    folder: Path,
    sizes: list[int],
    spacing: int,
    room: int,
    steps: Steps,
) -> None:
    packed = pack([entry(f"f{number}", size) for number, size in enumerate(sizes)])
    names = list(packed.data)
    async with open_rig(folder, size=64 << 20, spacing=spacing, linger=0.01) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        await rig.archives.pull(archive, names)
    async with open_rig(folder, size=room_for(room), spacing=spacing, linger=0.01) as rig:
        _, ref = rig.serve_archive(packed)
        archive = await rig.open_archive(ref)
        assert archive.index is not None
        for name in names:
            rig.store.evict(archive.content_id(name))
        files = {name: await rig.open_member(archive, name) for name in names}

        async def read(name: str, at: float, length: int) -> None:
            data = packed.data[name]
            offset = int(at * len(data))
            assert await rig.read(files[name], offset, length) == data[offset : offset + length]

        for reads, evictions in steps:
            calls = [partial(read, names[which % len(names)], at, length) for which, at, length in reads]
            assert await gather(*calls) == [None] * len(calls)
            for which, first, count in evictions:
                name = names[which % len(names)]
                content = await rig.content(archive, name)
                first = min(first, block_count(content.size) - 1)
                content.evict(Run(first, min(first + count, block_count(content.size))))
            assert rig.store.used <= rig.store.quota
        await rig.settled(archive)
        if archive.index is not None:
            assert rig.http.streams == 0


@given(
    sizes=SIZES,
    spacing=st.sampled_from([60_000, BLOCK, 200_000, 700_000]),
    room=st.sampled_from([3, 12, 80]),
    steps=STEPS,
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_reads_by_spans_are_slices(
    sizes: list[int],
    spacing: int,
    room: int,
    steps: Steps,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trio.run(live, Path(folder), sizes, spacing, room, steps)
