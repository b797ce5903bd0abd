"""A table keeps the values that were put last, and no more than it may."""

from __future__ import annotations

from refgenfs.core.newest import Newest


def test_the_oldest_goes_first() -> None:
    table: Newest[str, int] = Newest(2)
    for value, key in enumerate("abc"):
        table.put(key, value)
    assert list(table.items()) == [("b", 1), ("c", 2)]


def test_what_is_put_again_is_new() -> None:
    table: Newest[str, int] = Newest(2)
    for value, key in enumerate("abac"):
        table.put(key, value)
    assert list(table.items()) == [("a", 2), ("c", 3)]


def test_looking_changes_nothing() -> None:
    table: Newest[str, int] = Newest(2)
    table.put("a", 1)
    table.put("b", 2)
    assert table.get("a") == 1
    table.put("c", 3)
    assert "a" not in table
