"""What a web server's page of a folder links to: nginx's autoindex, Apache's, Python's `http.server`, and their like.

Pure. Only what is below the page's own URL counts: no parent, no other host, nothing that a query makes of the page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit


@dataclass(frozen=True, slots=True)
class IndexPage:
    """The files and folders that a page links to, by their paths relative to it, each once, in its order.

    `links` counts all links, of whatever: an index of an empty folder has one to its parent.
    """

    files: tuple[str, ...]
    folders: tuple[str, ...]
    links: int


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self.base = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if href and tag == "a":
            self.found.append(href)
        elif href and tag == "base" and not self.base:
            self.base = href


def parse_index(html: str, url: str) -> IndexPage:
    """Return what the page at `url` (a folder's, ending with '/') links to below itself."""
    parser = _Links()
    parser.feed(html)
    parser.close()
    base = urljoin(url, parser.base) if parser.base else url
    paths = dict.fromkeys(_below(url, base, parser.found))
    folders = tuple(path[:-1] for path in paths if path.endswith("/"))
    return IndexPage(tuple(path for path in paths if not path.endswith("/")), folders, len(parser.found))


def _below(url: str, base: str, links: list[str]) -> Iterator[str]:
    home = urlsplit(url)
    for link in links:
        try:
            parts = urlsplit(urljoin(base, link.strip()))
        except ValueError:
            continue
        host = parts.netloc.rpartition("@")[2]
        if (parts.scheme, host.lower()) != (home.scheme, home.netloc.rpartition("@")[2].lower()):
            continue
        if parts.path.startswith(home.path) and "%2f" not in parts.path.lower():
            path = unquote(parts.path[len(home.path) :], errors="surrogateescape")
            if path and is_plain_path(path.removesuffix("/")):
                yield path


def is_plain_path(path: str) -> bool:
    """Say whether a relative path leads down only, by names that a file can have."""
    parts = path.split("/")
    return all(
        part not in ("", ".", "..") and "\0" not in part and len(part.encode(errors="surrogateescape")) <= 255
        for part in parts
    )
