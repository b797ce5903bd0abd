"""The retry policy, with scripted times and dice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.manners import host_of
from refgenfs.core.retry import Health, Outages, Remedy, Retry, RetryPolicy, parse_retry_after

A, B, C = "http://a/x", "http://b/x", "http://c/x"
POLICY = RetryPolicy(retry_for=30.0, first=1.0, longest=4.0, doubts=2)


def start(*urls: str, policy: RetryPolicy = POLICY, dice: float = 1.0) -> Retry:
    return Retry(urls, policy, now=0.0, random=lambda: dice)


def ask(retry: Retry, now: float) -> tuple[str, float] | None:
    asked = retry.next_ask(now)
    return None if asked is None else (asked.url, asked.delay)


def test_pauses_double_up_to_the_longest_and_the_jitter_scales_them() -> None:
    assert [POLICY.pause(n, lambda: 1.0) for n in (1, 2, 3, 4, 99)] == [1, 2, 4, 4, 4]
    assert POLICY.pause(3, lambda: 0.5) == 2
    assert POLICY.pause(3, lambda: 0.0) == 0


def test_one_url_is_asked_again_until_the_budget_ends() -> None:
    retry = start(A)
    now, asked = 0.0, []
    while (each := retry.next_ask(now)) is not None:
        now += each.delay
        asked.append(now)
        retry.failed(A, Remedy.AGAIN, now)
    # 1 + 2 + 4 + 4 ... and the last one just as the budget ends
    assert asked == [0, 1, 3, 7, 11, 15, 19, 23, 27, 30]


def test_attempts_are_numbered_from_one() -> None:
    retry = start(A, B)
    numbers = []
    for now in (0.0, 0.0, 5.0):
        asked = retry.next_ask(now)
        assert asked is not None
        numbers.append(asked.attempt)
        retry.failed(asked.url, Remedy.AGAIN, now)
    assert numbers == [1, 2, 3]


def test_a_url_that_failed_comes_after_the_others() -> None:
    retry = start(A, B, C)
    assert ask(retry, 0.0) == (A, 0.0)
    retry.failed(A, Remedy.AGAIN, 0.0)
    assert ask(retry, 0.1) == (B, 0.0)
    retry.failed(B, Remedy.AGAIN, 0.1)
    assert ask(retry, 0.2) == (C, 0.0)
    retry.failed(C, Remedy.AGAIN, 0.2)
    assert ask(retry, 0.2) == (A, 0.8)


def test_the_same_url_given_twice_is_one() -> None:
    retry = start(A, A)
    assert ask(retry, 0.0) == (A, 0.0)
    retry.failed(A, Remedy.ELSEWHERE, 0.0)
    assert ask(retry, 0.0) is None


def test_without_urls_there_is_nothing_to_ask() -> None:
    assert ask(start(), 0.0) is None


def test_progress_begins_the_budget_and_the_pauses_anew() -> None:
    retry = start(A)
    for now in (0.0, 10.0, 20.0):
        ask(retry, now)
        retry.failed(A, Remedy.AGAIN, now)
    retry.progressed(29.0)
    retry.failed(A, Remedy.AGAIN, 58.0)
    assert ask(retry, 58.0) == (A, 1.0)
    retry.failed(A, Remedy.AGAIN, 59.0)
    assert ask(retry, 59.0) is None


def test_progress_gives_a_url_that_was_too_late_another_chance() -> None:
    retry = start(A, B)
    ask(retry, 0.0)
    retry.failed(A, Remedy.AGAIN, 31.0)
    assert ask(retry, 31.0) == (B, 0.0)
    retry.progressed(40.0)
    retry.failed(B, Remedy.ELSEWHERE, 41.0)
    assert ask(retry, 41.0) == (A, 0.0)


def test_a_url_never_asked_is_asked_even_when_the_budget_is_used_up() -> None:
    retry = start(A, B)
    ask(retry, 0.0)
    retry.failed(A, Remedy.AGAIN, 50.0)
    assert ask(retry, 50.0) == (B, 0.0)
    retry.failed(B, Remedy.AGAIN, 60.0)
    assert ask(retry, 60.0) is None


def test_no_budget_asks_each_url_once() -> None:
    retry = start(A, B, policy=RetryPolicy(retry_for=0.0, doubts=0))
    assert ask(retry, 0.0) == (A, 0.0)
    retry.failed(A, Remedy.AGAIN, 0.0)
    assert ask(retry, 0.0) == (B, 0.0)
    retry.failed(B, Remedy.DOUBTFUL, 0.0)
    assert ask(retry, 0.0) is None


def test_a_wait_for_a_turn_is_not_the_origins() -> None:
    retry = start(A)
    ask(retry, 0.0)
    retry.excluded(25.0)
    retry.failed(A, Remedy.AGAIN, 50.0)
    assert ask(retry, 50.0) == (A, 1.0)


def test_elsewhere_drops_the_url_for_good() -> None:
    retry = start(A, B)
    ask(retry, 0.0)
    retry.failed(A, Remedy.ELSEWHERE, 0.0)
    assert ask(retry, 0.0) == (B, 0.0)
    retry.failed(B, Remedy.AGAIN, 0.0)
    assert ask(retry, 0.0) == (B, 1.0)


def test_doubtful_answers_are_asked_for_again_a_few_times_only() -> None:
    retry = start(A)
    for _ in range(3):
        assert ask(retry, 0.0) is not None
        retry.failed(A, Remedy.DOUBTFUL, 0.0)
    assert ask(retry, 0.0) is None


def test_retry_after_is_honoured_within_the_budget() -> None:
    retry = start(A)
    ask(retry, 0.0)
    retry.failed(A, Remedy.AGAIN, 1.0, retry_after=20.0)
    assert ask(retry, 1.0) == (A, 20.0)


def test_retry_after_never_shortens_a_pause() -> None:
    retry = start(A)
    ask(retry, 0.0)
    retry.failed(A, Remedy.AGAIN, 0.0, retry_after=0.0)
    assert ask(retry, 0.0) == (A, 1.0)


def test_retry_after_beyond_the_budget_gives_up_at_once() -> None:
    retry = start(A)
    ask(retry, 0.0)
    retry.failed(A, Remedy.AGAIN, 0.0, retry_after=31.0)
    assert ask(retry, 0.0) is None


def test_while_one_url_wants_to_be_left_alone_another_is_asked() -> None:
    retry = start(A, B)
    ask(retry, 0.0)
    retry.failed(A, Remedy.AGAIN, 0.0, retry_after=25.0)
    ask(retry, 0.0)
    retry.failed(B, Remedy.AGAIN, 0.0)
    assert ask(retry, 0.0) == (B, 1.0)


@given(
    st.lists(st.sampled_from(Remedy), min_size=1, max_size=200),
    st.floats(0, 1),
    st.floats(0, 100),
    st.integers(1, 4),
)
def test_every_script_ends_within_the_budget(remedies: list[Remedy], dice: float, patience: float, urls: int) -> None:
    policy = RetryPolicy(retry_for=patience)
    retry = Retry([f"http://{n}/" for n in range(urls)], policy, 0.0, lambda: dice)
    now, script = 0.0, iter(remedies * 50)
    while (each := retry.next_ask(now)) is not None and (remedy := next(script, None)):
        assert 0 <= each.delay <= policy.longest + 1e-9  # a difference of two times is rounded
        now += each.delay + 0.1
        retry.failed(each.url, remedy, now)
    assert now <= patience + 0.1 * (urls + 1)


def test_an_outage_longer_than_the_budget_costs_the_next_call_a_moment() -> None:
    outages, policy = Outages(memory=60.0), RetryPolicy(retry_for=30.0)
    for when in (0.0, 1.0, 2.0, 10.0, 26.0):
        assert outages.patience("lab", policy, when) is None, "it may be a restart"
        outages.failed("lab", when)
    assert outages.patience("lab", policy, 26.0) is None
    outages.failed("lab", 29.9)
    assert outages.patience("lab", policy, 30.0) == Outages.SHORT
    assert outages.patience("other", policy, 30.0) is None
    assert outages.patience("lab", policy, 89.0) == Outages.SHORT
    assert outages.patience("lab", policy, 91.0) is None, "that is long ago"
    outages.worked("lab")
    assert outages.patience("lab", policy, 30.0) is None
    outages.failed("lab", 100.0)
    outages.failed("lab", 140.0)
    assert outages.patience("lab", policy, 140.0) is None, "two failures say little"


def test_a_call_with_little_patience_has_all_of_it_once_something_came() -> None:
    policy = RetryPolicy(retry_for=30.0, first=4.0)
    retry = Retry([A], policy, 0.0, lambda: 1.0, 2.0)
    assert retry.next_ask(0.0) is not None
    retry.failed(A, Remedy.AGAIN, 0.1)
    ask = retry.next_ask(0.1)
    assert ask is not None
    assert ask.delay == pytest.approx(1.9), "cut to end with the patience"
    retry.progressed(2.0)
    retry.failed(A, Remedy.AGAIN, 20.0)
    assert retry.next_ask(20.0) is not None
    assert Retry([A], policy, 0.0, lambda: 1.0, 99.0)._deadline == 30.0


def hosts(health: Health, *urls: str, now: float) -> list[str]:
    return health.order(urls, now, host_of)


def test_a_host_that_failed_comes_last_for_a_while() -> None:
    health = Health(first=2.0)
    health.failed(host_of("http://user:secret@a/other?x=1"), 100.0)
    assert hosts(health, A, B, C, now=101.9) == [B, C, A]
    assert hosts(health, A, B, C, now=102.0) == [A, B, C]


def test_a_host_that_works_again_comes_first_again() -> None:
    health = Health()
    health.failed(host_of(A), 100.0)
    health.worked(host_of("http://a/other"))
    assert hosts(health, A, B, now=100.1) == [A, B]


def test_hosts_differ_by_port_and_scheme() -> None:
    health = Health()
    health.failed(host_of("http://a:81/x"), 100.0)
    health.failed(host_of("https://a/x"), 100.0)
    assert hosts(health, A, B, now=100.1) == [A, B]


def test_a_host_is_tried_by_one_call_at_a_time() -> None:
    health = Health(first=2.0)
    health.failed("a", 0.0)
    assert health.order("ab", 2.0) == ["a", "b"]  # the trial
    assert health.order("ab", 2.0) == ["b", "a"]
    health.worked("a")
    assert health.order("ab", 2.1) == ["a", "b"]


def test_a_trial_that_nobody_heard_of_again_is_followed_by_another() -> None:
    health = Health(first=2.0)
    health.failed("a", 0.0)
    assert health.order("ab", 2.0) == ["a", "b"]
    assert health.order("ab", 2.0 + Health.TRIAL) == ["a", "b"]


def test_what_is_due_is_said_without_a_trial() -> None:
    health = Health(first=2.0)
    health.failed("a", 0.0)
    assert not health.is_due("a", 1.9)
    assert health.is_due("a", 2.0)
    assert health.order("ab", 2.0) == ["a", "b"]
    assert not health.is_due("a", 2.0)


def test_what_is_asked_alone_is_no_trial() -> None:
    health = Health(first=2.0)
    health.failed("a", 0.0)
    assert health.order("a", 5.0) == ["a"]
    assert health.order("ab", 5.0) == ["a", "b"]


def test_each_trial_that_fails_doubles_the_wait_up_to_the_longest() -> None:
    health = Health(first=2.0, longest=10.0)
    now, waits = 0.0, []
    for _ in range(4):
        health.failed("a", now)
        began = now
        while health.order("ab", now) == ["b", "a"]:
            now += 1.0
        waits.append(now - began)
    assert waits == [2, 4, 8, 10]


def test_failures_side_by_side_count_once() -> None:
    health = Health(first=2.0)
    for _ in range(8):
        health.failed("a", 0.0)
    assert health.order("ab", 2.0) == ["a", "b"]
    for _ in range(8):
        health.failed("a", 3.0)
    assert health.order("ab", 6.9) == ["b", "a"]
    assert health.order("ab", 7.0) == ["a", "b"]


def test_no_more_names_are_remembered_than_will_do() -> None:
    health = Health()
    for n in range(3 * Health.KNOWN):
        health.failed(f"h{n}", 0.0)
    assert len(health._marks) <= Health.KNOWN


def test_every_way_of_a_url_is_asked_before_the_next_url() -> None:
    retry = Retry([A, B], POLICY, 0.0, lambda: 1.0, ways=("p", "q"))
    asked = []
    for _ in range(4):
        each = retry.next_ask(0.0)
        assert each is not None
        asked.append((each.url, each.way, each.others))
        retry.failed(each.url, Remedy.AGAIN, 0.0, way=each.way)
    assert asked == [(A, "p", True), (A, "q", True), (B, "p", True), (B, "q", False)]
    again = retry.next_ask(0.0)
    assert again is not None
    assert (again.url, again.way, again.others, again.delay) == (A, "p", False, 1.0)


def test_elsewhere_drops_one_way_of_a_url() -> None:
    retry = Retry([A], POLICY, 0.0, lambda: 1.0, ways=("p", "q"))
    for way in ("p", "q"):
        each = retry.next_ask(0.0)
        assert each is not None
        assert each.way == way
        retry.failed(A, Remedy.ELSEWHERE, 0.0, way=way)
    assert retry.next_ask(0.0) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Fri, 01 Jan 2021 00:00:30 GMT", 30.0),
        ("Fri, 01 Jan 2021 00:00:30 -0000", 30.0),
        ("Thu, 31 Dec 2020 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("", None),
        (None, None),
        ("\u0661", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str | None, seconds: float | None) -> None:
    assert parse_retry_after(text, wall=1609459200.0) == seconds


@given(st.text())
def test_no_retry_after_raises(text: str) -> None:
    found = parse_retry_after(text, wall=1609459200.0)
    assert found is None or found >= 0
