"""Archives packed by several programs, their seek indexes, and what is wrong with one."""

from __future__ import annotations

import gzip
import hashlib
import random
import subprocess
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from refgenfs.core.seekindex import HEADER_SIZE, SeekIndex, head_size, unpack_window
from refgenfs.core.tar import Data, EndOfMember, Member, TarParser
from refgenfs.fetch.seekpoints import IndexBuilder
from refgenfs.fetch.spans import inflate_span
from tests.support.tars import END, entry

SPACING = 1 << 16


def sample_tar(seed: int = 1, scale: int = 1) -> bytes:
    """Return a tar with what references are made of: bases, numbers, noise, repeats, and a small text."""
    dice = random.Random(seed)
    bases = bytes(dice.choices(b"ACGT", k=400_000 * scale))
    numbers = b"".join(dice.randrange(1 << 28).to_bytes(8, "little") for _ in range(30_000 * scale))
    files = {
        b"t/x.fa": b"\n".join(bases[at : at + 60] for at in range(0, len(bases), 60)) + b"\n",
        b"t/x.fa.fai": b"chr1\t400000\t6\t60\t61\n",
        b"t/x.fa.sa": numbers,
        b"t/x.noise": dice.randbytes(300_000 * scale),
        b"t/x.far": b"".join(bases[at : at + 200] + dice.randbytes(32_568) for at in range(0, 2000 * scale, 200)),
        b"t/x.zeros": bytes(300_000 * scale),
    }
    return b"".join(entry(name, data) for name, data in files.items()) + END + bytes(8192)


def _through(*command: str) -> Callable[[bytes], bytes]:
    return lambda tar: subprocess.run(command, input=tar, stdout=subprocess.PIPE, check=True, timeout=60).stdout


def _with(level: int, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> Callable[[bytes], bytes]:
    def pack(tar: bytes) -> bytes:
        packer = zlib.compressobj(level, wbits=31, strategy=strategy)
        return packer.compress(tar) + packer.flush()

    return pack


def _in_parts(tar: bytes) -> bytes:
    """Return several gzip members, one of them empty, with zeros between and after them."""
    cuts = [0, 5, 5, 90_001, 400_000, 900_017, len(tar)]
    parts = [gzip.compress(tar[start:stop], mtime=0) for start, stop in pairwise(cuts)]
    return bytes(700).join(parts) + bytes(10_240)


def _flushed(tar: bytes) -> bytes:
    """Return blocks that end at bytes, and empty ones, as `pigz` and rsyncable packers make them."""
    packer = zlib.compressobj(6, wbits=31)
    parts = []
    for at in range(0, len(tar), 131_072):
        parts += [packer.compress(tar[at : at + 131_072]), packer.flush(zlib.Z_SYNC_FLUSH)]
    return b"".join([*parts, packer.flush()])


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip-1": _through("gzip", "-1", "-n"),
    "gzip-6": _through("gzip", "-6", "-n"),
    "gzip-9": _through("gzip", "-9", "-n"),
    "gzip-rsyncable": _through("gzip", "--rsyncable", "-n"),
    "bgzip": _through("bgzip", "-c"),
    "python": lambda tar: gzip.compress(tar, mtime=0),
    "stored": _with(0),
    "fixed": _with(6, zlib.Z_FIXED),
    "huffman": _with(6, zlib.Z_HUFFMAN_ONLY),
    "parts": _in_parts,
    "flushed": _flushed,
}


def pieces(data: bytes, sizes: Sequence[int] = (65_536,)) -> Iterator[bytes]:
    """Give the data in pieces of these sizes, in turn."""
    at, turn = 0, 0
    while at < len(data):
        yield data[at : at + sizes[turn % len(sizes)]]
        at, turn = at + sizes[turn % len(sizes)], turn + 1


def build_index(parts: Iterable[bytes], folder: Path, spacing: int = SPACING) -> tuple[bytes, bytes]:
    """Return the index file of the archive that comes in these parts, and the tar in it."""
    builder = IndexBuilder(folder / "windows", spacing)
    parser, members, tar, digest = TarParser(), list[Member](), bytearray(), hashlib.md5()
    target = folder / "index"
    try:
        for part in parts:
            digest.update(part)
            for inflated in builder.inflate(part):
                tar += inflated
                parser.feed(inflated)
                while isinstance(event := parser.next_event(), Member | Data | EndOfMember):
                    if isinstance(event, Member):
                        builder.expect(event)
                        members.append(event)
        size = builder.finish(members, digest.hexdigest(), target)
    finally:
        builder.close()
    index = target.read_bytes()
    assert size == len(index)
    assert [path.name for path in folder.iterdir()] == ["index"]
    target.unlink()
    return index, bytes(tar)


def parse_index(file: bytes) -> SeekIndex:
    """Parse an index file as a client does that reads its beginning first."""
    return SeekIndex.parse(file[: head_size(file[:HEADER_SIZE])])


def inflate(file: bytes, archive: bytes, number: int) -> bytes:
    """Return what one span inflates to, all by itself."""
    span = parse_index(file).span(number)
    window = unpack_window(file[span.window_start : span.window_stop])
    return b"".join(inflate_span(span, window, archive[span.packed_start : span.packed_stop]))
