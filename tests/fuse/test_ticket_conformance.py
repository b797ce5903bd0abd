"""The whole conformance table of htsget-search through `refgenfs ticket`: files of a folder, on a real mount."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounted import Mounted, Setup
from tests.unit.test_htsget_conformance import BAM, HEADER, ROWS, SPEC_BCF, SPEC_VCF, SUFFIXES, WHOLE

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_data]

BASE = "https://reads.example.org/"


@pytest.fixture(scope="module")
def mounted(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """Each file is an asset with its index, and a second one with its GZI too."""
    folder = data_dir.resolve() / "data/htsget/htsget-rs"
    source = f'[[source]]\nname = "disk"\ntype = "local"\npath = "{folder}"\n'
    for name in sorted({row[0] for row in ROWS}):
        for gzi in (False, True):
            files = [name, name + SUFFIXES[name.partition("/")[0]]]
            files += [f"{name}.gzi"] if gzi and (folder / f"{name}.gzi").exists() else []
            source += f'[[source.asset]]\nkey = "{key_of(name, gzi=gzi)}"\nfiles = {json.dumps(files)}\n'
    with Setup(tmp_path_factory.mktemp("table"), source).mount() as made:
        yield made


def key_of(name: str, *, gzi: bool) -> str:
    return f"table/{Path(name).name.replace('.', '_').replace('-', '_')}:{'gzi' if gzi else 'plain'}"


@pytest.mark.parametrize(("name", "gzi", "region", "ranges"), ROWS)
def test_ranges_are_those_of_htsget_search(mounted: Mounted, name: str, gzi: bool, region: str, ranges: str) -> None:
    query = {WHOLE: [], HEADER: ["--class", "header"]}.get(region, [region])
    done = mounted.refgenfs("ticket", "--url", BASE, key_of(name, gzi=gzi), *query)
    blocks = json.loads(done.stdout)["htsget"]["urls"]
    assert {block["url"] for block in blocks} == {BASE + Path(name).name}
    letters = {"header": "H", "body": "B", None: "–"}
    told = (f"{block['headers']['Range'].removeprefix('bytes=')} {letters[block.get('class')]}" for block in blocks)
    assert "; ".join(told) == ranges


@pytest.mark.parametrize(("name", "region"), [(BAM, "25"), (SPEC_VCF, "chr1"), (SPEC_BCF, "chr1")])
def test_a_reference_that_is_unknown(mounted: Mounted, name: str, region: str) -> None:
    done = mounted.refgenfs("ticket", "--url", BASE, key_of(name, gzi=True), region, check=False)
    assert done.returncode == 1
    assert f"no reference '{region}'" in done.stderr
