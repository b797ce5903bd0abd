"""S3's protocol as far as reading goes: URLs of objects, pages of a listing, what an error says. Pure.

Amazon S3 API Reference (API version 2006-03-01): ListObjectsV2, Error Responses, Virtual hosting of buckets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, unquote, unquote_plus
from xml.parsers import expat  # what has a DTD is refused below

from refgenfs.core.errors import IntegrityError, redact_url

DEFAULT_REGION = "us-east-1"
PAGE = 1000  # keys, the most that S3 gives at a time
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_DNS_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")  # with a dot, TLS certificates don't fit
_CODE = re.compile(r"[A-Za-z0-9.]{1,64}")
_AWS = re.compile(r"\.amazonaws\.com(\.cn)?$")
_HEX = re.compile(r"[0-9a-f]{32}(-[0-9]{1,5})?")


def is_region(text: str) -> bool:
    """Say whether `text` can be the name of a region."""
    return _REGION.fullmatch(text) is not None


def is_bucket(text: str) -> bool:
    """Say whether `text` can be the name of a bucket, also by the older rules, which allowed more."""
    return _BUCKET.fullmatch(text) is not None and ".." not in text


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where objects are. `prefix` is '' or ends with '/': what every key begins with, and paths leave out.

    `endpoint` is the URL of a server that speaks S3, '' for Amazon's. `path_style`: the bucket's name is in the path
    of a URL and not in its host; None: where it has to be, and at other endpoints.
    """

    name: str
    prefix: str = ""
    region: str = ""
    endpoint: str = ""
    path_style: bool | None = None

    @property
    def shown(self) -> str:
        """The place, for people; it has no secret."""
        where = f"s3://{self.name}/{self.prefix}".rstrip("/")
        return f"{where} ({redact_url(self.endpoint).rstrip('/')})" if self.endpoint else where

    @property
    def identity(self) -> str:
        """What tells the objects of this bucket from those of others, whatever part of it is asked for."""
        return f"{redact_url(self.endpoint)} {self.name}"

    def base(self, region: str = "") -> str:
        """Return the URL of the bucket in a region, with a '/' at its end."""
        region = region or self.region or DEFAULT_REGION
        root = self.endpoint.rstrip("/") if self.endpoint else f"https://s3.{region}.amazonaws.com"
        if not self.endpoint and region.startswith("cn-"):
            root += ".cn"
        by_path = bool(self.endpoint) if self.path_style is None else self.path_style
        if by_path or _DNS_BUCKET.fullmatch(self.name) is None:
            return f"{root}/{self.name}/"
        scheme, _, rest = root.partition("://")
        return f"{scheme}://{self.name}.{rest}/"

    def url(self, path: str) -> str:
        """Return the URL of the object at a path below the prefix."""
        return self.base() + quote_key(self.prefix + path)

    def path_of(self, url: str) -> str | None:
        """Return the path of the object that a URL is of; None: it is none below the prefix."""
        head = self.base() + quote_key(self.prefix)
        return unquote(url[len(head) :]) if url.startswith(head) else None

    def page_url(self, token: str = "") -> str:
        """Return the URL of a page of the listing: the first, or the one that `token` of the page before names."""
        query = {"encoding-type": "url", "list-type": "2", "max-keys": str(PAGE), "prefix": self.prefix}
        if token:
            query["continuation-token"] = token
        pairs = (f"{name}={quote(query[name], safe='')}" for name in sorted(query))
        return f"{self.base()}?{'&'.join(pairs)}"

    def is_home(self, host: str) -> bool:
        """Say whether a host of Amazon's serves this bucket: signed requests may go there too."""
        if self.endpoint or _AWS.search(host) is None:
            return False
        return host.startswith((f"{self.name}.s3.", f"{self.name}.s3-", "s3.", "s3-"))


def quote_key(key: str) -> str:
    """Return a key as it stands in a URL, encoded as signatures have it: all but letters, digits and `-_.~/`."""
    return quote(key, safe="/~")


@dataclass(frozen=True, slots=True)
class Object:
    """An object of a listing: size in bytes, its ETag as HTTP has it or '', mtime in Unix seconds or 0.0."""

    key: str
    size: int
    etag: str
    mtime: float


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a listing; `next` asks for the one after it, '' at the end."""

    objects: tuple[Object, ...]
    next: str


def parse_page(text: str, where: str) -> Page:
    """Parse an answer to ListObjectsV2; raise IntegrityError, which names `where`, for what is none."""
    rows: list[dict[str, str]] = [{}]
    listing: dict[str, str] = {}

    def take(path: tuple[str, ...], value: str) -> None:
        match path:
            case ("ListBucketResult", "Contents"):
                rows.append({})
            case ("ListBucketResult", "Contents", field):
                rows[-1][field] = value
            case ("ListBucketResult", field):
                listing[field] = value

    try:
        _parse(text, take)
        more = {"true": True, "false": False}[listing["IsTruncated"]]
        token = listing["NextContinuationToken"] if more else ""
        decode = unquote_plus if listing.get("EncodingType") == "url" else str
        objects = tuple(_object(row, decode) for row in rows[:-1])
    except (expat.ExpatError, ValueError, KeyError) as exc:
        raise IntegrityError(f"{where}: what it answers is no listing of a bucket") from exc
    return Page(objects, token)


def _object(fields: dict[str, str], decode: Callable[[str], str]) -> Object:
    size = int(fields["Size"])
    if size < 0:
        raise ValueError("a size below 0")
    etag = fields.get("ETag", "").strip()
    if _HEX.fullmatch(etag):  # there are servers that leave the quotes out here, and not in HTTP's header
        etag = f'"{etag}"'
    return Object(decode(fields["Key"]), size, etag, _parse_time(fields.get("LastModified", "")))


def _parse_time(text: str) -> float:
    """Return whole seconds, as HTTP's date of the same object has them; 0.0 for what is no time."""
    try:
        moment = datetime.fromisoformat(text)
        return float(int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()))
    except (ValueError, OverflowError):
        return 0.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What the body of an error says: S3's code for it, and the region where the bucket is; '' for nothing."""

    code: str = ""
    region: str = ""


def parse_fault(body: bytes) -> Fault:
    """Parse the body of an error, of which the end may be missing. What is no such body says nothing.

    The message in it is left alone: it can hold the access key, and what was signed.
    """
    found: dict[str, str] = {}

    def take(path: tuple[str, ...], value: str) -> None:
        if len(path) == 2 and path[0] == "Error":
            found.setdefault(path[1], value.strip())

    with suppress(expat.ExpatError, ValueError):
        _parse(body, take)
    code, region = found.get("Code", ""), found.get("Region", "")
    return Fault(code if _CODE.fullmatch(code) else "", region if is_region(region) else "")


def _parse(document: str | bytes, take: Callable[[tuple[str, ...], str], None]) -> None:
    """Call `take` with the path and the text of every element as it ends; ValueError for one with a DTD."""
    path: list[str] = []
    texts: list[list[str]] = []

    def begin(name: str, _: object) -> None:
        path.append(name)
        texts.append([])

    def end(_: str) -> None:
        take(tuple(path), "".join(texts.pop()))
        path.pop()

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = begin
    parser.EndElementHandler = end
    parser.CharacterDataHandler = lambda text: texts[-1].append(text)
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(document, True)
