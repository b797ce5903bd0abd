"""Chunks of a body become pieces: whole blocks, full pieces from a quick origin, soon from a slow one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refgenfs.core.content import BLOCK
from refgenfs.core.retry import Remedy, Retry, RetryPolicy
from refgenfs.fetch import attempts, pieces
from refgenfs.fetch.answers import AttemptFailed
from refgenfs.fetch.attempts import Progress
from refgenfs.fetch.pieces import PIECE, Assembler

CHUNK = 100_000
DATA = random.Random(3).randbytes(3 * PIECE + BLOCK + 77)


class Sink:
    """Keeps what it gets; `busy` holds it up."""

    def __init__(self) -> None:
        self.got: list[tuple[int, bytes]] = []
        self.busy = asyncio.Event()
        self.busy.set()

    async def write(self, offset: int, data: memoryview) -> None:
        await self.busy.wait()
        self.got.append((offset, bytes(data)))


def run(test: Callable[[Sink], Coroutine[Any, Any, None]]) -> Sink:
    """Run a coroutine on a loop of its own and return the sink that it was given."""

    async def main() -> Sink:
        sink = Sink()
        async with asyncio.timeout(10):
            await test(sink)
        return sink

    return asyncio.run(main())


async def push(assembler: Assembler, stop: int, chunk: int = CHUNK, pause: float = 0.0) -> None:
    while assembler.position < stop:
        await assembler.push(memoryview(DATA)[assembler.position : min(stop, assembler.position + chunk)])
        await asyncio.sleep(pause)


def test_a_quick_origin_fills_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "HASTE", 60.0)

    async def test(sink: Sink) -> None:
        assembler = Assembler(0, len(DATA), sink)
        await push(assembler, len(DATA))
        await assembler.finish()

    got = run(test).got
    assert [len(data) for _, data in got] == [PIECE, PIECE, PIECE, BLOCK + 77]
    assert b"".join(data for _, data in got) == DATA


def test_a_block_from_a_slow_origin_does_not_wait_for_its_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "HASTE", 0.001)

    async def test(sink: Sink) -> None:
        assembler = Assembler(0, len(DATA), sink)
        await push(assembler, 3 * BLOCK + 10, pause=0.005)
        assert sum(len(data) for _, data in sink.got) == 3 * BLOCK
        await assembler.aclose()

    run(test)


def test_while_the_sink_is_busy_a_piece_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "HASTE", 0.001)

    async def test(sink: Sink) -> None:
        sink.busy.clear()
        assembler = Assembler(0, len(DATA), sink)
        await push(assembler, BLOCK + PIECE - CHUNK, pause=0.002)
        sink.busy.set()
        await push(assembler, len(DATA))
        await assembler.finish()
        assert len(sink.got[1][1]) > PIECE // 2

    assert b"".join(data for _, data in run(test).got) == DATA


def test_the_last_piece_is_handed_over_by_finish_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "HASTE", 0.0)

    async def test(sink: Sink) -> None:
        assembler = Assembler(0, 2 * BLOCK, sink)
        await assembler.push(memoryview(DATA)[: 2 * BLOCK])
        await asyncio.sleep(0.01)
        assert not sink.got
        assembler.forget_piece()
        assert assembler.position == 0
        await assembler.push(memoryview(DATA)[: 2 * BLOCK])
        await assembler.finish()

    assert run(test).got == [(0, DATA[: 2 * BLOCK])]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 3 * BLOCK), min_size=1), st.sampled_from([0.0, 60.0]), st.integers(1, len(DATA)))
def test_whatever_the_chunks_every_byte_arrives_once(chunks: list[int], haste: float, stop: int) -> None:
    async def test(sink: Sink) -> None:
        assembler = Assembler(0, stop, sink)
        turn = 0
        while (at := assembler.position) < stop:
            await assembler.push(memoryview(DATA)[at : min(stop, at + chunks[turn % len(chunks)])])
            await asyncio.sleep(0)
            turn += turn < 4096
        await assembler.finish()

    chunks.append(BLOCK)
    before, pieces.HASTE = pieces.HASTE, haste
    try:
        got = run(test).got
    finally:
        pieces.HASTE = before
    assert b"".join(data for _, data in got) == DATA[:stop]
    assert all(offset % BLOCK == 0 and 0 < len(data) <= PIECE for offset, data in got)


def test_who_brings_less_than_a_block_in_a_long_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "DRIBLET", 0.05)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        progress = Progress(0)
        retry = Retry(["http://a"], RetryPolicy(), loop.time(), lambda: 0.5)
        progress.report_to(retry)
        for position in range(0, 8 * BLOCK, BLOCK // 2):
            await asyncio.sleep(0.01)
            progress.reached(position)
        await progress.exclude(asyncio.sleep(0.1))  # the sink's time is no origin's fault
        progress.reached(8 * BLOCK)

        async def dribble() -> None:
            for position in range(8 * BLOCK, 9 * BLOCK, 1000):
                await asyncio.sleep(0.01)
                progress.reached(position)

        with pytest.raises(AttemptFailed, match="less than") as caught:
            await dribble()
        assert caught.value.remedy is Remedy.AGAIN
        progress.report_to(retry)  # another attempt gets its time
        progress.reached(8 * BLOCK + 1000)

    asyncio.run(main())
