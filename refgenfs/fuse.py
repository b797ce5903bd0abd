"""The FUSE layer: requests in, answers out. The one importer of pyfuse3, and the one place of errnos.

pyfuse3 lets only `FUSEError` leave a handler: any other exception takes the mount down. So every handler is
wrapped, once, by `answered`.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar, cast

import pyfuse3
import trio

from refgenfs.core import errors
from refgenfs.core.metrics import Durations
from refgenfs.core.usage import Users
from refgenfs.processes import is_alive, wants_to_die
from refgenfs.reader.reader import Reader
from refgenfs.tracing import Event, Handle, Tracing
from refgenfs.tree import Attributes, Node, RefgetNode, Tree
from refgenfs.users import Guard

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class Interrupted(errors.RefgenfsError):
    """The caller is being killed: it needs no answer."""


# The whole of it: an error has the errno of the first class in its ancestry that is named here.
ERRNOS: dict[type[Exception], int] = {
    errors.NotInCatalog: errno.ENOENT,
    errors.NotADirectory: errno.ENOTDIR,
    errors.IsADirectory: errno.EISDIR,
    errors.ReadOnly: errno.EROFS,
    errors.OriginDenied: errno.EACCES,
    errors.NotAllowed: errno.EACCES,
    errors.StaleContent: errno.ESTALE,
    errors.DeadlineExceeded: errno.ETIMEDOUT,
    Interrupted: errno.EINTR,
    errors.RefgenfsError: errno.EIO,  # OriginUnavailable, OriginMissing, IntegrityError and their kin
    MemoryError: errno.ENOMEM,
    Exception: errno.EIO,
}
# What a user meets every day and no administrator needs to know.
_QUIET = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.EINTR})
MAX_NAME = 255  # bytes
XATTR_PREFIX = b"user.refgenfs."
IMPATIENCE = 0.5  # seconds after which a waiting caller is asked whether it is being killed


def _one_line(text: str) -> str:
    """Return a text fit for a log: a name out of an archive can hold anything."""
    return "".join(char if char.isprintable() else "?" for char in text)


def errno_of(error: Exception) -> int:
    """Return the errno that an error is answered with."""
    return next(ERRNOS[kind] for kind in type(error).__mro__ if kind in ERRNOS)


@dataclass(slots=True)
class FuseCounts:
    """Requests answered since the start."""

    requests: int = 0
    failures: int = 0
    unexpected: int = 0


def answered(
    handler: Callable[Concatenate[Operations, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Operations, P], Coroutine[Any, Any, R]]:
    """Turn every exception of a handler into an errno, with one log line for what somebody should know."""

    @functools.wraps(handler)
    async def wrapper(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.counts.requests += 1
        began, error = perf_counter(), ""
        event = self.tracing.begin(name, args) if self.tracing.on else None
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except errors.RefgenfsError as exc:
            number = errno_of(exc)
            error = type(exc).__name__
            self.errors[name, error] += 1
            if number not in _QUIET and not isinstance(exc, errors.NotAllowed):
                self.failed(handler.__name__, exc, number, event or self.tracing.begin(name, args))
            raise pyfuse3.FUSEError(number) from exc
        except Exception as exc:
            self.counts.unexpected += 1
            error = "Unexpected"
            self.errors[name, error] += 1
            self.failed(handler.__name__, exc, errno_of(exc), event or self.tracing.begin(name, args))
            raise pyfuse3.FUSEError(errno_of(exc)) from exc
        finally:
            took = perf_counter() - began
            self.timings[name].observe(took)
            if event is not None:
                self.tracing.end(event, took, error)

    name = handler.__name__.removeprefix("_")
    return wrapper


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request that may have to wait, and for whom; `surely`: that process itself waits."""

    pid: int
    since: float  # trio's time
    scope: trio.CancelScope
    surely: bool
    reading: tuple[Handle, int, int] | None  # a file, an offset and a size


class Operations(pyfuse3.Operations):
    """Answers the kernel out of a tree and a reader."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, tree: Tree, reader: Reader, files: FileInfoOf, space: Callable[[], tuple[int, int]]) -> None:
        super().__init__()
        self.counts = FuseCounts()
        self.timings: defaultdict[str, Durations] = defaultdict(Durations)  # by operation
        self.errors: Counter[tuple[str, str]] = Counter()  # by operation and kind
        self.users = Users()
        self.greeted = trio.Event()  # set when the kernel has shaken hands with us
        self.recent: list[tuple[float, str]] = []  # errors, newest last; times in Unix seconds
        self._tree = tree
        self._reader = reader
        self._info = files
        self._space = space
        self._open: dict[int, Handle] = {}
        self.tracing = Tracing(tree, self._open)
        self._listings: dict[int, tuple[int, list[tuple[str, Node]]]] = {}
        self._next_handle = 1
        self._waiting: dict[int, _Waiting] = {}
        self._uid, self._gid = os.getuid(), os.getgid()
        self._guard = Guard()

    def init(self) -> None:
        """Note the kernel's FUSE_INIT; libfuse answers it before any task of ours runs again."""
        self.greeted.set()

    @property
    def open_files(self) -> int:
        """How many files are open."""
        return len(self._open)

    def failed(self, what: str, error: Exception, number: int, event: Event | None = None) -> None:
        """Count a failure, and say it in one line: what, of which file, why, and for whom."""
        self.counts.failures += 1
        name = errno.errorcode.get(number, str(number))
        where = f" of {event.path}" if event is not None and event.path else ""
        kind = type(error).__name__
        why = _one_line(f"{kind}: {error} ({name})")
        text = _one_line(f"{what}{where}")
        by = _one_line(f", for {event.command} ({event.pid})") if event is not None and event.pid else ""
        known = isinstance(error, errors.RefgenfsError)  # anything else is a defect, of which the traceback is wanted
        log.log(
            logging.WARNING if known else logging.ERROR,
            "%s failed: %s%s",
            text,
            why,
            by,
            extra={"kind": kind},
            exc_info=None if known else error,
        )
        self.recent = [*self.recent[-49:], (time.time(), f"{text} failed: {why}")]

    # -- callers that are being killed --------------------------------------------------------------------

    @contextmanager
    def _caller(
        self, pid: int, *, surely: bool = True, reading: tuple[Handle, int, int] | None = None
    ) -> Iterator[None]:
        """Give up the body with EINTR once its caller is being killed (the kernel would wait for ever).

        Who reads may not be who opened the file (not `surely`): that one's end then says nothing.
        """
        token, scope = self._next_token(), trio.CancelScope()
        self._waiting[token] = _Waiting(pid, trio.current_time(), scope, surely, reading)
        try:
            with scope:
                yield
        finally:
            del self._waiting[token]
        if scope.cancelled_caught:
            raise Interrupted(f"process {pid} is being killed")

    def _next_token(self) -> int:
        self._next_handle += 1
        return self._next_handle

    async def watch_callers(self) -> NoReturn:
        """Look after callers that wait for long. Runs until cancelled."""
        while True:
            await trio.sleep(IMPATIENCE)
            now = trio.current_time()
            for one in list(self._waiting.values()):
                if now - one.since >= IMPATIENCE and wants_to_die(one.pid) and (one.surely or is_alive(one.pid)):
                    one.scope.cancel()

    def waiting(self, longer: float) -> list[tuple[int, Event]]:
        """Return the requests that have waited for longer than so many seconds, each with a number of its own."""
        now = trio.current_time()
        return [
            (token, self.tracing.under_way(one.reading, one.pid, now - one.since))
            for token, one in self._waiting.items()
            if now - one.since > longer
        ]

    # -- names and attributes -----------------------------------------------------------------------------

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Resolve a name, and count the lookup."""
        if len(name) > MAX_NAME:
            raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
        await self._admit(parent_inode, ctx)
        with self._caller(ctx.pid):
            attributes = await self._tree.lookup(
                parent_inode, os.fsdecode(name), await self._allowed(parent_inode, ctx)
            )
        # counted at once: the inode lives by it
        self._tree.remember(attributes.inode)
        try:
            await self._admit(attributes.inode, ctx)
        except BaseException:
            self._tree.forget(attributes.inode, 1)
            raise
        return self._entry(attributes)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Take back lookups; must not fail."""
        for number, lookups in inode_list:
            self._tree.forget(number, lookups)

    @answered
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Return attributes; for a file this waits until its size is known."""
        with self._caller(ctx.pid):
            attributes = await self._tree.getattr(inode)
        return self._entry(attributes)

    @answered
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        """Say whether a kind of access is possible; the kernel asks only without default_permissions."""
        await self._admit(inode, ctx)
        if mode & os.W_OK:
            raise errors.ReadOnly("the tree is read-only")
        return True

    @answered
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """Refuse: links of archives are shown as the files that they mean."""
        self._tree.inode(inode)
        raise pyfuse3.FUSEError(errno.EINVAL)

    @answered
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Show the cache as the disk: its quota, and what is free of it."""
        quota, used = self._space()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = quota // 4096
        data.f_bfree = max(0, quota - used) // 4096
        data.f_bavail = 0  # for writing
        data.f_files = len(self._tree)
        data.f_ffree = data.f_favail = 0
        data.f_namemax = MAX_NAME
        return data

    async def _admit(self, number: int, ctx: pyfuse3.RequestContext) -> None:
        """Raise NotAllowed where the configuration lets this caller not read an inode."""
        if not await self._allows(self._tree.inode(number).node, ctx):
            raise errors.NotAllowed(f"user {ctx.uid} may not read this")

    async def _allows(self, node: Node, ctx: pyfuse3.RequestContext) -> bool:
        rule = self._tree.rule(node)
        return rule is None or await self._guard.allows(rule, ctx.uid, ctx.gid, ctx.pid)

    async def _allowed(self, parent: int, ctx: pyfuse3.RequestContext) -> frozenset[str]:
        """Return the guarded sources that this caller may read, where a name can be of any source."""
        if not self._tree.is_guarded or not isinstance(self._tree.inode(parent).node, RefgetNode):
            return frozenset()
        who = ctx.uid, ctx.gid, ctx.pid
        return frozenset([name for name, rule in self._tree.rules.items() if await self._guard.allows(rule, *who)])

    def _entry(self, attributes: Attributes) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = attributes.inode
        entry.generation = 0
        entry.entry_timeout = attributes.entry_timeout
        entry.attr_timeout = attributes.attr_timeout
        entry.st_mode = attributes.mode
        entry.st_nlink = 1
        entry.st_uid = self._uid if attributes.uid is None else attributes.uid
        entry.st_gid = self._gid if attributes.gid is None else attributes.gid
        entry.st_rdev = 0
        entry.st_size = attributes.size
        entry.st_blksize = 1 << 20  # what tools should read at a time
        entry.st_blocks = -(-attributes.size // 512)
        stamp = int(attributes.mtime * 1e9)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = stamp
        return entry

    # -- folders ------------------------------------------------------------------------------------------

    @answered
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """Take the names of a folder that the caller may see, as they are now: a listing is of one moment."""
        await self._admit(inode, ctx)
        with self._caller(ctx.pid):
            listing = await self._tree.entries(inode)
            if self._tree.is_guarded:
                listing = [entry for entry in listing if await self._allows(entry[1], ctx)]
        handle = self._next_token()
        self._listings[handle] = (inode, listing)
        return handle

    @answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Give entries from `start_id` on, for as long as the kernel takes them. No I/O here."""
        inode, listing = self._listings[fh]
        for position in range(start_id, len(listing)):
            name, node = listing[position]
            attributes = self._tree.entry(inode, name, node)
            entry = self._entry(attributes)
            taken = pyfuse3.readdir_reply(token, pyfuse3.FileNameT(os.fsencode(name)), entry, position + 1)
            if not taken:
                self._tree.discard_unused(attributes.inode)
                return
            self._tree.remember(attributes.inode)

    @answered
    async def releasedir(self, fh: int) -> None:
        """Forget a listing."""
        self._listings.pop(fh, None)

    # -- files --------------------------------------------------------------------------------------------

    @answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a content; its pages stay in the kernel's cache, since a content never changes."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise errors.ReadOnly("the tree is read-only")
        await self._admit(inode, ctx)
        with self._caller(ctx.pid):
            opened = await self._tree.open(inode)
        try:
            await self._admit(inode, ctx)  # of a name that was answered early it is known by now where it leads
        except BaseException:
            self._tree.close(opened)
            raise
        opened.usage = self.users.account(ctx.uid)
        handle = self._next_token()
        self._open[handle] = Handle(opened, ctx.pid, ctx.uid, inode)
        return pyfuse3.FileInfo(fh=handle, keep_cache=True)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Return the bytes asked for. A direct read waits where no signal gets, so it is given up here too."""
        handle = self._open[fh]
        data = self._reader.read_resident(handle.file, off, size)
        if data is None:
            with self._caller(handle.pid, surely=False, reading=(handle, off, size)):
                data = await self._reader.read_missing(handle.file, off, size)
        return cast(bytes, data)

    @answered
    async def release(self, fh: int) -> None:
        """Close a file."""
        handle = self._open.pop(fh, None)
        if handle is not None:
            self._tree.close(handle.file)

    @answered
    async def flush(self, fh: int) -> None:
        """Do nothing: there is nothing to write."""

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Do nothing: there is nothing to write."""

    @answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Do nothing: there is nothing to write."""

    # -- extended attributes ------------------------------------------------------------------------------

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """Return one of user.refgenfs.*; all others are absent."""
        await self._admit(inode, ctx)
        node = self._tree.inode(inode).node
        if not name.startswith(XATTR_PREFIX):
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        value = self._info(node).get(name.removeprefix(XATTR_PREFIX).decode("ascii", "replace"))
        if value is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value.encode()

    @answered
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        """Return the names of the extended attributes."""
        await self._admit(inode, ctx)
        return [XATTR_PREFIX + name.encode() for name in self._info(self._tree.inode(inode).node)]

    # -- what would write ---------------------------------------------------------------------------------

    @answered
    async def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse whatever would change the tree."""
        raise errors.ReadOnly("the tree is read-only")

    setattr = create = mknod = mkdir = symlink = link = unlink = rmdir = rename = write = _refuse
    setxattr = removexattr = _refuse


FileInfoOf = Callable[[Node], dict[str, str]]


class Mount:
    """The mount itself: made, served, taken down. One a process, as pyfuse3 has it.

    With `device`, a /dev/fuse that somebody has mounted already, it is served only, and closed at the end.
    """

    def __init__(self, operations: Operations, mountpoint: str, device: int | None, *, allow_other: bool) -> None:
        self._operations = operations
        self._mountpoint = mountpoint if device is None else f"/dev/fd/{device}"  # as fuse_session_mount has it
        # These wait for reads under way, and reads may wait for trio's own threads.
        self._dropping = trio.CapacityLimiter(4)
        self._options = {"fsname=refgenfs", "subtype=refgenfs", "ro", "default_permissions", "nosuid", "nodev"}
        if allow_other:
            self._options.add("allow_other")

    def open(self) -> None:
        """Mount; raise RuntimeError when the kernel or fusermount3 refuses."""
        pyfuse3.init(cast(Any, self._operations), self._mountpoint, self._options)

    async def serve(self) -> None:
        """Answer requests until unmounted or `stop`."""
        # The default of 99 tasks would let 99 waiting readers block every `ls`.
        await pyfuse3.main(min_tasks=4, max_tasks=4096)

    def stop(self) -> None:
        """Let `serve` return once the requests under way are answered."""
        pyfuse3.terminate()

    def close(self) -> None:
        """Unmount, also with files open, and free what libfuse holds."""
        pyfuse3.close(unmount=True)

    def forget_name(self, parent: int, name: str) -> None:
        """Have the kernel look a name up anew; returns at once."""
        pyfuse3.invalidate_entry_async(parent, pyfuse3.FileNameT(os.fsencode(name)), ignore_enoent=True)

    async def forget_pages(self, inode: int) -> None:
        """Have the kernel drop an inode's pages. In a thread: it waits for reads that are under way."""
        try:
            await trio.to_thread.run_sync(
                pyfuse3.invalidate_inode, inode, abandon_on_cancel=True, limiter=self._dropping
            )
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                log.warning("can't drop the pages of inode %d: %s", inode, exc)
