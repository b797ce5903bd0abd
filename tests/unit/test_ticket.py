"""Requests for tickets, tickets, and errors of htsget: what is taken, and what is refused."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.errors import (
    IntegrityError,
    InvalidInput,
    InvalidRange,
    OriginDenied,
    OriginMissing,
    OriginNotFound,
    PayloadTooLarge,
    RefgenfsError,
    UnsupportedFormat,
)
from refgenfs.core.htsget.model import BlockUrl, Class, Format, Interval, Query, Region, Ticket
from refgenfs.core.ticket import (
    MAX_BLOCKS,
    MAX_TICKET,
    TicketParser,
    inline_data,
    joins_records_once,
    parse_error,
    place_of,
    request_of,
)
from refgenfs.core.ticketblocks import TicketBlock, TicketBlocks, dump_blocks, load_blocks

SECRET = "s3cr3t"


def parse(text: str | bytes, asked: Format = Format.BAM, step: int = 1 << 20) -> Ticket:
    data = text.encode() if isinstance(text, str) else text
    parser = TicketParser(asked)
    for at in range(0, len(data), step):
        parser.feed(data[at : at + step])
    return parser.finish()


def ticket(*urls: object, **fields: object) -> str:
    return json.dumps({"htsget": {"format": "BAM", "urls": list(urls), **fields}})


# ---- requests


def test_a_whole_file_is_asked_for_by_its_id() -> None:
    request = request_of(Query("1000g/NA 12878?", Format.BAM))
    assert request.url("https://x/htsget/") == "https://x/htsget/reads/1000g/NA%2012878%3F?format=BAM"
    assert request.body is None


def test_a_region_goes_by_get_and_several_by_post() -> None:
    one = Region("HLA-A*01:01", Interval(5, 10))
    assert request_of(Query("a", Format.BCF, regions=(one,))).url("http://x") == (
        "http://x/variants/a?format=BCF&referenceName=HLA-A%2A01%3A01&start=5&end=10"
    )
    request = request_of(Query("a", Format.CRAM, regions=(one, Region("*"))))
    assert request.parameters == ""
    assert json.loads(request.body or b"") == {
        "format": "CRAM",
        "regions": [{"referenceName": "HLA-A*01:01", "start": 5, "end": 10}, {"referenceName": "*"}],
    }


def test_a_header_is_asked_for_by_its_class() -> None:
    assert request_of(Query("a", Format.VCF, Class.HEADER)).parameters == "format=VCF&class=header"


# ---- tickets


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_a_ticket_however_it_is_cut(step: int) -> None:
    text = ticket(
        {"url": "data:application/vnd.ga4gh.bam;base64,QkFNAQ==", "class": "header"},
        {"url": "https://x/a?sig=1", "headers": {"Range": "bytes=5-9", "Authorization": "Bearer t"}, "class": "body"},
        md5="0123456789ABCDEF0123456789abcdef",
    )
    got = parse(text, step=step)
    assert got.format is Format.BAM
    assert got.md5 == "0123456789abcdef0123456789abcdef"
    assert inline_data(got.urls[0].url) == b"BAM\x01"
    place = place_of(got.urls[1])
    assert (place.url, place.start, place.stop, place.length) == ("https://x/a?sig=1", 5, 10, 5)
    assert place.headers == (("Authorization", "Bearer t"),)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), st.data())
def test_what_a_ticket_says_comes_back(blocks: list[bytes], data: st.DataObject) -> None:
    made = Ticket(Format.CRAM, tuple(map(BlockUrl.inline, blocks)))
    text = made.to_json(indent=data.draw(st.sampled_from([None, 2]))).encode()
    parser = TicketParser(Format.CRAM)
    while text:
        cut = data.draw(st.integers(1, len(text)))
        parser.feed(text[:cut])
        text = text[cut:]
    assert parser.finish() == made
    assert [inline_data(block.url) for block in made.urls] == blocks


def test_a_format_that_is_left_out_is_the_one_asked_for() -> None:
    assert parse('{"htsget": {"urls": [{"url": "http://x/"}]}}', Format.VCF).format is Format.VCF


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"htsget"',
        "<html>no such page</html>",
        '\ufeff{"htsget": {"urls": [{"url": "http://x/"}]}}',
        '{"version": 1, "htsget": {"urls": [{"url": "http://x/"}]}}',
        '{"htsget": {"urls": [{"url": "http://x/"}]}, "version": 1}',
        '{"htsget": {"urls": [{"url": "http://x/"}]}, "htsget": {"urls": [{"url": "http://y/"}]}}',
        '{"htsget": {"urls": [{"url": "http://x/"}]}} and more',
        '{"htsget": [{"url": "http://x/"}]}',
        '{"htsget": {}}',
        ticket(),
        ticket("http://x/"),
        ticket({"url": 3}),
        ticket({"url": "x/relative"}),
        ticket({"url": "/relative"}),
        ticket({"url": "//host/relative"}),
        ticket({"url": f"file:///etc/passwd?{SECRET}"}),
        ticket({"url": f"ftp://host/{SECRET}"}),
        ticket({"url": f"http:///{SECRET}"}),
        ticket({"url": f"http://[{SECRET}/"}),
        ticket({"url": f"http://host/a b?{SECRET}"}),
        ticket({"url": "data:text/plain,abc"}),
        ticket({"url": "data:;base64,a"}),
        ticket({"url": "data:;base64,YWJj!!!!"}),
        ticket({"url": "http://x/", "class": "header"}, {"url": "http://x/"}),
        ticket({"url": "http://x/", "class": "tail"}),
        ticket({"url": "http://x/", "class": ["body"]}),
        ticket({"url": "http://x/", "headers": ["Range"]}),
        ticket({"url": "http://x/", "headers": {"Range": 5}}),
        ticket({"url": "http://x/", "headers": {"X-A": f"b\r\nX-C: {SECRET}"}}),
        ticket({"url": "http://x/", "headers": {"X A": SECRET}}),
        ticket({"url": "http://x/", "headers": {"Host": "other"}}),
        ticket({"url": "http://x/", "headers": {"Transfer-Encoding": "chunked"}}),
        ticket({"url": "http://x/", "headers": {"x-a": "1", "X-A": "2"}}),
        ticket({"url": "http://x/"}, md5="no"),
        ticket({"url": "http://x/"}, urls=[{"url": "http://x/"}] * (MAX_BLOCKS + 1)),
        '{"htsget": ' + "[" * 100_000,
    ],
)
def test_what_is_no_ticket_is_refused_in_words_of_our_own(text: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse(text)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert SECRET not in str(chain)
        chain = chain.__cause__


def test_a_page_that_is_no_ticket_is_refused_at_its_first_bytes() -> None:
    parser = TicketParser(Format.BAM)
    with pytest.raises(IntegrityError):
        parser.feed(b"<")
    with pytest.raises(IntegrityError):
        TicketParser(Format.BAM).feed(b" " * 300)


def test_a_ticket_without_end_is_given_up() -> None:
    parser = TicketParser(Format.BAM)
    parser.feed(b'{"htsget": {"urls": [')
    chunk = b'{"url": "http://x/"}, ' * (1 << 14)
    while parser.size + len(chunk) <= MAX_TICKET:
        parser.feed(chunk)
    with pytest.raises(IntegrityError, match="more than"):
        parser.feed(chunk)
    assert parser.size < MAX_TICKET + (2 << 20)


def test_another_format_than_was_asked_for_is_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="gives CRAM where BAM"):
        parse('{"htsget": {"format": "CRAM", "urls": [{"url": "http://x/"}]}}')


# ---- errors


@pytest.mark.parametrize(
    ("status", "name", "kind"),
    [
        (401, "InvalidAuthentication", OriginDenied),
        (403, "PermissionDenied", OriginDenied),
        (404, "NotFound", OriginNotFound),
        (413, "PayloadTooLarge", PayloadTooLarge),
        (400, "UnsupportedFormat", UnsupportedFormat),
        (400, "InvalidInput", InvalidInput),
        (400, "InvalidRange", InvalidRange),
        (400, "SomethingElse", IntegrityError),
        (401, "SomethingElse", OriginDenied),
    ],
)
def test_errors_by_their_names(status: int, name: str, kind: type[RefgenfsError]) -> None:
    body = json.dumps({"htsget": {"error": name, "message": f"token {SECRET} is wrong"}}).encode()
    error = parse_error(status, body)
    assert type(error) is kind
    assert SECRET not in str(error)
    with pytest.raises(kind if status != 401 or name != "SomethingElse" else IntegrityError):
        parse(body)


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"detail": "Not Found"}', b"\xff"])
def test_an_error_that_is_none_of_htsget_goes_by_its_status(body: bytes) -> None:
    assert isinstance(parse_error(404, body), OriginMissing)
    assert parse_error(400, body) is None
    assert parse_error(500, body) is None


# ---- blocks


@pytest.mark.parametrize(
    ("text", "start", "stop", "whole"),
    [
        ("", 0, None, False),
        ("bytes=5-9", 5, 10, False),
        ("bytes=5-", 5, None, False),
        ("bytes=-28", 0, None, True),
        ("bytes=0-1,5-9", 0, None, True),
        ("items=0-1", 0, None, True),
    ],
)
def test_ranges_that_can_be_cut_and_others(text: str, start: int, stop: int | None, whole: bool) -> None:
    place = place_of(BlockUrl("http://x/?secret", (("rANGE", text),) if text else ()))
    assert (place.start, place.stop, place.exact, place.whole) == (start, stop, text, whole)
    assert "secret" not in repr(place)


def test_a_range_that_ends_first_is_an_error() -> None:
    with pytest.raises(IntegrityError):
        place_of(BlockUrl("http://x/", (("Range", "bytes=9-5"),)))


def _ranges(*pairs: tuple[int, int], url: str = "http://x/a", classes: str = "") -> Ticket:
    known: dict[str, Class | None] = {"H": Class.HEADER, "B": Class.BODY, "-": None}
    kinds = [known[one] for one in classes or "-" * len(pairs)]
    return Ticket(
        Format.BAM,
        tuple(BlockUrl.of_range(url, *pair, class_) for pair, class_ in zip(pairs, kinds, strict=True)),
    )


def test_what_servers_that_repeat_headers_answer_is_known() -> None:
    assert joins_records_once(_ranges((0, 10), (20, 30), (40, 50)))
    assert joins_records_once(_ranges((0, 10), (20, 30), (40, 50), classes="HBB"))
    assert not joins_records_once(_ranges((0, 10), (20, 30), (0, 10), (35, 40)))
    assert not joins_records_once(_ranges((0, 10), (20, 30), (40, 50), (45, 48)))
    assert not joins_records_once(_ranges((0, 10), (20, 30), (40, 50), (60, 70), classes="HBHB"))
    end = BlockUrl.inline(b"the end")
    body = _ranges((0, 10)).urls
    assert joins_records_once(Ticket(Format.BAM, (*body, end)))
    assert not joins_records_once(Ticket(Format.BAM, (*body, end, BlockUrl("http://x/b"), end)))


def test_extents_outlive_a_daemon() -> None:
    query = Query("a/b", Format.BAM, regions=(Region("1", Interval(5, None)), Region("*")))
    extent = TicketBlocks(query, (TicketBlock(5, '"v"'), TicketBlock(9)), "00", b"end", ".bai")
    assert load_blocks(json.loads(json.dumps(dump_blocks(extent)))) == extent


@given(st.lists(st.integers(0, 20), max_size=6), st.integers(0, 5), st.data())
def test_pieces_are_what_slicing_is(lengths: list[int], tail: int, data: st.DataObject) -> None:
    bodies = [bytes([65 + at]) * length for at, length in enumerate(lengths)]
    whole = b"".join(bodies) + b"z" * tail
    extent = TicketBlocks(Query("a", Format.BAM), tuple(map(TicketBlock, lengths)), tail=b"z" * tail)
    assert extent.size == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    pieces = list(extent.pieces(start, stop))
    parts = [(b"z" * tail if one.index is None else bodies[one.index])[one.start : one.stop] for one in pieces]
    assert b"".join(parts) == whole[start:stop]
    assert all(parts)


def test_another_order_of_lengths_is_another_version() -> None:
    query = Query("a", Format.BAM)
    made = [
        TicketBlocks(query, (TicketBlock(1), TicketBlock(2))),
        TicketBlocks(query, (TicketBlock(2), TicketBlock(1))),
        TicketBlocks(query, (TicketBlock(1), TicketBlock(2, "v"))),
        TicketBlocks(query, (TicketBlock(1), TicketBlock(2)), "md5"),
        TicketBlocks(query, (TicketBlock(1), TicketBlock(2)), tail=b"t"),
    ]
    assert len({one.validator for one in made}) == len(made)


def test_percent_escapes_in_base64() -> None:
    text = base64.b64encode(b"\xfb\xff\xfe").decode().replace("+", "%2B").replace("/", "%2F")
    assert inline_data(f"DATA:;base64,{text}") == b"\xfb\xff\xfe"
