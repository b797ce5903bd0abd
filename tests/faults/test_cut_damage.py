"""Slices and sequences that are cut out of a file whose bytes have rotted in the cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fuse.test_indices import BAM, big_fasta, mounted_site, read
from tests.fuse.test_refget import place, sequences_of
from tests.support.mounted import Mounted

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data]


def rot(mounted: Mounted, size: int, at: int) -> None:
    """Flip a bit of the content that has so many bytes, on the disk; its time stays, as that of what rots does."""
    (path,) = [one for one in (mounted.cache / "contents").iterdir() if one.stat().st_size == size]
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("edge", [0, 1])
def test_a_slice_is_cut_out_of_blocks_that_were_checked(tmp_path: Path, data_dir: Path, edge: int) -> None:
    """Also those at its edges, of which it has a part."""
    site = tmp_path / "site"
    site.mkdir()
    shutil.copy(data_dir / BAM, site / "a.bam")
    data = (site / "a.bam").read_bytes()
    with mounted_site(site, tmp_path / "right") as (mounted, _):
        right = read(mounted, mounted.path / "g/all/regions/11:5015001-5050000/a.bam")
    begin = data.index(right[200_000:210_000]) - 200_000
    at = next(n for n in range(200_000, 0, -1) if data[begin + n] != right[n])  # what is before is the header
    stop = next(n for n in range(200_000, len(right)) if data[begin + n] != right[n])
    with mounted_site(site, tmp_path / "m") as (mounted, _):
        read(mounted, mounted.path / "g/all/a.bam")
        rot(mounted, len(data), begin + (at + 100, stop - 100)[edge])
        assert read(mounted, mounted.path / "g/all/regions/11:5015001-5050000/a.bam") == right


def test_a_sequence_is_cut_out_of_blocks_that_were_checked(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    big_fasta(site / "x.fa", 1_000_000)
    md5, sequence = list(sequences_of(site / "x.fa").items())[3]
    with mounted_site(site, tmp_path / "m") as (mounted, _):
        path = place(mounted, md5)
        assert mounted.run("stat", "-c", "%s", str(path)).stdout.strip() == str(len(sequence))
        rot(mounted, (site / "x.fa").stat().st_size, (site / "x.fa").read_bytes().index(b">chr3") + 4000)
        assert read(mounted, path) == sequence
