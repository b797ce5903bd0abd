"""The system's zlib, inflating gzip and stopping where deflate blocks begin: Python's own `zlib` can't.

Bound through ctypes: `struct z_stream` has not changed since zlib 1.2.0, and zlib refuses one of another size
(`zlib.h`: inflateInit2, inflate with Z_BLOCK, inflateGetDictionary; data_type after Z_BLOCK). Calls release the GIL.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_uint, c_ulong, c_void_p
from functools import cache

from refgenfs.core.errors import ArchiveError, RefgenfsError
from refgenfs.core.seekindex import FIRST_PIECE, WINDOW
from refgenfs.fetch.inflating import STEP

_GZIP = 31  # inflateInit2's windowBits: a window of 32 KiB, and gzip's header and trailer
_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR, _Z_BLOCK = 0, 1, -5, 5
_LAST, _AT_BOUNDARY = 64, 128  # of data_type; the lowest three bits are those left of the last byte


class LibzMissing(RefgenfsError):
    """This system has no zlib that can be loaded."""


class _Stream(ctypes.Structure):
    """`struct z_stream_s` of zlib.h."""

    _fields_ = (
        ("next_in", c_void_p),
        ("avail_in", c_uint),
        ("total_in", c_ulong),
        ("next_out", c_void_p),
        ("avail_out", c_uint),
        ("total_out", c_ulong),
        ("msg", c_char_p),
        ("state", c_void_p),
        ("zalloc", c_void_p),
        ("zfree", c_void_p),
        ("opaque", c_void_p),
        ("data_type", c_int),
        ("adler", c_ulong),
        ("reserved", c_ulong),
    )


@cache
def _load() -> ctypes.CDLL:
    """Return zlib with its functions declared; raise LibzMissing."""
    try:
        libz = ctypes.CDLL("libz.so.1")
        stream = POINTER(_Stream)
        libz.inflateInit2_.argtypes = (stream, c_int, c_char_p, c_int)
        libz.inflate.argtypes = (stream, c_int)
        libz.inflateReset.argtypes = (stream,)
        libz.inflateEnd.argtypes = (stream,)
        libz.inflateGetDictionary.argtypes = (stream, c_void_p, POINTER(c_uint))
        libz.zlibVersion.restype = c_char_p
    except (OSError, AttributeError) as exc:
        raise LibzMissing(f"the system's zlib can't be used ({exc}): install the package zlib1g") from exc
    return libz


class BlockInflater:
    """Inflates gzip (RFC 1952) fed in pieces, as `GzipInflater` does, and says where a deflate block begins.

    `next_point` is the unpacked offset from which on boundaries are looked for. At the first one `inflate` gives the
    number of bits left of the last packed byte; until it is resumed, `packed`, `out` and `window()` are those of the
    boundary. A boundary is found whatever the pieces are.
    """

    def __init__(self) -> None:
        self.packed = 0  # bytes taken so far
        self.out = 0  # bytes given so far
        self.member_stop = 0  # packed offset behind the last gzip member that has ended
        self.next_point = 0
        self._libz = _load()
        self._buffer = bytearray()  # that is being filled
        self._shown = 0  # bytes of it that were given
        self._seen = 0  # members that ended well
        self._between = False  # a member has ended, and nothing but zeros came since
        self._stream = _Stream()
        version = self._libz.zlibVersion()
        if self._libz.inflateInit2_(byref(self._stream), _GZIP, version, ctypes.sizeof(_Stream)) != _Z_OK:
            raise LibzMissing(f"the system's zlib {version!r} refuses to work")
        self._end = weakref.finalize(self, self._libz.inflateEnd, byref(self._stream))

    @property
    def ended(self) -> bool:
        """Say whether the last member that began has ended, with the right checksum."""
        return self._between

    def window(self) -> bytes:
        """Return the unpacked bytes that what follows may repeat: up to 32 KiB, fewer at a gzip member's start."""
        window = ctypes.create_string_buffer(WINDOW)
        length = c_uint()
        self._libz.inflateGetDictionary(byref(self._stream), window, byref(length))
        return window.raw[: length.value]

    def close(self) -> None:
        """Give zlib's memory back; nothing may be inflated any more."""
        self._end()

    def inflate(self, data: bytes) -> Iterator[memoryview | int]:
        """Give what the data inflates to, at most `STEP` bytes at once, never empty; and bits left at boundaries.

        Raises ArchiveError for data that is no gzip, or that differs from the length or CRC that gzip has of it.
        """
        stream, full = self._stream, False
        stream.next_in, stream.avail_in = ctypes.cast(c_char_p(data), c_void_p).value, len(data)
        while stream.avail_in or full:
            if self._between and not self._begin_member(data):
                break
            if not stream.avail_out:
                self._take_buffer()
            code = self._step()
            at_boundary = code == _Z_OK and stream.data_type & (_AT_BOUNDARY | _LAST) == _AT_BOUNDARY
            if at_boundary and self.out >= self.next_point:
                yield stream.data_type & 7
            full = not stream.avail_out
            if full:
                yield self._new_output()
            if code == _Z_BUF_ERROR:
                break
        if output := self._new_output():
            yield output

    def _take_buffer(self) -> None:
        """Go on in new memory: what was filled belongs to who was given it."""
        size = STEP if self.out else FIRST_PIECE  # so that the first header is known soon
        self._buffer, self._shown = bytearray(size), 0
        self._stream.next_out = ctypes.addressof((c_char * size).from_buffer(self._buffer))
        self._stream.avail_out = size

    def _new_output(self) -> memoryview:
        """Return what came into the buffer since the last time."""
        start, self._shown = self._shown, len(self._buffer) - self._stream.avail_out
        return memoryview(self._buffer)[start : self._shown]

    def _step(self) -> int:
        """Inflate up to the next boundary, or the end of what is in or of the room for what comes out."""
        stream = self._stream
        taken, given = stream.avail_in, stream.avail_out
        code = int(self._libz.inflate(byref(stream), _Z_BLOCK))
        self.packed += taken - stream.avail_in
        self.out += given - stream.avail_out
        if code == _Z_STREAM_END:
            self._seen, self._between, self.member_stop = self._seen + 1, True, self.packed
        elif code not in (_Z_OK, _Z_BUF_ERROR):
            what = "followed by something else" if self._seen else "damaged"
            reason = (stream.msg or b"code %d" % code).decode(errors="replace")
            raise ArchiveError(f"the archive's gzip data is {what}: {reason}")
        return code

    def _begin_member(self, data: bytes) -> bool:
        """Skip zeros (tapes pad; gzip(1) ignores it too), and say whether something follows."""
        stream = self._stream
        at = len(data) - stream.avail_in
        left = len(data[at:].lstrip(b"\0"))
        skipped = stream.avail_in - left
        self.packed += skipped
        stream.next_in, stream.avail_in = stream.next_in + skipped, left
        if left:
            self._between = False
            self._libz.inflateReset(byref(stream))
        return bool(left)
