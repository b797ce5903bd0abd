"""Questions of the asyncio loop to the trio thread, each with a deadline; and answers that are kept for a while."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, NoReturn, TypeVar

import outcome
import trio

from refgenfs.core.errors import RefgenfsError

T = TypeVar("T")

log = logging.getLogger(__name__)


class NoAnswer(RefgenfsError):
    """The daemon is busy, or it is ending."""


class AnswerFailed(RefgenfsError):
    """What should give the answer has a defect; the log says which."""


class Crossing:
    """The way to the trio thread. `run` has to be running there; `ask` is for the asyncio loop."""

    def __init__(self) -> None:
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None

    async def run(self) -> NoReturn:
        """Answer until cancelled."""
        self._token = trio.lowlevel.current_trio_token()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await trio.sleep_forever()
        finally:
            self._nursery = None
        raise AssertionError("unreachable")

    async def ask(self, call: Callable[[], Awaitable[T]], deadline: float) -> T:
        """Return what `call` returns on the trio thread, or raise the RefgenfsError that it raises.

        Raises NoAnswer after `deadline` seconds, and AnswerFailed for any other exception.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(result: outcome.Outcome[T]) -> None:
            if answer.done():  # who asked has gone
                return
            if isinstance(result, outcome.Error):
                answer.set_exception(result.error)
            else:
                answer.set_result(result.unwrap())

        def begin() -> None:  # on the trio thread, where nothing may be raised
            if self._nursery is not None:
                self._nursery.start_soon(_answer, call, deadline, deliver)
            else:
                deliver(outcome.Error(NoAnswer("the daemon is ending")))

        def deliver(result: outcome.Outcome[T]) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(settle, result)

        if self._token is None:
            raise NoAnswer("the daemon is starting")
        try:
            self._token.run_sync_soon(begin)
        except trio.RunFinishedError as exc:
            raise NoAnswer("the daemon is ending") from exc
        try:
            async with asyncio.timeout(deadline + 1):  # should the trio thread itself be held up
                return await answer
        except TimeoutError as exc:
            raise NoAnswer("the daemon is busy") from exc


async def _answer(
    call: Callable[[], Awaitable[T]], deadline: float, deliver: Callable[[outcome.Outcome[T]], None]
) -> None:
    result: outcome.Outcome[T] = outcome.Error(NoAnswer("the daemon is busy"))
    try:
        with trio.move_on_after(deadline):
            result = outcome.Value(await call())
    except RefgenfsError as exc:
        result = outcome.Error(exc)
    except Exception:
        log.exception("an answer for the status page could not be made")
        result = outcome.Error(AnswerFailed("no answer"))
    finally:
        deliver(result)


class Kept(Generic[T]):
    """The last answer to a question: who asks again soon gets it again, and all who ask meanwhile get the next."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._value: T | None = None
        self._made = float("-inf")

    async def get(self, fresh: float, patience: float, make: Callable[[], Awaitable[T]]) -> T:
        """Return the answer, made anew where the last is `fresh` seconds old.

        Raises what `make` raises, and NoAnswer where others have waited for it for `patience` seconds.
        """
        try:
            await asyncio.wait_for(self._turn.acquire(), patience)
        except TimeoutError as exc:
            raise NoAnswer("the daemon is busy") from exc
        try:
            now = asyncio.get_running_loop().time()
            if self._value is None or now - self._made >= fresh:
                self._value = await make()
                self._made = asyncio.get_running_loop().time()
            return self._value
        finally:
            self._turn.release()
