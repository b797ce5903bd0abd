"""Searches of real files, of files that lack something, and of indices that lie."""

from __future__ import annotations

import contextlib
import gzip
import random
import struct
import subprocess
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refgenfs.core.errors import IntegrityError, InvalidInput, RefgenfsError, UnsupportedFormat
from refgenfs.core.htsget import bgzf, binning, cram, header
from refgenfs.core.htsget.answer import Answer, BlockRange, InlineBlock, merge
from refgenfs.core.htsget.binning import BinningIndex
from refgenfs.core.htsget.crai import CraiIndex
from refgenfs.core.htsget.edges import settle
from refgenfs.core.htsget.gzi import Gzi
from refgenfs.core.htsget.model import Class, Format, Query, Region
from refgenfs.core.htsget.opening import MAX_GZI, Sizes, open_file
from refgenfs.core.htsget.plan import Need, Part
from tests.support.htsfiles import Files, shown

BAM, CRAM = "htsget-rs/bam/htsnexus_test_NA12878.bam", "htslib/range.cram"
VCF, BCF = "refserver/HG002_GIAB.filtered.vcf.gz", "htsget-rs/bcf/sample1-bcbio-cancer.bcf"


@pytest.fixture(scope="module")
def folder(data_dir: Path) -> Path:
    return data_dir / "data" / "htsget"


@pytest.fixture(scope="module")
def bam(folder: Path) -> Files:
    return Files.read(folder / BAM, ".bai", gzi=True)


@pytest.fixture(scope="module")
def crams(folder: Path) -> Files:
    return Files.read(folder / CRAM, ".crai")


def count(path: Path, *options: object) -> int:
    """Count reads with samtools."""
    command = ["samtools", "view", "-c", *map(str, options), str(path)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)


# -- what htsget-search does wrong ------------------------------------------------------------------------


@pytest.mark.needs_data
@pytest.mark.parametrize(("region", "reads"), [("CHROMOSOME_I", 18), ("CHROMOSOME_II", 34), ("CHROMOSOME_III", 41)])
def test_slices_that_share_a_container_are_found(
    folder: Path, crams: Files, tmp_path: Path, region: str, reads: int
) -> None:
    (tmp_path / "part.cram").write_bytes(crams.joined(crams.search(region)))
    names = ["-e", f'rname == "{region}"']
    assert count(folder / CRAM, "-T", folder / "htslib/ce.fa", *names) == reads
    assert count(tmp_path / "part.cram", "-T", folder / "htslib/ce.fa", *names) == reads


@pytest.mark.needs_data
def test_several_regions_have_one_header_and_one_end(folder: Path, bam: Files, tmp_path: Path) -> None:
    regions = ["20:63000-64000", "11:5015001-5050000", "11:5015001-5050000", "11:5020000-5030000"]
    answer = bam.search(*regions)
    assert shown(answer).startswith("0-4667 H; 256721-")
    assert [one.start for one in answer.ranges] == sorted({one.start for one in answer.ranges})
    joined = bam.joined(answer)
    assert joined.count(bgzf.EOF_MARKER) == 1
    assert joined.endswith(bgzf.EOF_MARKER)
    part = tmp_path / "part.bam"
    part.write_bytes(joined)
    subprocess.run(["samtools", "quickcheck", part], check=True, timeout=60)
    subprocess.run(["samtools", "index", part], check=True, timeout=60)
    assert count(part) > 0
    for region in regions:
        whole = subprocess.run(
            ["samtools", "view", folder / BAM, region], check=True, capture_output=True, timeout=60
        ).stdout
        again = subprocess.run(["samtools", "view", part, region], check=True, capture_output=True, timeout=60).stdout
        assert again == whole


# -- what files may lack ----------------------------------------------------------------------------------


@pytest.mark.needs_data
def test_a_file_without_an_end_marker_gets_one_in_the_answer(bam: Files, crams: Files, tmp_path: Path) -> None:
    for files, marker, region in (
        (bam, bgzf.EOF_MARKER, "20"),
        (crams, cram.eof_marker((3, 0)), "CHROMOSOME_III"),
    ):
        short = replace(files, data=files.data[: -len(marker)])
        answer = short.search(region)
        assert files.joined(files.search(region)) == short.joined(answer)
        assert answer.ranges[-1].stop <= len(short.data)
        assert shown(short.search()) == f"0-{len(short.data) - 1} –"  # as it is


@pytest.mark.needs_data
def test_without_an_index_there_is_the_header_and_the_whole(bam: Files, crams: Files) -> None:
    for files in (bam, crams):
        bare = replace(files, index=None, gzi=None)
        assert bare.search(class_=Class.HEADER) == files.search(class_=Class.HEADER)
        assert bare.search() == files.search()
        with pytest.raises(InvalidInput, match="no index"):
            bare.search(next(iter(bare.open().references)))


@pytest.mark.needs_data
def test_a_format_that_is_not_the_file_s(bam: Files) -> None:
    with pytest.raises(UnsupportedFormat, match="BAM, not CRAM"):
        bam.open().search(Query("x", Format.CRAM))
    assert bam.open().search(Query("x", Format.BAM)).format is Format.BAM


@pytest.mark.needs_data
def test_variants_have_no_unplaced_reads(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="means reads"):
        Files.read(folder / VCF, ".csi").search("*")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "neither"),
        (b"##fileformat=VCFv4.3\n", "bgzip"),
        (gzip.compress(b"##fileformat=VCFv4.3\n"), "bgzip"),
        (bgzf.deflate(b"chr1\t5\t6\n") + bgzf.EOF_MARKER, "no BAM, VCF or BCF"),
        (b"CRAM\x04\x00" + bytes(100), "CRAM 4.0"),
    ],
)
def test_files_of_no_format_that_is_known(data: bytes, says: str) -> None:
    with pytest.raises(UnsupportedFormat, match=says):
        Files(data).open()


@pytest.mark.parametrize(
    "text",
    [
        b"BAM\x01" + struct.pack("<i", -1),
        b"BAM\x01" + struct.pack("<iii", 0, 1, 0),
        b"BAM\x01" + struct.pack("<iii", 0, 1, 1 << 30),
        b"BAM\x01" + struct.pack("<ii", 0, (1 << 31) - 1),
        b"BAM\x01" + struct.pack("<i", (1 << 31) - 1),
        b"BCF\x02\x02" + struct.pack("<i", (1 << 31) - 1),
        b"##fileformat=VCFv4.3\n##no columns\n",
        b"##fileformat=VCFv4.3\nchr1\t1\n",
        b"##fileformat=VCFv4.3\n#CHROM without an end",
    ],
)
def test_headers_that_are_none(text: bytes) -> None:
    with pytest.raises(IntegrityError):
        Files(bgzf.deflate(text) + bgzf.EOF_MARKER).open()


def test_a_header_longer_than_is_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "MAX_HEADER", 1 << 20)
    with pytest.raises(IntegrityError, match="more than 1048576 bytes"):
        Files(bgzf.deflate(b"##fileformat=VCFv4.3\n" + b"#\n" * (1 << 20))).open()


def test_a_long_header_is_read_in_rounds() -> None:
    dice = random.Random(1)
    names = [f"c{dice.randbytes(20).hex()}" for _ in range(40_000)]
    text = b"BAM\x01" + struct.pack("<ii", 0, len(names))
    text += b"".join(struct.pack("<i", len(n) + 1) + n.encode() + b"\0" + struct.pack("<i", 9) for n in names)
    data = bgzf.deflate(text) + bgzf.EOF_MARKER
    rounds: list[int] = []
    file = Files(data).run(open_file(Sizes(len(data))), rounds)
    assert list(file.references) == names
    assert file.header_end == len(data) - len(bgzf.EOF_MARKER)
    assert max(rounds) <= 4 << 20
    assert len(rounds) < 8


def test_contigs_of_a_bcf_have_the_numbers_that_it_tells() -> None:
    text = b'##contig=<ID=b,length=5,IDX=1>\n##contig=<ID=a,note="x,ID=z>\\"",IDX=0>\n#CHROM\n\0'
    data = bgzf.deflate(b"BCF\x02\x02" + struct.pack("<i", len(text)) + text) + bgzf.EOF_MARKER
    file = Files(data).open()
    assert dict(file.references) == {"b": 1, "a": 0}
    assert dict(file.lengths) == {"b": 5}


def test_a_read_that_is_short_ends_the_plan() -> None:
    plan = open_file(Sizes(100))
    needs = next(plan)
    with pytest.raises(IntegrityError, match="99 bytes came of the 100"):
        plan.send([bytes(len(one) - (one.start == 0)) for one in needs])


@pytest.mark.needs_data
@pytest.mark.parametrize("gzi", [True, False])
def test_an_index_of_another_version_of_the_file(bam: Files, gzi: bool) -> None:
    """Bytes were put before the first records: every offset of the index is in the middle of a block."""
    moved = bam.data[:4668] + bgzf.EOF_MARKER + bam.data[4668:]
    files = Files(moved, bam.index, bam.gzi if gzi else None)
    with pytest.raises(IntegrityError, match="index it again"):
        files.search("11:5015001-5050000")


@pytest.mark.needs_data
def test_a_crai_of_another_version_of_the_file(crams: Files) -> None:
    moved = crams.data[:500] + crams.data[400:]
    with pytest.raises(IntegrityError):
        replace(crams, data=moved).search("CHROMOSOME_III")


# -- ranges -----------------------------------------------------------------------------------------------


def test_ranges_beyond_the_most_are_joined_where_the_gaps_are_small() -> None:
    ranges = [BlockRange(start, start + 5, Class.BODY) for start in (0, 10, 40, 50, 100)]
    assert [(one.start, one.stop) for one in merge(ranges, most=3)] == [(0, 15), (40, 55), (100, 105)]
    assert [(one.start, one.stop) for one in merge(ranges, most=1)] == [(0, 105)]
    assert len(merge(ranges, most=5)) == 5


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 30)), max_size=20), st.integers(1, 9))
def test_merged_ranges_cover_what_they_were_made_of(pairs: list[tuple[int, int]], most: int) -> None:
    merged = merge([BlockRange(start, start + length) for start, length in pairs], most)
    covered = {byte for one in merged for byte in range(one.start, one.stop)}
    assert covered >= {byte for start, length in pairs for byte in range(start, start + length)}
    assert len(merged) <= most
    assert all(left.stop < right.start for left, right in pairwise(merged))


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ((0, 0), (1, 0)),
        ((0, 0), (0, 7)),
        ((0, 30), (1, 10)),
        ((0, 30), (0, 40)),
        ((0, 40), (0, 40)),
        ((0, 40), (1, 10)),
        ((0, 30), (1, 0)),
        ((1, 0), (1, 60)),
        ((1, 5), (1, 6)),
        ((0, 0), (1, 60)),
    ],
)
def test_the_blocks_at_the_edges_are_cut_at_the_offsets_of_the_index(
    first: tuple[int, int], last: tuple[int, int]
) -> None:
    """Two blocks of 40 and 60 bytes; offsets are (block, byte in it), and what is between them is what is wanted."""
    texts = [bytes(range(40)), bytes(range(100, 160))]
    head = bgzf.deflate(b"##fileformat=VCFv4.3\n#CHROM\tPOS\n")
    blocks = [bgzf.deflate(text) for text in texts]
    starts = [len(head), len(head) + len(blocks[0]), len(head) + len(blocks[0]) + len(blocks[1])]
    files = Files(head + b"".join(blocks) + bgzf.EOF_MARKER)
    offsets = [starts[block] << 16 | inside for block, inside in (first, last)]
    span = BlockRange(starts[first[0]], starts[last[0] + 1], Class.BODY, *offsets)
    answer = files.run(settle(files.open(), Answer(Format.VCF, (span,))))
    whole = texts[0] + texts[1]
    begin, end = first[1] + 40 * first[0], last[1] + 40 * last[0]
    assert gzip.decompress(files.joined(answer) or bgzf.EOF_MARKER) == whole[begin:end]
    assert all(not isinstance(one, InlineBlock) or one.data for one in answer.blocks)


# -- indices that lie -------------------------------------------------------------------------------------

MOST = (1 << 31) - 1
META = struct.pack("<7i", 2, 1, 2, 0, 35, 0, 0)


def bai(*numbers: int) -> bytes:
    return b"BAI\x01" + struct.pack(f"<{len(numbers)}I", *numbers)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"BAI\x01",
        b"XYZ\x01" + bytes(8),
        bai(MOST),
        bai(MOST, *[0] * 1000),
        bai(1, MOST),
        bai(1, MOST, *[0] * 1000),
        bai(1, 0xFFFFFFFF, *[0] * 10),
        bai(1, 1, 4681, MOST),
        bai(1, 1, 4681, 0xFFFFFFFF, 0),
        bai(1, 0, MOST),
        bai(1, 0, 0xFFFFFFFF),
        bai(1, 1, 4681, 2, 0, 0, 0, 0),
        b"TBI\x01" + struct.pack("<i", 0) + META[:-4] + struct.pack("<i", MOST),
        b"TBI\x01" + struct.pack("<i", 0) + META[:-4] + struct.pack("<i", -1),
        b"TBI\x01" + struct.pack("<i", MOST) + META,
        b"CSI\x01" + struct.pack("<4i", 14, 5, MOST, 0),
        b"CSI\x01" + struct.pack("<4i", 14, 5, -1, 0),
        b"CSI\x01" + struct.pack("<4i", 14, 31, 0, 0),
        b"CSI\x01" + struct.pack("<4i", -1, 5, 0, 0),
        b"CSI\x01" + struct.pack("<4i", 14, 5, 0, MOST),
        b"\x1f\x8b\x08\x04",
        gzip.compress(bai(0))[:-9],
        gzip.compress(bai(0)) + b"garbage",
    ],
)
def test_binning_indices_that_lie(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        BinningIndex.parse(data)


@pytest.mark.parametrize(
    "data",
    [
        bai(1, 1, 0, 1, 9, 9, 8, 9, 0),  # a chunk that ends before it begins
        bai(1, 2, 0, 0, 0, 0, 0),  # a bin that is there twice
        bai(1, 1, 40_000, 0, 0),  # a bin behind the last
    ],
)
def test_references_of_an_index_that_lie(data: bytes) -> None:
    index = BinningIndex.parse(data)
    with pytest.raises(IntegrityError):
        index.chunks(0, 0, None)


@pytest.mark.parametrize(
    "text",
    [
        b"1\t2\t3\n",
        b"x\n",
        b"\0" * 100,
        b"0\t1\t1\t-5\t0\t1\n",
        b"0\t1\t-1\t5\t0\t1\n",
        b"0\t1\t1\t99\t0\t" + b"9" * 30 + b"\n",
        b"0\t1\t1\t99\t0\t" + b"9" * 5000 + b"\n",
    ],
)
def test_crais_that_lie(text: bytes) -> None:
    with pytest.raises(IntegrityError):
        CraiIndex(gzip.compress(text))
    with pytest.raises(IntegrityError):
        CraiIndex(gzip.compress(text)[:-3])


@pytest.mark.parametrize(
    "data", [b"", bytes(7), struct.pack("<Q", 1), struct.pack("<Q", 1 << 63), struct.pack("<3Q", 0, 1, 1)]
)
def test_gzis_that_lie(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Gzi(data)


def test_an_index_that_inflates_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binning, "MAX_INDEX", 1 << 20)
    bomb = gzip.compress(bytes(100 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match="more than 1048576 bytes"):
            BinningIndex.parse(bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Return bytes with something wrong: cut short, numbers replaced, pieces repeated or gone."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        at = dice.randrange(len(out)) if out else 0
        match dice.randrange(6):
            case 0:
                del out[at:]
            case 1:
                out[at : at + 4] = struct.pack("<I", dice.choice((0, 1, MOST, 0xFFFFFFFF, dice.getrandbits(32))))
            case 2:
                out[at : at + 8] = struct.pack("<Q", dice.choice((0, (1 << 64) - 1, dice.getrandbits(64))))
            case 3:
                out[at : at + 1] = dice.randbytes(1)
            case 4:
                del out[at : at + dice.randrange(40)]
            case 5:
                out[at:at] = out[at : at + dice.randrange(200)]
    return bytes(out)


@pytest.mark.needs_data
@pytest.mark.parametrize("kind", ["bam", "cram", "vcf", "bcf"])
@given(seed=st.integers(0, 1 << 40))
@settings(max_examples=60)
def test_damaged_indices_and_headers_end_in_an_error_or_in_ranges_of_the_file(
    folder: Path, kind: str, seed: int
) -> None:
    names = {"bam": (BAM, ".bai"), "cram": (CRAM, ".crai"), "vcf": (VCF, ".csi"), "bcf": (BCF, ".csi")}
    files = Files.read(folder / names[kind][0], names[kind][1], gzi=kind in {"bam", "bcf"})
    dice = random.Random(seed)
    assert files.index is not None
    inside = gzip.decompress(files.index) if files.index[:2] == b"\x1f\x8b" else files.index
    match dice.randrange(5):
        case 0:
            files = replace(files, index=mutated(files.index, dice))
        case 1 if files.gzi:
            files = replace(files, gzi=mutated(files.gzi, dice))
        case 2:
            files = replace(files, data=mutated(files.data[:3000], dice) + files.data[3000:])
        case _:
            files = replace(files, index=mutated(inside, dice))
    tracemalloc.start()
    with contextlib.suppress(RefgenfsError):
        file = files.open()
        region = Region(dice.choice([*file.references] or ["*"]))
        answer = files.run(settle(file, file.search(Query("x", regions=(region,)))))
        bounds = [bound for one in answer.ranges for bound in (one.start, one.stop)]
        assert bounds == sorted(bounds)
        assert bounds[-1] <= len(files.data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20


@given(data=st.binary(max_size=400))
def test_any_bytes_are_an_index_or_an_error(data: bytes) -> None:
    parsers: list[Callable[[bytes], object]] = [BinningIndex.parse, CraiIndex, Gzi]
    for magic in (b"", b"BAI\x01", b"TBI\x01", b"CSI\x01"):
        for parse in parsers:
            with contextlib.suppress(IntegrityError):
                parse(magic + data)


# -- BGZF -------------------------------------------------------------------------------------------------


@given(data=st.binary(max_size=200), repeat=st.integers(0, 2000), cuts=st.lists(st.integers(1, 5000), max_size=9))
def test_blocks_are_found_however_they_arrive(data: bytes, repeat: int, cuts: list[int]) -> None:
    text = data * repeat
    file = bgzf.deflate(text) + bgzf.EOF_MARKER
    walk, at = bgzf.BlockWalk(), 0
    for cut in [*cuts, len(file)]:
        walk.feed(file[at : at + cut])
        at += cut
    assert walk.data == text
    assert walk.boundary(len(text)) == (len(file) - len(bgzf.EOF_MARKER) if text else 0)
    assert bgzf.inflate(file, len(text), "file") == text


def test_blocks_that_can_not_be_compressed_fit() -> None:
    data = random.Random(1).randbytes(200_000)
    assert gzip.decompress(bgzf.deflate(data)) == data


def test_blocks_that_are_damaged() -> None:
    block = bgzf.deflate(b"some text")
    for wrong in (
        block[:-1] + b"\1",
        block[:20] + b"\xff" + block[21:],
        block[:16] + b"\0\0" + block[18:],
    ):
        with pytest.raises(IntegrityError):
            bgzf.BlockWalk().feed(wrong)
    with pytest.raises(IntegrityError, match="cut short"):
        bgzf.inflate(block[:-5], 100, "index")


def test_a_plan_asks_for_no_more_than_there_is() -> None:
    needs = next(open_file(Sizes(10, 20, 30)))
    assert {(one.part, one.start, one.stop) for one in needs} == {
        (Part.DATA, 0, 10),
        (Part.INDEX, 0, 20),
        (Part.GZI, 0, 30),
    }
    assert len(Need(Part.DATA, 3, 5)) == 2
    assert Part.GZI not in {one.part for one in next(open_file(Sizes(10, 20, MAX_GZI + 1)))}
    with pytest.raises(IntegrityError, match="are the most"):
        next(open_file(Sizes(10, 1 << 40)))
