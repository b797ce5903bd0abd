"""Pages of folders and lists of files: only what is below counts, whatever is written in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.errors import IntegrityError
from refgenfs.core.manifest import Listed, parse_manifest
from refgenfs.core.webindex import is_plain_path, parse_index

URL = "http://lab.example.org/genomes/GRCm39/"

NGINX = """<html><head><title>Index of /genomes/GRCm39/</title></head><body>
<h1>Index of /genomes/GRCm39/</h1><hr><pre><a href="../">../</a>
<a href="bwa/">bwa/</a>                                    01-Jan-2026 10:00       -
<a href="a%20b%26c.fa">a b&amp;c.fa</a>                    01-Jan-2026 10:00  1234
<a href="GRCm39.fa.gz">GRCm39.fa.gz</a>                    01-Jan-2026 10:00  883214
</pre><hr></body></html>"""
APACHE = """<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN"><html><body><table>
<tr><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th></tr>
<tr><td><a href="/genomes/">Parent Directory</a></td></tr>
<tr><td><a href="bwa/">bwa/</a></td><td align="right">2026-01-01 10:00  </td><td>  - </td></tr>
<tr><td><a href="GRCm39.fa.gz">GRCm39.fa.gz</a></td><td>2026-01-01 10:00  </td><td>863K</td></tr>
</table></body></html>"""
PYTHON = """<!DOCTYPE HTML><html lang="en"><body><h1>Directory listing for /genomes/GRCm39/</h1><hr><ul>
<li><a href="bwa/">bwa/</a></li><li><a href="GRCm39.fa.gz">GRCm39.fa.gz</a></li></ul><hr></body></html>"""
S3_SITE = """<html><body><a href="http://lab.example.org/genomes/GRCm39/GRCm39.fa.gz?versionId=3#top">x</a>
<A HREF='/genomes/GRCm39/bwa/'>bwa</A><a name=x>nothing</a><a href="">empty</a></body></html>"""


@pytest.mark.parametrize("html", [NGINX, APACHE, PYTHON, S3_SITE])
def test_pages_of_servers(html: str) -> None:
    page = parse_index(html, URL)
    assert page.folders == ("bwa",)
    assert [name for name in page.files if "&" not in name] == ["GRCm39.fa.gz"]
    assert page.links > 1


def test_names_are_those_of_the_files() -> None:
    assert parse_index(NGINX, URL).files == ("a b&c.fa", "GRCm39.fa.gz")


@pytest.mark.parametrize(
    "link",
    ["../", "/", "/genomes/", "http://other.example.org/genomes/GRCm39/x", "https://lab.example.org/genomes/GRCm39/x",
     "http://lab.example.org:81/genomes/GRCm39/x", "../GRCm38/x", "%2e%2e/x", "x/%2e%2e/%2e%2e/%2e%2e/y", "a%2fb",
     "..%2fx", "./", "", "?C=N", "#top", "mailto:eve@example.org", "javascript:x", "ftp://lab.example.org/x",
     "x%00y", "http://[", "n" * 256, "/genomes/GRCm39", "//other.example.org/x"],
)  # fmt: skip
def test_links_that_lead_elsewhere(link: str) -> None:
    page = parse_index(f'<a href="{link}">x</a>', URL)
    assert (page.files, page.folders) == ((), ())


def test_a_base_of_its_own_leads_no_further() -> None:
    page = parse_index('<base href="/genomes/"><a href="GRCm39/x">x</a><a href="y">y</a>', URL)
    assert page.files == ("x",)


@given(st.text(max_size=200) | st.text("<>a href=\"'/.%2e&;#?x", max_size=80))
def test_whatever_a_page_has_it_leads_down(html: str) -> None:
    page = parse_index(html, URL)
    assert all(is_plain_path(path) for path in (*page.files, *page.folders))


SUM = "d41d8cd98f00b204e9800998ecf8427e"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a.fa\nb.fa\n", [("a.fa", None), ("b.fa", None)]),
        ("# files\n\n./x/a.fa\r\n", [("x/a.fa", None)]),
        (f"{SUM}  a.fa\n{SUM} *b c.fa\n", [("a.fa", None), ("b c.fa", None)]),
        (f"{SUM * 2}  ./a.fa\n", [("a.fa", None)]),
        (f"MD5 (a b.fa) = {SUM}\nSHA256 (c) = {SUM * 2}\n", [("a b.fa", None), ("c", None)]),
        (f"a.fa 12\nb c.fa {SUM} 13\nd.fa 14 {SUM}\n", [("a.fa", 12), ("b c.fa", 13), ("d.fa", 14)]),
        (f"a 1.fa\t12\t{SUM}\nb.fa\t\t{SUM * 2}\n", [("a 1.fa", 12), ("b.fa", None)]),
        ("a.fa\na.fa\n", [("a.fa", None)]),
        ("../a\n/etc/passwd\nx/../../y\nhttp://h/x\nok\n", [("ok", None)]),
        (
            '["a.fa", {"name": "b.fa", "size": 3}, {"path": "x/c.fa"}]',
            [("a.fa", None), ("b.fa", 3), ("x/c.fa", None)],
        ),
        ('{"files": ["a.fa", {"name": "b", "size": -1}]}', [("a.fa", None), ("b", None)]),
        ("", []),
    ],
)
def test_lists(text: str, wanted: list[tuple[str, int | None]]) -> None:
    assert parse_manifest(text) == [Listed(path, size) for path, size in wanted]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<html></html>", "a page"),
        ('{"files": 3}', "no list"),
        ("[1]", "without a name"),
        ('["a"', "no JSON"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_what_is_no_list_is_said(text: str, wanted: str) -> None:
    with pytest.raises(IntegrityError, match=wanted):
        parse_manifest(text)


@given(st.text(max_size=300))
def test_any_text_is_a_list_or_none(text: str) -> None:
    try:
        found = parse_manifest(text)
    except IntegrityError:
        return
    assert all(is_plain_path(one.path) for one in found)
