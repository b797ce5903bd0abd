"""Seek indexes of archives as programs pack them: each span, inflated on its own, is that part of the tar."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from refgenfs.core.seekindex import spacing_for
from tests.support.seekindexes import PACKERS, build_index, inflate, parse_index, pieces, sample_tar
from tests.support.tars import parse

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


def test_spacing() -> None:
    assert spacing_for(10**6) <= spacing_for(5 * 10**8) <= spacing_for(10**10) == spacing_for(None) == 4 << 20
