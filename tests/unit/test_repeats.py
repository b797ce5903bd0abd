"""How many lines of a kind are told, and what is said of those that are not."""

from __future__ import annotations

from refgenfs.core.repeats import MOST_KINDS, LeftOut, Repeats


def admitted(repeats: Repeats, kind: str, count: int, now: float) -> int:
    return sum(repeats.admit(kind, f"{kind} {number}", now) for number in range(count))


def test_the_first_lines_of_a_window_are_told_and_the_rest_is_counted() -> None:
    repeats = Repeats(burst=3, window=60.0)
    assert admitted(repeats, "a", 10, 0.0) == 3
    assert repeats.over(59.9) == []
    assert repeats.over(60.0) == [LeftOut("a", 7, "a 9")]
    assert repeats.over(60.0) == []


def test_a_window_that_is_over_begins_anew() -> None:
    repeats = Repeats(burst=3, window=60.0)
    admitted(repeats, "a", 4, 0.0)
    repeats.over(61.0)
    assert admitted(repeats, "a", 4, 61.0) == 3


def test_what_fits_is_not_summed_up() -> None:
    repeats = Repeats(burst=3, window=60.0)
    admitted(repeats, "a", 3, 0.0)
    assert repeats.over(60.0) == []
    assert repeats.all() == []


def test_a_noisy_kind_hides_no_other() -> None:
    repeats = Repeats(burst=3, window=60.0)
    admitted(repeats, "a", 1000, 0.0)
    assert admitted(repeats, "b", 1, 0.0) == 1


def test_at_the_end_all_is_told() -> None:
    repeats = Repeats(burst=1, window=60.0)
    admitted(repeats, "a", 2, 0.0)
    admitted(repeats, "b", 3, 0.0)
    assert repeats.all() == [LeftOut("a", 1, "a 1"), LeftOut("b", 2, "b 2")]
    assert repeats.all() == []


def test_kinds_without_number_share_one_bound() -> None:
    repeats = Repeats(burst=1, window=60.0, others="others")
    told = sum(repeats.admit(str(number), "line", 0.0) for number in range(10 * MOST_KINDS))
    assert told == MOST_KINDS + 1
    assert repeats.over(60.0) == [LeftOut("others", 9 * MOST_KINDS - 1, "line")]
