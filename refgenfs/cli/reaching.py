"""What `refgenfs doctor` asks of sources of files: of a web server a file, of a bucket a page, of a folder names."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial

import trio

from refgenfs.cli.check import Check
from refgenfs.config import HtsgetSource, HttpSource, LocalSource, S3Source
from refgenfs.core.errors import IntegrityError, OriginMissing, RefgenfsError, SizeUnknown, redact_url
from refgenfs.core.htsget.model import Query
from refgenfs.core.retry import RetryPolicy
from refgenfs.core.s3 import Bucket, Page, parse_page
from refgenfs.fetch.answers import OriginUnusable
from refgenfs.fetch.bridge import open_bridge
from refgenfs.fetch.http import Http
from refgenfs.fetch.local import check_root
from refgenfs.fetch.settings import Account, HttpSettings
from refgenfs.fetch.tickets import Tickets
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
    advice = "check url, ids, network, proxy and token_file; what is in the cache can be read without it"
    try:
        return trio.run(_ask_service, source)
    except RefgenfsError as exc:
        return Check("source", "fail", f"{source.name}: {exc}", advice)


async def _ask_service(source: HtsgetSource) -> Check:
    """Ask for the service's description, or, as older servers have none, for the ticket of the first file."""
    where = f"{source.name}: {redact_url(source.url)}"
    file = next((file for asset in source.asset for file in asset.files()), None)
    endpoint = "variants" if file is not None and not file[1].is_reads else "reads"
    urls = [f"{source.url.rstrip('/')}/{endpoint}/service-info"]
    async with open_bridge(grace=1.0) as bridge:
        http = Http(bridge, HttpSettings(accounts={source.name: account_of(source)}))
        tickets = Tickets(http, lambda _: [source.url])
        told: object = None
        try:
            with suppress(OriginMissing, OriginUnusable, IntegrityError):
                told = await http.get_json(urls, account=source.name, deadline=SECONDS, retry_for=0)
            if _describes_htsget(told):
                return Check("source", "ok", f"{where} answers")
            if file is None:
                advice = "check that url is a htsget server's, without /reads"
                return Check("source", "warn", f"{where} answers, and does not say that it gives tickets", advice)
            query = Query(file[2], file[1])
            await http.run(lambda: tickets.ask(source.name, query, patience=SECONDS))
            return Check("source", "ok", f"{where} answers, with a ticket")
        finally:
            with trio.move_on_after(1.0) as scope:
                scope.shield = True
                await http.aclose()


def _describes_htsget(told: object) -> bool:
    """Say whether a service's description is that of a htsget server (GA4GH service-info)."""
    kind = told.get("type") if isinstance(told, dict) else None
    return isinstance(told, dict) and (
        "htsget" in told or (isinstance(kind, dict) and kind.get("artifact") == "htsget")
    )


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
