"""`ticket`: which byte ranges of a file answer a query, as an htsget ticket."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import trio

from refgenfs.administration.parts import Daemon, names_of, parse_key, repeating, shown_name
from refgenfs.control import Operation, Progress
from refgenfs.core.catalog import AssetVersion
from refgenfs.core.content import ByteRange, FileFacts
from refgenfs.core.errors import ControlError, DeadlineExceeded, InvalidInput, NoPublicUrl, redact_url
from refgenfs.core.htsget.location import choose_file, given_url, gzi_of, index_of, public_url
from refgenfs.core.htsget.model import Class, Format, Query
from refgenfs.htsfiles import Indexed, open_indexed
from refgenfs.library import Library
from refgenfs.reader.openbytes import OpenBytes
from refgenfs.reader.reader import Reader
from refgenfs.regions.indexed import made_index

DEADLINE = 300.0  # seconds: an index of 64 MiB over a slow network
MOST_REGIONS = 1000


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of the operation, parsed."""

    regions: Sequence[str]
    class_: Class | None
    format: Format | None
    file: str | None
    url: str | None


class Tickets:
    """The operation `ticket`. One search at a time: each may have an index of some ten megabytes in memory."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._turn = trio.Lock()

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {"ticket": self.ticket}

    async def ticket(self, arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Return the ticket for regions of a file, for its header, or for all of it.

        Reads the file's header and index, which may have to come from the origin first.
        """
        key, request = parse_key(arguments.get("key")), _parse(arguments)
        version = self._daemon.catalog.snapshot.version(key)

        async def tell() -> None:
            await progress({"key": str(key)})

        try:
            with trio.fail_after(DEADLINE):
                async with repeating(tell):
                    chosen = await names_of(self._daemon, version, key.seek_key)
                    names = await self._daemon.library.names(version)
                    return await self._search(version, self._choose(version, chosen, request.file), names, request)
        except trio.TooSlowError as exc:
            raise DeadlineExceeded(f"no ticket for {key} within {DEADLINE:g} s") from exc

    def _choose(self, version: AssetVersion, names: Sequence[str], wanted: str | None) -> str:
        """Return the origin's name of the file that is meant; people name it as it is shown."""
        shown = {shown_name(version, name): name for name in names}
        shown |= {name: name for name in names if name == wanted}
        return shown[choose_file(list(shown), wanted, str(version.key))]

    async def _search(
        self, version: AssetVersion, name: str, names: Sequence[str], request: Request
    ) -> dict[str, Any]:
        facts = await self._daemon.library.facts(version, name)
        shown = shown_name(version, name)
        url = given_url(request.url, shown) if request.url is not None else self._url_of(facts, shown)
        async with self._turn:
            indexed = await self._open(version, name, names, facts, regions=bool(request.regions))
            query = Query(shown, request.format, request.class_, tuple(map(indexed.region, request.regions)))
            answer = await indexed.search(query)
        return dict(json.loads(answer.ticket(url).to_json()))

    async def _open(
        self, version: AssetVersion, name: str, names: Sequence[str], facts: FileFacts, *, regions: bool
    ) -> Indexed:
        index, gzi = (index_of(name, names), gzi_of(name, names)) if regions else (None, None)
        if index is None and regions:
            index = await made_index(self._daemon.library, version, name)
        readers = [
            None if one is None else await _open(self._daemon.library, self._daemon.reader, version, one)
            for one in (index, gzi)
        ]
        data = OpenBytes.of(self._daemon.reader, await self._daemon.library.open(facts, version, name))
        return await open_indexed(data, *readers)

    def _url_of(self, facts: FileFacts, name: str) -> str:
        """Return where others can read a file; raise NoPublicUrl where they can't, or only with our token."""
        url = public_url(facts.extent, name)
        if isinstance(facts.extent, ByteRange) and self._daemon.http.takes_token(url, facts.source):
            raise NoPublicUrl(
                f"{redact_url(url)} is read with the credentials of the source {facts.source!r}, which a ticket "
                "must not have; say with --url where others get the file"
            )
        return url


async def _open(library: Library, reader: Reader, version: AssetVersion, name: str) -> OpenBytes:
    located = await library.locate(version, name)
    return OpenBytes.of(reader, await library.open(located.facts, located.version, located.name))


def _parse(arguments: dict[str, Any]) -> Request:
    regions = arguments.get("regions", [])
    if not isinstance(regions, list) or not all(isinstance(one, str) for one in regions):
        raise ControlError("a request's regions are a list of texts")
    if len(regions) > MOST_REGIONS:
        raise InvalidInput(f"{len(regions)} regions; {MOST_REGIONS} are the most of one ticket")
    text = {name: arguments.get(name) for name in ("class", "format", "file", "url")}
    if not all(one is None or isinstance(one, str) for one in text.values()):
        raise ControlError("a request's class, format, file and url are texts")
    if text["class"] not in {None, Class.HEADER}:
        raise InvalidInput("class can only be header")
    if text["format"] is not None and text["format"] not in set(Format):
        raise InvalidInput(f"format can only be {', '.join(Format)}")
    return Request(
        tuple(regions),
        Class(text["class"]) if text["class"] else None,
        Format(text["format"]) if text["format"] else None,
        text["file"],
        text["url"],
    )
