"""Edit distances counted by hand, and against the plain recursion on random strings."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.error_rate import Edits, character_edits, edits, word_edits


@pytest.mark.parametrize(
    ("said", "heard", "expected"),
    [
        ("", "", Edits(0, 0, 0, 0)),
        ("one two three", "one two three", Edits(0, 0, 0, 3)),
        ("one two three", "one too three", Edits(1, 0, 0, 3)),
        ("one two three", "one three", Edits(0, 1, 0, 3)),
        ("one two", "one  and two", Edits(0, 0, 1, 2)),
        ("a b c d", "b c d e", Edits(0, 1, 1, 4)),
        ("", "hello there", Edits(0, 0, 2, 0)),
        ("hello there", "", Edits(0, 2, 0, 2)),
    ],
)
def test_words(said: str, heard: str, expected: Edits) -> None:
    assert word_edits(said, heard) == expected


def test_characters_count_single_spaces() -> None:
    assert character_edits(" one  two", "one two ") == Edits(0, 0, 0, 7)
    assert character_edits("kitten", "sitting") == Edits(2, 0, 1, 6)
    assert character_edits("to day", "today") == Edits(0, 1, 0, 6)


def test_rates_are_those_of_the_sum() -> None:
    total = word_edits("a b c", "a b") + word_edits("d", "e")
    assert total == Edits(1, 1, 0, 4) and total.errors == 2 and total.rate == 50.0
    assert sum([total, total], Edits()).reference == 8
    assert Edits(insertions=2).rate == 200.0


@settings(deadline=None)
@given(said=st.text("abc", max_size=6), heard=st.text("abc", max_size=6))
def test_no_shorter_way_exists(said: str, heard: str) -> None:
    @functools.cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        kept = distance(i - 1, j - 1) + (said[i - 1] != heard[j - 1])
        return min(kept, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    found = edits(said, heard)
    assert found.errors == distance(len(said), len(heard))
    assert found.reference - found.deletions + found.insertions == len(heard)
