"""What `refgenfs doctor` asks of sources of files: of a bucket its first page, of a folder its names."""

from __future__ import annotations

import os
from functools import partial

import trio

from refgenfs.cli.check import Check
from refgenfs.config import LocalSource, S3Source
from refgenfs.core.errors import RefgenfsError
from refgenfs.core.s3 import Bucket, Page, parse_page
from refgenfs.fetch.bridge import open_bridge
from refgenfs.fetch.http import Http
from refgenfs.fetch.local import check_root
from refgenfs.fetch.settings import Account, HttpSettings
from refgenfs.sources.making import account_of

SECONDS = 8.0  # of one question


def ask_files(source: S3Source | LocalSource) -> Check:
    """Ask a source one short question. Blocks; can be called in any thread."""
    try:
        if isinstance(source, LocalSource):
            return _ask_folder(source)
        bucket = source.place()
        page = trio.run(_ask_bucket, bucket, source.name, account_of(source))
        where = f"{source.name}: {bucket.shown}"
        if page.objects:
            return Check("source", "ok", f"{where} answers")
        return Check("source", "warn", f"{where} answers, and has no object", "check bucket and prefix")
    except RefgenfsError as exc:
        advice = "check bucket, region, endpoint and credentials; what is in the cache can be read without it"
        return Check("source", "fail", f"{source.name}: {exc}", advice)


def _ask_folder(source: LocalSource) -> Check:
    try:
        check_root(os.fspath(source.path))
    except RefgenfsError as exc:
        return Check("source", "fail", f"{source.name}: {exc}", "check path, and that this user may read it")
    return Check("source", "ok", f"{source.name}: {source.path} can be read")


async def _ask_bucket(bucket: Bucket, name: str, account: Account) -> Page:
    async with open_bridge(grace=1.0) as bridge:
        http = Http(bridge, HttpSettings(accounts={name: account}))
        try:
            decode = partial(parse_page, where=bucket.shown)
            return await http.get_document([bucket.page_url()], decode, account=name, deadline=SECONDS, retry_for=0)
        finally:
            with trio.move_on_after(1.0) as scope:
                scope.shield = True
                await http.aclose()
