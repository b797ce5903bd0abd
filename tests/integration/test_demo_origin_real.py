"""The demo's origin side by side with a real refgenieserver, without remotes and with them.

Real servers are started for it. To compare with servers that run already, name their URLs, blank-separated, in
REFGENFS_TEST_REFGENIESERVER: first one that offers archives only, then one with remotes.
"""

from __future__ import annotations

import json
import os
import tarfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from refgenfs.demo.genome import asset_digest, genome_digest, read_fasta
from refgenfs.demo.origin import serve
from tests.support.asking import Answer, ask

pytest_plugins = ("tests.support.refgenieserver",)
pytestmark = [pytest.mark.needs_data, pytest.mark.slow, pytest.mark.timeout(900)]

NAMED = os.environ.get("REFGENFS_TEST_REFGENIESERVER", "").split()


@dataclass(frozen=True)
class Pair:
    """A real server, and an origin that serves the same catalog, archives and listings."""

    real: str
    ours: str
    catalog: dict[str, Any]
    root: Path
    remotes: bool


@pytest.fixture(scope="module", params=["archive_server", "remotes_server"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    remotes = request.param == "remotes_server"
    named = NAMED[remotes:][:1]
    url = named[0].rstrip("/") if named else request.getfixturevalue(request.param).url
    root = tmp_path_factory.mktemp("mirror") / "root"
    catalog = _mirror(url, root)
    with serve(root, remotes=remotes) as origin:
        yield Pair(url, origin.url, catalog, root, remotes)


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        return bytes(response.read())


def _mirror(url: str, root: Path) -> dict[str, Any]:
    """Lay out a root with the real server's catalog, archives and listings; return the catalog."""
    catalog = json.loads(_fetch(f"{url}/_private_api/genomes/dict"))
    root.mkdir()
    (root / "genomes.json").write_text(json.dumps(catalog))
    for digest, asset, tag in _tags(catalog):
        home = root / digest
        home.mkdir(exist_ok=True)
        query = f"{digest}/{asset}?tag={tag}"
        (home / f"{asset}__{tag}.tgz").write_bytes(_fetch(f"{url}/v3/assets/archive/{query}"))
        listing = _fetch(f"{url}/v3/assets/dir_contents/{query}")
        (home / f"asset_dir_contents_{asset}__{tag}.json").write_bytes(listing)
    return dict(catalog)


def _tags(catalog: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (digest, asset, tag)
        for digest, genome in catalog.items()
        for asset, about in genome["assets"].items()
        for tag in about["tags"]
    ]


def _questions(catalog: dict[str, Any]) -> Iterator[str]:
    yield from ("/genomes/list", "/genomes/alias_dict", "/assets/list", "/remotes/dict", "/nothing", "/genomes")
    yield from (f"/assets/list?includeSeekKeys={value}" for value in ("true", "1", "False", "maybe", ""))
    digest, alias = next((digest, genome["aliases"][0]) for digest, genome in catalog.items())
    strange = [alias, "0" * len(digest), digest + "0", digest[:-1] + "-"]
    for genome in [*catalog, *strange]:
        yield f"/genomes/attrs/{genome}"
        for name in ("fasta", "nothing", "a%20b"):
            for endpoint in ("default_tag", "attrs", "archive", "dir_contents"):
                for query in ("", "?tag=nothing", "?tag=", "?tag=a%20b"):
                    yield f"/assets/{endpoint}/{genome}/{name}{query}"
            for query in (
                "",
                "?remoteClass=http",
                "?remoteClass=s3",
                "?remoteClass=x&tag=",
                "?tag=x&remoteClass=http",
            ):
                yield from (
                    f"/assets/file_path/{genome}/{name}/{key}{query}" for key in ("fai", "dir", "no", "a%20b")
                )
    for genome, asset, tag in _tags(catalog):
        for endpoint in ("default_tag", "attrs", "dir_contents", "archive"):
            yield f"/assets/{endpoint}/{genome}/{asset}?tag={tag}"
        for key in catalog[genome]["assets"][asset]["tags"][tag]["seek_keys"]:
            yield f"/assets/file_path/{genome}/{asset}/{key}?tag={tag}&remoteClass=http"


def _comparable(answer: Answer, prefixes: dict[str, str]) -> tuple[int, str, str, object]:
    """Return what must be the same in both: where each keeps its files is replaced by its name."""
    body = answer.body.decode("latin-1")
    location = answer.headers.get("location", "")
    for name, prefix in prefixes.items():
        body, location = body.replace(prefix, f"<{name}>"), location.replace(prefix, f"<{name}>")
    kind = "" if answer.status == 307 else answer.headers.get("content-type", "")
    parsed: object = json.loads(body) if body and kind == "application/json" else body
    if isinstance(parsed, dict) and "http" in parsed:
        parsed = {name: (sorted(about), about["prefix"]) for name, about in parsed.items()}
    return answer.status, location, kind, parsed


def _prefixes(url: str, catalog: dict[str, Any]) -> dict[str, str]:
    answer = ask(url, "/v3/remotes/dict")
    if answer.status == 200:
        return {name: about["prefix"] for name, about in json.loads(answer.body).items()}
    digest, asset, tag = _tags(catalog)[0]
    local = ask(url, f"/v3/assets/file_path/{digest}/{asset}/dir?tag={tag}&remoteClass=http").body.decode()
    return {"folder": local.removesuffix(f"{digest}/{asset}__{tag}/")}


def test_every_answer_is_the_real_servers(pair: Pair) -> None:
    sides = {side: _prefixes(side, pair.catalog) for side in (pair.real, pair.ours)}
    paths = [prefix + path for path in _questions(pair.catalog) for prefix in ("", "/v3")]
    different = []
    for path in ["/_private_api/genomes/dict", *paths]:
        real, ours = (_comparable(ask(side, path), prefixes) for side, prefixes in sides.items())
        if ours != real:
            different.append((path, ours, real))
    assert different == []
    assert len(paths) > 500


@pytest.mark.parametrize("method", ["HEAD", "POST"])
def test_other_methods_are_refused_as_the_real_server_does(pair: Pair, method: str) -> None:
    digest = next(iter(pair.catalog))
    for path in ("/v3/genomes/list", f"/v3/assets/archive/{digest}/fasta", "/nothing"):
        real, ours = (ask(side, path, method=method) for side in (pair.real, pair.ours))
        assert (ours.status, ours.body) == (real.status, real.body), path
        assert ours.headers.get("allow") == real.headers.get("allow"), path


def test_every_range_is_answered_as_the_real_server_does(pair: Pair) -> None:
    digest, asset, tag = _tags(pair.catalog)[0]
    path = f"/v3/assets/archive/{digest}/{asset}?tag={tag}"
    sides = [(pair.real, path), (pair.ours, path)]
    if pair.remotes:
        targets = [ask(*side).headers["location"] for side in sides]
        sides = [(target, urllib.parse.urlsplit(target).path) for target in targets]
    etags = [ask(*side).headers["etag"] for side in sides]
    size = len(ask(*sides[0]).body)
    spans = ["0-9", "-9", "5-", f"{size - 1}-", f"{size}-", f"0-{size + 9}", "9-5", "x", "", "-", "-0"]
    for wanted in (*(f"bytes={span}" for span in spans), "lines=1-2", "x"):
        real, ours = (_range_answer(ask(*side, headers={"Range": wanted})) for side in sides)
        assert ours == real, wanted
    for right in (True, False):
        conditions = [{"Range": "bytes=3-8", "If-Range": etag if right else '"another"'} for etag in etags]
        real, ours = (_range_answer(ask(*side, headers=c)) for side, c in zip(sides, conditions, strict=True))
        assert ours == real, right


def test_digests_are_those_of_the_real_refgenie(pair: Pair, tmp_path: Path) -> None:
    for digest, asset, tag in _tags(pair.catalog):
        folder = tmp_path / digest / asset
        with tarfile.open(pair.root / digest / f"{asset}__{tag}.tgz") as tar:
            tar.extraction_filter = lambda member, _: member  # an attribute: early 3.11 takes no such argument
            tar.extractall(folder)  # noqa: S202 - links and all, from our own server
        attrs = pair.catalog[digest]["assets"][asset]["tags"][tag]
        assert asset_digest(folder / tag) == attrs["asset_digest"], (digest, asset, tag)
        if asset == "fasta":
            assert genome_digest(read_fasta(folder / tag / f"{digest}.fa")) == digest


def _range_answer(answer: Answer) -> tuple[object, ...]:
    named = ("content-range", "content-length", "accept-ranges", "content-disposition")
    return (answer.status, answer.body, *(answer.headers.get(name) for name in named))
