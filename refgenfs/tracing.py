"""Who follows the kernel's requests live. While nobody does, that costs a request the look at one flag.

Lives on the trio thread. Nothing here awaits, and nothing may raise: it runs beside every request.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from refgenfs.core.content import BLOCK, Run
from refgenfs.core.errors import ControlError, NotInCatalog
from refgenfs.core.verdict import Cause
from refgenfs.processes import command_of
from refgenfs.reader.flights import FlightBoard
from refgenfs.reader.reader import OpenFile
from refgenfs.reader.waiting import cause_of_wait, waits_for
from refgenfs.tree import FileNode, FolderNode, Tree

log = logging.getLogger(__name__)

MOST_EVENTS = 2000  # that wait for one follower to take them; what is more is counted
MOST_FOLLOWERS = 8
KEPT_FREE = 2  # for root and who runs the daemon
# Of names and attributes only those are told that took so long: they are many, and most are answered at once.
LONG = 0.010  # seconds
_NAMES = frozenset({"lookup", "getattr", "opendir"})


@dataclass(frozen=True, slots=True)
class Handle:
    """A file that is open: its inode, and the process and the user who opened it."""

    file: OpenFile
    pid: int
    uid: int
    inode: int


@dataclass(slots=True)
class Event:
    """A request: of whom, for what, how long it took or has taken, and what it waits or waited for."""

    when: float  # that it is told of, in Unix seconds
    pid: int
    command: str
    uid: int | None
    operation: str
    path: str
    source: str = ""
    offset: int | None = None
    size: int | None = None
    seconds: float = 0.0
    waits_for: str = ""
    error: str = ""
    over: bool = True  # False: it still waits
    cause: Cause = "name"  # of what is waited for, while it still waits


class Follower:
    """Events for one who follows, until they are taken; with `uid` those of one user's processes alone."""

    def __init__(self, uid: int | None = None) -> None:
        self.dropped = 0
        self.uid = uid
        self._events: deque[Event] = deque()

    def tell(self, event: Event) -> None:
        """Keep an event, or count it where there are too many."""
        if self.uid is not None and event.uid != self.uid:
            return
        if len(self._events) < MOST_EVENTS:
            self._events.append(event)
        else:
            self.dropped += 1

    def take(self) -> tuple[list[dict[str, Any]], int]:
        """Return the events as JSON values, and how many there were besides; and begin anew."""
        events, dropped = [asdict(event) for event in self._events], self.dropped
        self._events.clear()
        self.dropped = 0
        return events, dropped


class Tracing:
    """The followers, and what they are told. `handles` are the files that are open."""

    def __init__(self, tree: Tree, handles: Mapping[int, Handle]) -> None:
        self.on = False  # somebody follows
        self._tree = tree
        self._handles = handles
        self._board: FlightBoard | None = None
        self._followers: set[Follower] = set()

    def look_at(self, board: FlightBoard) -> None:
        """Tell from now on what requests wait for by what is on its way."""
        self._board = board

    @contextmanager
    def follow(self, board: FlightBoard, uid: int | None = None) -> Iterator[Follower]:
        """Tell a follower of requests during the block: of all, or with `uid` of one user's.

        Raises ControlError where too many follow; two places are for who follows all.
        """
        if len(self._followers) >= MOST_FOLLOWERS - (0 if uid is None else KEPT_FREE):
            raise ControlError(f"{len(self._followers)} follow already")
        if uid is not None and any(one.uid == uid for one in self._followers):
            raise ControlError("you follow already, in another process")
        follower = Follower(uid)
        self.look_at(board)
        self._followers.add(follower)
        self.on = True
        try:
            yield follower
        finally:
            self._followers.discard(follower)
            self.on = bool(self._followers)

    def begin(self, operation: str, arguments: tuple[Any, ...]) -> Event | None:
        """Return the event of a request that begins; None for one that is not told of. Never raises."""
        try:
            return self._begin(operation, arguments)
        except Exception:  # the request goes on all the same
            log.exception("a request (%s) can't be told of", operation)
            return None

    def _begin(self, operation: str, arguments: tuple[Any, ...]) -> Event | None:
        if operation == "read":
            fh, offset, size = arguments
            handle = self._handles.get(fh)
            return None if handle is None else self._reading(handle, offset, size)
        if operation not in _NAMES and operation != "open":
            return None
        context, inode = arguments[-1], arguments[0]
        path, source = self._place(inode)
        if operation == "lookup":
            path = f"{path}/{_shown(arguments[1])}"
        wait = f"a size, from {source}" if operation == "getattr" else f"a name or a size, from {source}"
        return Event(
            time.time(),
            context.pid,
            command_of(context.pid),
            context.uid,
            operation,
            path,
            source,
            waits_for=wait if source and operation != "open" else "",
        )

    def _reading(self, handle: Handle, offset: int, size: int) -> Event:
        path, _ = self._place(handle.inode)
        file, content, source = handle.file, handle.file.content, handle.file.facts.source
        event = Event(time.time(), handle.pid, command_of(handle.pid), handle.uid, "read", path, source, offset, size)
        stop = min(offset + size, file.facts.size)
        if content is not None and offset < stop and content.missing(Run(offset // BLOCK, -(-stop // BLOCK))) >= 0:
            event.waits_for = self._wait(file, offset, size)
        return event

    def _wait(self, file: OpenFile, offset: int, size: int) -> str:
        return waits_for(self._board, file, offset, size) if self._board is not None else ""

    def end(self, event: Event, seconds: float, error: str) -> None:
        """Tell of a request that is answered."""
        if event.operation in _NAMES and seconds < LONG:
            return
        event.when, event.seconds, event.error = time.time(), seconds, error
        for follower in self._followers:
            follower.tell(event)

    def under_way(self, reading: tuple[Handle, int, int] | None, pid: int, uid: int, seconds: float) -> Event:
        """Return the event of a request that still waits, also of one from before anybody followed."""
        if reading is None:
            what = "a name, a size or a listing"
            return Event(time.time(), pid, command_of(pid), uid, "", "", seconds=seconds, waits_for=what, over=False)
        event = self._reading(*reading)
        event.seconds, event.over = seconds, False
        event.waits_for = self._wait(*reading_file(reading))
        if self._board is not None:
            event.cause = cause_of_wait(self._board, *reading_file(reading))
        return event

    def _place(self, inode: int) -> tuple[str, str]:
        """Return one of an inode's paths below the mountpoint, and its source."""
        try:
            node = self._tree.inode(inode).node
            source = node.version.source if isinstance(node, FileNode | FolderNode) else ""
            return self._tree.path_of(inode), source
        except NotInCatalog:
            return "(forgotten)", ""


def reading_file(reading: tuple[Handle, int, int]) -> tuple[OpenFile, int, int]:
    """Return a reading with its file in the handle's place."""
    handle, offset, size = reading
    return handle.file, offset, size


def _shown(name: bytes) -> str:
    return name.decode(errors="replace")
