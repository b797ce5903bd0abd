"""Files with indices, for searches: run plans over their bytes, join what was found, and count with htslib."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from refgenfs.core.htsget.answer import Answer, BlockRange
from refgenfs.core.htsget.edges import settle
from refgenfs.core.htsget.indexed import IndexedFile
from refgenfs.core.htsget.model import Class, Query
from refgenfs.core.htsget.opening import Sizes, open_file
from refgenfs.core.htsget.plan import Need, Part, Plan

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Files:
    """The bytes of a file, its index and its GZI."""

    data: bytes
    index: bytes | None = None
    gzi: bytes | None = None

    @classmethod
    def read(cls, data: Path, index: str | None = None, *, gzi: bool = False) -> Files:
        """Read a file, its index (by suffix) and its GZI."""
        return cls(
            data.read_bytes(),
            Path(f"{data}{index}").read_bytes() if index else None,
            Path(f"{data}.gzi").read_bytes() if gzi else None,
        )

    def run(self, plan: Plan[T], rounds: list[int] | None = None) -> T:
        """Run a plan over these bytes, and return its result; note how many bytes each round asked for."""
        parts = {Part.DATA: self.data, Part.INDEX: self.index, Part.GZI: self.gzi}

        def answer(need: Need) -> bytes:
            whole = parts[need.part]
            assert whole is not None
            assert 0 <= need.start <= need.stop <= len(whole)
            return whole[need.start : need.stop]

        got: Sequence[bytes] | None = None
        while True:
            try:
                needs = next(plan) if got is None else plan.send(got)
            except StopIteration as end:
                return cast(T, end.value)
            got = [answer(need) for need in needs]
            if rounds is not None:
                rounds.append(sum(map(len, got)))

    def open(self) -> IndexedFile:
        """Open the file by a plan."""
        sizes = Sizes(
            len(self.data),
            None if self.index is None else len(self.index),
            None if self.gzi is None else len(self.gzi),
        )
        return self.run(open_file(sizes))

    def search(self, *regions: str, class_: Class | None = None) -> Answer:
        """Search by regions as samtools writes them, and look whether the ranges are blocks of the file."""
        file = self.open()
        return self.run_search(Query("x", None, class_, tuple(file.region(region) for region in regions)))

    def run_search(self, query: Query) -> Answer:
        """Open the file and search it."""
        file = self.open()
        return self.run(settle(file, file.search(query)))

    def joined(self, answer: Answer) -> bytes:
        """Return what a client makes of a ticket."""
        return b"".join(
            self.data[one.start : one.stop] if isinstance(one, BlockRange) else one.data for one in answer.blocks
        )


def shown(answer: Answer) -> str:
    """Return ranges as the protocol counts them (the last byte included), with the first letter of their class."""
    letters = {None: "–", Class.HEADER: "H", Class.BODY: "B"}
    return "; ".join(
        (f"{one.start}-{one.stop - 1}" if isinstance(one, BlockRange) else "inline") + f" {letters[one.class_]}"
        for one in answer.blocks
    )


def named_offsets(index: bytes) -> set[int]:
    """Return the offsets of all blocks that a BAI, CSI or TBI names, read one number after the other."""
    data = gzip.decompress(index) if index[:2] == b"\x1f\x8b" else index
    at, magic, depth = 4, data[:3], 5

    def number(form: str = "<i") -> int:
        nonlocal at
        at += struct.calcsize(form)
        return int(struct.unpack_from(form, data, at - struct.calcsize(form))[0])

    if magic == b"CSI":
        number()
        depth = number()
        length = number()
        at += length
    references = number()
    if magic == b"TBI":
        at += 24
        length = number()
        at += length
    metadata = ((1 << 3 * (depth + 1)) - 1) // 7 + 1
    found: set[int] = set()
    for _ in range(references):
        for _ in range(number()):
            bin_ = number("<I")
            at += 8 * (magic == b"CSI")
            offsets = [number("<Q") for _ in range(2 * number())]
            found.update(one >> 16 for one in (offsets[:2] if bin_ == metadata else offsets))
        if magic != b"CSI":
            windows = number()
            at += 8 * windows
    return found
