"""Shares of a number of things: bounded by user, and something left for whoever comes next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.shares import Shares


def greedy(shares: Shares, holder: int | None) -> int:
    """Take one after the other for as long as that goes; return how many."""
    count = 0
    while shares.take(holder):
        count += 1
    return count


def test_a_user_holds_no_more_than_the_bound() -> None:
    shares = Shares(1000, 10)
    assert greedy(shares, 7) == 10
    assert shares.full(7)
    assert not shares.full(8)
    shares.give_back(7, 4)
    assert greedy(shares, 7) == 4


def test_one_user_gets_a_half_and_two_a_third_each() -> None:
    shares = Shares(600, 600)
    assert greedy(shares, 1) == 300
    assert greedy(shares, 2) == 150, "a half of what the first has left"
    shares.give_back(1, 300)
    shares.give_back(2, 150)
    for _ in range(600):
        for user in (1, 2):
            shares.take(user)
    assert [shares.held(user) for user in (1, 2)] == [200, 200]


def test_sixty_four_greedy_users_leave_something_for_the_next() -> None:
    shares = Shares(4096, 4096)
    for _ in range(200):
        for user in range(64):
            shares.take(user)
    held = [shares.held(user) for user in range(64)]
    assert max(held) - min(held) <= 1
    assert shares.left >= min(held)
    assert shares.take(1000)


def test_the_exempt_are_bound_by_the_total_alone() -> None:
    shares = Shares(20, 3, exempt=(0,))
    assert greedy(shares, 0) == 20
    assert not shares.full(0)
    assert not shares.take(5)


def test_several_at_once_count_as_many() -> None:
    shares = Shares(100, 10)
    assert shares.take(1, 9)
    assert not shares.take(1, 2)
    assert shares.take(1)
    assert not shares.take(2, 60), "more than would be left"


def test_who_holds_nothing_costs_nothing() -> None:
    shares = Shares(10, 10)
    for user in range(1000):
        assert shares.take(user)
        shares.give_back(user)
    assert not shares._held
    assert shares.left == 10


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.booleans()), max_size=200))
def test_the_books_are_right_whatever_is_taken(steps: list[tuple[int, int, bool]]) -> None:
    shares = Shares(40, 12, exempt=(0,))
    held: dict[int, int] = {}
    for user, number, gives in steps:
        if gives and held.get(user, 0) >= number:
            shares.give_back(user, number)
            held[user] -= number
        elif shares.take(user, number):
            held[user] = held.get(user, 0) + number
        assert shares.left == 40 - sum(held.values()) >= 0
        assert all(shares.held(one) == count for one, count in held.items())
        assert all(count <= 12 for one, count in held.items() if one)
