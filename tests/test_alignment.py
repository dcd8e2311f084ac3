"""Alignments by hand, and against the edit distance on random texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.alignment import Pair, align, columns
from training.error_rate import Edits, edits


@pytest.mark.parametrize(
    ("said", "heard", "shown"),
    [
        ("one two three", "one two three", ("one two three", "one two three")),
        ("one two three", "one too three", ("one TWO three", "one TOO three")),
        ("one two three", "one three", ("one TWO three", "one *** three")),
        ("one two", "one and two", ("one *** two", "one AND two")),
        ("yes", "yesterday", ("YES", "YESTERDAY")),
        ("", "hello there", ("***** *****", "HELLO THERE")),
        ("hello", "", ("HELLO", "*****")),
        ("", "", ("", "")),
    ],
)
def test_columns(said: str, heard: str, shown: tuple[str, str]) -> None:
    assert columns(align(said.split(), heard.split())) == shown


@settings(deadline=None)
@given(said=st.text("abc", max_size=7), heard=st.text("abc", max_size=7))
def test_pairs_are_both_texts_and_count_as_the_distance_does(said: str, heard: str) -> None:
    pairs = align(said, heard)
    assert "".join(pair.said or "" for pair in pairs) == said
    assert "".join(pair.heard or "" for pair in pairs) == heard
    assert Pair(None, None) not in pairs
    deletions, insertions = (sum(getattr(pair, side) is None for pair in pairs) for side in ("heard", "said"))
    wrong = sum(not pair.right for pair in pairs)
    assert edits(said, heard) == Edits(wrong - deletions - insertions, deletions, insertions, len(said))
