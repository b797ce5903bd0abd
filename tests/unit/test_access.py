"""Rules of access: who may, and what of that a mode can say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.access import Ownership, Rule, union
from refgenfs.users import gid_of, uid_of

DAEMON, EVE, BOB, LAB, CLINIC = 100, 1001, 1002, 5000, 5001


def rule(users: tuple[int, ...] = (), groups: tuple[int, ...] = (), owner: int = DAEMON) -> Rule:
    return Rule(frozenset(users), frozenset(groups), owner)


async def allowed(which: Rule, uid: int, gid: int = 1, groups: tuple[int, ...] = ()) -> bool:
    async def others() -> tuple[int, ...]:
        return groups

    return await which.allows(uid, gid, others)


async def test_who_may() -> None:
    both = rule((EVE,), (LAB,))
    for uid, gid, groups, may in (
        (0, 0, (), True),
        (DAEMON, 1, (), True),
        (EVE, 1, (), True),
        (BOB, 1, (), False),
        (BOB, LAB, (), True),
        (BOB, 1, (7, LAB), True),
        (BOB, CLINIC, (CLINIC,), False),
    ):
        assert await allowed(both, uid, gid, groups) is may
    assert not await allowed(rule(), EVE)


async def test_groups_are_asked_for_only_where_they_matter() -> None:
    async def fail() -> tuple[int, ...]:
        raise AssertionError

    assert await rule((EVE,)).allows(EVE, 1, fail)
    assert not await rule((EVE,)).allows(BOB, 1, fail)
    assert await rule((), (LAB,)).allows(BOB, LAB, fail)


@pytest.mark.parametrize(
    ("which", "shown"),
    [
        (rule(), Ownership(mode=0o500)),
        (rule((DAEMON, 0)), Ownership(mode=0o500)),
        (rule((), (LAB,)), Ownership(None, LAB, 0o550)),
        (rule((DAEMON,), (LAB,)), Ownership(None, LAB, 0o550)),
        (rule((), (LAB, CLINIC)), Ownership()),
        (rule((EVE,)), Ownership()),
        (rule((EVE,), (), 0), Ownership(EVE, None, 0o500)),
        (rule((EVE,), (LAB,), 0), Ownership(EVE, LAB, 0o550)),
        (rule((EVE, BOB), (), 0), Ownership()),
    ],
)
def test_what_a_mode_says(which: Rule, shown: Ownership) -> None:
    assert which.ownership == shown
    assert shown.file_mode() == shown.mode & 0o444


numbers = st.frozensets(st.integers(0, 4), max_size=3)


@given(numbers, numbers, st.integers(0, 2), st.integers(0, 6), st.integers(0, 6), numbers)
async def test_the_kernel_never_refuses_whom_the_rule_allows(
    users: frozenset[int], groups: frozenset[int], owner: int, uid: int, gid: int, more: frozenset[int]
) -> None:
    which = Rule(users, groups, owner)
    shown = which.ownership
    shown_uid = owner if shown.uid is None else shown.uid
    in_group = shown.gid is not None and shown.gid in {gid, *more}
    bits = shown.mode >> 6 if uid == shown_uid else shown.mode >> 3 if in_group else shown.mode
    kernel_lets = uid == 0 or bits & 4
    if await allowed(which, uid, gid, tuple(more)):
        assert kernel_lets
    elif shown.mode != 0o555:
        assert not kernel_lets


def test_a_folder_of_several_lets_in_whom_any_of_them_does() -> None:
    assert union([rule((EVE,)), None]) is None
    assert union([]) is None
    assert union([rule((EVE,)), rule((EVE,))]) == rule((EVE,))
    assert union([rule((EVE,)), rule((BOB,), (LAB,))]) == rule((EVE, BOB), (LAB,))


@pytest.mark.parametrize("number", ["4294967295", "9999999999", "99999999999", "-1", ""])
def test_numbers_that_no_user_can_have(number: str) -> None:
    for find in (uid_of, gid_of):
        with pytest.raises(ValueError, match="this machine has no"):
            find(number)
    assert uid_of("4294967294") == gid_of("4294967294") == 2**32 - 2
