"""The bridge: results, errors and cancels between trio and the asyncio thread."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import trio

from refgenfs.fetch.bridge import Bridge, BridgeClosed, open_bridge


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    async with open_bridge(grace=0.5) as opened:
        yield opened


class Odd(Exception):
    """An error of no known family."""


async def wait_for(event: threading.Event) -> None:
    assert await trio.to_thread.run_sync(event.wait, 10)


class Job:
    """A coroutine that waits until it is cancelled, and then takes its time to clean up."""

    def __init__(self, cleanup: float = 0.0) -> None:
        self.started = threading.Event()
        self.cleaned = False
        self._cleanup = cleanup

    async def run(self) -> None:
        try:
            self.started.set()
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(self._cleanup)
            self.cleaned = True

    async def wait_started(self) -> None:
        await wait_for(self.started)


async def test_a_result_comes_back_from_another_thread(bridge: Bridge) -> None:
    async def where() -> tuple[int, str]:
        return threading.get_ident(), type(asyncio.get_running_loop()).__module__

    thread, module = await bridge.run(where)
    assert thread != threading.get_ident()
    assert module.startswith("asyncio.")


async def test_many_calls_share_one_loop(bridge: Bridge) -> None:
    loops: set[int] = set()

    async def note() -> None:
        await asyncio.sleep(0)
        loops.add(id(asyncio.get_running_loop()))

    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(bridge.run, note)
    assert loops == {id(bridge.loop)}


async def test_an_exception_keeps_its_type_its_cause_and_its_traceback(bridge: Bridge) -> None:
    async def fail() -> None:
        raise Odd("first") from ValueError("the cause")

    with pytest.raises(Odd, match="first") as caught:
        await bridge.run(fail)
    assert isinstance(caught.value.__cause__, ValueError)
    assert any(entry.name == "fail" for entry in caught.traceback)


async def test_an_exception_before_the_coroutine_is_made_comes_back_too(bridge: Bridge) -> None:
    async def never(_: object) -> None:
        raise AssertionError

    with pytest.raises(ZeroDivisionError):
        await bridge.run(lambda: never(1 // 0))


async def test_context_variables_go_along(bridge: Bridge) -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="none")
    name.set("mine")

    async def read() -> str:
        return name.get()

    assert await bridge.run(read) == "mine"


async def test_a_cancel_is_delivered_and_its_cleanup_waited_for(bridge: Bridge) -> None:
    job = Job(cleanup=0.1)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bridge.run, job.run)
            await job.wait_started()
            scope.cancel()
    assert scope.cancelled_caught
    assert job.cleaned


async def test_a_deadline_is_a_cancel(bridge: Bridge) -> None:
    job = Job(cleanup=0.05)
    with pytest.raises(trio.TooSlowError):
        with trio.fail_after(0.05):
            await bridge.run(job.run)
    assert job.cleaned


async def test_a_call_in_a_cancelled_scope_is_never_started(bridge: Bridge) -> None:
    job = Job()
    with trio.CancelScope() as scope:
        scope.cancel()
        await bridge.run(job.run)
    assert scope.cancelled_caught
    assert not job.started.is_set()


async def test_a_result_in_spite_of_a_cancel_is_not_lost(bridge: Bridge) -> None:
    started = threading.Event()

    async def stubborn() -> str:
        try:
            started.set()
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "done"
        raise AssertionError

    result = ""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def cancel_soon() -> None:
                await wait_for(started)
                scope.cancel()

            nursery.start_soon(cancel_soon)
            result = await bridge.run(stubborn)
    assert result == "done"


async def test_an_error_of_the_cleanup_is_not_hidden_by_the_cancel(bridge: Bridge) -> None:
    started = threading.Event()

    async def fail_cleaning() -> None:
        try:
            started.set()
            await asyncio.sleep(3600)
        finally:
            raise Odd("cleanup")

    caught: list[Odd] = []
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                try:
                    await bridge.run(fail_cleaning)
                except Odd as exc:
                    caught.append(exc)

            nursery.start_soon(call)
            await wait_for(started)
            scope.cancel()
    assert [str(each) for each in caught] == ["cleanup"]


async def test_cancels_at_any_moment_leave_nothing_behind(bridge: Bridge) -> None:
    running = 0

    async def work() -> int:
        nonlocal running
        running += 1
        try:
            await asyncio.sleep(0.002)
            return 1
        finally:
            running -= 1

    for round_ in range(150):
        done = 0
        with trio.move_on_after(round_ * 0.00003) as scope:
            done = await bridge.run(work)
        assert done == 1 or scope.cancelled_caught
        assert running == 0


async def test_a_task_that_cancels_itself_is_no_trio_cancel(bridge: Bridge) -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(BridgeClosed):
        await bridge.run(give_up)


async def test_closing_waits_for_calls_that_end_soon() -> None:
    results: list[str] = []

    async def finish_soon() -> str:
        await asyncio.sleep(0.1)
        return "finished"

    async with trio.open_nursery() as nursery, open_bridge() as bridge:

        async def call() -> None:
            results.append(await bridge.run(finish_soon))

        nursery.start_soon(call)
        await trio.sleep(0.02)
    assert results == ["finished"]


async def test_closing_cancels_calls_that_do_not_end() -> None:
    job = Job(cleanup=0.05)
    errors: list[Exception] = []
    async with trio.open_nursery() as nursery, open_bridge(grace=0.1) as bridge:

        async def call() -> None:
            try:
                await bridge.run(job.run)
            except BridgeClosed as exc:
                errors.append(exc)

        nursery.start_soon(call)
        await job.wait_started()
    assert job.cleaned
    assert len(errors) == 1


async def test_closing_gives_up_a_call_that_ignores_its_cancel(caplog: pytest.LogCaptureFixture) -> None:
    started = threading.Event()
    errors: list[Exception] = []

    async def deaf() -> None:
        task = asyncio.current_task()
        # asyncio would complain of the task that it lost: losing it is the point here
        assert task is not None
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        started.set()
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    with caplog.at_level(logging.WARNING):
        async with trio.open_nursery() as nursery, open_bridge(grace=0.1) as bridge:

            async def call() -> None:
                try:
                    await bridge.run(deaf)
                except BridgeClosed as exc:
                    errors.append(exc)

            nursery.start_soon(call)
            await wait_for(started)
    assert len(errors) == 1
    assert "abandoned" in caplog.text


async def test_tasks_that_a_call_left_running_end_with_the_bridge() -> None:
    ended = threading.Event()
    kept: list[asyncio.Task[None]] = []

    async def background() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async def spawn() -> None:
        kept.append(asyncio.get_running_loop().create_task(background()))
        await asyncio.sleep(0)

    async with open_bridge(grace=0.5) as bridge:
        await bridge.run(spawn)
    assert ended.is_set()


async def test_after_closing_a_call_is_refused() -> None:
    async with open_bridge() as bridge:
        pass

    async def never() -> None:
        raise AssertionError

    with pytest.raises(BridgeClosed):
        await bridge.run(never)


async def test_the_thread_ends_with_the_bridge() -> None:
    def threads() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "refgenfs-fetch"]

    before = set(threads())
    async with open_bridge():
        (thread,) = set(threads()) - before
    await trio.to_thread.run_sync(thread.join, 10)
    assert not thread.is_alive()


async def test_closing_works_under_a_cancel() -> None:
    job = Job(cleanup=0.05)
    with trio.CancelScope() as scope:
        async with open_bridge(grace=0.5) as bridge, trio.open_nursery() as nursery:
            nursery.start_soon(bridge.run, job.run)
            await job.wait_started()
            scope.cancel()
    assert job.cleaned
    assert bridge.loop.is_closed()
