"""What a web server has, found from its pages of folders or from a list: relative paths, bounded in every way."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from urllib.parse import quote

import trio

from refgenfs.core.errors import IntegrityError, OriginDenied, OriginMissing
from refgenfs.core.manifest import Listed, parse_manifest
from refgenfs.core.webindex import IndexPage, parse_index
from refgenfs.sources.asking import Asker, ask_all

log = logging.getLogger(__name__)

AT_A_TIME = 6  # pages; two of a host's connections stay free
DEPTH = 8  # folders below the first
PAGES = 2_000
FILES = 100_000
LONGEST = 16 * 1024 * 1024  # characters of a page or a list


class Site:
    """A web server and its mirrors; `bases` end with '/'. `deadline` (seconds) is a request's with its retries."""

    def __init__(self, http: Asker, account: str, bases: Sequence[str], deadline: float) -> None:
        self._http = http
        self._account = account
        self._bases = bases
        self._deadline = deadline

    async def listed(self, path: str) -> list[Listed]:
        """Return the files of a list; their paths are relative to the server. Raises the origin's errors."""
        text = await self._text(quote(path))
        try:
            found = parse_manifest(text)
        except IntegrityError as exc:
            raise IntegrityError(f"{path}: {exc}") from exc
        if len(found) > FILES:
            raise IntegrityError(f"{path}: more than {FILES} files")
        folder = path.rpartition("/")[0]
        return [Listed(f"{folder}/{one.path}" if folder else one.path, one.size) for one in found]

    async def crawl(self, folder: str) -> list[str]:
        """Return the paths, relative to the server, of all files below a folder, as its pages have them.

        A folder below it that is denied, or not there, is passed over. Raises the origin's errors, and IntegrityError
        for what is no such page, or too much.
        """
        first = await self.page(folder)
        if not first.links:
            raise IntegrityError(f"{self._url(folder)}: it is no page of a folder, for it has no links")
        files = _in(folder, first.files)
        seen = {folder}
        level = _in(folder, first.folders)
        for _ in range(DEPTH):
            level = [path for path in dict.fromkeys(level) if path not in seen]
            seen.update(level)
            if len(seen) > PAGES:
                raise IntegrityError(f"{self._url(folder)}: more than {PAGES} folders; name some of them")
            found = await self._pages(level)
            level = []
            for path, page in found:
                files += _in(path, page.files)
                level += _in(path, page.folders)
            if len(files) > FILES:
                raise IntegrityError(f"{self._url(folder)}: more than {FILES} files; name some folders of it")
            if not level:
                break
        else:
            log.warning("source %s: folders more than %d deep are left out", self._account, DEPTH)
        return list(dict.fromkeys(files))

    async def _pages(self, folders: Sequence[str]) -> list[tuple[str, IndexPage]]:
        """Return the pages of folders, in their order; without those that are denied or not there."""

        async def look(path: str) -> IndexPage | None:
            try:
                return await self.page(path)
            except (OriginMissing, OriginDenied) as exc:
                log.info("%s: a folder is passed over: %s", self._account, exc)
                return None

        found = await ask_all(folders, look, at_a_time=AT_A_TIME)
        return [(path, page) for path in folders if (page := found[path]) is not None]

    async def page(self, folder: str) -> IndexPage:
        """Return what the server's page of a folder links to. Raises the origin's errors."""
        text = await self._text(_quoted(folder))
        url = self._url(folder)
        if len(text) < 64 * 1024:
            return parse_index(text, url)
        return await trio.to_thread.run_sync(parse_index, text, url)

    def _url(self, folder: str) -> str:
        return self._bases[0] + _quoted(folder)

    async def _text(self, path: str) -> str:
        urls = [base + path for base in self._bases]
        text = await self._http.get_text(urls, account=self._account, deadline=self._deadline)
        if len(text) > LONGEST:
            raise IntegrityError(f"{path}: more than {LONGEST} characters")
        return text


def _quoted(folder: str) -> str:
    return f"{quote(folder, errors='surrogateescape')}/" if folder else ""


def _in(folder: str, paths: Sequence[str]) -> list[str]:
    return [f"{folder}/{path}" if folder else path for path in paths]
