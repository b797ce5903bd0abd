"""What `refgenfs doctor` asks of sources of files: of a web server a file, of a bucket a page, of a folder names."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial

import trio

from refgenfs.cli.check import Check
from refgenfs.config import HtsgetSource, HttpSource, LocalSource, S3Source
from refgenfs.core.errors import OriginMissing, RefgenfsError, SizeUnknown, redact_url
from refgenfs.core.retry import RetryPolicy
from refgenfs.core.s3 import Bucket, Page, parse_page
from refgenfs.fetch.answers import OriginUnusable
from refgenfs.fetch.bridge import open_bridge
from refgenfs.fetch.http import Http
from refgenfs.fetch.local import check_root
from refgenfs.fetch.settings import Account, HttpSettings
from refgenfs.sources.http import file_urls
from refgenfs.sources.making import account_of
from refgenfs.sources.websites import Site

SECONDS = 8.0  # of one question


def ask_files(source: HttpSource | S3Source | LocalSource) -> Check:
    """Ask a source one short question. Blocks; can be called in any thread."""
    try:
        if isinstance(source, LocalSource):
            return _ask_folder(source)
        if isinstance(source, HttpSource):
            return trio.run(_ask_website, source)
        bucket = source.place()
        page = trio.run(_ask_bucket, bucket, source.name, account_of(source))
        where = f"{source.name}: {bucket.shown}"
        if page.objects:
            return Check("source", "ok", f"{where} answers")
        return Check("source", "warn", f"{where} answers, and has no object", "check bucket and prefix")
    except RefgenfsError as exc:
        if isinstance(source, HttpSource):
            advice = "check url, files, credentials and proxy; what is in the cache can be read without it"
            return Check("source", "fail", f"{source.name}: {exc}", advice)
        advice = "check bucket, region, endpoint and credentials; what is in the cache can be read without it"
        return Check("source", "fail", f"{source.name}: {exc}", advice)


async def _ask_website(source: HttpSource) -> Check:
    """Ask for a page or a list that the source is found by, else for one of its files."""
    where = f"{source.name}: {redact_url(source.url)}"
    first = next(iter(source.asset), None)
    async with open_bridge(grace=1.0) as bridge:
        policy = RetryPolicy(retry_for=0.0, doubts=0)
        http = Http(bridge, HttpSettings(policy=policy, accounts={source.name: account_of(source)}))
        try:
            site = Site(http, source.name, [f"{source.url.rstrip('/')}/"], SECONDS)
            if source.manifest is not None or (first is not None and first.manifest is not None):
                listed = await site.listed(source.manifest or (first.manifest if first and first.manifest else ""))
                return Check("source", "ok", f"{where} answers, with a list of {len(listed):,} files")
            if source.layout is not None or (first is not None and first.folder is not None):
                page = await site.page((first.folder or "") if first and source.layout is None else "")
                if page.links:
                    return Check("source", "ok", f"{where} answers, with a page of a folder")
                advice = "it needs pages of folders (nginx: autoindex on), or a manifest, or assets by name"
                return Check("source", "fail", f"{where} answers with no page of a folder", advice)
            return await _ask_file(http, source, where)
        finally:
            with trio.move_on_after(1.0) as scope:
                scope.shield = True
                await http.aclose()


async def _ask_file(http: Http, source: HttpSource, where: str) -> Check:
    url = file_urls(source.asset[0].files[0], [f"{source.url.rstrip('/')}/"])[0]
    try:
        found = await http.head([url], account=source.name, deadline=SECONDS)
    except SizeUnknown:
        return Check(
            "source", "ok", f"{where} answers; it tells no sizes, so a file comes whole before its size shows"
        )
    how = "" if found.ranges else "; it gives no parts of files, so they come whole"
    return Check("source", "ok", f"{where} answers{how}")


def _ask_folder(source: LocalSource) -> Check:
    try:
        check_root(os.fspath(source.path))
    except RefgenfsError as exc:
        return Check("source", "fail", f"{source.name}: {exc}", "check path, and that this user may read it")
    return Check("source", "ok", f"{source.name}: {source.path} can be read")


def ask_htsget(source: HtsgetSource) -> Check:
    """Ask a htsget server how it is, with its token. Blocks; can be called in any thread."""
    where = f"{source.name}: {redact_url(source.url)}"
    advice = "check url, network, proxy and token_file; what is in the cache can be read without it"
    try:
        trio.run(_ask_service, source)
    except RefgenfsError as exc:
        return Check("source", "fail", f"{source.name}: {exc}", advice)
    return Check("source", "ok", f"{where} answers")


async def _ask_service(source: HtsgetSource) -> None:
    """Ask for the service's description; older servers have none, and say so."""
    endpoint = "reads" if any(asset.reads for asset in source.asset) or not source.asset else "variants"
    urls = [f"{source.url.rstrip('/')}/{endpoint}/service-info"]
    async with open_bridge(grace=1.0) as bridge:
        http = Http(bridge, HttpSettings(accounts={source.name: account_of(source)}))
        try:
            with suppress(OriginMissing, OriginUnusable):
                await http.get_json(urls, account=source.name, deadline=SECONDS, retry_for=0)
        finally:
            with trio.move_on_after(1.0) as scope:
                scope.shield = True
                await http.aclose()


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
