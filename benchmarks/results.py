"""What was measured, what it is judged by, and its form as JSON. Pure: no I/O."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal, NamedTuple

OURS = "refgenfs"
MIB = 1 << 20
GIB = 1 << 30
SLACK = 0.25  # of an exponent: what noise makes of the same cost

Sign = Literal["≥", "≤", "<"]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a score has to reach; `unit` is written behind the figure ("×", " ms", " %")."""

    sign: Sign
    value: float
    unit: str = "×"

    def met(self, score: float) -> bool:
        """Say whether a score reaches the goal."""
        if math.isnan(score):
            return False
        return {"≥": score >= self.value, "≤": score <= self.value, "<": score < self.value}[self.sign]

    def __str__(self) -> str:
        return f"{self.sign} {figure(self.value)}{self.unit}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one contestant.

    memory: peak resident bytes of its processes; cpu: its user and system seconds per GiB that readers got;
    fetched: body bytes that the origin sent. None where it has no daemon, or nothing was counted.
    """

    value: float
    memory: int | None = None
    cpu: float | None = None
    fetched: int | None = None


@dataclass(slots=True)
class Contest:
    """All samples of one contestant in an item, in the order of the runs, or why there are none."""

    name: str
    samples: list[Sample] = field(default_factory=list)
    failed: str = ""

    @property
    def values(self) -> list[float]:
        return [sample.value for sample in self.samples]

    def most(self, what: Literal["memory", "cpu", "fetched"]) -> float | None:
        """Return the largest memory, or the median of the others; None where none was measured."""
        found = [value for sample in self.samples if (value := getattr(sample, what)) is not None]
        if not found:
            return None
        return float(max(found)) if what == "memory" else float(median(found))


class Score(NamedTuple):
    """What a contestant reached: the median and the extremes of its runs."""

    median: float
    low: float
    high: float


@dataclass(slots=True)
class Item:
    """One row of the table.

    The score of a contestant is its value over the baseline's of the same run; without a baseline, the value itself.
    unit: of the values. state: what was in which cache when the clock started. peer: the best seen elsewhere.
    """

    name: str
    title: str
    unit: str
    state: str
    goal: Goal | None = None
    baseline: str = ""
    peer: str = ""
    contests: list[Contest] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    when: str = ""
    commit: str = ""
    setting: str = ""  # sizes and runs
    quick: bool = False

    def contest(self, name: str) -> Contest | None:
        """Return the contestant of this name, if it took part."""
        return next((contest for contest in self.contests if contest.name == name), None)

    def score(self, name: str) -> Score | None:
        """Return what a contestant reached; None where it or the baseline failed."""
        contest = self.contest(name)
        if contest is None or contest.failed or not contest.samples:
            return None
        if not self.baseline:
            return summary(contest.values)
        baseline = self.contest(self.baseline)
        if baseline is None or not baseline.samples:
            return None
        return summary(ratios(contest.values, baseline.values))

    def best_peer(self, ours: Sequence[str]) -> tuple[str, Score] | None:
        """Return the best contestant that is neither ours, nor the baseline, nor one of the names given."""
        found = [
            (contest.name, score)
            for contest in self.contests
            if contest.name not in (OURS, self.baseline, *ours) and (score := self.score(contest.name)) is not None
        ]
        if not found:
            return None
        more = self.goal is None or self.goal.sign == "≥"
        return max(found, key=lambda pair: pair[1].median if more else -pair[1].median)


@dataclass(slots=True)
class Curve:
    """How cost grows: for each metric of each series, its value at each size. nan: not measured.

    work: for each metric, how the work itself grows, as an exponent of the size: 0 for what should cost the same at
    any size, 1 for what is done once for each.
    """

    name: str
    title: str
    axis: str  # what grows, with its unit
    sizes: list[float]
    work: dict[str, float]
    series: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # series → metric with its unit → values
    notes: list[str] = field(default_factory=list)
    when: str = ""
    commit: str = ""
    quick: bool = False

    def note(self, series: str, values: Mapping[str, float]) -> None:
        """Add a value to each metric of a series, as the next size's."""
        for metric, value in values.items():
            self.series.setdefault(series, {}).setdefault(metric, []).append(value)

    def exponent(self, series: str, metric: str) -> float:
        """Return the exponent by which a metric grows at the large end (see `growth`)."""
        values = self.series[series][metric]
        return growth(self.sizes[: len(values)], values)

    def defects(self) -> list[str]:
        """Return what grows faster than the work: series and metric, with the exponent."""
        return [
            f"{series}, {metric}: exponent {found:.2f}"
            for series, metrics in self.series.items()
            for metric in metrics
            if (found := self.exponent(series, metric)) > self.work.get(metric, 0.0) + SLACK
        ]


@dataclass(slots=True)
class Results:
    """All items and curves, by name, and the machine of each run."""

    machine: dict[str, str] = field(default_factory=dict)
    command: str = ""
    items: dict[str, Item] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)

    def peak_memory(self) -> int | None:
        """Return the most that our daemon took in any item."""
        found = [
            most
            for item in self.items.values()
            for contest in item.contests
            if contest.name.startswith(OURS) and (most := contest.most("memory")) is not None
        ]
        return int(max(found)) if found else None

    def to_json(self) -> str:
        """Return everything as JSON text; nan becomes null."""
        return json.dumps(_plain(asdict(self)), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Return what `to_json` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        raw = json.loads(text)
        items = {name: _item(item) for name, item in raw["items"].items()}
        curves = {name: _curve(curve) for name, curve in raw["curves"].items()}
        return cls(raw["machine"], raw["command"], items, curves)


# --- statistics ---------------------------------------------------------------------------------------------


def summary(values: Iterable[float]) -> Score | None:
    """Return median, least and most; None of nothing."""
    found = list(values)
    return Score(median(found), min(found), max(found)) if found else None


def ratios(values: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Return value over baseline, run by run: a noisy neighbour hits both of a run.

    Where the two were not run equally often, every value is taken over the baseline's median.
    """
    if len(values) == len(baseline):
        return [value / base for value, base in zip(values, baseline, strict=True) if base]
    base = median(baseline)
    return [value / base for value in values] if base else []


def growth(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return how values grow with sizes, as an exponent: 1 grows as the sizes do; nan if it can't be told.

    A least-squares line through the logarithms of the three largest sizes: below, what is there once and for all is
    still the larger part, and of two measurements alone the noise would be told.
    """
    pairs = [(math.log(s), math.log(v)) for s, v in zip(sizes, values, strict=True) if s > 0 and v > 0]
    pairs = pairs[-3:]
    if len(pairs) < 2:
        return math.nan
    middle = sum(x for x, _ in pairs) / len(pairs)
    height = sum(y for _, y in pairs) / len(pairs)
    spread = sum((x - middle) ** 2 for x, _ in pairs)
    return sum((x - middle) * (y - height) for x, y in pairs) / spread if spread else math.nan


def figure(value: float) -> str:
    """Return a figure with about three digits that mean something."""
    if math.isnan(value):
        return "–"
    if value == int(value) and abs(value) < 100_000:
        return f"{int(value)}"
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 0.1
        else f"{value:.2g}"
    )


# --- JSON ---------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _item(raw: Mapping[str, Any]) -> Item:
    contests = [
        Contest(each["name"], [Sample(**sample) for sample in each["samples"]], each["failed"])
        for each in raw["contests"]
    ]
    goal = Goal(**raw["goal"]) if raw["goal"] else None
    return Item(**{**raw, "contests": contests, "goal": goal})


def _curve(raw: Mapping[str, Any]) -> Curve:
    series = {
        name: {
            metric: [math.nan if value is None else float(value) for value in values]
            for metric, values in metrics.items()
        }
        for name, metrics in raw["series"].items()
    }
    return Curve(**{**raw, "series": series})
