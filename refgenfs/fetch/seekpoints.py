"""Making the seek index of an archive while it is inflated."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from refgenfs.core.errors import RefgenfsError
from refgenfs.core.seekindex import MAX_SPAN, MAX_SPANS, SpanTable, edges, encode_head, pack_window, span_digest
from refgenfs.core.tar import Member
from refgenfs.fetch.libz import BlockInflater

log = logging.getLogger(__name__)

_NEVER = 1 << 63  # an offset that no archive reaches
_ZEROS = memoryview(bytes(1 << 16))


class NotIndexed(RefgenfsError):
    """There is no seek index of an archive, and why."""


class IndexBuilder:
    """Inflates an archive, and collects its points; windows go to a file at `spill` at once.

    `inflate` and `ended` are those of a `GzipInflater`; they go on when no index can be made any more, which is
    logged, and said by `failed`. Who parses what is inflated tells of each member, with `expect`. Not thread-safe,
    but tied to no thread. `close` must be called.
    """

    def __init__(self, spill: Path, spacing: int) -> None:
        """Take a path for the windows, where nothing is, and the least number of unpacked bytes of a span.

        Raises LibzMissing where the system has no zlib. The file is made when the first window comes, and is never
        seen: it has no name once it is open.
        """
        self.failed = ""
        self._spill = spill
        self._windows: BinaryIO | None = None
        self._spacing = spacing
        self._inflater = BlockInflater()
        self._table = SpanTable()
        self._digest: hashlib.blake2b | None = None  # of the span that is going on
        self._hashed = 0  # packed offset up to which it has
        self._packed_start = 0  # of that span
        self._out_start = 0
        self._edges: deque[int] = deque()  # unpacked offsets behind which a point is wanted, ascending

    @property
    def ended(self) -> bool:
        """Say whether the last gzip member that began has ended, with the right checksum."""
        return self._inflater.ended

    @property
    def packed(self) -> int:
        """Packed bytes that have gone by."""
        return self._inflater.packed

    @property
    def out(self) -> int:
        """Unpacked bytes that have gone by."""
        return self._inflater.out

    @property
    def spans(self) -> int:
        """How many spans have begun."""
        return len(self._table.bits)

    def inflate(self, data: bytes) -> Iterator[memoryview]:
        """Give what the data inflates to, at most `STEP` bytes at once, never empty; raise ArchiveError."""
        inflater = self._inflater
        base = inflater.packed
        for event in inflater.inflate(data):
            if isinstance(event, memoryview):
                yield event
            elif not self.failed:
                self._attempt_point(event, data, base)
        if not self.failed:
            self._hash(inflater.member_stop if inflater.ended else inflater.packed, data, base)
            self._check_length()

    def expect(self, member: Member) -> None:
        """Hear that a member's header has gone by, as soon as it has: points will be near the ends of its data."""
        self._edges.extend(edges(member, self._spacing))
        if not self.failed:
            self._look_for_point()

    @property
    def spilled(self) -> int:
        """How many bytes the windows take that went to the file so far. For any thread."""
        return sum(self._table.windows)

    def finish(self, members: Sequence[Member], archive_digest: str, path: Path) -> int:
        """Write the whole index file to `path`, synced, and return its size; `archive_digest` is an MD5 (hex).

        What was at `path` is replaced at once by the whole file or stays. Raises NotIndexed where no index could be
        made, IntegrityError where it would be too large, and OSError.
        """
        inflater = self._inflater
        if self.failed or self._digest is None or not inflater.ended:
            raise NotIndexed(self.failed or "the archive has not gone by whole")
        self._end_span(inflater.member_stop)
        self._digest = None  # once only
        head = encode_head(self._table, members, archive_digest, inflater.packed, inflater.out)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with partial.open("xb") as target:
                target.write(head)
                if self._windows is not None:
                    self._windows.seek(0)
                    shutil.copyfileobj(self._windows, target)
                target.flush()
                os.fsync(target.fileno())
                size = target.tell()
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        return size

    def close(self) -> None:
        """Give back memory and the room of what was spilled. Idempotent."""
        self._inflater.close()
        self._drop_windows()

    def _drop_windows(self) -> None:
        windows, self._windows = self._windows, None
        if windows is not None:
            with contextlib.suppress(OSError):
                windows.close()  # may have something left to write

    def _fail(self, reason: str) -> None:
        """Go on without an index."""
        self.failed = reason
        self._inflater.next_point = _NEVER
        self._table = SpanTable()
        self._drop_windows()
        log.info("no seek index of this archive: %s", reason)

    def _check_length(self) -> None:
        """Give up where a span gets too long: it must fit into a reader's memory."""
        inflater = self._inflater
        if inflater.packed - self._packed_start > MAX_SPAN or inflater.out - self._out_start > MAX_SPAN:
            self._fail(f"no boundary of deflate blocks within {MAX_SPAN >> 20} MiB")
        elif self.spans > MAX_SPANS:
            self._fail(f"it has more than {MAX_SPANS} spans")

    def _attempt_point(self, bits: int, data: bytes, base: int) -> None:
        inflater = self._inflater
        self._check_length()
        if self.failed:
            return
        self._hash(inflater.packed, data, base)
        consumed = inflater.packed - base
        assert consumed or not bits, "what ends a block needs bits of the newest byte, or had ended it before"
        shared = data[consumed - 1 : consumed] if bits else b""
        try:
            self._begin_span(bits, shared)
        except OSError as exc:
            self._fail(f"its windows can't be kept in {self._spill.parent}: {exc.strerror or exc}")

    def _begin_span(self, bits: int, shared: bytes) -> None:
        """Begin a span here; `shared` is the byte that is also the last of the one before, if there is one."""
        inflater, table = self._inflater, self._table
        start = inflater.packed - len(shared)
        if self._digest is None:
            table.packed_start = start
        else:
            self._end_span(inflater.packed)
        window = inflater.window()
        packed_window = pack_window(window)
        self._keep(packed_window)
        table.bits.append(bits)
        table.windows.append(len(packed_window))
        self._digest = span_digest(window)
        self._digest.update(shared)
        self._packed_start, self._out_start = start, inflater.out
        self._look_for_point()

    def _look_for_point(self) -> None:
        """Have the inflater stop at the next boundary where a point should be."""
        while self._edges and self._edges[0] <= self._out_start:
            self._edges.popleft()
        regular = self._out_start + self._spacing
        self._inflater.next_point = min(regular, self._edges[0]) if self._edges else regular

    def _end_span(self, stop: int) -> None:
        assert self._digest is not None
        table = self._table
        table.digests += self._digest.digest()
        table.packed.append(stop - self._packed_start)
        table.out.append(self._inflater.out - self._out_start)

    def _keep(self, window: bytes) -> None:
        if window and self._windows is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._windows = os.fdopen(os.open(self._spill, flags, 0o600), "w+b")
            self._spill.unlink()  # goes with the process, however that ends
        if self._windows is not None:
            self._windows.write(window)

    def _hash(self, stop: int, data: bytes, base: int) -> None:
        """Feed the span's digest with the packed bytes up to `stop`; `data` begins at `base`."""
        start, self._hashed = self._hashed, max(stop, self._hashed)
        if self._digest is None or stop <= start:
            return
        for at in range(
            start, min(base, stop), len(_ZEROS)
        ):  # between gzip members; held back, for it might be the end
            self._digest.update(_ZEROS[: min(base, stop) - at])
        self._digest.update(memoryview(data)[max(start - base, 0) : max(stop - base, 0)])
