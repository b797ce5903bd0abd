"""docs/performance.md: the tables that results make, put between the document's markers. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from benchmarks.results import MIB, OURS, Contest, Curve, Item, Results, Score, figure

LIMITS = ("bare pyfuse3",)  # no peer: the least that FUSE from Python takes
MEMORY_GOAL = 150 * MIB
RATIOS = "![Every contestant's score, and the goal as a dashed line](images/performance-ratios.svg)"
GROWTH = "![Cost against readers, assets, contents and open files](images/performance-growth.svg)"
MEMORY_PEER = "113 MiB–4.7 GiB"

_MARKED = r"<!-- begin {name}[^>]*-->(.*?)<!-- end {name} -->"


class NoMarker(ValueError):
    """The document lacks a place for something."""


def render(document: str, results: Results) -> str:
    """Return the document with everything that is made from results. Raises NoMarker."""
    made = {"run": run(results), "goals": goals(results), "items": details(results), "curves": curves(results)}
    for name, text in made.items():
        document = put(document, name, text)
    return document


def put(document: str, name: str, text: str) -> str:
    """Return the document with `text` between the markers of a name. Raises NoMarker."""
    pattern = re.compile(_MARKED.format(name=re.escape(name)), re.DOTALL)
    if not pattern.search(document):
        raise NoMarker(f"no <!-- begin {name} --> … <!-- end {name} -->")
    body = f"<!-- begin {name}: made by `make bench` -->\n\n{text.strip()}\n\n<!-- end {name} -->"
    return pattern.sub(lambda _: body, document, count=1)


# --- parts --------------------------------------------------------------------------------------------------


def run(results: Results) -> str:
    """Return with what and on what it was measured."""
    rows = [("command", f"`{results.command}`"), *((key, value) for key, value in results.machine.items())]
    measured: list[Item | Curve] = [*results.items.values(), *results.curves.values()]
    commits = sorted({each.commit for each in measured if each.commit})
    if commits:
        rows.append(("commit", ", ".join(commits)))
    return table(("", ""), rows) if results.items or results.curves else "_Nothing was measured yet._"


def goals(results: Results) -> str:
    """Return the table of goals: what was to be reached, what was, and the best peer of the same run."""
    rows = []
    for item in results.items.values():
        if item.goal is None:
            continue
        score, best = item.score(OURS), item.best_peer(LIMITS)
        bare = item.score(LIMITS[0])
        peer = f"{_scored(best[1], item)} ({best[0]})" if best else "–"
        rows.append(
            (
                item.title + (" _(small sizes)_" if item.quick else ""),
                str(item.goal), _ours(item, score), verdict(item, score), peer, item.peer or "–",
                _scored(bare, item) if bare else "–",
            )
        )  # fmt: skip
    peak = results.peak_memory()
    if peak is not None:
        met = "**met**" if peak <= MEMORY_GOAL else "missed"
        rows.append(
            ("peak memory of the daemon in all of the above", f"≤ {MEMORY_GOAL // MIB} MiB", f"{peak / MIB:.0f} MiB",
             met, _peer_memory(results.items.values()), MEMORY_PEER, "–")
        )  # fmt: skip
    if not rows:
        return "_Nothing was measured yet._"
    head = ("", "goal", "measured", "", "best peer in this run", "best peer seen before", "bare pyfuse3")
    drawn = any(item.baseline for item in results.items.values())
    return table(head, rows) + (f"\n\n{RATIOS}" if drawn else "")


def details(results: Results) -> str:
    """Return one table an item, with all contestants."""
    return "\n\n".join(_detail(item) for item in results.items.values()) or "_Nothing was measured yet._"


def curves(results: Results) -> str:
    """Return the tables of how cost grows, and what grows faster than the work."""
    if not results.curves:
        return "_Nothing was measured yet._"
    return "\n\n".join([GROWTH, *(_growth(curve) for curve in results.curves.values())])


def verdict(item: Item, score: Score | None) -> str:
    """Say whether the goal was met."""
    if score is None or item.goal is None:
        return "–"
    return "**met**" if item.goal.met(score.median) else "missed"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; `|` in a cell is escaped."""
    names = list(head)
    lines = [names, ["---"] * len(names), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# --- pieces -------------------------------------------------------------------------------------------------


def _ours(item: Item, score: Score | None) -> str:
    if score is not None:
        return _scored(score, item, spread=True)
    contest = item.contest(OURS)
    return f"failed: {contest.failed}" if contest and contest.failed else "–"


def _scored(score: Score, item: Item, *, spread: bool = False) -> str:
    unit = item.goal.unit if item.goal else "×" if item.baseline else f" {item.unit}"
    text = f"{figure(score.median)}{unit}"
    if spread and score.low != score.high:
        text += f" ({figure(score.low)}–{figure(score.high)})"
    return text


def _peer_memory(items: Iterable[Item]) -> str:
    peaks: dict[str, float] = {}
    for item in items:
        for contest in item.contests:
            most = contest.most("memory")
            if most and contest.name != OURS and contest.name not in LIMITS:
                peaks[contest.name] = max(peaks.get(contest.name, 0.0), most)
    if not peaks:
        return "–"
    name, least = min(peaks.items(), key=lambda pair: pair[1])
    return f"{least / MIB:.0f} MiB ({name})"


def _detail(item: Item) -> str:
    lines = [f"### {item.title}", "", item.state, ""]
    lines.append(f"_{item.setting}; {item.when} UTC{'; small sizes' if item.quick else ''}._\n")
    scored = "" if not item.baseline else f"÷ {item.baseline}"
    columns = ("memory", "cpu", "fetched")
    rows: list[tuple[str, ...]] = []
    for contest in item.contests:
        if contest.failed:
            rows.append((contest.name, f"failed: {contest.failed}", "–", "–", "–", "–"))
            continue
        rows.append((contest.name, _values(contest), _ratio(item, contest), *(_cost(contest, c) for c in columns)))
    head = ["", item.unit, scored, "peak memory, MiB", "CPU s a GiB", "from the origin, MiB"]
    lines.append(table(*_without_empty(head, rows)))
    lines += [f"\n{note}" for note in item.notes]
    return "\n".join(lines)


def _without_empty(head: list[str], rows: list[tuple[str, ...]]) -> tuple[list[str], list[list[str]]]:
    """Leave out columns in which nobody has anything."""
    kept = [i for i in range(len(head)) if i < 2 or any(row[i] != "–" for row in rows)]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _values(contest: Contest) -> str:
    score = _summary(contest)
    if score is None:
        return "–"
    text = figure(score.median)
    return text if score.low == score.high else f"{text} ({figure(score.low)}–{figure(score.high)})"


def _summary(contest: Contest) -> Score | None:
    return Item("", "", "", "", contests=[contest]).score(contest.name)


def _ratio(item: Item, contest: Contest) -> str:
    score = item.score(contest.name) if item.baseline else None
    return figure(score.median) if score else "–"


def _cost(contest: Contest, what: str) -> str:
    most = contest.most(what)  # type: ignore[arg-type]
    if most is None:
        return "–"
    return figure(round(most / MIB, 1)) if what in ("memory", "fetched") else figure(most)


def _growth(curve: Curve) -> str:
    lines = [f"### {curve.title}", "", f"_{curve.when} UTC{'; small sizes' if curve.quick else ''}._", ""]
    metrics: dict[str, None] = {metric: None for found in curve.series.values() for metric in found}
    several = len(curve.series) > 1
    for metric in metrics:
        rows = [
            ((name if several else metric), *map(figure, found[metric]), _exponent(curve, name, metric))
            for name, found in curve.series.items()
            if metric in found
        ]
        head = [metric if several else "", *(figure(size) for size in curve.sizes), "grows as"]
        if several or metric == next(iter(metrics)):
            lines += ["", table(head, rows)]
        else:  # one series: its metrics are the rows of one table
            lines[-1] += "\n" + table(head, rows).split("\n", 2)[2]
    defects = curve.defects()
    lines += [
        "",
        "Grows faster than the work: " + "; ".join(defects) + "."
        if defects
        else "Nothing grows faster than the work.",
    ]
    return "\n".join([*lines, *(f"\n{note}" for note in curve.notes)])


def _exponent(curve: Curve, series: str, metric: str) -> str:
    found = curve.exponent(series, metric)
    return f"n^{found:.2f} (work: n^{figure(curve.work.get(metric, 0.0))})" if found == found else "–"


def summary_lines(results: Results) -> Mapping[str, str]:
    """Return for each item one line for a terminal."""
    lines = {}
    for name, item in results.items.items():
        score, best = item.score(OURS), item.best_peer(LIMITS)
        said = _ours(item, score)
        peer = f"{best[0]} {_scored(best[1], item)}" if best else "–"
        goal = str(item.goal) if item.goal else "no goal"
        lines[name] = f"{said} (goal {goal}: {verdict(item, score).strip('*')}); best peer: {peer}"
    return lines
