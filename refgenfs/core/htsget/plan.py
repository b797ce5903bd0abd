"""What a search has to read, asked for in rounds: whoever runs a plan reads the bytes, from wherever they are.

A plan is a generator. It yields the `Need`s of a round, which may be read at the same time, is sent their bytes in
the same order, and returns its result; a read that is short or long ends it with IntegrityError.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from refgenfs.core.errors import IntegrityError


class Part(StrEnum):
    """The files that belong together."""

    DATA = "data"
    INDEX = "index"
    GZI = "gzi"


@dataclass(frozen=True, slots=True)
class Need:
    """The bytes `start` up to, not including, `stop` of one of the files."""

    part: Part
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


T = TypeVar("T")
Plan = Generator[tuple[Need, ...], Sequence[bytes], T]


def read(*needs: Need) -> Plan[Sequence[bytes]]:
    """Ask for one round of bytes, and check that they are as many as were asked for."""
    got = yield needs
    for need, data in zip(needs, got, strict=True):
        if len(data) != len(need):
            raise IntegrityError(f"{len(data)} bytes came of the {len(need)} from {need.start} on of the {need.part}")
    return got
