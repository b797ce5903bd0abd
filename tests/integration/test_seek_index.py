"""Seek indexes of archives as programs pack them: each span, inflated on its own, is that part of the tar."""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import random
import subprocess
import sys
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refgenfs.core.errors import ArchiveError, IntegrityError
from refgenfs.core.seekindex import HEAD, HEADERS, MAX_SPAN, TAIL, spacing_for, span_digest, unpack_window
from refgenfs.fetch import libz
from refgenfs.fetch.inflating import STEP, GzipInflater
from refgenfs.fetch.seekpoints import IndexBuilder, NotIndexed
from refgenfs.fetch.spans import inflate_span
from tests.support.seekindexes import PACKERS, SPACING, build_index, inflate, parse_index, pieces, sample_tar
from tests.support.tars import END, entry, header, parse

TAR = sample_tar()


@pytest.mark.parametrize("packer", PACKERS)
def test_every_span_inflates_on_its_own(packer: str, tmp_path: Path) -> None:
    archive = PACKERS[packer](TAR)
    file, tar = build_index(pieces(archive), tmp_path)
    assert tar == TAR
    index = parse_index(file)
    assert index.archive_size == len(archive)
    assert index.archive_digest == hashlib.md5(archive).hexdigest()
    assert index.unpacked_size == len(TAR)
    assert index.size == len(file)
    assert list(index.members) == parse(TAR).members
    assert len(index) > 4
    end = 0
    for number in range(len(index)):
        span = index.span(number)
        assert span.out_start == end
        end = span.out_stop
        assert inflate(file, archive, number) == TAR[span.out_start : span.out_stop]
    assert end == len(TAR)


@pytest.mark.parametrize("packer", PACKERS)
def test_the_index_does_not_depend_on_how_the_archive_arrives(packer: str, tmp_path: Path) -> None:
    archive = PACKERS[packer](TAR)
    whole, _ = build_index([archive], tmp_path)
    dice = random.Random(packer)
    for most in (300, 5000, 200_000):
        sizes = [dice.randint(1, most) for _ in range(1000)]
        assert build_index(pieces(archive, sizes), tmp_path)[0] == whole


@pytest.mark.parametrize("packer", ["gzip-1", "bgzip", "stored"])
def test_the_ends_of_a_large_member_are_in_short_spans(packer: str, tmp_path: Path) -> None:
    """And they are the same ones, however the archive arrives: what is behind a header may be known late."""
    dice = random.Random(packer)
    large, spacing = bytes(dice.choices(b"ACGT", k=2_600_000)), 320_000
    files = {b"t/a.fa": large, b"t/a.fa.fai": b"c", b"t/text": large[:700_000], b"t/b.fa": large, b"t/c.fa": large}
    tar = b"".join(entry(name, data) for name, data in files.items()) + END
    archive = PACKERS[packer](tar)
    file, _ = build_index([archive], tmp_path, spacing)
    index = parse_index(file)

    def span_length(at: int) -> int:
        numbers = index.spans_for(at, at + 1)
        return index.span(numbers[0]).out_stop - index.span(numbers[0]).out_start

    members = {member.name: member for member in index.members}
    block = 200_000 if packer == "gzip-1" else 65_536  # of deflate, at the most
    assert HEAD <= span_length(0) <= HEAD + HEADERS + block
    assert index.spans_for(0, members["a.fa"].offset + HEAD) == range(1)
    assert span_length(members["a.fa.fai"].offset) <= TAIL + HEADERS + HEAD + block
    assert span_length(members["c.fa"].offset) <= TAIL + HEADERS + HEAD + block
    assert span_length(members["c.fa"].offset + len(large) // 2) >= spacing
    regular, _ = build_index([archive], tmp_path, MAX_SPAN)
    assert len(parse_index(regular)) < 4, "no member is large beside such a spacing"
    sizes = [dice.randint(1, 40_000) for _ in range(1000)]
    assert build_index(pieces(archive, sizes), tmp_path, spacing)[0] == file


def make(kind: str, length: int, before: bytes, dice: random.Random) -> bytes:
    match kind:
        case "bases":
            return bytes(dice.choices(b"ACGT", k=length))
        case "noise":
            return dice.randbytes(length)
        case "echo":  # of what came 32 KiB before
            return (before[-32_768:] * 2)[:length]
        case _:
            return bytes(length)


STEPS = st.tuples(
    st.sampled_from(("bases", "noise", "zeros", "echo")),
    st.integers(0, 40_000),
    st.sampled_from((zlib.Z_NO_FLUSH, zlib.Z_PARTIAL_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_FINISH)),
    st.sampled_from(((0, 0), (1, 0), (9, 0), (6, zlib.Z_FIXED), (6, zlib.Z_HUFFMAN_ONLY), (6, zlib.Z_RLE))),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=12), st.integers(0, 1 << 30))
def test_every_boundary_can_be_a_point(steps: list[tuple[str, int, int, tuple[int, int]]], seed: int) -> None:
    dice = random.Random(seed)
    body = [b""]
    for kind, length, _, _ in steps:
        body.append(make(kind, length, b"".join(body), dice))
    total = sum(map(len, body))
    body[0] = header(b"t/x", size=total)
    archive, packer = b"", None
    for data, (_, _, flush, (level, strategy)) in zip(body, [("", 0, zlib.Z_NO_FLUSH, (6, 0)), *steps], strict=True):
        packer = packer or zlib.compressobj(level, wbits=31, strategy=strategy, memLevel=dice.randint(1, 9))
        archive += packer.compress(data) + packer.flush(flush)
        packer = None if flush == zlib.Z_FINISH else packer
    archive += packer.flush() if packer else b""
    tail = bytes(-total % 512) + END
    archive += bytes(seed % 3) + gzip.compress(tail, mtime=0)
    with tempfile.TemporaryDirectory() as folder:
        sizes = [dice.randint(1, 30_000) for _ in range(9)]
        file, tar = build_index(pieces(archive, sizes), Path(folder), 1)
    assert tar == b"".join(body) + tail
    index = parse_index(file)
    for number in range(len(index)):
        span = index.span(number)
        assert inflate(file, archive, number) == tar[span.out_start : span.out_stop]


def test_spacing() -> None:
    assert spacing_for(10**6) <= spacing_for(5 * 10**8) <= spacing_for(10**10) == spacing_for(None) == 4 << 20


# ---------------------------------------------------------------- what is wrong is noticed


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """An archive and its index."""
    archive = PACKERS["gzip-6"](TAR)
    return archive, build_index([archive], tmp_path_factory.mktemp("index"))[0]


def test_a_flipped_bit_in_a_span(packed: tuple[bytes, bytes]) -> None:
    archive, file = packed
    span = parse_index(file).span(3)
    for at in (span.packed_start, span.packed_stop - 1, (span.packed_start + span.packed_stop) // 2):
        damaged = bytearray(archive)
        damaged[at] ^= 8
        with pytest.raises(IntegrityError, match="another digest"):
            inflate(file, bytes(damaged), 3)
    with pytest.raises(IntegrityError, match="packed bytes instead of"):
        inflate(file, archive[: span.packed_stop - 1], 3)


def test_another_window_is_not_used(packed: tuple[bytes, bytes]) -> None:
    archive, file = packed
    index = parse_index(file)
    span, other = index.span(3), index.span(4)
    window = unpack_window(file[other.window_start : other.window_stop])
    with pytest.raises(IntegrityError, match="another digest"):
        inflate_span(span, window, archive[span.packed_start : span.packed_stop])


@pytest.mark.parametrize("change", [{"bits": 3}, {"out_stop": 1 << 40}, {"packed_start": 1000}])
def test_an_index_that_lies(packed: tuple[bytes, bytes], change: dict[str, Any]) -> None:
    archive, file = packed
    index = parse_index(file)
    for number in range(1, 6):
        span = replace(index.span(number), **change)
        data = archive[span.packed_start : span.packed_stop]
        window = unpack_window(file[span.window_start : span.window_stop])
        digest = span_digest(window)
        digest.update(data)
        got = b""
        try:
            for piece in inflate_span(replace(span, digest=digest.digest()), window, data):
                got += piece
        except ArchiveError:
            pass
        assert len(got) <= span.out_stop - span.out_start


def test_bytes_come_in_pieces_and_never_more_than_promised(packed: tuple[bytes, bytes]) -> None:
    zeros = PACKERS["python"](entry(b"t/zeros", bytes(20 << 20)) + END)
    with tempfile.TemporaryDirectory() as folder:
        file, _ = build_index([zeros], Path(folder), 16 << 20)
    span = parse_index(file).span(0)
    window = unpack_window(file[span.window_start : span.window_stop])
    data = zeros[span.packed_start : span.packed_stop]
    sizes = [len(piece) for piece in inflate_span(span, window, memoryview(data))]
    assert max(sizes) == STEP
    assert sum(sizes) == span.out_stop
    less = replace(span, out_stop=STEP + 1)
    assert [len(piece) for piece in inflate_span(less, window, data)] == [STEP, 1]


def test_the_end_of_a_large_gzip_member_inside_a_span(tmp_path: Path) -> None:
    first = header(b"t/x", size=17 << 20)
    archive = gzip.compress(first + bytes(17 << 20), 1, mtime=0)  # the last byte of its length isn't zero
    assert archive[-1]
    archive += gzip.compress(END, mtime=0)
    file, tar = build_index(pieces(archive), tmp_path, 24 << 20)
    assert len(parse_index(file)) == 1
    assert inflate(file, archive, 0) == tar


# ---------------------------------------------------------------- when no index can be made


def drain(builder: IndexBuilder, archive: bytes) -> bytes:
    try:
        return b"".join(piece for part in pieces(archive) for piece in builder.inflate(part))
    finally:
        assert builder.ended


def test_a_spill_that_can_not_be_written_costs_the_index_only(
    packed: tuple[bytes, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    builder = IndexBuilder(tmp_path / "missing" / "windows", SPACING)
    with caplog.at_level("INFO"):
        assert drain(builder, packed[0]) == TAR
    assert "no seek index of this archive: its windows can't be kept in" in caplog.text
    assert len(caplog.records) == 1
    with pytest.raises(NotIndexed, match="No such file"):
        builder.finish([], "0" * 32, tmp_path / "index")
    builder.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_the_windows(packed: tuple[bytes, bytes], tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from typing import Any
from refgenfs.fetch.seekpoints import IndexBuilder, NotIndexed
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
builder = IndexBuilder(Path(sys.argv[1]), int(sys.argv[2]))
length = sum(map(len, builder.inflate(sys.stdin.buffer.read())))
try:
    builder.finish([], "0" * 32, Path(sys.argv[1] + ".index"))
except NotIndexed as exc:
    print(length, exc)
builder.close()
"""
    command = [sys.executable, "-c", code, str(tmp_path / "windows"), str(SPACING)]
    done = subprocess.run(command, input=packed[0], capture_output=True, check=True, timeout=60)
    assert done.stdout.decode().startswith(f"{len(TAR)} its windows can't be kept")
    assert done.stderr == b""
    assert list(tmp_path.iterdir()) == []


def test_a_span_without_end_is_not_indexed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    builder = IndexBuilder(tmp_path / "windows", SPACING)
    bits = zlib.compressobj(9, wbits=31, strategy=zlib.Z_FIXED, memLevel=9)
    archive = b"".join([bits.compress(bytes(MAX_SPAN // 2)) for _ in range(6)]) + bits.flush()
    monster = IndexBuilder(tmp_path / "other", MAX_SPAN * 2)
    for one, wanted in ((builder, ""), (monster, "no boundary of deflate blocks within 32 MiB")):
        total = sum(len(piece) for part in pieces(archive) for piece in one.inflate(part))
        assert total == 3 * MAX_SPAN
        assert one.failed == wanted
        one.close()


def test_a_system_without_zlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    libz._load.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(libz.LibzMissing, match="install the package zlib1g"):
        IndexBuilder(tmp_path / "windows", SPACING)


def test_an_index_of_half_an_archive_is_not_written(packed: tuple[bytes, bytes], tmp_path: Path) -> None:
    builder = IndexBuilder(tmp_path / "windows", SPACING)
    for part in pieces(packed[0][:-1]):
        for _ in builder.inflate(part):
            pass
    with pytest.raises(NotIndexed, match="not gone by whole"):
        builder.finish([], "0" * 32, tmp_path / "index")
    builder.close()
    builder.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["damaged", "followed"])
def test_damaged_archives_are_refused_as_without_an_index(
    packed: tuple[bytes, bytes], tmp_path: Path, what: str
) -> None:
    archive = packed[0]
    wrong = archive + b"<html>" * 10 if what == "followed" else archive[:-8] + bytes(4) + archive[-4:]
    for inflater in (IndexBuilder(tmp_path / "windows", SPACING), GzipInflater()):
        with pytest.raises(ArchiveError, match=f"gzip data is {what}"):
            [piece for part in pieces(wrong) for piece in inflater.inflate(part)]
        if isinstance(inflater, IndexBuilder):
            inflater.close()
