"""Replacements in transcripts: whole words, in order, within bounds."""

from __future__ import annotations

import pytest

from asr_server.replacements import Replacement, checked, normalise


@pytest.mark.parametrize(
    ("search", "replace", "text", "expected"),
    [
        ("or", "OR", "for or or", "for OR OR"),
        ("new york", "NYC", "to new york today", "to NYC today"),
        ("it's", "it is", "it's here", "it is here"),
        ("a.c", "x", "abc a.c", "abc x"),
        ("up", r"\1 \g<0>", "go up", r"go \1 \g<0>"),
        ("north", "", "go north", "go "),
        ("north", "south", "", ""),
        ("NORTH", "South", "north", "South"),
        ("é", "e", "é été", "e été"),
    ],
)
def test_whole_words(search: str, replace: str, text: str, expected: str) -> None:
    assert Replacement(search, replace)(text) == expected


def test_case() -> None:
    assert Replacement("North", "N", case_sensitive=True)("north North") == "north N"
    assert Replacement("North", "N")("north North") == "N N"


def test_one_after_the_other() -> None:
    one, two = Replacement("a", "b"), Replacement("b", "c")
    assert normalise("a b", [one, two]) == "c c"
    assert normalise("a b", [two, one]) == "b c"
    assert normalise("a b", []) == "a b"


@pytest.mark.parametrize(("search", "replace"), [("", "x"), ("x" * 101, ""), ("x", "y" * 101)])
def test_lengths(search: str, replace: str) -> None:
    text = (
        rf"{len(search)} characters\) and puts {len(replace)} characters there; 1 to 100, and at most 100, are allowed"
    )
    with pytest.raises(ValueError, match=text):
        Replacement(search, replace)
    assert Replacement("x" * 100, "y" * 100)("x" * 100) == "y" * 100


def test_a_hundred_entries() -> None:
    entry = Replacement("a", "b")
    assert checked(entry for _ in range(100)) == (entry,) * 100
    with pytest.raises(ValueError, match="There are more than 100 entries"):
        checked(entry for _ in range(101))


def test_texts_that_grow_end_at_a_bound() -> None:
    """Each entry makes 50 of every one: after a few of them no memory would be enough."""
    growing = [Replacement("a", "a " * 50) for _ in range(100)]
    assert len(normalise("a", growing[:2])) == 50 * (2 * 50 + 1)
    with pytest.raises(ValueError, match="make a transcript of more than 10000 characters"):
        normalise("a", growing)
