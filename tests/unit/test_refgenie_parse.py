"""What a refgenieserver answers, right, odd, damaged and hostile."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.catalog import AssetVersion, SourceCatalog, iter_versions, merge
from refgenfs.core.catalog_json import (
    FactsRow,
    KeptListing,
    dump_catalog,
    dump_facts,
    dump_listing,
    load_catalog,
    load_facts,
    load_listing,
)
from refgenfs.core.content import ByteRange, FileFacts, InlineData
from refgenfs.core.errors import IntegrityError
from refgenfs.core.refgenie import (
    MAX_WARNINGS,
    PRIVATE,
    PublicAnswers,
    is_file_path,
    parse_fresh,
    parse_genome_list,
    parse_listing,
    parse_private,
    parse_private_text,
    parse_public,
    parse_remotes,
    parse_tags,
    private_url,
    unpacked_url,
    v3_url,
)

HG = "2230c535660fb4774114bfa966a62f823fdb6d21acf138d4"


def attrs(**changes: Any) -> dict[str, Any]:
    return {
        "asset_path": "fasta",
        "asset_digest": "a" * 32,
        "archive_digest": "b" * 32,
        "asset_size": "2.9GB",
        "archive_size": "833.4MB",
        "seek_keys": {"fasta": f"{HG}.fa", "dir": "."},
        "asset_parents": [],
        "asset_children": [],
        **changes,
    }


def genome(**changes: Any) -> dict[str, Any]:
    asset = {"asset_description": "sequences", "default_tag": "default", "tags": {"default": attrs()}}
    return {"genome_description": "human", "aliases": ["hg38"], "assets": {"fasta": asset}, **changes}


def with_tag(answer: dict[str, Any], tag: str = "default") -> AssetVersion:
    fasta = {"default_tag": "default", "tags": {"default": answer}}
    parsed = parse_private({HG: genome(assets={"fasta": fasta})}, "s")
    return parsed.catalog.genomes[0].assets["fasta"].tags[tag]


def test_a_whole_answer() -> None:
    parsed = parse_private({HG: genome()}, "lab")
    (found,) = parsed.catalog.genomes
    assert (found.digest, found.aliases, found.description) == (HG, ("hg38",), "human")
    asset = found.assets["fasta"]
    assert (asset.default_tag, asset.description) == ("default", "sequences")
    assert asset.tags["default"] == AssetVersion(
        source="lab",
        genome_digest=HG,
        alias="hg38",
        asset="fasta",
        tag="default",
        asset_digest="a" * 32,
        archive_digest="b" * 32,
        archive_size="833.4MB",
        asset_size="2.9GB",
        seek_keys={"fasta": f"{HG}.fa", "dir": "."},
        parents=(),
    )
    assert parsed.warnings == ()


def test_no_genomes_at_all_is_an_answer() -> None:
    assert parse_private({}, "s").catalog == SourceCatalog("s", ())


def test_without_aliases_a_genome_goes_by_its_digest() -> None:
    nothing: tuple[object, ...] = (None, [])
    for aliases in nothing:
        (found,) = parse_private({HG: genome(aliases=aliases)}, "s").catalog.genomes
        assert found.names == (HG,)
        assert found.assets["fasta"].tags["default"].alias == HG


def test_digests_of_any_length_and_files_without_parents() -> None:
    for digest in ("0a", "b" * 32, "c" * 64):
        assert parse_private({digest: genome()}, "s").catalog.genomes[0].digest == digest
    assert with_tag({"asset_digest": "x1"}).parents == ()


@pytest.mark.parametrize("name", ["../x", "..", ".", "", "a/b", "a:b", "a b", ".hidden", "a\0b", "ü", "x" * 300])
def test_names_that_can_not_be_shown_are_left_out(name: str) -> None:
    fasta = genome()["assets"]["fasta"]
    answer = {
        HG: genome(aliases=["hg38", name], assets={"fasta": fasta, name: fasta}),
        name: genome(aliases=[]),
    }
    answer[HG]["assets"]["fasta"]["tags"][name] = attrs()
    parsed = parse_private(answer, "s")
    (found,) = parsed.catalog.genomes
    assert (found.aliases, list(found.assets), list(found.assets["fasta"].tags)) == (
        ("hg38",),
        ["fasta"],
        ["default"],
    )
    assert len(parsed.warnings) == 4
    assert all(line.isprintable() and line.startswith(PRIVATE) for line in parsed.warnings)


def test_an_asset_with_a_dot_is_left_out() -> None:
    parsed = parse_private({HG: genome(assets={"fasta.fai": genome()["assets"]["fasta"]})}, "s")
    assert not parsed.catalog.genomes[0].assets
    assert len(parsed.warnings) == 1


def test_an_alias_has_one_owner() -> None:
    answer = {
        "a" * 48: genome(aliases=["one", "two", "b" * 48]),
        "b" * 48: genome(aliases=["two", "b" * 48, "three", "three"]),
    }
    parsed = parse_private(answer, "s")
    assert [found.aliases for found in parsed.catalog.genomes] == [("one", "two"), ("three",)]
    assert len(parsed.warnings) == 2
    snapshot = merge([parsed.catalog])
    assert snapshot.genome("b" * 48).digest == "b" * 48
    assert snapshot.genome("two").digest == "a" * 48


@pytest.mark.parametrize(
    ("named", "tags", "default"),
    [
        ("second", ["default", "second"], "second"),
        ("gone", ["default", "second"], "default"),
        (None, ["z", "b"], "b"),
        (17, ["z", "b"], "b"),
    ],
)
def test_the_default_tag_is_one_that_exists(named: object, tags: list[str], default: str) -> None:
    asset = {"default_tag": named, "tags": {tag: attrs() for tag in tags}}
    parsed = parse_private({HG: genome(assets={"fasta": asset})}, "s")
    assert parsed.catalog.genomes[0].assets["fasta"].default_tag == default


def test_an_asset_without_tags_is_none() -> None:
    untagged: tuple[dict[str, Any], ...] = ({"tags": {}}, {"tags": None}, {})
    for asset in untagged:
        assert not parse_private({HG: genome(assets={"fasta": asset})}, "s").catalog.genomes[0].assets
    assert not parse_private({HG: genome(assets=None)}, "s").catalog.genomes[0].assets


def test_a_missing_asset_digest_falls_back() -> None:
    assert with_tag(attrs(asset_digest=None)).asset_digest == "b" * 32
    undigested = attrs(asset_digest=None, archive_digest=None)
    found = with_tag(undigested)
    assert found.asset_digest.startswith("undigested-")
    assert found.archive_digest == ""
    assert found == with_tag(undigested)
    assert found.asset_digest != with_tag({**undigested, "archive_size": "1 MB"}).asset_digest


def test_an_archive_digest_that_is_no_md5_is_not_checked_against() -> None:
    assert with_tag(attrs(archive_digest="AB" * 16)).archive_digest == "ab" * 16
    assert with_tag(attrs(archive_digest="c" * 40)).archive_digest == ""
    assert with_tag(attrs(asset_digest="../../x")).asset_digest == "b" * 32


def test_seek_keys_lead_into_the_folder() -> None:
    keys = {"a": "../x", "b": "/etc/passwd", "c": "sub/x", "d": ".", "e/f": "x"}
    assert with_tag(attrs(seek_keys=keys)).seek_keys == {"c": "sub/x", "d": "."}


def test_texts_for_people_hold_no_control_characters() -> None:
    (found,) = parse_private({HG: genome(genome_description="a\x1b[31m\nb" + "x" * 9999)}, "s").catalog.genomes
    assert found.description.startswith("a [31m b")
    assert len(found.description) <= 500


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([], "the answer is a list, not an object"),
        (None, "the answer is nothing"),
        ({HG: []}, f"genome {HG} is a list"),
        ({HG: genome(aliases="hg38")}, f"the aliases of {HG} is text, not a list"),
        ({HG: genome(aliases=[1])}, "is a number, not text"),
        ({HG: genome(assets=[])}, f"the assets of {HG} is a list"),
        ({HG: genome(assets={"fasta": 1})}, f"asset {HG}/fasta is a number"),
        ({HG: genome(assets={"fasta": {"tags": []}})}, f"the tags of {HG}/fasta"),
        ({HG: genome(assets={"fasta": {"tags": {"default": None}}})}, f"{HG}/fasta:default is nothing"),
        ({HG: genome(assets={"fasta": {"tags": {"t": attrs(seek_keys=[])}}})}, "the seek keys of"),
        ({HG: genome(assets={"fasta": {"tags": {"t": attrs(asset_digest=7)}}})}, "the asset_digest of"),
    ],
)
def test_damage_is_named(answer: object, said: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_private(answer, "s")
    assert str(caught.value).startswith(f"{PRIVATE}: ")
    assert said in str(caught.value)


def refusal(parse: Callable[..., object], *args: object) -> str:
    """Return how a parser refuses, or, if it does not, how it might have begun."""
    try:
        parse(*args)
    except IntegrityError as exc:
        return str(exc)
    return "/here: /v3/" if len(args) > 1 else "/v3/"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(list(genome()) + list(attrs())), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(json_values)
def test_any_json_is_parsed_or_refused(value: Any) -> None:
    answers = (value, {HG: value}, {HG: genome(assets=value)}, {HG: genome(assets={"x": {"tags": {"t": value}}})})
    for answer in answers:
        try:
            catalog = parse_private(answer, "s").catalog
        except IntegrityError:
            continue
        assert load_catalog(json.loads(json.dumps(dump_catalog(catalog)))) == catalog
    for parse in (parse_listing, parse_remotes):
        assert refusal(parse, value, "/here").startswith("/here: ")
    for parse_answer in (parse_tags, parse_genome_list):
        assert refusal(parse_answer, value).startswith("/v3/")


def test_a_server_that_is_all_wrong_does_not_fill_the_log() -> None:
    parsed = parse_private({f"a b{i}": genome() for i in range(1000)}, "s")
    assert len(parsed.warnings) == MAX_WARNINGS + 1
    assert "950 more" in parsed.warnings[-1]


# -- v3 ----------------------------------------------------------------------------------------------------


def as_public(answer: dict[str, Any]) -> PublicAnswers:
    """Say in v3 answers what the one call says."""
    places = [(g, a) for g, item in answer.items() for a in item["assets"]]
    return PublicAnswers(
        genomes=list(answer),
        aliases={g: item["aliases"] for g, item in answer.items()},
        assets={
            g: [f"{a}:{t}" for a, asset in item["assets"].items() for t in asset["tags"]]
            for g, item in answer.items()
        },
        genome_attrs={g: {"genome_description": item["genome_description"]} for g, item in answer.items()},
        default_tags={(g, a): answer[g]["assets"][a]["default_tag"] for g, a in places},
        recipes={(g, a): {"description": answer[g]["assets"][a]["asset_description"]} for g, a in places},
        attrs={(g, a, t): tag for g, a in places for t, tag in answer[g]["assets"][a]["tags"].items()},
    )


def test_both_routes_give_one_catalog() -> None:
    answer = {HG: genome(), "a" * 48: genome(aliases=["x", "hg38"])}
    assert parse_public(as_public(answer), "s").catalog == parse_private(answer, "s").catalog


def test_what_v3_has_no_answer_for() -> None:
    answers = as_public({HG: genome()})
    bare = replace(answers, aliases={}, genome_attrs={}, default_tags={}, recipes={})
    (found,) = parse_public(bare, "s").catalog.genomes
    assert (found.names, found.description, found.assets["fasta"].default_tag) == ((HG,), "", "default")
    assert parse_public(replace(answers, attrs={}), "s").catalog.genomes[0].assets == {}


def test_tags_are_read_from_the_list_of_seek_keys() -> None:
    answer = {HG: ["fasta.fai:default", "fasta:default", "fasta:b", "bwa_index", "../x:default", "y:../z"]}
    assert parse_tags(answer) == {
        (HG, "fasta"): ("default", "b"),
        (HG, "bwa_index"): (),
        (HG, "y"): (),
    }


# -- small answers -----------------------------------------------------------------------------------------


def test_file_names() -> None:
    names = ["b", "a", "sub/c", "a", "./d", ".", "..", "../e", "/f", "g\0", "h/../i", "_refgenie_build/log", "\ud800"]
    assert parse_listing([*names, "back\\slash", "x" * 256, ""], "/p") == ("a", "b", "back\\slash", "d", "sub/c")
    with pytest.raises(IntegrityError, match=r"^/p: a file name is a number, not text$"):
        parse_listing([1], "/p")


@given(st.text(max_size=20))
def test_a_file_path_stays_in_its_folder(text: str) -> None:
    if is_file_path(text):
        assert not text.startswith("/")
        assert ".." not in text.split("/")
        assert "\0" not in text


@pytest.mark.parametrize(
    ("answer", "prefix"),
    [
        ({}, None),
        ({"s3": {"prefix": "s3://b/"}}, None),
        ({"http": {"prefix": "http://h/p"}}, "http://h/p/"),
        ({"http": {"prefix": "https://h:8443/p/"}}, "https://h:8443/p/"),
    ],
)
def test_remotes(answer: object, prefix: str | None) -> None:
    assert parse_remotes(answer, "/p") == prefix


@pytest.mark.parametrize(
    "prefix",
    [
        "", "/relative", "h/p", "//h/p", "file:///etc", "s3://b/", "http://", "http://u:p@h/", "http://h/?q=1",
        "http://h/#f", "http://h/a/../b", "http://h/a b", "http://h:x/", "http://h/\n", "http://[h/", None, 3,
    ],
)  # fmt: skip
def test_odd_remotes_are_refused(prefix: object) -> None:
    with pytest.raises(IntegrityError, match=r"^/p: "):
        parse_remotes({"http": {"prefix": prefix}}, "/p")


def test_urls_are_encoded() -> None:
    base = "http://h/some/path/"
    assert private_url(base) == "http://h/some/path/_private_api/genomes/dict"
    assert v3_url(base, "assets", "attrs", "a/b", "c d", tag="1+2&x=y") == (
        "http://h/some/path/v3/assets/attrs/a%2Fb/c%20d?tag=1%2B2%26x%3Dy"
    )
    version = replace(with_tag(attrs()), asset="a+b", tag="1+2")
    assert unpacked_url("http://h/p/", version) == f"http://h/p/{HG}/a%2Bb__1%2B2/"


def test_a_fresh_answer_keeps_the_place() -> None:
    version = with_tag(attrs())
    assert parse_fresh(attrs(), version, "/p") == version
    assert parse_fresh(attrs(archive_digest="c" * 32), version, "/p") == replace(version, archive_digest="c" * 32)
    with pytest.raises(IntegrityError, match=r"^/p: "):
        parse_fresh([], version, "/p")


# -- kept --------------------------------------------------------------------------------------------------


def test_a_kept_catalog_passes_over_what_it_does_not_know() -> None:
    catalog = parse_private({HG: genome()}, "s").catalog
    value: Any = json.loads(json.dumps(dump_catalog(catalog)))
    (found,) = json.loads(zlib.decompress(base64.b64decode(value["packed"][0])))
    value["new"] = found["new"] = found["assets"][0]["new"] = found["assets"][0]["tags"][0]["new"] = 1
    value["packed"] = [base64.b64encode(zlib.compress(json.dumps([found]).encode())).decode()]
    assert load_catalog(value) == catalog


@pytest.mark.parametrize(
    "value", [None, 1, [], {}, {"version": 2}, {"version": 3}, {"version": 1, "source": "s", "genomes": [1]}]
)
def test_a_damaged_kept_catalog_is_refused(value: object) -> None:
    with pytest.raises(IntegrityError):
        load_catalog(value)


def test_kept_listings_and_facts() -> None:
    for listing in (KeptListing(("a", "b/c"), 1.5), KeptListing(None, 2.0)):
        assert load_listing(json.loads(json.dumps(dump_listing(listing)))) == listing
    row = FactsRow(
        "http://h/f/",
        {
            "a": FileFacts("0" * 40, 5, 1.0, ByteRange(("http://h/f/a",), '"e"'), "s", "range"),
            "b": FileFacts("1" * 40, 0, 1.0, InlineData(b""), "s", "inline"),
        },
        {"c": 3.0},
        {"d"},
    )
    assert load_facts(json.loads(json.dumps(dump_facts(row))), "s") == row
    for odd in (None, 1, {}, {"folder": 1}, {"folder": "", "files": [], "absent": {}, "replaced": []}):
        assert load_facts(odd, "s") is None
        assert load_listing(odd) is None


# -- the public catalog ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def public(data_dir: Path) -> dict[str, Any]:
    """The public server's configuration as its one call answers it."""
    text = (data_dir / "data" / "refgenie" / "refgenomes.databio.org.yaml").read_text()
    genomes: dict[str, Any] = yaml.safe_load(text)["genomes"]
    return genomes


def test_the_public_catalog(public: dict[str, Any]) -> None:
    parsed = parse_private(public, "refgenomes")
    versions = list(iter_versions(parsed.catalog))
    assert (len(parsed.catalog.genomes), len(versions), parsed.warnings) == (24, 164, ())
    snapshot = merge([parsed.catalog])
    hg38 = snapshot.genome("hg38")
    assert hg38.digest == HG
    assert hg38.assets["fasta"].version(None).archive_size == "833.4MB"
    assert all(version.archive_digest and not version.asset_digest.startswith("undigested") for version in versions)
    assert load_catalog(json.loads(json.dumps(dump_catalog(parsed.catalog)))) == parsed.catalog


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {HG: genome()},
        {HG: genome(aliases=["hg38", "x"]), "0a": genome(aliases=["x"]), "..": genome(), ".": 7},
        {HG: genome(aliases=["0a", None])},
        {HG: genome(), "0a": 7},
        {HG: genome(aliases=7)},
        [HG],
        None,
    ],
)
def test_text_is_parsed_as_its_value_is(answer: object) -> None:
    def parse(parser: Callable[[Any, str], object], given: object) -> object:
        try:
            return parser(given, "lab")
        except IntegrityError as exc:
            return str(exc)

    assert parse(parse_private_text, json.dumps(answer)) == parse(parse_private, answer)


def test_of_a_genome_that_comes_twice_the_last_counts() -> None:
    one, two = json.dumps(genome(aliases=["a"])), json.dumps(genome(aliases=["b"]))
    (found,) = parse_private_text(f'{{"{HG}": {one}, "{HG}": {two}}}', "s").catalog.genomes
    assert found.aliases == ("b",)


@pytest.mark.parametrize("text", ["", "{", '{"a": {}', '{"a": {}} x', "[" * 100_000])
def test_what_is_no_json_is_told_as_such(text: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        parse_private_text(text, "s")


def test_a_kept_catalog_of_version_1_is_read() -> None:
    version = {"tag": "default", "asset_digest": "a" * 32, "seek_keys": {"fasta": "x.fa"}, "parents": []}
    asset = {"name": "fasta", "default_tag": "default", "description": "", "tags": [version]}
    kept = {"digest": HG, "aliases": ["hg38"], "description": "", "assets": [asset]}
    (found,) = load_catalog({"version": 1, "source": "lab", "genomes": [kept]}).genomes
    assert found.assets["fasta"].tags["default"].seek_keys == {"fasta": "x.fa"}


def test_a_large_catalog_is_kept_in_parts_that_are_small() -> None:
    answer = {f"{i:048x}": genome(aliases=[f"g{i}"]) for i in range(3000)}
    catalog = parse_private(answer, "lab").catalog
    kept: Any = dump_catalog(catalog)
    assert len(kept["packed"]) > 1
    assert max(map(len, kept["packed"])) < 300_000
    assert load_catalog(json.loads(json.dumps(kept))) == catalog
    for damaged in ([kept["packed"][0][:-8]], ["!"], ["AAAA"], [7], None):
        with pytest.raises(IntegrityError):
            load_catalog({**kept, "packed": damaged})


def test_genomes_that_are_known_stay_the_very_same() -> None:
    known = parse_private({HG: genome(), "0a": genome(aliases=["x"])}, "s").catalog
    text = json.dumps({HG: genome(), "0a": genome(aliases=["y"])})
    fresh = parse_private_text(text, "s", known=known).catalog
    assert fresh == parse_private(json.loads(text), "s").catalog
    assert [old is new for old, new in zip(known.genomes, fresh.genomes, strict=True)] == [False, True]
