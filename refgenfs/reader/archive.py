"""An archive in use: what is known of it, who streams it, where it can be entered."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from refgenfs.cache.ledger import Ledger
from refgenfs.core.content import ArchiveRef, ContentId, content_id
from refgenfs.core.errors import CacheError, RefgenfsError
from refgenfs.reader.flights import Arrival
from refgenfs.reader.member_table import Canonical, MemberTable, table_key
from refgenfs.reader.refusals import Refusals

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from refgenfs.reader.stream import ArchiveStream

# Stands for the validator of an object that has none: never equal to any.
NO_VALIDATOR = "none"


@dataclass(frozen=True, slots=True)
class KnownIndex:
    """An index file: which content it is, and of which archive (MD5, hex).

    `urls` and `validator` are where the origin offers it; no URLs: it was made here, as the archive went by.
    """

    content: ContentId
    size: int
    archive: str
    urls: tuple[str, ...] = ()
    validator: str = ""

    @property
    def offered(self) -> bool:
        """Whether the origin offers it, and is to be believed about it."""
        return bool(self.urls)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "content": self.content,
            "size": self.size,
            "archive": self.archive,
            "urls": list(self.urls),
            "validator": self.validator,
        }

    @classmethod
    def from_json(cls, value: Any) -> KnownIndex | None:
        """Return the index that `to_json` gave; None for anything else."""
        try:
            urls = tuple(map(str, value["urls"]))
            known = cls(
                str(value["content"]), int(value["size"]), str(value["archive"]), urls, str(value["validator"])
            )
        except (KeyError, TypeError, ValueError):
            return None
        return known if known.size > 0 else None


@dataclass(slots=True, weakref_slot=True)
class Archive:
    """One archive: what is known of its members, and the streams that run."""

    ref: ArchiveRef
    table: MemberTable
    canonical: Canonical
    dropped: Callable[[list[ContentId]], None]  # told which contents turned out to be wrong
    streams: list[ArchiveStream] = field(default_factory=list)
    news: trio.Event = field(default_factory=trio.Event)  # replaced at each change: a header went by, a stream ended
    index: KnownIndex | None = None  # where it can be entered
    asking: trio.Event | None = None  # set when the origin has said whether it offers an index
    index_progress: int = 0  # changes with the bytes of its index that come in
    ask_after: float = 0.0  # Unix seconds: before, it need not be asked
    ranges: bool = True  # as far as is known, the origin answers requests for ranges
    indexing: trio.Lock = field(default_factory=trio.Lock)  # held while the index is parsed
    judging: trio.Lock = field(default_factory=trio.Lock)  # held while what is trusted is decided
    saving: trio.Lock = field(default_factory=trio.Lock)  # held while the member table is written
    recorded: str = ""  # the table's validator as the ledger has it
    header_waiters: int = 0
    pulls: int = 0  # how many want all of it
    generation: int = 0  # counts how often blocks were taken back: who has read some of those must not go on
    served: set[int] = field(default_factory=set)  # generations of which somebody was given bytes
    distrusted: bool = False  # the last object was wrong: the next is looked at before anybody reads of it
    error: RefgenfsError | None = None  # why the last stream ended, if not well
    refusals: Refusals = field(default_factory=lambda: Refusals(log))
    brought: int = 0  # the progress of streams that have ended

    def forget_error(self) -> None:
        """Let a new attempt speak for itself."""
        self.error = None

    def index_came(self, nbytes: int) -> None:
        """Note that bytes of its index came in."""
        self.index_progress += nbytes

    def announce(self) -> None:
        """Wake all who wait for a header or for the end of a stream."""
        news, self.news = self.news, trio.Event()
        news.set()

    async def save(self, ledger: Ledger) -> bool:
        """Write the member table, as it is now, to the ledger; False if that refuses: a stream more later on."""
        async with self.saving:  # of two tables the newer must be written last
            rows = self.table.to_json()  # here, not in the thread: it may change meanwhile
            try:
                await trio.to_thread.run_sync(ledger.set, table_key(self.ref), rows)
            except CacheError as exc:
                self.refusals.warning("%s: what is known of its members is not written down: %s", self.ref.key, exc)
                return False
            self.refusals.clear()
            self.recorded = str(rows["validator"])
        return True

    def wake_streams(self) -> None:
        """Let paused streams look again whether somebody waits."""
        for stream in self.streams:
            stream.wake()

    def content_id(self, name: str) -> ContentId:
        """Return the identity of a member's bytes."""
        return content_id(self.ref.source, self.ref.asset_digest, name)

    @property
    def progress(self) -> int:
        """A number that grows whenever bytes come in on any of its streams."""
        return self.brought + sum(stream.progress for stream in self.streams)

    def just_passed(self, name: str, index: int) -> Arrival | None:
        """Return a block that went by a moment ago and could not be stored."""
        return next((stream.tail[name, index] for stream in self.streams if (name, index) in stream.tail), None)

    def stream_to(self, name: str, index: int) -> ArchiveStream | None:
        """Return a running stream that has not come to this block yet."""
        return next((stream for stream in self.streams if stream.will_reach(name, index)), None)
