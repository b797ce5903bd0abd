"""A host that is far away: a relay in front of a local one, which hands every byte on after a while."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

PIECE = 256 * 1024  # bytes read at a time
ON_THE_WAY = 64  # pieces, in each direction: more than a connection of 20 MB/s has under way in 100 ms


class _Relay:
    def __init__(self, host: str, port: int, delay: float) -> None:
        self._target = host, port
        self._delay = delay
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Listen, and return the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Cut every connection; no socket is left for the collector to complain of."""
        assert self._server is not None
        for listener in self._server.sockets:  # what was just accepted gets to a task before the server is closed
            asyncio.get_running_loop().remove_reader(listener.fileno())
        await _let_callbacks_run()
        self._server.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await _let_callbacks_run()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):  # nobody cancels but `stop`, and asyncio would log it
            try:
                await asyncio.sleep(2 * self._delay)  # the handshake
                there_reader, there_writer = await asyncio.open_connection(*self._target)
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._carry(reader, there_writer))
                        group.create_task(self._carry(there_reader, writer))
                except asyncio.CancelledError:  # what is still to be sent would keep it open
                    there_writer.transport.abort()
                    raise
            except asyncio.CancelledError:
                writer.transport.abort()
                raise
        writer.close()

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Hand on what comes, each piece when its time has come, until the source ends; then close the sink."""
        loop = asyncio.get_running_loop()
        way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(ON_THE_WAY)

        async def hand_over() -> None:
            while True:
                due, piece = await way.get()
                await asyncio.sleep(due - loop.time())
                if not piece:
                    return
                sink.write(piece)
                await sink.drain()

        handing = asyncio.create_task(hand_over())
        try:
            piece = b"."
            while piece:
                piece = await source.read(PIECE)
                await way.put((loop.time() + self._delay, piece))
            await handing
        except OSError:
            pass  # one side has gone: so does the other
        finally:
            handing.cancel()
            with suppress(OSError):
                sink.close()


@contextmanager
def distant(url: str, round_trip: float) -> Iterator[str]:
    """Yield the URL of a relay to `url` on a port of its own, `round_trip` seconds away."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    relay = _Relay(parts.hostname, parts.port, round_trip / 2)
    loop = asyncio.new_event_loop()
    port = loop.run_until_complete(relay.start())
    thread = threading.Thread(target=loop.run_forever, name="distant")
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}{parts.path}"
    finally:
        asyncio.run_coroutine_threadsafe(relay.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _let_callbacks_run() -> None:
    for _ in range(8):  # three are enough for a new connection
        await asyncio.sleep(0)
