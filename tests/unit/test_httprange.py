"""Byte ranges: what is asked, and which answers are believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.httprange import (
    UNKNOWN,
    ContentRange,
    RangeRequest,
    Verdict,
    choose_validator,
    content_coding,
    content_length,
    header,
    is_strong_etag,
    judge,
    parse_content_range,
    parse_http_date,
    range_headers,
)

ETAG = '"v1"'
DATE = "Fri, 01 Jan 2021 00:00:00 GMT"
OTHER_DATE = "Fri, 01 Jan 2021 00:00:01 GMT"


def wanted(validator: str = ETAG) -> RangeRequest:
    return RangeRequest(100, 200, 1000, validator)


def part(**changes: str | None) -> dict[str, str]:
    """The headers of the right 206, with changes; None leaves one out."""
    headers = {"Content-Range": "bytes 100-199/1000", "Content-Length": "100", "ETag": ETAG}
    headers["Last-Modified"] = DATE
    for name, value in changes.items():
        key = name.replace("_", "-")
        headers = {k: v for k, v in headers.items() if k.lower() != key.lower()}
        if value is not None:
            headers[key] = value
    return headers


def whole(**changes: str | None) -> dict[str, str]:
    return part(**{"Content_Range": None, "Content_Length": "1000", **changes})


# ---- what is sent


def test_a_strong_etag_is_sent_as_condition() -> None:
    assert range_headers(wanted()) == {"Range": "bytes=100-199", "If-Range": ETAG}


@pytest.mark.parametrize("validator", ["", DATE, 'W/"v1"', "v1"])
def test_anything_else_is_not_sent(validator: str) -> None:
    assert range_headers(wanted(validator)) == {"Range": "bytes=100-199"}


@pytest.mark.parametrize(("start", "stop", "size"), [(-1, 2, 3), (1, 1, 3), (2, 1, 3), (0, 4, 3), (0, 0, 0)])
def test_a_range_lies_within_its_object(start: int, stop: int, size: int) -> None:
    with pytest.raises(ValueError, match="no range"):
        RangeRequest(start, stop, size)


@pytest.mark.parametrize(
    ("headers", "validator"),
    [
        ({"ETag": ETAG, "Last-Modified": DATE}, ETAG),
        ({"etag": ETAG}, ETAG),
        ({"ETag": 'W/"v1"', "Last-Modified": DATE}, f'W/"v1" {DATE}'),
        ({"ETag": 'W/"v1"', "Last-Modified": "yesterday"}, 'W/"v1"'),
        ({"ETag": 'W/"v1" x', "Last-Modified": DATE}, DATE),
        ({"ETag": "unquoted", "Last-Modified": DATE}, DATE),
        ({"ETag": 'W/"v1"'}, 'W/"v1"'),
        ({"Last-Modified": DATE}, DATE),
        ({"Last-Modified": "yesterday"}, ""),
        ({}, ""),
    ],
)
def test_the_validator_is_the_strong_etag_else_the_weak_one_and_the_date(
    headers: dict[str, str], validator: str
) -> None:
    assert choose_validator(headers) == validator


@pytest.mark.parametrize(
    ("validator", "changes", "verdict"),
    [
        ('W/"v1"', {"ETag": 'W/"v1"', "Last_Modified": None}, Verdict.ACCEPT),
        ('W/"v1"', {"ETag": '"v1"', "Last_Modified": None}, Verdict.ACCEPT),
        ('W/"v1"', {"ETag": 'W/"v2"'}, Verdict.STALE),
        ('W/"v1"', {"ETag": None}, Verdict.STALE),
        (f'W/"v1" {DATE}', {"ETag": 'W/"v1"'}, Verdict.ACCEPT),
        (f'W/"v1" {DATE}', {"ETag": 'W/"v2"'}, Verdict.STALE),
        (f'W/"v1" {DATE}', {"ETag": 'W/"v1"', "Last_Modified": "Fri, 01 Jan 2021 00:00:01 GMT"}, Verdict.STALE),
        (f'W/"v1" {DATE}', {"ETag": 'W/"v1"', "Last_Modified": None}, Verdict.STALE),
    ],
)
def test_a_weak_etag_tells_another_version(validator: str, changes: dict[str, str | None], verdict: Verdict) -> None:
    assert judge(wanted(validator), 206, part(**changes)).verdict is verdict
    assert "If-Range" not in range_headers(wanted(validator))


def test_strong_etags() -> None:
    assert is_strong_etag('""')
    assert is_strong_etag('"a b"') is False  # no spaces in an entity tag (RFC 9110, 8.8.3)
    assert is_strong_etag('"a"b"') is False
    assert is_strong_etag("") is False


# ---- 206


@pytest.mark.parametrize("validator", [ETAG, DATE, ""])
def test_exactly_the_range_is_accepted(validator: str) -> None:
    assert judge(wanted(validator), 206, part()).verdict is Verdict.ACCEPT


def test_the_length_of_a_206_may_be_missing() -> None:
    assert judge(wanted(), 206, part(Content_Length=None)).verdict is Verdict.ACCEPT


def test_a_date_may_be_written_differently() -> None:
    same = part(Last_Modified="Fri, 01 Jan 2021 00:00:00 +0000")
    assert judge(wanted(DATE), 206, same).verdict is Verdict.ACCEPT


@pytest.mark.parametrize(
    "content_range",
    [
        None,
        "",
        "bytes 100-198/1000",
        "bytes 99-199/1000",
        "bytes 0-99/1000",
        "bytes 100-200/1000",
        "bytes 100-199/*",
        "bytes */1000",
        "bytes 199-100/1000",
        "bytes=100-199/1000",
        "items 100-199/1000",
        "bytes 100-199",
        "bytes 100-199/99",
    ],
)
def test_any_other_range_is_an_error(content_range: str | None) -> None:
    judgement = judge(wanted(), 206, part(Content_Range=content_range))
    assert judgement.verdict is Verdict.ERROR
    assert judgement.why


def test_a_length_that_contradicts_the_range_is_an_error() -> None:
    assert judge(wanted(), 206, part(Content_Length="99")).verdict is Verdict.ERROR


@pytest.mark.parametrize("status", [200, 206])
@pytest.mark.parametrize("coding", ["gzip", "br", "aws-chunked", "GZIP", "identity, gzip"])
def test_a_content_coding_is_an_error(status: int, coding: str) -> None:
    headers = (whole if status == 200 else part)(Content_Encoding=coding)
    judgement = judge(wanted(), status, headers)
    assert judgement.verdict is Verdict.ERROR
    assert coding.lower() in judgement.why


def test_identity_is_no_coding() -> None:
    assert judge(wanted(), 206, part(Content_Encoding="identity")).verdict is Verdict.ACCEPT


# ---- versions


@pytest.mark.parametrize("status", [200, 206])
@pytest.mark.parametrize("etag", ['"v2"', 'W/"v1"', "v1", None])
def test_another_etag_is_stale(status: int, etag: str | None) -> None:
    headers = (whole if status == 200 else part)(ETag=etag)
    assert judge(wanted(), status, headers).verdict is Verdict.STALE


@pytest.mark.parametrize("status", [200, 206])
@pytest.mark.parametrize("date", [OTHER_DATE, None, "", "yesterday"])
def test_another_date_is_stale(status: int, date: str | None) -> None:
    headers = (whole if status == 200 else part)(Last_Modified=date)
    assert judge(wanted(DATE), status, headers).verdict is Verdict.STALE
    assert judge(wanted(ETAG), status, headers).verdict is not Verdict.STALE
    assert judge(wanted(""), status, headers).verdict is not Verdict.STALE


@pytest.mark.parametrize("validator", [ETAG, DATE, ""])
def test_another_total_is_stale(validator: str) -> None:
    other = part(Content_Range="bytes 100-199/1001")
    assert judge(wanted(validator), 206, other).verdict is Verdict.STALE
    assert judge(wanted(validator), 200, whole(Content_Length="1001")).verdict is Verdict.STALE


def test_a_failed_precondition_is_stale() -> None:
    assert judge(wanted(), 412, {}).verdict is Verdict.STALE


# ---- 200, 416 and the rest


@pytest.mark.parametrize("validator", [ETAG, DATE, ""])
def test_the_whole_right_object_can_be_cut(validator: str) -> None:
    assert judge(wanted(validator), 200, whole()).verdict is Verdict.IGNORE_RANGE


def test_a_whole_object_of_unknown_length_is_not_taken_up_in_the_middle_without_a_validator() -> None:
    assert judge(wanted(ETAG), 200, whole(Content_Length=None)).verdict is Verdict.IGNORE_RANGE
    assert judge(wanted(DATE), 200, whole(Content_Length=None)).verdict is Verdict.IGNORE_RANGE
    assert judge(wanted(""), 200, whole(Content_Length=None)).verdict is Verdict.ERROR
    beginning = RangeRequest(0, 1000, 1000, "")
    assert judge(beginning, 200, whole(Content_Length=None)).verdict is Verdict.IGNORE_RANGE


def test_416_with_another_total_is_stale() -> None:
    assert judge(wanted(), 416, {"Content-Range": "bytes */50"}).verdict is Verdict.STALE


@pytest.mark.parametrize("content_range", ["bytes */1000", "bytes */*", "", "nonsense"])
def test_416_that_tells_nothing_new_is_an_error(content_range: str) -> None:
    assert judge(wanted(), 416, {"Content-Range": content_range}).verdict is Verdict.ERROR


@pytest.mark.parametrize("status", [100, 201, 204, 226, 301, 304, 400, 404, 500, 503])
def test_any_other_status_is_an_error_even_with_the_right_headers(status: int) -> None:
    assert judge(wanted(), status, part()).verdict is Verdict.ERROR


@given(
    st.integers(200, 599) | st.sampled_from([200, 206, 412, 416]),
    st.dictionaries(
        st.sampled_from(["Content-Range", "content-length", "ETag", "Last-Modified", "Content-Encoding"]),
        st.sampled_from([ETAG, DATE, "bytes 100-199/1000", "100", "1000", "gzip", ""]) | st.text(),
    ),
    st.sampled_from([ETAG, DATE, ""]),
)
def test_what_is_accepted_is_right_in_every_header(status: int, headers: dict[str, str], validator: str) -> None:
    verdict = judge(wanted(validator), status, headers).verdict
    if verdict is Verdict.ACCEPT:
        assert status == 206
        assert parse_content_range(header(headers, "content-range")) == ContentRange(100, 200, 1000)
        assert content_length(headers) in (100, UNKNOWN)
        assert not content_coding(headers)
    if verdict in (Verdict.ACCEPT, Verdict.IGNORE_RANGE) and validator == ETAG:
        assert header(headers, "etag") == ETAG
    if verdict in (Verdict.ACCEPT, Verdict.IGNORE_RANGE) and validator == DATE:
        assert parse_http_date(header(headers, "last-modified")) == parse_http_date(DATE)


# ---- parsing

numbers = st.integers(0, 10**17)


@given(numbers, st.integers(1, 10**6), numbers, st.sampled_from(["bytes", "Bytes", "BYTES"]))
def test_content_range_is_parsed_as_written(start: int, length: int, more: int, unit: str) -> None:
    stop = start + length
    got = parse_content_range(f" {unit} {start}-{stop - 1}/{stop + more}\t")
    assert got == ContentRange(start, stop, stop + more)
    assert parse_content_range(str(got)) == got


@given(numbers, st.integers(1, 10**6))
def test_content_range_of_unknown_total(start: int, length: int) -> None:
    got = ContentRange(start, start + length, UNKNOWN)
    assert parse_content_range(str(got)) == got


@given(numbers)
def test_unsatisfied_content_range(total: int) -> None:
    got = ContentRange(UNKNOWN, UNKNOWN, total)
    assert parse_content_range(str(got)) == got


@pytest.mark.parametrize(
    "text",
    [
        "bytes -5/10",
        "bytes 5-/10",
        "bytes 5-4/10",
        "bytes 0-10/10",
        "bytes */*",
        "bytes 0-9/",
        "bytes 0-9/10\u00a0",
        "bytes 0-9/10,bytes 0-9/10",
        "bytes 0-9/-10",
        "bytes +0-9/10",
        "bytes 0x0-9/10",
        "bytes 0-9/\u0661\u0660",
        "bytes0-9/10",
        "bytes 0-" + "9" * 5000 + "/" + "9" * 5000,
    ],
)
def test_malformed_content_ranges(text: str) -> None:
    assert parse_content_range(text) is None


@given(st.text() | st.from_regex(r"bytes [0-9*]{0,3}-?[0-9*]{0,3}/[0-9*]{0,3}", fullmatch=True))
def test_a_parsed_content_range_is_consistent(text: str) -> None:
    got = parse_content_range(text)
    if got is None:
        return
    if got.start == UNKNOWN:
        assert got.stop == UNKNOWN
        assert got.total >= 0
    else:
        assert 0 <= got.start < got.stop
        assert got.total == UNKNOWN or got.stop <= got.total


@pytest.mark.parametrize(
    ("text", "length"),
    [("0", 0), ("42", 42), ("", UNKNOWN), ("-1", UNKNOWN), ("4 2", UNKNOWN), ("1e3", UNKNOWN)],
)
def test_content_length(text: str, length: int) -> None:
    assert content_length({"content-length": text}) == length


def test_dates() -> None:
    assert parse_http_date(DATE) == 1609459200.0
    assert parse_http_date("Friday, 01-Jan-21 00:00:00 GMT") == 1609459200.0
    assert parse_http_date("Fri Jan  1 00:00:00 2021") == 1609459200.0
    assert parse_http_date("0") is None


@given(st.text())
def test_no_date_raises(text: str) -> None:
    parse_http_date(text)
