"""Numbers in requests of the control socket that no time is made of."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from refgenfs.administration.claims import LONGEST_LEASE, claim_in
from refgenfs.administration.following import Following
from refgenfs.administration.parts import Daemon
from refgenfs.core.errors import ControlError


@pytest.mark.parametrize("lease", [0, -1, 10**400, math.inf, math.nan, 1e300, True, "1", [1], LONGEST_LEASE + 1])
def test_a_lease_is_some_time(lease: Any) -> None:
    with pytest.raises(ControlError, match="a lease is a number of seconds"):
        claim_in({"lease": lease}, 1000.0)
    assert claim_in({"lease": 0.5, "for": "job"}, 1000.0) == {"job": 1000.5}


@pytest.mark.parametrize("seconds", [-1, 10**400, math.inf, math.nan, "1"])
async def test_a_trace_is_of_some_time(seconds: Any) -> None:
    async def progress(_: dict[str, Any]) -> None: ...

    with pytest.raises(ControlError, match="seconds are a number"):
        await Following(cast(Daemon, SimpleNamespace(fuse=None))).trace({"seconds": seconds}, progress)
