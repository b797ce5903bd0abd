"""The catalog over sources that are fake, with a clock that is too: what is shown, asked, kept and shared."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.abc import Clock
from trio.testing import MockClock, wait_all_tasks_blocked

from refgenfs.catalog import Catalog
from refgenfs.catalog.details import facts_key
from refgenfs.catalog.listings import listing_key
from refgenfs.catalog.notebook import LedgerLike
from refgenfs.core.catalog import Asset, AssetVersion, CatalogSnapshot, Genome, ListedFile, SourceCatalog
from refgenfs.core.catalog_json import JSONValue
from refgenfs.core.content import ArchiveRef, ByteRange, Extent, FileFacts, content_id
from refgenfs.core.errors import (
    CacheError,
    IntegrityError,
    NotInCatalog,
    OriginMissing,
    OriginUnavailable,
    RefgenfsError,
    SizeUnknown,
    StaleContent,
)

DAY = 86_400.0
HOUR = 3_600.0


class MemoryLedger:
    """A ledger that lives as long as the test, and through JSON as the real one."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}
        self.broken = False
        self._lock = threading.Lock()

    def get(self, key: str) -> JSONValue | None:
        self._check()
        with self._lock:
            text = self.rows.get(key)
        value: JSONValue = None if text is None else json.loads(text)
        return value

    def set(self, key: str, value: JSONValue) -> None:
        self._check()
        with self._lock:
            self.rows[key] = json.dumps(value)

    def _check(self) -> None:
        if self.broken:
            raise CacheError("the disk is on fire")


class FakeSource:
    """A source whose origin the test plays: it answers at once, is `away`, or is held by `gate`."""

    kind = "refgenie"
    hold: float | None = None

    def __init__(self, name: str = "lab", genomes: tuple[Genome, ...] = ()) -> None:
        self.name = name
        self.url = f"http://user:secret@{name}.example/"
        self.says = SourceCatalog(name, genomes)
        self.names: dict[str, tuple[str, ...] | None] = {}  # by asset:tag; else FILES
        self.sizes: dict[str, int | None] = {}  # by name; else 7
        self.validator = '"1"'
        self.away: RefgenfsError | None = None
        self.gate: trio.Event | None = None
        self.copies = True
        self.asked: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = 0

    async def _answer(self, what: str) -> None:
        self.asked[what] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.gate is not None:
                await self.gate.wait()
            await trio.lowlevel.checkpoint()
            if self.away is not None:
                raise self.away
        finally:
            self.in_flight -= 1

    async def catalog(self, known: SourceCatalog | None = None) -> SourceCatalog:
        await self._answer("catalog")
        return self.says

    async def listing(self, version: AssetVersion) -> tuple[str, ...] | None:
        place = f"{version.asset}:{version.tag}"
        await self._answer(f"listing {place}")
        return self.names.get(place, FILES)

    def unpacked(self, version: AssetVersion) -> str | None:
        return f"http://static/{version.asset}__{version.tag}/" if self.copies else None

    async def facts(
        self, version: AssetVersion, name: str, salt: str | None = "", *, patience: float | None = None
    ) -> FileFacts | None:
        await self._answer(f"facts {name}" if patience is None else f"facts {name} again")
        size = self.sizes.get(name, 7)
        if size is None:
            return None
        salt = self.validator if salt is None else salt
        cid = content_id(self.name, version.asset_digest, name, salt)
        extent = ByteRange((f"{self.unpacked(version)}{name}",), self.validator)
        return FileFacts(cid, size, 1.0, extent, self.name, "range")

    def name_of(self, version: AssetVersion, extent: Extent) -> str | None:
        folder = self.unpacked(version)
        url = extent.urls[0] if isinstance(extent, ByteRange) else ""
        return url.removeprefix(folder) if folder is not None and url.startswith(folder) else None

    def archive(self, version: AssetVersion) -> ArchiveRef | None:
        key = f"{version.genome_digest}/{version.asset}:{version.tag}"
        return ArchiveRef(self.name, key, version.asset_digest, version.archive_digest, ("http://a",))

    async def fresh_version(self, version: AssetVersion) -> AssetVersion | None:
        await self._answer("fresh")
        for genome in self.says.genomes:
            return genome.assets[version.asset].tags.get(version.tag)
        return None

    def state(self) -> JSONValue:
        return {"copies": self.copies}

    def restore(self, state: object) -> None:
        assert isinstance(state, dict)
        self.copies = state["copies"]


FILES = ("d1.fa", "d1.fa.fai", "sub/d1.txt")
AWAY = OriginUnavailable("http://lab.example/: no connection")


def make_genome(digest: str = "d1", assets: int = 1, version: str = "v1", source: str = "lab") -> Genome:
    def asset(name: str) -> Asset:
        tag = AssetVersion(source, digest, f"alias-{digest}", name, "default", f"{version}-{name}")
        return Asset(name, "default", {"default": tag})

    names = [f"asset{number}" for number in range(assets)]
    return Genome(digest, (f"alias-{digest}",), {name: asset(name) for name in names})


def version_of(catalog: Catalog, asset: str = "asset0") -> AssetVersion:
    return catalog.snapshot.asset("d1", asset).version(None)


class Setup(Clock):
    """A source, a ledger and a clock that the test moves; `running` is one life of a daemon's catalog.

    It is the clock itself, because pytest-trio runs a test on the clock that is among its arguments.
    """

    def __init__(self) -> None:
        self._clock = MockClock()
        self.ledger = MemoryLedger()
        self.source = FakeSource(genomes=(make_genome(),))

    def start_clock(self) -> None:
        self._clock.start_clock()

    def current_time(self) -> float:
        return self._clock.current_time()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return self._clock.deadline_to_sleep_time(deadline)

    def make(self, *sources: FakeSource) -> Catalog:
        return Catalog(
            sources or [self.source],
            self.ledger,
            refresh=HOUR,
            wall=lambda: 1e9 + trio.current_time(),
            dice=lambda: 0.5,
        )

    @asynccontextmanager
    async def running(self, *sources: FakeSource) -> AsyncIterator[Catalog]:
        catalog = self.make(*sources)
        await catalog.load()
        async with trio.open_nursery() as nursery:
            await nursery.start(catalog.run)
            yield catalog
            nursery.cancel_scope.cancel()

    async def pass_time(self, seconds: float) -> None:
        self._clock.jump(seconds)
        await settle()


async def settle() -> None:
    """Wait until nothing moves, work in threads included."""
    for _ in range(3):
        await wait_all_tasks_blocked(0.02)


async def until(said: Callable[[], bool]) -> None:
    """Wait, in real time, until something is so."""
    for _ in range(500):
        if said():
            return
        await wait_all_tasks_blocked(0.005)
    raise AssertionError("it never came to be")


@pytest.fixture
def setup() -> Setup:
    return Setup()


def snapshot_names(catalog: Catalog) -> tuple[str, ...]:
    return catalog.snapshot.names


# -- the snapshot ------------------------------------------------------------------------------------------


async def test_the_first_refresh_fills_an_empty_catalog(setup: Setup) -> None:
    async with setup.running() as catalog:
        assert snapshot_names(catalog) == ()
        (status,) = await catalog.refresh()
        assert snapshot_names(catalog) == ("alias-d1", "d1")
        assert (status.healthy, status.error, status.genomes, status.assets) == (True, "", 1, 1)
        assert status.url == "http://lab.example/"
        assert status.type == "refgenie"
        assert status.last_refresh == pytest.approx(1e9 + trio.current_time())


async def test_with_the_server_away_the_kept_catalog_is_shown(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        await settle()
    setup.source.away = AWAY
    setup.source.copies = False
    catalog = setup.make()
    await catalog.load()  # before anything runs
    assert snapshot_names(catalog) == ("alias-d1", "d1")
    assert setup.source.copies  # what the source has to know came back too
    async with setup.running() as catalog:
        (status,) = await catalog.refresh()
        assert snapshot_names(catalog) == ("alias-d1", "d1")
        assert not status.healthy
        assert "no connection" in status.error
        assert status.last_refresh is not None
        assert await catalog.listing(version_of(catalog)) == FILES  # warmed up in the first life
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "its last catalog is shown" in caplog.text


async def test_the_catalog_of_another_server_is_not_shown(setup: Setup) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        await settle()
    setup.source.url = "http://other.example/"
    catalog = setup.make()
    await catalog.load()
    assert snapshot_names(catalog) == ()


@pytest.mark.parametrize("damage", ['{"version": 99}', "7", '{"version": 1, "source": "lab", "genomes": [{}]}'])
async def test_a_damaged_kept_catalog_is_not_shown(
    setup: Setup, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        await settle()
    setup.ledger.rows["catalog/lab"] = damage
    catalog = setup.make()
    await catalog.load()
    assert snapshot_names(catalog) == ()
    assert "kept catalog" in caplog.text


async def test_refreshes_come_by_themselves(setup: Setup) -> None:
    async with setup.running() as catalog:
        await settle()
        assert setup.source.asked["catalog"] == 1
        setup.source.says = SourceCatalog("lab", (make_genome(), make_genome("d2")))
        await setup.pass_time(HOUR - 1)
        assert setup.source.asked["catalog"] == 1
        await setup.pass_time(2)
        assert setup.source.asked["catalog"] == 2
        assert snapshot_names(catalog) == ("alias-d1", "alias-d2", "d1", "d2")


async def test_a_source_that_fails_is_asked_sooner_and_heals(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    setup.source.away = AWAY
    async with setup.running() as catalog:
        await settle()
        for count, pause in enumerate([5, 10, 20, 40, 80, 160, 300, 300], 1):
            await setup.pass_time(pause - 0.5)
            assert setup.source.asked["catalog"] == count
            await setup.pass_time(0.5)
            assert setup.source.asked["catalog"] == count + 1
        setup.source.away = None
        await setup.pass_time(301)
        assert catalog.status()[0].healthy
        assert snapshot_names(catalog) == ("alias-d1", "d1")
    levels = [record.levelname for record in caplog.records if record.name.startswith("refgenfs")]
    assert levels == ["WARNING", "INFO"]


@pytest.mark.parametrize("error", [IntegrityError("/p: odd"), OriginMissing("404"), ValueError("a bug")])
async def test_whatever_goes_wrong_the_last_catalog_stays(
    setup: Setup, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        setup.source.away = error  # type: ignore[assignment]
        (status,) = await catalog.refresh()
        assert not status.healthy
        assert snapshot_names(catalog) == ("alias-d1", "d1")
    assert caplog.records


async def test_a_server_that_says_it_has_nothing_is_believed(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        setup.source.says = SourceCatalog("lab", ())
        await catalog.refresh()
        assert snapshot_names(catalog) == ()
    assert "no genomes any more" in caplog.text


async def test_changes_are_told_once_and_only_changes(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[CatalogSnapshot, CatalogSnapshot]] = []

    def fail(old: CatalogSnapshot, new: CatalogSnapshot) -> None:
        raise ValueError("a bug")

    async with setup.running() as catalog:
        catalog.on_change(fail)
        catalog.on_change(lambda old, new: told.append((old, new)))
        first = catalog.snapshot
        await catalog.refresh()
        second = catalog.snapshot
        setup.source.says = SourceCatalog("lab", (make_genome(),))  # equal, not the same
        await catalog.refresh()
        assert catalog.snapshot is second
        setup.source.says = SourceCatalog("lab", (make_genome(version="v2"),))
        await catalog.refresh()
        assert told == [(first, second), (second, catalog.snapshot)]
    assert caplog.text.count("ValueError: a bug") == 2


async def test_callers_share_a_refresh_and_may_give_up(setup: Setup) -> None:
    setup.source.gate = trio.Event()
    async with setup.running() as catalog:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(catalog.refresh)
            await settle()
            nursery.cancel_scope.cancel()
        assert setup.source.asked["catalog"] == 1
        setup.source.gate.set()
        await until(lambda: snapshot_names(catalog) == ("alias-d1", "d1"))
        assert setup.source.asked["catalog"] == 1


async def test_one_source_away_leaves_the_others(setup: Setup) -> None:
    other = FakeSource("other", (make_genome("d2", source="other"),))
    setup.source.gate = trio.Event()  # asked, and silent
    async with setup.running(setup.source, other) as catalog:
        await until(lambda: snapshot_names(catalog) == ("alias-d2", "d2"))
        assert [status.genomes for status in catalog.status()] == [0, 1]
        setup.source.gate.set()
        await until(lambda: len(snapshot_names(catalog)) == 4)


async def test_a_broken_ledger_does_not_stop_the_catalog(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    setup.ledger.broken = True
    async with setup.running() as catalog:
        await catalog.refresh()
        version = version_of(catalog)
        assert await catalog.listing(version) == FILES
        assert await catalog.facts(version, "d1.fa") is not None
        await settle()
        await setup.pass_time(1)
        assert await catalog.facts(version, "d1.fa") is not None
        assert setup.source.asked["facts d1.fa"] == 1
    assert len(caplog.records) == 1
    assert "the disk is on fire" in caplog.text


# -- listings ----------------------------------------------------------------------------------------------


async def test_a_listing_is_asked_for_once(setup: Setup) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        setup.source.gate = trio.Event()
        version = replace(version_of(catalog), tag="other")
        found = []

        async def look() -> None:
            found.append(await catalog.listing(version))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(look)
            await settle()
            setup.source.gate.set()
        assert found == [FILES] * 10
        assert await catalog.listing(version) == FILES
        assert setup.source.asked["listing asset0:other"] == 1
    setup.source.away = AWAY
    async with setup.running() as catalog:  # the next life has it from the ledger
        assert await catalog.listing(version) == FILES
        with pytest.raises(OriginUnavailable):
            await catalog.listing(replace(version, asset_digest="v2"))  # rebuilt: another version


async def test_who_gives_up_waiting_does_not_end_the_question(setup: Setup) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        await settle()
        setup.source.gate = trio.Event()
        version = replace(version_of(catalog), tag="other")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(catalog.listing, version)
            await settle()
            nursery.cancel_scope.cancel()
        setup.source.gate.set()
        await settle()
        setup.source.away = AWAY
        assert await catalog.listing(version) == FILES


async def test_no_listing_is_remembered_for_a_while(setup: Setup) -> None:
    setup.source.names["asset0:default"] = None
    async with setup.running() as catalog:
        await catalog.refresh()
        await settle()
        version = version_of(catalog)
        assert await catalog.listing(version) is None
        assert setup.source.asked["listing asset0:default"] == 1
        setup.source.away = AWAY
        await setup.pass_time(2 * HOUR)
        assert await catalog.listing(version) is None  # out of reach: what it said last
        setup.source.away = None
        setup.source.names.clear()
        assert await catalog.listing(version) == FILES


async def test_every_caller_gets_the_error_and_nothing_is_kept(setup: Setup) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        await settle()
        version = replace(version_of(catalog), tag="other")
        setup.source.away = AWAY
        for _ in range(2):
            with pytest.raises(OriginUnavailable, match="no connection"):
                await catalog.listing(version)
        assert listing_key(version) not in setup.ledger.rows
        setup.source.away = None
        assert await catalog.listing(version) == FILES


async def test_before_and_after_its_life_a_catalog_answers_what_it_knows(setup: Setup) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        version = version_of(catalog)
        assert await catalog.listing(version) == FILES
    assert await catalog.listing(version) == FILES
    with pytest.raises(OriginUnavailable, match="not running"):
        await catalog.listing(replace(version, tag="other"))


async def test_warm_up_fetches_every_listing_politely(setup: Setup) -> None:
    setup.source.says = SourceCatalog("lab", (make_genome(assets=40),))
    async with setup.running() as catalog:
        await catalog.refresh()
        await until(lambda: sum("listing/" in key for key in setup.ledger.rows) == 40)
    assert setup.source.most_in_flight <= 4
    assert setup.source.asked["listing asset17:default"] == 1
    before = sum(setup.source.asked.values())
    async with setup.running() as catalog:  # all is known: nothing but the catalog is asked for
        await catalog.refresh()
        await settle()
        assert sum(setup.source.asked.values()) == before + 1
        setup.source.away = AWAY
        for asset in catalog.snapshot.genome("d1").assets:
            assert await catalog.listing(version_of(catalog, asset)) == FILES


async def test_warm_up_waits_for_readers(setup: Setup) -> None:
    setup.source.says = SourceCatalog("lab", (make_genome(assets=40),))
    setup.source.gate = trio.Event()
    async with setup.running() as catalog:
        await settle()
        setup.source.gate.set()
        await until(lambda: bool(catalog.snapshot.names))
        setup.source.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(catalog.listing, version_of(catalog, "asset39"))
            await settle()
            held = sum(setup.source.asked.values())
            assert setup.source.asked["listing asset39:default"] == 1
            await settle()
            assert sum(setup.source.asked.values()) == held
            setup.source.gate.set()
        await until(lambda: sum("listing/" in key for key in setup.ledger.rows) == 40)


async def test_warm_up_stops_at_a_source_that_is_away(setup: Setup) -> None:
    setup.source.says = SourceCatalog("lab", (make_genome(assets=40),))
    async with setup.running() as catalog:
        setup.source.gate = trio.Event()
        setup.source.gate.set()
        catalog.on_change(lambda old, new: setattr(setup.source, "away", AWAY))
        await settle()
        assert sum(count for what, count in setup.source.asked.items() if "listing" in what) <= 4


# -- facts -------------------------------------------------------------------------------------------------


async def test_facts_of_one_file_bring_those_of_its_siblings(setup: Setup) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        version = version_of(catalog)
        assert catalog.known_facts(version, "d1.fa") is None
        facts = await catalog.facts(version, "d1.fa")
        assert facts is not None
        assert facts.content == content_id("lab", version.asset_digest, "d1.fa")
        assert catalog.known_facts(version, "d1.fa") == facts
        await until(lambda: all(catalog.known_facts(version, name) for name in FILES))
        assert [setup.source.asked[f"facts {name}"] for name in FILES] == [1, 1, 1]
        await settle()
        await setup.pass_time(1)
    setup.source.away = AWAY
    async with setup.running() as catalog:
        assert await catalog.facts(version, "d1.fa") == facts
        assert all(catalog.known_facts(version, name) for name in FILES)
        with pytest.raises(OriginUnavailable):
            await catalog.facts(version, "new.fa")


async def test_facts_are_asked_for_once(setup: Setup) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        await settle()
        setup.source.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(catalog.facts, version_of(catalog), "d1.fa")
            await settle()
            setup.source.gate.set()
        assert setup.source.asked["facts d1.fa"] == 1


async def test_a_file_without_a_copy(setup: Setup) -> None:
    setup.source.sizes["d1.fa"] = None
    async with setup.running() as catalog:
        await catalog.refresh()
        version = version_of(catalog)
        for _ in range(3):
            assert await catalog.facts(version, "d1.fa") is None
        assert setup.source.asked["facts d1.fa"] == 1
        setup.source.away = AWAY
        await setup.pass_time(2 * HOUR)
        assert await catalog.facts(version, "d1.fa") is None  # still what it said last
        setup.source.away = None
        setup.source.sizes.clear()
        assert await catalog.facts(version, "d1.fa") is not None


async def test_out_of_reach_is_not_absent(setup: Setup) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        await settle()
        setup.source.away = AWAY
        with pytest.raises(OriginUnavailable):
            await catalog.facts(version_of(catalog), "d1.fa")
        setup.source.away = None
        assert await catalog.facts(version_of(catalog), "d1.fa") is not None


async def test_a_source_without_copies_is_not_asked(setup: Setup) -> None:
    setup.source.copies = False
    async with setup.running() as catalog:
        await catalog.refresh()
        version = version_of(catalog)
        assert await catalog.facts(version, "d1.fa") is None
        assert setup.source.asked["facts d1.fa"] == 0
        setup.source.copies = True
        assert await catalog.facts(version, "d1.fa") is not None
        setup.source.copies = False
        assert catalog.known_facts(version, "d1.fa") is None


@pytest.mark.parametrize("by_facts", [False, True])
async def test_a_file_replaced_in_place_becomes_another_content(setup: Setup, by_facts: bool) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        version = version_of(catalog)
        old = await catalog.facts(version, "sub/d1.txt")
        assert old is not None
        await settle()
        setup.source.validator = '"2"'
        if by_facts:
            assert not catalog.outdated(old, version, "sub/d1.txt")
            catalog.note_stale(old)
            assert catalog.outdated(old, version, "sub/d1.txt")  # at once: the next open asks
        else:
            await catalog.forget_facts(version, "sub/d1.txt")
        new = await catalog.facts(version, "sub/d1.txt")
        assert new is not None
        assert new.content == content_id("lab", version.asset_digest, "sub/d1.txt", '"2"')
        assert catalog.outdated(old, version, "sub/d1.txt")
        assert not catalog.outdated(new, version, "sub/d1.txt")
        catalog.note_stale(old)  # a reader that comes late
        await settle()
        assert catalog.known_facts(version, "sub/d1.txt") == new
        await setup.pass_time(1)
    row = json.loads(setup.ledger.rows[facts_key(version)])
    assert row["replaced"] == ["sub/d1.txt"]
    async with setup.running() as catalog:
        assert await catalog.facts(version, "sub/d1.txt") == new


async def test_two_objects_that_are_one_content_are_read_as_one_of_them(setup: Setup) -> None:
    """Tags of one digest, each with a copy at the host, whose validators differ as their dates do."""
    (genome,) = setup.source.says.genomes
    first = genome.assets["asset0"].tags["default"]
    tags = {"default": first, "second": replace(first, tag="second")}
    assets = {"asset0": replace(genome.assets["asset0"], tags=tags)}
    setup.source.says = SourceCatalog("lab", (replace(genome, assets=assets),))
    async with setup.running() as catalog:
        await catalog.refresh()
        one, other = (catalog.snapshot.asset("d1", "asset0").version(tag) for tag in ("default", "second"))
        old = await catalog.facts(one, "d1.fa")
        assert old is not None
        setup.source.validator = '"2"'
        assert await catalog.facts(other, "d1.fa") == old == catalog.known_facts(other, "d1.fa")
        await settle()
        catalog.note_stale(old)  # the one that was chosen has been replaced
        await settle()
        new = await catalog.facts(one, "d1.fa")
        assert new is not None
        assert new.content != old.content
        own = await catalog.facts(other, "d1.fa")
        assert own is not None
        assert own.content == old.content
        assert own.extent != old.extent
        assert await catalog.facts(one, "d1.fa") == new


async def test_what_may_be_replaced_is_asked_for_again_when_its_time_is_over(setup: Setup) -> None:
    setup.source.hold = 60.0
    async with setup.running() as catalog:
        await catalog.refresh()
        version, name = version_of(catalog), "sub/d1.txt"
        old = await catalog.facts(version, name)
        await settle()
        asked = setup.source.asked[f"facts {name}"]
        setup.source.validator = '"2"'
        await setup.pass_time(59)
        assert await catalog.facts(version, name) == old
        assert catalog.known_facts(version, name, fresh=True) == old
        await setup.pass_time(2)
        assert catalog.known_facts(version, name, fresh=True) is None
        assert catalog.known_facts(version, name) == old
        new = await catalog.facts(version, name)
        assert old is not None
        assert new is not None
        assert new.content == content_id("lab", version.asset_digest, name, '"2"') != old.content
        assert catalog.outdated(old, version, name)
        assert setup.source.asked[f"facts {name} again"] == 1
        assert setup.source.asked[f"facts {name}"] == asked + 1  # what is new is asked for as what is not known


async def test_a_host_that_is_away_changes_nothing_of_what_is_known(setup: Setup) -> None:
    setup.source.hold = 60.0
    async with setup.running() as catalog:
        await catalog.refresh()
        version = version_of(catalog)
        known = {name: await catalog.facts(version, name) for name in FILES}
        await settle()
        await setup.pass_time(61)
        setup.source.away = AWAY
        assert {name: await catalog.facts(version, name) for name in FILES} == known
        asked = sum(setup.source.asked[f"facts {name} again"] for name in FILES)
        assert asked == 1  # once a source: else each file of a folder would be waited for
        await setup.pass_time(61)
        setup.source.away = None
        assert {name: await catalog.facts(version, name) for name in FILES} == known
        await settle()
        assert sum(setup.source.asked[f"facts {name} again"] for name in FILES) > asked


@pytest.mark.parametrize("answer", [AWAY, SizeUnknown("its size is not told", '"1"')])
async def test_a_host_that_is_away_brings_nothing_back_that_was_replaced_meanwhile(
    setup: Setup, answer: RefgenfsError
) -> None:
    setup.source.hold = 60.0
    async with setup.running() as catalog, trio.open_nursery() as nursery:
        await catalog.refresh()
        version, name = version_of(catalog), "d1.fa"
        old = await catalog.facts(version, name)
        assert old is not None
        await settle()
        await setup.pass_time(61)
        setup.source.gate = trio.Event()

        async def ask() -> None:
            with pytest.raises(type(answer)):
                await catalog.facts(version, name)

        nursery.start_soon(ask)
        await settle()
        await catalog.forget_facts(version, name)  # a reader has found that out
        setup.source.away = answer
        setup.source.gate.set()
        await settle()
        assert catalog.known_facts(version, name) is None
        assert catalog.outdated(old, version, name)
        setup.source.away, setup.source.validator = None, '"2"'
        new = await catalog.facts(version, name)
        assert new is not None
        assert new.content != old.content


async def test_files_that_the_catalog_names_are_asked_of_nobody(setup: Setup) -> None:
    (genome,) = setup.source.says.genomes
    files = (ListedFile("a.fa", "x/a.fa", 7, '"1"', 5.0), ListedFile("b", "http://elsewhere/b"))
    listed = replace(genome.assets["asset0"].tags["default"], files=files)
    assets = {"asset0": replace(genome.assets["asset0"], tags={"default": listed})}
    setup.source.says = SourceCatalog("lab", (replace(genome, assets=assets),))
    async with setup.running() as catalog:
        await catalog.refresh()
        await settle()
        assert await catalog.listing(version_of(catalog)) == ("a.fa", "b")
        await settle()
    assert not any(what.startswith("listing") for what in setup.source.asked)
    again = setup.make()
    await again.load()
    assert version_of(again) == listed


async def test_an_answer_that_was_under_way_is_not_taken_for_the_new_one(setup: Setup) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        await settle()
        version = version_of(catalog)
        setup.source.gate = trio.Event()
        found: list[FileFacts | None] = []

        async def look() -> None:
            found.append(await catalog.facts(version, "d1.fa"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await settle()
            await catalog.forget_facts(version, "d1.fa")
            setup.source.gate.set()
        assert found[0] is not None
        assert found[0].content == content_id("lab", version.asset_digest, "d1.fa", '"1"')


# -- archives ----------------------------------------------------------------------------------------------


async def test_archives_and_their_versions(setup: Setup) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        version = version_of(catalog)
        ref = catalog.archive(version)
        assert ref is not None
        assert catalog.version_of(ref) == version
        assert await catalog.fresh_version(version) == version
        asked = setup.source.asked["catalog"]
        setup.source.says = SourceCatalog("lab", (make_genome(version="v2"),))
        fresh = await catalog.fresh_version(version)
        assert fresh is not None
        assert fresh.asset_digest == "v2-asset0"
        await until(lambda: setup.source.asked["catalog"] == asked + 1)
        await settle()
        with pytest.raises(StaleContent):
            catalog.version_of(ref)
        for gone in (
            replace(ref, key="d1/asset0:x"),
            replace(ref, key="d9/asset0:default"),
            replace(ref, source="x"),
        ):
            with pytest.raises(NotInCatalog):
                catalog.version_of(gone)


def test_the_ledger_fits() -> None:
    """The real ledger can be what the catalog keeps its answers in."""
    from refgenfs.cache.ledger import Ledger

    def fits(ledger: Ledger) -> LedgerLike:
        return ledger

    assert callable(fits)


# -- other sources while running ---------------------------------------------------------------------------


async def test_a_source_is_added_changed_and_removed(setup: Setup) -> None:
    lab, other = setup.source, FakeSource("other", (make_genome("d2", source="other"),))
    async with setup.running() as catalog:
        await catalog.refresh()
        seen: list[CatalogSnapshot] = []
        catalog.on_change(lambda _, new: seen.append(new))
        asked = lab.asked["catalog"]
        await catalog.renew([lab, other], refresh=HOUR)
        await settle()
        assert snapshot_names(catalog) == ("alias-d1", "alias-d2", "d1", "d2")
        assert lab.asked["catalog"] == asked  # the very object: nothing of it changed
        assert other.asked["catalog"] == 1
        assert await catalog.listing(catalog.snapshot.asset("d2", "asset0").version(None)) == FILES

        version = version_of(catalog)
        known = await catalog.facts(version, "d1.fa")
        assert known is not None
        await catalog.renew([other], refresh=HOUR)
        assert snapshot_names(catalog) == ("alias-d2", "d2")
        assert [status.name for status in catalog.status()] == ["other"]
        with pytest.raises(NotInCatalog, match="no source lab any more"):
            await catalog.facts(version, "d1.fa")
        catalog.note_stale(known)  # a file of it that is open still: nothing to note any more
        await setup.pass_time(2 * HOUR)
        assert lab.asked["catalog"] == asked  # and nobody asks it
        assert other.asked["catalog"] == 2
        assert [len(snapshot.names) for snapshot in seen] == [4, 2]


async def test_a_source_in_the_place_of_one_at_the_same_server_begins_with_its_catalog(setup: Setup) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        setup.ledger.broken = True
        again = FakeSource(genomes=(make_genome("d9"),))
        again.away = AWAY
        again.copies, setup.source.copies = True, False
        await catalog.renew([again], refresh=HOUR)
        await settle()
        assert snapshot_names(catalog) == ("alias-d1", "d1")
        assert not again.copies  # it knows what the other knew
        assert again.asked["catalog"] == 1
        again.away = None
        await catalog.refresh()
        assert snapshot_names(catalog) == ("alias-d9", "d9")
    # closed: nothing more


async def test_a_source_of_the_same_name_at_another_server_does_not(setup: Setup) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        moved = FakeSource(genomes=(make_genome("d9"),))
        moved.url, moved.away = "http://elsewhere.example/", AWAY
        await catalog.renew([moved], refresh=HOUR)
        await settle()
        assert snapshot_names(catalog) == ()
        assert catalog.unanswered == ("lab",)


async def test_an_answer_of_a_source_that_was_replaced_meanwhile_is_not_taken(setup: Setup) -> None:
    setup.source.gate = trio.Event()
    async with setup.running() as catalog:
        await settle()
        again = FakeSource(genomes=(make_genome("d9"),))
        await catalog.renew([again], refresh=HOUR)
        await until(lambda: snapshot_names(catalog) == ("alias-d9", "d9"))
        await settle()
        setup.source.gate.set()
        await settle()
        assert snapshot_names(catalog) == ("alias-d9", "d9")
    assert "alias-d9" in setup.ledger.rows["catalog/lab"] or "d1" not in setup.ledger.rows["catalog/lab"]


async def test_a_shorter_interval_holds_at_once(setup: Setup) -> None:
    async with setup.running() as catalog:
        await catalog.refresh()
        asked = setup.source.asked["catalog"]
        await catalog.renew([setup.source], refresh=60.0)
        await setup.pass_time(61)
        assert setup.source.asked["catalog"] == asked + 1
