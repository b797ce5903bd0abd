"""All sources as one: the snapshot that everything reads, and the tasks that keep it fresh."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import trio

from refgenfs.catalog.details import Details
from refgenfs.catalog.feeds import Feed, SourceStatus
from refgenfs.catalog.flights import Flights
from refgenfs.catalog.listings import Listings
from refgenfs.catalog.notebook import LedgerLike, Notebook
from refgenfs.catalog.originals import Originals
from refgenfs.core.catalog import AssetVersion, CatalogSnapshot, SourceCatalog, iter_versions, keep_known, merge
from refgenfs.core.catalog_json import JSONValue, dump_catalog, load_catalog
from refgenfs.core.content import ArchiveRef, FileFacts
from refgenfs.core.errors import (
    IntegrityError,
    NotInCatalog,
    OriginUnavailable,
    RefgenfsError,
    StaleContent,
    redact_url,
)
from refgenfs.sources import Source, Spooler, Unchecked

log = logging.getLogger(__name__)

OnChange = Callable[[CatalogSnapshot, CatalogSnapshot], None]

FIRST_PAUSE = 5.0  # seconds after a first failure; doubles with each
LONGEST_PAUSE = 300.0
JITTER = 0.1  # of the refresh interval, either way: many daemons start at one time


class Catalog:
    """The sources, in order, and the current `snapshot`, which is replaced whole.

    `load` needs no origin; everything else that may ask one needs `run` to be running. `refresh` is the
    interval in seconds; `spooler` settles sizes that hosts keep to themselves; `wall` gives Unix seconds and `dice`
    numbers from 0 to 1.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        ledger: LedgerLike,
        *,
        refresh: float = 3600.0,
        spooler: Spooler | None = None,
        wall: Callable[[], float] = time.time,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.snapshot = CatalogSnapshot()
        self._feeds = {source.name: Feed(source) for source in sources}
        self._sources = {source.name: source for source in sources}
        self._nursery: trio.Nursery | None = None
        self._notebook = Notebook(ledger)
        self._flights = Flights()
        self._interval = refresh
        self._wall = wall
        self._dice = dice
        self._callbacks: list[OnChange] = []
        self._warm_up = trio.Event()
        self._originals = Originals()
        parts = (self._sources, self._notebook, self._flights)
        self._listings = Listings(*parts, keep=refresh, wall=wall)
        self._details = Details(*parts, self._listings, keep=refresh, wall=wall, spooler=spooler)

    # -- the snapshot -------------------------------------------------------------------------------------

    def on_change(self, callback: OnChange) -> None:
        """Call `callback(old, new)` on the trio thread whenever the snapshot was replaced by another."""
        self._callbacks.append(callback)

    async def load(self) -> None:
        """Take each source's last catalog from the ledger. No network."""
        for feed in self._feeds.values():
            await self._recall(feed)
        self._replace()

    async def _recall(self, feed: Feed) -> None:
        """Take a source's last catalog from the ledger, if that has one of the same server."""
        state = await self._notebook.read(feed.state_key)
        url = redact_url(feed.source.url)
        if not isinstance(state, dict) or state.get("url") != url:
            return  # never refreshed, or another server's
        feed.source.restore(state.get("state"))
        kept = await self._notebook.read(feed.catalog_key)
        if kept is None:
            return
        try:
            feed.catalog = await trio.to_thread.run_sync(load_catalog, kept)
        except IntegrityError as exc:
            log.warning("source %s: its kept catalog is not used: %s", feed.source.name, exc)
            return
        at = state.get("at")
        feed.last_refresh = float(at) if isinstance(at, int | float) else None

    async def renew(self, sources: Sequence[Source], *, refresh: float) -> None:
        """Take other sources, in their order, and another interval. `run` must be running.

        A source that is one of the present ones, the very object, goes on as it is. One in the place of another of
        the same name and server begins with its catalog; any other with what the ledger has. Each new one is asked at
        once, and not waited for. Of one that is gone, names are gone, and files that are open are read on.
        """
        old = self._feeds
        feeds = {source.name: await self._feed_for(source, old.get(source.name)) for source in sources}
        # no await from here on: the feeds and what is made of them change together
        self._feeds = feeds
        self._sources.clear()
        self._sources.update((source.name, source) for source in sources)
        for feed in old.values():
            if feeds.get(feed.source.name) is not feed:
                feed.scope.cancel()
            elif refresh != self._interval and not feed.failures:
                feed.schedule(min(feed.due, trio.current_time() + refresh))
        self._interval = refresh
        self._details.renew(refresh)
        self._listings.renew(refresh)
        assert self._nursery is not None
        for feed in feeds.values():
            if old.get(feed.source.name) is not feed:
                self._nursery.start_soon(self._keep_fresh, feed)
        self._replace()

    async def _feed_for(self, source: Source, old: Feed | None) -> Feed:
        if old is not None and old.source is source:
            return old
        feed = Feed(source)
        if old is not None and (old.source.kind, old.source.url) == (source.kind, source.url):
            source.restore(old.source.state())
            feed.catalog, feed.last_refresh = old.catalog, old.last_refresh
        else:
            await self._recall(feed)
        return feed

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the snapshot fresh until cancelled. Started at once: the first refresh is not waited for."""
        async with trio.open_nursery() as nursery:
            self._flights.open(nursery)
            self._nursery = nursery
            try:
                for feed in self._feeds.values():
                    nursery.start_soon(self._keep_fresh, feed)
                nursery.start_soon(self._keep_warm)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._flights.close()

    async def refresh(self) -> tuple[SourceStatus, ...]:
        """Ask every source now, and return how they are then; an origin's errors are in there, not raised.

        Callers at the same time share one refresh; it goes on when they give up waiting.
        """
        async with trio.open_nursery() as nursery:
            for feed in self._feeds.values():
                nursery.start_soon(self._refresh, feed)
        return self.status()

    def status(self) -> tuple[SourceStatus, ...]:
        """Return how every source is."""
        return tuple(feed.status() for feed in self._feeds.values())

    @property
    def unanswered(self) -> tuple[str, ...]:
        """The sources of which nothing is known: none has ever answered, and no catalog is kept."""
        return tuple(feed.source.name for feed in self._feeds.values() if feed.catalog is None)

    async def _keep_fresh(self, feed: Feed) -> None:
        with feed.scope:
            while True:
                await self._refresh(feed)
                await feed.wait_until_due()

    async def _refresh(self, feed: Feed) -> None:
        await self._flights.join(("catalog", feed), partial(self._ask, feed), background=True)

    async def _ask(self, feed: Feed) -> None:
        try:
            await self._accept(feed, await feed.source.catalog(feed.catalog))
        except Unchecked as exc:
            failures = feed.failures
            await self._accept(feed, exc.catalog, checked=False)
            feed.failures = failures
            self._note_failure(feed, str(exc))
        except RefgenfsError as exc:
            self._note_failure(feed, str(exc))
        except Exception as exc:
            log.exception("source %s: the refresh failed unexpectedly", feed.source.name)
            self._note_failure(feed, f"the refresh failed unexpectedly ({type(exc).__name__}); see the log")

    async def _accept(self, feed: Feed, catalog: SourceCatalog, *, checked: bool = True) -> None:
        name = feed.source.name
        if self._feeds.get(name) is not feed:
            return  # another has its place by now
        if feed.failures and checked:
            log.info("source %s: answers again", name)
        if feed.catalog is not None and feed.catalog.genomes and not catalog.genomes:
            log.warning("source %s: says that it has no genomes any more", name)
        feed.failures, feed.failing_since, feed.error = 0, None, ""
        feed.last_refresh = self._wall() if checked else feed.last_refresh
        feed.schedule(trio.current_time() + self._interval * (1 + JITTER * (2 * self._dice() - 1)))
        known = feed.catalog
        if known is not None:  # in a thread: comparing large catalogs takes long enough for a reader to notice
            catalog = await trio.to_thread.run_sync(keep_known, known, catalog)
            if self._feeds.get(name) is not feed:
                return
        if catalog is not known:
            feed.catalog = catalog
            self._replace()
            dumped = await trio.to_thread.run_sync(dump_catalog, catalog)
            if self._feeds.get(name) is not feed:
                return
            await self._notebook.write(feed.catalog_key, dumped)
        state: dict[str, JSONValue] = {
            "url": redact_url(feed.source.url),
            "at": feed.last_refresh,
            "state": feed.source.state(),
        }
        await self._notebook.write(feed.state_key, state)
        self._warm_up.set()

    def _note_failure(self, feed: Feed, error: str) -> None:
        feed.failures += 1
        feed.error = error
        if feed.failures == 1:
            feed.failing_since = self._wall()
            kept = "its last catalog is shown" if feed.catalog is not None else "no catalog of it is kept"
            log.warning("source %s: no catalog, %s: %s", feed.source.name, kept, error)
        pause = min(FIRST_PAUSE * 2.0 ** min(feed.failures - 1, 30), LONGEST_PAUSE, self._interval)
        feed.schedule(trio.current_time() + pause * (0.75 + self._dice() / 2))

    def _replace(self) -> None:
        old = self.snapshot
        new = merge(feed.catalog for feed in self._feeds.values() if feed.catalog is not None)
        if new == old:
            return
        self.snapshot = new
        self._originals.clear()
        for callback in self._callbacks:
            try:
                callback(old, new)
            except Exception:
                log.exception("something that follows the catalog failed")

    async def _keep_warm(self) -> None:
        while True:
            await self._warm_up.wait()
            self._warm_up = trio.Event()
            try:
                await self._listings.warm_up(self.snapshot.versions())
            except Exception:
                log.exception("listings could not be fetched ahead")

    # -- versions -----------------------------------------------------------------------------------------

    async def listing(self, version: AssetVersion) -> tuple[str, ...] | None:
        """Return the names of a version's files, relative to its folder, as the origin spells them.

        None: the origin has no listing of it, and the archive's members are the listing. Raises the origin's
        errors when the listing is neither in memory nor in the ledger.
        """
        return await self._listings.listing(version)

    async def facts(self, version: AssetVersion, name: str) -> FileFacts | None:
        """Return a file's facts at the host of the unpacked copies; None: the file comes by the archive.

        The first time, its siblings are asked for too, in the background. Raises the origin's errors.
        """
        facts = await self._details.facts(version, name)
        return None if facts is None else self._originals.choose(facts)

    def known_facts(self, version: AssetVersion, name: str, *, fresh: bool = False) -> FileFacts | None:
        """Return a file's facts if they are in memory, with `fresh` only if they still hold. No I/O, no wait."""
        facts = self._details.known_facts(version, name, fresh=fresh)
        return None if facts is None else self._originals.choose(facts)

    async def recall(self, version: AssetVersion) -> None:
        """Bring the facts that the ledger has of a version's files to memory; asks no origin."""
        await self._details.recall(version)

    async def forget_facts(self, version: AssetVersion, name: str) -> None:
        """Forget a file's facts: its origin has replaced it in place.

        They are asked for anew when next wanted, and the content's identity then carries the new validator,
        so no bytes of the two meet.
        """
        known = self._details.known_facts(version, name)
        if known is not None:
            self._originals.forget(known.content)
        await self._details.forget_facts(version, name)

    def note_stale(self, facts: FileFacts) -> None:
        """Do as `forget_facts` for the file that these facts are about: at once, or soon if they aren't in memory."""
        self._originals.forget(facts.content)
        feed = self._feeds.get(facts.source)
        if feed is None:
            return  # its source is gone, and nobody will open it again
        versions = iter_versions(feed.catalog or SourceCatalog(facts.source, ()))
        found = self._details.find(facts, versions)
        if found is not None and not self._details.forget_known(*found, facts):
            with suppress(OriginUnavailable):  # the daemon ends, and the next one will find it stale again
                self._flights.start(self._forget, *found, facts)

    def outdated(self, facts: FileFacts, version: AssetVersion, name: str) -> bool:
        """Say whether these facts of a file are known to be those of an object that was replaced. No wait."""
        return self._details.outdated(facts, version, name)

    async def _forget(self, version: AssetVersion, name: str, facts: FileFacts) -> None:
        try:
            await self._details.forget_facts(version, name, facts)
        except RefgenfsError as exc:
            log.warning("%s of %s was replaced, which can't be noted: %s", name, version.key, exc)

    def hold(self, version: AssetVersion) -> float | None:
        """Return for how long (seconds) it is believed that a version's files are what they were; None: for good."""
        feed = self._feeds.get(version.source)
        return None if feed is None else feed.source.hold

    def archive(self, version: AssetVersion) -> ArchiveRef | None:
        """Return where a version's archive is; None: it has none, its files are there one by one."""
        return self._feed(version.source).source.archive(version)

    def version_of(self, ref: ArchiveRef) -> AssetVersion:
        """Return the version that an archive is of.

        Raises NotInCatalog when its source has it no more, StaleContent when it was rebuilt since.
        """
        genome_digest, _, rest = ref.key.partition("/")
        name, _, tag = rest.partition(":")
        catalog = self._feed(ref.source).catalog
        for genome in catalog.genomes if catalog is not None else ():
            if genome.digest == genome_digest and name in genome.assets:
                version = genome.assets[name].tags.get(tag)
                if version is not None and version.asset_digest != ref.asset_digest:
                    raise StaleContent(f"{ref.key} was rebuilt at {ref.source}; open the file again")
                if version is not None:
                    return version
        raise NotInCatalog(f"source {ref.source} has {ref.key} no more")

    async def fresh_version(self, version: AssetVersion) -> AssetVersion | None:
        """Ask the origin what it now says of a version; None: it has it no more. Raises the origin's errors.

        Where that is not what the catalog says, the catalog is refreshed, in the background.
        """
        feed = self._feed(version.source)
        fresh = await feed.source.fresh_version(version)
        if fresh != version:
            feed.schedule(trio.current_time())
        return fresh

    def _feed(self, source: str) -> Feed:
        try:
            return self._feeds[source]
        except KeyError:
            raise NotInCatalog(f"there is no source {source} any more") from None
