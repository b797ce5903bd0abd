"""JSON text read member by member is what `json.loads` reads at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.jsontext import decode_at, iter_members

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.sampled_from([None, 1]), st.text(" \t\n\r", max_size=3))
def test_every_object_is_read_as_at_once(value: dict[str, Any], indent: int | None, space: str) -> None:
    text = space + json.dumps(value, indent=indent) + space
    found = list(iter_members(text))
    assert {name: member for name, _, member in found} == value
    assert all(decode_at(text, place) == member for _, place, member in found)


@given(st.text('{}[]",: 1ae\\\n', max_size=12))
def test_any_text_is_an_object_or_refused_as_at_once(text: str) -> None:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    try:
        found: object = {name: member for name, _, member in iter_members(text)}
    except (ValueError, TypeError):
        found = None
    assert found == (value if isinstance(value, dict) else None)


@pytest.mark.parametrize("text", ["[]", "", "1", "null", '"x"'])
def test_what_is_no_object_is_told_before_anything_is_read(text: str) -> None:
    with pytest.raises(TypeError):
        next(iter_members(text))
