"""What is said to a server of htsget, and what it answers: requests, tickets, errors (hts-specs, `htsget.md`, 1.3).

Tickets are fed as their bytes come, so that what can be none is refused early. Nothing here is told to people but
names that the protocol has: a server's own words may repeat a token or a signed URL.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlencode, urlsplit

from refgenfs.core.errors import (
    IntegrityError,
    InvalidInput,
    InvalidRange,
    OriginDenied,
    OriginNotFound,
    PayloadTooLarge,
    RefgenfsError,
    UnsupportedFormat,
)
from refgenfs.core.htsget.model import BlockUrl, Class, Format, Query, Region, Ticket

MAX_TICKET = 16 << 20  # bytes; a range of a BAM is 150 of them, so this is 100,000 ranges, or 12 MB of inline data
MAX_BLOCKS = 20_000
MAX_ERROR = 64 << 10  # bytes of an error's body that are read
ACCEPT = "application/vnd.ga4gh.htsget.v1.3.0+json, application/json;q=0.9, */*;q=0.1"

_BEGINNING = b'{"htsget":'
_LOOK = 256  # bytes within which that has to stand
_BLANKS = b" \t\r\n"
_DATA = re.compile(r"data:[^,]*;base64,(.*)", re.DOTALL | re.IGNORECASE)
_CLOSED = re.compile(r"bytes=([0-9]{1,18})-([0-9]{1,18})?")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]{0,16384}")
# Those of the connection itself (RFC 9110, 7.6.1), and what would say of another host or coding what isn't so.
_REFUSED_HEADERS = frozenset(
    {
        "accept-encoding", "connection", "content-length", "host", "keep-alive", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip


ENDINGS = {Format.BAM: ".bam", Format.CRAM: ".cram", Format.VCF: ".vcf.gz", Format.BCF: ".bcf"}


def file_name(id_: str, format_: Format) -> str:
    """Return the name of an id's file: its last component, with the ending that tools know the format by."""
    name, ending = id_.rpartition("/")[2], ENDINGS[format_]
    if name.lower().endswith(ending):
        return name
    return (
        name + ending.removeprefix(".vcf")
        if name.lower().endswith(".vcf") and format_ is Format.VCF
        else name + ending
    )


# ---- what is asked


@dataclass(frozen=True, slots=True)
class TicketRequest:
    """The request for a ticket: its path below the server's URL, the query of its URL, and the body of a POST."""

    path: str
    parameters: str = ""
    body: bytes | None = None

    def url(self, base: str) -> str:
        """Return where to send it, for a server whose endpoints `reads` and `variants` are below `base`."""
        path = f"{base.rstrip('/')}/{self.path}"
        return f"{path}?{self.parameters}" if self.parameters else path


def request_of(query: Query) -> TicketRequest:
    """Return how a query is asked for: by GET with one region at the most, by POST with several."""
    if query.format is None:
        raise ValueError("a query of no format")
    endpoint = "reads" if query.format.is_reads else "variants"
    path = f"{endpoint}/{quote(query.id, safe='/')}"
    fields = {"format": query.format.value} | ({"class": query.class_.value} if query.class_ is not None else {})
    if len(query.regions) > 1:
        body = {**fields, "regions": [_fields_of(region) for region in query.regions]}
        return TicketRequest(path, body=json.dumps(body).encode())
    for region in query.regions:
        fields |= {key: str(value) for key, value in _fields_of(region).items()}
    return TicketRequest(path, urlencode(fields, quote_via=quote, safe=""))


def _fields_of(region: Region) -> dict[str, str | int]:
    interval = region.interval
    fields: dict[str, str | int] = {"referenceName": region.reference_name}
    fields |= {"start": interval.start} if interval.start is not None else {}
    return fields | ({"end": interval.end} if interval.end is not None else {})


# ---- what is answered


class TicketParser:
    """One ticket for blocks of the format that was asked for, from the bytes of an answer."""

    def __init__(self, asked: Format) -> None:
        self._asked = asked
        self._data = bytearray()

    @property
    def size(self) -> int:
        """Bytes that were fed."""
        return len(self._data)

    def feed(self, data: bytes) -> None:
        """Take the next bytes; raise IntegrityError as soon as they are no ticket's, or too many."""
        before = len(self._data)
        self._data += data
        if len(self._data) > MAX_TICKET:
            raise IntegrityError(f"the ticket has more than {MAX_TICKET} bytes")
        if before < _LOOK:
            seen = bytes(self._data[:_LOOK]).translate(None, _BLANKS)[: len(_BEGINNING)]
            if not _BEGINNING.startswith(seen) or (len(self._data) >= _LOOK and seen != _BEGINNING):
                raise IntegrityError('the answer is no ticket of htsget: it does not begin with {"htsget":')

    def finish(self) -> Ticket:
        """Return the ticket, when all was fed; raise IntegrityError, or the error that is in its place."""
        fields = _only_member(bytes(self._data))
        if "urls" not in fields and "error" in fields:
            raise _named_error(fields, 200)
        urls = fields.get("urls")
        if not isinstance(urls, list) or not 0 < len(urls) <= MAX_BLOCKS:
            raise IntegrityError(f"the ticket has no list of 1 to {MAX_BLOCKS} urls")
        md5 = fields.get("md5")
        if md5 is not None and (not isinstance(md5, str) or not re.fullmatch(r"[0-9a-fA-F]{32}", md5)):
            raise IntegrityError("the ticket's md5 is none")
        try:
            blocks = tuple(map(_block, urls))
            return Ticket(self._format(fields.get("format")), blocks, md5.lower() if md5 is not None else None)
        except ValueError as exc:
            raise _wrong(str(exc)) from None

    def _format(self, value: object) -> Format:
        """Return the ticket's format; one that tells none has what was asked for."""
        if value is not None and value != self._asked:
            shown = value if isinstance(value, str) and value in set(Format) else "another format"
            raise UnsupportedFormat(f"the server gives {shown} where {self._asked} was asked for")
        return self._asked


def parse_error(status: int, body: bytes) -> RefgenfsError | None:
    """Return the error that the body of an answer names; None for a body that names none.

    401, 403 and 404 say the same whatever the body is; of other answers, the body tells more than the status.
    """
    try:
        fields = _only_member(body)
    except IntegrityError:
        fields = {}
    return _named_error(fields, status) if "error" in fields or status in _STATUSES else None


_ERRORS: dict[str, tuple[type[RefgenfsError], str]] = {
    "InvalidAuthentication": (OriginDenied, "the server knows no such user: see token_file"),
    "PermissionDenied": (OriginDenied, "the server denies access to this id"),
    "NotFound": (OriginNotFound, "the server has no such id or reference"),
    "PayloadTooLarge": (PayloadTooLarge, "the server finds the request too large"),
    "UnsupportedFormat": (UnsupportedFormat, "the server does not have this id in this format"),
    "InvalidInput": (InvalidInput, "the server does not understand the request"),
    "InvalidRange": (InvalidRange, "the server has no such positions"),
}
_STATUSES = {401: "InvalidAuthentication", 403: "PermissionDenied", 404: "NotFound", 413: "PayloadTooLarge"}


def _named_error(fields: dict[str, Any], status: int) -> RefgenfsError:
    told = fields.get("error")
    name = told if isinstance(told, str) and told in _ERRORS else _STATUSES.get(status, "")
    if not name:
        return IntegrityError(f"an error of htsget that the protocol has not (HTTP {status})")
    kind, what = _ERRORS[name]
    return kind(f"{what} ({name}, HTTP {status})")


def _only_member(data: bytes) -> dict[str, Any]:
    """Return what `htsget` has, which must be all that there is."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as exc:  # the error's text may have some of the ticket's
        raise IntegrityError(f"the answer is no ticket of htsget: no JSON ({type(exc).__name__})") from None
    if not isinstance(value, dict) or list(value) != ["htsget"] or not isinstance(value["htsget"], dict):
        raise IntegrityError("the answer is no ticket of htsget: it has more than `htsget` at its top, or less")
    return value["htsget"]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _block(value: object) -> BlockUrl:
    """Return a block of a ticket; raise IntegrityError with words that hold nothing of it."""
    if not isinstance(value, dict) or not isinstance(value.get("url"), str):
        raise _wrong("a block without a url")
    url, headers, class_ = value["url"], value.get("headers") or {}, value.get("class")
    if class_ is not None and (not isinstance(class_, str) or class_ not in set(Class)):
        raise _wrong("a block of a class that there is not")
    _check_url(url)
    if not isinstance(headers, dict):
        raise _wrong("headers that are no object")
    for name, text in headers.items():
        if not isinstance(text, str) or not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(text):
            raise _wrong("a header that is none")
        if name.lower() in _REFUSED_HEADERS:
            raise _wrong(f"a header that is not the ticket's to set: {name.lower()}")
    if len({name.lower() for name in headers}) != len(headers):
        raise _wrong("a header is there twice")
    return BlockUrl(url, tuple(headers.items()), Class(class_) if class_ is not None else None)


def _wrong(what: str) -> IntegrityError:
    return IntegrityError(f"the ticket is not right: {what}")


def _check_url(url: str) -> None:
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        try:
            inline_data(url)
        except ValueError as exc:
            raise _wrong(str(exc)) from None
        return
    if scheme not in {"http", "https"}:
        raise _wrong("a URL that is not http:, https: or data:")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise _wrong("what is no URL")


# ---- what a ticket says of its blocks


def inline_data(url: str) -> bytes | None:
    """Return the bytes of a data URI, which has to be base64 (RFC 2397); None for another URL. Raises ValueError."""
    if url[:5].lower() != "data:":
        return None
    found = _DATA.fullmatch(url)
    if found is None:
        raise ValueError("a data: URL that is not base64")
    try:
        return base64.b64decode(unquote_to_bytes(found[1]), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a data: URL whose base64 is wrong") from None


@dataclass(frozen=True, slots=True)
class Place:
    """How a block is asked for: its URL, headers without `Range`, and what of the object it is.

    It is the bytes `start` up to, not including, `stop`; to the object's end for None. `exact` is the ticket's own
    `Range`, "" for none: where that is neither closed nor open at its end, only it may be asked for (`whole`).
    """

    url: str
    headers: tuple[tuple[str, str], ...]
    start: int = 0
    stop: int | None = None
    exact: str = ""
    whole: bool = False

    @property
    def length(self) -> int | None:
        """The length in bytes where the ticket tells it."""
        return None if self.stop is None else self.stop - self.start

    def __repr__(self) -> str:
        return f"Place({self.start}-{self.stop})"  # URL and headers may hold secrets


def place_of(block: BlockUrl) -> Place:
    """Return how a block that is not inline is asked for; raise IntegrityError for a range that ends first."""
    exact = next((text.strip() for name, text in block.headers if name.lower() == "range"), "")
    headers = tuple((name, text) for name, text in block.headers if name.lower() != "range")
    found = _CLOSED.fullmatch(exact)
    if not exact or found is None:
        return Place(block.url, headers, exact=exact, whole=bool(exact))
    start, stop = int(found[1]), None if found[2] is None else int(found[2]) + 1
    if stop is not None and stop <= start:
        raise IntegrityError("the ticket has a range that ends before it begins")
    return Place(block.url, headers, start, stop, exact)


def joins_records_once(ticket: Ticket) -> bool:
    """Say whether the blocks can be one file: headers, end markers and ranges of an object don't come again.

    The answers that some servers give for several regions are whole files one after the other.
    """
    classes = [block.class_ for block in ticket.urls]
    body = False
    for class_ in classes:
        if class_ is Class.HEADER and body:
            return False
        body = body or class_ is Class.BODY
    inline = [inline_data(block.url) for block in ticket.urls]
    filled = [data for data in inline if data]
    if len(set(filled)) < len(filled):
        return False
    reached: dict[str, int] = {}
    for block, data in zip(ticket.urls, inline, strict=True):
        if data is not None:
            continue
        place = place_of(block)
        object_ = block.url.partition("?")[0]
        if place.exact and place.start < reached.get(object_, 0):
            return False
        reached[object_] = place.stop if place.stop is not None else place.start + 1
    return True
