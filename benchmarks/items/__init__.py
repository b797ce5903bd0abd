"""What is measured. Each module has its items by name: a function that takes the `Bench` and returns an item."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.bench import Bench
from benchmarks.items import aligning, archives, cold, growth, latency, searching, warm
from benchmarks.results import Curve, Item

Measure = Callable[[Bench], Item]
Grow = Callable[[Bench], Curve]

GROUPS: Mapping[str, Mapping[str, Measure]] = {
    "warm": warm.ITEMS,
    "cold": cold.ITEMS,
    "archive": archives.ITEMS,
    "latency": latency.ITEMS,
    "bwa": aligning.ITEMS,
    "search": searching.ITEMS,
}
ITEMS: Mapping[str, Measure] = {name: measure for items in GROUPS.values() for name, measure in items.items()}
CURVES: Mapping[str, Grow] = growth.CURVES
