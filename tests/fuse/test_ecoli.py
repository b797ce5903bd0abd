"""E. coli K-12 through a cold mount: bwa, bowtie2 and samtools print what they print on plain files."""

from __future__ import annotations

from pathlib import Path

import pytest

from refgenfs.demo.genome import check_alignments
from tests.support.ecoli import ASSETS, READS, Origin, command, comparable, genome

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data]


@pytest.mark.parametrize("tool", ["bwa mem", "bowtie2", "bowtie2 --mm", "samtools faidx"])
def test_tools_print_the_same_through_a_cold_mount(origin: Origin, tmp_path: Path, tool: str) -> None:
    expected = origin.ecoli.output(tool)
    with origin.setup(tmp_path).mount() as mounted:
        assert mounted.status()["fetched"] < 1_000_000, "something was fetched before anything was read"
        done = mounted.run(*command(tool, genome(mounted), origin.ecoli.reads))
        assert comparable(done.stdout) == expected
        assert origin.bytes_sent() > 0
        assert "ERROR" not in mounted.log_text()
    assert len(expected) > 100_000, "an empty output proves nothing"


def test_the_reads_are_aligned_to_where_they_came_from(origin: Origin, tmp_path: Path) -> None:
    with origin.setup(tmp_path).mount() as mounted:
        done = mounted.run(*command("bwa mem", genome(mounted), origin.ecoli.reads))
    check = check_alignments(done.stdout.splitlines())
    assert check.total == READS
    assert check.mapped >= 0.99 * check.total
    assert check.right_place >= 0.95 * check.total


def test_every_file_of_every_asset_is_byte_for_byte_the_plain_one(origin: Origin, tmp_path: Path) -> None:
    with origin.setup(tmp_path).mount() as mounted:
        for asset in ASSETS:
            mounted.run(
                "diff", "-r", "-x", "_refgenie_build*", str(origin.ecoli.plain(asset)), f"{genome(mounted)}/{asset}"
            )


def test_a_wrong_byte_in_the_index_shows_in_the_output(origin: Origin, tmp_path: Path) -> None:
    """The comparison above can fail: a copy of the index with one byte changed aligns otherwise, or not at all."""
    copy = tmp_path / "copy" / "bwa_index"
    copy.parent.mkdir()
    with origin.setup(tmp_path / "m").mount() as mounted:
        mounted.run("cp", "-r", f"{genome(mounted)}/bwa_index", "-T", str(copy))
        pac = next(copy.glob("*.pac"))
        pac.chmod(0o644)
        data = bytearray(pac.read_bytes())
        data[len(data) // 4 : len(data) // 4 + 4096] = bytes(4096)
        pac.write_bytes(data)
        done = mounted.run(*command("bwa mem", copy.parent, origin.ecoli.reads))
    assert comparable(done.stdout) != origin.ecoli.output("bwa mem")
