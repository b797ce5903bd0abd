"""The pure parts of the benchmarks: what is made of measurements."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.bench import rotated
from benchmarks.data import fasta
from benchmarks.origin import Served, is_bulk, parse_log
from benchmarks.reader import spread
from benchmarks.results import (
    MIB,
    OURS,
    Contest,
    Curve,
    Goal,
    Item,
    Results,
    Sample,
    Score,
    figure,
    growth,
    ratios,
    summary,
)

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


def contest(name: str, *values: float, memory: int | None = None) -> Contest:
    return Contest(name, [Sample(value, memory=memory) for value in values])


def item(*contests: Contest, goal: Goal | None = None, baseline: str = "curl") -> Item:
    return Item("name", "a title", "MB/s", "a state", goal, baseline, "0.31", list(contests), setting="1 GiB, 3 runs")


# --- statistics ---------------------------------------------------------------------------------------------


def test_a_summary_has_the_median_and_the_extremes() -> None:
    assert summary([3, 1, 2]) == Score(2, 1, 3)
    assert summary([]) is None


def test_ratios_are_taken_run_by_run() -> None:
    assert ratios([1, 20, 3], [2, 40, 6]) == [0.5, 0.5, 0.5]


def test_a_contestant_with_fewer_runs_is_held_against_the_baselines_median() -> None:
    assert ratios([10], [1, 5, 100]) == [2]


def test_latencies_are_told_by_the_nearest_rank() -> None:
    assert spread([float(value) for value in range(100, 0, -1)]) == {"p50": 51, "p99": 99, "max": 100}
    assert spread([7.0]) == {"p50": 7, "p99": 7, "max": 7}
    assert spread([])["p99"] == 0


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_growth_is_the_exponent_at_the_large_end(exponent: float) -> None:
    sizes = [1.0, 10.0, 100.0, 1000.0, 10_000.0]
    assert growth(sizes, [3 * size**exponent for size in sizes]) == pytest.approx(exponent)
    assert growth(sizes, [99.0, 99.0, *(3 * size**exponent for size in sizes[2:])]) == pytest.approx(exponent)


def test_growth_of_too_little_is_not_known() -> None:
    assert math.isnan(growth([1.0], [1.0]))
    assert math.isnan(growth([1.0, 10.0], [math.nan, 1.0]))


def test_what_grows_faster_than_the_work_is_a_defect() -> None:
    sizes = [1.0, 10.0, 100.0]
    curve = Curve("n", "t", "files", sizes, {"total s": 1, "lookup ms": 0})
    for size in sizes:
        curve.note("all", {"total s": size * 2, "lookup ms": 5})
        curve.note("bad", {"total s": size**2, "lookup ms": size})
    assert [text.partition(":")[0] for text in curve.defects()] == ["bad, total s", "bad, lookup ms"]


def test_another_contestant_is_first_in_each_run() -> None:
    contests = [contest("a"), contest("b"), contest("c")]
    orders = ["".join(one.name for one in rotated(contests, run)) for run in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]


# --- goals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "score", "met"),
    [
        (Goal("≥", 0.6), 0.6, True),
        (Goal("≥", 0.6), 0.59, False),
        (Goal("≤", 30), 30, True),
        (Goal("≤", 30), 31, False),
        (Goal("<", 1, " %"), 1, False),
        (Goal("<", 1, " %"), 0.99, True),
        (Goal("≥", 0.6), math.nan, False),
    ],
)
def test_a_goal_is_met_or_not(goal: Goal, score: float, met: bool) -> None:
    assert goal.met(score) is met


def test_the_best_peer_is_the_fastest_where_more_is_better() -> None:
    found = item(contest("curl", 100), contest(OURS, 300), contest("a", 20), contest("b", 30), goal=Goal("≥", 1))
    assert found.best_peer(()) == ("b", Score(0.3, 0.3, 0.3))
    assert found.best_peer(("b",)) == ("a", Score(0.2, 0.2, 0.2))


def test_the_best_peer_is_the_least_where_less_is_better() -> None:
    found = item(contest(OURS, 3), contest("a", 20), contest("b", 30), goal=Goal("≤", 5), baseline="")
    assert found.best_peer(()) == ("a", Score(20, 20, 20))


def test_who_failed_has_no_score_and_is_no_peer() -> None:
    failed = Contest("a", [Sample(5)], "over 100 s")
    found = item(contest("curl", 100), contest(OURS, 50), failed, goal=Goal("≥", 1))
    assert found.score("a") is None
    assert found.best_peer(()) is None


def test_without_its_baseline_an_item_has_no_scores() -> None:
    found = item(Contest("curl", [], "not installed"), contest(OURS, 50), goal=Goal("≥", 1))
    assert found.score(OURS) is None
    assert report.verdict(found, found.score(OURS)) == "–"


# --- the document -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (0.6543, "0.65"),
        (12.34, "12.3"),
        (1234.5, "1,234"),
        (0.0123, "0.012"),
        (math.nan, "–"),
        (1e6, "1,000,000"),
    ],
)
def test_figures_have_about_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


def measured() -> Results:
    cold = item(
        contest("curl", 100, 100, 100),
        contest(OURS, 61, 62, 70, memory=80 * MIB),
        contest("rclone", 30, 31, 32, memory=900 * MIB),
        Contest("other", [], "not installed | at all"),
        goal=Goal("≥", 0.6),
    )
    cold.when = "2026-01-02 03:04"
    curve = Curve("open", "Open files", "files", [1.0, 10.0], {"open µs": 0})
    curve.note("all", {"open µs": 50.0})
    curve.note("all", {"open µs": 51.0})
    return Results({"kernel": "6.1"}, "make bench", {"cold": cold}, {"open": curve})


def test_the_table_of_goals_has_ours_the_goal_and_the_best_peer() -> None:
    lines = report.goals(measured()).splitlines()
    assert lines[2] == "| a title | ≥ 0.60× | 0.62× (0.61–0.70) | **met** | 0.31× (rclone) | 0.31 | – |"
    assert lines[3].startswith(
        "| peak memory of the daemon in all of the above | ≤ 150 MiB | 80 MiB | **met** | 900 MiB"
    )


def test_the_table_of_an_item_shows_who_failed_and_leaves_out_what_nobody_has() -> None:
    text = report.details(measured())
    assert "| other | failed: not installed \\| at all | – | – |" in text
    assert "| rclone | 31 (30–32) | 0.31 | 900 |" in text
    assert "CPU" not in text


def test_the_document_has_a_place_for_everything() -> None:
    text = report.render(DOCUMENT.read_text(), measured())
    assert text.count("0.62× (0.61–0.70)") == 1
    assert "Nothing grows faster than the work." in text
    assert report.render(text, measured()) == text, "made again from the same results, it is the same"
    assert "Nothing was measured yet" not in text
    assert "Nothing was measured yet" in report.render(text, Results())


def test_a_document_without_markers_is_refused() -> None:
    with pytest.raises(report.NoMarker, match="begin goals"):
        report.put("# Performance", "goals", "x")


def test_results_survive_as_json() -> None:
    results = measured()
    results.curves["open"].note("other", {"open µs": math.nan})
    again = Results.from_json(results.to_json())
    assert again.items == results.items
    assert again.to_json() == results.to_json()
    assert math.isnan(again.curves["open"].series["other"]["open µs"][0])


# --- the origin's log, and what it serves -------------------------------------------------------------------


def test_the_origins_log_is_read() -> None:
    lines = ["GET 206 1048576 /files/d/a__default/x.bin", "HEAD 200 0 /v3/assets/archive/d/a?tag=default\n"]
    assert parse_log(lines) == [
        Served("GET", "/files/d/a__default/x.bin", 206, 1048576),
        Served("HEAD", "/v3/assets/archive/d/a?tag=default", 200, 0),
    ]
    with pytest.raises(ValueError, match="no line of this log"):
        parse_log(["GET 206"])


@pytest.mark.parametrize(
    ("path", "bulk"),
    [
        ("/files/d/a__default/x.bin", True),
        ("/v3/assets/archive/d/a?tag=default", True),
        ("/files/d/a__default/", False),
        ("/files/d/asset_dir_contents_a__default.json", False),
        ("/v3/remotes/dict", False),
        ("/_private_api/genomes/dict", False),
    ],
)
def test_catalogs_and_listings_are_not_counted(path: str, bulk: bool) -> None:
    assert is_bulk(path) is bulk


def test_a_made_fasta_is_what_its_index_says() -> None:
    sequences, index = fasta("g", 70 * MIB)
    text = b"".join(sequences.pieces)
    assert len(text) == sequences.size
    rows = [row.split("\t") for row in b"".join(index.pieces).decode().splitlines()]
    assert len(rows) == 2
    for name, length, offset, bases, width in rows:
        start = int(offset)
        assert text[:start].endswith(f">{name}\n".encode())
        assert text[start : start + int(bases)].strip(b"ACGT") == b""
        assert text[start + int(bases)] == ord("\n")
        end = start + int(length) // int(bases) * int(width)
        assert text[end : end + 1] in (b"", b">")
