"""S3's protocol: URLs, pages of a listing, errors; and what an access makes of them, without a network."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from refgenfs.core.errors import IntegrityError, OriginDenied, OriginMissing, OriginUnavailable, RefgenfsError
from refgenfs.core.s3 import Bucket, Fault, Object, Page, is_bucket, is_region, parse_fault, parse_page
from refgenfs.fetch.answers import AttemptFailed
from refgenfs.fetch.s3 import S3Access
from refgenfs.fetch.sigv4 import sign_request
from refgenfs.fetch.urls import parse_url

PAGE = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>p/</Prefix>
<Contents><Key>p/a%2Bb+c%C3%BC</Key><LastModified>2024-05-01T10:20:30.999Z</LastModified>
<ETag>&quot;0123456789abcdef0123456789abcdef-2&quot;</ETag><Size>12</Size>
<Owner><ID>o</ID><DisplayName>Size</DisplayName></Owner></Contents>
<Contents><Key>p/z</Key><LastModified>soon</LastModified><ETag>0123456789abcdef0123456789abcdef</ETag><Size>0</Size>
</Contents><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
<NextContinuationToken>t/+=&amp;</NextContinuationToken></ListBucketResult>"""


def test_a_page_of_a_listing() -> None:
    assert parse_page(PAGE, "b") == Page(
        (
            Object("p/a+b cü", 12, '"0123456789abcdef0123456789abcdef-2"', 1714558830.0),
            Object("p/z", 0, '"0123456789abcdef0123456789abcdef"', 0.0),
        ),
        "t/+=&",
    )


def test_keys_that_are_not_encoded_are_left_as_they_are() -> None:
    page = parse_page(PAGE.replace("<EncodingType>url</EncodingType>", ""), "b")
    assert page.objects[0].key == "p/a%2Bb+c%C3%BC"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html><body>Welcome</body></html>",
        PAGE[:400],
        PAGE.replace("<Size>12</Size>", ""),
        PAGE.replace("<Size>12</Size>", "<Size>-1</Size>"),
        PAGE.replace("<Size>12</Size>", "<Size>x</Size>"),
        PAGE.replace("<IsTruncated>true</IsTruncated>", ""),
        PAGE.replace("<IsTruncated>true</IsTruncated>", "<IsTruncated>yes</IsTruncated>"),
        PAGE.replace("<NextContinuationToken>t/+=&amp;</NextContinuationToken>", ""),
        '<!DOCTYPE x [<!ENTITY a "b">]>' + PAGE.partition("?>")[2],
        '{"json": true}',
    ],
)
def test_what_is_no_listing_is_refused(text: str) -> None:
    with pytest.raises(IntegrityError, match="s3://b: what it answers is no listing of a bucket"):
        parse_page(text, "s3://b")


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"<Error><Code>NoSuchKey</Code><Message>x</Message></Error>", Fault("NoSuchKey")),
        (b"<Error><Code>PermanentRedirect</Code><Region>eu-west-1</Region>", Fault("PermanentRedirect", "eu-west-1")),
        (b"<Error><Code>No secret, please</Code><Region>../..</Region></Error>", Fault()),
        (b"<Error><Inner><Code>NoSuchKey</Code></Inner></Error>", Fault()),
        (b"<html>", Fault()),
        (b"\xff\x00", Fault()),
        (b"", Fault()),
    ],
)
def test_what_an_error_says(body: bytes, fault: Fault) -> None:
    assert parse_fault(body) == fault


@pytest.mark.parametrize(
    ("bucket", "base"),
    [
        (Bucket("ngi-igenomes"), "https://ngi-igenomes.s3.us-east-1.amazonaws.com/"),
        (Bucket("b-1", region="eu-west-1"), "https://b-1.s3.eu-west-1.amazonaws.com/"),
        (Bucket("b-1", region="cn-north-1"), "https://b-1.s3.cn-north-1.amazonaws.com.cn/"),
        (Bucket("my.bucket"), "https://s3.us-east-1.amazonaws.com/my.bucket/"),
        (Bucket("Old_Name"), "https://s3.us-east-1.amazonaws.com/Old_Name/"),
        (Bucket("b-1", path_style=True), "https://s3.us-east-1.amazonaws.com/b-1/"),
        (Bucket("b-1", endpoint="http://minio:9000"), "http://minio:9000/b-1/"),
        (Bucket("b-1", endpoint="https://h/gate/"), "https://h/gate/b-1/"),
        (Bucket("b-1", endpoint="https://h:1", path_style=False), "https://b-1.h:1/"),
    ],
)
def test_where_a_bucket_is(bucket: Bucket, base: str) -> None:
    assert bucket.base() == base


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_a_key_comes_back_from_its_url_and_is_sent_as_it_is(path: str) -> None:
    bucket = Bucket("bucket", "pre fix/")
    url = bucket.url(path)
    assert bucket.path_of(url) == path
    assert str(parse_url(url)) == url, "no part of fetch spells it otherwise"
    assert bucket.path_of("https://elsewhere/" + path) is None


def test_names() -> None:
    assert all(map(is_bucket, ("abc", "a.b-c", "Old_Name")))
    assert not any(map(is_bucket, ("", "ab", "a/b", "s3://abc", "a..b", "-ab", "a b", "abc/")))
    assert is_region("eu-west-1")
    assert is_region("garage")
    assert not any(map(is_region, ("", "EU", "eu west", "a/b", "-a")))


def test_what_is_shown_of_a_place_has_no_secret() -> None:
    assert Bucket("b", "p/").shown == "s3://b/p"
    assert Bucket("b", "", endpoint="http://eve:pw@h:9000/").shown == "s3://b (http://h:9000)"


# -- access -------------------------------------------------------------------------------------------------------

KEYS = ReadOnlyCredentials("AKID", "secret", "token")


def failure(access: S3Access, status: int, code: str, headers: dict[str, str] | None = None) -> AttemptFailed:
    body = f"<Error><Code>{code}</Code></Error>".encode() if code else b""
    with pytest.raises(AttemptFailed) as caught:
        access.judge(URL("https://b.s3.us-east-1.amazonaws.com/x"), status, headers or {}, body)
    return caught.value


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (403, "AccessDenied", OriginDenied, "access denied; these credentials may not read it"),
        (403, "", OriginDenied, "HTTP 403: access denied"),
        (403, "InvalidObjectState", OriginDenied, "archive tier"),
        (403, "SignatureDoesNotMatch", OriginDenied, "check the secret key"),
        (403, "InvalidAccessKeyId", OriginDenied, "check the access key"),
        (400, "ExpiredToken", OriginDenied, "have expired; renew them"),
        (404, "NoSuchBucket", OriginMissing, "there is no bucket bbb"),
        (301, "PermanentRedirect", OriginUnavailable, "is in another region; set region, or endpoint"),
        (503, "SlowDown", OriginUnavailable, "HTTP 503 (SlowDown)"),
        (500, "InternalError", OriginUnavailable, "HTTP 500 (InternalError)"),
        (400, "InvalidArgument", OriginUnavailable, "HTTP 400 (InvalidArgument)"),
    ],
)
def test_what_errors_mean(status: int, code: str, kind: type[RefgenfsError], says: str) -> None:
    failed = failure(S3Access(Bucket("bbb")), status, code)
    assert says in failed.what
    assert issubclass(failed.kind, kind)


def test_slow_down_says_when_to_come_back() -> None:
    assert failure(S3Access(Bucket("bbb")), 503, "SlowDown", {"Retry-After": "7"}).retry_after == 7.0


def test_an_object_that_is_not_there_is_left_to_the_status() -> None:
    assert not S3Access(Bucket("bbb")).judge(URL("https://h/x"), 404, {}, b"<Error><Code>NoSuchKey</Code></Error>")


def test_a_region_moves_later_requests_to_its_host() -> None:
    access = S3Access(Bucket("bbb"))
    first = URL(Bucket("bbb").url("a b+c"), encoded=True)
    assert access.place(first) == first
    assert access.judge(first, 301, {"x-amz-bucket-region": "eu-west-1"}, b"")
    moved = access.place(first)
    assert str(moved) == "https://bbb.s3.eu-west-1.amazonaws.com/a%20b%2Bc"
    assert failure(access, 301, "PermanentRedirect", {"x-amz-bucket-region": "eu-west-1"}).kind is not OriginDenied
    assert access.place(URL("https://elsewhere/x")) == URL("https://elsewhere/x")


async def _signed(access: S3Access, url: str) -> dict[str, str]:
    return await access.sign("GET", URL(url, encoded=True), {"Range": "bytes=0-9"})


@pytest.mark.parametrize(
    ("url", "home"),
    [
        ("https://bbb.s3.us-east-1.amazonaws.com/x", True),
        ("https://bbb.s3.eu-west-1.amazonaws.com/x", True),
        ("https://bbb.s3-eu-west-1.amazonaws.com/x", True),
        ("http://bbb.s3.eu-west-1.amazonaws.com/x", False),
        ("https://bbb.s3.eu-west-1.amazonaws.com.evil.example/x", False),
        ("https://evil.example/bbb.s3.eu-west-1.amazonaws.com", False),
        ("https://other.s3.eu-west-1.amazonaws.com/x", False),
    ],
)
async def test_signatures_go_to_the_buckets_own_hosts_only(
    url: str, home: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = S3Access(Bucket("bbb"))

    async def keys(_: Any) -> ReadOnlyCredentials:
        return KEYS

    monkeypatch.setattr("refgenfs.fetch.s3._Keys.get", keys)
    headers = {name.lower() for name in await _signed(access, url)}
    assert ("authorization" in headers) is home
    assert ("x-amz-security-token" in headers) is home


def test_a_signature_is_the_documented_one() -> None:
    """Amazon S3 API Reference, "Examples: Signature Calculations", GET Object."""
    keys = ReadOnlyCredentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", None)
    url = "https://examplebucket.s3.amazonaws.com/test.txt"
    headers = sign_request("GET", url, {"Range": "bytes=0-9"}, keys, "us-east-1", 1369353600.0)
    assert headers["Authorization"].endswith(
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


def test_the_clock_that_is_given_is_all_that_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of botocore's `add_auth` are repeated in `sigv4`: a release that has others shows here."""
    url, headers = Bucket("bbb").url("a b+ü"), {"Range": "bytes=0-9", "If-Range": '"x"'}
    request = AWSRequest(method="GET", url=url, headers=headers)
    S3SigV4Auth(KEYS, "s3", "eu-west-1").add_auth(request)
    stamp = request.headers["X-Amz-Date"]
    now = datetime.datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC).timestamp()
    assert sign_request("GET", url, headers, KEYS, "eu-west-1", now) == dict(request.headers.items())
