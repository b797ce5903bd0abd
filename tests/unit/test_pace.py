"""A disk is quick on the average, or it is not."""

from __future__ import annotations

from refgenfs.core.pace import Pace


def test_it_is_quick_to_begin_with() -> None:
    assert Pace(0.01).quick


def test_one_answer_that_took_a_little_long_is_an_accident() -> None:
    pace = Pace(0.01)
    for seconds in (0.0001, 0.0001, 0.03, 0.0001, 0.0001, 0.03, 0.0001):
        pace.note(seconds)
        assert pace.quick


def test_a_disk_that_always_takes_long_is_slow_soon() -> None:
    pace = Pace(0.01)
    for _ in range(8):
        pace.note(0.02)
    assert not pace.quick


def test_after_a_stall_it_has_to_be_quick_for_a_while() -> None:
    pace = Pace(0.01)
    pace.note(1.0)
    answers = 0
    while not pace.quick:
        pace.note(0.0001)
        answers += 1
    assert 8 <= answers <= 32
