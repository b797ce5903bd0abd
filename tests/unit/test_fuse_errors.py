"""What an error is answered with: the errno, the log line, the count. No mount.

Promises:
- every error of `core.errors` has its errno on purpose, those of other modules by their ancestry;
- whatever a handler raises leaves it as FUSEError, for anything else would take the mount down;
- what a user meets every day is not logged; what an administrator should know is, in one line, and kept;
- the unexpected is logged with its traceback, and counted apart.
"""

from __future__ import annotations

import errno
import importlib
import inspect
import logging
import os
import pkgutil
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio

import refgenfs
from refgenfs.core import errors
from refgenfs.core.content import FileFacts, InlineData
from refgenfs.core.errors import RefgenfsError
from refgenfs.core.readahead import Window
from refgenfs.core.shares import Shares
from refgenfs.fuse import ERRNOS, Interrupted, Operations, answered, errno_of
from refgenfs.fuse.callers import Callers
from refgenfs.processes import command_of
from refgenfs.reader.reader import OpenFile, Reader
from refgenfs.tracing import Handle
from refgenfs.tree import Tree

EXPECTED: dict[str, int] = {
    "RefgenfsError": errno.EIO,
    "KeyFormatError": errno.EIO,
    "ConfigError": errno.EIO,
    "NotInCatalog": errno.ENOENT,
    "CannotBeMade": errno.ENOENT,
    "NotADirectory": errno.ENOTDIR,
    "IsADirectory": errno.EISDIR,
    "ReadOnly": errno.EROFS,
    "TooManyOpenFiles": errno.EMFILE,
    "NoMoreOpenFiles": errno.ENFILE,
    "TooManyRequests": errno.EAGAIN,
    "TooManyNames": errno.EAGAIN,
    "NotAllowed": errno.EACCES,
    "OriginDenied": errno.EACCES,
    "OriginMissing": errno.EIO,
    "OriginNotFound": errno.EIO,
    "OriginUnavailable": errno.EIO,
    "SizeUnknown": errno.EIO,
    "StaleContent": errno.ESTALE,
    "AnotherFile": errno.ESTALE,
    "IntegrityError": errno.EIO,
    "ArchiveError": errno.EIO,
    "GenerateFailed": errno.EIO,
    "DeadlineExceeded": errno.ETIMEDOUT,
    "CacheError": errno.EIO,
    "CacheBusy": errno.EIO,
    "ControlError": errno.EIO,
    # of searches, which the control socket asks for and no reader of the mount
    "HtsgetError": errno.EIO,
    "InvalidInput": errno.EIO,
    "InvalidRange": errno.EIO,
    "UnsupportedFormat": errno.EIO,
    "PayloadTooLarge": errno.EIO,
    "ReferenceNotFound": errno.EIO,
    "NoPublicUrl": errno.EIO,
}
CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, RefgenfsError) and kind.__module__ == errors.__name__
]


def operations() -> Operations:
    return Operations(cast(Tree, None), cast(Reader, None), lambda _: {}, lambda: (0, 0))


def raising(error: BaseException) -> Any:
    """Return a handler that raises."""

    @answered
    async def handler(self: Operations) -> None:
        await trio.lowlevel.checkpoint()
        raise error

    return handler


async def answer(ops: Operations, error: BaseException) -> int:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await raising(error)(ops)
    return caught.value.errno


def test_the_table_names_every_error_there_is() -> None:
    """An error that is added must be given its errno here on purpose."""
    assert {kind.__name__ for kind in CLASSES} == set(EXPECTED)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_each_has_its_errno(kind: type[RefgenfsError]) -> None:
    assert errno_of(kind("what, where, and what to do")) == EXPECTED[kind.__name__]


def test_errors_of_other_modules_have_that_of_their_ancestor() -> None:
    for module in pkgutil.walk_packages(refgenfs.__path__, "refgenfs."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)
    found: set[type[RefgenfsError]] = set()
    todo = [RefgenfsError]
    while todo:
        kind = todo.pop()
        found.add(kind)
        todo += kind.__subclasses__()
    others = {kind for kind in found if kind.__module__.startswith("refgenfs.")} - set(CLASSES)
    assert {"StreamIdle", "BridgeClosed", "OriginFailing", "BlockDamaged"} <= {kind.__name__ for kind in others}
    for kind in others:
        near = next(base for base in kind.__mro__ if base.__module__ == errors.__name__ or base is Interrupted)
        wanted = errno.EINTR if near is Interrupted else EXPECTED[near.__name__]
        assert errno_of(kind.__new__(kind)) == wanted, kind


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (KeyError("a defect"), errno.EIO),
        (OSError(errno.ENOSPC, "no space"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (ExceptionGroup("a nursery's", [errors.OriginUnavailable("away")]), errno.EIO),
        (AssertionError("a defect"), errno.EIO),
        (trio.TooSlowError(), errno.EIO),
        (RecursionError(), errno.EIO),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_the_unexpected_is_answered_logged_and_counted(
    error: Exception, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    ops = operations()
    assert await answer(ops, error) == number
    assert (ops.counts.requests, ops.counts.failures, ops.counts.unexpected) == (1, 1, 1)
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"], "one line, not two"
    assert len(caplog.records) == 1
    assert errno.errorcode[number] in caplog.messages[0]
    assert len(ops.recent) == 1


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
async def test_whatever_is_raised_leaves_as_fuse_error(
    kind: type[RefgenfsError], caplog: pytest.LogCaptureFixture
) -> None:
    ops = operations()
    number = await answer(ops, kind("hg38.fa: the reason"))
    assert number == EXPECTED[kind.__name__]
    quiet = number in {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EROFS} or kind in {
        errors.NotAllowed,
        errors.AnotherFile,
    }
    assert ops.counts.requests == 1
    assert ops.counts.unexpected == 0
    assert ops.counts.failures == len(ops.recent) == len(caplog.records) == (0 if quiet else 1)
    if not quiet:
        line = caplog.messages[0]
        assert "handler failed: " in line
        assert kind.__name__ in line
        assert "hg38.fa: the reason" in line
        assert errno.errorcode[number] in line
        assert "\n" not in line
        assert caplog.records[0].levelno == logging.WARNING
        assert ops.recent[0][1] == line


async def test_a_failed_read_says_which_file_and_for_whom(caplog: pytest.LogCaptureFixture) -> None:
    ops = operations()
    tree = SimpleNamespace(
        inode=lambda number: SimpleNamespace(node=None), path_of=lambda number: "/hg38/a\n\x1b[1mb"
    )
    ops.tracing._tree = cast(Tree, tree)
    facts = FileFacts("c" * 40, 10, 0.0, InlineData(b""), "lab", "inline")
    ops._open[7] = Handle(OpenFile(facts, None, None, Window(10)), os.getpid(), 0, 5)

    @answered
    async def read(self: Operations, fh: int, off: int, size: int) -> None:
        await trio.lowlevel.checkpoint()
        raise errors.OriginUnavailable("http://h/x: HTTP 503 (attempt 3)")

    with pytest.raises(pyfuse3.FUSEError):
        await read(ops, 7, 0, 10)
    told = "read of /hg38/a??[1mb failed: OriginUnavailable: http://h/x: HTTP 503 (attempt 3) (EIO)"
    assert ops.recent[0][1] == told, "the same for all who read it, so that they count as one"
    assert caplog.messages == [f"{told}, for {command_of(os.getpid())} ({os.getpid()})"]


async def test_what_one_user_can_bring_about_is_one_line_whatever_others_do(caplog: pytest.LogCaptureFixture) -> None:
    ops = operations()
    shares = Shares(10, 10)
    callers = Callers(shares)

    async def refused(user: int) -> None:
        while shares.take(user):
            pass
        with pytest.raises(errors.TooManyRequests) as caught, callers.waiting(1, user):
            pass
        assert await answer(ops, caught.value) == errno.EAGAIN

    for others in range(3):
        await refused(1)
        shares.give_back(1, shares.held(1))
        assert shares.take(2), f"{others} wait for another, so that fewer of the first user's can"
    assert len(caplog.records) == 1
    await refused(3)
    assert len(caplog.records) == len(ops.recent) == 2, "and another user's is another one"


async def test_a_caller_that_is_killed_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    ops = operations()
    assert await answer(ops, Interrupted("process 7 is being killed")) == errno.EINTR
    assert ops.counts.failures == 0
    assert caplog.records == []


async def test_a_fuse_error_passes_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    ops = operations()
    assert await answer(ops, pyfuse3.FUSEError(errno.ENAMETOOLONG)) == errno.ENAMETOOLONG
    assert (ops.counts.requests, ops.counts.failures) == (1, 0)
    assert caplog.records == []


async def test_a_cancel_passes_as_it_is() -> None:
    """The daemon ends: trio's own exception must get through, and is no failure."""
    ops = operations()

    @answered
    async def handler(self: Operations) -> None:
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        scope.cancel()
        await handler(ops)
    assert scope.cancelled_caught
    assert (ops.counts.requests, ops.counts.failures) == (1, 0)


async def test_what_a_handler_returns_is_returned() -> None:
    @answered
    async def handler(self: Operations, number: int, *, more: int) -> int:
        await trio.lowlevel.checkpoint()
        return number + more

    ops = operations()
    assert await handler(ops, 1, more=2) == 3
    assert ops.counts.requests == 1


async def test_recent_errors_are_the_last_fifty() -> None:
    ops = operations()
    for number in range(60):
        await answer(ops, errors.OriginUnavailable(f"failure {number}."))
    assert len(ops.recent) == 50
    assert "failure 10." in ops.recent[0][1]
    assert "failure 59." in ops.recent[-1][1]


def test_every_handler_is_wrapped() -> None:
    """All that pyfuse3 may call, but for what must not fail and what is no request."""
    plain = {"forget", "init", "stacktrace"}
    for name, handler in inspect.getmembers(Operations, inspect.iscoroutinefunction):
        if name in plain or name not in vars(Operations) or not hasattr(pyfuse3.Operations, name):
            continue  # what is not ours says ENOSYS by itself
        assert hasattr(handler, "__wrapped__"), f"{name} is not answered"


@pytest.mark.parametrize(
    "name", ["setattr", "create", "mknod", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "write"]
)
async def test_whatever_would_write_is_refused(name: str) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await getattr(operations(), name)(1, b"x", "whatever")
    assert caught.value.errno == errno.EROFS


async def test_opening_for_writing_is_refused() -> None:
    ctx = cast(pyfuse3.RequestContext, SimpleNamespace(pid=0))
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await operations().open(1, flags, ctx)
        assert caught.value.errno == errno.EROFS


async def test_a_name_that_is_too_long_is_said_to_be() -> None:
    ctx = cast(pyfuse3.RequestContext, SimpleNamespace(pid=0))
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations().lookup(1, b"x" * 256, ctx)
    assert caught.value.errno == errno.ENAMETOOLONG


async def test_a_handle_that_is_not_open_is_an_error_not_the_end() -> None:
    ops = operations()
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await ops.read(99, 0, 10)
    assert caught.value.errno == errno.EIO
    await ops.release(99)
    await ops.releasedir(99)


def test_the_table_ends_in_a_catch_all() -> None:
    assert ERRNOS[Exception] == errno.EIO
