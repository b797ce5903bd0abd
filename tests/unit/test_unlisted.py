"""Names that no listing has: the kernel is asked to forget the oldest, and nobody has ever more of them."""

from __future__ import annotations

import pytest

from refgenfs.core.errors import TooManyNames
from refgenfs.fuse.unlisted import Unlisted

ANN, BOB = 1, 2


def test_the_oldest_are_to_be_forgotten() -> None:
    asked: list[str] = []
    names = Unlisted(lambda _, name: asked.append(name), kept=3, most=100)
    for number in range(5):
        names.found(number, 1, f"n{number}", ANN)
    assert asked == ["n0", "n1"]
    assert len(names) == 5, "as long as the kernel has not forgotten"
    for number in (0, 1):
        names.forgotten(number)
    assert len(names) == 3


def test_what_is_looked_up_again_is_new() -> None:
    asked: list[str] = []
    names = Unlisted(lambda _, name: asked.append(name), kept=2, most=100)
    for number in (0, 1, 0, 2):
        names.found(number, 1, f"n{number}", ANN)
    assert asked == ["n1"]
    names.found(1, 1, "n1", ANN)  # on its way out
    assert asked == ["n1", "n0"]


def test_who_holds_on_gets_no_more_and_others_do() -> None:
    names = Unlisted(lambda *_: None, kept=2, most=20)
    for number in range(10):
        names.found(number, 1, f"n{number}", ANN)
    with pytest.raises(TooManyNames, match="user 1 uses as many names"):
        names.found(10, 1, "n10", ANN)
    names.found(1000, 1, "other", BOB)
    names.forgotten(0)
    names.forgotten(1)
    names.found(2000, 1, "again", ANN)
    for number in (*range(100), 1000, 2000):
        names.forgotten(number)
        names.forgotten(number)
    assert len(names) == 0
    assert names._shares.left == 20
