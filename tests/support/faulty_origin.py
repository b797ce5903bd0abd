"""The demo's origin with faults: what an origin does wrong, by path and number of requests.

In process: `with running(FaultyOrigin(root)) as origin: origin.faults = [Fault("status", times=2)]`. In a process of
its own it is run as `python -m tests.support.faulty_origin`, with the demo origin's options; `POST /_faults` takes a
JSON list of faults in place of those that are left, `GET /_faults` lists what is left, `DELETE /_faults` clears it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

from aiohttp import web

from refgenfs.demo.origin import Origin, main
from refgenfs.demo.replies import Ask, Body, Reply, text_reply

Kind = Literal[
    "status",  # answer with status `value`, and Retry-After when `retry_after` is set
    "truncate",  # announce the whole body, close the connection in good order after `after` bytes
    "reset",  # the same, with a TCP reset
    "stall",  # the same, and then nothing: the connection stays open
    "silent",  # never answer at all
    "ignore_range",  # 200 and the whole file for a range
    "shift_range",  # Content-Range says a start and an end `value` bytes further on; the bytes are those asked for
    "wrong_total",  # Content-Range's total is off by `value`
    "wrong_length",  # Content-Length is off by `value`; the connection closes after the real bytes
    "flip_etag",  # another ETag, the same bytes; If-Range with the real one no longer holds
    "flip_bit",  # the lowest bit of the body's byte `after` is flipped
]

POLL = 0.02  # seconds between looks at whether the client of a stalled answer has left


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with the next `times` requests (None: with every one) whose path matches the glob `path`.

    `after` counts the bytes of the response's body. `flip_etag` as a rule wants `times=None`: a new version stays.
    """

    kind: Kind
    path: str = "*"
    times: int | None = 1
    after: int = 0
    value: int = 0
    retry_after: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown kind."""
        if self.kind not in get_args(Kind):
            raise ValueError(f"{self.kind!r} is no kind of fault: {', '.join(get_args(Kind))}")


@dataclass(slots=True)
class _Part:
    """The first `size` bytes of a body, with one bit flipped when `flipped` lies among them."""

    whole: Body
    size: int
    flipped: int = -1

    def read(self, offset: int, size: int) -> bytes:
        data = bytearray(self.whole.read(offset, max(0, min(size, self.size - offset))))
        if 0 <= self.flipped - offset < len(data):
            data[self.flipped - offset] ^= 1
        return bytes(data)

    def close(self) -> None:
        self.whole.close()


class FaultyOrigin(Origin):
    """An origin that goes wrong as its `faults` say; the first fault that matches a request decides on it."""

    def __init__(self, root: Path, **options: Any) -> None:
        """Take the options of `Origin`; there are no faults at first."""
        super().__init__(root, **options)
        self._faults: list[Fault] = []
        self._faults_lock = threading.Lock()

    @property
    def faults(self) -> list[Fault]:
        """The faults that are left, `times` counted down; may be set from any thread."""
        with self._faults_lock:
            return list(self._faults)

    @faults.setter
    def faults(self, faults: Iterable[Fault]) -> None:
        with self._faults_lock:
            self._faults = list(faults)

    async def control(self, request: web.Request) -> web.StreamResponse:
        if request.path != "/_faults":
            return await super().control(request)
        if request.method == "DELETE":
            self.faults = []
        elif request.method == "POST":
            try:
                self.faults = [Fault(**item) for item in await request.json()]
            except (TypeError, ValueError) as exc:
                raise web.HTTPBadRequest(text=str(exc)) from exc
        return web.json_response([asdict(fault) for fault in self.faults])

    async def exchange(self, request: web.Request, ask: Ask) -> web.StreamResponse:
        fault = self._next_fault(ask.path)
        if fault is None:
            return await super().exchange(request, ask)
        if fault.kind == "silent":
            await _wait_for_leaving(request)
            return web.Response()
        if fault.kind in ("truncate", "reset", "stall", "wrong_length"):
            return await self._break_off(request, self.answer(ask), fault)
        return await self.send(request, self._damaged(ask, fault))

    def _next_fault(self, path: str) -> Fault | None:
        with self._faults_lock:
            for i, fault in enumerate(self._faults):
                if not fnmatchcase(path, fault.path):
                    continue
                if fault.times is not None and fault.times <= 1:
                    del self._faults[i]
                elif fault.times is not None:
                    self._faults[i] = replace(fault, times=fault.times - 1)
                return fault
        return None

    def _damaged(self, ask: Ask, fault: Fault) -> Reply:
        """Return a whole reply in which something is wrong."""
        if fault.kind == "status":
            reply = text_reply("a fault that was asked for", fault.value or 503)
            if fault.retry_after is not None:
                reply.headers["Retry-After"] = str(fault.retry_after)
            return reply
        if fault.kind == "ignore_range":
            return self.answer(_without(ask, "range"))
        if fault.kind == "flip_etag":
            return self._other_version(ask)
        reply = self.answer(ask)
        if fault.kind == "flip_bit":
            reply.body = _Part(reply.body, reply.body.size, flipped=fault.after)
        elif "Content-Range" in reply.headers:
            shift, more = (fault.value, 0) if fault.kind == "shift_range" else (0, fault.value)
            reply.headers["Content-Range"] = _altered(reply.headers["Content-Range"], shift, more)
        return reply

    def _other_version(self, ask: Ask) -> Reply:
        """Return the reply as a server would give it that has another version, with the same bytes."""
        probe = self.answer(Ask("GET", ask.path, ask.query))
        probe.body.close()
        etag = probe.headers.get("ETag", '""')[:-1] + '-other"'
        validator = ask.headers.get("if-range")
        reply = self.answer(_without(ask, "if-range", *([] if validator in (None, etag) else ["range"])))
        if "ETag" in reply.headers:
            reply.headers["ETag"] = etag
        return reply

    async def _break_off(self, request: web.Request, reply: Reply, fault: Fault) -> web.StreamResponse:
        """Send a reply that doesn't end as its headers say."""
        size = reply.body.size
        lie = fault.value if fault.kind == "wrong_length" else 0
        part = min(size, size + lie) if fault.kind == "wrong_length" else min(fault.after, size)
        try:
            response = await self.begin(request, reply, max(0, size + lie))
            if request.method != "HEAD":
                await self.transmit(request, response, _Part(reply.body, part))
        finally:
            reply.body.close()
        if fault.kind == "stall":
            await _wait_for_leaving(request)
        _cut(request, reset=fault.kind == "reset")
        return response


def _without(ask: Ask, *names: str) -> Ask:
    return replace(ask, headers={name: value for name, value in ask.headers.items() if name not in names})


def _altered(content_range: str, shift: int, more: int) -> str:
    span, _, total = content_range.removeprefix("bytes ").partition("/")
    first, last = (int(part) for part in span.split("-"))
    return f"bytes {first + shift}-{last + shift}/{int(total) + more}"


async def _wait_for_leaving(request: web.Request) -> None:
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110 - tells no other way
        await asyncio.sleep(POLL)


def _cut(request: web.Request, *, reset: bool) -> None:
    """Close the client's connection: with what was written delivered, or with a TCP reset."""
    transport = request.transport
    if transport is None:
        return
    if not reset:
        transport.close()
        return
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


if __name__ == "__main__":
    main(make=FaultyOrigin)
