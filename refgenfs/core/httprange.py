"""Byte ranges over HTTP (RFC 9110, 8.8, 13.1.5 and 14): what to ask, and whether to believe the answer.

Pure: `range_headers` says what to send, `judge` looks at a status and headers and says whether the body may
be used. Bytes of two versions must never mix in one file, so a body is used only when the answer says
exactly the range that was asked for, the total that is known, and the validator that is known.

The validator of a content is a strong ETag (with its quotes), or a weak one and a Last-Modified date, or one of
these two, or nothing:

- a strong ETag goes out as `If-Range`, and the answer has to carry the same ETag;
- a weak ETag or a date is not sent (RFC 9110, 13.1.5 and 8.8.2.2), but the answer has to carry the same: what is
  equal by a weak validator may yet differ, and what is not equal is another version;
- with nothing, only the total can be checked.

`If-Match` would save the body of a changed object (412 instead of 200), but caches in front of an origin
pass such requests on or choke on them; a connection closed once per new version costs less.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum

UNKNOWN = -1  # a size that isn't known

_DIGITS = r"[0-9]{1,18}"  # up to 10**18 bytes: an exabyte, and no surprise of big integers
# `*/1234` without its unit is what Starlette answers with a 416.
_CONTENT_RANGE = re.compile(rf"(?:bytes[ \t]+(?:({_DIGITS})-({_DIGITS})|\*)|\*)/({_DIGITS}|\*)", re.IGNORECASE)
_WEAK = re.compile(r'W/("[\x21\x23-\x7e\x80-\xff]*") ?(.*)')  # and a date, or nothing
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """The bytes `start` up to, not including, `stop` of an object of `size` bytes with this validator."""

    start: int
    stop: int
    size: int
    validator: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= self.size:
            raise ValueError(f"no range: {self.start} to {self.stop} of {self.size}")


@dataclass(frozen=True, slots=True)
class ContentRange:
    """A `Content-Range`: bytes `start` up to, not including, `stop` of `total`.

    Both are UNKNOWN in `bytes */1234` (no range could be given); `total` is UNKNOWN in `bytes 0-9/*`.
    """

    start: int
    stop: int
    total: int

    def __str__(self) -> str:
        span = "*" if self.start == UNKNOWN else f"{self.start}-{self.stop - 1}"
        return f"bytes {span}/{'*' if self.total == UNKNOWN else self.total}"


class Verdict(Enum):
    """Whether the body of an answer to a range request may be used."""

    ACCEPT = "accept"
    """It is exactly the range."""
    IGNORE_RANGE = "ignore-range"
    """It is the whole, right object: the range has to be cut out of it."""
    STALE = "stale"
    """The object is another version now."""
    ERROR = "error"
    """It can't be used, and says nothing about the version."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and in `why` what was wrong, in words for a log."""

    verdict: Verdict
    why: str = ""


def parse_content_range(text: str) -> ContentRange | None:
    """Parse the value of a `Content-Range` header; None when it is malformed or contradicts itself."""
    match = _CONTENT_RANGE.fullmatch(text.strip(" \t"))
    if match is None:
        return None
    first, last, total_text = match.groups()
    total = UNKNOWN if total_text == "*" else int(total_text)
    if first is None:
        return None if total == UNKNOWN else ContentRange(UNKNOWN, UNKNOWN, total)
    start, stop = int(first), int(last) + 1
    if stop <= start or (total != UNKNOWN and stop > total):
        return None
    return ContentRange(start, stop, total)


def is_strong_etag(text: str) -> bool:
    """Say whether `text` is a strong entity tag (`"…"` without `W/`)."""
    return _STRONG_ETAG.fullmatch(text) is not None


def choose_validator(headers: Mapping[str, str]) -> str:
    """Return what identifies the version of an answer: its strong ETag, else its weak one and its Last-Modified.

    Of the latter two what there is, with a space between them; '' where there is none.
    """
    etag = header(headers, "etag")
    if is_strong_etag(etag):
        return etag
    date = header(headers, "last-modified")
    if parse_http_date(date) is None:
        date = ""
    weak = _WEAK.fullmatch(etag)
    return f"{etag} {date}".rstrip() if weak is not None and not weak[2] else date


def range_headers(request: RangeRequest) -> dict[str, str]:
    """Return the headers that ask for the range, on condition of the validator where that is safe."""
    headers = {"Range": f"bytes={request.start}-{request.stop - 1}"}
    if is_strong_etag(request.validator):
        headers["If-Range"] = request.validator
    return headers


def judge(request: RangeRequest, status: int, headers: Mapping[str, str]) -> Judgement:
    """Decide whether the body of this answer holds the bytes that were asked for."""
    if status == 412:
        return Judgement(Verdict.STALE, "the origin has another version (HTTP 412)")
    if status not in (200, 206, 416):
        return Judgement(Verdict.ERROR, f"HTTP {status}")
    if status == 416:
        return _judge_unsatisfiable(request, headers)
    coding = content_coding(headers)
    if coding:
        return Judgement(Verdict.ERROR, f"the body is coded ({coding}), which was not asked for")
    changed = changed_validator(request.validator, headers)
    if changed:
        return Judgement(Verdict.STALE, changed)
    return _judge_whole(request, headers) if status == 200 else _judge_part(request, headers)


def judge_slice(
    start: int, stop: int, validator: str, status: int, headers: Mapping[str, str], total: int = UNKNOWN
) -> Judgement:
    """Decide as `judge` does for an object of which only its validator and perhaps its size (`total`) are known.

    IGNORE_RANGE: the body is the object itself, or as much of it as was asked for; its length says which.
    """
    if status == 412:
        return Judgement(Verdict.STALE, "the origin has another version (HTTP 412)")
    if status not in (200, 206):
        return Judgement(Verdict.ERROR, f"HTTP {status}")
    coding = content_coding(headers)
    if coding:
        return Judgement(Verdict.ERROR, f"the body is coded ({coding}), which was not asked for")
    changed = changed_validator(validator, headers)
    if changed:
        return Judgement(Verdict.STALE, changed)
    if status == 200:
        return Judgement(Verdict.IGNORE_RANGE)
    text = header(headers, "content-range")
    got = parse_content_range(text)
    if got is None or got.start == UNKNOWN:
        return Judgement(Verdict.ERROR, f"HTTP 206 with Content-Range {text[:80]!r}")
    if UNKNOWN not in (total, got.total) and got.total != total:
        return Judgement(Verdict.STALE, f"the size was {total} bytes and is {got.total}")
    if (got.start, got.stop) != (start, stop):
        return Judgement(Verdict.ERROR, f"asked for bytes {start}-{stop - 1}, got {got}")
    length = content_length(headers)
    if length not in (UNKNOWN, stop - start):
        return Judgement(Verdict.ERROR, f"Content-Length {length} for {got}")
    return Judgement(Verdict.ACCEPT)


def _judge_part(request: RangeRequest, headers: Mapping[str, str]) -> Judgement:
    text = header(headers, "content-range")
    got = parse_content_range(text)
    if got is None or got.start == UNKNOWN:
        return Judgement(Verdict.ERROR, f"HTTP 206 with Content-Range {text[:80]!r}")
    if got.total == UNKNOWN:
        return Judgement(Verdict.ERROR, f"HTTP 206 that keeps the size to itself ({got})")
    if got.total != request.size:
        return Judgement(Verdict.STALE, f"the size was {request.size} bytes and is {got.total}")
    if (got.start, got.stop) != (request.start, request.stop):
        return Judgement(Verdict.ERROR, f"asked for bytes {request.start}-{request.stop - 1}, got {got}")
    length = content_length(headers)
    if length not in (UNKNOWN, request.stop - request.start):
        return Judgement(Verdict.ERROR, f"Content-Length {length} for {got}")
    return Judgement(Verdict.ACCEPT)


def _judge_whole(request: RangeRequest, headers: Mapping[str, str]) -> Judgement:
    length = content_length(headers)
    if length == UNKNOWN and request.start and not request.validator:  # what came before may be of another version
        return Judgement(Verdict.ERROR, "the origin ignores ranges, and tells neither size nor version")
    if length not in (UNKNOWN, request.size):
        return Judgement(Verdict.STALE, f"the size was {request.size} bytes and is {length}")
    return Judgement(Verdict.IGNORE_RANGE)


def _judge_unsatisfiable(request: RangeRequest, headers: Mapping[str, str]) -> Judgement:
    # No validator is asked for here: many servers send none with an error.
    got = parse_content_range(header(headers, "content-range"))
    if got is not None and got.total not in (UNKNOWN, request.size):
        return Judgement(Verdict.STALE, f"the size was {request.size} bytes and is {got.total}")
    return Judgement(Verdict.ERROR, "HTTP 416 for a range within the known size")


def changed_validator(validator: str, headers: Mapping[str, str]) -> str:
    """Return '' when the answer carries the validator, else what is different."""
    if not validator:
        return ""
    if is_strong_etag(validator):
        etag = header(headers, "etag")
        return "" if etag == validator else f"the ETag was {validator} and is {etag[:80] or 'missing'}"
    weak = _WEAK.fullmatch(validator)
    if weak is not None:
        etag, validator = header(headers, "etag"), weak[2]
        if etag.removeprefix("W/") != weak[1]:  # a host may find it strong by now (RFC 9110, 8.8.3.2)
            return f"the ETag was W/{weak[1]} and is {etag[:80] or 'missing'}"
        if not validator:
            return ""
    date = header(headers, "last-modified")
    if date == validator:
        return ""
    known, got = parse_http_date(validator), parse_http_date(date)
    if known is not None and known == got:
        return ""
    return f"the Last-Modified was {validator} and is {date[:80] or 'missing'}"


def header(headers: Mapping[str, str], name: str) -> str:
    """Return the value of a header whose name is `name` (lower case) in any case, '' when there is none."""
    return next((value.strip() for key, value in headers.items() if key.lower() == name), "")


def content_coding(headers: Mapping[str, str]) -> str:
    """Return the content coding of a body, '' for none."""
    coding = header(headers, "content-encoding").lower()
    return "" if coding in ("", "identity") else coding[:40]


def content_length(headers: Mapping[str, str]) -> int:
    """Return the `Content-Length` of an answer, UNKNOWN when it has no readable one."""
    text = header(headers, "content-length")
    return int(text) if re.fullmatch(_DIGITS, text) else UNKNOWN


def parse_http_date(text: str) -> float | None:
    """Return an HTTP date in Unix seconds, None when it is none."""
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, OverflowError):
        return None
