"""Searches over readers of byte ranges: bounded reads, errors of readers, and no more than is needed."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from refgenfs.core.errors import IntegrityError, OriginUnavailable
from refgenfs.core.htsget.model import Query
from refgenfs.htsfiles import AT_ONCE, PIECE, open_indexed, ticket
from tests.support.htsfiles import Files

pytestmark = pytest.mark.needs_data


@dataclass
class Bytes:
    """A reader of bytes in memory that notes what it is asked for, and may fail or give too few."""

    data: bytes
    fails_at: int = -1
    short_at: int = -1
    asked: list[tuple[int, int]] = field(default_factory=list)
    under_way: int = 0
    most: int = 0

    @property
    def size(self) -> int:
        return len(self.data)

    async def read(self, start: int, stop: int) -> bytes:
        assert 0 <= start < stop <= len(self.data)
        number = len(self.asked)
        self.asked.append((start, stop))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await trio.sleep(random.random() / 1000)
        self.under_way -= 1
        if number == self.fails_at:
            raise OriginUnavailable("gone")
        return self.data[start : stop - (number == self.short_at)]


@pytest.fixture(scope="module")
def files(data_dir: Path) -> Files:
    return Files.read(data_dir / "data/htsget/htsget-rs/bam/htsnexus_test_NA12878.bam", ".bai", gzi=True)


def readers(files: Files) -> tuple[Bytes, Bytes, Bytes]:
    assert files.index is not None
    assert files.gzi is not None
    return Bytes(files.data), Bytes(files.index), Bytes(files.gzi)


async def test_a_ticket_reads_a_header_an_index_and_the_edges(files: Files) -> None:
    data, index, gzi = readers(files)
    opened = await open_indexed(data, index, gzi)
    query = Query("x", regions=(opened.region("11:5,015,001-5,050,000"),))
    found = json.loads((await ticket(*readers(files), query, "http://h/x.bam")).to_json())["htsget"]
    assert [one["headers"]["Range"] for one in found["urls"]][1] == "bytes=256721-647345"
    assert await opened.search(query) == files.run_search(query)
    assert sum(stop - start for start, stop in data.asked) < len(files.data) / 3
    assert index.asked == [(0, index.size)]


async def test_an_opened_file_is_searched_again_without_its_index(files: Files) -> None:
    data, index, gzi = readers(files)
    opened = await open_indexed(data, index, gzi)
    for name in ("11", "20", "*"):
        await opened.search(Query("x", regions=(opened.region(name),)))
    assert (len(index.asked), len(gzi.asked)) == (1, 1)


async def test_reads_are_bounded(files: Files) -> None:
    """A large index comes in pieces, a few at a time."""
    data, gzi = Bytes(files.data), Bytes(bytes(5 * PIECE + 8))
    with pytest.raises(IntegrityError, match="GZI"):
        await open_indexed(data, None, gzi)
    assert sorted(gzi.asked) == [(at, min(at + PIECE, gzi.size)) for at in range(0, gzi.size, PIECE)]
    assert gzi.most <= AT_ONCE


@pytest.mark.parametrize("number", [0, 1])
async def test_an_error_of_a_reader_comes_out_as_it_is(files: Files, number: int) -> None:
    data, index, gzi = readers(files)
    data.fails_at = number
    with pytest.raises(OriginUnavailable, match="gone"):
        await open_indexed(data, index, gzi)


async def test_a_short_read_is_an_error(files: Files) -> None:
    data, index, gzi = readers(files)
    index.short_at = 0
    with pytest.raises(IntegrityError, match="6727 bytes came of the 6728"):
        await open_indexed(data, index, gzi)
