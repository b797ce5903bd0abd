"""Who comes next of those that wait: what is urgent, of the user who holds least, in the order of asking."""

from __future__ import annotations

import contextvars
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.errands import AROUND, KEPT, Errand, Line, Turns, current, go_on, on_behalf_of

ANN, BOB, EVE = 1, 2, 3


def drained(line: Line[str]) -> list[str]:
    """Take who comes next, again and again; each holds what they got."""
    order = []
    while (found := line.first()) is not None:
        item, user = found
        line.leave(item, user)
        line.hold(user)
        order.append(item)
    return order


def test_one_user_is_served_in_the_order_of_asking() -> None:
    line: Line[str] = Line()
    for item in "abc":
        line.join(item, Errand(ANN))
    assert drained(line) == ["a", "b", "c"]


def test_who_holds_least_comes_before_another_s_tenth() -> None:
    line: Line[str] = Line()
    for number in range(10):
        line.join(f"ann {number}", Errand(ANN))
    line.join("bob", Errand(BOB))
    line.join("eve", Errand(EVE))
    assert drained(line)[:4] == ["ann 0", "bob", "eve", "ann 1"]


def test_what_somebody_waits_for_comes_before_what_is_read_ahead() -> None:
    line: Line[str] = Line()
    ahead = Errand(BOB, urgent=False)
    line.join("ahead", ahead)
    line.join("read", Errand(ANN))
    line.hold(ANN, 5)
    assert line.first() == ("read", ANN)
    ahead.urgent = True  # somebody waits for it by now
    assert line.first() == ("ahead", BOB)


def test_within_a_user_the_urgent_goes_first() -> None:
    line: Line[str] = Line()
    line.join("ahead", Errand(ANN, urgent=False))
    line.join("read", Errand(ANN))
    assert drained(line) == ["read", "ahead"]


def test_who_leaves_is_forgotten() -> None:
    line: Line[str] = Line()
    line.join("a", Errand(ANN))
    line.leave("a", ANN)
    line.leave("a", ANN)
    assert line.first() is None
    assert len(line) == 0
    assert not line._waiting
    line.hold(ANN, 3)
    line.drop(ANN, 3)
    assert not line._held


def test_alone_a_user_has_all_places() -> None:
    turns: Turns[str] = Turns(8)
    assert [turns.enter(ANN, 0.0) for _ in range(9)] == [True] * 8 + [False]


def test_among_others_some_places_are_for_who_has_none() -> None:
    turns: Turns[str] = Turns(8)
    assert turns.enter(BOB, 0.0)
    assert turns.leave(BOB, 0.0) == []
    taken = sum(turns.enter(ANN, 1.0) for _ in range(20))
    assert taken == 6
    assert turns.queue("ann", Errand(ANN), 1.0) == []
    assert not turns.enter(BOB, 2.0), "others wait"
    assert turns.queue("bob", Errand(BOB), 2.0) == ["bob"], "and not for what is kept"
    assert turns.leave(BOB, 2.0) == []
    assert turns.leave(ANN, 2.0) == ["ann"]


def test_nothing_is_kept_for_who_has_gone() -> None:
    turns: Turns[str] = Turns(8)
    assert turns.enter(BOB, 0.0)
    turns.leave(BOB, 0.0)
    assert sum(turns.enter(ANN, AROUND + 1) for _ in range(20)) == 8


@pytest.mark.parametrize("places", [1, 2, 3])
def test_of_few_places_none_is_kept(places: int) -> None:
    turns: Turns[str] = Turns(places)
    turns.enter(BOB, 0.0)
    turns.leave(BOB, 0.0)
    assert sum(turns.enter(ANN, 0.0) for _ in range(9)) == places


def test_places_that_are_added_are_had_at_once() -> None:
    turns: Turns[str] = Turns(1)
    assert turns.enter(ANN, 0.0)
    assert turns.queue("a", Errand(ANN), 0.0) == []
    assert turns.resize(2, 0.0) == ["a"]
    assert turns.resize(1, 0.0) == []
    assert turns.leave(ANN, 0.0) == []
    assert turns.free == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 3)), max_size=120))
def test_no_place_is_idle_that_somebody_may_have(steps: list[tuple[int, bool, int]]) -> None:
    turns: Turns[int] = Turns(5)
    inside: Counter[int] = Counter()
    waiting: dict[int, int] = {}

    def let_in(items: list[int]) -> None:
        for item in items:
            inside[waiting.pop(item)] += 1

    for number, (user, urgent, what) in enumerate(steps):
        if what < 2:
            if turns.enter(user, number / 10):
                inside[user] += 1
            else:
                waiting[number] = user
                let_in(turns.queue(number, Errand(user, urgent), number / 10))
        elif what == 2 and inside[user]:
            inside[user] -= 1
            let_in(turns.leave(user, number / 10))
        elif waiting:
            item, whose = next(iter(waiting.items()))
            turns.withdraw(item, whose)
            del waiting[item]
        assert turns.free == 5 - sum(inside.values()) >= 0
        assert turns.waiting == len(waiting)
        if turns.free > 5 // KEPT:
            assert not waiting
        if turns.free:
            assert all(inside[whose] for whose in waiting.values()), (
                "who has nothing does not wait beside a free place"
            )


def test_an_errand_is_inherited_and_its_own() -> None:
    assert current().user is None
    with on_behalf_of(ANN):
        inherited = contextvars.copy_context()
        assert current().user == ANN
        with on_behalf_of(BOB, urgent=False):
            assert (current().user, current().urgent) == (BOB, False)
        assert current().user == ANN
    assert current().user is None
    assert inherited.run(current).user == ANN
    errand = Errand(EVE)
    inherited.run(go_on, errand)
    assert inherited.run(current) is errand
    assert current().user is None
