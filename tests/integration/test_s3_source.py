"""A bucket as a source, on a real S3 API behind a gate that recomputes every signature."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from refgenfs.core.catalog import SourceCatalog, iter_versions
from refgenfs.core.content import BLOCK, ByteRange, FileFacts
from refgenfs.core.errors import (
    IntegrityError,
    OriginDenied,
    OriginMissing,
    OriginUnavailable,
    RefgenfsError,
    StaleContent,
)
from refgenfs.core.patterns import Layout
from refgenfs.core.retry import RetryPolicy
from refgenfs.core.s3 import Bucket
from refgenfs.fetch.bridge import open_bridge
from refgenfs.fetch.http import Http
from refgenfs.fetch.s3 import S3Access
from refgenfs.fetch.settings import Account, HttpSettings
from refgenfs.sources.s3 import S3Source
from tests.support.s3 import ACCESS, SECRET, Gate, Moto, open_gate

QUICK = RetryPolicy(retry_for=2.0, first=0.01, longest=0.05)
DATA = random.Random(3).randbytes(3 * BLOCK + 77)

# What keys can be: spaces, '+', '%', '&', unicode in two normal forms, what XML and URLs have a meaning for.
ODD = (
    "a b", "a+b", "a%20b", "a%2Bb", "a&b", "a?b", "a#b", "a=b", "ü", "u\u0308", "文件", "a'b", 'a"b', "a<b>c", "a;b",
    "~-._!*()", "a:b@c", "[x]", "{y}", "a\\b", "a|b", "^`$,", "deep/er/file", "trailing ", " leading", "tab\tin",
)  # fmt: skip

Clean = Callable[[], None]


@pytest.fixture(autouse=True)
def no_credentials_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the user's is read, and no role of the machine is asked for."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


class Side:
    """One source with its HTTP client."""

    def __init__(self, http: Http, source: S3Source) -> None:
        self.http = http
        self.source = source

    async def facts(self, name: str, catalog: SourceCatalog | None = None) -> FileFacts:
        """Return the facts of the file with this name, whichever version has it."""
        catalog = catalog or await self.source.catalog()
        version = next(v for v in iter_versions(catalog) if any(f.name == name for f in v.files or ()))
        facts = await self.source.facts(version, name)
        assert facts is not None
        return facts

    async def read(self, facts: FileFacts, first: int = 0) -> bytes:
        """Return the bytes of a file from a block on."""
        assert isinstance(facts.extent, ByteRange)
        sink = Sink()
        start = first * BLOCK
        await self.http.fetch_range(facts.extent, start, facts.size, facts.size, sink, account="s3")
        return bytes(sink.data)


class Sink:
    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, offset: int, data: memoryview) -> None:
        self.data += data


@asynccontextmanager
async def opened(
    bucket: Bucket,
    *,
    layout: str | None = "plain",
    assets: tuple[tuple[str, tuple[str, ...]], ...] = (),
    anonymous: bool = False,
    profile: str | None = None,
    request_payer: bool = False,
) -> AsyncIterator[Side]:
    access = S3Access(bucket, anonymous=anonymous, profile=profile, request_payer=request_payer)
    settings = HttpSettings(policy=QUICK, accounts={"s3": Account("", 20.0, access=access)})
    async with open_bridge() as bridge:
        http = Http(bridge, settings)
        parsed = None if layout is None else Layout.parse(layout)
        try:
            yield Side(http, S3Source(http, bucket, name="s3", layout=parsed, assets=assets))
        finally:
            await http.aclose()


def names(catalog: SourceCatalog) -> list[str]:
    return [f"{v.key} {file.name}" for v in iter_versions(catalog) for file in v.files or ()]


# -- listing ----------------------------------------------------------------------------------------------------


async def test_a_public_bucket_is_listed_and_read_unsigned(moto: Moto, gate: Gate) -> None:
    put = moto.bucket("public")
    put("hg38/fasta/hg38.fa", DATA)
    put("hg38/fasta/empty", b"")
    put("stray", b"x")
    put("hg38/fasta/folder/", b"")
    async with opened(Bucket("public", endpoint=gate.url), anonymous=True) as side:
        catalog = await side.source.catalog()
        assert names(catalog) == ["hg38/fasta:default empty", "hg38/fasta:default hg38.fa"]
        listed = gate.count()
        facts = await side.facts("hg38.fa", catalog)
        assert not side.http.takes_token(Bucket("public", endpoint=gate.url).url("a"), "s3")
        assert (facts.size, facts.origin) == (len(DATA), "range")
        assert (await side.facts("empty", catalog)).origin == "inline"
        assert gate.count() == listed, "a listing has the facts"
        assert await side.read(facts) == DATA
    assert not any("authorization" in one.headers for one in gate.asked)
    assert gate.sent("hg38.fa") == len(DATA)


async def test_facts_that_are_asked_anew_are_those_of_the_listing(moto: Moto, gate: Gate) -> None:
    moto.bucket("facts")("hg38/fasta/a", DATA)
    async with opened(Bucket("facts", endpoint=gate.url), anonymous=True) as side:
        catalog = await side.source.catalog()
        version = next(iter_versions(catalog))
        listed = await side.source.facts(version, "a")
        asked = await side.source.facts(version, "a", patience=20.0)
        assert listed == asked
        assert gate.count("HEAD") == 1


async def test_more_keys_than_a_page_has(moto: Moto, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """And while pages are parsed and arranged, nobody on the trio thread is held up."""
    put = moto.bucket("pages")
    for number in range(1050):
        put(f"refs/Homo_sapiens/NCBI/GRCh38/Sequence/Chromosomes/f{number:04}", b"x")
    put("refsandmore/Homo_sapiens/NCBI/GRCh38/Sequence/Chromosomes/not", b"x")
    expected = [f"GRCh38/chromosomes:NCBI f{number:04}" for number in range(1050)]
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await trio.sleep(0.001)
            longest = max(longest, time.perf_counter() - began)

    async with (
        opened(Bucket("pages", "refs/", endpoint=gate.url), layout="igenomes", anonymous=True) as side,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(watch)
        began = time.perf_counter()
        assert names(await side.source.catalog()) == expected
        took = time.perf_counter() - began
        assert gate.count("GET", "list-type=2") == 2
        monkeypatch.setattr("refgenfs.core.s3.PAGE", 100)
        assert names(await side.source.catalog()) == expected
        assert gate.count("GET", "list-type=2") == 13
        nursery.cancel_scope.cancel()
    assert longest < max(0.5, took / 2)


async def test_keys_of_every_kind_are_listed_signed_and_read(moto: Moto, gate: Gate, keys: None) -> None:
    put = moto.bucket("odd", public=False)
    for number, name in enumerate(ODD):
        put(f"p+ x/ü/hg38/odd/{name}", f"{number}".encode())
    gate.rules.signed = True
    async with opened(Bucket("odd", "p+ x/ü/", endpoint=gate.url)) as side:
        catalog = await side.source.catalog()
        version = next(iter_versions(catalog))
        assert {file.name for file in version.files or ()} == set(ODD)
        # no ticket has such a URL: who gets it could not read it
        assert side.http.takes_token(Bucket("odd", endpoint=gate.url).url("a"), "s3")
        assert not side.http.takes_token("http://elsewhere/a", "s3")
        for number, name in enumerate(ODD):
            facts = await side.facts(name, catalog)
            assert await side.read(facts) == f"{number}".encode(), name
            assert side.source.name_of(version, facts.extent) == name
            asked = await side.source.facts(version, name, patience=20.0)
            assert asked == facts
    assert {one.status for one in gate.asked} <= {200, 206}


async def test_assets_named_one_by_one_need_no_listing(moto: Moto, gate: Gate) -> None:
    moto.bucket("named")("deep/ref.fa", DATA)
    assets = (("hg38/fasta:v1", ("deep/ref.fa", "not/there.fa")),)
    async with opened(Bucket("named", endpoint=gate.url), layout=None, assets=assets, anonymous=True) as side:
        catalog = await side.source.catalog()
        assert names(catalog) == ["hg38/fasta:v1 ref.fa", "hg38/fasta:v1 there.fa"]
        assert gate.count() == 0
        assert await side.read(await side.facts("ref.fa", catalog)) == DATA
        assert await side.source.facts(next(iter_versions(catalog)), "there.fa") is None


# -- who asks ----------------------------------------------------------------------------------------------------


async def test_a_private_bucket_needs_credentials(moto: Moto, gate: Gate) -> None:
    moto.bucket("private", public=False)("hg38/fasta/a", DATA)
    gate.rules.signed = True
    async with opened(Bucket("private", endpoint=gate.url), anonymous=True) as side:
        with pytest.raises(OriginDenied, match=r"HTTP 403 \(AccessDenied\): .* needs credentials, not anonymous"):
            await side.source.catalog()
    async with opened(Bucket("private", endpoint=gate.url)) as side:
        with pytest.raises(OriginDenied, match=r"no credentials .* write anonymous = true"):
            await side.source.catalog()


async def test_credentials_of_a_profile(moto: Moto, gate: Gate, tmp_path: Path) -> None:
    moto.bucket("profile", public=False)("hg38/fasta/a", DATA)
    gate.rules.signed = True
    gate.rules.keys = {"AKIDOTHER": ("othersecret", "tok/en+=")}
    (tmp_path / "credentials").write_text(
        "[lab]\naws_access_key_id = AKIDOTHER\naws_secret_access_key = othersecret\naws_session_token = tok/en+=\n"
    )
    async with opened(Bucket("profile", endpoint=gate.url), profile="lab") as side:
        assert await side.read(await side.facts("a")) == DATA
    async with opened(Bucket("profile", endpoint=gate.url), profile="bal") as side:
        with pytest.raises(OriginDenied, match="there is no AWS profile bal"):
            await side.source.catalog()


@pytest.mark.parametrize(
    ("secret", "known", "what"),
    [
        ("wrong", ACCESS, r"SignatureDoesNotMatch\): check the secret key"),
        (SECRET, "AKIDNOBODY", r"InvalidAccessKeyId\): check the access key"),
    ],
)
async def test_what_is_wrong_with_credentials_is_said_and_no_secret(
    moto: Moto, gate: Gate, keys: None, secret: str, known: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    gate.rules.keys = {known: (secret, "")}
    async with opened(Bucket("whatever", endpoint=gate.url)) as side:
        with pytest.raises(OriginDenied, match=what) as caught:
            await side.source.catalog()
        told = str(caught.value) + repr(side.http.failures) + caplog.text
    assert "\n" not in str(caught.value)
    for hidden in (SECRET, ACCESS, "Signature=", "AWS4-HMAC"):
        assert hidden not in told


async def test_expired_credentials_are_looked_for_anew(
    moto: Moto, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refgenfs.fetch.s3.STALE_KEYS", 0.0)
    moto.bucket("renewed", public=False)("hg38/fasta/a", DATA)
    credentials = tmp_path / "credentials"
    form = "[default]\naws_access_key_id = {}\naws_secret_access_key = s3cret\naws_session_token = t\n"
    gate.rules.signed = True
    gate.rules.keys = {"AKIDOLD": ("s3cret", "t"), "AKIDNEW": ("s3cret", "t")}
    credentials.write_text(form.format("AKIDOLD"))
    async with opened(Bucket("renewed", endpoint=gate.url)) as side:
        facts = await side.facts("a")
        gate.rules.expired = {"AKIDOLD"}
        with pytest.raises(OriginDenied, match="the credentials have expired; renew them"):
            await side.read(facts)
        credentials.write_text(form.format("AKIDNEW"))
        assert await side.read(facts) == DATA


async def test_a_wrong_clock_is_corrected_by_s3s(moto: Moto, gate: Gate, keys: None) -> None:
    moto.bucket("clock", public=False)("hg38/fasta/a", DATA)
    gate.rules.signed, gate.rules.clock = True, 7200.0
    async with opened(Bucket("clock", endpoint=gate.url)) as side:
        assert await side.read(await side.facts("a")) == DATA
    assert [one.why for one in gate.asked] == ["RequestTimeTooSkewed", "", ""]


async def test_who_asks_offers_to_pay_where_that_is_set(moto: Moto, gate: Gate, keys: None) -> None:
    moto.bucket("payer", public=False)("hg38/fasta/a", DATA)
    gate.rules.signed = gate.rules.payer = True
    async with opened(Bucket("payer", endpoint=gate.url), request_payer=True) as side:
        assert await side.read(await side.facts("a")) == DATA
    async with opened(Bucket("payer", endpoint=gate.url)) as side:
        with pytest.raises(OriginDenied, match="access denied; these credentials may not read it"):
            await side.source.catalog()


# -- where it is -------------------------------------------------------------------------------------------------


async def test_the_region_is_learned_once(moto: Moto, gate: Gate, keys: None) -> None:
    moto.bucket("regional", public=False)("hg38/fasta/a", DATA)
    gate.rules.signed, gate.rules.region = True, "eu-north-1"
    async with opened(Bucket("regional", endpoint=gate.url)) as side:
        facts = await side.facts("a")
        assert await side.read(facts) == DATA
        assert (
            await side.source.facts(next(iter_versions(await side.source.catalog())), "a", patience=20.0)
        ) == facts
    assert [one.why for one in gate.asked].count("AuthorizationHeaderMalformed") == 1


async def test_a_region_that_is_configured_costs_no_request(moto: Moto, gate: Gate, keys: None) -> None:
    moto.bucket("set", public=False)("hg38/fasta/a", DATA)
    gate.rules.signed, gate.rules.region = True, "eu-north-1"
    async with opened(Bucket("set", region="eu-north-1", endpoint=gate.url)) as side:
        await side.source.catalog()
    assert gate.count() == 1


async def test_a_head_in_the_wrong_region_is_put_right_too(moto: Moto, gate: Gate, keys: None) -> None:
    moto.bucket("headed", public=False)("a", DATA)
    gate.rules.signed, gate.rules.region = True, "ap-south-1"
    assets = (("hg38/fasta", ("a",)),)
    async with opened(Bucket("headed", endpoint=gate.url), layout=None, assets=assets) as side:
        assert (await side.facts("a")).size == len(DATA)


async def test_a_bucket_that_is_not_there(moto: Moto, gate: Gate) -> None:
    async with opened(Bucket("nowhere", endpoint=gate.url), anonymous=True) as side:
        with pytest.raises(OriginMissing, match=r"\(NoSuchBucket\): there is no bucket nowhere"):
            await side.source.catalog()


async def test_a_redirect_is_followed_and_others_get_no_signature(moto: Moto, gate: Gate, keys: None) -> None:
    moto.bucket("moved")("hg38/fasta/a", DATA)
    with open_gate(moto) as elsewhere:
        async with opened(Bucket("moved", endpoint=gate.url)) as side:
            facts = await side.facts("a")
            gate.rules.moved = elsewhere.url
            assert await side.read(facts) == DATA
        (asked,) = elsewhere.asked
        assert asked.status == 206
        assert not {"authorization", "x-amz-security-token", "x-amz-date"} & set(asked.headers)


async def test_a_head_has_no_code_and_expired_credentials_are_renewed_all_the_same(
    moto: Moto, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refgenfs.fetch.s3.STALE_KEYS", 0.0)
    moto.bucket("renewed-head", public=False)("hg38/fasta/a", DATA)
    credentials = tmp_path / "credentials"
    form = "[default]\naws_access_key_id = {}\naws_secret_access_key = s3cret\n"
    credentials.write_text(form.format("AKIDOLD"))
    gate.rules.signed, gate.rules.keys = True, {"AKIDOLD": ("s3cret", ""), "AKIDNEW": ("s3cret", "")}
    async with opened(Bucket("renewed-head", endpoint=gate.url)) as side:
        version = next(iter_versions(await side.source.catalog()))
        gate.rules.expired = {"AKIDOLD"}
        with pytest.raises(RefgenfsError):
            await side.source.facts(version, "a", patience=20.0)
        credentials.write_text(form.format("AKIDNEW"))
        assert await side.source.facts(version, "a", patience=20.0) is not None


# -- what changes -------------------------------------------------------------------------------------------------


async def test_an_object_that_was_replaced_is_another_version(moto: Moto, gate: Gate) -> None:
    put = moto.bucket("replaced")
    put("hg38/fasta/a", DATA)
    async with opened(Bucket("replaced", endpoint=gate.url), anonymous=True) as side:
        catalog = await side.source.catalog()
        facts = await side.facts("a", catalog)
        assert await side.read(facts) == DATA
        put("hg38/fasta/a", DATA[::-1])
        with pytest.raises(StaleContent):
            await side.read(facts, first=1)
        # asked as the catalog's keeper does then: the listing of before has no say
        again = await side.source.facts(next(iter_versions(catalog)), "a", None)
        assert again is not None
        assert again.content != facts.content
        assert await side.read(again) == DATA[::-1]


async def test_an_object_that_was_deleted(moto: Moto, gate: Gate) -> None:
    moto.bucket("deleted")("hg38/fasta/a", DATA)
    async with opened(Bucket("deleted", endpoint=gate.url), anonymous=True) as side:
        catalog = await side.source.catalog()
        facts = await side.facts("a", catalog)
        moto.client.delete_object(Bucket="deleted", Key="hg38/fasta/a")
        with pytest.raises(OriginMissing):
            await side.read(facts)
        assert await side.source.facts(next(iter_versions(catalog)), "a", patience=20.0) is None
        assert names(await side.source.catalog()) == []


async def test_an_upload_in_parts_has_a_validator_that_is_no_md5(moto: Moto, gate: Gate) -> None:
    moto.bucket("parts")
    body = random.Random(1).randbytes(5 << 20) + DATA
    client, where = moto.client, {"Bucket": "parts", "Key": "hg38/fasta/a"}
    upload = client.create_multipart_upload(**where, ACL="public-read")["UploadId"]
    parts = []
    for number, piece in enumerate((body[: 5 << 20], body[5 << 20 :]), 1):
        done = client.upload_part(**where, UploadId=upload, PartNumber=number, Body=piece)
        parts.append({"PartNumber": number, "ETag": done["ETag"]})
    client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
    async with opened(Bucket("parts", endpoint=gate.url), anonymous=True) as side:
        facts = await side.facts("a")
        assert isinstance(facts.extent, ByteRange)
        assert facts.extent.validator.endswith('-2"')
        assert await side.read(facts) == body


# -- when it fails -------------------------------------------------------------------------------------------------


async def test_slow_down_is_asked_again(moto: Moto, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refgenfs.sources.s3.PATIENCE", 2.0)
    moto.bucket("slow")("hg38/fasta/a", DATA)
    async with opened(Bucket("slow", endpoint=gate.url), anonymous=True) as side:
        gate.rules.slow = 3
        assert await side.read(await side.facts("a")) == DATA
        gate.rules.slow = 1_000_000
        with pytest.raises(OriginUnavailable, match=r"HTTP 503 \(SlowDown\)"):
            await side.source.catalog()


async def test_an_endpoint_that_is_away_and_comes_back(moto: Moto, gate: Gate) -> None:
    moto.bucket("away")("hg38/fasta/a", DATA)
    async with opened(Bucket("away", endpoint=gate.url), anonymous=True) as side:
        facts = await side.facts("a")
        gate.rules.away = True
        with pytest.raises(OriginUnavailable):
            await side.read(facts)

        async def come_back() -> None:
            await trio.sleep(0.5)
            gate.rules.away = False

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_back)
            assert await side.read(facts) == DATA


async def test_an_answer_that_is_no_listing_is_no_empty_bucket(
    moto: Moto, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bucket, "page_url", lambda bucket, token="": f"{bucket.endpoint}/moto-api/data.json")
    async with opened(Bucket("x", endpoint=gate.url), anonymous=True) as side:
        with pytest.raises(IntegrityError, match="no listing of a bucket"):
            await side.source.catalog()


async def test_too_much_is_refused_and_says_what_to_do(
    moto: Moto, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refgenfs.core.patterns.MOST_FILES", 3)
    put = moto.bucket("much")
    for number in range(4):
        put(f"hg38/fasta/{number}", b"x")
    async with opened(Bucket("much", endpoint=gate.url), anonymous=True) as side:
        with pytest.raises(RefgenfsError, match="more than 3 files have a place in the layout; name a part"):
            await side.source.catalog()


async def test_what_has_no_place_is_told_once(moto: Moto, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    put = moto.bucket("strays")
    for key in ("hg38/fasta/a", "README", "b"):
        put(key, b"x")
    async with opened(Bucket("strays", endpoint=gate.url), anonymous=True) as side:
        for _ in range(2):
            await side.source.catalog()
    lines = [record.getMessage() for record in caplog.records if "no place" in record.getMessage()]
    assert lines == [
        "source s3: not all is shown: 2 files have no place in the layout, and the others have: 'README', 'b'"
    ]
