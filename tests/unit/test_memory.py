"""How much memory the cgroups of a process allow, and what of a budget fits into that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from refgenfs.memory import OWN, SMALLEST, allowed_memory, fitting_budget

MIB = 1 << 20
NONE_V1 = 9223372036854771712  # as cgroups of version 1 say "none"


def cgroups(tmp_path: Path, own: str, limits: Mapping[str, object]) -> int | None:
    """Return what is allowed where /proc/self/cgroup is `own`, and the limits' files are these."""
    for name, limit in limits.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    (tmp_path / "own").write_text(own)
    return allowed_memory(tmp_path / "own", tmp_path / "cgroup")


def test_the_lowest_limit_from_here_up_counts(tmp_path: Path) -> None:
    unit = "system.slice/refgenfs@lab.service"
    limits = {f"{unit}/memory.max": 2048 * MIB, f"{unit}/memory.high": 1536 * MIB, "system.slice/memory.max": "max"}
    assert cgroups(tmp_path, f"0::/{unit}\n", limits) == 1536 * MIB
    assert cgroups(tmp_path, f"0::/{unit}\n", {"system.slice/memory.max": 100 * MIB}) == 100 * MIB
    assert cgroups(tmp_path, "0::/other.slice\n", {}) is None


def test_cgroups_of_version_1(tmp_path: Path) -> None:
    own = "9:name=systemd:/a/b\n4:cpu,memory:/a/b\n0::/a/b\n"
    limits = {"memory/a/b/memory.limit_in_bytes": NONE_V1, "memory/memory.limit_in_bytes": NONE_V1}
    assert cgroups(tmp_path, own, limits) is None
    assert cgroups(tmp_path, own, {"memory/a/memory.limit_in_bytes": 160 * MIB}) == 160 * MIB


@pytest.mark.parametrize("own", ["", "nonsense", "0::/../../..\n"])
def test_what_can_t_be_read_is_no_limit(tmp_path: Path, own: str) -> None:
    assert cgroups(tmp_path, own, {}) is None
    assert allowed_memory(tmp_path / "nowhere", tmp_path) is None


def test_a_budget_leaves_room_for_pages() -> None:
    assert fitting_budget(64 * MIB, None) == 64 * MIB
    assert fitting_budget(64 * MIB, 2048 * MIB) == 64 * MIB
    assert fitting_budget(64 * MIB, OWN + 40 * MIB) == 20 * MIB
    assert fitting_budget(64 * MIB, 10 * MIB) == SMALLEST
    assert fitting_budget(SMALLEST, 10 * MIB) == SMALLEST
