"""The format of seek indexes: what goes in comes out, and nothing wrong gets in."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import zlib
from array import array
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.errors import IntegrityError
from refgenfs.core.memberlist import decode_members, encode_members
from refgenfs.core.seekindex import (
    DIGEST,
    HEADER_SIZE,
    MAX_SPAN,
    SeekIndex,
    SpanTable,
    encode_head,
    head_size,
    pack_window,
    unpack_window,
)
from refgenfs.core.tar import Member

MD5 = hashlib.md5(b"an archive").hexdigest()
MEMBERS = (
    Member("d", "dir", 0, 1.5, None, 1024),
    Member("d/x.fa", "file", 700, 1e9, None, 1536),
    Member("d/y.fa", "hardlink", 700, 1e9, "d/x.fa", 3072),
    Member("l\udcff", "link", 0, 0.0, "/somewhere/else", 3584),
    Member("_refgenie_build/log", "other", 10, 0.0, None, 4096),
)
UNPACKED = 10_240


def table_of(outs: list[int], seed: int = 1) -> SpanTable:
    """Return spans of these unpacked lengths, and random lengths else."""
    dice = random.Random(seed)
    count = len(outs)
    return SpanTable(
        dice.randrange(10, 300),
        array("I", (dice.randrange(1, 1 << 20) for _ in outs)),
        array("I", outs),
        array("H", (dice.choice((0, 11, 20_000)) for _ in outs)),
        bytearray(dice.randrange(8) for _ in outs),
        bytearray(dice.randbytes(count * DIGEST)),
    )


def head_of(table: SpanTable, members: tuple[Member, ...] = MEMBERS, archive_size: int = 1 << 40) -> bytes:
    return encode_head(table, members, MD5, archive_size, sum(table.out))


HEAD = head_of(table_of([4000, 6000, 240]))


def signed(header: bytes, tables: bytes) -> bytes:
    """Return a head with this header, but for what is said of the tables, and a right digest."""
    packed = zlib.compress(tables)
    header = header[:48] + struct.pack("<II", len(packed), len(tables)) + header[56:64]
    return header + hashlib.blake2b(header + packed, digest_size=DIGEST).digest() + packed


def tables_in(head: bytes) -> bytes:
    return zlib.decompress(head[HEADER_SIZE:])


@given(st.lists(st.integers(1, MAX_SPAN), min_size=1, max_size=40), st.integers(0, 1 << 30))
def test_what_is_encoded_is_parsed(outs: list[int], seed: int) -> None:
    table = table_of([UNPACKED, *outs], seed)
    head = head_of(table)
    assert head_size(head[:HEADER_SIZE]) == len(head)
    index = SeekIndex.parse(head + b"the windows")
    assert (index.archive_digest, index.archive_size, index.unpacked_size) == (MD5, 1 << 40, sum(table.out))
    assert index.members == MEMBERS
    assert index.head_size == len(head)
    assert index.size == len(head) + sum(table.windows)
    spans = [index.span(number) for number in range(len(index))]
    assert [span.index for span in spans] == list(range(len(table)))
    assert [span.out_stop - span.out_start for span in spans] == list(table.out)
    assert [span.packed_stop - span.packed_start for span in spans] == list(table.packed)
    assert [span.window_stop - span.window_start for span in spans] == list(table.windows)
    assert b"".join(span.digest for span in spans) == table.digests
    assert spans[0].packed_start == table.packed_start
    for before, span in pairwise(spans):
        assert span.out_start == before.out_stop
        assert span.window_start == before.window_stop
        assert span.packed_start == before.packed_stop - (span.bits > 0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.data())
def test_spans_of_a_range(outs: list[int], data: st.DataObject) -> None:
    index = SeekIndex.parse(head_of(table_of(outs), ()))
    owner = [number for number, length in enumerate(outs) for _ in range(length)]
    start = data.draw(st.integers(0, len(owner)))
    stop = data.draw(st.integers(start, len(owner)))
    assert list(index.spans_for(start, stop)) == sorted(set(owner[start:stop]))


def test_ranges_that_are_not_there() -> None:
    index = SeekIndex.parse(HEAD)
    for start, stop in ((-1, 5), (5, 4), (0, UNPACKED + 1)):
        with pytest.raises(ValueError, match="of 10240"):
            index.spans_for(start, stop)
    for number in (-1, 3):
        with pytest.raises(IndexError):
            index.span(number)


def test_the_last_span_may_be_empty() -> None:
    index = SeekIndex.parse(head_of(table_of([UNPACKED, 0])))
    assert index.span(1).out_start == index.span(1).out_stop == UNPACKED
    assert list(index.spans_for(0, UNPACKED)) == [0]


# ---------------------------------------------------------------- what is wrong is refused


@given(st.integers(0, len(HEAD) - 1), st.integers(1, 255))
def test_any_flipped_bit_is_found(at: int, flip: int) -> None:
    damaged = bytearray(HEAD)
    damaged[at] ^= flip
    with pytest.raises(IntegrityError):
        SeekIndex.parse(bytes(damaged))


@given(st.integers(0, len(HEAD) - 1))
def test_a_head_that_is_cut_short(stop: int) -> None:
    with pytest.raises(IntegrityError):
        SeekIndex.parse(HEAD[:stop])


@given(st.binary(max_size=200))
def test_anything_else_is_no_index(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        SeekIndex.parse(data)


@given(st.data())
def test_a_lie_with_a_right_digest_is_refused_or_consistent(data: st.DataObject) -> None:
    header, tables = bytearray(HEAD[:64]), bytearray(tables_in(HEAD))
    for _ in range(data.draw(st.integers(1, 3))):
        target = data.draw(st.sampled_from((header, tables)))
        target[data.draw(st.integers(8 if target is header else 0, len(target) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del tables[data.draw(st.integers(0, len(tables))) :]
    try:
        index = SeekIndex.parse(signed(bytes(header), bytes(tables)))
    except IntegrityError:
        return
    end = 0
    for number in range(len(index)):
        span = index.span(number)
        assert span.out_start == end <= span.out_stop
        assert 0 <= span.packed_start < span.packed_stop <= index.archive_size
        assert span.packed_stop - span.packed_start <= MAX_SPAN
        assert 0 <= span.bits < 8
        assert span.window_start <= span.window_stop <= index.size
        end = span.out_stop
    assert end == index.unpacked_size
    for member in index.members:
        assert ".." not in member.name.split("/")
        assert member.name[:1] != "/"
        assert member.kind != "file" or member.offset + member.size <= index.unpacked_size


def test_another_version_says_so() -> None:
    with pytest.raises(IntegrityError, match="version 2"):
        head_size(HEAD[:8] + b"\x02\0\0\0" + HEAD[12:])


def test_a_bomb_is_not_inflated() -> None:
    bomb = signed(HEAD[:64], tables_in(HEAD) + bytes(40_000))
    claims = bomb[:52] + struct.pack("<I", len(tables_in(HEAD))) + bomb[56:64]
    packed = bomb[HEADER_SIZE:]
    with pytest.raises(IntegrityError, match="tables of another length"):
        SeekIndex.parse(claims + hashlib.blake2b(claims + packed, digest_size=DIGEST).digest() + packed)


@pytest.mark.parametrize(
    "change",
    [
        {"out": array("I", (4000, 0, 6240))},
        {"out": array("I", (4000, 6000, 241))},
        {"packed": array("I", (1, 0, 1))},
        {"packed": array("I", (1, MAX_SPAN + 1, 1))},
        {"bits": bytearray((0, 8, 0))},
    ],
)
def test_spans_that_can_not_be(change: dict[str, object]) -> None:
    table = table_of([4000, 6000, 240])
    for name, value in change.items():
        setattr(table, name, value)
    with pytest.raises(IntegrityError):
        SeekIndex.parse(encode_head(table, (), MD5, 1 << 40, UNPACKED))


def test_spans_beyond_the_archive() -> None:
    table = table_of([UNPACKED])
    with pytest.raises(IntegrityError, match="contradicts"):
        SeekIndex.parse(head_of(table, (), table.packed_start + table.packed[0] - 1 + (table.bits[0] == 0) - 1))


# ---------------------------------------------------------------- windows


@given(st.binary(max_size=32_768))
def test_windows_come_back(window: bytes) -> None:
    assert unpack_window(pack_window(window)) == window


def test_damaged_windows() -> None:
    packed = pack_window(b"ACGT" * 8192)
    for wrong in (packed[:-1], packed[:-4] + b"xxxx", packed + b"x", b"x", pack_window(bytes(32_769))):
        with pytest.raises(IntegrityError):
            unpack_window(wrong)


# ---------------------------------------------------------------- members


def line(
    name: object = "x", kind: object = "file", size: object = 1, mtime: object = 0.0, target: object = None,
    offset: object = 512,
) -> bytes:  # fmt: skip
    return json.dumps([name, kind, size, mtime, target, offset]).encode() + b"\n"


def test_members_come_back() -> None:
    assert decode_members(encode_members(MEMBERS), UNPACKED) == MEMBERS
    assert decode_members(b"", 0) == ()


@pytest.mark.parametrize(
    "text",
    [
        b"not json\n",
        b"[" * 20_000 + b"\n",
        b"{}\n",
        b"[1]\n",
        b"[1,2,3,4,5,6]\n",
        line()[:-1],
        line(size="1"),
        line(size=True),
        line(size=-1),
        line(size=1 << 63),
        line(size=10**400),
        line(mtime=1),
        line(mtime=float("nan")),
        line(mtime=float("inf")),
        line(kind="socket"),
        line(kind=["file"]),
        line(target=1),
        line(name="../x"),
        line(name="/x"),
        line(name="a//x"),
        line(name="./x"),
        line(name="x\0"),
        line(name=""),
        line(name="\ud800"),
        line(name="n" * 256),
        line(name="n/" * 70 + "n"),
        line(name="d/", kind="dir", size=0),
        line() + line(offset=1536),
        line(name="x", kind="dir", size=0) + line(offset=1536),
        line() + line(name="x/y", offset=1536),
        line(name="x/y") + line(offset=1536),
        line(offset=513),
        line(offset=0),
        line() + line(name="y", offset=1024),
        line(size=UNPACKED),
        line(target="y"),
        line(kind="link", size=0),
        line(kind="link", target="t"),
        line(kind="link", size=0, target="t\0"),
        line(kind="link", size=0, target="t" * 4097),
        line(kind="hardlink", target="y"),
        line() + line(name="y", kind="hardlink", size=2, target="x", offset=1536),
        line(kind="dir"),
        line(name="_refgenie_build/log"),
        line(name="n" * 255, kind="link", size=0, target="\udcff" * 5000),
    ],
)
def test_members_that_no_archive_gives(text: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_members(text, UNPACKED)


def test_too_many_members() -> None:
    text = b"".join(line(name=f"{number}", size=0, offset=512 * number + 512) for number in range(100_001))
    with pytest.raises(IntegrityError, match="too many"):
        decode_members(text, 1 << 40)


def test_offsets_add_up() -> None:
    outs = [4000, 6000, 240]
    index = SeekIndex.parse(HEAD)
    assert [index.span(number).out_stop for number in range(3)] == list(accumulate(outs))
