"""`docs/metrics.md` is made from the code, and what the dashboard and the alerts ask for is there.

`python -m tests.unit.test_metrics_doc` writes the page anew.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from refgenfs.administration.metrics import GROUPS, metrics
from refgenfs.core.metrics import BOUNDS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "metrics.md"
DASHBOARD = DOCS / "grafana" / "refgenfs.json"
ALERTS = DOCS / "grafana" / "alerts.yml"

HEAD = f"""\
# Metrics

What `/metrics` and `refgenfs metrics` have, in Prometheus' text format; [monitoring](monitoring.md) tells how to get
there. Counters begin at 0 when the daemon starts. Seconds and bytes are without prefixes. A histogram has the series
`_bucket`, `_sum` and `_count`; its {len(BOUNDS)} bounds are powers of two, from {BOUNDS[0] * 1e6:g} µs to
{BOUNDS[-1]:.0f} s.

This page is made from the code.
"""
# Words of PromQL that look like metrics to a regular expression.
_NAME = re.compile(r"\b(?:refgenfs|process)_[a-z_]+\b")


def render() -> str:
    """Return the whole page."""
    lines = [HEAD]
    for group in GROUPS:
        lines += [f"## {group.title}", "", "| metric | type | labels | meaning |", "|---|---|---|---|"]
        for metric, _ in group.metrics:
            labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
            lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
        lines.append("")
    return "\n".join(lines)


def panels() -> Iterator[dict[str, Any]]:
    """Yield the dashboard's panels that show something."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] != "row":
            yield panel


SERIES = {name for metric in metrics() for name in metric.series}
ASKED = {
    f"{panel['title']} {target['refId']}": target["expr"] for panel in panels() for target in panel["targets"]
} | {rule["alert"]: rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == render(), "run: python -m tests.unit.test_metrics_doc"


@pytest.mark.parametrize("metric", list(metrics()), ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: Any) -> None:
    assert re.fullmatch(r"(refgenfs|process)(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    if metric.kind == "histogram":
        assert metric.name.endswith("_seconds")
    assert metric.help.endswith(".")
    assert all(re.fullmatch(r"[a-z]+", label) and label != "le" for label in metric.labels)


def test_every_metric_has_one_meaning() -> None:
    names = [metric.name for metric in metrics()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("what", ASKED)
def test_dashboard_and_alerts_ask_for_what_there_is(what: str) -> None:
    names = set(_NAME.findall(ASKED[what]))
    assert names
    assert names <= SERIES


def test_every_label_that_is_asked_for_is_there() -> None:
    labels = {label for metric in metrics() for label in metric.labels} | {"le", "instance", "job"}
    for what, asked in ASKED.items():
        by = {word for found in re.findall(r"(?:by|on) \(([^)]*)\)", asked) for word in found.split(", ")}
        chosen = set(re.findall(r"[{,](\w+)[!=]?[=~]", asked))
        assert by | chosen <= labels, what


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = {name for asked in ASKED.values() for name in _NAME.findall(asked)}
    hidden = {"refgenfs_memory_waiting", "refgenfs_cache_files", "refgenfs_requests_waiting"}
    missing = [
        metric.name
        for metric in metrics()
        if metric.name.startswith("refgenfs") and not shown & set(metric.series) and metric.name not in hidden
    ]
    assert missing == []


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= board.keys()
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(numbers) == len(set(numbers))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken
        assert grid["x"] + grid["w"] <= 24
        taken |= cells
    variables = {one["name"] for one in board["templating"]["list"]}
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        used = {name for target in panel["targets"] for name in re.findall(r"\$(\w+)", target["expr"])}
        assert used - {"__rate_interval"} <= variables


if __name__ == "__main__":
    PAGE.write_text(render())
    sys.stderr.write(f"{PAGE} written\n")
