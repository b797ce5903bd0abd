"""A TCP proxy that makes loopback look like a network: latency, a rate a connection, and TCP's slow start.

    python -m benchmarks.shaping --listen PORT --to PORT [--rate 20000000] [--round-trip 0.02]

What netem would do in the kernel, where that has it, is done here on whole connections: the first bytes of a client
wait one round trip (the handshake) and all bytes wait half a round trip each way. Towards the client, a connection
begins with a window of ten segments (RFC 6928), which grows by what was sent, as in slow start, up to the rate; after
a pause of a quarter of a second it begins anew (RFC 5681, section 4.1). Nothing is lost or reordered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
from collections import deque

PIECE = 64 << 10
INITIAL_WINDOW = 10 * 1460  # bytes
IDLE = 0.25  # seconds: a little more than the least timeout of Linux, 200 ms
WAITING = 4 << 20  # bytes on the wire of one direction, at most: more than rate × round trip


class Wire:
    """One direction of a connection: what is put in comes out half a round trip later, at most at the rate."""

    def __init__(self, delay: float, rate: float | None, round_trip: float) -> None:
        self._delay = delay
        self._rate = rate
        self._round_trip = round_trip
        self._window = float(INITIAL_WINDOW)
        self._free_at = 0.0  # when the sender may send its next byte
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._held = 0
        self._changed = asyncio.Condition()

    @property
    def segment(self) -> int:
        """How much to put in at a time: little at first, and then as much as keeps the proxy's own cost down."""
        return int(min(PIECE, max(INITIAL_WINDOW, self._window / 4)))

    async def put(self, data: bytes) -> None:
        """Send bytes; b"" is the end. Waits while the wire is full."""
        now = asyncio.get_running_loop().time()
        due = now + self._delay
        if self._rate is not None and data:
            if now - self._free_at > IDLE:
                self._window = float(INITIAL_WINDOW)
            rate = min(self._rate, self._window / self._round_trip)
            self._free_at = max(now, self._free_at) + len(data) / rate
            self._window += len(data)
            due = self._free_at + self._delay
        async with self._changed:
            while self._held > WAITING:
                await self._changed.wait()
            self._pieces.append((due, data))
            self._held += len(data)
            self._changed.notify_all()

    async def get(self) -> bytes:
        """Return the next bytes when they have arrived; b"" at the end."""
        async with self._changed:
            while not self._pieces:
                await self._changed.wait()
        due, data = self._pieces[0]
        loop = asyncio.get_running_loop()
        if due - loop.time() > 0.0005:
            await asyncio.sleep(due - loop.time())
        async with self._changed:
            self._pieces.popleft()
            self._held -= len(data)
            self._changed.notify_all()
        return data


async def _fill(connection: socket.socket, wire: Wire, piece: int) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(connection, piece):
            start = 0
            while start < len(data):
                stop = start + wire.segment
                await wire.put(data[start:stop])
                start = stop
    await wire.put(b"")


async def _drain(wire: Wire, connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await wire.get():
        await loop.sock_sendall(connection, data)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)


async def _carry(client: socket.socket, port: int, rate: float, round_trip: float) -> None:
    """Carry one connection to its end; when one side goes, so does the other."""
    loop = asyncio.get_running_loop()
    server = socket.socket()
    server.setblocking(False)
    up, down = Wire(round_trip / 2, None, round_trip), Wire(round_trip / 2, rate, round_trip)
    try:
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # What the origin has sent and the client has not yet got is little: the origin counts what it sends.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 << 10)
        await loop.sock_connect(server, ("127.0.0.1", port))
        await asyncio.sleep(round_trip)
        tasks = [
            asyncio.create_task(job)
            for job in (
                _fill(client, up, PIECE),
                _drain(up, server),
                _fill(server, down, PIECE),
                _drain(down, client),
            )
        ]
        # The client has gone, or has all of the answer: then there is nobody to carry for.
        await asyncio.wait({tasks[0], tasks[3]}, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    except OSError:
        pass
    finally:
        server.close()
        client.close()


async def _serve(listen: int, port: int, rate: float, round_trip: float) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", listen), backlog=1024) as listener:
        listener.setblocking(False)
        carried: set[asyncio.Task[None]] = set()
        while True:
            client, _ = await loop.sock_accept(listener)
            client.setblocking(False)
            task = asyncio.create_task(_carry(client, port, rate, round_trip))
            carried.add(task)
            task.add_done_callback(carried.discard)


def main() -> None:
    """Run until terminated."""
    parser = argparse.ArgumentParser(prog="benchmarks.shaping", description="A TCP proxy with latency and a rate.")
    parser.add_argument("--listen", type=int, required=True)
    parser.add_argument("--to", type=int, required=True)
    parser.add_argument("--rate", type=float, default=20e6, help="bytes a second a connection")
    parser.add_argument("--round-trip", type=float, default=0.02, help="seconds")
    options = parser.parse_args()
    asyncio.run(_serve(options.listen, options.to, options.rate, options.round_trip))


if __name__ == "__main__":
    main()
