"""Every setting either changes while mounted, or is said to stay: none is passed over in silence."""

from __future__ import annotations

import pytest

from refgenfs.config import Config, override_keys
from refgenfs.reload import FIXED, LIVE, is_live
from refgenfs.settings import budget_of


def test_every_setting_is_live_or_fixed() -> None:
    assert set(override_keys()) == LIVE | FIXED
    assert not LIVE & FIXED


@pytest.mark.parametrize("key", ["prefetch.rule.blast.opens", "cache.size", "log.level"])
def test_what_is_live(key: str) -> None:
    assert is_live(key)


@pytest.mark.parametrize("key", ["mount.point", "cache.dir", "prefetch.rules", "made.up"])
def test_what_is_not(key: str) -> None:
    assert not is_live(key)


def test_streams_leave_connections_for_listings() -> None:
    def streams(connections: int) -> int:
        return budget_of(Config.model_validate({"limits": {"connections": connections}}))[1]

    assert [streams(number) for number in (1, 3, 4, 6, 256)] == [1, 1, 2, 4, 4]
