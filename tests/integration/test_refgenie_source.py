"""The refgenie source against the real server, in both of its modes."""

from __future__ import annotations

import hashlib
import logging
import tarfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.request import urlopen

import pytest
import trio

from refgenfs.core.catalog import SourceCatalog, iter_versions, merge
from refgenfs.core.content import ByteRange, content_id
from refgenfs.core.errors import OriginUnavailable, RefgenfsError
from refgenfs.core.retry import RetryPolicy
from refgenfs.fetch.bridge import open_bridge
from refgenfs.fetch.http import Http, RemoteFacts
from refgenfs.fetch.settings import HttpSettings
from refgenfs.sources import Source
from refgenfs.sources.refgenie import RefgenieSource

if TYPE_CHECKING:  # pytest loads the two itself, to rewrite their asserts
    from tests.support.nginx import NginxFactory
    from tests.support.refgenieserver import RefgenieServer

pytest_plugins = ("tests.support.refgenieserver", "tests.support.nginx")
# The first test of a machine's first run waits for the real refgenie to be installed, and to build.
pytestmark = [pytest.mark.needs_data, pytest.mark.slow, pytest.mark.timeout(900)]


@asynccontextmanager
async def open_http() -> AsyncIterator[Http]:
    async with open_bridge() as bridge:
        http = Http(bridge, HttpSettings(policy=RetryPolicy(retry_for=1.0)))
        try:
            yield http
        finally:
            await http.aclose()


@asynccontextmanager
async def open_source(
    url: str, *, mirrors: tuple[str, ...] = (), remotes: bool = True
) -> AsyncIterator[RefgenieSource]:
    async with open_http() as http:
        yield RefgenieSource(http, name="real", url=url, mirrors=mirrors, remotes=remotes, timeout=2.0)


async def read(url: str) -> bytes:
    """Return what a plain client gets."""

    def get() -> bytes:
        with urlopen(url) as answer:
            body: bytes = answer.read()
            return body

    return await trio.to_thread.run_sync(get)


def check_real(catalog: SourceCatalog) -> None:
    """Check what the real builds are known to hold."""
    snapshot = merge([catalog])
    assert len(snapshot.names) == 5
    tiny = snapshot.genome("tinyA_alias")
    assert tiny is snapshot.genome(tiny.digest)
    assert tiny.aliases == ("tinyA", "tinyA_alias")
    assert tiny.description == "tiny genome A"
    bowtie2 = tiny.assets["bowtie2_index"]
    assert (bowtie2.default_tag, sorted(bowtie2.tags)) == ("default", ["default", "second"])
    assert bowtie2.description.startswith("Genome index for bowtie")
    fasta = tiny.assets["fasta"].version(None)
    assert fasta.seek_keys["fai"] == f"{tiny.digest}.fa.fai"
    assert len(fasta.asset_digest) == len(fasta.archive_digest) == 32
    assert bowtie2.version("second").parents == (f"{tiny.digest}/fasta:default",)


async def test_one_call_and_pieces_give_one_catalog(archive_server: RefgenieServer, nginx: NginxFactory) -> None:
    counted = nginx(archive_server.url)
    async with open_source(counted.url) as source:
        whole = await source.catalog()
    check_real(whole)
    served = counted.log()
    assert served[0].path == "/_private_api/genomes/dict"
    assert all(answer.status < 400 for answer in served)

    for status in (403, 404, 500):
        denying = nginx(archive_server.url, deny=["/_private_api"], deny_status=status)
        async with open_source(denying.url) as source:
            assert await source.catalog() == whole
            first = len(denying.log())
            assert await source.catalog() == whole  # recipes are not asked for again
        assert first < len(denying.log()) < 2 * first


async def test_a_server_below_a_path(archive_server: RefgenieServer, nginx: NginxFactory) -> None:
    for deny in ([], ["/_private_api"]):
        proxy = nginx(archive_server.url, deny=deny, prefix="/mirror/refgenie")
        async with open_source(proxy.url + "/") as source:
            catalog = await source.catalog()
            check_real(catalog)
            version = next(iter_versions(catalog))
            assert await source.listing(version)
            archive = await read(source.archive(version).urls[0])
            assert hashlib.md5(archive).hexdigest() == version.archive_digest


async def test_a_mirror_answers_for_a_server_that_is_away(
    archive_server: RefgenieServer, nginx: NginxFactory
) -> None:
    away = nginx(archive_server.url)
    away.stop()
    async with open_source(away.url, mirrors=(archive_server.url,)) as source:
        catalog = await source.catalog()
        check_real(catalog)
        version = next(iter_versions(catalog))
        assert [url.split("/v3/")[0] for url in source.archive(version).urls] == [away.url, archive_server.url]


async def test_listings_are_what_the_archives_hold(archive_server: RefgenieServer) -> None:
    async with open_source(archive_server.url) as source:
        for version in iter_versions(await source.catalog()):
            listing = await source.listing(version)
            folder = archive_server.archives / version.genome_digest
            with tarfile.open(folder / f"{version.asset}__{version.tag}.tgz") as tar:
                members = [member.name.partition("/")[2] for member in tar if not member.isdir()]
            assert listing == tuple(sorted(members))
            assert source.unpacked(version) is None
            assert await source.facts(version, members[0]) is None
        assert await source.listing(replace(version, tag="nope")) is None


async def test_facts_of_unpacked_copies(remotes_server: RefgenieServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with open_source(remotes_server.url) as source:
        versions = tuple(iter_versions(await source.catalog()))
        for version in versions:
            folder = remotes_server.archives / version.genome_digest / f"{version.asset}__{version.tag}"
            listing = await source.listing(version)
            assert listing == tuple(sorted(path.name for path in folder.iterdir()))
            for name in listing:
                facts = await source.facts(version, name)
                assert facts is not None
                assert facts.size == (folder / name).stat().st_size
                assert facts.mtime == int((folder / name).stat().st_mtime)
                assert facts.content == content_id("real", version.asset_digest, name)
                assert isinstance(facts.extent, ByteRange)
                assert facts.extent.validator
                assert await read(facts.extent.urls[0]) == (folder / name).read_bytes()
        version = versions[-1]
        name = version.seek_keys["fasta_bgz"]
        salted = await source.facts(version, name, None)
        assert salted is not None
        assert isinstance(salted.extent, ByteRange)
        salt = salted.extent.validator
        assert salted.content == content_id("real", version.asset_digest, name, salt)
        assert await source.facts(version, "no such file") is None
        assert await source.facts(replace(version, tag="nope"), name) is None
    assert not caplog.records


async def test_remotes_can_be_off(remotes_server: RefgenieServer) -> None:
    async with open_source(remotes_server.url, remotes=False) as source:
        version = next(iter_versions(await source.catalog()))
        assert source.unpacked(version) is None
        archive = await read(source.archive(version).urls[0])
        assert hashlib.md5(archive).hexdigest() == version.archive_digest


async def test_where_copies_are_is_kept(remotes_server: RefgenieServer, nginx: NginxFactory) -> None:
    static = nginx(remotes_server.static_url)
    server = nginx(remotes_server.url, rewrite={remotes_server.static_url: static.url})
    async with open_source(server.url) as source:
        version = next(iter_versions(await source.catalog()))
        state = source.state()
        server.stop()
        with pytest.raises(OriginUnavailable):
            await source.catalog()
        assert source.unpacked(version) is not None
    async with open_source(server.url) as source:
        assert source.unpacked(version) is None
        source.restore(state)
        name = next(iter(version.seek_keys.values()))
        folder = source.unpacked(version)
        assert folder is not None
        assert folder.startswith(static.url)
        facts = await source.facts(version, f"{version.genome_digest}.1.bt2")
        assert facts is not None
        assert (static.log()[-1].method, static.log()[-1].status) == ("HEAD", 200)
        static.stop()
        with pytest.raises(RefgenfsError):  # out of reach is not "no copy"
            await source.facts(version, name)
        for odd in (None, 1, {"prefix": 1}, {"prefix": None}):
            source.restore(odd)
        assert source.unpacked(version) == folder


@pytest.mark.parametrize("size", [0, 5])
@pytest.mark.parametrize(("told", "shown"), [(0.0, 1_700_000_000.0), (1_600_000_000.0, 1_600_000_000.0)])
async def test_a_file_whose_host_tells_no_time_has_that_when_it_was_asked(
    remotes_server: RefgenieServer, size: int, told: float, shown: float
) -> None:
    async with open_source(remotes_server.url) as real:
        version = next(iter_versions(await real.catalog()))
        state = real.state()

    class Dateless:
        async def head(self, urls: Sequence[str], **_: object) -> RemoteFacts:
            return RemoteFacts(urls[0], size, '"1"', told)

    source = RefgenieSource(cast("Http", Dateless()), name="s", url="http://h", wall=lambda: 1_700_000_000.0)
    source.restore(state)
    facts = await source.facts(version, "x")
    assert facts is not None
    assert (facts.size, facts.mtime) == (size, shown)


async def test_what_the_server_says_now(archive_server: RefgenieServer) -> None:
    async with open_source(archive_server.url) as source:
        version = next(iter_versions(await source.catalog()))
        assert await source.fresh_version(version) == version
        assert await source.fresh_version(replace(version, archive_digest="0" * 32)) == version
        assert await source.fresh_version(replace(version, tag="nope")) is None


async def test_nobody_there() -> None:
    async with open_source("http://127.0.0.1:9") as source:
        with pytest.raises(OriginUnavailable):
            await source.catalog()


def test_the_client_fits() -> None:
    """The HTTP client and the source have the types that they are used by."""

    def fits(http: Http) -> Source:
        return RefgenieSource(http, name="s", url="http://h")

    assert callable(fits)


def test_the_fixture_ends_what_it_started(remotes_server: RefgenieServer) -> None:
    assert len(remotes_server.pids) == 2
    assert all(Path(f"/proc/{pid}").exists() for pid in remotes_server.pids)
    assert all(path.is_file() for path in remotes_server.fasta.values())
