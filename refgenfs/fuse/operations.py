"""Requests of the kernel, answered out of a tree and a reader."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import pyfuse3
import trio

from refgenfs.core import errors
from refgenfs.core.errands import on_behalf_of
from refgenfs.core.shares import Shares
from refgenfs.core.usage import Users
from refgenfs.fuse.callers import Callers
from refgenfs.fuse.errnos import Answers, answered
from refgenfs.fuse.notices import forget_name
from refgenfs.fuse.unlisted import Unlisted
from refgenfs.reader.reader import Reader
from refgenfs.tracing import Handle, Tracing
from refgenfs.tree import Attributes, Node, RefgetNode, Tree
from refgenfs.users import Guard

MAX_NAME = 255  # bytes
TASKS = 4096  # requests under way at a time; of one user, no more than there are left for others
SPARE = 256  # beyond those: what is answered at once needs one too
OPEN_FILES = 65536  # of all users together; each costs about 1 KiB
USERS_OPEN_FILES = 4096  # of one user, where the configuration says nothing
LISTED = 256  # entries of a listing that count as one more open file
XATTR_PREFIX = b"user.refgenfs."

FileInfoOf = Callable[[Node], dict[str, str]]


@dataclass(frozen=True, slots=True)
class _Listing:
    """A folder that is open: its inode, its names as they were then, and whose it is."""

    inode: int
    entries: Sequence[tuple[str, Node]]
    uid: int
    counts: int  # as so many open files


class Operations(Answers, pyfuse3.Operations):
    """Answers the kernel out of a tree and a reader."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, tree: Tree, reader: Reader, files: FileInfoOf, space: Callable[[], tuple[int, int]]) -> None:
        self._open: dict[int, Handle] = {}
        super().__init__(Tracing(tree, self._open))
        self.users = Users()
        self.callers = Callers(Shares(TASKS, TASKS))
        self._handles = Shares(OPEN_FILES, USERS_OPEN_FILES, exempt=(0, os.getuid()))
        self._unlisted = Unlisted(forget_name)
        self.greeted = trio.Event()  # set when the kernel has shaken hands with us
        self._tree = tree
        self._reader = reader
        self._info = files
        self._space = space
        self._listings: dict[int, _Listing] = {}
        self._next_handle = 1
        self._uid, self._gid = os.getuid(), os.getgid()
        self._guard = Guard()

    def init(self) -> None:
        """Note the kernel's FUSE_INIT; libfuse answers it before any task of ours runs again."""
        self.greeted.set()

    @property
    def open_files(self) -> int:
        """How many files are open."""
        return len(self._open)

    def bound(self, open_files: int) -> None:
        """Let each user have so many files open from now on; what is open stays so."""
        self._handles.each = open_files

    def _next_token(self) -> int:
        self._next_handle += 1
        return self._next_handle

    # -- names and attributes -----------------------------------------------------------------------------

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Resolve a name, and count the lookup."""
        if len(name) > MAX_NAME:
            raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
        await self._admit(parent_inode, ctx)
        with self.callers.waiting(ctx.pid, ctx.uid):
            attributes = await self._tree.lookup(
                parent_inode, os.fsdecode(name), await self._allowed(parent_inode, ctx)
            )
        # counted at once: the inode lives by it
        self._tree.remember(attributes.inode)
        try:
            if self._tree.is_unlisted(attributes.inode):
                self._unlisted.found(attributes.inode, parent_inode, os.fsdecode(name), ctx.uid)
            await self._admit(attributes.inode, ctx)
        except BaseException:
            self._forget(attributes.inode, 1)
            raise
        return self._entry(attributes)

    def _forget(self, number: int, lookups: int) -> None:
        self._tree.forget(number, lookups)
        if number not in self._tree:
            self._unlisted.forgotten(number)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Take back lookups; must not fail."""
        for number, lookups in inode_list:
            self._forget(number, lookups)

    @answered
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Return attributes; for a file this waits until its size is known."""
        with self.callers.waiting(ctx.pid, ctx.uid):
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
        counts = 1
        self._take_handles(ctx.uid, counts)
        try:
            with self.callers.waiting(ctx.pid, ctx.uid):
                listing = await self._tree.entries(inode)
                if self._tree.is_guarded:
                    listing = [entry for entry in listing if await self._allows(entry[1], ctx)]
            more = len(listing) // LISTED
            self._take_handles(ctx.uid, more)
            counts += more
        except BaseException:
            self._handles.give_back(ctx.uid, counts)
            raise
        handle = self._next_token()
        self._listings[handle] = _Listing(inode, listing, ctx.uid, counts)
        return handle

    def _take_handles(self, uid: int, number: int) -> None:
        """Count so many more open files of a user; raise TooManyOpenFiles or NoMoreOpenFiles."""
        if number and not self._handles.take(uid, number):
            if self._handles.full(uid, number):
                raise errors.TooManyOpenFiles(f"user {uid} has as many open as limits.open_files allows")
            raise errors.NoMoreOpenFiles("all users together have as many open as there may be")

    @answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Give entries from `start_id` on, for as long as the kernel takes them. No I/O here."""
        listing = self._listings[fh]
        inode = listing.inode
        for position in range(start_id, len(listing.entries)):
            name, node = listing.entries[position]
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
        listing = self._listings.pop(fh, None)
        if listing is not None:
            self._handles.give_back(listing.uid, listing.counts)

    # -- files --------------------------------------------------------------------------------------------

    @answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a content; its pages stay in the kernel's cache, since a content never changes."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise errors.ReadOnly("the tree is read-only")
        await self._admit(inode, ctx)
        self._take_handles(ctx.uid, 1)
        try:
            with self.callers.waiting(ctx.pid, ctx.uid):
                opened = await self._tree.open(inode)
            try:
                await self._admit(inode, ctx)  # of a name that was answered early it is known by now where it leads
            except BaseException:
                self._tree.close(opened)
                raise
        except BaseException:
            self._handles.give_back(ctx.uid)
            raise
        opened.usage = self.users.account(ctx.uid)
        handle = self._next_token()
        self._open[handle] = Handle(opened, ctx.pid, ctx.uid, inode)
        return pyfuse3.FileInfo(fh=handle, keep_cache=True)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Return the bytes asked for. A direct read waits where no signal gets, so it is given up here too."""
        handle = self._open[fh]
        with on_behalf_of(handle.uid):  # it may have more fetched ahead
            data = self._reader.read_resident(handle.file, off, size)
        if data is None:
            with self.callers.waiting(handle.pid, handle.uid, surely=False, reading=(handle, off, size)):
                data = await self._reader.read_missing(handle.file, off, size)
        return cast(bytes, data)

    @answered
    async def release(self, fh: int) -> None:
        """Close a file."""
        handle = self._open.pop(fh, None)
        if handle is not None:
            self._handles.give_back(handle.uid)
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
