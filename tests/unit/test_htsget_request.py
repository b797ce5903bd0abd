"""Queries: the parameters of a GET, the body of a POST, regions as samtools writes them, and tickets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from refgenfs.core.errors import (
    HtsgetError,
    InvalidInput,
    InvalidRange,
    PayloadTooLarge,
    ReferenceNotFound,
    UnsupportedFormat,
)
from refgenfs.core.htsget.model import BlockUrl, Class, Format, Interval, Query, Region, Ticket
from refgenfs.core.htsget.regions import parse_region
from refgenfs.core.htsget.request import MAX_BODY, MAX_REGIONS, Endpoint, parse_get, parse_post

READS, VARIANTS = Endpoint.READS, Endpoint.VARIANTS


def get(text: str, endpoint: Endpoint = READS) -> Query:
    """Parse parameters that are written as in a URL."""
    return parse_get(endpoint, "a/b", [(n, v) for n, _, v in (one.partition("=") for one in text.split("&") if one)])


def post(body: Any, endpoint: Endpoint = READS) -> Query:
    return parse_post(endpoint, "a/b", [], json.dumps(body).encode())


def test_a_get_has_all_that_it_says() -> None:
    query = get("referenceName=chr1&start=0&end=4294967295&fields=POS,SEQ&tags=&notags=NM,MD&format=CRAM&other=1")
    region = Region("chr1", Interval(0, 4294967295))
    names = frozenset({"POS", "SEQ"}), frozenset[str](), frozenset({"NM", "MD"})
    assert query == Query("a/b", Format.CRAM, None, (region,), *names)
    assert get("") == Query("a/b", Format.BAM)
    assert get("", VARIANTS) == Query("a/b", Format.VCF)
    assert get("class=header&format=BAM") == Query("a/b", Format.BAM, Class.HEADER)
    assert get("referenceName=*").regions == (Region("*"),)
    assert get("referenceName=x&start=5&end=5").regions[0].interval.is_empty


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("class=body", InvalidInput),
        ("class=header&referenceName=x", InvalidInput),
        ("class=header&fields=POS", InvalidInput),
        ("class=header&tags=", InvalidInput),
        ("start=1", InvalidInput),
        ("end=1", InvalidInput),
        ("referenceName=*&start=1", InvalidInput),
        ("referenceName=*&end=1", InvalidInput),
        ("referenceName=", InvalidInput),
        ("referenceName=x&referenceName=y", InvalidInput),
        ("referenceName=x&start=-1", InvalidInput),
        ("referenceName=x&start=1e3", InvalidInput),
        ("referenceName=x&start=²", InvalidInput),
        ("referenceName=x&start=", InvalidInput),
        ("referenceName=x&start=4294967296", InvalidRange),
        ("referenceName=x&start=6&end=5", InvalidRange),
        ("tags=NM&notags=MD,NM", InvalidInput),
        ("fields=POS,NONE", InvalidInput),
        ("format=VCF", UnsupportedFormat),
        ("format=bam", UnsupportedFormat),
        ("format=", UnsupportedFormat),
    ],
)
def test_a_get_that_is_refused(text: str, error: type[HtsgetError]) -> None:
    with pytest.raises(error) as caught:
        get(text)
    assert caught.value.status == 400
    assert caught.value.error == error.__name__


def test_a_post_has_all_that_it_says() -> None:
    query = post(
        {
            "format": "BCF",
            "fields": ["ANY"],
            "tags": ["NM"],
            "notags": [],
            "regions": [{"referenceName": "x", "start": 1, "end": 2}, {"referenceName": "y"}, {"referenceName": "x"}],
        },
        VARIANTS,
    )
    assert query.regions == (Region("x", Interval(1, 2)), Region("y"), Region("x"))
    assert query.format is Format.BCF
    assert query.no_tags == frozenset()
    assert post({}) == Query("a/b", Format.BAM)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ([], InvalidInput),
        ({"regions": []}, InvalidInput),
        ({"regions": {}}, InvalidInput),
        ({"regions": None}, InvalidInput),
        ({"regions": ["x"]}, InvalidInput),
        ({"regions": [{"start": 1}]}, InvalidInput),
        ({"regions": [{"referenceName": "x", "start": "1"}]}, InvalidInput),
        ({"regions": [{"referenceName": "x", "start": True}]}, InvalidInput),
        ({"regions": [{"referenceName": "x", "start": 1.0}]}, InvalidInput),
        ({"regions": [{"referenceName": "x", "start": -1}]}, InvalidRange),
        ({"regions": [{"referenceName": "x", "start": 2, "end": 2}]}, InvalidRange),
        ({"regions": [{"referenceName": "x", "end": 0}]}, InvalidRange),
        ({"regions": [{"referenceName": "*", "end": 7}]}, InvalidInput),
        ({"class": "header", "regions": [{"referenceName": "x"}]}, InvalidInput),
        ({"tags": "NM", "notags": ["NM"]}, InvalidInput),
        ({"tags": [1]}, InvalidInput),
        ({"format": ["BAM"]}, UnsupportedFormat),
        ({"regions": [{"referenceName": "x"}] * (MAX_REGIONS + 1)}, PayloadTooLarge),
    ],
)
def test_a_post_that_is_refused(body: Any, error: type[HtsgetError]) -> None:
    with pytest.raises(error):
        post(body)


def test_a_post_that_is_none() -> None:
    with pytest.raises(InvalidInput, match="no parameters"):
        parse_post(READS, "x", [("format", "BAM")], b"{}")
    for body in (b"", b"{", b"[" * 100_000, b"\xff"):
        with pytest.raises(InvalidInput, match="no JSON"):
            parse_post(READS, "x", [], body)
    with pytest.raises(PayloadTooLarge) as caught:
        parse_post(READS, "x", [], b" " * (MAX_BODY + 1))
    assert caught.value.status == 413


# -- regions ----------------------------------------------------------------------------------------------

NAMES = {"chr1", "HLA:A", "HLA:A:1-2", "x", "x:5", "{y}", "1"}


@pytest.mark.parametrize(
    ("text", "name", "start", "end"),
    [
        ("chr1", "chr1", None, None),
        ("*", "*", None, None),
        ("chr1:1-2", "chr1", 0, 2),
        ("chr1:1,000-2,000,000", "chr1", 999, 2_000_000),
        ("chr1:5-", "chr1", 4, None),
        ("chr1:5", "chr1", 4, None),
        ("chr1:-7", "chr1", None, 7),
        ("1:7-7", "1", 6, 7),
        ("HLA:A", "HLA:A", None, None),
        ("HLA:A:3-4", "HLA:A", 2, 4),
        ("{HLA:A:1-2}", "HLA:A:1-2", None, None),
        ("{HLA:A}:1-2", "HLA:A", 0, 2),
        ("HLA:A:1-2:9", "HLA:A:1-2", 8, None),
        ("{x:5}:6", "x:5", 5, None),
        ("{x}:5", "x", 4, None),
        ("x:6", "x", 5, None),
        ("{{y}}:1-2", "{y}", 0, 2),
    ],
)
def test_regions_as_samtools_writes_them(text: str, name: str, start: int | None, end: int | None) -> None:
    assert parse_region(text, NAMES) == Region(name, Interval(start, end))


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("x:5", InvalidInput, "two things"),
        ("HLA:A:1-2", InvalidInput, "two things"),
        ("chr2", ReferenceNotFound, "'chr2'"),
        ("chr2:1-2", ReferenceNotFound, "'chr2'"),
        ("{chr2}", ReferenceNotFound, "'chr2'"),
        ("", ReferenceNotFound, "''"),
        ("chr1:", InvalidInput, "no positions"),
        ("chr1:a-b", InvalidInput, "no positions"),
        ("chr1:1-2-3", InvalidInput, "no positions"),
        ("chr1:1e3", InvalidInput, "no positions"),
        ("chr1:" + "9" * 100, InvalidInput, "no positions"),
        ("{chr1}1-2", InvalidInput, "no region"),
        ("{chr1", InvalidInput, "no region"),
        ("chr1:0-5", InvalidRange, "begin with 1"),
        ("chr1:5-4", InvalidRange, "ends before"),
        ("chr1:9999999999", InvalidRange, "4294967295"),
    ],
)
def test_regions_that_are_none(text: str, error: type[HtsgetError], says: str) -> None:
    with pytest.raises(error, match=says):
        parse_region(text, NAMES)


# -- tickets ----------------------------------------------------------------------------------------------


def test_a_ticket_begins_with_htsget_and_has_nothing_else_at_the_top() -> None:
    blocks = (BlockUrl.of_range("http://h/x", 0, 10, Class.HEADER), BlockUrl.inline(b"abc", Class.BODY))
    text = Ticket(Format.BAM, blocks, "0" * 32).to_json()
    assert text.startswith('{"htsget":')
    assert json.loads(text) == {
        "htsget": {
            "format": "BAM",
            "urls": [
                {"url": "http://h/x", "headers": {"Range": "bytes=0-9"}, "class": "header"},
                {"url": "data:application/octet-stream;base64,YWJj", "class": "body"},
            ],
            "md5": "0" * 32,
        }
    }


def test_blocks_of_a_ticket_have_a_class_all_or_none() -> None:
    with pytest.raises(ValueError, match="some have none"):
        Ticket(Format.BAM, (BlockUrl("http://h/x", (), Class.BODY), BlockUrl("http://h/y")))
    assert "class" not in Ticket(Format.VCF, (BlockUrl("http://h/x"),)).to_json()


def test_secrets_of_blocks_are_not_in_their_representation() -> None:
    ticket = Ticket(Format.BAM, (BlockUrl("http://h/x?sig=secret", (("Authorization", "Bearer secret"),)),))
    assert "secret" not in repr(ticket)


def test_a_query_that_contradicts_itself() -> None:
    with pytest.raises(InvalidInput):
        Query("x", class_=Class.HEADER, regions=(Region("y"),))
    with pytest.raises(InvalidInput):
        Query("x", class_=Class.BODY)
    with pytest.raises(InvalidRange):
        Interval(-1)
    with pytest.raises(ValueError, match="no range"):
        BlockUrl.of_range("u", 3, 3)
