"""What is counted, and how Prometheus reads it: the text exposition format, version 0.0.4. Pure.

Counters are plain integers where they are counted; here they get names, units, labels and a line of help. A name
says its unit (`_seconds`, `_bytes`), and a counter's ends in `_total`, as Prometheus has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Bounds are powers of two in microseconds, so that a bucket is found by the length of a number: a warm read is about
# 20 µs in all, and a search for its bucket would be a tenth of what else is done for it.
_SHORTEST = 4  # 16 µs: no request is answered quicker
_LONGEST = 26  # 67 s: deadlines are shorter
BOUNDS = tuple((1 << power) / 1e6 for power in range(_SHORTEST, _LONGEST + 1))  # seconds


class Durations:
    """How long things took: a histogram. One thread observes; any may read."""

    __slots__ = ("_powers", "total")

    def __init__(self) -> None:
        self.total = 0.0  # seconds
        self._powers = [0] * 64  # of 2 µs, by exponent; 64 bits are 300,000 years

    def observe(self, seconds: float) -> None:
        """Count one that took so long, at least 0."""
        self.total += seconds
        self._powers[int(seconds * 1e6).bit_length()] += 1

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self._powers)

    def cumulative(self) -> tuple[int, ...]:
        """Return for each of `BOUNDS` how many took no longer, and at the end how many there were."""
        powers = list(self._powers)
        found = [sum(powers[: power + 1]) for power in range(_SHORTEST, _LONGEST + 1)]
        return (*found, sum(powers))


@dataclass(frozen=True, slots=True)
class Metric:
    """A name that Prometheus knows; `labels` are those of each of its values, in order."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names that its values go by."""
        if self.kind != "histogram":
            return (self.name,)
        return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))


@dataclass(frozen=True, slots=True)
class Spread:
    """What `Durations` had at one moment."""

    cumulative: tuple[int, ...]
    total: float

    @classmethod
    def of(cls, durations: Durations) -> Spread:
        """Return what there is now."""
        return cls(durations.cumulative(), durations.total)


Value = int | float | Spread


@dataclass(frozen=True, slots=True)
class Reading:
    """All values of a metric at one moment, each with the values of its labels."""

    metric: Metric
    values: tuple[tuple[tuple[str, ...], Value], ...]


def exposition(readings: Iterable[Reading]) -> str:
    """Return readings as Prometheus scrapes them."""
    return "".join(f"{line}\n" for reading in readings for line in _lines(reading))


def _lines(reading: Reading) -> Iterator[str]:
    metric = reading.metric
    yield f"# HELP {metric.name} {_escaped(metric.help)}"
    yield f"# TYPE {metric.name} {metric.kind}"
    for labels, value in reading.values:
        pairs = list(zip(metric.labels, labels, strict=True))
        if not isinstance(value, Spread):
            yield f"{metric.name}{_braces(pairs)} {_number(value)}"
            continue
        bounds = [*map(_number, BOUNDS), "+Inf"]
        for bound, count in zip(bounds, value.cumulative, strict=True):
            yield f"{metric.name}_bucket{_braces([*pairs, ('le', bound)])} {count}"
        yield f"{metric.name}_sum{_braces(pairs)} {_number(value.total)}"
        yield f"{metric.name}_count{_braces(pairs)} {value.cumulative[-1]}"


def _braces(pairs: Sequence[tuple[str, str]]) -> str:
    if not pairs:
        return ""
    return "{" + ",".join(f'{name}="{_quoted(value)}"' for name, value in pairs) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(value: str) -> str:
    clean = value.encode(errors="replace").decode()  # a name out of an archive can be any bytes
    return _escaped(clean).replace('"', '\\"')


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(value)
