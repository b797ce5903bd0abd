"""The figures of docs/performance.md, from the stored results.

    python -m benchmarks.plot RESULTS.json FOLDER

Needs matplotlib, so it runs in the environment of the peers; refgenfs and its tests do without.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "refgenfs"  # the same results, the same file
from matplotlib import pyplot as plt  # noqa: E402 - the backend is chosen first
from matplotlib import ticker  # noqa: E402

from benchmarks.results import OURS, Curve, Item, Results  # noqa: E402

COLOURS = ("#0b6e99", "#c8553d", "#5b8e3e", "#8a5a9e", "#b58900", "#606c76", "#2aa198")
OUR_COLOUR, BASE_COLOUR, PEER_COLOUR, LIMIT_COLOUR = "#0b6e99", "#606c76", "#d9a441", "#9cb8c4"


def main() -> None:
    """Write both figures."""
    results = Results.from_json(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"}
    )
    ratios = [item for item in results.items.values() if item.baseline and item.contests]
    if ratios:
        _save(_bars(ratios), folder / "performance-ratios.svg")
    if results.curves:
        _save(_curves(list(results.curves.values())), folder / "performance-growth.svg")


def _save(shown: Any, path: Path) -> None:
    shown.savefig(path, facecolor="white", metadata={"Date": None})
    shown.savefig(path.with_suffix(".png"), facecolor="white", dpi=110)
    plt.close(shown)


def _bars(items: list[Item]) -> Any:
    """Return one panel an item: everybody's score, and the goal as a line."""
    across = 2
    down = -(-len(items) // across)
    heights = [
        max(len(items[i].contests) for i in range(r * across, min(len(items), r * across + across)))
        for r in range(down)
    ]
    shown, grid = plt.subplots(
        down, across, figsize=(11, sum(0.3 * h + 0.85 for h in heights)), squeeze=False, layout="constrained",
        height_ratios=[0.3 * h + 0.85 for h in heights],
    )  # fmt: skip
    for axes, item in zip(grid.flat, items, strict=False):
        _bar(axes, item)
    for axes in list(grid.flat)[len(items) :]:
        axes.set_visible(False)
    return shown


def _bar(axes: Any, item: Item) -> None:
    contests = [contest for contest in item.contests if contest.name != item.baseline]
    for row, contest in enumerate(reversed(contests)):
        score = item.score(contest.name)
        if score is None:
            axes.text(0, row, " failed", va="center", color=BASE_COLOUR)
            continue
        colour = (
            OUR_COLOUR if contest.name == OURS else LIMIT_COLOUR if contest.name == "bare pyfuse3" else PEER_COLOUR
        )
        axes.barh(row, score.median, color=colour, height=0.7)
        axes.plot([score.low, score.high], [row, row], color="#333333", linewidth=1)
        axes.text(max(score.median, score.high), row, f" {score.median:.2f}", va="center")
    axes.set_yticks(range(len(contests)), [contest.name for contest in reversed(contests)])
    axes.set_ylim(min(-0.6, len(contests) - 3.4), len(contests) - 0.4)  # a single bar must not fill the panel
    if item.goal is not None:
        axes.axvline(item.goal.value, color="#c8553d", linewidth=1.2, linestyle="--")
    axes.set_xlim(0, max([axes.get_xlim()[1], item.goal.value if item.goal else 0]) * 1.12)
    less = item.goal is not None and item.goal.sign != "≥"
    unit = "time" if item.unit == "s" else item.unit
    axes.set_xlabel(
        f"{unit} ÷ {item.baseline} ({'less' if less else 'more'} is better; dashed: the goal)", fontsize=8
    )
    axes.set_title(_wrapped(item.title), fontsize=9.5, loc="left")


def _wrapped(text: str, width: int = 40) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _curves(curves: list[Curve]) -> Any:
    """Return small multiples, log-log: a row a curve, a panel a metric, a line a series."""
    across = max(len(_metrics(curve)) for curve in curves)
    shown = plt.figure(figsize=(2.5 * across, 2.75 * len(curves)), layout="constrained")
    for part, curve in zip(_rows(shown.subfigures(len(curves), 1)), curves, strict=True):
        part.suptitle(curve.title, fontsize=10, x=0.01, ha="left", fontweight="bold")
        metrics = _metrics(curve)
        row = part.subplots(1, across, squeeze=False)[0]
        for axes, metric in zip(row, metrics, strict=False):
            _panel(axes, curve, metric)
        for axes in row[len(metrics) :]:
            axes.set_visible(False)
        row[0].legend(fontsize=7, frameon=False, loc="best")
    return shown


def _rows(parts: Any) -> list[Any]:
    """Return subfigures as a list; a single one is not in an array."""
    return list(parts) if hasattr(parts, "__iter__") else [parts]


def _metrics(curve: Curve) -> list[str]:
    return list({metric: None for found in curve.series.values() for metric in found})


def _panel(axes: Any, curve: Curve, metric: str) -> None:
    values: list[float] = []
    for number, (name, found) in enumerate(curve.series.items()):
        pairs = [
            (s, v) for s, v in zip(curve.sizes, found.get(metric, []), strict=False) if v > 0 and math.isfinite(v)
        ]
        if pairs:
            axes.plot(*zip(*pairs, strict=True), marker="o", markersize=3.5, color=COLOURS[number], label=name)
            values += [value for _, value in pairs]
    axes.set_xscale("log")
    axes.set_yscale("log")
    if values:
        middle, reach = math.sqrt(min(values) * max(values)), max(10.0, 1.6 * max(values) / min(values))
        axes.set_ylim(middle / math.sqrt(reach), middle * math.sqrt(reach))  # a decade at least: flat must look flat
        _guide(axes, curve, metric, min(values))
        wide = reach > 100
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(_short))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel(curve.axis, fontsize=8)
    axes.set_title(metric, fontsize=8.5, loc="left")
    axes.grid(visible=True, which="major", color="#e6e6e6", linewidth=0.6)
    axes.tick_params(labelsize=7.5)


def _short(value: float, _: object) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _guide(axes: Any, curve: Curve, metric: str, low: float) -> None:
    """Draw how the work grows, dotted, and leave the limits as they are."""
    limits = axes.get_ylim()
    work = curve.work.get(metric, 0.0)
    first, last = curve.sizes[0], curve.sizes[-1]
    end = low * (last / first) ** work
    if work == 0:
        axes.plot([first, last], [low, low], color="#999999", linewidth=0.9, linestyle=":")
    else:  # through the last value: there the work is what costs
        top = max(found[metric][-1] for found in curve.series.values() if found.get(metric))
        axes.plot([first, last], [top * low / end, top], color="#999999", linewidth=0.9, linestyle=":")
    axes.set_ylim(*limits)


if __name__ == "__main__":
    main()
