"""The text that Prometheus reads, and the buckets of durations.

Promises:
- a duration is counted below each bound that it does not pass;
- counts of buckets never fall, and the last is the count of all;
- labels and help are escaped as the format wants it.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.metrics import BOUNDS, Durations, Metric, Reading, Spread, exposition


def test_a_counter_without_labels() -> None:
    reading = Reading(Metric("x_total", "counter", "What is\ncounted."), (((), 3),))
    assert exposition([reading]) == "# HELP x_total What is\\ncounted.\n# TYPE x_total counter\nx_total 3\n"


def test_labels_are_escaped() -> None:
    reading = Reading(Metric("x", "gauge", "X.", ("name",)), ((('a"b\\c\nd\udcff',), 0.5),))
    assert exposition([reading]).splitlines()[2] == r'x{name="a\"b\\c\nd?"} 0.5'


def test_a_metric_without_values_has_its_name_all_the_same() -> None:
    assert exposition([Reading(Metric("x", "gauge", "X.", ("name",)), ())]).splitlines()[1:] == ["# TYPE x gauge"]


def test_a_histogram_has_buckets_a_sum_and_a_count() -> None:
    took = Durations()
    for seconds in (0.0, 0.001, 3.0, 1e6):
        took.observe(seconds)
    text = exposition([Reading(Metric("x_seconds", "histogram", "X.", ("op",)), ((("read",), Spread.of(took)),))])
    lines = text.splitlines()
    assert lines[2] == 'x_seconds_bucket{op="read",le="1.6e-05"} 1'
    assert 'x_seconds_bucket{op="read",le="0.001024"} 2' in lines
    assert 'x_seconds_bucket{op="read",le="67.108864"} 3' in lines
    assert lines[-3:] == [
        'x_seconds_bucket{op="read",le="+Inf"} 4',
        'x_seconds_sum{op="read"} 1000003.001',
        'x_seconds_count{op="read"} 4',
    ]


@given(st.lists(st.floats(0, 1e5)))
def test_buckets_are_right_for_any_durations(seconds: list[float]) -> None:
    took = Durations()
    for one in seconds:
        took.observe(one)
    counted = took.cumulative()
    assert counted[-1] == took.count == len(seconds)
    assert list(counted) == sorted(counted)
    for bound, count in zip(BOUNDS, counted, strict=False):
        # a microsecond is where the clock's own digits end
        assert sum(one < bound - 1e-6 for one in seconds) <= count <= sum(one <= bound for one in seconds)
