"""The bridge from trio to the one asyncio loop, which lives on a thread of its own.

A call crosses twice: a coroutine goes over, its result or exception comes back (0.1 to 0.5 ms in all). A
trio cancel is handed to the asyncio task and then waited for: whatever the task does in its `finally` is
done when `Bridge.run` returns, so buffers and reservations may be released then.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, TypeVar

import outcome
import trio

from refgenfs.core.errors import RefgenfsError

T = TypeVar("T")

log = logging.getLogger(__name__)


class BridgeClosed(RefgenfsError):
    """The asyncio thread is ending, or has ended."""


class _Call(Generic[T]):
    """One crossing: a trio task that waits for an asyncio task. Settled once, on the trio thread."""

    __slots__ = ("_raise_cancel", "_settled", "_token", "_trio_task", "call", "task")

    def __init__(self, call: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self.call = call
        self.task: asyncio.Task[T] | None = None
        self._token = trio.lowlevel.current_trio_token()
        self._trio_task = trio.lowlevel.current_task()
        self._raise_cancel: trio.lowlevel.RaiseCancelT | None = None
        self._settled = False

    def note_cancel(self, raise_cancel: trio.lowlevel.RaiseCancelT) -> None:
        """Remember that trio wants to cancel (trio thread)."""
        self._raise_cancel = raise_cancel

    def settle(self, result: outcome.Outcome[T]) -> None:
        """Wake the trio task with `result` (any thread); the first result counts."""
        try:
            self._token.run_sync_soon(self._wake, result)
        except trio.RunFinishedError:
            log.debug("a call outlived the trio run that made it")

    def _wake(self, result: outcome.Outcome[T]) -> None:
        if self._settled:
            return
        self._settled = True
        trio.lowlevel.reschedule(self._trio_task, self._translate(result))

    def _translate(self, result: outcome.Outcome[T]) -> outcome.Outcome[Any]:
        # A result or an error that came in spite of a cancel is kept: trio raises Cancelled at the next
        # checkpoint anyway. Only a task that ended *by* the cancel answers with trio's Cancelled.
        if not isinstance(result, outcome.Error) or not isinstance(result.error, asyncio.CancelledError):
            return result
        if self._raise_cancel is not None:
            return outcome.capture(self._raise_cancel)
        closed = BridgeClosed("the call was given up because the daemon is ending")
        closed.__cause__ = result.error
        return outcome.Error(closed)


class Bridge:
    """The asyncio loop and the way to it. Made by `open_bridge`; belongs to the trio thread."""

    def __init__(self) -> None:
        self._loop = asyncio.SelectorEventLoop()
        # Owned by the asyncio thread.
        self._calls: set[_Call[Any]] = set()
        self._closing = False
        self._ended: trio.Event | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The asyncio loop; only its thread-safe methods may be called from trio."""
        return self._loop

    async def run(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `call()` on the asyncio loop and return its result.

        Exceptions pass through as they are. A trio cancel is delivered to the asyncio task, and its end is
        waited for. Raises BridgeClosed when the bridge is closed, before or meanwhile.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closing:
            raise BridgeClosed("the daemon is ending")
        crossing = _Call(call)
        self._loop.call_soon_threadsafe(self._start, crossing)

        def abort(raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            crossing.note_cancel(raise_cancel)
            with suppress(RuntimeError):  # the loop is closed: then the call's end is on its way already
                self._loop.call_soon_threadsafe(self._cancel, crossing)
            return trio.lowlevel.Abort.FAILED

        result: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return result

    # ---- on the asyncio thread

    def _start(self, crossing: _Call[Any]) -> None:
        async def invoke() -> Any:
            return await crossing.call()

        crossing.task = self._loop.create_task(invoke())
        self._calls.add(crossing)
        crossing.task.add_done_callback(lambda task: self._finish(crossing, task))

    def _cancel(self, crossing: _Call[Any]) -> None:
        # _start came first: call_soon_threadsafe keeps the order. A finished task takes no notice.
        if crossing.task is not None:
            crossing.task.cancel()

    def _finish(self, crossing: _Call[Any], task: asyncio.Task[Any]) -> None:
        self._calls.discard(crossing)
        if task.cancelled():
            crossing.settle(outcome.Error(asyncio.CancelledError()))
        elif (error := task.exception()) is not None:
            crossing.settle(outcome.Error(error))
        else:
            crossing.settle(outcome.Value(task.result()))

    def _serve(self, token: trio.lowlevel.TrioToken, ended: trio.Event, grace: float) -> None:
        """The thread: run the loop until it is stopped, then end every task within the grace."""
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._drain(grace))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            for crossing in self._calls:
                crossing.settle(outcome.Error(BridgeClosed("the call did not end with the daemon")))
            asyncio.set_event_loop(None)
            self._loop.close()
            try:
                token.run_sync_soon(ended.set)
            except trio.RunFinishedError:
                log.debug("the fetch thread outlived the trio run that made it")

    async def _drain(self, grace: float) -> None:
        """Wait for the calls under way, cancel what is left, and wait for that: `grace` seconds each."""
        calls = {crossing.task for crossing in self._calls if crossing.task is not None}
        if calls:
            await asyncio.wait(calls, timeout=grace)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            _, stuck = await asyncio.wait(rest, timeout=grace)
            if stuck:
                log.warning("%d fetch tasks did not end within %g s and are abandoned", len(stuck), grace)

    # ---- on the trio thread

    def _open(self, grace: float) -> None:
        self._ended = trio.Event()
        token = trio.lowlevel.current_trio_token()
        threading.Thread(
            target=self._serve, args=(token, self._ended, grace), name="refgenfs-fetch", daemon=True
        ).start()

    async def _close(self, grace: float) -> None:
        assert self._ended is not None
        self._closing = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        # Twice the grace is what _drain takes at most; the rest is for a loop that is blocked.
        with trio.CancelScope(shield=True), trio.move_on_after(2 * grace + 5):
            await self._ended.wait()
        if not self._ended.is_set():
            log.warning("the fetch thread did not end; it is left behind")
            for crossing in list(self._calls):
                crossing.settle(outcome.Error(BridgeClosed("the call did not end with the daemon")))


@asynccontextmanager
async def open_bridge(*, grace: float = 5.0) -> AsyncIterator[Bridge]:
    """Start the asyncio thread; at the end wait for its tasks, `grace` seconds, then cancel them."""
    bridge = Bridge()
    bridge._open(grace)
    try:
        yield bridge
    finally:
        await bridge._close(grace)
