"""Where the bases of a sequence are in its FASTA, and what is cut out."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.errors import IntegrityError
from refgenfs.core.fasta import (
    Blocks,
    Line,
    check_last_row,
    cut,
    end_of,
    is_md5,
    last_row,
    parse_dict,
    parse_fai,
    span_of,
    unpack,
)

MD5 = "0123456789abcdef0123456789abcdef"


def lay_out(bases: str, width: int, end: str) -> tuple[bytes, Line]:
    """Return a FASTA of one sequence, and its row."""
    lines = [bases[at : at + width] for at in range(0, len(bases), width)]
    data = f">x it\n{end.join(lines)}{end}".encode()
    return data, Line(len(bases), 6, width, width + len(end))


def stretch(text: bytes, line: Line, start: int, stop: int) -> bytes:
    check_last_row(line, text[slice(*last_row(line))])
    return cut(line, start, stop, text[slice(*span_of(line, start, stop))], text[slice(*end_of(line, stop))])


@given(
    bases=st.text("ACGTNacgtn*", min_size=1, max_size=300),
    width=st.integers(1, 70),
    end=st.sampled_from(["\n", "\r\n"]),
    data=st.data(),
)
def test_any_stretch_is_that_of_the_sequence(bases: str, width: int, end: str, data: st.DataObject) -> None:
    text, line = lay_out(bases, width, end)
    start = data.draw(st.integers(0, len(bases) - 1))
    stop = data.draw(st.integers(start + 1, len(bases)))
    assert stretch(text, line, start, stop) == bases[start:stop].upper().encode()


@pytest.mark.parametrize("text", [b"AC GTACGT\nACGTACGT\n", b"ACGTACGTA\nCGTACGT\n", b"ACGT\nACGTACGTACG\n"])
def test_lines_that_are_not_as_the_fai_says(text: bytes) -> None:
    line = Line(16, 0, 8, 9)
    with pytest.raises(IntegrityError):
        stretch(text, line, 0, 16)


SPACED = ["AC GT\nAC GT\n", "AC GT\nACGT \n", "ACGT \nA CGT\n", "ACGT\r\nACG T\n", "AC GT\nAC G", "AC GT", "A C\n"]


@pytest.mark.parametrize("text", SPACED)
def test_a_space_in_a_line_is_found_wherever_a_stretch_begins(text: str, tmp_path: Path) -> None:
    """`faidx` takes "AC GT" for four bases in six bytes, as if its line ended with two characters."""
    path = tmp_path / "x.fa"
    path.write_text(f">x\n{text}", newline="")
    subprocess.run(["samtools", "faidx", str(path)], check=True)
    line, right = parse_fai((tmp_path / "x.fa.fai").read_text())["x"], "".join(text.split()).encode()
    assert line.length == len(right)
    for start in range(line.length):
        for stop in range(start + 1, line.length + 1):
            try:
                found = stretch(path.read_bytes(), line, start, stop)
            except IntegrityError:
                continue
            assert found == right[start:stop]


def test_a_dictionary_says_what_is_there() -> None:
    other = "f" * 32
    text = f"@HD\tVN:1.0\n@SQ\tSN:a\tLN:5\tM5:{MD5}\n@SQ\tSN:b\tLN:6\tM5:{other}\tUR:file:/x\n@SQ\tSN:c\tLN:7\nodd\n"
    assert parse_dict(text) == {MD5: ("a", 5), other: ("b", 6)}
    twice = f"@SQ\tSN:a\tLN:5\tM5:{MD5}\n@SQ\tSN:a\tLN:6\tM5:{other}\n"
    assert parse_dict(twice) == {}


def test_a_fai_says_where_it_is() -> None:
    assert parse_fai("a\t5\t3\t4\t5\nb\t6\t12\t4\t5\t30\n") == {"a": Line(5, 3, 4, 5), "b": Line(6, 12, 4, 5)}
    with pytest.raises(IntegrityError):
        parse_fai("no fai\n")


def test_what_an_md5_is() -> None:
    assert is_md5(MD5)
    assert not is_md5(MD5.upper())
    assert not is_md5(MD5[:-1])


def test_packed_stretches(tmp_path: Path) -> None:
    data = hashlib.shake_128(b"x").digest(400_000).hex().encode()
    (tmp_path / "x").write_bytes(data)
    subprocess.run(["bgzip", "-i", str(tmp_path / "x")], check=True)
    packed, blocks = (tmp_path / "x.gz").read_bytes(), Blocks((tmp_path / "x.gz.gzi").read_bytes())
    for start, stop in [
        (0, 1),
        (0, 800_000),
        (65_279, 65_281),
        (65_280, 65_281),
        (799_999, 800_000),
        (70_000, 500_000),
    ]:
        first, end, begins = blocks.span(start, stop)
        assert unpack(packed[first:end], stop - begins)[start - begins : stop - begins] == data[start:stop]
    assert unpack(packed, 900_000) == data
    with pytest.raises(IntegrityError):
        unpack(packed[:1000], 65_000)
    with pytest.raises(IntegrityError):
        unpack(b"no block at all", 1)
    with pytest.raises(IntegrityError):
        Blocks(b"\1" + bytes(7))
