"""Names of what is made here, as `cache info` and `cache verify` show them."""

from __future__ import annotations

import pytest

from refgenfs.administration.parts import shown_name
from refgenfs.core.layout import DERIVED


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("hg38.fa", "hg38.fa"),
        (f"{DERIVED}md5{DERIVED}8ede36131e0dbf3417807e48f77f3ebd", "md5/8ede36131e0dbf3417807e48f77f3ebd"),
        (f"{DERIVED}regions/11:1-500/x.bam", "regions/11:1-500/x.bam"),
    ],
)
def test_a_derived_name_has_no_control_characters(name: str, shown: str) -> None:
    assert shown_name(None, name) == shown
