"""Files with indices, for searches: run plans over their bytes, join what was found, and count with htslib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from refgenfs.core.htsget.indexed import Answer, IndexedFile
from refgenfs.core.htsget.model import Class, Query
from refgenfs.core.htsget.opening import Sizes, check, open_file
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

    def run(self, plan: Plan[T]) -> T:
        """Run a plan over these bytes, and return its result."""
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
        answer = file.search(Query("x", None, class_, tuple(file.region(region) for region in regions)))
        self.run(check(file, answer))
        return answer

    def joined(self, answer: Answer) -> bytes:
        """Return what a client makes of a ticket."""
        return b"".join(self.data[one.start : one.stop] for one in answer.ranges) + answer.tail


def shown(answer: Answer) -> str:
    """Return ranges as the protocol counts them (the last byte included), with the first letter of their class."""
    letters = {None: "–", Class.HEADER: "H", Class.BODY: "B"}
    return "; ".join(f"{one.start}-{one.stop - 1} {letters[one.class_]}" for one in answer.ranges)
