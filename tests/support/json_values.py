"""Values that JSON can hold, for properties."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


def json_values(*words: str, text: int, key: int, leaves: int) -> st.SearchStrategy[Any]:
    """Draw any value, these words among them. text, key: the longest texts and names. leaves: how many at most."""
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=text) | st.sampled_from(words),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=key), inner, max_size=3),
        max_leaves=leaves,
    )
