"""The accounts of users: one each, and never more than so many."""

from __future__ import annotations

from refgenfs.core.usage import Users


def test_a_user_has_one_account() -> None:
    users = Users()
    users.account(1000).served += 5
    users.account(1000).served += 6
    users.account(0).served += 20
    assert [(uid, usage.served) for uid, usage in users] == [(0, 20), (1000, 11)]


def test_beyond_so_many_users_the_rest_shares_one() -> None:
    users = Users(most=2)
    for uid in (1, 2, 3, 4, 1):
        account = users.account(uid)
        account.reads += 1
        account.served += 10
    assert [(uid, usage.served) for uid, usage in users] == [(1, 20), (None, 20), (2, 10)]
